"""Kinds of images: what values a symbol stands for, and which modes of files are kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tessella.errors import InputError


@dataclass(frozen=True)
class Mode:
    """A mode of image files.

    Args:
        name: as Pillow calls it; empty for an array.
        channels: values of a pixel; 0 for any number.
    """

    name: str
    channels: int


MODES = (
    Mode("", 0),
    Mode("1", 1),
    Mode("L", 1),
    Mode("P", 1),
    Mode("LA", 2),
    Mode("RGB", 3),
    Mode("RGBA", 4),
    Mode("CMYK", 4),
)
"""Modes by the number that the format gives them; the first is that of arrays."""

MODES_OF_ARRAYS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""How arrays of so many channels are shown."""

PALETTE = 3
"""The mode with a palette."""

SCALED = 16
"""Added to the number of a mode where symbols stand for values from 0 to 255."""


def scaled_values(levels: int) -> np.ndarray:
    """The value of each symbol where they are scaled to 0..255: ``uint8 [levels]``.

    It is ``round(255 symbol / (levels - 1))``, halves up, as images are drawn.
    """
    symbols = np.arange(levels)
    return ((510 * symbols + levels - 1) // (2 * (levels - 1))).astype(np.uint8)


def as_symbols(values: np.ndarray, levels: int, prefer_scaled: bool) -> tuple[np.ndarray, bool]:
    """Symbols of pixels, without loss.

    Args:
        values: integers.
        levels: values that a symbol can take.
        prefer_scaled: where values could be both, symbols as they are or scaled to 0..255, take
            them for scaled.

    Returns:
        the symbols, and whether they were scaled.

    Raises:
        InputError: when there are other values.
    """
    low = int(values.min())
    high = int(values.max())
    is_direct = low >= 0 and high < levels
    if is_direct and not (prefer_scaled and levels < 256):
        return values, False
    if levels < 256 and low >= 0 and high <= 255:
        table = scaled_values(levels)
        symbols = np.searchsorted(table, values)
        if np.array_equal(table[np.minimum(symbols, levels - 1)], values):
            return symbols, True
    if is_direct:
        return values, False
    allowed = f"0..{levels - 1}"
    if levels < 256:
        allowed += f", or the {levels} values round(255 s / {levels - 1})"
    raise InputError(
        f"images must have values {allowed}, as the model has {levels} levels; got {low}..{high}:"
        " reduce them first, or take a model of 256 levels"
    )

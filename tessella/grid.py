"""The one kind of data: a grid of symbols.

An image of 8-bit pixels is ``Grid(32, 32, 3, 256)``; the codes of a tokenizer are
``Grid(8, 8, 1, 512)``; a residual code of depth 4 is ``Grid(16, 16, 4, 1024)``. Symbols are
integers ``[batch, height, width, channels]`` in ``[0, levels)``, stored in the order in which they
are generated: row by row, pixel by pixel, channel by channel, so that ``x.flatten(1)`` is the
sequence.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tessella.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

LN2 = math.log(2.0)

Quantity = TypeVar("Quantity", "float", "torch.Tensor", "np.ndarray[tuple[int, ...], np.dtype]")
"""Nats or bits: one number, or a tensor or array of them."""


@dataclass(frozen=True)
class Grid:
    """The shape of a grid of symbols, and the units of its probabilities.

    Args:
        height: rows.
        width: pixels (or codes) in a row.
        channels: symbols in a pixel: colour channels, or the depth of a residual code.
        levels: values a symbol can take, ``0 .. levels - 1``.

    Raises:
        InputError: when a size is not a positive integer, or ``levels`` is below 2.

    >>> grid = Grid(32, 32, 3, 256)
    >>> grid.symbols, grid.pixels, grid.place(3 * 32 + 4)
    (3072, 1024, (1, 1, 1))
    """

    height: int
    width: int
    channels: int
    levels: int

    def __post_init__(self) -> None:
        for name, least in (("height", 1), ("width", 1), ("channels", 1), ("levels", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(
                    f"Grid {name} must be an integer of at least {least}, got {value!r}"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(height, width, channels)``."""
        return self.height, self.width, self.channels

    @property
    def pixels(self) -> int:
        """Pixels (or codes) of one image."""
        return self.height * self.width

    @property
    def symbols(self) -> int:
        """Symbols of one image: the length of its sequence."""
        return self.pixels * self.channels

    @property
    def row_symbols(self) -> int:
        """Symbols of one row."""
        return self.width * self.channels

    def place(self, index: int) -> tuple[int, int, int]:
        """Row, column and channel of symbol ``index`` of the sequence."""
        # Channels change fastest, then columns, then rows.
        pixel, channel = divmod(index, self.channels)
        row, column = divmod(pixel, self.width)
        return row, column, channel

    def bits_per_dim(self, nats: Quantity) -> Quantity:
        """Nats of an image to bits per symbol of this grid."""
        return nats / (LN2 * self.symbols)

    def nats(self, bits_per_dim: Quantity) -> Quantity:
        """Bits per symbol of this grid to nats of an image."""
        return bits_per_dim * (LN2 * self.symbols)

    def check(self, x: object) -> torch.Tensor:
        """Symbols as ``int64 [batch, height, width, channels]``, after checking shape, type and
        range.

        Args:
            x: numpy array or tensor of any integer (or boolean) type.

        Raises:
            InputError: when the type is not an integer one, the shape is not this grid's, or a
                symbol is out of range.
        """
        symbols = to_tensor("symbols", x)
        if symbols.is_floating_point() or symbols.is_complex():
            raise InputError(
                f"symbols must be integers, got {symbols.dtype}; "
                "uint8 images become symbols with tokenizer.encode(images)"
            )
        if symbols.dim() != 4 or tuple(symbols.shape[1:]) != self.shape:
            raise InputError(
                f"symbols must have shape [batch, {self.height}, {self.width}, {self.channels}], "
                f"got {list(symbols.shape)}"
            )
        # Unsigned values from 2^63 on become negative here, and are refused with the negative ones.
        symbols = symbols.long()
        if symbols.numel():
            low = int(symbols.min())
            high = int(symbols.max())
            if low < 0 or high >= self.levels:
                raise InputError(
                    f"symbols must lie in 0..{self.levels - 1}, got values {low}..{high}"
                )
        return symbols

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.channels} of {self.levels} levels"


def to_tensor(name: str, value: object) -> torch.Tensor:
    """A caller's tensor, numpy array or nested list as a tensor, without a copy where possible.

    Args:
        name: of the argument, for the message.
        value: what the caller gave.

    Raises:
        InputError: for what holds no numbers, or rows of different lengths.
    """
    import numpy as np
    import torch

    # A tensor of any type and device stays as it is.
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray):
        # torch has no negative strides, which images[:, ::-1] has.
        value = np.ascontiguousarray(value) if value.ndim else value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"{name} must be a tensor, a numpy array or nested lists of numbers, "
            f"got {reprlib.repr(value)}"
        ) from error


def bits(nats: Quantity) -> Quantity:
    """Nats to bits."""
    return nats / LN2

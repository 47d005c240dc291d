"""Grids of symbols, the only kind of data that models see.

For example, an image of 8-bit pixels is a ``Grid(32, 32, 3, 256)``, the codes of a tokenizer are a
``Grid(8, 8, 1, 512)``, and residual codes of depth 4 are a ``Grid(16, 16, 4, 1024)``. Symbols are
integers ``[batch, height, width, channels]`` in ``[0, levels)``. Their order in memory is the order
in which they are generated (row by row, pixel by pixel, channel by channel), so ``x.flatten(1)`` is
the sequence that models predict.
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
"""Nats per bit."""

Quantity = TypeVar("Quantity", "float", "torch.Tensor", "np.ndarray[tuple[int, ...], np.dtype]")
"""An amount of nats or bits: a number, a tensor or an array."""


@dataclass(frozen=True)
class Grid:
    """The shape of a grid of symbols, and conversions between nats and bits per dimension.

    Args:
        height: number of rows.
        width: number of pixels (or codes) in a row.
        channels: number of symbols in a pixel: colour channels, or the depth of a residual code.
        levels: number of values a symbol can take, ``0 .. levels - 1``.

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
        # A symbol with a single level would carry no information.
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
        """Number of pixels (or codes) in one image."""
        return self.height * self.width

    @property
    def symbols(self) -> int:
        """Number of symbols in one image, the length of its sequence."""
        return self.pixels * self.channels

    @property
    def row_symbols(self) -> int:
        """Number of symbols in one row."""
        return self.width * self.channels

    def place(self, index: int) -> tuple[int, int, int]:
        """Row, column and channel of symbol ``index`` of the sequence."""
        # The channel changes fastest, then the column, then the row.
        pixel, channel = divmod(index, self.channels)
        row, column = divmod(pixel, self.width)
        return row, column, channel

    def bits_per_dim(self, nats: Quantity) -> Quantity:
        """Convert nats per image to bits per dimension, that is, bits per symbol."""
        return nats / (LN2 * self.symbols)

    def nats(self, bits_per_dim: Quantity) -> Quantity:
        """Convert bits per dimension, that is, bits per symbol, to nats per image."""
        return bits_per_dim * (LN2 * self.symbols)

    def check(self, x: object) -> torch.Tensor:
        """Check the shape, type and range of symbols, and convert them to int64.

        Args:
            x: tensor, numpy array or nested lists, of any integer (or boolean) type,
                ``[batch, height, width, channels]``.

        Returns:
            ``int64 [batch, height, width, channels]``, on the device of ``x``.

        Raises:
            InputError: when ``x`` has no integer type, the wrong shape, or a symbol out of range.
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
        # Unsigned values from 2^63 on become negative here, and are rejected as such below.
        symbols = symbols.long()
        # An empty batch has no minimum.
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
    """Convert a tensor, numpy array or nested lists to a tensor, without a copy where possible.

    Args:
        name: name of the argument, for the error message.
        value: value of the argument.

    Raises:
        InputError: when ``value`` is anything but numbers, or has rows of different lengths.
    """
    # Imported here, because recipes use grids without needing torch.
    import numpy as np
    import torch

    # A tensor of any type and on any device stays as it is.
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray):
        # torch does not support negative strides, which images[:, ::-1] has.
        value = np.ascontiguousarray(value) if value.ndim else value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"{name} must be a tensor, a numpy array or nested lists of numbers, "
            f"got {reprlib.repr(value)}"
        ) from error

"""The one kind of data: a grid of symbols.

An image of 8-bit pixels is ``Grid(32, 32, 3, 256)``; the codes of a tokenizer are
``Grid(8, 8, 1, 512)``; a residual code of depth 4 is ``Grid(16, 16, 4, 1024)``. Symbols are
integers ``[batch, height, width, channels]`` in ``[0, levels)``, stored in the order in which they
are generated: row by row, pixel by pixel, channel by channel, so that ``x.flatten(1)`` is the
sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tessella.errors import InputError

if TYPE_CHECKING:
    import torch

LN2 = math.log(2.0)


@dataclass(frozen=True)
class Grid:
    """The shape of a grid of symbols, and the units its probabilities are told in.

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
        pixel, channel = divmod(index, self.channels)
        row, column = divmod(pixel, self.width)
        return row, column, channel

    def bits_per_dim(self, nats: Any) -> Any:
        """Nats of an image to bits per symbol of this grid. Takes a float or a tensor."""
        return nats / (LN2 * self.symbols)

    def nats(self, bits_per_dim: Any) -> Any:
        """Bits per symbol of this grid to nats of an image. Takes a float or a tensor."""
        return bits_per_dim * (LN2 * self.symbols)

    def check(self, x: Any) -> torch.Tensor:
        """Symbols as ``int64 [batch, height, width, channels]``, after checking shape, type and
        range.

        Args:
            x: numpy array or tensor of any integer (or boolean) type.

        Raises:
            InputError: when the type is not an integer one, the shape is not this grid's, or a
                symbol is out of range.
        """
        import torch

        if not isinstance(x, torch.Tensor):
            x = torch.as_tensor(x)
        if x.is_floating_point() or x.is_complex():
            raise InputError(
                f"symbols must be integers, got {x.dtype}; uint8 images become symbols with tokenizer.encode(images)"
            )
        if x.dim() != 4 or tuple(x.shape[1:]) != self.shape:
            raise InputError(
                f"symbols must have shape [batch, {self.height}, {self.width}, {self.channels}], got {list(x.shape)}"
            )
        x = x.long()
        if x.numel():
            low, high = int(x.min()), int(x.max())
            if low < 0 or high >= self.levels:
                raise InputError(
                    f"symbols must lie in 0..{self.levels - 1}, got values {low}..{high}"
                )
        return x

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.channels} of {self.levels} levels"


def bits(nats: Any) -> Any:
    """Nats to bits. Takes a float or a tensor."""
    return nats / LN2

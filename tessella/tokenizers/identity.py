"""The tokenizer of pixel models: a symbol is a pixel's value, or its value on fewer levels."""

from __future__ import annotations

import torch

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.tokenizers.construction import PlainValues
from tessella.tokenizers.tokenizer import Tokenizer


class IdentityTokenizer(Tokenizer):
    """Values 0..255 to ``levels`` levels, one symbol a channel.

    A value ``v`` becomes ``v >> (8 - k)`` for ``levels = 2^k``, else ``round(v (levels - 1) /
    255)``; a symbol ``s`` becomes ``round(255 s / (levels - 1))``; halves are rounded up. So
    ``encode(decode(s)) == s`` for all levels, while ``decode(encode(v)) == v`` holds for all values
    at 256 levels only. (Images whose values happen to be those of levels, such as the digits with
    17 levels, are unchanged too.)

    Args:
        image_size: height and width that :meth:`grids` assumes, in pixels.
        channels: colour channels, 1 to 4.
        levels: 2 to 256.

    Raises:
        ConfigError: when an argument is out of range.

    >>> tokenizer = IdentityTokenizer((8, 8), 1, levels=17)
    >>> tokenizer.grid()
    Grid(height=8, width=8, channels=1, levels=17)
    """

    name = "identity"
    of_pixels = True

    def __init__(
        self, image_size: tuple[int, int] = (32, 32), channels: int = 3, levels: int = 256
    ) -> None:
        super().__init__(image_size, channels)
        if not 2 <= levels <= 256:
            raise ConfigError(f"levels must lie in 2..256, got {levels}")
        self.levels = levels
        self._symbol_of: torch.Tensor
        self._value_of: torch.Tensor
        # The tables follow from levels, so they are not saved.
        self.register_buffer("_symbol_of", _symbols_of_values(levels), persistent=False)
        self.register_buffer("_value_of", _values_of_symbols(levels), persistent=False)

    @property
    def lossless(self) -> bool:
        """True at 256 levels: fewer cannot distinguish all uint8 images."""
        return self.levels == 256

    def grids(self, height: int | None = None, width: int | None = None) -> tuple[Grid, ...]:
        height, width = self._size(height, width)
        return (Grid(height, width, self.channels, self.levels),)

    def config(self) -> PlainValues:
        return {
            "image_size": list(self.image_size),
            "channels": self.channels,
            "levels": self.levels,
        }

    # The features of pixels are the pixels themselves.
    def encode_float(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def decode_float(self, features: torch.Tensor) -> torch.Tensor:
        return features

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self._symbol_of[images.long()]

    def _decode(self, symbols: torch.Tensor) -> torch.Tensor:
        return self._value_of[symbols]


def _symbols_of_values(levels: int) -> torch.Tensor:
    """The symbol of each value: ``int64 [256]``."""
    values = torch.arange(256)
    # The high bits are the usual way to reduce depth; rounding makes cells of unequal size.
    is_power_of_two = levels & (levels - 1) == 0
    if is_power_of_two:
        bits = levels.bit_length() - 1
        return values >> (8 - bits)
    # round(v (levels - 1) / 255) in integers, halves up
    return (2 * values * (levels - 1) + 255) // (2 * 255)


def _values_of_symbols(levels: int) -> torch.Tensor:
    """The value of each symbol: ``uint8 [levels]``."""
    symbols = torch.arange(levels)
    # round(255 s / (levels - 1)) in integers, halves up
    return ((2 * 255 * symbols + levels - 1) // (2 * (levels - 1))).to(torch.uint8)

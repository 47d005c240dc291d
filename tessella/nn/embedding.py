"""From symbols to the vectors a network starts with."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from tessella.grid import Grid


class EmbeddedSymbols(nn.Module, ABC):
    """Base of the embeddings whose vector of a pixel is a sum over its channels."""

    @abstractmethod
    def table(self) -> torch.Tensor:
        """Vectors of every channel and level: ``[channels, levels, width]``."""


class SymbolEmbedding(EmbeddedSymbols):
    """The vector of a pixel: the sum over its channels of a vector for the level there.

    A level's vector is a free one plus a learned direction times the level on [-1, 1]. The free
    part serves codes, whose numbers mean nothing; the direction says from the start that level 99
    is next to level 100.

    Args:
        grid: the grid whose symbols are embedded.
        width: length of the vectors.
    """

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.grid = grid
        self.vectors = nn.Parameter(torch.randn(grid.channels, grid.levels, width) * 0.5)
        self.direction = nn.Parameter(torch.randn(grid.channels, 1, width) * 0.5)
        # [levels, 1], for all channels.
        levels = torch.linspace(-1, 1, grid.levels)[:, None]
        self.register_buffer("values", levels, persistent=False)
        self.values: torch.Tensor

    def table(self) -> torch.Tensor:
        return self.vectors + self.direction * self.values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x int64 [batch, height, width, channels]`` to ``[batch, height, width, width]``."""
        return sum_over_channels(x, self.table())


class ChannelEmbedding(SymbolEmbedding):
    """The vectors of a pixel's channels side by side, the first channel's first: ``width`` numbers
    for each.

    See :class:`SymbolEmbedding`, which adds them up.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x int64 [batch, height, width, channels]`` to
        ``[batch, height, width, channels * width]``."""
        # One lookup in the tables of all channels, one below the other.
        first = torch.arange(self.grid.channels, device=x.device) * self.grid.levels
        return nn.functional.embedding(x + first, self.table().flatten(0, 1)).flatten(-2)


class Intensities(EmbeddedSymbols):
    """A pixel as the paper feeds it: its channels on [-1, 1], and a one that separates the image
    from the zeros around it.

    Args:
        grid: the grid whose symbols are fed.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        channels = grid.channels
        vectors = torch.zeros(channels, grid.levels, channels + 1)
        for channel in range(channels):
            vectors[channel, :, channel] = torch.linspace(-1, 1, grid.levels)
        # The one goes with the first channel: the vectors of a pixel's channels are summed.
        vectors[0, :, channels] = 1.0
        self.register_buffer("vectors", vectors, persistent=False)
        self.vectors: torch.Tensor

    def table(self) -> torch.Tensor:
        return self.vectors

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x int64 [batch, height, width, channels]`` to
        ``[batch, height, width, channels + 1]``."""
        return sum_over_channels(x, self.vectors)


def sum_over_channels(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """``x int64 [..., channels]`` and ``table [channels, levels, width]`` to ``[..., width]``."""
    # A loop over the channels needs the memory of one channel's vectors at a time.
    total = nn.functional.embedding(x[..., 0], table[0])
    for channel in range(1, len(table)):
        total = total + nn.functional.embedding(x[..., channel], table[channel])
    return total

"""Embeddings of symbols: the input vectors of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from tessella.grid import Grid


class EmbeddedSymbols(nn.Module, ABC):
    """Base of the embeddings that sum a pixel's vector over its channels."""

    @abstractmethod
    def table(self) -> torch.Tensor:
        """Vectors of every channel and level: ``[channels, levels, width]``."""


class SymbolEmbedding(EmbeddedSymbols):
    """Embeds each channel of a pixel by its level, and sums over the channels.

    The vector of a level is a free vector plus a learned direction times the level, scaled to
    [-1, 1]. The free part is for codes, whose numbers mean nothing. The direction tells the network
    from the start that level 99 is next to level 100.

    Args:
        grid: the grid whose symbols are embedded.
        width: length of the vectors.
    """

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.grid = grid
        self.vectors = nn.Parameter(torch.randn(grid.channels, grid.levels, width) * 0.5)
        self.direction = nn.Parameter(torch.randn(grid.channels, 1, width) * 0.5)
        # [levels, 1]: all channels share the scaled levels.
        levels = torch.linspace(-1, 1, grid.levels)[:, None]
        self.register_buffer("values", levels, persistent=False)
        self.values: torch.Tensor

    def table(self) -> torch.Tensor:
        return self.vectors + self.direction * self.values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x int64 [batch, height, width, channels]`` to ``[batch, height, width, width]``."""
        return sum_over_channels(x, self.table())


class ChannelEmbedding(SymbolEmbedding):
    """Embeds each channel of a pixel like :class:`SymbolEmbedding`, but concatenates the vectors.

    A pixel gets ``channels * width`` features.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embed symbols.

        Args:
            x: ``int64 [batch, height, width, channels]``.

        Returns:
            ``[batch, height, width, channels * width]``.
        """
        # One lookup in a single table, in which the channels' tables are stacked.
        first = torch.arange(self.grid.channels, device=x.device) * self.grid.levels
        return nn.functional.embedding(x + first, self.table().flatten(0, 1)).flatten(-2)


class Intensities(EmbeddedSymbols):
    """The input of the PixelCNN++ paper: channel values scaled to [-1, 1], and a constant one.

    The one distinguishes the image from the zero padding around it.

    Args:
        grid: the grid whose symbols are embedded.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        channels = grid.channels
        vectors = torch.zeros(channels, grid.levels, channels + 1)
        for channel in range(channels):
            vectors[channel, :, channel] = torch.linspace(-1, 1, grid.levels)
        # Only the first channel carries the one, because the channels' vectors are summed.
        vectors[0, :, channels] = 1.0
        # A buffer moves to the model's device; it is constant, so it is not saved.
        self.register_buffer("vectors", vectors, persistent=False)
        self.vectors: torch.Tensor

    def table(self) -> torch.Tensor:
        return self.vectors

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale symbols to intensities.

        Args:
            x: ``int64 [batch, height, width, channels]``.

        Returns:
            ``[batch, height, width, channels + 1]``.
        """
        return sum_over_channels(x, self.vectors)


def sum_over_channels(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Look up every channel in its own table, and sum the vectors.

    Args:
        x: ``int64 [..., channels]``.
        table: ``[channels, levels, width]``.

    Returns:
        ``[..., width]``.
    """
    # Looping over the channels holds the vectors of one channel in memory at a time.
    total = nn.functional.embedding(x[..., 0], table[0])
    for channel in range(1, len(table)):
        total = total + nn.functional.embedding(x[..., channel], table[channel])
    return total

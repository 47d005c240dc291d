"""From symbols to the vectors a network starts with."""

from __future__ import annotations

import torch
from torch import nn

from tessella.grid import Grid


class SymbolEmbedding(nn.Module):
    """The vector of a pixel: the sum over its channels of a vector for the level there.

    A level's vector is a free one plus a learned direction times the level on [-1, 1]. The free
    part serves codes, whose numbers mean nothing; the direction tells from the start that level 99
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
        self.register_buffer(
            "values", torch.linspace(-1, 1, grid.levels)[:, None], persistent=False
        )
        self.values: torch.Tensor

    def table(self) -> torch.Tensor:
        """Vectors of every channel and level: ``[channels, levels, width]``."""
        return self.vectors + self.direction * self.values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x int64 [batch, height, width, channels]`` to ``[batch, height, width, width]``."""
        table = self.table()
        return sum(nn.functional.embedding(x[..., c], table[c]) for c in range(self.grid.channels))  # type: ignore[return-value]


class ChannelEmbedding(SymbolEmbedding):
    """The vectors of a pixel's channels side by side, the first channel's first: ``width`` numbers
    for each.

    See :class:`SymbolEmbedding`, which adds them up.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x int64 [batch, height, width, channels]`` to
        ``[batch, height, width, channels * width]``."""
        first = torch.arange(self.grid.channels, device=x.device) * self.grid.levels
        return nn.functional.embedding(x + first, self.table().flatten(0, 1)).flatten(-2)

"""Embeddings of conditions: class labels, and grids of codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.nn.embedding import SymbolEmbedding


class ClassEmbedding(nn.Embedding):
    """A vector for each class, and one for the null class.

    Args:
        classes: number of classes, at least 1.
        width: length of the vectors.
        std: standard deviation of their initial values.
    """

    def __init__(self, classes: int, width: int, std: float = 0.1) -> None:
        # The null class is the last index.
        super().__init__(classes + 1, width)
        nn.init.normal_(self.weight, std=std)


class CodeEmbedding(nn.Module):
    """Features of a grid of codes, upsampled to the size of the modelled grid.

    The codes are embedded and pass through two residual blocks of 3 x 3 convolutions. These need no
    mask, because all codes are known beforehand. Each pixel of the modelled grid then takes the
    features of the code that covers it.

    Args:
        codes: grid of the codes.
        grid: the modelled grid.
        width: length of the vectors.

    Raises:
        ConfigError: for a grid of codes that is finer than the modelled grid: some codes would
            reach no pixel.
    """

    def __init__(self, codes: Grid, grid: Grid, width: int) -> None:
        super().__init__()
        if codes.height > grid.height or codes.width > grid.width:
            raise ConfigError(
                f"codes must be no finer than the grid: codes of {codes} cannot condition {grid}"
            )
        self.size = (grid.height, grid.width)
        self.embedding = SymbolEmbedding(codes, width)
        self.blocks = nn.ModuleList()
        for _ in range(2):
            block = nn.Sequential(
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(width, width, 1),
            )
            self.blocks.append(block)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """``int64 [batch, h, w, c]`` to ``[batch, height, width, width]``."""
        # [batch, width, h, w]
        x = self.embedding(codes).movedim(-1, 1)
        for block in self.blocks:
            x = x + block(x)
        # Nearest-neighbour: a pixel gets the features of exactly one code.
        return F.interpolate(x, size=self.size, mode="nearest").movedim(1, -1)

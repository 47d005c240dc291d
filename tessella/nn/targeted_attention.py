"""Attention along a sequence whose tokens stand at one place and predict another.

In an order other than raster, a token does not show which place comes after it. Here the query of a
token is rotated by the place that it predicts, and its key by the place of the symbol that it holds
(``tessella.nn.rotary``). The product of a query and a key thus depends on the offset from the
predicted pixel to the known one, in whatever order they come.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tessella.grid import Grid
from tessella.nn.attending_block import AttendingBlock
from tessella.nn.attention import attend_causally
from tessella.nn.rotary import rotate


@dataclass
class Turns:
    """The rotations of a sequence of tokens, which all heads share.

    Those of all images are ``[1, 1, tokens, 2, size]``, those of each ``[batch, 1, tokens, 2,
    size]``.
    """

    queries: torch.Tensor
    """Rotations by the places that are predicted."""
    keys: torch.Tensor
    """Rotations by the places of the symbols; those of the prefix are zero."""

    @classmethod
    def along(cls, cos_sin: torch.Tensor, order: torch.Tensor) -> Turns:
        """The rotations along an order of places.

        Args:
            cos_sin: rotation of each place, ``[places, 2, size]``.
            order: ``int64 [batch or 1, places]``.
        """
        queries = cos_sin[order]
        # A token holds the symbol of the place that the token before it predicted. The first one
        # holds the prefix, which is nowhere.
        nowhere = torch.zeros_like(queries[:, :1])
        keys = torch.cat([nowhere, queries[:, :-1]], dim=1)
        return cls(queries[:, None], keys[:, None])


class TargetedBlock(AttendingBlock):
    """Causal attention from predicted places to known ones, and a feed-forward part."""

    def forward(self, x: torch.Tensor, turns: Turns) -> torch.Tensor:
        """Apply the block to whole sequences ``[batch, tokens, width]``."""
        seen = attend_causally(*self._queries_keys_values(x, turns))
        return self.added(x, seen)

    def step(
        self, x: torch.Tensor, turns: Turns, index: int, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Apply the block to one token.

        Args:
            x: ``[batch, width]``.
            turns: of this token.
            index: number of the token.
            keys, values: caches ``[batch, heads, tokens, size]``, updated in place.
        """
        query, key, value = self._queries_keys_values(x[:, None], turns)
        keys[:, :, index] = key[:, :, 0]
        values[:, :, index] = value[:, :, 0]
        known = slice(0, index + 1)
        # One query, which sees everything that is known.
        seen = F.scaled_dot_product_attention(query, keys[:, :, known], values[:, :, known])
        x = x + self.merge(seen.flatten(1))
        return x + self.feedforward(self.before_feedforward(x))

    def _queries_keys_values(
        self, x: torch.Tensor, turns: Turns
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Three tensors ``[batch, heads, tokens, size]`` of a stream ``[batch, tokens, width]``."""
        queries, keys, values = self.projected(x)
        return rotate(queries, turns.queries), rotate(keys, turns.keys), values


class PlaceVectors(nn.Module):
    """A learned vector for every place of a grid: the sum of those of its row, column and channel.

    Args:
        grid: the grid.
        channels: places of a pixel; with 1, a place is a pixel.
        width: length of the vectors.
    """

    def __init__(self, grid: Grid, channels: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(grid.height, 1, 1, width) * 0.3)
        self.columns = nn.Parameter(torch.randn(grid.width, 1, width) * 0.3)
        self.channels = nn.Parameter(torch.randn(channels, width) * 0.3)

    def table(self) -> torch.Tensor:
        """The vectors in raster order: ``[places, width]``."""
        return (self.rows + self.columns + self.channels).flatten(0, 2)

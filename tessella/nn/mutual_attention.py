"""Attention in which every place of a grid sees every other, for models of masked symbols."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.attending_block import AttendingBlock
from tessella.nn.rotary import rotate

WAVES = 16
"""Cosines of the share of masked places that :class:`ShareEmbedding` looks at."""


class MutualBlock(AttendingBlock):
    """Attention of all places to all places and a feed-forward part, each added to its input."""

    def forward(self, x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
        """Apply the block.

        Args:
            x: ``[batch, places, width]``.
            cos_sin: rotation of each place, ``[places, 2, size]``, see
                :func:`tessella.nn.rotary.rotations`.
        """
        queries, keys, values = self.projected(x)
        queries = rotate(queries, cos_sin)
        keys = rotate(keys, cos_sin)
        seen = F.scaled_dot_product_attention(queries, keys, values)
        return self.added(x, seen)


class ShareEmbedding(nn.Module):
    """A vector for the share of the places that are masked: a matrix times cosines of the share.

    Args:
        width: length of the vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(WAVES, width, bias=False)
        nn.init.normal_(self.mix.weight, std=0.5 * WAVES**-0.5)

    def forward(self, share: torch.Tensor) -> torch.Tensor:
        """``[batch]`` in 0..1 to ``[batch, width]``."""
        waves = torch.arange(1, WAVES + 1, device=share.device, dtype=share.dtype)
        return self.mix(torch.cos(math.pi * share[:, None] * waves))

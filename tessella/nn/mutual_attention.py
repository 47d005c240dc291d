"""Attention in which every place of a grid sees every other, for models of masked symbols."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.nn.attention import RMSNorm, SwiGLU
from tessella.nn.rotary import rotate

WAVES = 16
"""Cosines of the share of masked places that :class:`ShareEmbedding` looks at."""


class MutualBlock(nn.Module):
    """Attention of all places to all places and a feed-forward part, each added to its input.

    Args:
        width: length of the vectors.
        heads: number of heads; a divisor of ``width``.
        feedforward: hidden width, see :class:`SwiGLU`.
        dropout: dropout rate of the output of each part.

    Raises:
        ConfigError: when ``heads`` does not divide ``width``.
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(
                f"attention needs heads that divide the width, got width={width}, heads={heads}"
            )
        self.heads = heads
        self.before_attention = RMSNorm(width)
        # One product makes queries, keys and values, concatenated in this order.
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.merge = nn.Linear(width, width, bias=False)
        self.before_feedforward = RMSNorm(width)
        self.feedforward = SwiGLU(width, feedforward)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
        """Apply the block.

        Args:
            x: ``[batch, places, width]``.
            cos_sin: rotation of each place, ``[places, 2, size]``, see
                :func:`tessella.nn.rotary.rotations`.
        """
        # [batch, places, 3 width] to three times [batch, heads, places, size].
        vectors = self.project(self.before_attention(x))
        parts = vectors.unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        queries, keys, values = parts.chunk(3, dim=1)
        queries = rotate(queries, cos_sin)
        keys = rotate(keys, cos_sin)
        seen = F.scaled_dot_product_attention(queries, keys, values)
        x = x + self.dropout(self.merge(seen.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.feedforward(self.before_feedforward(x)))


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

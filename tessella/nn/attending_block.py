"""What transformer blocks have in common whose queries, keys and values are made by one product.

A block is attention and a feed-forward part, each with a residual connection. Blocks differ in
which places attend to which, and how queries and keys are rotated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.nn.attention import RMSNorm, SwiGLU


class AttendingBlock(nn.Module):
    """Base of blocks: the layers, and all but the attention itself.

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
        if heads < 1 or width % heads:
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

    def projected(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of a stream.

        Args:
            x: ``[batch, places, width]``.

        Returns:
            three tensors ``[batch, heads, places, size]``.
        """
        vectors = self.project(self.before_attention(x))
        # [batch, places, 3 heads, size] to [batch, 3 heads, places, size].
        parts = vectors.unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        queries, keys, values = parts.chunk(3, dim=1)
        return queries, keys, values

    def added(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """The stream after both parts.

        Args:
            x: the stream, ``[batch, places, width]``.
            seen: result of the attention, ``[batch, heads, places, size]``.
        """
        x = x + self.dropout(self.merge(seen.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.feedforward(self.before_feedforward(x)))


def initialize_blocks(blocks: Iterable[nn.Module]) -> None:
    """Draw the weights of all blocks of a stream from normal distributions.

    Layers that write to the stream start with small weights.
    """
    listed = list(blocks)
    for block in listed:
        assert isinstance(block, AttendingBlock)
        feedforward = block.feedforward
        for layer in (block.project, block.merge, feedforward.widen, feedforward.narrow):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        # The stream sums two such outputs per block; this keeps its variance at 1.
        for layer in (block.merge, feedforward.narrow):
            layer.weight.data /= math.sqrt(2 * len(listed))


def hidden_width(width: int, feedforward: int) -> int:
    """Hidden width of a gated feed-forward part: ``feedforward``, or a default where that is 0.

    The default is 8/3 of ``width``, rounded up to a multiple of 64: as many weights as a plain
    feed-forward part of four times the width has.
    """
    return feedforward or -(-8 * width // (3 * 64)) * 64


def check_block_sizes(
    name: str, layers: int, width: int, heads: int, feedforward: int, dropout: float
) -> None:
    """Check the sizes of a stream of blocks, for the model of this name.

    Raises:
        ConfigError: for sizes out of range.
    """
    if layers < 1 or width < 1 or heads < 1 or feedforward < 0 or not 0 <= dropout < 1:
        raise ConfigError(
            f"{name} needs layers >= 1, width >= 1, heads >= 1, feedforward >= 0 and "
            f"0 <= dropout < 1, got layers={layers}, width={width}, heads={heads}, "
            f"feedforward={feedforward}, dropout={dropout}"
        )

"""GPT: a decoder-only transformer with learned vectors of positions.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3, as
taming-transformers applies it to codes (Esser et al. 2021, section 3.2). The sequence is a prefix
(the class, or a learned vector) followed by all places but the last; the output at each position
predicts the place after it. Each part is normalized before it (mean and variance of a vector), has
biases, and is added to the stream; the feed-forward parts are ``W2 gelu(W1 x)``.

In contrast to :class:`~tessella.models.transformer.Transformer`, whose positions are rotations,
every place has a free vector, and every symbol (with a joint head, every pixel) is a token. A step
caches the keys and values of all layers, and computes in torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head, JointHead
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.density_model import JointWalk
from tessella.models.sequence_model import FlattenedModel
from tessella.nn.attending_block import check_block_sizes
from tessella.nn.attention import attend_causally
from tessella.nn.condition_embedding import ClassEmbedding
from tessella.nn.stepping.state import State

INITIAL_STD = 0.02
"""Standard deviation of the initial weights (GPT-2)."""


@dataclass
class GPTState(State):
    """The cached state of a walk."""

    shared: ClassVar[frozenset[str]] = frozenset({"table"})

    walk: JointWalk
    """The walk of a joint head."""

    table: torch.Tensor
    """Vector of every channel and level, ``[channels, levels, width]``."""
    token: torch.Tensor
    """Sum of the vectors of the place whose symbols become known, ``[batch, width]``; at first the
    prefix."""
    keys: list[torch.Tensor]
    """Of each layer, ``[batch, heads, places, size]``; filled up to the current place."""
    values: list[torch.Tensor]
    """Of each layer, like the keys."""


class GPTBlock(nn.Module):
    """Attention and a feed-forward part, each with biases and a residual connection.

    Args:
        width: length of the vectors.
        heads: number of heads, a divisor of ``width``.
        feedforward: hidden width of the feed-forward part.
        dropout: dropout rate of the output of each part.
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        # One product makes queries, keys and values, concatenated in this order.
        self.project = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.before_feedforward = nn.LayerNorm(width)
        self.widen = nn.Linear(width, feedforward)
        self.narrow = nn.Linear(feedforward, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block to a whole sequence ``[batch, places, width]``."""
        seen = attend_causally(*self._queries_keys_values(x))
        x = x + self.dropout(self.merge(seen.transpose(1, 2).flatten(2)))
        return x + self.dropout(self._feedforward(x))

    def step(
        self, x: torch.Tensor, place: int, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Apply the block at one place.

        Args:
            x: ``[batch, width]``.
            place: index of the place.
            keys, values: caches ``[batch, heads, places, size]``, updated in place.
        """
        query, key, value = self._queries_keys_values(x[:, None])
        keys[:, :, place] = key[:, :, 0]
        values[:, :, place] = value[:, :, 0]
        known = slice(0, place + 1)
        # One query, which sees everything that is known.
        seen = F.scaled_dot_product_attention(query, keys[:, :, known], values[:, :, known])
        x = x + self.merge(seen.flatten(1))
        return x + self._feedforward(x)

    def _queries_keys_values(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Three tensors ``[batch, heads, places, size]`` of a stream ``[batch, places, width]``."""
        vectors = self.project(self.before_attention(x))
        # [batch, places, 3 heads, size] to [batch, 3 heads, places, size].
        parts = vectors.unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        return parts.chunk(3, dim=1)

    def _feedforward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(F.gelu(self.widen(self.before_feedforward(x))))


class GPT(FlattenedModel):
    """``gpt``: a decoder-only transformer with a learned vector for every place.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: number of blocks.
        width: length of the vectors.
        heads: number of heads; a divisor of ``width``.
        feedforward: hidden width of the feed-forward parts; 0 means four times ``width``.
        dropout: dropout rate of the tokens, and of the output of each part.

    Raises:
        ConfigError: for sizes out of range, or that do not fit each other.
    """

    name = "gpt"

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        layers: int = 4,
        width: int = 64,
        heads: int = 4,
        feedforward: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(grid, head, conditioning)
        check_block_sizes("gpt", layers, width, heads, feedforward, dropout)
        if width % heads:
            raise ConfigError(
                f"gpt needs heads that divide the width, got width={width}, heads={heads}"
            )
        self._sizes: dict[str, object] = {
            "layers": layers,
            "width": width,
            "heads": heads,
            "feedforward": feedforward,
            "dropout": dropout,
        }
        self.vectors = nn.Parameter(INITIAL_STD * torch.randn(grid.channels, grid.levels, width))
        self.class_embedding = None
        if self.classes:
            self.class_embedding = ClassEmbedding(self.classes, width, std=INITIAL_STD)
        # Without classes the prefix is one learned vector.
        self.start = None if self.classes else nn.Parameter(INITIAL_STD * torch.randn(width))
        self.positions = nn.Parameter(INITIAL_STD * torch.randn(self.places, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            self.blocks.append(GPTBlock(width, heads, feedforward or 4 * width, dropout))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, self.free_size)
        self._initialize()

    def _initialize(self) -> None:
        """Initialize the weights as GPT-2 does; the output begins near the head's preference."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INITIAL_STD)
                nn.init.zeros_(module.bias)
        # The stream sums two such outputs per block; this keeps its variance.
        for block in self._blocks():
            for layer in (block.merge, block.narrow):
                layer.weight.data /= math.sqrt(2 * len(self.blocks))
        self.output.bias.data.copy_(self.free_bias())

    def _blocks(self) -> list[GPTBlock]:
        return [block for block in self.blocks if isinstance(block, GPTBlock)]

    def blocks_to_recompute(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        # [batch, places, width]: the prefix, then all places but the last.
        tokens = self._tokens(x)
        prefix = self._prefix(condition.labels, x.shape[0])
        tokens = torch.cat([prefix[:, None], tokens[:, :-1]], dim=1)
        tokens = self.dropout(tokens + self.positions)
        for block in self.blocks:
            tokens = self.recomputed(block, tokens)
        return self.on_grid(self.parameters_from_free(self.output(self.norm(tokens))))

    def _tokens(self, x: torch.Tensor) -> torch.Tensor:
        """The vector of every place, once its symbols are known: ``[batch, places, width]``."""
        # The channels' tables are stacked: level k of channel c is row c * levels + k.
        first_row = torch.arange(self.grid.channels, device=x.device) * self.grid.levels
        vectors = F.embedding((x + first_row).flatten(1), self.vectors.flatten(0, 1))
        # With a joint head a place is a pixel, whose channels are summed.
        return vectors.unflatten(1, (self.places, self.symbols_per_place)).sum(2)

    def _prefix(self, labels: torch.Tensor | None, batch: int) -> torch.Tensor:
        """The token before the first place: ``[batch, width]``."""
        if self.class_embedding is not None:
            return self.class_embedding(labels)
        assert self.start is not None
        return self.start.expand(batch, -1)

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> GPTState:
        condition = self.condition(cond, batch)
        prefix = self._prefix(condition.labels, batch).clone()
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for block in self._blocks():
            shape = (batch, block.heads, self.places, prefix.shape[1] // block.heads)
            keys.append(prefix.new_zeros(shape))
            values.append(prefix.new_zeros(shape))
        return GPTState(JointWalk(), self.vectors.detach(), prefix, keys, values)

    @torch.no_grad()
    def step(self, previous: torch.Tensor, index: int, state: State) -> tuple[torch.Tensor, State]:
        assert isinstance(state, GPTState)
        # The previous symbol has just become known.
        if index:
            self._observe(previous, index - 1, state)
        if not isinstance(self.head, JointHead):
            return self._predict(index, state), state
        # One prediction is made for each pixel, and the head turns it into its channels, in order.
        pixel, channel = divmod(index, self.grid.channels)
        parameters = self._predict(pixel, state) if channel == 0 else None
        return self.walk_pixel(parameters, previous, index, state.walk), state

    def _observe(self, symbol: torch.Tensor, index: int, state: GPTState) -> None:
        """Add the vector of a symbol that has become known to the token of its place."""
        vectors = state.table[index % self.grid.channels, symbol]
        # The token of a pixel starts anew with its first channel.
        if index % self.symbols_per_place == 0:
            state.token.zero_()
        state.token.add_(vectors)

    def _predict(self, place: int, state: GPTState) -> torch.Tensor:
        """Parameters of a place given the symbols before it: ``[batch, size]``."""
        x = state.token + self.positions[place]
        for layer, block in enumerate(self._blocks()):
            x = block.step(x, place, state.keys[layer], state.values[layer])
        return self.parameters_from_free(self.output(self.norm(x)))

    def output_weights(self) -> Sequence[torch.Tensor]:
        return [self.output.weight]

    def last_layers(self) -> Sequence[nn.Module]:
        return [self.output]

    def sizes(self) -> dict[str, object]:
        return dict(self._sizes)

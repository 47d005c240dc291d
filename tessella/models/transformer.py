"""A decoder-only transformer over the pixels of a grid in raster order.

The sequence is a prefix (the class, or a learned vector) and then the pixels but the last; what comes out at a place is
for the pixel that follows it. Norms come before each part, by root mean square, the feed-forward parts are SwiGLU,
nothing in the backbone has a bias, and positions are two-dimensional rotations: the network of LLaMA (Touvron et al.
2023, section 2.2) as LlamaGen puts it to images (Sun et al. 2024, section 2.2). Besides, a learned vector for its row
and one for its column tell where the pixel lies that comes next, which rotations alone tell by offsets only.

A pixel is one place of the sequence, the sum of the vectors of its channels (or of its depth of residual codes), and
its channels are ordered by the output stage (``tessella.models.output``), so the backbone runs once a pixel. A step
keeps the keys and values of all layers, and costs as much as one place of the sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from tessella.errors import ConfigError, unknown
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.base import DensityModel, symbol_field
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.output import create_output
from tessella.nn.attention import CausalAttention, RMSNorm, SwiGLU, rotations, swiglu
from tessella.nn.condition import ClassEmbedding, CodeEmbedding
from tessella.nn.embedding import SymbolEmbedding
from tessella.nn.state import State

PREFIXES = ("origin", "nowhere")
"""Where the prefix stands for the rotations: at the first pixel, or nowhere, its queries and keys zero (LlamaGen)."""


class Block(nn.Module):
    """Attention and a feed-forward part, each added to what comes in.

    Args:
        width: length of the vectors.
        heads, kv_heads: see :class:`CausalAttention`.
        feedforward: see :class:`SwiGLU`.
        dropout: share of what each part adds that is dropped in training.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.before_attention = RMSNorm(width)
        self.attention = CausalAttention(width, heads, kv_heads)
        self.before_feedforward = RMSNorm(width)
        self.feedforward = SwiGLU(width, feedforward)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """``x [batch, positions, width]`` to the same."""
        x = x + self.dropout(self.attention(self.before_attention(x), turns))
        return x + self.dropout(self.feedforward(self.before_feedforward(x)))

    def step(
        self, x: torch.Tensor, turns: torch.Tensor, weights: BlockWeights, cache: torch.Tensor, position: int
    ) -> torch.Tensor:
        """One position ``x [batch, width]``; see :meth:`CausalAttention.step`."""
        seen = self.attention.step(self.before_attention(x) @ weights.project, turns, cache, position)
        x = torch.addmm(x, seen, weights.merge)
        return torch.addmm(x, swiglu(self.before_feedforward(x) @ weights.widen), weights.narrow)


@dataclass
class BlockWeights:
    """The matrices of a block as ``[inputs, outputs]``."""

    project: torch.Tensor
    merge: torch.Tensor
    widen: torch.Tensor
    narrow: torch.Tensor


@dataclass
class TransformerState(State):
    """Keys, values and the token that comes next."""

    shared: ClassVar[frozenset[str]] = frozenset({"table", "places", "weights"})
    batch_dims: ClassVar[dict[str, int]] = {"cache": 2}

    table: torch.Tensor
    """Vectors of every channel and level, ``[channels, levels, width]``."""
    places: torch.Tensor
    """Vectors of the places of pixels, ``[pixels, width]``."""
    weights: list[BlockWeights]
    cache: torch.Tensor
    """Keys and values, ``[layers, 2, batch, kv_heads, pixels, size]``."""
    token: torch.Tensor
    """The prefix, then the sum of the channels known of the pixel before: ``[batch, width]``."""
    codes: torch.Tensor | None
    """Features of the codes, ``[batch, pixels, width]``."""
    pixel: Any = None
    """The output stage's state within the pixel."""


class Transformer(DensityModel):
    """``transformer``: a decoder-only transformer over pixels or codes with cached keys and values.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: blocks.
        width: length of the vectors.
        heads: query heads; they divide the width, and what each gets divides by 4.
        kv_heads: heads of keys and values, a divisor of ``heads``; 0 takes as many.
        feedforward: width of the feed-forward parts; 0 takes 8/3 of the width, rounded up to a multiple of 64.
        dropout: share of tokens' and parts' numbers dropped in training.
        prefix: where the prefix stands for the rotations: ``"origin"``, at the first pixel, or ``"nowhere"``, its
            queries and keys zero, as in LlamaGen.

    Raises:
        ConfigError: for sizes that make no network.
    """

    name = "transformer"
    takes_codes = True

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        layers: int = 4,
        width: int = 64,
        heads: int = 4,
        kv_heads: int = 0,
        feedforward: int = 0,
        dropout: float = 0.0,
        prefix: str = "origin",
    ) -> None:
        super().__init__(grid, head, conditioning)
        if layers < 1 or width < 1 or feedforward < 0 or kv_heads < 0 or not 0 <= dropout < 1:
            raise ConfigError(
                "transformer needs layers >= 1, width >= 1, feedforward >= 0, kv_heads >= 0 and 0 <= dropout < 1, got "
                f"layers={layers}, width={width}, feedforward={feedforward}, kv_heads={kv_heads}, dropout={dropout}"
            )
        if prefix not in PREFIXES:
            raise ConfigError(unknown("prefix", prefix, PREFIXES))
        self._sizes: dict[str, Any] = {"layers": layers, "width": width, "heads": heads, "kv_heads": kv_heads}
        self._sizes |= {"feedforward": feedforward, "dropout": dropout, "prefix": prefix}
        self.embedding = SymbolEmbedding(grid, width)
        self.class_embedding = ClassEmbedding(self.classes, width, std=0.5) if self.classes else None
        self.start = None if self.classes else nn.Parameter(torch.randn(width) * 0.5)
        self.rows = nn.Parameter(torch.randn(grid.height, 1, width) * 0.3)
        self.columns = nn.Parameter(torch.randn(grid.width, width) * 0.3)
        self.code_embedding = CodeEmbedding(conditioning.codes, grid, width) if conditioning.codes else None
        self.dropout = nn.Dropout(dropout)
        hidden = feedforward or -(-8 * width // (3 * 64)) * 64
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads or heads, hidden, dropout) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.output = create_output(grid, head, width, direct=True)
        self.register_buffer("turns", self._turns(width // heads), persistent=False)
        self.turns: torch.Tensor
        self._initialize()

    def _turns(self, size: int) -> torch.Tensor:
        """Rotations of the sequence, ``[pixels, 2, size]``: the prefix, then all pixels but the last."""
        turns = rotations(self.grid.height, self.grid.width, size)
        prefix = turns[:1] if self._sizes["prefix"] == "origin" else torch.zeros_like(turns[:1])
        return torch.cat([prefix, turns[:-1]]).to(torch.get_default_dtype())

    def _initialize(self) -> None:
        """Normal weights; what is added to the residual stream starts small, and so do the parameters of the head."""
        for block in self._blocks():
            attention, feedforward = block.attention, block.feedforward
            for layer in (attention.project, attention.merge, feedforward.widen, feedforward.narrow):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            for layer in (attention.merge, feedforward.narrow):
                layer.weight.data /= math.sqrt(2 * len(self.blocks))
        nn.init.normal_(self.output.last.weight, std=0.02)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        tokens = self.embedding(x).flatten(1, 2)
        tokens = torch.cat([self._prefix(condition.labels, len(x))[:, None], tokens[:, :-1]], dim=1)
        tokens = tokens + (self.rows + self.columns).flatten(0, 1)
        if self.code_embedding is not None:
            tokens = tokens + self.code_embedding(condition.codes).flatten(1, 2)
        tokens = self.dropout(tokens)
        for block in self.blocks:
            tokens = self.recomputed(block, tokens, self.turns)
        return self.output(self.norm(tokens).unflatten(1, (self.grid.height, self.grid.width)), x)

    def _prefix(self, labels: torch.Tensor | None, batch: int) -> torch.Tensor:
        """What stands before the first pixel: ``[batch, width]``."""
        if self.class_embedding is not None:
            return self.class_embedding(labels)
        assert self.start is not None
        return self.start.expand(batch, -1)

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> TransformerState:
        condition = self.condition(cond, batch)
        blocks, attention = self._blocks(), self._blocks()[0].attention
        shape = (len(blocks), 2, batch, attention.kv_heads, self.grid.pixels, attention.size)
        codes = None if self.code_embedding is None else self.code_embedding(condition.codes).flatten(1, 2)
        return TransformerState(
            table=self.embedding.table(),
            places=(self.rows + self.columns).flatten(0, 1),
            weights=[_weights(block, batch) for block in blocks],
            cache=self.norm.weight.new_zeros(shape),
            token=self._prefix(condition.labels, batch).clone(),
            codes=codes,
        )

    @torch.no_grad()
    def step(
        self, previous: torch.Tensor, index: int, state: TransformerState
    ) -> tuple[torch.Tensor, TransformerState]:
        pixel, channel = divmod(index, self.grid.channels)
        if index:
            state.token += state.table[(index - 1) % self.grid.channels, previous]
        if channel == 0:
            state.pixel = self.output.start(self._features(pixel, state))
            state.token = torch.zeros_like(state.token)
        parameters, state.pixel = self.output.step(previous, channel, state.pixel)
        return parameters, state

    def _features(self, pixel: int, state: TransformerState) -> torch.Tensor:
        """Once a pixel: all blocks. Returns the features ``[batch, width]``."""
        x = state.token + state.places[pixel]
        if state.codes is not None:
            x += state.codes[:, pixel]
        turns = self.turns[pixel]
        for block, weights, cache in zip(self._blocks(), state.weights, state.cache.unbind(), strict=True):
            x = block.step(x, turns, weights, cache, pixel)
        return self.norm(x)

    def sizes(self) -> dict[str, Any]:
        return dict(self._sizes)

    def receptive_field(self) -> torch.Tensor:
        pixels = torch.ones(self.grid.pixels, self.grid.pixels).tril(-1).bool()
        return symbol_field(self.grid, pixels, inside=True)


def _weights(block: Block, batch: int) -> BlockWeights:
    """The matrices of a block. To one vector a product goes faster when they are laid out for it; to several, as they
    are kept."""
    layers = (
        block.attention.project,
        block.attention.merge,
        block.feedforward.widen,
        block.feedforward.narrow,
    )
    return BlockWeights(*(layer.weight.T.contiguous() if batch == 1 else layer.weight.T for layer in layers))

"""A decoder-only transformer over the pixels of a grid in raster order.

The sequence is a prefix (the class, or a learned vector) and then the pixels but the last; what
comes out at a place is for the pixel that follows it. Norms come before each part, by root mean
square, the feed-forward parts are SwiGLU, nothing in the backbone has a bias, and positions are
two-dimensional rotations: the network of LLaMA (Touvron et al. 2023, section 2.2) as LlamaGen puts
it to images (Sun et al. 2024, section 2.2). Besides, a learned vector for its row and one for its
column tell where the pixel lies that comes next, which rotations alone tell by offsets only.

A pixel is one place of the sequence, the sum of the vectors of its channels (or of its depth of
residual codes), and its channels are ordered by the output stage
(``tessella.models.channel_output``), so the backbone runs once a pixel. A step keeps the keys and
values of all layers, and costs as much as one place of the sequence.
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
from tessella.models.channel_output import create_output
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.density_model import symbol_field
from tessella.models.pixel_model import PixelModel, Programs, Walk
from tessella.nn.attention import EPSILON, CausalAttention, RMSNorm, SwiGLU, rotations
from tessella.nn.condition_embedding import ClassEmbedding, CodeEmbedding
from tessella.nn.embedding import SymbolEmbedding
from tessella.nn.stepping.program import Matrix, Moving, Program, along
from tessella.nn.stepping.state import State

PREFIXES = ("origin", "nowhere")
"""Where the prefix stands for the rotations: at the first pixel, or nowhere, its queries and keys
zero (LlamaGen)."""


class Block(nn.Module):
    """Attention and a feed-forward part, each added to what comes in.

    Args:
        width: length of the vectors.
        heads, kv_heads: see :class:`CausalAttention`.
        feedforward: see :class:`SwiGLU`.
        dropout: share of what each part adds that is dropped in training.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, feedforward: int, dropout: float
    ) -> None:
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


@dataclass
class BlockWeights:
    """The matrices of a block."""

    turned: Matrix
    """Makes queries and keys."""
    values: Matrix
    merge: Matrix
    widen: Matrix
    narrow: Matrix


@dataclass
class TransformerState(State):
    """Caches of the walk."""

    shared: ClassVar[frozenset[str]] = frozenset({"places", "weights"})
    derived: ClassVar[frozenset[str]] = frozenset({"programs"})

    places: torch.Tensor
    """Vectors of the places of pixels, ``[pixels, width]``."""
    weights: list[BlockWeights]
    keys: list[torch.Tensor]
    """Of each block, ``[batch, pixels, kv_heads * size]``."""
    values: list[torch.Tensor]
    token: torch.Tensor
    """The prefix, then the sum of the channels known of the pixel before: ``[batch, width]``."""
    codes: torch.Tensor | None
    """Features of the codes, ``[batch, pixels, width]``."""
    walk: Walk
    programs: Programs[Program] | None = None


class Transformer(PixelModel):
    """``transformer``: a decoder-only transformer over pixels or codes with cached keys and values.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: blocks.
        width: length of the vectors.
        heads: query heads; they divide the width, and what each gets divides by 4.
        kv_heads: heads of keys and values, a divisor of ``heads``; 0 takes as many.
        feedforward: width of the feed-forward parts; 0 takes 8/3 of the width, rounded up to a
            multiple of 64.
        dropout: share of tokens' and parts' numbers dropped in training.
        prefix: where the prefix stands for the rotations: ``"origin"``, at the first pixel, or
            ``"nowhere"``, its queries and keys zero, as in LlamaGen.

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
        self._sizes: dict[str, Any] = {
            "layers": layers,
            "width": width,
            "heads": heads,
            "kv_heads": kv_heads,
        }
        self._sizes |= {"feedforward": feedforward, "dropout": dropout, "prefix": prefix}
        self.embedding = SymbolEmbedding(grid, width)
        self.class_embedding = (
            ClassEmbedding(self.classes, width, std=0.5) if self.classes else None
        )
        self.start = None if self.classes else nn.Parameter(torch.randn(width) * 0.5)
        self.rows = nn.Parameter(torch.randn(grid.height, 1, width) * 0.3)
        self.columns = nn.Parameter(torch.randn(grid.width, width) * 0.3)
        self.code_embedding = (
            CodeEmbedding(conditioning.codes, grid, width) if conditioning.codes else None
        )
        self.dropout = nn.Dropout(dropout)
        hidden = feedforward or -(-8 * width // (3 * 64)) * 64
        self.blocks = nn.ModuleList(
            Block(width, heads, kv_heads or heads, hidden, dropout) for _ in range(layers)
        )
        self.norm = RMSNorm(width)
        self.output = create_output(grid, head, width, direct=True)
        self.register_buffer("turns", self._turns(width // heads), persistent=False)
        self.turns: torch.Tensor
        self._initialize()

    def _turns(self, size: int) -> torch.Tensor:
        """Rotations of the sequence, ``[pixels, 2, size]``: the prefix, then all pixels but the
        last."""
        turns = rotations(self.grid.height, self.grid.width, size)
        prefix = turns[:1] if self._sizes["prefix"] == "origin" else torch.zeros_like(turns[:1])
        return torch.cat([prefix, turns[:-1]]).to(torch.get_default_dtype())

    def _initialize(self) -> None:
        """Normal weights; what is added to the residual stream starts small, and so do the
        parameters of the head."""
        for block in self._blocks():
            attention, feedforward = block.attention, block.feedforward
            for layer in (
                attention.project,
                attention.merge,
                feedforward.widen,
                feedforward.narrow,
            ):
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
        shape = (batch, self.grid.pixels, attention.kv_heads * attention.size)
        codes = (
            None
            if self.code_embedding is None
            else self.code_embedding(condition.codes).flatten(1, 2)
        )
        return TransformerState(
            places=(self.rows + self.columns).flatten(0, 1),
            weights=[_weights(block) for block in blocks],
            keys=[self.norm.weight.new_zeros(shape) for _ in blocks],
            values=[self.norm.weight.new_zeros(shape) for _ in blocks],
            token=self._prefix(condition.labels, batch).clone(),
            codes=codes,
            walk=self.walk(self.embedding.table(), batch),
        )

    def write(self, state: TransformerState) -> Programs[Program]:
        program = Program(len(state.token), ("position", "known"), state.token)
        x, features = program.room(state.token.shape[1]), program.room(state.token.shape[1])
        program.add(state.token, Moving(state.places[0], "position", state.places.stride(0)), x)
        if state.codes is not None:
            program.add(x, along(state.codes, "position"), x)
        program.map(torch.zeros_like(state.token), state.token)
        for block, weights, keys, values in zip(
            self._blocks(), state.weights, state.keys, state.values, strict=True
        ):
            self._write_attention(program, x, block, weights, keys, values)
            _write_feedforward(program, x, block, weights)
        program.norm(x, self.norm.weight.detach(), features, EPSILON)
        self.output.write(program, features, state.walk.output)
        return self.written(state.walk, state.token, program)

    def _write_attention(
        self, program: Program, x: torch.Tensor, block: Block, weights: BlockWeights, keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:  # fmt: skip
        """One position looks at itself and those before it, and what it sees is added to
        ``x [batch, width]``."""
        attention, width = block.attention, x.shape[1]
        normed, vectors = program.room(width), program.room(width + keys.shape[2])
        query, seen = program.room(width), program.room(width)
        turns = Moving(self.turns[0].flatten(), "position", self.turns.stride(0))
        program.norm(x, block.before_attention.weight.detach(), normed, EPSILON)
        program.linear(normed, weights.turned, vectors)
        program.linear(normed, weights.values, along(values, "position"))
        program.rotate(vectors[:, :width], turns, query, attention.heads)
        program.rotate(vectors[:, width:], turns, along(keys, "position"), attention.kv_heads)
        program.attend(query, keys, values, seen, "known", attention.heads, attention.kv_heads)
        program.linear(seen, weights.merge, x, plus=x)

    def start_row(self, row: int, state: TransformerState, backbone: Program) -> None:
        """Nothing: a row is like any other place."""

    def start_pixel(self, row: int, column: int, backbone: Program) -> None:
        position = row * self.grid.width + column
        backbone.run(position, position + 1)

    def sizes(self) -> dict[str, Any]:
        return dict(self._sizes)

    def receptive_field(self) -> torch.Tensor:
        pixels = torch.ones(self.grid.pixels, self.grid.pixels).tril(-1).bool()
        return symbol_field(self.grid, pixels, inside=True)


def _write_feedforward(
    program: Program, x: torch.Tensor, block: Block, weights: BlockWeights
) -> None:
    """The feed-forward part of one position, added to ``x [batch, width]``."""
    normed, hidden = program.room(x.shape[1]), program.room(block.feedforward.narrow.in_features)
    program.norm(x, block.before_feedforward.weight.detach(), normed, EPSILON)
    program.linear(normed, weights.widen, hidden, then="swiglu")
    program.linear(hidden, weights.narrow, x, plus=x)


def _weights(block: Block) -> BlockWeights:
    attention, feedforward = block.attention, block.feedforward
    turned, values = attention.project.weight.tensor_split(
        [(attention.heads + attention.kv_heads) * attention.size]
    )
    layers = (
        turned,
        values,
        attention.merge.weight,
        feedforward.widen.weight,
        feedforward.narrow.weight,
    )
    return BlockWeights(*(Matrix(weight.T) for weight in layers))

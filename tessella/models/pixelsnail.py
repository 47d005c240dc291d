"""PixelSNAIL (Chen, Mishra, Rohaninejad, Abbeel 2018, "PixelSNAIL: An Improved Autoregressive
Generative Model", sections 3 and 4).

Each block has gated residual blocks of causal convolutions and then attention: a pixel looks at all
pixels before it, strictly, with queries from its own features and keys and values from the features
*and the values* of the others; the first pixel looks at nothing and gets zeros. Both are told their
row and column. The sizes follow the widely used implementation over VQ-VAE-2 codes (Razavi et al.
2019): two 5 x 5 convolutions in a residual block, with a kernel whose last row is moved to the left
instead of being masked. The class adds a bias in each of these blocks, a grid of codes a product of
its features.

A step computes what the rows above add to each convolution once a row, for the whole row; the
products with the row itself, the keys and values of the pixel that has just become known, and the
attention of the new one, once a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.channel_output import create_output
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.density_model import symbol_field
from tessella.models.pixel_model import PixelModel, Programs, Walk
from tessella.nn.condition_embedding import ClassEmbedding, CodeEmbedding
from tessella.nn.embedding import SymbolEmbedding
from tessella.nn.pixelcnn_pp_layers import RESIDUAL_GAIN, UNIT_GAIN
from tessella.nn.shifted_convolution import (
    CausalKernel,
    NormedLinear,
    RowCache,
    ShiftedConvolution,
    delayed,
)
from tessella.nn.stepping.program import Matrix, Moving, Operand, Program, along
from tessella.nn.stepping.state import State

OUTPUT_SHARE = 0.1
"""The last layer starts with so much of its usual weights, so that a fresh model is near the head's
own start."""


class ConvolutionBlock(nn.Module):
    """``x + a * sigmoid(b)`` with ``a, b`` from two causal convolutions of ELUs.

    Args:
        channels: width of the features.
        hidden: width between the convolutions.
        kernel: see :class:`CausalKernel`.
        dropout: share of the features between the convolutions that is dropped in training.
        codes: whether features of codes come in.
    """

    def __init__(
        self, channels: int, hidden: int, kernel: int, dropout: float, codes: bool
    ) -> None:
        super().__init__()
        self.inner = CausalKernel(channels, hidden, kernel, UNIT_GAIN)
        self.outer = CausalKernel(hidden, 2 * channels, kernel, RESIDUAL_GAIN)
        self.codes = nn.Linear(channels, 2 * channels, bias=False) if codes else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor | None, codes: torch.Tensor | None
    ) -> torch.Tensor:
        """``x [batch, height, width, channels]`` to the same; ``bias [batch, 2 * channels]`` of the
        class and features ``codes``, as large as ``x``, are added to what enters the gate."""
        gates = self.outer(self.dropout(F.elu(self.inner(F.elu(x)))))
        if bias is not None:
            gates = gates + bias[:, None, None]
        if self.codes is not None:
            gates = gates + self.codes(codes)
        return x + F.glu(gates, dim=-1)

    def cache(self, batch: int, width: int, bias: torch.Tensor | None) -> ConvolutionState:
        """The state before the first row."""
        make = self.inner.bias.new_zeros
        return ConvolutionState(
            codes=None if self.codes is None else Matrix(self.codes.weight.T),
            inner=self.inner.cache(batch, width),
            outer=self.outer.cache(batch, width, bias),
            before_inner=make(batch, width, len(self.inner.bias)),
            before_outer=make(batch, width, len(self.outer.bias)),
        )


@dataclass
class ConvolutionState(State):
    """A :class:`ConvolutionBlock` on its way."""

    shared: ClassVar[frozenset[str]] = frozenset({"codes"})

    codes: Matrix | None
    """``[channels, 2 * channels]``."""
    inner: RowCache
    outer: RowCache
    before_inner: torch.Tensor
    """What bias and rows above add in this row: ``[batch, width, hidden]``."""
    before_outer: torch.Tensor
    """What bias, class, codes and rows above add to the gate in this row:
    ``[batch, width, 2 * channels]``."""

    def write_row(self, program: Program, codes: Operand | None) -> None:
        """Start a row; ``codes [batch, width, channels]`` are its features."""
        self.inner.write_shift(program)
        self.inner.write_above(program, self.before_inner)
        self.outer.write_shift(program)
        self.outer.write_above(program, self.before_outer)
        if self.codes is not None and codes is not None:
            program.linear(codes, self.codes, self.before_outer, plus=self.before_outer)

    def write_pixel(self, program: Program, x: Operand, out: Operand) -> None:
        """One place: ``x [batch, channels]`` to ``out``, which may be ``x``."""
        program.map(x, self.inner.place("column"), "elu")
        self.inner.write_place(
            program, self.before_inner, self.outer.place("column"), "column", "elu"
        )
        self.outer.write_place(program, self.before_outer, out, "column", "glu", x)


class PointBlock(nn.Module):
    """``x + a * sigmoid(b)`` with ``a, b`` from two products within a pixel.

    Args:
        channels: width of the features.
        hidden: width between the products.
        dropout: see :class:`ConvolutionBlock`.
        beside: width of other features that come in before the second product; 0 for none.
    """

    def __init__(self, channels: int, hidden: int, dropout: float, beside: int = 0) -> None:
        super().__init__()
        self.inner = NormedLinear(channels, hidden, UNIT_GAIN)
        self.beside = NormedLinear(beside, hidden, UNIT_GAIN) if beside else None
        self.outer = NormedLinear(hidden, 2 * channels, RESIDUAL_GAIN)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, beside: torch.Tensor | None = None) -> torch.Tensor:
        """``x [..., channels]`` to the same, given ``beside [..., beside]``."""
        sums = self.inner(F.elu(x))
        if self.beside is not None and beside is not None:
            sums = sums + self.beside(F.elu(beside))
        return x + F.glu(self.outer(self.dropout(F.elu(sums))), dim=-1)

    def weights(self) -> PointWeights:
        """The weights laid out for stepping."""
        layers = [self.inner] if self.beside is None else [self.inner, self.beside]
        return PointWeights(
            inner=Matrix(torch.cat([layer.weight() for layer in layers], dim=1).T),
            inner_bias=torch.stack([layer.bias for layer in layers]).sum(0),
            outer=Matrix(self.outer.weight().T),
            outer_bias=self.outer.bias.detach(),
        )


@dataclass
class PointWeights:
    """A :class:`PointBlock` for stepping."""

    inner: Matrix
    """``[channels + beside, hidden]``."""
    inner_bias: torch.Tensor
    outer: Matrix
    outer_bias: torch.Tensor

    def write(self, program: Program, active: Operand, x: Operand, out: Operand) -> None:
        """``x [batch, channels]`` to ``out``, which may be ``x``;
        ``active [batch, channels + beside]`` is ``elu`` of ``x`` and of what is beside it."""
        hidden = program.room(len(self.inner_bias))
        program.linear(active, self.inner, hidden, plus=self.inner_bias, then="elu")
        program.linear(hidden, self.outer, out, plus=self.outer_bias, then="glu", residual=x)


class AttentionBlock(nn.Module):
    """Convolution blocks, then a look at all pixels before, then both together.

    Args:
        channels, hidden, kernel, dropout, codes: see :class:`ConvolutionBlock`.
        count: convolution blocks.
        heads: of the attention, which is half as wide as the features.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel: int,
        dropout: float,
        codes: bool,
        count: int,
        heads: int,
    ) -> None:
        super().__init__()
        half, self.heads = channels // 2, heads
        self.convolutions = nn.ModuleList(
            ConvolutionBlock(channels, hidden, kernel, dropout, codes) for _ in range(count)
        )
        self.key_block = PointBlock(2 * channels + 2, channels, dropout)
        self.query_block = PointBlock(channels + 2, channels, dropout)
        self.query = nn.Linear(channels + 2, half)
        self.keys_values = nn.Linear(2 * channels + 2, 2 * half, bias=False)
        self.merge = PointBlock(channels, channels, dropout, beside=half)

    def attend(self, x: torch.Tensor, pixels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """``x [batch, height, width, channels]`` to the same.

        Args:
            x: features after the convolutions.
            pixels: embedded pixels, of the shape of ``x``.
            places: rows and columns, ``[batch, height, width, 2]``.
        """
        queries = self.query(self.query_block(torch.cat([x, places], dim=-1)))
        content = self.key_block(torch.cat([pixels, x, places], dim=-1))
        keys, values = self.keys_values(content).chunk(2, dim=-1)
        vectors = (
            part.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (queries, keys, values)
        )
        seen = strictly_before(*vectors).transpose(1, 2).flatten(2).unflatten(1, x.shape[1:3])
        return self.merge(x, seen)

    def cache(
        self, batch: int, width: int, pixels: int, biases: Iterator[torch.Tensor | None]
    ) -> AttentionState:
        """The state before the first row; a bias of the class for each convolution block."""
        make, half = self.query.weight.new_zeros, self.query.out_features
        to_keys, to_values = self.keys_values.weight.T.split(half, dim=1)
        layers = [layer for layer in self.convolutions if isinstance(layer, ConvolutionBlock)]
        return AttentionState(
            convolutions=[layer.cache(batch, width, next(biases)) for layer in layers],
            key_block=self.key_block.weights(),
            to_keys=Matrix(to_keys),
            to_values=Matrix(to_values),
            query_block=self.query_block.weights(),
            query=Matrix(self.query.weight.T),
            query_bias=self.query.bias.detach(),
            merge=self.merge.weights(),
            heads=self.heads,
            content=make(batch, self.keys_values.in_features),
            keys=make(batch, 1 + pixels, half),
            values=make(batch, 1 + pixels, half),
        )


def strictly_before(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Attention of each position to the positions before it: ``[batch, heads, positions, size]``
    each. The first position gets zeros."""
    first = torch.zeros_like(values[:, :, :1])
    if queries.shape[2] == 1:
        return first
    others = F.scaled_dot_product_attention(
        queries[:, :, 1:].contiguous(),
        keys[:, :, :-1].contiguous(),
        values[:, :, :-1].contiguous(),
        is_causal=True,
    )
    return torch.cat([first, others], dim=2)


@dataclass
class AttentionState(State):
    """An :class:`AttentionBlock` on its way."""

    shared: ClassVar[frozenset[str]] = frozenset(
        {"key_block", "to_keys", "to_values", "query_block", "query", "query_bias", "merge"}
    )

    convolutions: list[ConvolutionState]
    key_block: PointWeights
    to_keys: Matrix
    """``[2 * channels + 2, channels / 2]``."""
    to_values: Matrix
    query_block: PointWeights
    query: Matrix
    """``[channels + 2, channels / 2]``."""
    query_bias: torch.Tensor
    merge: PointWeights
    heads: int
    content: torch.Tensor
    """Embedded pixel, features after the convolutions, row and column, of which keys are made;
    without the embedded pixel, which becomes known one pixel later, queries are made of it:
    ``[batch, 2 * channels + 2]``."""
    keys: torch.Tensor
    """``[batch, 1 + pixels, channels / 2]``; what is written before the first pixel goes to the
    first place, which nothing reads."""
    values: torch.Tensor

    def write_pixel(
        self, program: Program, x: torch.Tensor, previous: Operand, place: Operand
    ) -> None:
        """One place: ``x [batch, channels]``, changed in place, after the embedded pixel
        ``previous``, at a row and column ``place``. The program's variables are ``column`` and
        ``position``."""
        channels = x.shape[1]
        self._write_keys(program, previous, channels)
        features, asking = self.content[:, channels : 2 * channels], self.content[:, channels:]
        for layer in self.convolutions[:-1]:
            layer.write_pixel(program, x, x)
        self.convolutions[-1].write_pixel(program, x, features)
        program.map(place, self.content[:, 2 * channels :])
        active = program.room(channels + max(2, channels // 2))
        program.map(asking, active[:, : channels + 2], "elu")
        seen = active[:, channels : channels + channels // 2]
        self._write_query(program, asking, active[:, : channels + 2], seen)
        program.map(seen, seen, "elu")
        self.merge.write(program, active[:, : channels + channels // 2], features, x)

    def _write_keys(self, program: Program, previous: Operand, channels: int) -> None:
        """Keys and values of the pixel that has become known."""
        content = self.content
        active, told = (program.room(content.shape[1]) for _ in range(2))
        program.map(previous, content[:, :channels])
        program.map(content, active, "elu")
        self.key_block.write(program, active, content, told)
        program.linear(told, self.to_keys, along(self.keys, "position"))
        program.linear(told, self.to_values, along(self.values, "position"))

    def _write_query(
        self, program: Program, asking: torch.Tensor, active: Operand, out: Operand
    ) -> None:
        """Attention of ``asking [batch, channels + 2]``; ``active`` is ``elu`` of it, and may hold
        ``out``."""
        asked, query = program.room(asking.shape[1]), program.room(self.keys.shape[2])
        self.query_block.write(program, active, asking, asked)
        program.linear(asked, self.query, query, plus=self.query_bias)
        program.attend(query, self.keys[:, 1:], self.values[:, 1:], out, "position", self.heads)


@dataclass
class Backbone:
    """Programs of the backbone: a row, a pixel."""

    row: Program
    pixel: Program


@dataclass
class PixelSNAILState(State):
    """Caches of the walk."""

    shared: ClassVar[frozenset[str]] = frozenset({"places"})
    derived: ClassVar[frozenset[str]] = frozenset({"programs"})

    places: torch.Tensor
    """Rows and columns of the pixels: ``[pixels, 2]``."""
    codes: torch.Tensor | None
    """Features of the codes: ``[batch, height, width, channels]``."""
    first_above: RowCache
    first_left: RowCache
    """Its newest row has the embedded pixels of this row, one place later than they stand, and at
    the end the last pixel of the row before."""
    before: torch.Tensor
    """What the rows above add to the first map in this row: ``[batch, width, channels]``."""
    blocks: list[AttentionState]
    walk: Walk
    programs: Programs[Backbone] | None = None

    def row(self) -> torch.Tensor:
        """The embedded pixels of this row and the last one of the row before:
        ``[batch, width + 1, channels]``."""
        return self.first_left.rows[:, -1, self.first_left.left + 1 :]


class PixelSNAIL(PixelModel):
    """``pixelsnail``: causal convolutions and attention to all pixels before, with a cached
    ``step``.

    Args:
        grid, head, conditioning: see :class:`DensityModel`; codes are taken.
        blocks: blocks of convolutions and attention.
        residual_blocks: convolution blocks in each.
        channels: width of the features.
        residual_channels: width between the two convolutions of a convolution block.
        kernel: odd size of the convolutions, at least 3.
        heads: of the attention; ``2 * heads`` divides ``channels``.
        dropout: share of the features inside a residual block that is dropped in training.

    Raises:
        ConfigError: for sizes that make no network.
    """

    name = "pixelsnail"
    takes_codes = True

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        blocks: int = 2,
        residual_blocks: int = 2,
        channels: int = 32,
        residual_channels: int = 32,
        kernel: int = 3,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(grid, head, conditioning)
        if (
            min(blocks, residual_blocks, channels, residual_channels, heads) < 1
            or not 0 <= dropout < 1
        ):
            raise ConfigError(
                "pixelsnail needs blocks, residual_blocks, channels, residual_channels, heads >= 1, 0 <= dropout < 1; "
                f"got {blocks}, {residual_blocks}, {channels}, {residual_channels}, {heads} and {dropout}"
            )
        if kernel < 3 or kernel % 2 == 0 or channels % (2 * heads):
            raise ConfigError(
                "pixelsnail needs an odd kernel of at least 3 and channels that divide by 2 * heads, got "
                f"kernel={kernel}, channels={channels}, heads={heads}"
            )
        self.residual_blocks, self.channels, self.residual_channels = (
            residual_blocks,
            channels,
            residual_channels,
        )
        self.kernel, self.heads, self.dropout = kernel, heads, dropout
        side, codes = kernel // 2, conditioning.codes
        self.embedding = SymbolEmbedding(grid, channels)
        self.first_above = ShiftedConvolution(channels, channels, side, side, side)
        self.first_left = ShiftedConvolution(channels, channels, side + 1, side - 1, 0)
        self.blocks = nn.ModuleList(
            AttentionBlock(
                channels,
                residual_channels,
                kernel,
                dropout,
                codes is not None,
                residual_blocks,
                heads,
            )
            for _ in range(blocks)
        )
        count = blocks * residual_blocks
        self.class_bias = (
            ClassEmbedding(self.classes, count * 2 * channels) if self.classes else None
        )
        self.codes = CodeEmbedding(codes, grid, channels) if codes else None
        self.output = create_output(grid, head, channels, direct=True)
        self.output.last.weight.data.mul_(OUTPUT_SHARE)
        self.register_buffer("places", _places(grid), persistent=False)
        self.places: torch.Tensor

    def _blocks(self) -> list[AttentionBlock]:
        return [block for block in self.blocks if isinstance(block, AttentionBlock)]

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        pixels = self.embedding(x)
        places = self.places.to(pixels.dtype).expand(len(x), -1, -1, -1)
        maps = None if self.codes is None else self.codes(condition.codes)
        biases = iter(self._biases(condition.labels))
        features = self.first_above(delayed(pixels, 1)) + self.first_left(delayed(pixels, 2))
        for block in self._blocks():
            for convolution in block.convolutions:
                features = self.recomputed(convolution, features, next(biases), maps)
            features = self.recomputed(block.attend, features, pixels, places)
        return self.output(F.elu(features), x)

    def _biases(self, labels: torch.Tensor | None) -> list[torch.Tensor | None]:
        """What the class adds in each convolution block: ``[batch, 2 * channels]``."""
        if labels is None or self.class_bias is None:
            return [None] * (len(self.blocks) * self.residual_blocks)
        return list(self.class_bias(labels).split(2 * self.channels, dim=-1))

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> PixelSNAILState:
        condition = self.condition(cond, batch)
        width, table, biases = (
            self.grid.width,
            self.embedding.table(),
            iter(self._biases(condition.labels)),
        )
        return PixelSNAILState(
            places=self.places.flatten(0, 1).to(table.dtype),
            codes=None if self.codes is None else self.codes(condition.codes),
            first_above=self.first_above.cache(batch, width),
            first_left=self.first_left.cache(batch, 1 + width + 1),
            before=table.new_zeros(batch, width, self.channels),
            blocks=[
                block.cache(batch, width, self.grid.pixels, biases) for block in self._blocks()
            ],
            walk=self.walk(table, batch),
        )

    def write(self, state: PixelSNAILState) -> Programs[Backbone]:
        backbone = Backbone(self._write_row(state), self._write_pixel(state))
        return self.written(state.walk, along(state.row(), "column"), backbone)

    def start_row(self, row: int, state: PixelSNAILState, backbone: Backbone) -> None:
        backbone.row.run(row)
        pixels = state.row()
        pixels[:, -1] = pixels[:, -2]
        pixels[:, :-1] = 0

    def start_pixel(self, row: int, column: int, backbone: Backbone) -> None:
        width = self.grid.width
        backbone.pixel.run(column, row * width + column, column - 1 if column else width)

    def _write_row(self, state: PixelSNAILState) -> Program:
        """What the rows above add to all convolutions; the row before is complete."""
        width, before = self.grid.width, state.before
        program = Program(len(before), ("row",), before, places=width)
        state.first_left.write_shift(program)
        state.first_left.write_above(program, before)
        above, sums = state.first_above, program.room(self.channels)
        above.write_shift(program)
        program.map(state.row()[:, :width], above.row(width))
        above.write_above(program, sums)
        above.write_row(program, sums, sums)
        program.add(before, sums, before)
        codes = (
            None if state.codes is None else Moving(state.codes[:, 0], "row", state.codes.stride(1))
        )
        for block in state.blocks:
            for convolution in block.convolutions:
                convolution.write_row(program, codes)
        return program

    def _write_pixel(self, state: PixelSNAILState) -> Program:
        """Features of a pixel, and the output stage."""
        program = Program(len(state.before), ("column", "position", "previous"), state.before)
        x, features = program.room(self.channels), program.room(self.channels)
        state.first_left.write_place(program, state.before, x, "column")
        previous, place = along(state.row(), "previous"), Moving(state.places[0], "position", 2)
        for block in state.blocks:
            block.write_pixel(program, x, previous, place)
        program.map(x, features, "elu")
        self.output.write(program, features, state.walk.output)
        return program

    def sizes(self) -> dict[str, Any]:
        return {
            "blocks": len(self.blocks),
            "residual_blocks": self.residual_blocks,
            "channels": self.channels,
            "residual_channels": self.residual_channels,
            "kernel": self.kernel,
            "heads": self.heads,
            "dropout": self.dropout,
        }

    def receptive_field(self) -> torch.Tensor:
        everything = torch.ones(self.grid.pixels, self.grid.pixels, dtype=torch.bool).tril(-1)
        return symbol_field(self.grid, everything, inside=True)


def _places(grid: Grid) -> torch.Tensor:
    """Rows and columns from -1/2 to just below 1/2: ``[height, width, 2]``."""
    rows, columns = (torch.arange(side) / side - 0.5 for side in (grid.height, grid.width))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)

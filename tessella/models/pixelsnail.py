"""PixelSNAIL (Chen, Mishra, Rohaninejad, Abbeel 2018, "PixelSNAIL: An Improved Autoregressive Generative Model",
sections 3 and 4).

Each block has gated residual blocks of causal convolutions and then attention: a pixel looks at all pixels before it,
strictly, with queries from its own features and keys and values from the features *and the values* of the others; the
first pixel looks at nothing and gets zeros. Both are told their row and column. The sizes follow the widely used
implementation over VQ-VAE-2 codes (Razavi et al. 2019): two 5 x 5 convolutions in a residual block, with a kernel whose
last row is moved to the left instead of being masked. The class adds a bias in each of these blocks, a grid of codes a
product of its features.

A step computes what the rows above add to each convolution once a row, for the whole row; the products with the row
itself, the keys and values of the pixel that has just become known (of all blocks at once) and the attention of the new
one, once a pixel.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.base import DensityModel, symbol_field
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.output import create_output
from tessella.nn.condition import ClassEmbedding, CodeEmbedding
from tessella.nn.embedding import SymbolEmbedding
from tessella.nn.shifted import CausalKernel, NormedLinear, RowCache, ShiftedConvolution, delayed
from tessella.nn.state import State
from tessella.nn.streams import RESIDUAL_GAIN, UNIT_GAIN

OUTPUT_SHARE = 0.1
"""The last layer starts with so much of its usual weights, so that a fresh model is near the head's own start."""


class ConvolutionBlock(nn.Module):
    """``x + a * sigmoid(b)`` with ``a, b`` from two causal convolutions of ELUs.

    Args:
        channels: width of the features.
        hidden: width between the convolutions.
        kernel: see :class:`CausalKernel`.
        dropout: share of the features between the convolutions that is dropped in training.
        codes: whether features of codes come in.
    """

    def __init__(self, channels: int, hidden: int, kernel: int, dropout: float, codes: bool) -> None:
        super().__init__()
        self.inner = CausalKernel(channels, hidden, kernel, UNIT_GAIN)
        self.outer = CausalKernel(hidden, 2 * channels, kernel, RESIDUAL_GAIN)
        self.codes = nn.Linear(channels, 2 * channels, bias=False) if codes else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None, codes: torch.Tensor | None) -> torch.Tensor:
        """``x [batch, height, width, channels]`` to the same; ``bias [batch, 2 * channels]`` of the class and features
        ``codes``, as large as ``x``, are added to what enters the gate."""
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
            codes=None if self.codes is None else self.codes.weight.T.contiguous(),
            inner=self.inner.cache(batch, width),
            outer=self.outer.cache(batch, width, bias),
            before_inner=make(batch, width, len(self.inner.bias)),
            before_outer=make(batch, width, len(self.outer.bias)),
        )


@dataclass
class ConvolutionState(State):
    """A :class:`ConvolutionBlock` on its way."""

    shared: ClassVar[frozenset[str]] = frozenset({"codes"})

    codes: torch.Tensor | None
    """``[channels, 2 * channels]``."""
    inner: RowCache
    outer: RowCache
    before_inner: torch.Tensor
    """What bias and rows above add in this row: ``[batch, width, hidden]``."""
    before_outer: torch.Tensor
    """What bias, class, codes and rows above add to the gate in this row: ``[batch, width, 2 * channels]``."""

    def begin(self, codes: torch.Tensor | None) -> None:
        """Start a row; ``codes [batch, width, channels]``."""
        self.before_inner.copy_(self.inner.begin())
        self.before_outer.copy_(self.outer.begin())
        if self.codes is not None and codes is not None:
            self.before_outer += codes @ self.codes

    def pixel(self, column: int, x: torch.Tensor) -> torch.Tensor:
        """One place: ``x [batch, channels]`` to the same."""
        self.inner.put(column, F.elu(x))
        self.outer.put(column, F.elu(self.inner.at(column, self.before_inner[:, column])))
        return x + F.glu(self.outer.at(column, self.before_outer[:, column]), dim=-1)


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

    def packed(self) -> list[torch.Tensor]:
        """What :func:`point_block` takes: the weights and biases of the products."""
        layers = [self.inner] if self.beside is None else [self.inner, self.beside]
        weight = torch.cat([layer.weight() for layer in layers], dim=1)
        bias = torch.stack([layer.bias for layer in layers]).sum(0)
        tensors = [weight.T, bias, self.outer.weight().T, self.outer.bias]
        return [tensor.detach().contiguous() for tensor in tensors]


def point_block(x: torch.Tensor, seen: torch.Tensor, packed: list[torch.Tensor]) -> torch.Tensor:
    """A :class:`PointBlock` for stepping: ``x [batch, channels]``, and ``seen``, ``x`` and what is beside it side by
    side. All blocks of a kind at once when every tensor has them along a dimension before the others."""
    product = torch.addmm if x.dim() == 2 else torch.baddbmm
    weight, bias, outer_weight, outer_bias = packed
    gates = product(outer_bias, F.elu(product(bias, F.elu(seen), weight)), outer_weight)
    return x + F.glu(gates, dim=-1)


class AttentionBlock(nn.Module):
    """Convolution blocks, then a look at all pixels before, then both together.

    Args:
        channels, hidden, kernel, dropout, codes: see :class:`ConvolutionBlock`.
        count: convolution blocks.
        heads: of the attention, which is half as wide as the features.
    """

    def __init__(
        self, channels: int, hidden: int, kernel: int, dropout: float, codes: bool, count: int, heads: int
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
            part.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (queries, keys, values)
        )
        seen = strictly_before(*vectors).transpose(1, 2).flatten(2).unflatten(1, x.shape[1:3])
        return self.merge(x, seen)


def strictly_before(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of each position to the positions before it: ``[batch, heads, positions, size]`` each. The first
    position gets zeros."""
    first = torch.zeros_like(values[:, :, :1])
    if queries.shape[2] == 1:
        return first
    others = F.scaled_dot_product_attention(
        queries[:, :, 1:].contiguous(), keys[:, :, :-1].contiguous(), values[:, :, :-1].contiguous(), is_causal=True
    )
    return torch.cat([first, others], dim=2)


@dataclass
class Weights:
    """Weights laid out for stepping, lists by block; shared by all states of a model."""

    table: torch.Tensor
    places: torch.Tensor
    """Rows and columns of the pixels: ``[pixels, 2]``."""
    key_block: list[torch.Tensor]
    """Of all blocks, stacked, as :func:`point_block` takes them."""
    keys_values: torch.Tensor
    """``[blocks, 2 * channels + 2, channels]``."""
    query_block: list[list[torch.Tensor]]
    query: list[list[torch.Tensor]]
    """Weight ``[channels + 2, channels / 2]`` and bias."""
    merge: list[list[torch.Tensor]]


@dataclass
class PixelSNAILState(State):
    """Caches of the walk."""

    shared: ClassVar[frozenset[str]] = frozenset({"weights"})
    batch_dims: ClassVar[dict[str, int]] = {"content": 1, "keys": 1, "values": 1}

    weights: Weights
    row: torch.Tensor
    """Embedded pixels of this row: ``[batch, width, channels]``."""
    codes: torch.Tensor | None
    """Features of the codes: ``[batch, height, width, channels]``."""
    first_above: RowCache
    first_left: RowCache
    before: torch.Tensor
    """What the rows above add to the first map in this row: ``[batch, width, channels]``."""
    convolutions: list[list[ConvolutionState]]
    content: torch.Tensor
    """What the last pixel's keys are made of, by block: ``[blocks, batch, 2 * channels + 2]``."""
    keys: torch.Tensor
    """``[blocks, batch, heads, pixels, size]``."""
    values: torch.Tensor
    pixel: Any = None
    """The output stage's state within the pixel."""


class PixelSNAIL(DensityModel):
    """``pixelsnail``: causal convolutions and attention to all pixels before, with a cached ``step``.

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
        if min(blocks, residual_blocks, channels, residual_channels, heads) < 1 or not 0 <= dropout < 1:
            raise ConfigError(
                "pixelsnail needs blocks, residual_blocks, channels, residual_channels, heads >= 1, 0 <= dropout < 1; "
                f"got {blocks}, {residual_blocks}, {channels}, {residual_channels}, {heads} and {dropout}"
            )
        if kernel < 3 or kernel % 2 == 0 or channels % (2 * heads):
            raise ConfigError(
                "pixelsnail needs an odd kernel of at least 3 and channels that divide by 2 * heads, got "
                f"kernel={kernel}, channels={channels}, heads={heads}"
            )
        self.residual_blocks, self.channels, self.residual_channels = residual_blocks, channels, residual_channels
        self.kernel, self.heads, self.dropout = kernel, heads, dropout
        side, codes = kernel // 2, conditioning.codes
        self.embedding = SymbolEmbedding(grid, channels)
        self.first_above = ShiftedConvolution(channels, channels, side, side, side)
        self.first_left = ShiftedConvolution(channels, channels, side + 1, side - 1, 0)
        self.blocks = nn.ModuleList(
            AttentionBlock(channels, residual_channels, kernel, dropout, codes is not None, residual_blocks, heads)
            for _ in range(blocks)
        )
        count = blocks * residual_blocks
        self.class_bias = ClassEmbedding(self.classes, count * 2 * channels) if self.classes else None
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
        biases, blocks = iter(self._biases(condition.labels)), self._blocks()
        width, channels = self.grid.width, self.channels
        make = self.embedding.direction.new_zeros
        keys = make(len(blocks), batch, self.heads, self.grid.pixels, channels // 2 // self.heads)
        return PixelSNAILState(
            weights=self._weights(),
            row=make(batch, width, channels),
            codes=None if self.codes is None else self.codes(condition.codes),
            first_above=self.first_above.cache(batch, width),
            first_left=self.first_left.cache(batch, width),
            before=make(batch, width, channels),
            convolutions=[
                [layer.cache(batch, width, next(biases)) for layer in _convolutions(block)] for block in blocks
            ],
            content=make(len(blocks), batch, 2 * channels + 2),
            keys=keys,
            values=keys.clone(),
        )

    def _weights(self) -> Weights:
        blocks = self._blocks()
        inner, bias, outer, outer_bias = zip(*(block.key_block.packed() for block in blocks), strict=True)
        return Weights(
            table=self.embedding.table(),
            places=self.places.flatten(0, 1).to(self.embedding.direction.dtype),
            key_block=[
                torch.stack(inner),
                torch.stack(bias)[:, None],
                torch.stack(outer),
                torch.stack(outer_bias)[:, None],
            ],
            keys_values=torch.stack([block.keys_values.weight.T for block in blocks]),
            query_block=[block.query_block.packed() for block in blocks],
            query=[[block.query.weight.T.contiguous(), block.query.bias] for block in blocks],
            merge=[block.merge.packed() for block in blocks],
        )

    @torch.no_grad()
    def step(self, previous: torch.Tensor, index: int, state: PixelSNAILState) -> tuple[torch.Tensor, PixelSNAILState]:
        row, column, channel = self.grid.place(index)
        if index:
            _, before, last_channel = self.grid.place(index - 1)
            state.row[:, before] += state.weights.table[last_channel, previous]
        if channel == 0:
            if index:
                _remember(row * self.grid.width + column - 1, (column - 1) % self.grid.width, state)
            if column == 0:
                _begin_row(row, state)
            state.pixel = self.output.start(F.elu(_pixel(row * self.grid.width + column, column, state)))
        parameters, state.pixel = self.output.step(previous, channel, state.pixel)
        return parameters, state

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


def _remember(position: int, column: int, state: PixelSNAILState) -> None:
    """Once a pixel: keys and values of the pixel at ``position``, which has just become known, for all blocks."""
    weights, content = state.weights, state.content
    channels = state.row.shape[-1]
    content[:, :, :channels] = state.row[:, column]
    content[:, :, 2 * channels :] = weights.places[position]
    vectors = point_block(content, content, weights.key_block) @ weights.keys_values
    keys, values = vectors.unflatten(-1, (2, state.keys.shape[2], -1)).unbind(2)
    state.keys[:, :, :, position], state.values[:, :, :, position] = keys, values


def _begin_row(row: int, state: PixelSNAILState) -> None:
    """Once a row: what the rows above add to all convolutions."""
    torch.add(state.first_above.row(state.row), state.first_left.begin(), out=state.before)
    codes = None if state.codes is None else state.codes[:, row]
    for convolution in itertools.chain.from_iterable(state.convolutions):
        convolution.begin(codes)
    state.row.zero_()


def _pixel(position: int, column: int, state: PixelSNAILState) -> torch.Tensor:
    """Once a pixel: its features ``[batch, channels]``."""
    if column:
        state.first_left.put(column, state.row[:, column - 1])
    x = state.first_left.at(column, state.before[:, column])
    weights, channels = state.weights, x.shape[-1]
    place = weights.places[position].expand(len(x), -1)
    for block, convolutions in enumerate(state.convolutions):
        for convolution in convolutions:
            x = convolution.pixel(column, x)
        state.content[block, :, channels : 2 * channels] = x
        seen = x.new_zeros(len(x), channels // 2)
        if position:
            asking = torch.cat([x, place], dim=-1)
            weight, bias = weights.query[block]
            query = torch.addmm(bias, point_block(asking, asking, weights.query_block[block]), weight)
            keys, values = (cache[block, :, :, :position] for cache in (state.keys, state.values))
            query = query.unflatten(-1, (keys.shape[1], 1, -1))
            seen = F.scaled_dot_product_attention(query, keys, values).flatten(1)
        x = point_block(x, torch.cat([x, seen], dim=-1), weights.merge[block])
    return x


def _convolutions(block: AttentionBlock) -> list[ConvolutionBlock]:
    return [layer for layer in block.convolutions if isinstance(layer, ConvolutionBlock)]


def _places(grid: Grid) -> torch.Tensor:
    """Rows and columns from -1/2 to just below 1/2: ``[height, width, 2]``."""
    rows, columns = (torch.arange(side) / side - 0.5 for side in (grid.height, grid.width))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)

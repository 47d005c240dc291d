"""PixelCNN++ (Salimans, Karpathy, Chen, Kingma 2017, "PixelCNN++: Improving the PixelCNN with Discretized Logistic
Mixture Likelihood and Other Modifications", sections 2.1 to 2.5 and figure 2).

Two streams of features: the *vertical* one sees the rows above a pixel, the *horizontal* one the pixels to its left
and, in every block, the vertical stream. Both run down through resolutions, each half as high and wide as the one
before, and up again; a block on the way up sees, besides its input, the map that lies opposite on the way down (section
2.4). A block is ``x + a * sigmoid(b)`` with ``a, b`` from two shifted convolutions of concatenated ELUs.
The class adds a bias to ``a`` and ``b`` of every block (section 2.3 of van den Oord et al. 2016b).

A step does what its place in the grid makes possible: the vertical stream of a resolution that is reduced ``2^s``
times, once every ``2^s`` rows, for a whole row; its horizontal stream, at every ``2^s``-th pixel of these rows. What
the rows above add to a place of the horizontal stream is computed with the vertical stream, so that only products with
the row itself are left for the pixel. This is the idea of Ramachandran et al. 2017 ("Fast Generation for Convolutional
Autoregressive Models"), the state being an explicit value.
"""

from __future__ import annotations

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
from tessella.nn.condition import ClassEmbedding
from tessella.nn.embedding import SymbolEmbedding
from tessella.nn.shifted import RowCache, ShiftedConvolution, concat_elu, delayed, grown
from tessella.nn.state import State
from tessella.nn.streams import Block, BlockState, Resize, ResizeState

OUTPUT_SHARE = 0.1
"""The last layer starts with so much of its usual weights, so that a fresh model is near the head's own start."""

Biases = list[list[torch.Tensor | None]]
"""What the class adds in each block, lists by resolution: ``[batch, 4 * filters]``."""


class Scale(nn.Module):
    """The blocks of one resolution.

    Args:
        filters, dropout: see :class:`GatedResidual`.
        blocks: blocks on the way down.
        last: whether it is the smallest resolution. The others have a block more on the way up, opposite to the map
            they start with.
    """

    def __init__(self, filters: int, dropout: float, blocks: int, last: bool) -> None:
        super().__init__()
        self.down = nn.ModuleList(Block(filters, dropout, opposite=False) for _ in range(blocks))
        self.resize = None if last else Resize(filters)
        up = blocks if last else blocks + 1
        self.up = nn.ModuleList(Block(filters, dropout, opposite=True) for _ in range(up))

    def blocks(self) -> list[Block]:
        """All blocks, those on the way down first."""
        return [block for block in [*self.down, *self.up] if isinstance(block, Block)]

    def cache(self, batch: int, width: int, biases: list[torch.Tensor | None]) -> ScaleState:
        """The state before the first row."""
        states = [block.cache(batch, width, bias) for block, bias in zip(self.blocks(), biases, strict=True)]
        resize = None if self.resize is None else self.resize.cache(batch, width)
        return ScaleState(states[: len(self.down)], states[len(self.down) :], resize)


@dataclass
class ScaleState(State):
    """The blocks of one resolution on their way."""

    down: list[BlockState]
    up: list[BlockState]
    resize: ResizeState | None


@dataclass
class PixelCNNppState(State):
    """Caches of the walk."""

    shared: ClassVar[frozenset[str]] = frozenset({"table"})

    table: torch.Tensor
    """Vectors of every channel and level: ``[channels, levels, inputs]``."""
    row: torch.Tensor
    """Vectors of the pixels of this row: ``[batch, padded width, inputs]``."""
    first_v: RowCache
    first_above: RowCache
    first_left: RowCache
    before: torch.Tensor
    """What everything above adds to the first horizontal map in this row: ``[batch, padded width, filters]``."""
    scales: list[ScaleState]
    pixel: Any = None
    """The output stage's state within the pixel."""


class Intensities(nn.Module):
    """A pixel as the paper feeds it: its channels on [-1, 1], and a one that tells the image from its surroundings.

    Args:
        grid: the grid whose symbols are fed.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        channels = grid.channels
        vectors = torch.zeros(channels, grid.levels, channels + 1)
        vectors[range(channels), :, range(channels)] = torch.linspace(-1, 1, grid.levels)
        vectors[0, :, channels] = 1.0
        self.register_buffer("vectors", vectors, persistent=False)
        self.vectors: torch.Tensor

    def table(self) -> torch.Tensor:
        """Vectors of every channel and level, whose sum is the pixel's: ``[channels, levels, channels + 1]``."""
        return self.vectors

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x int64 [batch, height, width, channels]`` to ``[batch, height, width, channels + 1]``."""
        return torch.stack([F.embedding(x[..., c], vectors) for c, vectors in enumerate(self.vectors)]).sum(0)


class PixelCNNpp(DensityModel):
    """``pixelcnn++``: two streams through several resolutions with short-cuts, and a cached ``step``.

    Sides that do not divide by ``2^(scales - 1)`` are padded at the right and below.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        blocks: blocks of each resolution, on the way down and again on the way up; the paper has 5.
        filters: width of each stream; the paper has 160.
        scales: number of resolutions; the paper has 3.
        embedding: width of the vectors that symbols are looked up in; 0 feeds intensities on [-1, 1] and a one instead,
            as the paper does.
        dropout: share of the features inside a block that is dropped in training; the paper has 0.5.

    Raises:
        ConfigError: for sizes that make no network.
    """

    name = "pixelcnn++"

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        blocks: int = 1,
        filters: int = 32,
        scales: int = 2,
        embedding: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(grid, head, conditioning)
        if min(blocks, filters, scales) < 1 or scales > 8 or embedding < 0 or not 0 <= dropout < 1:
            raise ConfigError(
                "pixelcnn++ needs blocks >= 1, filters >= 1, 1 <= scales <= 8, embedding >= 0 and 0 <= dropout < 1, "
                f"got blocks={blocks}, filters={filters}, scales={scales}, embedding={embedding}, dropout={dropout}"
            )
        self.blocks, self.filters, self.embedding, self.dropout = blocks, filters, embedding, dropout
        self.input = SymbolEmbedding(grid, embedding) if embedding else Intensities(grid)
        inputs = embedding or grid.channels + 1
        self.first_v = ShiftedConvolution(inputs, filters, 2, 1, 1)
        self.first_above = ShiftedConvolution(inputs, filters, 1, 1, 1)
        self.first_left = ShiftedConvolution(inputs, filters, 2, 0, 0)
        self.scales = nn.ModuleList(Scale(filters, dropout, blocks, s == scales - 1) for s in range(scales))
        count = sum(len(scale.blocks()) for scale in self._scales())
        self.class_bias = ClassEmbedding(self.classes, count * 4 * filters) if self.classes else None
        self.output = create_output(grid, head, filters, direct=True)
        self.output.last.weight.data.mul_(OUTPUT_SHARE)

    def _scales(self) -> list[Scale]:
        return [scale for scale in self.scales if isinstance(scale, Scale)]

    def padded(self) -> tuple[int, int]:
        """Height and width that divide as often as there are resolutions."""
        unit = 2 ** (len(self.scales) - 1)
        return -self.grid.height % unit + self.grid.height, -self.grid.width % unit + self.grid.width

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        height, width = self.padded()
        pixels = F.pad(self.input(x), (0, 0, 0, width - self.grid.width, 0, height - self.grid.height))
        above, left = delayed(pixels, 1), delayed(pixels, 2)
        h = self.first_above(above) + self.first_left(left)
        _, h = self._through(0, self.first_v(above), h, self._biases(condition.labels))
        return self.output(F.elu(h)[:, : self.grid.height, : self.grid.width], x)

    def _through(
        self, index: int, v: torch.Tensor, h: torch.Tensor, biases: Biases
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams through resolution ``index`` and all smaller ones."""
        scale = self._scales()[index]
        layers, skips = list(zip(scale.blocks(), biases[index], strict=True)), []
        for block, bias in layers[: self.blocks]:
            skips.append((v, h))
            v, h = self.recomputed(block, v, h, None, None, bias)
        if scale.resize is not None:
            skips.append((v, h))
            v, h = self._through(index + 1, scale.resize.shrink_v(v), scale.resize.shrink_h(h), biases)
            v, h = scale.resize.grow_v(v), scale.resize.grow_h(h)
        for block, bias in layers[self.blocks :]:
            v, h = self.recomputed(block, v, h, *skips.pop(), bias)
        return v, h

    def _biases(self, labels: torch.Tensor | None) -> Biases:
        counts = [len(scale.blocks()) for scale in self._scales()]
        if labels is None or self.class_bias is None:
            return [[None] * count for count in counts]
        each = self.class_bias(labels).split(4 * self.filters, dim=-1)
        ends = [sum(counts[: s + 1]) for s in range(len(counts))]
        return [list(each[end - count : end]) for count, end in zip(counts, ends, strict=True)]

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> PixelCNNppState:
        biases = self._biases(self.condition(cond, batch).labels)
        table, width = self.input.table(), self.padded()[1]
        return PixelCNNppState(
            table=table,
            row=table.new_zeros(batch, width, table.shape[-1]),
            first_v=self.first_v.cache(batch, width),
            first_above=self.first_above.cache(batch, width),
            first_left=self.first_left.cache(batch, width),
            before=table.new_zeros(batch, width, self.filters),
            scales=[scale.cache(batch, width >> s, biases[s]) for s, scale in enumerate(self._scales())],
        )

    @torch.no_grad()
    def step(self, previous: torch.Tensor, index: int, state: PixelCNNppState) -> tuple[torch.Tensor, PixelCNNppState]:
        row, column, channel = self.grid.place(index)
        if index:
            _, before, last_channel = self.grid.place(index - 1)
            state.row[:, before] += state.table[last_channel, previous]
        if channel == 0:
            if column == 0:
                _begin_row(row, state)
            state.pixel = self.output.start(F.elu(_pixel(row, column, state)))
        parameters, state.pixel = self.output.step(previous, channel, state.pixel)
        return parameters, state

    def sizes(self) -> dict[str, Any]:
        return {
            "blocks": self.blocks,
            "filters": self.filters,
            "scales": len(self.scales),
            "embedding": self.embedding,
            "dropout": self.dropout,
        }

    def receptive_field(self) -> torch.Tensor:
        height, width = self.padded()
        pixels = self.grid.pixels
        own = torch.eye(pixels, dtype=torch.bool).view(pixels, self.grid.height, self.grid.width)
        own = F.pad(own, (0, width - self.grid.width, 0, height - self.grid.height))
        above, left = delayed(own, 1), delayed(own, 2)
        h = self.first_above.field(above) | self.first_left.field(left)
        _, h = self._field(0, self.first_v.field(above), h)
        return symbol_field(self.grid, h[:, : self.grid.height, : self.grid.width].flatten(1).T, inside=True)

    def _field(self, index: int, v: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`_through`, on ``bool [sources, height, width]``."""
        scale, skips = self._scales()[index], []
        for block in scale.blocks()[: self.blocks]:
            skips.append((v, h))
            v, h = block.field(v, h, None, None)
        if scale.resize is not None:
            skips.append((v, h))
            v, h = self._field(index + 1, scale.resize.shrink_v.field(v), scale.resize.shrink_h.field(h))
            v, h = scale.resize.grow_v.field(v), scale.resize.grow_h.field(h)
        for block in scale.blocks()[self.blocks :]:
            v, h = block.field(v, h, *skips.pop())
        return v, h


def _begin_row(row: int, state: PixelCNNppState) -> None:
    """Once a row: the vertical stream, and what it and the rows above add to the horizontal one."""
    above = state.row
    torch.add(state.first_above.row(above), state.first_left.begin(), out=state.before)
    _rows(row, state.first_v.row(above), state.scales)
    state.row.zero_()


def _rows(row: int, v: torch.Tensor, scales: list[ScaleState]) -> torch.Tensor:
    """Row ``row`` of the vertical stream ``v [batch, width, filters]`` through the first of ``scales``, and through the
    smaller ones where it is even."""
    scale, skips = scales[0], []
    for block in scale.down:
        skips.append(v)
        v = block.vertical.row(v, None)
        block.horizontal.begin(v)
    resize = scale.resize
    if resize is not None:
        skips.append(v)
        if row % 2 == 0:
            resize.before.copy_(resize.shrink_h.begin())
            smaller = _rows(row // 2, resize.shrink_v.row(v), scales[1:])
            resize.grown_v.copy_(grown(smaller[:, None], resize.grow_v, resize.bias_v))
        else:
            resize.shrink_h.shift()
            resize.shrink_v.shift()
            resize.shrink_v.fill(v)
        v = resize.grown_v[:, row % 2]
    for block in scale.up:
        v = block.vertical.row(v, skips.pop())
        block.horizontal.begin(v)
    return v


def _pixel(row: int, column: int, state: PixelCNNppState) -> torch.Tensor:
    """Once a pixel: the horizontal stream, ``[batch, filters]``."""
    if column:
        state.first_left.put(column, state.row[:, column - 1])
    return _places(row, column, state.first_left.at(column, state.before[:, column]), state.scales)


def _places(row: int, column: int, h: torch.Tensor, scales: list[ScaleState]) -> torch.Tensor:
    """One place of the horizontal stream ``h [batch, filters]`` through the first of ``scales``, and through the
    smaller ones where row and column are even."""
    scale, skips = scales[0], []
    for block in scale.down:
        active = concat_elu(h)
        skips.append(active)
        h = block.horizontal.pixel(column, h, active, None)
    resize = scale.resize
    if resize is not None:
        skips.append(concat_elu(h))
        resize.shrink_h.put(column, h)
        if row % 2 == 0 and column % 2 == 0:
            smaller = resize.shrink_h.at(column // 2, resize.before[:, column // 2])
            smaller = _places(row // 2, column // 2, smaller, scales[1:])
            four = torch.addmm(resize.bias_h, smaller, resize.grow_h)
            resize.grown_h[:, :, column : column + 2] = four.view(len(four), 2, 2, four.shape[1] // 4)
        h = resize.grown_h[:, row % 2, column]
    for block in scale.up:
        h = block.horizontal.pixel(column, h, concat_elu(h), skips.pop())
    return h

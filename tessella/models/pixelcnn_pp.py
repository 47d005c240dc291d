"""PixelCNN++ (Salimans, Karpathy, Chen, Kingma 2017, "PixelCNN++: Improving the PixelCNN with
Discretized Logistic Mixture Likelihood and Other Modifications", sections 2.1 to 2.5 and figure 2).

Two streams of features: the *vertical* one sees the rows above a pixel, the *horizontal* one the
pixels to its left and, in every block, the vertical stream. Both run down through resolutions, each
half as high and wide as the one before, and up again; a block on the way up sees, besides its
input, the map that lies opposite on the way down (section 2.4). A block is ``x + a * sigmoid(b)``
with ``a, b`` from two shifted convolutions of concatenated ELUs. The class adds a bias to ``a`` and
``b`` of every block (section 2.3 of van den Oord et al. 2016b).

A step does what its place in the grid makes possible: the vertical stream of a resolution that is
reduced ``2^s`` times, once every ``2^s`` rows, for a whole row; its horizontal stream, at every
``2^s``-th pixel of these rows. What the rows above add to a place of the horizontal stream is
computed with the vertical stream, so that only products with the row itself are left for the pixel.
This is the idea of Ramachandran et al. 2017 ("Fast Generation for Convolutional Autoregressive
Models"), the state being an explicit value.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from tessella.nn.condition_embedding import ClassEmbedding
from tessella.nn.embedding import SymbolEmbedding
from tessella.nn.pixelcnn_pp_layers import Block, BlockState, Resize, ResizeState, grown_index
from tessella.nn.shifted_convolution import RowCache, ShiftedConvolution, delayed
from tessella.nn.stepping.program import Operand, Program, along, windows
from tessella.nn.stepping.state import State

OUTPUT_SHARE = 0.1
"""The last layer starts with so much of its usual weights, so that a fresh model is near the head's
own start."""

Biases = list[list[torch.Tensor | None]]
"""What the class adds in each block, lists by resolution: ``[batch, 4 * filters]``."""


class Scale(nn.Module):
    """The blocks of one resolution.

    Args:
        filters, dropout: see :class:`GatedResidual`.
        blocks: blocks on the way down.
        last: whether it is the smallest resolution. The others have a block more on the way up,
            opposite to the map they start with.
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
        states = [
            block.cache(batch, width, bias)
            for block, bias in zip(self.blocks(), biases, strict=True)
        ]
        resize = None if self.resize is None else self.resize.cache(batch, width)
        return ScaleState(states[: len(self.down)], states[len(self.down) :], resize)


@dataclass
class ScaleState(State):
    """The blocks of one resolution on their way."""

    down: list[BlockState]
    up: list[BlockState]
    resize: ResizeState | None

    def write_shift(self, program: Program) -> None:
        """Start a row, before anything of it is written."""
        for block in self.down + self.up:
            block.write_shift(program)
        if self.resize is not None:
            self.resize.write_shift(program)

    def row_skips(self, last: torch.Tensor) -> list[Operand]:
        """What the blocks on the way up see of the vertical stream opposite; ``last`` is for the
        map that shrinks."""
        skips: list[Operand] = [block.vertical.row() for block in self.down]
        return ([] if self.resize is None else [last]) + skips[::-1]

    def place_skips(self, last: Operand, by: str) -> list[Operand]:
        """The same of a place of the horizontal stream."""
        skips: list[Operand] = [block.horizontal.place(by) for block in self.down]
        return ([] if self.resize is None else [last]) + skips[::-1]


@dataclass
class Backbone:
    """Programs of both streams."""

    down: list[Program]
    """For each resolution, a row of the vertical stream on the way down, of the smallest one also
    on the way up."""
    up: list[Program]
    """The way up of the others, for the parity of the row."""
    pixel: list[Program]
    """A pixel that reaches 1, 2, ... resolutions, for its column in each of them and, except for
    the last program, its place in the map that comes up from the next resolution."""


@dataclass
class PixelCNNppState(State):
    """Caches of the walk."""

    derived: ClassVar[frozenset[str]] = frozenset({"programs"})

    first_v: RowCache
    first_above: RowCache
    first_left: RowCache
    """Its newest row holds the vectors of this row's pixels, one place further to the right."""
    before: torch.Tensor
    """What everything above adds to the first horizontal map in this row:
    ``[batch, padded width, filters]``."""
    scales: list[ScaleState]
    walk: Walk
    programs: Programs[Backbone] | None = None


class Intensities(nn.Module):
    """A pixel as the paper feeds it: its channels on [-1, 1], and a one that tells the image from
    its surroundings.

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
        """Vectors of every channel and level, whose sum is the pixel's:
        ``[channels, levels, channels + 1]``."""
        return self.vectors

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x int64 [batch, height, width, channels]`` to
        ``[batch, height, width, channels + 1]``."""
        return torch.stack(
            [F.embedding(x[..., c], vectors) for c, vectors in enumerate(self.vectors)]
        ).sum(0)


class PixelCNNpp(PixelModel):
    """``pixelcnn++``: two streams through several resolutions with short-cuts, and a cached
    ``step``.

    Sides that do not divide by ``2^(scales - 1)`` are padded at the right and below.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        blocks: blocks of each resolution, on the way down and again on the way up; the paper has 5.
        filters: width of each stream; the paper has 160.
        scales: number of resolutions; the paper has 3.
        embedding: width of the vectors that symbols are looked up in; 0 feeds intensities on [-1,
            1] and a one instead, as the paper does.
        dropout: share of the features inside a block that is dropped in training; the paper has
            0.5.

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
        self.blocks, self.filters, self.embedding, self.dropout = (
            blocks,
            filters,
            embedding,
            dropout,
        )
        self.input = SymbolEmbedding(grid, embedding) if embedding else Intensities(grid)
        inputs = embedding or grid.channels + 1
        self.first_v = ShiftedConvolution(inputs, filters, 2, 1, 1)
        self.first_above = ShiftedConvolution(inputs, filters, 1, 1, 1)
        self.first_left = ShiftedConvolution(inputs, filters, 2, 0, 0)
        self.scales = nn.ModuleList(
            Scale(filters, dropout, blocks, s == scales - 1) for s in range(scales)
        )
        count = sum(len(scale.blocks()) for scale in self._scales())
        self.class_bias = (
            ClassEmbedding(self.classes, count * 4 * filters) if self.classes else None
        )
        self.output = create_output(grid, head, filters, direct=True)
        self.output.last.weight.data.mul_(OUTPUT_SHARE)

    def _scales(self) -> list[Scale]:
        return [scale for scale in self.scales if isinstance(scale, Scale)]

    def padded(self) -> tuple[int, int]:
        """Height and width that divide as often as there are resolutions."""
        unit = 2 ** (len(self.scales) - 1)
        return (
            -self.grid.height % unit + self.grid.height,
            -self.grid.width % unit + self.grid.width,
        )

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        height, width = self.padded()
        pixels = F.pad(
            self.input(x), (0, 0, 0, width - self.grid.width, 0, height - self.grid.height)
        )
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
            v, h = self._through(
                index + 1, scale.resize.shrink_v(v), scale.resize.shrink_h(h), biases
            )
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
            first_v=self.first_v.cache(batch, width),
            first_above=self.first_above.cache(batch, width),
            first_left=self.first_left.cache(
                batch, width + 1, self.first_above.bias.expand(batch, -1)
            ),
            before=table.new_zeros(batch, width, self.filters),
            scales=[
                scale.cache(batch, width >> s, biases[s]) for s, scale in enumerate(self._scales())
            ],
            walk=self.walk(table, batch),
        )

    def write(self, state: PixelCNNppState) -> Programs[Backbone]:
        down, up = _write_rows(state)
        backbone = Backbone(
            down, up, [self._pixel(depth, state) for depth in range(1, len(self.scales) + 1)]
        )
        return self.written(state.walk, along(state.first_left.rows[:, -1], "column", 1), backbone)

    def start_row(self, row: int, state: PixelCNNppState, backbone: Backbone) -> None:
        depth = self._depth(row)
        for program in backbone.down[:depth]:
            program.run()
        for s, program in reversed(list(enumerate(backbone.up[:depth]))):
            program.run((row >> s) % 2)
        state.first_left.rows[:, -1].zero_()

    def start_pixel(self, row: int, column: int, backbone: Backbone) -> None:
        depth = self._depth(row | column)
        values = [column >> s for s in range(depth)]
        if depth < len(self.scales):
            values.append(grown_index(row >> (depth - 1), values[-1]))
        backbone.pixel[depth - 1].run(*values)

    def _depth(self, place: int) -> int:
        """How many resolutions have a row (or column) that begins at ``place``."""
        return next((s for s in range(1, len(self.scales)) if place % 2**s), len(self.scales))

    def _pixel(self, depth: int, state: PixelCNNppState) -> Program:
        """The horizontal stream at a pixel that reaches ``depth`` resolutions, and the output
        stage."""
        variables = [f"column{s}" for s in range(depth)] + ["grown"] * (depth < len(self.scales))
        program = Program(len(state.before), variables, state.before)
        features = program.room(self.filters)
        h = _write_places(program, 0, state.first_left, state.before, state.scales[:depth])
        program.map(h, features, "elu")
        self.output.write(program, features, state.walk.output)
        return program

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
        return symbol_field(
            self.grid, h[:, : self.grid.height, : self.grid.width].flatten(1).T, inside=True
        )

    def _field(
        self, index: int, v: torch.Tensor, h: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`_through`, on ``bool [sources, height, width]``."""
        scale, skips = self._scales()[index], []
        for block in scale.blocks()[: self.blocks]:
            skips.append((v, h))
            v, h = block.field(v, h, None, None)
        if scale.resize is not None:
            skips.append((v, h))
            v, h = self._field(
                index + 1, scale.resize.shrink_v.field(v), scale.resize.shrink_h.field(h)
            )
            v, h = scale.resize.grow_v.field(v), scale.resize.grow_h.field(h)
        for block in scale.blocks()[self.blocks :]:
            v, h = block.field(v, h, *skips.pop())
        return v, h


def _write_rows(state: PixelCNNppState) -> tuple[list[Program], list[Program]]:
    """The programs of the vertical stream; see :class:`Backbone`."""
    down: list[Program] = []
    up: list[Program] = []
    larger: ResizeState | None = None
    for scale in state.scales:
        (batch, width, _), filters = scale.up[0].vertical.row().shape, state.before.shape[2]
        program = Program(batch, (), state.before, places=width)
        down.append(program)
        resize, skip = scale.resize, program.room(2 * filters)
        alone = state.before.new_zeros(
            batch, width + 1, filters
        )  # zeros stand to the right of the last place
        start = alone[:, :-1] if resize is None else resize.row()
        scale.write_shift(program)
        if larger is None:
            _write_first(program, start, state)
        else:
            larger.write_shrink(program, start)
        program.map(start, scale.down[0].vertical.row(), "concat-elu")
        _rows_through(
            program,
            scale.down,
            start,
            [None] * len(scale.down),
            scale.up[0].vertical.row() if resize is None else skip,
        )
        v: Operand = start
        pairs: Operand = windows(alone, 2)
        if resize is not None:
            program = Program(batch, ("parity",), state.before, places=width)
            up.append(program)
            v, pairs = resize.grown_row("parity"), resize.grown_row("parity", 2)
            program.map(v, scale.up[0].vertical.row(), "concat-elu")
        _rows_through(program, scale.up, v, scale.row_skips(skip), program.room(2 * filters))
        if larger is not None:
            larger.write_grow(program, v, pairs)
        larger = resize
    return down, up


def _write_first(program: Program, v: torch.Tensor, state: PixelCNNppState) -> None:
    """The row of pixels that has become known, to the first vertical map
    ``v [batch, width, filters]`` and to what it adds to the horizontal one."""
    width, first_v, first_above, first_left = (
        v.shape[1],
        state.first_v,
        state.first_above,
        state.first_left,
    )
    above = first_left.rows[:, -1, 1 : 1 + width]
    first_v.write_shift(program)
    program.map(above, first_v.row(width))
    program.map(above, first_above.row(width))
    first_left.write_shift(program)
    first_v.write_above(program, v)
    first_v.write_row(program, v, v)
    first_left.write_above(program, state.before)
    first_above.write_row(program, state.before, state.before)


def _rows_through(
    program: Program,
    blocks: list[BlockState],
    v: Operand,
    skips: Sequence[Operand | None],
    last: Operand,
) -> None:
    """A row ``v`` of the vertical stream through blocks, whose first has :func:`concat_elu` of it;
    ``last`` gets that of the result."""
    actives = [block.vertical.row() for block in blocks[1:]] + [last]
    for block, skip, active in zip(blocks, skips, actives, strict=True):
        block.write_row(program, v, skip, active)


def _write_places(
    program: Program, index: int, entry: RowCache, before: torch.Tensor, scales: list[ScaleState]
) -> Operand:
    """A place of the horizontal stream through resolution ``index`` and all smaller ones in
    ``scales``; ``entry`` and what is there ``before`` make it."""
    scale, by, filters = scales[index], f"column{index}", before.shape[2]
    resize, skip = scale.resize, program.room(2 * filters)
    h: Operand = program.room(filters) if resize is None else resize.shrink_h.place(by)
    entry.write_place(program, before, h, by)
    program.map(h, scale.down[0].horizontal.place(by), "concat-elu")
    _places_through(program, scale.down, h, [None] * len(scale.down), by)
    if resize is not None:
        program.map(h, skip, "concat-elu")
        h = resize.grown_place("grown")
        if index + 1 < len(scales):
            smaller = _write_places(program, index + 1, resize.shrink_h, resize.before, scales)
            h = resize.write_grown(program, smaller, f"column{index + 1}")
    program.map(h, scale.up[0].horizontal.place(by), "concat-elu")
    _places_through(program, scale.up, h, scale.place_skips(skip, by), by)
    return h


def _places_through(
    program: Program, blocks: list[BlockState], h: Operand, skips: Sequence[Operand | None], by: str
) -> None:
    """A place ``h`` of the horizontal stream through blocks, whose first has :func:`concat_elu` of
    it."""
    nexts = [block.horizontal for block in blocks[1:]]
    for i, (block, skip) in enumerate(zip(blocks, skips, strict=True)):
        block.horizontal.write_place(program, h, by, skip)
        if i < len(nexts):
            program.map(h, nexts[i].place(by), "concat-elu")

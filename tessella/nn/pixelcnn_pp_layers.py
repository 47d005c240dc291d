"""The layers of two streams of features, one that sees the rows above a pixel and one that sees its
row too (Salimans et al. 2017, "PixelCNN++", sections 2.3 to 2.5): gated residual blocks, and the
way between resolutions.

Each layer has ``forward`` over whole maps ``[batch, height, width, filters]``, ``field``, which
does the same to sets of sources, and ``write``, which appends its work to the programs of a step.
There a stream is changed in place: a row of the vertical one ``[batch, width, filters]``, a place
of the horizontal one ``[batch, filters]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.shifted_convolution import (
    GrowingConvolution,
    NormedLinear,
    ShiftedConvolution,
    SteppedConvolution,
    concat_elu,
)
from tessella.nn.stepping.program import Matrix, Operand, Places, Plane, Program, SeveralPrograms
from tessella.nn.stepping.step import GridStep, MemoryAllocator, PixelStep

UNIT_GAIN = 1.25
"""Length of weights that keeps the variance of what a concatenated ELU gives."""
RESIDUAL_GAIN = 0.5
"""First length of the weights that make a block's output, so that a deep sum starts small."""


@dataclass(frozen=True)
class SteppedSkip:
    """Both streams as a block opposite sees them, after :func:`concat_elu`."""

    v: Operand
    """A row of the vertical stream, ``[batch, width, 2 * filters]``."""
    h: Operand
    """A place of the horizontal one, ``[batch, 2 * filters]``."""

    @staticmethod
    def write(step: GridStep, v: Places, h: Operand) -> SteppedSkip:
        """Append :func:`concat_elu` of both streams, to be kept while they change."""
        features = 2 * v.memory.shape[-1]
        skip = SteppedSkip(step.row.zeros(features), step.pixel.zeros(features))
        step.row.map(v.moving_row(), skip.v, "concat-elu")
        step.pixel.map(h, skip.h, "concat-elu")
        return skip


class GatedResidual(nn.Module):
    """A block of one stream: ``x + a * sigmoid(b)``.

    Args:
        filters: width of the stream.
        right: places it sees to the right: 1 in the vertical stream, 0 in the horizontal one.
        skips: maps besides its input that it sees, each after :func:`concat_elu`.
        dropout: share of the features between its convolutions that is dropped in training.
    """

    def __init__(self, filters: int, right: int, skips: int, dropout: float) -> None:
        super().__init__()
        # Two rows by three places in the vertical stream, by two in the horizontal one.
        self.inner = ShiftedConvolution(2 * filters, filters, 2, 1, right, gain=UNIT_GAIN)
        self.outer = ShiftedConvolution(2 * filters, 2 * filters, 2, 1, right, gain=RESIDUAL_GAIN)
        self.skip = NormedLinear(2 * skips * filters, filters, UNIT_GAIN) if skips else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: torch.Tensor, skips: torch.Tensor | None, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """One block on.

        Args:
            x: the stream, ``[batch, height, width, filters]``.
            skips: the other maps side by side, ``[batch, height, width, 2 * skips * filters]``.
            bias: added to what enters the gate, ``[batch, 2 * filters]``.
        """
        sums = self.inner(concat_elu(x))
        if self.skip is not None:
            sums = sums + self.skip(skips)
        # a and b for the gate, side by side: [batch, height, width, 2 * filters].
        gates = self.outer(self.dropout(concat_elu(sums)))
        if bias is not None:
            gates = gates + bias[:, None, None]
        return x + F.glu(gates, dim=-1)

    def field(self, x: torch.Tensor, skips: torch.Tensor | None) -> torch.Tensor:
        """Which sources reach a place: ``bool [sources, height, width]`` each."""
        sums = self.inner.field(x)
        if skips is not None:
            sums = sums | skips
        return x | self.outer.field(sums)

    def write_row(
        self, step: GridStep, v: Places, skip: Operand | None, bias: torch.Tensor | None
    ) -> Operand:
        """Append a block of the vertical stream, whose row ``v`` is known at once.

        Returns:
            The row after :func:`concat_elu`, before it is changed.
        """
        # What rows above and biases add is appended here; the row itself follows.
        inner, outer, products = self._start(step, bias)
        row = step.row
        row.map(v.moving_row(), inner.input.row, "concat-elu")
        if skip is not None:
            row.linear(skip, products[0], inner.sums.row, add=inner.sums.row)
        # The activated sums are the next convolution's input, so they are written to its memory.
        inner.write_row(outer.input.row, "concat-elu")
        # x + a * sigmoid(b), in place of x.
        outer.write_row(v.moving_row(), "glu", residual=v.moving_row())
        return inner.input.row

    def write_place(
        self,
        step: GridStep,
        h: Operand,
        v: Operand,
        skip: Operand | None,
        bias: torch.Tensor | None,
    ) -> Operand:
        """Append a block of the horizontal stream, which goes place by place.

        Args:
            step: where it is written.
            h: the stream at a place, changed in place.
            v: a row of the vertical stream after :func:`concat_elu`.
            skip: what the block opposite saw at the place.
            bias: as in :meth:`forward`.

        Returns:
            The place after :func:`concat_elu`, before it is changed.
        """
        inner, outer, products = self._start(step, bias)
        # What the vertical stream adds is known for the whole row, when it begins.
        step.row.linear(v, products[0], inner.sums.row, add=inner.sums.row)
        # The pixels before have filled the memory to the left of it.
        active = inner.input.at(step.column)
        step.pixel.map(h, active, "concat-elu")
        if skip is not None:
            sums = inner.sums.at(step.column)
            step.pixel.linear(skip, products[1], sums, add=sums)
        inner.write_place(outer.input.at(step.column), "concat-elu")
        outer.write_place(h, "glu", residual=h)
        return active

    def _start(
        self, step: GridStep, bias: torch.Tensor | None
    ) -> tuple[SteppedConvolution, SteppedConvolution, list[Matrix]]:
        """Both convolutions, and the weights of each map besides the input,
        ``[2 * filters, filters]``."""
        skip_bias = None
        products = []
        if self.skip is not None:
            # Its bias goes with the inner convolution's.
            skip_bias = self.skip.bias.expand(step.memory.batch, -1)
            filters = len(self.skip.bias)
            for weight in self.skip.weight().T.split(2 * filters):
                products.append(step.memory.matrix(weight))
        inner = self.inner.start(step, skip_bias)
        outer = self.outer.start(step, bias)
        return inner, outer, products


class GatedBlock(nn.Module):
    """A block of both streams.

    Args:
        filters, dropout: see :class:`GatedResidual`.
        opposite: whether it sees the block opposite.
    """

    def __init__(self, filters: int, dropout: float, opposite: bool) -> None:
        super().__init__()
        self.vertical = GatedResidual(filters, 1, int(opposite), dropout)
        self.horizontal = GatedResidual(filters, 0, 1 + int(opposite), dropout)

    def forward(
        self,
        v: torch.Tensor,
        h: torch.Tensor,
        v_skip: torch.Tensor | None,
        h_skip: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams ``[batch, height, width, filters]``, one block on;
        ``bias [batch, 4 * filters]``."""
        v_bias, h_bias = _halves(bias)
        if v_skip is not None:
            v_skip = concat_elu(v_skip)
        v = self.vertical(v, v_skip, v_bias)
        seen = concat_elu(v)
        if h_skip is not None:
            seen = torch.cat([seen, concat_elu(h_skip)], dim=-1)
        return v, self.horizontal(h, seen, h_bias)

    def field(
        self,
        v: torch.Tensor,
        h: torch.Tensor,
        v_skip: torch.Tensor | None,
        h_skip: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`forward`: which sources reach a place, ``bool [sources, height, width]``
        each."""
        v = self.vertical.field(v, v_skip)
        seen = v if h_skip is None else v | h_skip
        return v, self.horizontal.field(h, seen)

    def write(
        self,
        step: GridStep,
        v: Places,
        h: Operand,
        skip: SteppedSkip | None,
        bias: torch.Tensor | None,
    ) -> SteppedSkip:
        """Append the block: a row ``v`` and a place ``h``, both changed in place.

        Returns:
            What the block opposite sees: both streams before they are changed.
        """
        v_bias, h_bias = _halves(bias)
        v_skip = None if skip is None else skip.v
        h_skip = None if skip is None else skip.h
        v_before = self.vertical.write_row(step, v, v_skip, v_bias)
        # The horizontal block sees the vertical stream after this block, as in forward.
        active = step.row.zeros(2 * v.memory.shape[-1])
        step.row.map(v.moving_row(), active, "concat-elu")
        h_before = self.horizontal.write_place(step, h, active, h_skip, h_bias)
        return SteppedSkip(v_before, h_before)


class Resize(nn.Module):
    """The way from a resolution to the next one, half as high and wide, and back; for both streams.

    Args:
        filters: width of the streams.
    """

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.shrink_v = ShiftedConvolution(filters, filters, 2, 1, 1, stride=2)
        self.shrink_h = ShiftedConvolution(filters, filters, 2, 1, 0, stride=2)
        # As wide as the convolutions that shrink.
        self.grow_v = GrowingConvolution(filters, filters, 3)
        self.grow_h = GrowingConvolution(filters, filters, 2)

    def shrink(self, v: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams ``[batch, height, width, filters]`` to half the sides."""
        return self.shrink_v(v), self.shrink_h(h)

    def grow(self, v: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams ``[batch, height, width, filters]`` to twice the sides."""
        return self.grow_v(v), self.grow_h(h)

    def shrink_field(self, v: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`shrink`, on ``bool [sources, height, width]``."""
        return self.shrink_v.field(v), self.shrink_h.field(h)

    def grow_field(self, v: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`grow`, on ``bool [sources, height, width]``."""
        return self.grow_v.field(v), self.grow_h.field(h)

    def start_shrink(
        self, larger: GridStep, smaller: GridStep
    ) -> tuple[SteppedConvolution, SteppedConvolution]:
        """Take memory for the way down, for the vertical and the horizontal stream."""
        v = self.shrink_v.start(larger, into=smaller)
        h = self.shrink_h.start(larger, into=smaller)
        return v, h

    def write_grow(
        self, smaller: GridStep, v: Places, h: Operand, parity: str, place: str
    ) -> tuple[Places, Operand]:
        """Append the way up.

        A row of the smaller maps gives two of the larger ones, which are kept: the larger
        resolution reads one now and the other a row later.

        Args:
            smaller: the step of the smaller maps.
            v: a row of the smaller vertical map.
            h: a place of the smaller horizontal map.
            parity: the variable that says which of the two rows is read.
            place: the variable that says where the larger horizontal map is read, see
                :func:`grown_index`.

        Returns:
            A row of the larger vertical map, and a place of the larger horizontal one.
        """
        rows = self._write_rows(smaller, v)
        weight = self.grow_h.weight().permute(1, 2, 3, 0)
        filters = weight.shape[0]
        # The four places that a place gives, two rows by two columns, side by side.
        four = smaller.places(4 * filters)
        matrix = smaller.memory.matrix(weight.flatten(1))
        bias = smaller.memory.table(self.grow_h.bias.repeat(4))
        smaller.pixel.linear(h, matrix, four.at(smaller.column), add=bias)
        # [batch, 4 * width, filters]: the four places, one after the other.
        places = Places(four.memory.unflatten(2, (4, filters)).flatten(1, 2))
        return rows.row(parity), places.at(place)

    def _write_rows(self, smaller: GridStep, v: Places) -> Plane:
        """The two rows of the larger vertical map, with a margin of zeros at the right."""
        weight = self.grow_v.weight().permute(2, 3, 1, 0)
        filters = weight.shape[-1]
        width = 2 * smaller.width
        memory = smaller.memory.zeros(2, width + 1, filters)
        bias = self.grow_v.bias.detach()
        # [2 rows, 3 taps, inputs, outputs]
        for row, (left, here, right) in enumerate(weight):
            # An even column is reached from the place above it only, by the middle tap; an odd one
            # from that place by its right tap and from the next place by its left tap.
            even = smaller.memory.matrix(here)
            odd = smaller.memory.matrix(torch.cat([right, left]))
            smaller.row.linear(v.moving_row(), even, memory[:, row, :-1:2], add=bias)
            smaller.row.linear(v.windows(0, 1), odd, memory[:, row, 1::2], add=bias)
        return Plane(memory, width)


class PyramidStep(PixelStep):
    """The programs of a step over several resolutions, each half as high and wide as the one
    before.

    The vertical stream of resolution ``s`` moves on once every ``2^s`` rows, its horizontal stream
    at every ``2^s``-th pixel of these rows. So a row or pixel reaches one or more resolutions, from
    the largest on.

    Args:
        memory: where layers get the state's memory.
        width: places of a row of the largest maps.
        count: number of resolutions.
    """

    def __init__(self, memory: MemoryAllocator, width: int, count: int) -> None:
        super().__init__(memory)
        variables = [f"column{s}" for s in range(count)]
        variables += [f"grown{s}" for s in range(count - 1)]
        # One program for each number of resolutions that a pixel reaches, so that each pixel is a
        # single call. Work of resolution s belongs to the programs that reach it.
        self._pixels = [Program(memory.batch, variables, memory.like) for _ in range(count)]
        self.pixel = SeveralPrograms(self._pixels)
        self.down: list[GridStep] = []
        """Of each resolution, with the rows of the vertical stream on the way down."""
        self.up: list[GridStep] = []
        """As :attr:`down`, on the way up; of the smallest resolution it is the same."""
        for s in range(count):
            # Half as wide with each resolution.
            places = width >> s
            pixel = SeveralPrograms(self._pixels[s:])
            row = Program(memory.batch, (), memory.like, places)
            down = GridStep(memory, places, row, pixel, f"column{s}")
            up = down
            if s + 1 < count:
                row = Program(memory.batch, ("parity",), memory.like, places)
                up = GridStep(memory, places, row, pixel, f"column{s}", advance=down.advance)
            self.down.append(down)
            self.up.append(up)

    def start_row(self, row: int) -> None:
        reached = self._reached(row)
        # Down through the resolutions: each takes its row from the one before.
        for s in range(reached):
            if row:
                self.down[s].advance.run()
            self.down[s].row.run()
        # And up: the smallest one did both in one program.
        for s in reversed(range(reached)):
            if self.up[s] is not self.down[s]:
                self.up[s].row.run((row >> s) % 2)
        self.clear()

    def start_pixel(self, row: int, column: int) -> None:
        # The column in each resolution; programs do not read those they do not reach.
        values = [column >> s for s in range(len(self.down))]
        for s in range(len(self.down) - 1):
            values.append(grown_index(row >> s, column >> s))
        # A pixel begins at resolution s where its row and its column do.
        self._pixels[self._reached(row | column) - 1].run(*values)

    def _reached(self, place: int) -> int:
        """How many resolutions have a row (or column) that begins at ``place``."""
        for s in range(1, len(self.down)):
            # Resolution s has a row at every 2^s-th place.
            if place % 2**s:
                return s
        return len(self.down)


def start_streams(
    step: PyramidStep,
    first_v: ShiftedConvolution,
    first_above: ShiftedConvolution,
    first_left: ShiftedConvolution,
) -> tuple[Places, SteppedConvolution, SteppedConvolution]:
    """Take memory for the convolutions of pixels that the streams start with.

    Args:
        step: where they are written.
        first_v: gives the vertical stream, from the rows above.
        first_above, first_left: their sum is the horizontal stream, from the row above and from the
            pixels to the left.

    Returns:
        The pixels of this row, and the convolutions whose outputs the vertical and the horizontal
        stream are.
    """
    grid = step.down[0]
    # The row of pixels that becomes known, one place later than they stand, because a pixel sees
    # those to its left; the extra place holds the last one, which the next row sees from above.
    above_bias = first_above.bias.expand(step.memory.batch, -1)
    left = first_left.start(grid, above_bias, margin=1)
    pixels = left.input.delayed()
    v = first_v.start(grid)
    above = first_above.start(grid, sums=left.sums)
    # The row of pixels that is complete is the newest row of what looks up.
    grid.advance.map(pixels.row, v.input.row)
    grid.advance.map(pixels.row, above.input.row)
    step.cleared.append(pixels.row)
    above.write_row(left.sums.row)
    return pixels, v, left


def grown_index(row: int, column: int) -> int:
    """Where the memory of :meth:`Resize.write_grow` has a place of the larger map: four for each
    place of the smaller one."""
    return 4 * (column // 2) + 2 * (row % 2) + column % 2


def _halves(bias: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if bias is None:
        return None, None
    first, second = bias.chunk(2, dim=-1)
    return first, second

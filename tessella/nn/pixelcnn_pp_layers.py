"""The layers of PixelCNN++: gated residual blocks of two streams, and changes of resolution.

The vertical stream sees the rows above a pixel, the horizontal stream also the pixels to its left
(Salimans et al. 2017, "PixelCNN++", sections 2.3 to 2.5).

Each layer has ``forward`` over whole maps ``[batch, height, width, filters]``, ``field``, which
traces the receptive field, and ``write``, which appends its work to the programs of a step. In a
step the streams are updated in place: the vertical stream a row at a time,
``[batch, width, filters]``, the horizontal stream a place at a time, ``[batch, filters]``.

As in a U-Net, the streams go down to smaller resolutions and up again. A block on the way up has a
skip connection from its *mirror*: the map of the same resolution on the way down.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.shifted_convolution import (
    NormedLinear,
    ShiftedConvolution,
    SteppedConvolution,
    UpsamplingConvolution,
    concat_elu,
)
from tessella.nn.stepping.program import (
    Operand,
    Places,
    Plane,
    Program,
    SeveralPrograms,
    Weights,
)
from tessella.nn.stepping.runs import Numbers, Runs, Truths
from tessella.nn.stepping.step import GridStep, MemoryAllocator, PixelStep

UNIT_GAIN = 1.25
"""Initial norm of the weights after a concatenated ELU; it preserves the variance."""
RESIDUAL_GAIN = 0.5
"""Initial norm of the weights that make a block's output, so that deep sums start small."""


@dataclass(frozen=True)
class SteppedSkip:
    """Both streams as the mirror block on the way up sees them: after :func:`concat_elu`."""

    v: Operand
    """A row of the vertical stream, ``[batch, width, 2 * filters]``."""
    h: Operand
    """A place of the horizontal stream, ``[batch, 2 * filters]``."""

    @staticmethod
    def write(step: GridStep, v: Places, h: Operand) -> SteppedSkip:
        """Append a copy of both streams after :func:`concat_elu`, which later blocks leave alone.

        Args:
            step: the step to write to.
            v: a row of the vertical stream, ``[batch, width, filters]``.
            h: a place of the horizontal stream, ``[batch, filters]``.
        """
        features = 2 * v.memory.shape[-1]
        skip = SteppedSkip(step.row.zeros(features), step.pixel.zeros(features))
        step.row.map(v.moving_row(), skip.v, "concat-elu")
        step.pixel.map(h, skip.h, "concat-elu")
        return skip


class GatedResidual(nn.Module):
    """A block of one stream: ``x + a * sigmoid(b)``.

    Args:
        filters: width of the stream.
        right: how many places it sees to the right: 1 in the vertical stream, 0 in the horizontal.
        skips: number of further input maps, each after :func:`concat_elu`.
        dropout: dropout rate between the two convolutions.
    """

    def __init__(self, filters: int, right: int, skips: int, dropout: float) -> None:
        super().__init__()
        # 2 x 3 kernels in the vertical stream, 2 x 2 kernels in the horizontal stream.
        self.inner = ShiftedConvolution(2 * filters, filters, 2, 1, right, gain=UNIT_GAIN)
        self.outer = ShiftedConvolution(2 * filters, 2 * filters, 2, 1, right, gain=RESIDUAL_GAIN)
        self.skip = NormedLinear(2 * skips * filters, filters, UNIT_GAIN) if skips else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: torch.Tensor, skips: torch.Tensor | None, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Apply the block; the result has the shape of ``x``.

        Args:
            x: the stream, ``[batch, height, width, filters]``.
            skips: the other maps, concatenated, ``[batch, height, width, 2 * skips * filters]``.
            bias: added to the input of the gate, ``[batch, 2 * filters]``.
        """
        sums = self.inner(concat_elu(x))
        if self.skip is not None:
            sums = sums + self.skip(skips)
        # Both halves of the gate, a and b: [batch, height, width, 2 * filters].
        gates = self.outer(self.dropout(concat_elu(sums)))
        if bias is not None:
            gates = gates + bias[:, None, None]
        return x + F.glu(gates, dim=-1)

    def field(self, x: torch.Tensor, skips: torch.Tensor | None) -> torch.Tensor:
        """Receptive field of the block, given those of ``x`` and ``skips``.

        All are ``bool [sources, height, width]``.
        """
        sums = self.inner.field(x)
        if skips is not None:
            sums = sums | skips
        return x | self.outer.field(sums)

    def write_row(
        self, step: GridStep, v: Places, skip: Operand | None, bias: torch.Tensor | None
    ) -> Operand:
        """Append a block of the vertical stream, which computes a whole row at once.

        Args:
            step: the step to write to.
            v: a row of the stream, ``[batch, width, filters]``, updated in place.
            skip: the mirror map, ``[batch, width, 2 * filters]``.
            bias: as in :meth:`forward`.

        Returns:
            The input row after :func:`concat_elu`, ``[batch, width, 2 * filters]``.
        """
        # This appends the contribution of biases and rows above; the row itself follows.
        inner, outer, products = self._bind(step, bias)
        row = step.row
        row.map(v.moving_row(), inner.input.row, "concat-elu")
        if skip is not None:
            row.linear(skip, products[0], inner.sums.row, add=inner.sums.row)
        # The activated sums go straight to the input memory of the next convolution.
        inner.write_row(outer.input.row, "concat-elu")
        # x + a * sigmoid(b), written over x.
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
        """Append a block of the horizontal stream, which computes one place at a time.

        Args:
            step: the step to write to.
            h: the stream at a place, ``[batch, filters]``, updated in place.
            v: a row of the vertical stream after :func:`concat_elu`,
                ``[batch, width, 2 * filters]``.
            skip: the mirror map at the place, ``[batch, 2 * filters]``.
            bias: as in :meth:`forward`.

        Returns:
            The input at the place after :func:`concat_elu`, ``[batch, 2 * filters]``.
        """
        inner, outer, products = self._bind(step, bias)
        # The contribution of the vertical stream is known for the whole row when it begins.
        step.row.linear(v, products[0], inner.sums.row, add=inner.sums.row)
        # Earlier pixels have filled the memory to the left of this place.
        active = inner.input.at(step.column)
        step.pixel.map(h, active, "concat-elu")
        if skip is not None:
            sums = inner.sums.at(step.column)
            step.pixel.linear(skip, products[1], sums, add=sums)
        inner.write_place(outer.input.at(step.column), "concat-elu")
        outer.write_place(h, "glu", residual=h)
        return active

    def _bind(
        self, step: GridStep, bias: torch.Tensor | None
    ) -> tuple[SteppedConvolution, SteppedConvolution, list[Weights]]:
        """Allocate memory, and append the contribution of biases and rows above.

        Returns:
            Both convolutions, and the weights of each skip map, ``[2 * filters, filters]`` each.
        """
        skip_bias = None
        products = []
        if self.skip is not None:
            # Both biases are added to the same sums, so they become one.
            skip_bias = self.skip.bias.expand(step.memory.batch, -1)
            filters = len(self.skip.bias)
            for weight in self.skip.weight().T.split(2 * filters):
                products.append(step.memory.matrix(weight))
        inner = self.inner.bind(step, skip_bias)
        outer = self.outer.bind(step, bias)
        return inner, outer, products


class GatedBlock(nn.Module):
    """A block of both streams.

    Args:
        filters, dropout: see :class:`GatedResidual`.
        mirrored: whether it has a skip connection from a mirror map, as blocks on the way up have.
    """

    def __init__(self, filters: int, dropout: float, mirrored: bool) -> None:
        super().__init__()
        # The horizontal stream always sees the vertical one as a further map.
        self.vertical = GatedResidual(filters, 1, int(mirrored), dropout)
        self.horizontal = GatedResidual(filters, 0, 1 + int(mirrored), dropout)

    def forward(
        self,
        v: torch.Tensor,
        h: torch.Tensor,
        v_skip: torch.Tensor | None,
        h_skip: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Apply the block to both streams; both results have the shape of ``v``.

        Args:
            v, h: vertical and horizontal stream, ``[batch, height, width, filters]``.
            v_skip, h_skip: mirror maps of both, of the same shape.
            bias: added to the inputs of the gates, ``[batch, 4 * filters]``.
        """
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
        """Receptive fields of both streams after the block: ``bool [sources, height, width]``."""
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
        """Append the block to a step.

        Args:
            step: the step to write to.
            v: a row of the vertical stream, ``[batch, width, filters]``, updated in place.
            h: a place of the horizontal stream, ``[batch, filters]``, updated in place.
            skip: the mirror maps of both streams.
            bias: as in :meth:`forward`.

        Returns:
            Both streams before the update, for the mirror block on the way up.
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
    """Halves the resolution of both streams on the way down, and doubles it on the way up.

    Args:
        filters: width of the streams.
    """

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.shrink_v = ShiftedConvolution(filters, filters, 2, 1, 1, stride=2)
        self.shrink_h = ShiftedConvolution(filters, filters, 2, 1, 0, stride=2)
        # Kernels of the same width as on the way down: 3 columns and 2 columns.
        self.grow_v = UpsamplingConvolution(filters, filters, 3)
        self.grow_h = UpsamplingConvolution(filters, filters, 2)

    def shrink(self, v: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Halve the sides of both streams ``[batch, height, width, filters]``."""
        return self.shrink_v(v), self.shrink_h(h)

    def grow(self, v: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Double the sides of both streams ``[batch, height, width, filters]``."""
        return self.grow_v(v), self.grow_h(h)

    def shrink_field(self, v: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Receptive fields after :meth:`shrink`: ``bool [sources, height, width]`` each."""
        return self.shrink_v.field(v), self.shrink_h.field(h)

    def grow_field(self, v: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Receptive fields after :meth:`grow`: ``bool [sources, height, width]`` each."""
        return self.grow_v.field(v), self.grow_h.field(h)

    def bind_shrink(
        self, larger: GridStep, smaller: GridStep
    ) -> tuple[SteppedConvolution, SteppedConvolution]:
        """Allocate memory for :meth:`shrink`, and return the convolutions of both streams.

        Args:
            larger: the step of the resolution they read.
            smaller: the step of the resolution they write.
        """
        v = self.shrink_v.bind(larger, into=smaller)
        h = self.shrink_h.bind(larger, into=smaller)
        return v, h

    def write_grow(
        self, smaller: GridStep, v: Places, h: Operand, parity: str, place: str
    ) -> tuple[Places, Operand]:
        """Append :meth:`grow` to a step.

        One row of the smaller maps makes two rows of the larger maps. Both stay in the state: the
        larger resolution reads the first now, and the second one row later.

        Args:
            smaller: the step of the smaller resolution.
            v: a row of the smaller vertical map, ``[batch, width, filters]``.
            h: a place of the smaller horizontal map, ``[batch, filters]``.
            parity: name of the variable that selects one of the two rows.
            place: name of the variable that selects a place of the larger horizontal map, see
                :func:`grown_index`.

        Returns:
            A row of the larger vertical map, and a place of the larger horizontal map.
        """
        rows = self._write_rows(smaller, v)
        weight = self.grow_h.weight().permute(1, 2, 3, 0)
        filters = weight.shape[0]
        # One place of the smaller map makes four: two rows by two columns, concatenated.
        four = smaller.places(4 * filters)
        matrix = smaller.memory.matrix(weight.flatten(1))
        bias = smaller.memory.table(self.grow_h.bias.repeat(4))
        smaller.pixel.linear(h, matrix, four.at(smaller.column), add=bias)
        # [batch, 4 * width, filters]: a view with the four places one after the other.
        places = Places(four.memory.unflatten(2, (4, filters)).flatten(1, 2))
        return rows.row(parity), places.at(place)

    def _write_rows(self, smaller: GridStep, v: Places) -> Plane:
        """Append the two rows of the larger vertical map, with a margin of zeros on the right."""
        weight = self.grow_v.weight().permute(2, 3, 1, 0)
        filters = weight.shape[-1]
        width = 2 * smaller.width
        memory = smaller.memory.zeros(2, width + 1, filters)
        bias = smaller.memory.table(self.grow_v.bias)
        # [2 rows, 3 taps, inputs, outputs]
        for row, (left, here, right) in enumerate(weight):
            # An even column of the larger map depends on one column of the smaller map, through the
            # middle tap. An odd column depends on that column and the next, through the outer taps.
            even = smaller.memory.matrix(here)
            odd = smaller.memory.matrix(torch.cat([right, left]))
            smaller.row.linear(v.moving_row(), even, memory[:, row, :-1:2], add=bias)
            smaller.row.linear(v.windows(0, 1), odd, memory[:, row, 1::2], add=bias)
        return Plane(memory, width)


class PyramidStep(PixelStep):
    """The programs of a step over several resolutions, each half as large as the one before.

    The vertical stream of resolution ``s`` advances once every ``2^s`` rows, its horizontal stream
    at every ``2^s``-th pixel of these rows. So a row or a pixel involves one or more resolutions,
    starting with the largest.

    Args:
        memory: allocates the state's memory for the layers.
        width: places in a row of the largest maps.
        count: number of resolutions.
    """

    def __init__(self, memory: MemoryAllocator, width: int, count: int) -> None:
        super().__init__(memory)
        variables = [f"column{s}" for s in range(count)]
        variables += [f"grown{s}" for s in range(count - 1)]
        # One program for each number of resolutions that a pixel can involve, so that each pixel
        # is a single call. The work of resolution s goes to all programs that involve it.
        self._pixels = [Program(memory.batch, variables, memory.like) for _ in range(count)]
        self.pixel = SeveralPrograms(self._pixels)
        self.down: list[GridStep] = []
        """The step of each resolution on the way down."""
        self.up: list[GridStep] = []
        """The step of each resolution on the way up; the smallest has one step for both ways."""
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

    def start_row(self, runs: Runs, row: Numbers, when: Truths = True) -> None:
        count = len(self.down)
        smallest = self._smallest(row)
        # Down through the resolutions: each reads its row from the one before.
        for s in range(count):
            involved = when & (smallest >= s)
            runs.add(self.down[s].advance, when=involved & (row > 0))
            runs.add(self.down[s].row, when=involved)
        # And up again: the smallest resolution has done both directions in one program.
        for s in reversed(range(count - 1)):
            runs.add(self.up[s].row, (row >> s) % 2, when=when & (smallest >= s))
        runs.add(self.clearing(), when=when)

    def start_pixel(self, runs: Runs, row: Numbers, column: Numbers, when: Truths = True) -> None:
        count = len(self.down)
        # The column in each resolution; a program ignores the resolutions that it does not involve.
        values = [column >> s for s in range(count)]
        for s in range(count - 1):
            values.append(grown_index(row >> s, column >> s))
        # A pixel involves resolution s if both its row and its column do.
        smallest = self._smallest(row | column)
        for s, program in enumerate(self._pixels):
            runs.add(program, *values, when=when & (smallest == s))

    def _smallest(self, place: Numbers) -> Numbers:
        """The smallest resolution of which a row (or column) begins at this row (or column)."""
        smallest: Numbers = 0
        for s in range(1, len(self.down)):
            # Resolution s has a row at every 2^s-th place.
            smallest = smallest + (place % 2**s == 0)
        return smallest


def bind_streams(
    step: PyramidStep,
    first_v: ShiftedConvolution,
    first_above: ShiftedConvolution,
    first_left: ShiftedConvolution,
) -> tuple[Places, SteppedConvolution, SteppedConvolution]:
    """Append the input convolutions, from pixels to both streams.

    Args:
        step: the step to write to.
        first_v: makes the vertical stream from the rows above.
        first_above, first_left: make the horizontal stream, which is their sum, from the row above
            and from the pixels to the left.

    Returns:
        The pixels of this row, which the caller fills in, and the convolutions whose outputs are
        the vertical and the horizontal stream.
    """
    grid = step.down[0]
    # Pixels are stored one place to the right of where they stand, because a pixel sees only those
    # to its left. The extra place holds the last pixel, which the next row sees from above.
    above_bias = first_above.bias.expand(step.memory.batch, -1)
    left = first_left.bind(grid, above_bias, margin=1)
    pixels = left.input.delayed()
    v = first_v.bind(grid)
    above = first_above.bind(grid, sums=left.sums)
    # A complete row of pixels becomes the newest row of the convolutions that look up.
    grid.advance.map(pixels.row, v.input.row)
    grid.advance.map(pixels.row, above.input.row)
    step.cleared.append(pixels.row)
    above.write_row(left.sums.row)
    return pixels, v, left


def grown_index(row: Numbers, column: Numbers) -> Numbers:
    """Index of a place of the larger map in the memory of :meth:`Resize.write_grow`.

    That memory holds four places of the larger map for each place of the smaller one.
    """
    return 4 * (column // 2) + 2 * (row % 2) + column % 2


def _halves(bias: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Split the bias ``[batch, 4 * filters]`` into those of the vertical and horizontal block."""
    if bias is None:
        return None, None
    first, second = bias.chunk(2, dim=-1)
    return first, second

"""The layers of two streams of features, one that sees the rows above a pixel and one that sees its
row too (Salimans et al. 2017, "PixelCNN++", sections 2.3 to 2.5): gated residual blocks, and the
way between resolutions.

Each layer has ``forward`` over whole maps ``[batch, height, width, filters]``, ``field``, which
does the same to sets of sources, and ``cache``, whose state goes along rows and pixels as parts of
programs. There a stream is changed in
place: a row of the vertical one ``[batch, width, filters]``, a place of the horizontal one
``[batch, filters]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.shifted_convolution import (
    GrowingConvolution,
    NormedLinear,
    RowCache,
    ShiftedConvolution,
    concat_elu,
)
from tessella.nn.stepping.program import Matrix, Moving, Operand, Program, along, windows
from tessella.nn.stepping.state import State

UNIT_GAIN = 1.25
"""Length of weights that keeps the variance of what a concatenated ELU gives."""
RESIDUAL_GAIN = 0.5
"""First length of the weights that make a block's output, so that a deep sum starts small."""


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
        self.inner = ShiftedConvolution(2 * filters, filters, 2, 1, right, gain=UNIT_GAIN)
        self.outer = ShiftedConvolution(2 * filters, 2 * filters, 2, 1, right, gain=RESIDUAL_GAIN)
        self.skip = NormedLinear(2 * skips * filters, filters, UNIT_GAIN) if skips else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: torch.Tensor, skips: torch.Tensor | None, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """``x [batch, height, width, filters]`` and ``skips [..., 2 * skips * filters]`` to the
        shape of ``x``; ``bias [batch, 2 * filters]`` is added to what enters the gate."""
        sums = self.inner(concat_elu(x))
        if self.skip is not None:
            sums = sums + self.skip(skips)
        gates = self.outer(self.dropout(concat_elu(sums)))
        if bias is not None:
            gates = gates + bias[:, None, None]
        return x + F.glu(gates, dim=-1)

    def field(self, x: torch.Tensor, skips: torch.Tensor | None) -> torch.Tensor:
        """Which sources reach a place: ``bool [sources, height, width]`` each."""
        sums = self.inner.field(x)
        return x | self.outer.field(sums if skips is None else sums | skips)

    def cache(self, batch: int, width: int, bias: torch.Tensor | None) -> ResidualState:
        """The state before the first row."""
        filters = self.inner.bias.shape[0]
        skip = [] if self.skip is None else self.skip.weight().T.split(2 * filters)
        make = self.inner.bias.new_zeros
        return ResidualState(
            inner=self.inner.cache(
                batch, width, None if self.skip is None else self.skip.bias.expand(batch, -1)
            ),
            outer=self.outer.cache(batch, width, bias),
            skip=[Matrix(weights) for weights in skip],
            before_inner=make(batch, width, filters),
            before_outer=make(batch, width, 2 * filters),
        )


@dataclass
class ResidualState(State):
    """A block of one stream on its way.

    What :func:`concat_elu` gives of the block's input is written to :meth:`row` or :meth:`place`.
    Then the vertical block is a :meth:`write_row`, the horizontal one a :meth:`write_above` once a
    row and a :meth:`write_place` at each place.
    """

    shared: ClassVar[frozenset[str]] = frozenset({"skip"})

    inner: RowCache
    outer: RowCache
    skip: list[Matrix]
    """Weights of each map the block sees besides its input: ``[2 * filters, filters]``."""
    before_inner: torch.Tensor
    """What rows above, vertical stream and biases add in this row before the first nonlinearity:
    ``[batch, width, filters]``."""
    before_outer: torch.Tensor
    """The same for the gate: ``[batch, width, 2 * filters]``."""

    def row(self) -> torch.Tensor:
        """Where :func:`concat_elu` of a row of the input goes: ``[batch, width, 2 * filters]``."""
        return self.inner.row(self.before_inner.shape[1])

    def place(self, by: str) -> Moving:
        """The same of a place of the input: ``[batch, 2 * filters]``."""
        return self.inner.place(by)

    def write_shift(self, program: Program) -> None:
        """Start a row, before anything of it is written."""
        self.inner.write_shift(program)
        self.outer.write_shift(program)

    def write_row(self, program: Program, x: Operand, skip: Operand | None) -> None:
        """A row ``x`` of the vertical stream, changed in place."""
        self.write_above(program, skip)
        self.inner.write_row(
            program, self.before_inner, self.outer.row(self.before_outer.shape[1]), "concat-elu"
        )
        self.outer.write_row(program, self.before_outer, x, "glu", x)

    def write_above(self, program: Program, skip: Operand | None) -> None:
        """What rows above, biases and ``skip [batch, width, 2 * filters]`` add to a row. ``skip``
        is the first map besides the input, in the horizontal block the other stream."""
        self.inner.write_above(program, self.before_inner)
        if skip is not None:
            program.linear(skip, self.skip[0], self.before_inner, plus=self.before_inner)
        self.outer.write_above(program, self.before_outer)

    def write_place(self, program: Program, x: Operand, by: str, skip: Operand | None) -> None:
        """A place ``x`` of the horizontal stream, changed in place; ``skip`` is what the block
        opposite saw."""
        if skip is not None:
            before = along(self.before_inner, by)
            program.linear(skip, self.skip[1], before, plus=before)
        self.inner.write_place(program, self.before_inner, self.outer.place(by), by, "concat-elu")
        self.outer.write_place(program, self.before_outer, x, by, "glu", x)


class Block(nn.Module):
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
        of_v, of_h = _halves(bias)
        v = self.vertical(v, None if v_skip is None else concat_elu(v_skip), of_v)
        seen = (
            concat_elu(v)
            if h_skip is None
            else torch.cat([concat_elu(v), concat_elu(h_skip)], dim=-1)
        )
        return v, self.horizontal(h, seen, of_h)

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
        return v, self.horizontal.field(h, v if h_skip is None else v | h_skip)

    def cache(self, batch: int, width: int, bias: torch.Tensor | None) -> BlockState:
        """The state before the first row."""
        of_v, of_h = _halves(bias)
        return BlockState(
            self.vertical.cache(batch, width, of_v), self.horizontal.cache(batch, width, of_h)
        )


@dataclass
class BlockState(State):
    """Both streams of a block."""

    vertical: ResidualState
    horizontal: ResidualState

    def write_shift(self, program: Program) -> None:
        """Start a row, before anything of it is written."""
        self.vertical.write_shift(program)
        self.horizontal.write_shift(program)

    def write_row(
        self, program: Program, v: Operand, skip: Operand | None, active: Operand
    ) -> None:
        """A row ``v`` of the vertical stream, changed in place, and what it adds to the horizontal
        one; ``active`` gets :func:`concat_elu` of the result."""
        self.vertical.write_row(program, v, skip)
        program.map(v, active, "concat-elu")
        self.horizontal.write_above(program, active)


class Resize(nn.Module):
    """The way from a resolution to the next one, half as high and wide, and back; for both streams.

    Args:
        filters: width of the streams.
    """

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.shrink_v = ShiftedConvolution(filters, filters, 2, 1, 1, stride=2)
        self.shrink_h = ShiftedConvolution(filters, filters, 2, 1, 0, stride=2)
        self.grow_v = GrowingConvolution(filters, filters, 3)
        self.grow_h = GrowingConvolution(filters, filters, 2)

    def cache(self, batch: int, width: int) -> ResizeState:
        """The state before the first row; ``width`` is that of the larger maps."""
        v, h = self.grow_v.weight().permute(2, 3, 1, 0), self.grow_h.weight().permute(1, 2, 3, 0)
        filters = h.shape[0]
        make = h.new_zeros
        return ResizeState(
            grow_even=[Matrix(row[1]) for row in v],
            grow_odd=[Matrix(torch.cat([row[2], row[0]])) for row in v],
            bias_v=self.grow_v.bias.detach(),
            grow_h=Matrix(h.flatten(1)),
            bias_h=self.grow_h.bias.repeat(4),
            shrink_v=self.shrink_v.cache(batch, width),
            shrink_h=self.shrink_h.cache(batch, width),
            before=make(batch, width // 2, filters),
            grown_v=make(batch, 2, width + 1, filters),
            grown_h=make(batch, width // 2, 4 * filters),
        )


@dataclass
class ResizeState(State):
    """A :class:`Resize` on its way.

    A row of the larger maps is written to the newest rows of ``shrink_v`` and ``shrink_h``. Where
    it is even, the smaller maps take a row from it and give back two, which are read at this row
    and the next.
    """

    shared: ClassVar[frozenset[str]] = frozenset(
        {"grow_even", "grow_odd", "bias_v", "grow_h", "bias_h"}
    )

    grow_even: list[Matrix]
    """What a place of the smaller vertical map gives to the even column of each of the two rows:
    ``[filters, filters]``."""
    grow_odd: list[Matrix]
    """What a place and the one to its right give to the odd column: ``[2 * filters, filters]``."""
    bias_v: torch.Tensor
    grow_h: Matrix
    """``[filters, 4 * filters]``: the four places that a place of the smaller map gives."""
    bias_h: torch.Tensor
    shrink_v: RowCache
    shrink_h: RowCache
    before: torch.Tensor
    """What bias and row above add to the smaller horizontal map in this row:
    ``[batch, width / 2, filters]``."""
    grown_v: torch.Tensor
    """The two rows that the last row of the smaller maps gave, with zeros at the right:
    ``[batch, 2, width + 1, filters]``."""
    grown_h: torch.Tensor
    """The same for the horizontal stream, two rows and columns side by side:
    ``[batch, width / 2, 4 * filters]``."""

    def row(self) -> torch.Tensor:
        """The vertical stream's row before it shrinks: ``[batch, width, filters]``."""
        return self.shrink_v.row(self.grown_v.shape[2] - 1)

    def write_shift(self, program: Program) -> None:
        """Start a row of the larger maps, before anything of it is written."""
        self.shrink_v.write_shift(program)
        self.shrink_h.write_shift(program)

    def write_shrink(self, program: Program, v: torch.Tensor) -> None:
        """A row ``v`` of the smaller vertical map, and what bias and row above add to the
        horizontal one."""
        self.shrink_v.write_above(program, v)
        self.shrink_v.write_row(program, v, v)
        self.shrink_h.write_above(program, self.before)

    def write_grow(self, program: Program, v: Operand, pairs: Operand) -> None:
        """A row ``v`` of the smaller vertical map, ``pairs`` being each place and the one to its
        right, to two rows of the larger one."""
        for row, (even, odd) in enumerate(zip(self.grow_even, self.grow_odd, strict=True)):
            program.linear(v, even, self.grown_v[:, row, :-1:2], plus=self.bias_v)
            program.linear(pairs, odd, self.grown_v[:, row, 1::2], plus=self.bias_v)

    def grown_row(self, by: str, count: int = 1) -> Moving:
        """The larger vertical map in the row of a parity, ``count`` neighbouring places side by
        side: ``[batch, width, count * filters]``."""
        seen = windows(self.grown_v[:, 0], count)[:, : self.grown_v.shape[2] - 1]
        return Moving(seen, by, self.grown_v.stride(1))

    def grown_place(self, by: str, every: int = 1) -> Moving:
        """A place of the larger horizontal map, ``[batch, filters]``, moved by
        :func:`grown_index`."""
        return along(self.grown_h.unflatten(2, (4, -1)).flatten(1, 2), by, every=every)

    def write_grown(self, program: Program, h: Operand, by: str) -> Moving:
        """A place ``h`` of the smaller horizontal map, at column ``by``, to four of the larger one,
        and the first of these."""
        program.linear(h, self.grow_h, along(self.grown_h, by), plus=self.bias_h)
        return self.grown_place(by, 4)


def grown_index(row: int, column: int) -> int:
    """Where ``grown_h`` has a place of the larger map: four for each place of the smaller one."""
    return 4 * (column // 2) + 2 * (row % 2) + column % 2


def _halves(bias: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if bias is None:
        return None, None
    first, second = bias.chunk(2, dim=-1)
    return first, second

"""The layers of two streams of features, one that sees the rows above a pixel and one that sees its row too (Salimans
et al. 2017, "PixelCNN++", sections 2.3 to 2.5): gated residual blocks, and the way between resolutions.

Each layer has ``forward`` over whole maps ``[batch, height, width, filters]``, ``field``, which does the same to sets
of sources, and ``cache``, whose state goes along rows and pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.shifted import GrowingConvolution, NormedLinear, RowCache, ShiftedConvolution, concat_elu
from tessella.nn.state import State

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

    def forward(self, x: torch.Tensor, skips: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        """``x [batch, height, width, filters]`` and ``skips [..., 2 * skips * filters]`` to the shape of ``x``; ``bias
        [batch, 2 * filters]`` is added to what enters the gate."""
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
        skip = [] if self.skip is None else list(self.skip.weight().T.contiguous().split(2 * filters))
        make = self.inner.bias.new_zeros
        return ResidualState(
            inner=self.inner.cache(batch, width, None if self.skip is None else self.skip.bias.expand(batch, -1)),
            outer=self.outer.cache(batch, width, bias),
            skip=skip,
            before_inner=make(batch, width, filters),
            before_outer=make(batch, width, 2 * filters),
        )


@dataclass
class ResidualState(State):
    """A block of one stream on its way: the vertical one by :meth:`row`, the horizontal one by :meth:`begin` and
    :meth:`pixel`."""

    shared: ClassVar[frozenset[str]] = frozenset({"skip"})

    inner: RowCache
    outer: RowCache
    skip: list[torch.Tensor]
    """Weights of each map the block sees besides its input: ``[2 * filters, filters]``."""
    before_inner: torch.Tensor
    """What rows above, vertical stream and biases add in this row before the first nonlinearity: ``[batch, width,
    filters]``."""
    before_outer: torch.Tensor
    """The same for the gate: ``[batch, width, 2 * filters]``."""

    def row(self, x: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        """A row of the vertical stream: ``x [batch, width, filters]`` to the same."""
        sums = self.inner.row(concat_elu(x))
        if skip is not None:
            sums = sums + concat_elu(skip) @ self.skip[0]
        return x + F.glu(self.outer.row(concat_elu(sums)), dim=-1)

    def begin(self, vertical: torch.Tensor) -> None:
        """Start a row of the horizontal stream: ``vertical [batch, width, filters]`` is the other stream there."""
        torch.add(self.inner.begin(), concat_elu(vertical) @ self.skip[0], out=self.before_inner)
        self.before_outer.copy_(self.outer.begin())

    def pixel(self, column: int, x: torch.Tensor, active: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        """A place of the horizontal stream: ``x [batch, filters]`` to the same. ``active`` is ``concat_elu(x)``, and
        ``skip`` that of the block opposite."""
        self.inner.put(column, active)
        sums = self.inner.at(column, self.before_inner[:, column])
        if skip is not None:
            sums.addmm_(skip, self.skip[1])
        self.outer.put(column, concat_elu(sums))
        return x + F.glu(self.outer.at(column, self.before_outer[:, column]), dim=-1)


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
        """Both streams ``[batch, height, width, filters]``, one block on; ``bias [batch, 4 * filters]``."""
        of_v, of_h = _halves(bias)
        v = self.vertical(v, None if v_skip is None else concat_elu(v_skip), of_v)
        seen = concat_elu(v) if h_skip is None else torch.cat([concat_elu(v), concat_elu(h_skip)], dim=-1)
        return v, self.horizontal(h, seen, of_h)

    def field(
        self, v: torch.Tensor, h: torch.Tensor, v_skip: torch.Tensor | None, h_skip: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`forward`: which sources reach a place, ``bool [sources, height, width]`` each."""
        v = self.vertical.field(v, v_skip)
        return v, self.horizontal.field(h, v if h_skip is None else v | h_skip)

    def cache(self, batch: int, width: int, bias: torch.Tensor | None) -> BlockState:
        """The state before the first row."""
        of_v, of_h = _halves(bias)
        return BlockState(self.vertical.cache(batch, width, of_v), self.horizontal.cache(batch, width, of_h))


@dataclass
class BlockState(State):
    """Both streams of a block."""

    vertical: ResidualState
    horizontal: ResidualState


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
        v, h = self.grow_v, self.grow_h
        filters = v.bias.shape[0]
        make = v.bias.new_zeros
        return ResizeState(
            grow_v=v.weight().transpose(0, 1).contiguous(),
            bias_v=v.bias.detach().clone(),
            grow_h=h.weight().permute(1, 2, 3, 0).flatten(1).contiguous(),
            bias_h=h.bias.repeat(4),
            shrink_v=self.shrink_v.cache(batch, width),
            shrink_h=self.shrink_h.cache(batch, width),
            before=make(batch, width // 2, filters),
            grown_v=make(batch, 2, width, filters),
            grown_h=make(batch, 2, width, filters),
        )


@dataclass
class ResizeState(State):
    """A :class:`Resize` on its way."""

    shared: ClassVar[frozenset[str]] = frozenset({"grow_v", "bias_v", "grow_h", "bias_h"})

    grow_v: torch.Tensor
    """``[filters, filters, 2, 3]``."""
    bias_v: torch.Tensor
    grow_h: torch.Tensor
    """``[filters, 4 * filters]``: the four places that a place of the smaller map gives."""
    bias_h: torch.Tensor
    shrink_v: RowCache
    shrink_h: RowCache
    before: torch.Tensor
    """What bias and row above add to the smaller horizontal map in this row: ``[batch, width / 2, filters]``."""
    grown_v: torch.Tensor
    """The two rows that the last row of the smaller maps gave: ``[batch, 2, width, filters]``."""
    grown_h: torch.Tensor


def _halves(bias: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if bias is None:
        return None, None
    first, second = bias.chunk(2, dim=-1)
    return first, second

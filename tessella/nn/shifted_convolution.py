"""Shifted convolutions with normalized weights, over a whole grid and row by row or pixel by pixel.

A *down-shifted* convolution sees rows above and its own row, on both sides; a *down-right-shifted*
one sees rows above and its own row up to its own place (Salimans et al. 2017, "PixelCNN++"; van den
Oord et al. 2016b). Fed with rows that are complete, respectively with pixels that are known,
neither needs a mask. Weights are written as a length times a direction (Salimans and Kingma 2016,
"Weight Normalization", eq. 2), one length for each output.

Maps are ``[batch, height, width, features]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.convolution import field_along
from tessella.nn.stepping.program import Matrix, Moving, Operand, Program, along, windows
from tessella.nn.stepping.state import State


def concat_elu(x: torch.Tensor) -> torch.Tensor:
    """``elu`` of ``x`` and of ``-x`` side by side: ``[..., features]`` to ``[..., 2 * features]``
    (Shang et al. 2016, with the exponential unit)."""
    return F.elu(torch.cat([x, -x], dim=-1))


def delayed(x: torch.Tensor, dim: int) -> torch.Tensor:
    """``x`` one place further along ``dim``, zero at its start."""
    zero = torch.zeros_like(x.narrow(dim, 0, 1))
    return torch.cat([zero, x.narrow(dim, 0, x.shape[dim] - 1)], dim)


class Normed(nn.Module):
    """Weights ``gain * direction / |direction|`` and a bias.

    Args:
        outputs: vectors that go out.
        inputs: shape of what each output sees.
        gain: first length of each output's weights.
    """

    undecayed = ("gain",)  # the length of the weights: not shrunk by weight decay

    def __init__(self, outputs: int, inputs: tuple[int, ...], gain: float = 1.0) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(outputs, *inputs) / math.sqrt(math.prod(inputs)))
        self.gain = nn.Parameter(torch.full((outputs, *(1 for _ in inputs)), gain))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def weight(self) -> torch.Tensor:
        """``[outputs, *inputs]``."""
        lengths = torch.linalg.vector_norm(self.direction.flatten(1), dim=1)
        return self.direction * (self.gain / lengths.view_as(self.gain))


class NormedLinear(Normed):
    """``x [..., inputs]`` to ``[..., outputs]``.

    Args:
        inputs, outputs: features that come in and go out.
        gain: see :class:`Normed`.
    """

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__(outputs, (inputs,), gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight(), self.bias)


class ShiftedConvolution(Normed):
    """Convolution over rows up to and including its own, from ``left`` places before to ``right``
    places after.

    Args:
        inputs, outputs: features that come in and go out.
        rows: rows it sees, its own included.
        left, right: places it sees on either side, in every row.
        stride: 2 halves the map: it keeps the even rows and columns.
        gain: see :class:`Normed`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rows: int,
        left: int,
        right: int,
        stride: int = 1,
        gain: float = 1.0,
    ) -> None:
        super().__init__(outputs, (inputs, rows, left + 1 + right), gain)
        self.rows, self.left, self.right, self.stride = rows, left, right, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, height, width, inputs]`` to
        ``[batch, height / stride, width / stride, outputs]``."""
        padded = F.pad(x, (0, 0, self.left, self.right, self.rows - 1, 0)).movedim(-1, 1)
        return F.conv2d(padded, self.weight(), self.bias, self.stride).movedim(1, -1)

    def field(self, field: torch.Tensor) -> torch.Tensor:
        """Which sources reach a place: ``bool [sources, height, width]``, as :meth:`forward`
        changes maps."""
        wide = field_along(field, "columns", -self.left, self.right)
        return field_along(wide, "rows", 1 - self.rows, 0)[:, :: self.stride, :: self.stride]

    def cache(self, batch: int, width: int, bias: torch.Tensor | None = None) -> RowCache:
        """The state before the first row of maps that are ``width`` wide; ``bias [batch, outputs]``
        is added to the layer's own."""
        shape = (batch, self.rows, self.left + width + self.right, self.direction.shape[1])
        return row_cache(self, self.direction.new_zeros(shape), self.left, 0, self.stride, bias)


class CausalKernel(Normed):
    """Convolution with a ``kernel x kernel`` kernel whose last row is moved to the left: of the
    rows above it sees as many places on both sides, of its own row its own place and ``kernel - 1``
    places before. No weight is masked.

    Args:
        inputs, outputs: features that come in and go out.
        kernel: odd, at least 3.
        gain: see :class:`Normed`.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, gain: float = 1.0) -> None:
        super().__init__(outputs, (inputs, kernel, kernel), gain)
        self.kernel = kernel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, height, width, inputs]`` to ``[batch, height, width, outputs]``."""
        weight, before, side = self.weight(), self.kernel - 1, self.kernel // 2
        above = F.pad(x[:, :-1], (0, 0, side, side, before, 0)).movedim(-1, 1)
        own = F.pad(x, (0, 0, before, 0)).movedim(-1, 1)
        return (
            F.conv2d(above, weight[:, :, :-1]) + F.conv2d(own, weight[:, :, -1:], self.bias)
        ).movedim(1, -1)

    def cache(self, batch: int, width: int, bias: torch.Tensor | None = None) -> RowCache:
        """As :meth:`ShiftedConvolution.cache`."""
        before, side = self.kernel - 1, self.kernel // 2
        shape = (batch, self.kernel, before + width + side, self.direction.shape[1])
        return row_cache(self, self.direction.new_zeros(shape), before, before - side, 1, bias)


def row_cache(
    layer: Normed,
    rows: torch.Tensor,
    left: int,
    offset: int,
    stride: int,
    bias: torch.Tensor | None,
) -> RowCache:
    """The state of a convolution with weights ``[outputs, inputs, rows, taps]``; see
    :class:`RowCache`."""
    packed = layer.weight().permute(2, 3, 1, 0).flatten(1, 2)
    own = layer.bias.expand(len(rows), 1, -1)
    return RowCache(
        above=[Matrix(weights) for weights in packed[:-1]],
        here=Matrix(packed[-1]),
        bias=own.clone() if bias is None else own + bias[:, None],
        rows=rows,
        taps=layer.direction.shape[3],
        left=left,
        offset=offset,
        stride=stride,
    )


@dataclass
class RowCache(State):
    """A shifted convolution on its way down the rows, as parts of programs.

    A row begins with :meth:`write_shift` and what the rows above add to it (:meth:`write_above`).
    Then the row itself becomes known, at once (written to :meth:`row`, and read by
    :meth:`write_row`) or place after place (:meth:`place`, :meth:`write_place`).
    """

    shared: ClassVar[frozenset[str]] = frozenset({"above", "here"})

    above: list[Matrix]
    """Weights of each of the rows above: ``[taps * inputs, outputs]``."""
    here: Matrix
    """Weights of the newest row."""
    bias: torch.Tensor
    """``[batch, 1, outputs]``."""
    rows: torch.Tensor
    """The last rows, the newest last, with zeros at the sides:
    ``[batch, rows, padded width, inputs]``."""
    taps: int
    """Places it sees in a row."""
    left: int
    """Zeros at the left side."""
    offset: int
    """How much later its window begins in the rows above than in the newest."""
    stride: int

    def row(self, width: int) -> torch.Tensor:
        """Where the newest row goes: ``[batch, width, inputs]``."""
        return self.rows[:, -1, self.left : self.left + width]

    def place(self, by: str) -> Moving:
        """Where a place of the newest row goes, ``[batch, inputs]``, moved by a column."""
        return along(self.rows[:, -1], by, self.left)

    def write_shift(self, program: Program) -> None:
        """Start a row, in a program over as many places as a row has."""
        for row in range(self.rows.shape[1] - 1):
            older, newer = (
                self.rows[:, r, self.left :][:, : program.places] for r in (row, row + 1)
            )
            program.map(newer, older)

    def write_above(self, program: Program, out: torch.Tensor) -> None:
        """What bias and rows above add to a row, in a program over the places of the output:
        ``out [batch, width / stride, outputs]``."""
        plus = self.bias
        for row, weights in enumerate(self.above):
            seen = windows(self.rows[:, row], self.taps, self.offset, self.stride)[
                :, : program.places
            ]
            program.linear(seen, weights, out, plus=plus)
            plus = out
        if not self.above:
            program.map(self.bias, out)

    def write_row(
        self,
        program: Program,
        before: torch.Tensor,
        out: Operand,
        then: str = "",
        residual: Operand | None = None,
    ) -> None:
        """The output of a whole row, in a program over its places: what the newest row gives, added
        to ``before``."""
        seen = windows(self.rows[:, -1], self.taps, 0, self.stride)[:, : program.places]
        program.linear(seen, self.here, out, before, then, residual)

    def write_place(
        self, program: Program, before: torch.Tensor, out: Operand, by: str, then: str = "",
        residual: Operand | None = None,
    ) -> None:  # fmt: skip
        """The output at a place ``by`` (a column of the output): what the newest row gives, added
        to ``before [batch, outputs' width, outputs]``."""
        seen = along(self.rows[:, -1], by, every=self.stride, count=self.taps)
        program.linear(seen, self.here, out, along(before, by), then, residual)


class GrowingConvolution(Normed):
    """Transposed convolution of stride 2: each place gives two rows, two columns wide (``taps`` =
    2), or three, which overlap with those of its neighbours on both sides (``taps`` = 3).

    Args:
        inputs, outputs: features that come in and go out.
        taps: 2 or 3.
        gain: see :class:`Normed`.
    """

    def __init__(self, inputs: int, outputs: int, taps: int, gain: float = 1.0) -> None:
        assert taps in (2, 3)
        super().__init__(outputs, (inputs, 2, taps), gain)
        self.taps = taps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, height, width, inputs]`` to ``[batch, 2 * height, 2 * width, outputs]``."""
        return grown(x, self.weight().transpose(0, 1), self.bias)

    def field(self, field: torch.Tensor) -> torch.Tensor:
        """Which sources reach a place: ``bool [sources, height, width]`` to twice the sides."""
        rows = field.repeat_interleave(2, 1)
        wide = rows.repeat_interleave(2, 2)
        if self.taps == 3:
            wide[:, :, 1:-1:2] |= rows[:, :, 1:]
        return wide


def grown(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """:meth:`GrowingConvolution.forward` with weights ``[inputs, outputs, 2, taps]``."""
    maps = F.conv_transpose2d(x.movedim(-1, 1), weight, bias, stride=2)
    return maps[..., weight.shape[3] - 2 :].movedim(1, -1)

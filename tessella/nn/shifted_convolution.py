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
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.convolution import field_along
from tessella.nn.stepping.program import Operand, Places
from tessella.nn.stepping.step import GridStep


def concat_elu(x: torch.Tensor) -> torch.Tensor:
    """``elu`` of ``x`` and of ``-x`` side by side: ``[..., n]`` to ``[..., 2 n]``.

    Shang et al. 2016, with the exponential unit.
    """
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
        # Directions of about length 1, whatever the number of inputs.
        self.direction = nn.Parameter(torch.randn(outputs, *inputs) / math.sqrt(math.prod(inputs)))
        self.gain = nn.Parameter(torch.full((outputs, *(1 for _ in inputs)), gain))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def weight(self) -> torch.Tensor:
        """``[outputs, *inputs]``."""
        # One length for each output, over all that it sees.
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


class RowConvolution(Normed):
    """Base of the convolutions that see some rows above and their own row.

    Args:
        inputs, outputs: features that come in and go out.
        rows: rows it sees, its own included.
        above: places it sees to the left and to the right in the rows above.
        here: places it sees to the left and to the right in its own row.
        stride: 2 halves the map.
        gain: see :class:`Normed`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rows: int,
        above: tuple[int, int],
        here: tuple[int, int],
        stride: int = 1,
        gain: float = 1.0,
    ) -> None:
        assert sum(above) == sum(here), "all rows of the kernel are equally wide"
        super().__init__(outputs, (inputs, rows, sum(here) + 1), gain)
        self.rows = rows
        self.above = above
        self.here = here
        self.stride = stride

    def start(
        self,
        step: GridStep,
        bias: torch.Tensor | None = None,
        into: GridStep | None = None,
        margin: int = 0,
        sums: Places | None = None,
    ) -> SteppedConvolution:
        """Take memory for a step, and append what the rows above add to a row.

        Args:
            step: of the maps that come in.
            bias: added to the layer's own, ``[batch, outputs]``.
            into: the step of the maps that go out, where they are smaller.
            margin: further places to the right of a row, for whoever fills it in.
            sums: memory that holds already what else is added, bias included.
        """
        return SteppedConvolution(self, step, bias, into or step, margin, sums)


class ShiftedConvolution(RowConvolution):
    """Convolution over rows up to and including its own, with places on both sides.

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
        super().__init__(inputs, outputs, rows, (left, right), (left, right), stride, gain)
        self.left = left
        self.right = right

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Over a whole map.

        ``[batch, height, width, inputs]`` to ``[batch, height / stride, width / stride, outputs]``.
        """
        # F.pad counts from the last dimension: features, columns, rows.
        padded = F.pad(x, (0, 0, self.left, self.right, self.rows - 1, 0)).movedim(-1, 1)
        return F.conv2d(padded, self.weight(), self.bias, self.stride).movedim(1, -1)

    def field(self, field: torch.Tensor) -> torch.Tensor:
        """Which sources reach a place of the output: ``bool [sources, height, width]``."""
        wide = field_along(field, "columns", -self.left, self.right)
        return field_along(wide, "rows", 1 - self.rows, 0)[:, :: self.stride, :: self.stride]


class CausalKernel(RowConvolution):
    """Convolution with a ``kernel x kernel`` kernel whose last row is moved to the left.

    Of the rows above it sees as many places on both sides, of its own row its own place and
    ``kernel - 1`` places before. No weight is masked.

    Args:
        inputs, outputs: features that come in and go out.
        kernel: odd, at least 3.
        gain: see :class:`Normed`.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, gain: float = 1.0) -> None:
        side = kernel // 2
        super().__init__(inputs, outputs, kernel, (side, side), (kernel - 1, 0), gain=gain)
        self.kernel = kernel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, height, width, inputs]`` to ``[batch, height, width, outputs]``."""
        weight = self.weight()
        before = self.kernel - 1
        side = self.kernel // 2
        # Of the rows above, the last one is a row up: it never sees its own row.
        rows_above = F.pad(x[:, :-1], (0, 0, side, side, before, 0)).movedim(-1, 1)
        this_row = F.pad(x, (0, 0, before, 0)).movedim(-1, 1)
        # The kernel's last row has other columns than the rows above, so it is a convolution apart.
        above = F.conv2d(rows_above, weight[:, :, :-1])
        here = F.conv2d(this_row, weight[:, :, -1:], self.bias)
        return (above + here).movedim(1, -1)


class SteppedConvolution:
    """A :class:`RowConvolution` on the memory of a step.

    A row of its input is filled in by whoever knows it, at once or place by place; then
    :meth:`write_row` or :meth:`write_place` gives the output.

    Args:
        layer: the convolution.
        step, bias, into, margin, sums: see :meth:`RowConvolution.start`.
    """

    def __init__(
        self,
        layer: RowConvolution,
        step: GridStep,
        bias: torch.Tensor | None,
        into: GridStep,
        margin: int,
        sums: Places | None,
    ) -> None:
        outputs, inputs, rows, _ = layer.direction.shape
        # Margins for the wider of both windows.
        left = max(layer.above[0], layer.here[0])
        right = max(layer.above[1], layer.here[1])
        memory = step.memory.zeros(rows, left + step.width + right + margin, inputs)
        # The rows still seen, the newest last; they move up when a row is complete.
        history = [Places(row, left, step.width) for row in memory.unbind(1)]
        for older, newer in pairwise(history):
            step.advance.map(newer.row, older.row)
        # [rows, taps * inputs, outputs]: a window times one of these is a row of the kernel.
        weights = layer.weight().permute(2, 3, 1, 0).flatten(1, 2)
        self._layer = layer
        self._into = into
        self._here = step.memory.matrix(weights[-1])
        self.input = history[-1]
        """The newest row."""
        if sums is not None:
            assert rows == 1
            assert bias is None
            self.sums = sums
            return
        self.sums = into.places(outputs)
        """Bias and rows above, as they are added to the outputs of this row."""
        # [batch, 1, outputs]: one row of biases for all places.
        total = layer.bias.expand(len(memory), 1, -1)
        if bias is not None:
            total = total + bias[:, None]
        self._write_above(history[:-1], weights[:-1], step.memory.keep(total))

    def _write_above(
        self, history: list[Places], weights: torch.Tensor, bias: torch.Tensor
    ) -> None:
        left, right = self._layer.above
        added: Operand = bias
        for row, weight in zip(history, weights, strict=True):
            matrix = self._into.memory.matrix(weight)
            # [batch, width / stride, taps * inputs], a view.
            windows = row.windows(left, right, self._layer.stride)
            self._into.row.linear(windows, matrix, self.sums.row, add=added)
            # The first product adds to the bias, each further one to the sums so far.
            added = self.sums.row
        if not history:
            # A convolution of one row has nothing above it.
            self._into.row.map(bias, self.sums.row)

    def write_row(
        self, out: Operand, activation: str = "", residual: Operand | None = None
    ) -> None:
        """Append the output of a whole row, at the start of a row.

        ``out`` is ``[batch, width / stride, outputs]``; the input's row must be complete.
        """
        left, right = self._layer.here
        windows = self.input.windows(left, right, self._layer.stride)
        self._into.row.linear(windows, self._here, out, self.sums.row, activation, residual)

    def write_place(
        self, out: Operand, activation: str = "", residual: Operand | None = None
    ) -> None:
        """Append the output of a place, ``[batch, outputs]``, at each pixel."""
        left, right = self._layer.here
        column = self._into.column
        # The pixels before have filled it up to this place.
        window = self.input.window(column, left, right, self._layer.stride)
        above = self.sums.at(column)
        self._into.pixel.linear(window, self._here, out, above, activation, residual)


class GrowingConvolution(Normed):
    """Transposed convolution of stride 2.

    Each place gives two rows, two columns wide (``taps`` = 2), or three columns wide, which overlap
    with those of its neighbours on both sides (``taps`` = 3).

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
        weight = self.weight().transpose(0, 1)
        maps = F.conv_transpose2d(x.movedim(-1, 1), weight, self.bias, stride=2)
        # With three taps the first column lies to the left of the map.
        return maps[..., self.taps - 2 :].movedim(1, -1)

    def field(self, field: torch.Tensor) -> torch.Tensor:
        """Which sources reach a place: ``bool [sources, height, width]`` to twice the sides."""
        # Each place gives two rows by two columns.
        rows = field.repeat_interleave(2, 1)
        wide = rows.repeat_interleave(2, 2)
        if self.taps == 3:
            # Odd columns are reached from the place to their right too.
            wide[:, :, 1:-1:2] |= rows[:, :, 1:]
        return wide

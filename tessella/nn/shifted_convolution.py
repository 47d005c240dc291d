"""Shifted convolutions with normalized weights: over a whole grid, by rows, or by pixels.

A *down-shifted* convolution sees rows above and its own row, on both sides. A *down-right-shifted*
convolution sees rows above, and its own row up to its own place (Salimans et al. 2017,
"PixelCNN++"; van den Oord et al. 2016b). Neither needs a mask: the first is fed complete rows, the
second known pixels. Weights are parametrized as a norm times a direction (Salimans and Kingma 2016,
"Weight Normalization", eq. 2), with one norm for each output.

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
    """Concatenate ``elu(x)`` and ``elu(-x)``: ``[..., n]`` to ``[..., 2 n]``.

    This is the concatenated ReLU of Shang et al. 2016 with an exponential unit.
    """
    return F.elu(torch.cat([x, -x], dim=-1))


def delayed(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Shift ``x`` by one place along ``dim``; the first place becomes zero."""
    zero = torch.zeros_like(x.narrow(dim, 0, 1))
    return torch.cat([zero, x.narrow(dim, 0, x.shape[dim] - 1)], dim)


class Normed(nn.Module):
    """Base of the layers with weights ``gain * direction / |direction|`` and a bias.

    Args:
        outputs: number of outputs.
        inputs: shape of the weights of one output.
        gain: initial norm of the weights of each output.
    """

    matrices = ("direction",)
    undecayed = ("gain",)  # weight decay must not shrink the norm of the weights

    def __init__(self, outputs: int, inputs: tuple[int, ...], gain: float = 1.0) -> None:
        super().__init__()
        # Directions have a norm of about 1, whatever the number of inputs.
        self.direction = nn.Parameter(torch.randn(outputs, *inputs) / math.sqrt(math.prod(inputs)))
        self.gain = nn.Parameter(torch.full((outputs, *(1 for _ in inputs)), gain))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def weight(self) -> torch.Tensor:
        """The normalized weights, ``[outputs, *inputs]``."""
        # The norm of an output's weights is over all its inputs.
        lengths = torch.linalg.vector_norm(self.direction.flatten(1), dim=1)
        return self.direction * (self.gain / lengths.view_as(self.gain))


class NormedLinear(Normed):
    """A linear layer with normalized weights, from ``[..., inputs]`` to ``[..., outputs]``.

    Args:
        inputs, outputs: input and output features.
        gain: see :class:`Normed`.
    """

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__(outputs, (inputs,), gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight(), self.bias)


class RowConvolution(Normed):
    """Base of the convolutions over some rows above and their own row.

    Args:
        inputs, outputs: input and output features.
        rows: how many rows it sees, its own included.
        above: how many places it sees to the left and to the right in the rows above.
        here: how many places it sees to the left and to the right in its own row.
        stride: 2 halves the sides of the map.
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

    def bind(
        self,
        step: GridStep,
        bias: torch.Tensor | None = None,
        into: GridStep | None = None,
        margin: int = 0,
        sums: Places | None = None,
    ) -> SteppedConvolution:
        """Allocate memory for a step, and append the contribution of the rows above.

        Args:
            step: the step of the input maps.
            bias: added to the layer's own bias, ``[batch, outputs]``.
            into: the step of the output maps, if they are smaller; by default ``step``.
            margin: additional places to the right of an input row, for the caller's use.
            sums: memory that already holds everything else to be added, bias included. Only for
                convolutions of one row.
        """
        return SteppedConvolution(self, step, bias, into or step, margin, sums)


class ShiftedConvolution(RowConvolution):
    """Convolution over rows up to and including its own, as wide in every row.

    Args:
        inputs, outputs: input and output features.
        rows: how many rows it sees, its own included.
        left, right: how many places it sees on either side, in every row.
        stride: 2 halves the sides of the map, keeping the even rows and columns.
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
        """Convolve a whole map.

        Args:
            x: ``[batch, height, width, inputs]``.

        Returns:
            ``[batch, height / stride, width / stride, outputs]``.
        """
        # F.pad counts from the last dimension: features, columns, rows.
        padded = F.pad(x, (0, 0, self.left, self.right, self.rows - 1, 0)).movedim(-1, 1)
        return F.conv2d(padded, self.weight(), self.bias, self.stride).movedim(1, -1)

    def field(self, field: torch.Tensor) -> torch.Tensor:
        """Receptive field of the output, given that of the input: ``bool [sources, h, w]``."""
        wide = field_along(field, "columns", -self.left, self.right)
        return field_along(wide, "rows", 1 - self.rows, 0)[:, :: self.stride, :: self.stride]


class CausalKernel(RowConvolution):
    """Convolution with a ``kernel x kernel`` kernel whose last row is shifted to the left.

    In the rows above it sees the same number of places on both sides. In its own row it sees its
    own place and the ``kernel - 1`` places before it. No weight is masked.

    Args:
        inputs, outputs: input and output features.
        kernel: size of the kernel, odd, at least 3.
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
        # The last row of x is dropped: this part of the kernel ends one row above its place.
        rows_above = F.pad(x[:, :-1], (0, 0, side, side, before, 0)).movedim(-1, 1)
        this_row = F.pad(x, (0, 0, before, 0)).movedim(-1, 1)
        # The kernel's last row covers other columns, so it needs a separate convolution.
        above = F.conv2d(rows_above, weight[:, :, :-1])
        here = F.conv2d(this_row, weight[:, :, -1:], self.bias)
        return (above + here).movedim(1, -1)


class SteppedConvolution:
    """A :class:`RowConvolution` bound to the memory of a step.

    The caller fills in the input row, at once or place by place; then :meth:`write_row` or
    :meth:`write_place` computes the output.

    Args:
        layer: the convolution.
        step, bias, into, margin, sums: see :meth:`RowConvolution.bind`.
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
        # The margins must fit the wider of the two windows.
        left = max(layer.above[0], layer.here[0])
        right = max(layer.above[1], layer.here[1])
        memory = step.memory.zeros(rows, left + step.width + right + margin, inputs)
        # All visible rows, the newest last. They move up by one when a row is complete.
        history = [Places(row, left, step.width) for row in memory.unbind(1)]
        for older, newer in pairwise(history):
            step.advance.map(newer.row, older.row)
        # [rows, taps * inputs, outputs]: one matrix for each row of the kernel.
        weights = layer.weight().permute(2, 3, 1, 0).flatten(1, 2)
        self._layer = layer
        self._into = into
        self._here = step.memory.matrix(weights[-1])
        self.input = history[-1]
        """The newest row, ``[batch, width, inputs]``, which the caller fills in."""
        if sums is not None:
            assert rows == 1
            assert bias is None
            self.sums = sums
            return
        self.sums = into.places(outputs)
        """Bias plus contribution of the rows above, for each place: ``[batch, width, outputs]``."""
        # [batch, 1, outputs]: the same bias for all places.
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
        """Append the output of a whole row, computed when the row begins.

        The input row must be complete by then.

        Args:
            out: ``[batch, width / stride, outputs]`` before the activation.
            activation, residual: see :meth:`OperationWriter.linear`.
        """
        left, right = self._layer.here
        windows = self.input.windows(left, right, self._layer.stride)
        self._into.row.linear(windows, self._here, out, self.sums.row, activation, residual)

    def write_place(
        self, out: Operand, activation: str = "", residual: Operand | None = None
    ) -> None:
        """Append the output of one place, computed at each pixel.

        Args:
            out: ``[batch, outputs]`` before the activation.
            activation, residual: see :meth:`OperationWriter.linear`.
        """
        left, right = self._layer.here
        column = self._into.column
        # Earlier pixels have filled the input row up to this place.
        window = self.input.window(column, left, right, self._layer.stride)
        above = self.sums.at(column)
        self._into.pixel.linear(window, self._here, out, above, activation, residual)


class UpsamplingConvolution(Normed):
    """Transposed convolution of stride 2, which doubles both sides of a map.

    Each input place contributes to two rows of the output. With two taps it contributes to two
    columns; with three taps to three, which overlap with those of its neighbours.

    Args:
        inputs, outputs: input and output features.
        taps: columns of the kernel, 2 or 3.
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
        # With three taps the first output column lies to the left of the map and is dropped.
        return maps[..., self.taps - 2 :].movedim(1, -1)

    def field(self, field: torch.Tensor) -> torch.Tensor:
        """Receptive field of the output, given that of the input.

        ``bool [sources, height, width]`` to ``[sources, 2 * height, 2 * width]``.
        """
        # Each place contributes to two rows by two columns.
        rows = field.repeat_interleave(2, 1)
        wide = rows.repeat_interleave(2, 2)
        if self.taps == 3:
            # Odd columns also depend on the place to their right.
            wide[:, :, 1:-1:2] |= rows[:, :, 1:]
        return wide

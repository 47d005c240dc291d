"""Causal convolutions along one axis of an image, and 1 x 1 convolutions as matrix products.

A tap looks up (``axis="rows"``) or to the left (``axis="columns"``). The same weights serve as a
convolution over the whole map and, packed, as a matrix that multiplies the last few vectors.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.stepping.program import Operand, Places, Weights
from tessella.nn.stepping.step import GridStep

Axis = Literal["rows", "columns"]


class CausalConvolution(nn.Module):
    """Convolution over the last ``taps`` places along one axis.

    Args:
        inputs: input channels.
        outputs: output channels.
        taps: number of places it sees.
        axis: ``"rows"`` looks up, ``"columns"`` looks left.
        exclusive: end strictly before the place itself (mask A of van den Oord et al. 2016);
            otherwise the place is included.
    """

    def __init__(
        self, inputs: int, outputs: int, taps: int, axis: Axis, exclusive: bool = False
    ) -> None:
        super().__init__()
        self.taps = taps
        self.axis = axis
        self.exclusive = exclusive
        # [outputs, inputs, taps, 1] or [outputs, inputs, 1, taps]
        kernel = (taps, 1) if axis == "rows" else (1, taps)
        initial = nn.Conv2d(inputs, outputs, kernel)
        assert initial.bias is not None
        self.weight = nn.Parameter(initial.weight.detach())
        self.bias = nn.Parameter(initial.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, inputs, height, width]`` to ``[batch, outputs, height, width]``."""
        dim = 1 if self.axis == "rows" else 2
        # [batch, height, width, inputs]: the layout in memory.
        maps = x.movedim(1, -1)
        before = self.taps - 1
        if self.exclusive:
            # Shift everything by one place, so that each window ends before its own place.
            maps = maps.narrow(dim, 0, maps.shape[dim] - 1)
            before = self.taps
        shape = list(maps.shape)
        shape[dim] = before
        padded = torch.cat([maps.new_zeros(shape), maps], dim)
        # Padding is at the start only, so the last window ends at the last place.
        return F.conv2d(padded.movedim(-1, 1), self.weight, self.bias)

    def packed(self) -> torch.Tensor:
        """The weights as ``[taps * inputs, outputs]``, the most distant place first."""
        return self.weight.flatten(2).permute(2, 1, 0).flatten(0, 1).contiguous()

    def bind_rows(self, step: GridStep) -> SteppedRows:
        """Allocate memory for the rows that a convolution along ``"rows"`` sees."""
        assert self.axis == "rows"
        return SteppedRows(self, step)

    def write_place(
        self, step: GridStep, x: Places, out: Operand, add: Operand, activation: str = ""
    ) -> None:
        """Append the output of a convolution along ``"columns"`` at each pixel.

        Args:
            step: the step to write to.
            x: the input row, filled in as far as the convolution looks.
            out: the output, ``[batch, outputs]`` before the activation.
            add: ``[batch, outputs]``, added to the product; must include the bias.
            activation: applied last, see :data:`tessella.nn.stepping.operation.ACTIVATIONS`.
        """
        assert self.axis == "columns"
        if self.exclusive:
            window = x.window(step.column, left=self.taps, right=-1)
        else:
            window = x.window(step.column, left=self.taps - 1)
        weight = step.memory.matrix(self.packed())
        step.pixel.linear(window, weight, out, add=add, activation=activation)


class SteppedRows:
    """A :class:`CausalConvolution` along rows, bound to the memory of a step.

    Args:
        layer: the convolution.
        step: the step to write to.
    """

    def __init__(self, layer: CausalConvolution, step: GridStep) -> None:
        inputs = layer.weight.shape[1]
        # For each column all visible rows, concatenated, so that one product suffices.
        self._rows = step.places(layer.taps * inputs).row
        self._row = step.row
        self._weight = step.memory.matrix(layer.packed())
        # The topmost row first, as in the packed weights.
        rows = self._rows.split(inputs, dim=2)
        for older, newer in pairwise(rows):
            step.advance.map(newer, older)
        self.newest = rows[-1]
        """The newest row, which the caller fills in: ``[batch, width, inputs]``."""

    def write_row(
        self, out: Operand, add: Operand, activation: str = "", residual: Operand | None = None
    ) -> None:
        """Append the output of a row.

        Args:
            out: ``[batch, width, outputs]`` before the activation.
            add: of the same shape, added to the product; must include the bias.
            activation, residual: see :meth:`OperationWriter.linear`.
        """
        self._row.linear(self._rows, self._weight, out, add, activation, residual)


def pointwise(
    convolution: nn.Conv2d, x: torch.Tensor, add: torch.Tensor | None = None
) -> torch.Tensor:
    """Apply a 1 x 1 convolution as one matrix product.

    Fastest for maps in the memory layout ``[batch, height, width, channels]``.

    Args:
        convolution: holds the weights and the bias.
        x: ``[batch, inputs, height, width]``.
        add: a map that is added, ``[batch, outputs, height, width]``.

    Returns:
        ``[batch, outputs, height, width]``.
    """
    # [batch, height, width, inputs]; flattened, a row for each pixel.
    rows = x.movedim(1, -1)
    vectors = rows.flatten(0, 2)
    weight = convolution.weight[:, :, 0, 0].T
    if add is None:
        out = vectors @ weight
    else:
        # Into the memory of `add` would be slower: autograd then copies the whole gradient twice,
        # because the rows are a view.
        out = torch.addmm(add.movedim(1, -1).flatten(0, 2), vectors, weight)
    if convolution.bias is not None:
        out = out + convolution.bias
    return out.view(*rows.shape[:-1], weight.shape[1]).movedim(-1, 1)


def pointwise_matrix(step: GridStep, convolution: nn.Conv2d) -> Weights:
    """A 1 x 1 convolution's weights ``[inputs, outputs]`` for the programs of a step."""
    return step.memory.matrix(convolution.weight[:, :, 0, 0].T.contiguous())


def channels_last(module: nn.Module) -> None:
    """Lay out convolution weights in memory for maps ``[batch, height, width, channels]``."""
    for parameter in module.parameters():
        # Convolutions only; the values stay, their order in memory changes.
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def field_along(field: torch.Tensor, axis: Axis, first: int, last: int) -> torch.Tensor:
    """Receptive field of a convolution with taps at the offsets ``first .. last``.

    Args:
        field: receptive field of its input, ``bool [sources, height, width]``.
        axis: along which the taps lie.
        first, last: offsets of the taps; negative ones look back.

    Returns:
        ``bool [sources, height, width]``.
    """
    dim = 1 if axis == "rows" else 2
    size = field.shape[dim]
    reached = torch.zeros_like(field)
    # Offsets beyond the map reach nothing.
    for offset in range(max(first, 1 - size), min(last, size - 1) + 1):
        length = size - abs(offset)
        source = field.narrow(dim, max(0, offset), length)
        reached.narrow(dim, max(0, -offset), length).logical_or_(source)
    return reached

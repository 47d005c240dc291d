"""Causal convolutions along one axis of an image, and 1 x 1 convolutions as matrix products.

A tap looks back along rows (``axis="rows"``: upwards) or along a row (``axis="columns"``: to the
left). The same weights are read as a convolution over the whole map and, packed, as a matrix that
multiplies the last few vectors.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.stepping.program import Matrix, Operand, Places
from tessella.nn.stepping.step import GridStep

Axis = Literal["rows", "columns"]


class CausalConvolution(nn.Module):
    """Convolution that sees ``taps`` places up to and including its own, or strictly before it.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        taps: places it sees.
        axis: ``"rows"`` looks up, ``"columns"`` looks left.
        exclusive: leave out the place itself (a mask of type A in van den Oord et al. 2016).
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
        # [batch, height, width, inputs], as the maps lie in memory.
        maps = x.movedim(1, -1)
        before = self.taps - 1
        if self.exclusive:
            # One zero more in front and the last place left out: each window ends one place sooner.
            maps = maps.narrow(dim, 0, maps.shape[dim] - 1)
            before = self.taps
        shape = list(maps.shape)
        shape[dim] = before
        padded = torch.cat([maps.new_zeros(shape), maps], dim)
        # Padding is at the start only, so the last window ends at the last place.
        return F.conv2d(padded.movedim(-1, 1), self.weight, self.bias)

    def packed(self) -> torch.Tensor:
        """The weights as ``[taps * inputs, outputs]``: they multiply the vectors seen, the farthest
        first."""
        return self.weight.flatten(2).permute(2, 1, 0).flatten(0, 1).contiguous()

    def start_rows(self, step: GridStep) -> SteppedRows:
        """Take memory for the rows that a convolution along ``"rows"`` sees."""
        assert self.axis == "rows"
        return SteppedRows(self, step)

    def write_place(
        self, step: GridStep, x: Places, out: Operand, add: Operand, activation: str = ""
    ) -> None:
        """Append the output of a convolution along ``"columns"`` at each pixel.

        Args:
            step: where it is written.
            x: the row that comes in, known as far as the convolution sees.
            out: what goes out, ``[batch, outputs]`` before the activation.
            add: what is added to the products, bias included.
            activation: what follows.
        """
        assert self.axis == "columns"
        if self.exclusive:
            window = x.window(step.column, left=self.taps, right=-1)
        else:
            window = x.window(step.column, left=self.taps - 1)
        weight = step.memory.matrix(self.packed())
        step.pixel.linear(window, weight, out, add=add, activation=activation)


class SteppedRows:
    """A :class:`CausalConvolution` along rows, on the memory of a step.

    Args:
        layer: the convolution.
        step: where it is written.
    """

    def __init__(self, layer: CausalConvolution, step: GridStep) -> None:
        inputs = layer.weight.shape[1]
        # Of each place the rows seen, side by side, so that one product takes them all.
        self._rows = step.places(layer.taps * inputs).row
        self._row = step.row
        self._weight = step.memory.matrix(layer.packed())
        # The farthest first, as in the packed weights.
        rows = self._rows.split(inputs, dim=2)
        for older, newer in pairwise(rows):
            step.advance.map(newer, older)
        self.newest = rows[-1]
        """Where the newest row goes: ``[batch, width, inputs]``."""

    def write_row(
        self, out: Operand, add: Operand, activation: str = "", residual: Operand | None = None
    ) -> None:
        """Append the output of a row; ``add`` holds what is added to the products, bias
        included."""
        self._row.linear(self._rows, self._weight, out, add, activation, residual)


def pointwise(
    convolution: nn.Conv2d, x: torch.Tensor, add: torch.Tensor | None = None, spend: bool = False
) -> torch.Tensor:
    """A 1 x 1 convolution as one matrix product.

    Fastest where the maps lie in memory as ``[batch, height, width, channels]``.

    Args:
        convolution: its weights and bias.
        x: ``[batch, inputs, height, width]``.
        add: a map that is added, ``[batch, outputs, height, width]``.
        spend: add in place, into the memory of ``add``; then no gradient may need its values.
    """
    # [batch, height, width, inputs]; flattened, a row for each pixel.
    rows = x.movedim(1, -1)
    vectors = rows.flatten(0, 2)
    weight = convolution.weight[:, :, 0, 0].T
    if add is None:
        out = vectors @ weight
    elif spend and not torch.is_autocast_enabled(x.device.type):
        # Autocast passes over operations in place, so with it the sum is made anew.
        out = add.movedim(1, -1).flatten(0, 2).addmm_(vectors, weight)
    else:
        out = torch.addmm(add.movedim(1, -1).flatten(0, 2), vectors, weight)
    if convolution.bias is not None:
        out = out + convolution.bias
    return out.view(*rows.shape[:-1], weight.shape[1]).movedim(-1, 1)


def pointwise_matrix(step: GridStep, convolution: nn.Conv2d) -> Matrix:
    """A 1 x 1 convolution's weights ``[inputs, outputs]`` for the programs of a step."""
    return step.memory.matrix(convolution.weight[:, :, 0, 0].T.contiguous())


def channels_last(module: nn.Module) -> None:
    """Lay the weights of convolutions out as maps ``[batch, height, width, channels]`` want
    them."""
    for parameter in module.parameters():
        # Convolutions only; the values stay, their order in memory changes.
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def field_along(field: torch.Tensor, axis: Axis, first: int, last: int) -> torch.Tensor:
    """Which sources reach a place through taps at offsets ``first .. last`` (negative looks back).

    Args:
        field: ``bool [sources, height, width]``.
        axis: along which the taps lie.
        first, last: offsets of the taps.
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

"""Causal convolutions along one axis of an image.

A tap looks back along rows (``axis="rows"``: upwards) or along a row (``axis="columns"``: to the
left). The same weights are read as a convolution over the whole map and, packed, as a matrix that
multiplies the last few vectors.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn


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
        self,
        inputs: int,
        outputs: int,
        taps: int,
        axis: Literal["rows", "columns"],
        exclusive: bool = False,
    ) -> None:
        super().__init__()
        self.taps, self.axis, self.exclusive = taps, axis, exclusive
        kernel = (taps, 1) if axis == "rows" else (1, taps)
        initial = nn.Conv2d(inputs, outputs, kernel)
        self.weight = nn.Parameter(initial.weight.detach())
        self.bias = nn.Parameter(initial.bias.detach())  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, inputs, height, width]`` to ``[batch, outputs, height, width]``."""
        dim = 1 if self.axis == "rows" else 2
        maps, before = x.movedim(1, -1), self.taps - 1
        if self.exclusive:
            maps, before = maps.narrow(dim, 0, maps.shape[dim] - 1), self.taps
        zeros = maps.new_zeros([before if d == dim else size for d, size in enumerate(maps.shape)])
        return F.conv2d(torch.cat([zeros, maps], dim).movedim(-1, 1), self.weight, self.bias)

    def packed(self) -> torch.Tensor:
        """The weights as ``[taps * inputs, outputs]``: they multiply the vectors seen, the farthest
        first."""
        return self.weight.flatten(2).permute(2, 1, 0).flatten(0, 1).contiguous()


def pointwise(
    convolution: nn.Conv2d, x: torch.Tensor, plus: torch.Tensor | None = None, into: bool = False
) -> torch.Tensor:
    """A 1 x 1 convolution of ``x [batch, inputs, height, width]``, added to the map ``plus``: one
    matrix product. ``into`` adds in place: ``plus`` is then spent, and no gradient may need it.

    Fastest where the maps lie in memory as ``[batch, height, width, channels]``.
    """
    rows = x.movedim(1, -1)
    weight = convolution.weight[:, :, 0, 0].T
    if plus is None:
        out = rows.flatten(0, 2) @ weight
    else:
        # Autocast passes over operations in place.
        add = (
            torch.Tensor.addmm_
            if into and not torch.is_autocast_enabled(x.device.type)
            else torch.addmm
        )
        out = add(plus.movedim(1, -1).flatten(0, 2), rows.flatten(0, 2), weight)
    if convolution.bias is not None:
        out = out + convolution.bias
    return out.view(*rows.shape[:-1], weight.shape[1]).movedim(-1, 1)


def channels_last(module: nn.Module) -> None:
    """Lay the weights of convolutions out as maps ``[batch, height, width, channels]`` want
    them."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def field_along(
    field: torch.Tensor, axis: Literal["rows", "columns"], first: int, last: int
) -> torch.Tensor:
    """Which sources reach a place through taps at offsets ``first .. last`` (negative looks back).

    Args:
        field: ``bool [sources, height, width]``.
    """
    dim = 1 if axis == "rows" else 2
    size = field.shape[dim]
    reached = torch.zeros_like(field)
    for offset in range(max(first, 1 - size), min(last, size - 1) + 1):
        source = field.narrow(dim, max(0, offset), size - abs(offset))
        reached.narrow(dim, max(0, -offset), size - abs(offset)).logical_or_(source)
    return reached

"""Features that belong to the channels of a pixel (van den Oord et al. 2016, "Pixel Recurrent
Neural Networks", sec. 3.4).

The channels of a pixel are generated one after the other. Each layer's features are split into as
many groups, in order, and a mask keeps what a group sees of its own pixel to the past: under mask
*A* group ``g`` sees the groups before it, under mask *B* its own group too. Of earlier pixels every
group sees everything. With one group, mask A hides the pixel and mask B nothing.

Groups need not be equally large: of ``n`` features group ``g`` of ``count`` owns ``g n // count``
up to ``(g + 1) n // count``. A layer that makes several maps of ``n`` features at once (the gates
of an LSTM) lays them side by side, and has the groups of each; *arranged* by group, all maps of the
first group come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.convolution import field_along
from tessella.nn.masked import Masked, MaskedLinear
from tessella.nn.stepping.program import Matrix


@dataclass(frozen=True)
class ChannelGroups:
    """How features are split.

    Args:
        count: groups of each layer.
    """

    count: int

    def bounds(self, features: int) -> list[int]:
        """Where the groups begin, and where the last ends: ``count + 1`` numbers."""
        return [group * features // self.count for group in range(self.count + 1)]

    def slices(self, features: int, maps: int = 1) -> list[slice]:
        """The place of each group among ``maps * features`` features arranged by group."""
        bounds = self.bounds(features)
        return [slice(maps * a, maps * b) for a, b in pairwise(bounds)]

    def owners(self, features: int, maps: int = 1) -> torch.Tensor:
        """The group of each feature of maps side by side: ``int64 [maps * features]``."""
        bounds = torch.tensor(self.bounds(features))
        return torch.arange(self.count).repeat_interleave(bounds.diff(), output_size=features).repeat(maps)

    def mask(self, inputs: int, outputs: int, maps: int = 1, own: bool = True) -> torch.Tensor:
        """Whether an output may see an input of its pixel: ``bool [maps * outputs, inputs]``; mask
        B, or A without ``own``."""
        of_outputs, of_inputs = self.owners(outputs, maps)[:, None], self.owners(inputs)
        return of_inputs <= of_outputs if own else of_inputs < of_outputs

    def linear(self, inputs: int, outputs: int, maps: int = 1, bias: bool = True) -> MaskedLinear:
        """A product within a pixel (a 1 x 1 convolution) under mask B."""
        return MaskedLinear(self.mask(inputs, outputs, maps), bias)

    def arranged(self, x: torch.Tensor, maps: int = 1) -> torch.Tensor:
        """``x [..., maps * features]``, its maps side by side, arranged by group."""
        if self.count == 1 or maps == 1:
            return x
        order = self.owners(x.shape[-1] // maps, maps).argsort(stable=True)
        return x[..., order.to(x.device)]

    def products(
        self,
        weight: torch.Tensor,
        maps: int = 1,
        own: bool = True,
        before: torch.Tensor | None = None,
    ) -> list[Matrix]:
        """The masked weights ``[maps * outputs, inputs]`` cut for stepping: what multiplies the
        inputs that a group may see to give its outputs,
        ``[inputs seen, maps * outputs of the group]`` each.

        Args:
            weight, maps, own: what is masked, and how; see :meth:`mask`.
            before: weights ``[n, maps * outputs]`` of inputs that all groups see, which come first.
        """
        outputs, inputs = weight.shape
        ends = self.bounds(inputs)[1:] if own else self.bounds(inputs)[:-1]
        count = 0 if before is None else len(before)
        arranged = self.arranged(
            weight.T if before is None else torch.cat([before, weight.T]), maps
        )
        columns = self.slices(outputs // maps, maps)
        return [
            Matrix(arranged[: count + end, place].contiguous())
            for end, place in zip(ends, columns, strict=True)
        ]

    def field_within(self, field: torch.Tensor, own: bool = True) -> torch.Tensor:
        """Which sources reach the groups of a place through its own pixel, mask B or A.

        Args:
            field: which reach the inputs, ``bool [sources, count, height, width]``.
        """
        seen = field.cummax(1).values
        return seen if own else torch.cat([torch.zeros_like(seen[:, :1]), seen[:, :-1]], 1)


class GroupedConvolution(Masked):
    """Convolution over the rows above, the pixels to the left, and the part of the pixel itself
    that a mask leaves.

    The kernel has no rows below; the taps to the right of the pixel in its own row are held at
    zero.

    Args:
        groups: how features are split.
        inputs: features that come in.
        outputs: features that go out, for each of ``maps``.
        above: rows above that it sees.
        aside: pixels to the left that it sees; in the rows above as many to the right too.
        maps: maps that go out, side by side.
        own: mask B, without it mask A.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        inputs: int,
        outputs: int,
        above: int,
        aside: int,
        maps: int = 1,
        own: bool = True,
    ) -> None:
        width = 2 * aside + 1 if above else aside + 1
        initial = nn.Conv2d(inputs, maps * outputs, (above + 1, width))
        mask = torch.ones(initial.weight.shape, dtype=torch.bool)
        mask[:, :, -1, aside] = groups.mask(inputs, outputs, maps, own)
        mask[:, :, -1, aside + 1 :] = False
        super().__init__(initial.weight, initial.bias, mask)
        self.groups, self.maps, self.own = groups, maps, own
        self.above, self.aside = above, aside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, height, width, inputs]`` to ``[batch, height, width, maps * outputs]``."""
        right = self.aside if self.above else 0
        padded = F.pad(x, (0, 0, self.aside, right, self.above, 0)).movedim(-1, 1)
        return F.conv2d(padded, self.kernel(), self.bias).movedim(1, -1)

    def rows_above(self) -> Matrix:
        """Weights of the columns of the rows above, from the left, of a column the farthest row
        first: ``[(2 * aside + 1) * above * inputs, outputs]``, arranged by group."""
        taps = self.weight[:, :, :-1].permute(3, 2, 1, 0).flatten(0, 2)
        return Matrix(self.groups.arranged(taps, self.maps).contiguous())

    def this_row(self) -> list[Matrix]:
        """For each group weights of the pixels to the left, the farthest first, then of what it
        sees of the pixel
        itself: ``[aside * inputs + inputs seen, maps * outputs of the group]``."""
        left = self.weight[:, :, -1, : self.aside].permute(2, 1, 0).flatten(0, 1)
        return self.groups.products(
            self.weight[:, :, -1, self.aside], self.maps, self.own, before=left
        )

    def offset(self) -> torch.Tensor:
        """The bias, arranged by group."""
        assert self.bias is not None
        return self.groups.arranged(self.bias, self.maps)

    def field(self, field: torch.Tensor) -> torch.Tensor:
        """Which sources reach the groups of a place: ``bool [sources, count, height, width]`` to
        the same."""
        every = field.any(1)
        near = field_along(every, "columns", -self.aside, self.aside)
        before = field_along(near, "rows", -self.above, -1) | field_along(
            every, "columns", -self.aside, -1
        )
        return before[:, None] | self.groups.field_within(field, self.own)

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

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.convolution import field_along
from tessella.nn.masked import Masked, MaskedLinear
from tessella.nn.stepping.program import Matrix, Operand, OperationWriter, Places, Program
from tessella.nn.stepping.step import MemoryAllocator


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
        slices = []
        for start, stop in pairwise(self.bounds(features)):
            slices.append(slice(maps * start, maps * stop))
        return slices

    def owners(self, features: int, maps: int = 1) -> torch.Tensor:
        """The group of each feature of maps side by side: ``int64 [maps * features]``."""
        # Group after group within a map, and the same for every map.
        sizes = torch.tensor(self.bounds(features)).diff()
        # The size is given, so that it need not be read off a tensor without memory.
        groups = torch.arange(self.count).repeat_interleave(sizes, output_size=features)
        return groups.repeat(maps)

    def mask(
        self, inputs: int, outputs: int, maps: int = 1, inclusive: bool = True
    ) -> torch.Tensor:
        """Whether an output may see an input of its pixel: ``bool [maps * outputs, inputs]``; mask
        B, or A where not ``inclusive``."""
        # [maps * outputs, 1] against [inputs]
        output_groups = self.owners(outputs, maps)[:, None]
        input_groups = self.owners(inputs)
        if inclusive:
            return input_groups <= output_groups
        return input_groups < output_groups

    def linear(self, inputs: int, outputs: int, maps: int = 1, bias: bool = True) -> MaskedLinear:
        """A product within a pixel (a 1 x 1 convolution) under mask B."""
        return MaskedLinear(self.mask(inputs, outputs, maps), bias)

    def arranged(self, x: torch.Tensor, maps: int = 1) -> torch.Tensor:
        """``x [..., maps * features]``, its maps side by side, arranged by group."""
        if self.count == 1 or maps == 1:
            return x
        # A stable sort by group keeps the maps of a group in their order.
        order = self.owners(x.shape[-1] // maps, maps).argsort(stable=True)
        return x[..., order.to(x.device)]

    def products(
        self,
        weight: torch.Tensor,
        maps: int = 1,
        inclusive: bool = True,
        before: torch.Tensor | None = None,
    ) -> list[Matrix]:
        """Masked weights ``[maps * outputs, inputs]`` cut for stepping, one part for each group:
        ``[inputs seen, maps * outputs of the group]``.

        A mask leaves to a group the first inputs only, so nothing in a part is masked.

        Args:
            weight, maps, inclusive: what is masked, and how; see :meth:`mask`.
            before: weights ``[n, maps * outputs]`` of inputs that all groups see, which come first.
        """
        outputs, inputs = weight.shape
        bounds = self.bounds(inputs)
        # A group sees the inputs up to this one.
        ends = bounds[1:] if inclusive else bounds[:-1]
        # [shared + inputs, maps * outputs]
        rows = weight.T if before is None else torch.cat([before, weight.T])
        shared = len(rows) - inputs
        arranged = self.arranged(rows, maps)
        parts = []
        for end, columns in zip(ends, self.slices(outputs // maps, maps), strict=True):
            parts.append(Matrix(arranged[: shared + end, columns].contiguous()))
        return parts

    def field_within(self, field: torch.Tensor, inclusive: bool = True) -> torch.Tensor:
        """Which sources reach the groups of a place through its own pixel, by mask B or A.

        Args:
            field: which reach the inputs, ``bool [sources, count, height, width]``.
        """
        # A group sees what reaches its own group or any before it.
        seen = field.cummax(1).values
        if inclusive:
            return seen
        # The first group sees no group, each other one those up to the one before it.
        return torch.cat([torch.zeros_like(seen[:, :1]), seen[:, :-1]], 1)


class ChannelGroupStep:
    """The programs of a step that goes from channel group to channel group.

    A layer is written in two parts: its ``start`` takes memory and appends to :attr:`row`; then the
    model goes through the groups, and through the layers for each.

    Args:
        memory: where layers get the state's memory.
        width: places of a row.
        groups: for each group the program of its work at a ``column``.
    """

    def __init__(
        self, memory: MemoryAllocator, width: int, groups: Sequence[OperationWriter]
    ) -> None:
        self.memory = memory
        self.width = width
        self.groups = list(groups)
        self.row = Program(memory.batch, (), memory.like, places=width)
        """The work at the start of a row, over all its places."""

    def places(self, size: int, left: int = 0, right: int = 0) -> Places:
        """Memory of the state for a row, zero before the walk, with margins of ``left`` and
        ``right`` places."""
        memory = self.memory.zeros(left + self.width + right, size)
        return Places(memory, left, self.width)

    def products(self, parts: Sequence[Matrix]) -> list[Matrix]:
        """The parts of :meth:`ChannelGroups.products`, shared with all copies of the state."""
        return [self.memory.matrix(part) for part in parts]


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
        inclusive: mask B, else mask A.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        inputs: int,
        outputs: int,
        above: int,
        aside: int,
        maps: int = 1,
        inclusive: bool = True,
    ) -> None:
        # Without rows above nothing to the right can be seen, so those taps are left out.
        width = 2 * aside + 1 if above else aside + 1
        initial = nn.Conv2d(inputs, maps * outputs, (above + 1, width))
        # [maps * outputs, inputs, above + 1, width]
        mask = torch.ones(initial.weight.shape, dtype=torch.bool)
        mask[:, :, -1, aside] = groups.mask(inputs, outputs, maps, inclusive)
        mask[:, :, -1, aside + 1 :] = False
        super().__init__(initial.weight, initial.bias, mask)
        self.groups = groups
        self.maps = maps
        self.inclusive = inclusive
        self.above = above
        self.aside = aside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, height, width, inputs]`` to ``[batch, height, width, maps * outputs]``."""
        right = self.aside if self.above else 0
        # F.pad counts from the last dimension: features, columns, rows.
        padded = F.pad(x, (0, 0, self.aside, right, self.above, 0)).movedim(-1, 1)
        return F.conv2d(padded, self.kernel(), self.bias).movedim(1, -1)

    def rows_above(self) -> Matrix:
        """Weights of the columns of the rows above, from the left, of a column the farthest row
        first: ``[(2 * aside + 1) * above * inputs, outputs]``, arranged by group."""
        # [columns, rows, inputs, outputs] before it is flattened.
        taps = self.weight[:, :, :-1].permute(3, 2, 1, 0).flatten(0, 2)
        return Matrix(self.groups.arranged(taps, self.maps).contiguous())

    def this_row(self) -> list[Matrix]:
        """Weights of the pixels to the left, the farthest first, then of what a group sees of the
        pixel itself.

        For each group ``[aside * inputs + inputs seen, maps * outputs of the group]``.
        """
        left = self.weight[:, :, -1, : self.aside].permute(2, 1, 0).flatten(0, 1)
        here = self.weight[:, :, -1, self.aside]
        return self.groups.products(here, self.maps, self.inclusive, before=left)

    def offset(self) -> torch.Tensor:
        """The bias, arranged by group."""
        assert self.bias is not None
        return self.groups.arranged(self.bias, self.maps)

    def field(self, field: torch.Tensor) -> torch.Tensor:
        """Which sources reach the groups of a place: ``bool [sources, count, height, width]`` to
        the same shape."""
        every = field.any(1)
        # Everything above within the kernel's width, whatever its group.
        near = field_along(every, "columns", -self.aside, self.aside)
        above = field_along(near, "rows", -self.above, -1)
        left = field_along(every, "columns", -self.aside, -1)
        return (above | left)[:, None] | self.groups.field_within(field, self.inclusive)

    def start(self, step: ChannelGroupStep, bias: torch.Tensor | None = None) -> SteppedGroups:
        """Take memory for a step, and append what the rows above add to a row.

        Args:
            bias: added to the layer's own, ``[batch, 1, maps * outputs]``, maps side by side.
        """
        # [batch, 1, maps * outputs]: one row of biases for all places.
        own = self.offset().expand(step.memory.batch, 1, -1)
        if bias is not None:
            own = own + self.groups.arranged(bias, self.maps)
        return SteppedGroups(self, step, step.memory.keep(own))


class SteppedGroups:
    """A :class:`GroupedConvolution` on the memory of a step.

    The newest row of :attr:`input` is filled by whoever knows it, group by group;
    :meth:`write_group` then gives the output at the ``column``.

    Args:
        layer: the convolution.
        step: where it is written.
        bias: ``[batch, 1, maps * outputs]``, arranged by group.
    """

    def __init__(
        self, layer: GroupedConvolution, step: ChannelGroupStep, bias: torch.Tensor
    ) -> None:
        inputs = layer.weight.shape[1]
        outputs = layer.weight.shape[0]
        self._layer = layer
        self._ends = layer.groups.bounds(inputs)
        self._slices = layer.groups.slices(outputs // layer.maps, layer.maps)
        # For each group, of the pixels to the left and of the pixel.
        self._here = step.products(layer.this_row())
        self.bias = bias
        self.input = step.places(inputs, layer.aside, layer.aside if layer.above else 0)
        """This row up to the pixel; with one row above, that row from the pixel on."""
        self.sums = step.places(outputs)
        """What bias and rows above add in this row, arranged by group. Of a layer that sees no row
        above, whoever uses it fills it in."""
        if layer.above == 1:
            # Where the row is not known yet, the memory still holds the row above.
            self._write_above(step, self.input)
        elif layer.above > 1:
            self._write_above(step, self._write_history(step, inputs))

    def _write_history(self, step: ChannelGroupStep, inputs: int) -> Places:
        """Rows above, of a place the farthest row first, with the complete row taken in."""
        above = self._layer.above
        history = step.places(above * inputs, self._layer.aside, self._layer.aside)
        rows = history.row.split(inputs, dim=2)
        # The farthest row first, so that none is overwritten before it has moved on.
        for older, newer in pairwise(rows):
            step.row.map(newer, older)
        step.row.map(self.input.row, rows[-1])
        return history

    def _write_above(self, step: ChannelGroupStep, rows: Places) -> None:
        weight = step.memory.matrix(self._layer.rows_above())
        windows = rows.windows(self._layer.aside, self._layer.aside)
        step.row.linear(windows, weight, self.sums.row, add=self.bias)

    def write_group(
        self, program: OperationWriter, group: int, out: Operand, activation: str = ""
    ) -> None:
        """Append the output of a group, ``[batch, maps * outputs of the group]``, at the
        ``column``."""
        layer = self._layer
        known = self._ends[group + 1] if layer.inclusive else self._ends[group]
        inputs = self._ends[-1]
        # The pixels to the left whole, of the pixel itself the inputs that the group may see.
        window = self.input.window("column", left=layer.aside).first(layer.aside * inputs + known)
        above = self.sums.features(self._slices[group]).at("column")
        program.linear(window, self._here[group], out, add=above, activation=activation)

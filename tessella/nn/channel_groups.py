"""Features that are split into one group per channel of a pixel.

Van den Oord et al. 2016, "Pixel Recurrent Neural Networks", sec. 3.4.

The channels of a pixel are generated one after the other. Each layer's features are split into one
group per channel, in the same order. A mask limits what a group sees within its own pixel: under
mask *A* group ``g`` sees only the groups before it, under mask *B* also itself. Every group sees
all groups of earlier pixels. With a single group, mask A hides the whole pixel and mask B hides
nothing.

Groups may differ in size: of ``n`` features, group ``g`` of ``count`` groups has those from
``g n // count`` up to ``(g + 1) n // count``. A layer that makes several maps of ``n`` features at
once (the gates of an LSTM) concatenates them, and each map is split into groups. *Arranged by
group* means reordered so that the first group of every map comes first, then the second, and so on.
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
from tessella.nn.stepping.program import (
    Matrix,
    Operand,
    OperationWriter,
    Places,
    Program,
    Weights,
)
from tessella.nn.stepping.step import MemoryAllocator


@dataclass(frozen=True)
class ChannelGroups:
    """How the features of a layer are split into groups.

    Args:
        count: number of groups, the same in each layer.
    """

    count: int

    def bounds(self, features: int) -> list[int]:
        """Index of each group's first feature, then the end of the last: ``count + 1`` numbers."""
        return [group * features // self.count for group in range(self.count + 1)]

    def slices(self, features: int, maps: int = 1) -> list[slice]:
        """Where each group lies among ``maps * features`` features arranged by group."""
        slices = []
        for start, stop in pairwise(self.bounds(features)):
            slices.append(slice(maps * start, maps * stop))
        return slices

    def group_indices(self, features: int, maps: int = 1) -> torch.Tensor:
        """Group of each feature of concatenated maps: ``int64 [maps * features]``."""
        # Within a map, group follows group; the maps repeat that.
        sizes = torch.tensor(self.bounds(features)).diff()
        # Passing the size lets this run on the meta device, where it cannot be computed.
        groups = torch.arange(self.count).repeat_interleave(sizes, output_size=features)
        return groups.repeat(maps)

    def mask(
        self, inputs: int, outputs: int, maps: int = 1, inclusive: bool = True
    ) -> torch.Tensor:
        """Whether an output may see an input of its own pixel: ``bool [maps * outputs, inputs]``.

        This is mask B if ``inclusive``, else mask A.
        """
        # [maps * outputs, 1] against [inputs]
        output_groups = self.group_indices(outputs, maps)[:, None]
        input_groups = self.group_indices(inputs)
        if inclusive:
            return input_groups <= output_groups
        return input_groups < output_groups

    def linear(self, inputs: int, outputs: int, maps: int = 1, bias: bool = True) -> MaskedLinear:
        """A linear layer within a pixel (a 1 x 1 convolution) under mask B."""
        return MaskedLinear(self.mask(inputs, outputs, maps), bias)

    def arranged(self, x: torch.Tensor, maps: int = 1) -> torch.Tensor:
        """``x [..., maps * features]``, a concatenation of maps, rearranged by group."""
        if self.count == 1 or maps == 1:
            return x
        # A stable sort by group keeps the maps of a group in their order.
        order = self.group_indices(x.shape[-1] // maps, maps).argsort(stable=True)
        return x[..., order.to(x.device)]

    def products(
        self,
        weight: torch.Tensor,
        maps: int = 1,
        inclusive: bool = True,
        before: torch.Tensor | None = None,
    ) -> list[Matrix]:
        """Split masked weights into one dense matrix for each group, for stepping.

        Under a mask a group sees only a leading part of the inputs, so its matrix keeps those rows
        and needs no mask: ``[inputs seen, maps * outputs of the group]``.

        Args:
            weight: ``[maps * outputs, inputs]``.
            maps, inclusive: see :meth:`mask`.
            before: weights ``[n, maps * outputs]`` of further inputs that all groups see; they come
                first in every matrix.
        """
        outputs, inputs = weight.shape
        bounds = self.bounds(inputs)
        # How many inputs each group sees.
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
        """Receptive field of each group through its own pixel, under mask B or A.

        Args:
            field: receptive field of the inputs, ``bool [sources, count, height, width]``.
            inclusive: mask B, else mask A.

        Returns:
            The same shape as ``field``.
        """
        # A group sees what reaches its own group or any before it.
        seen = field.cummax(1).values
        if inclusive:
            return seen
        # Under mask A, shift by one: a group gets what the group before it would get under mask B.
        return torch.cat([torch.zeros_like(seen[:, :1]), seen[:, :-1]], 1)


class ChannelGroupStep:
    """The programs of a step that computes one channel group at a time.

    A layer is written in two parts. First its ``bind`` allocates memory and appends the work on
    whole rows to :attr:`row`. Then the model loops over the groups, and within each group over the
    layers.

    Args:
        memory: allocates the state's memory for the layers.
        width: places in a row.
        groups: one program for each group, with the variable ``column``.
    """

    def __init__(
        self, memory: MemoryAllocator, width: int, groups: Sequence[OperationWriter]
    ) -> None:
        self.memory = memory
        self.width = width
        self.groups = list(groups)
        self.row = Program(memory.batch, (), memory.like, places=width)
        """Work done once at the start of a row, on all its places."""

    def places(self, size: int, left: int = 0, right: int = 0) -> Places:
        """Memory of the state for a row of vectors of length ``size``, initially zero.

        Margins of ``left`` and ``right`` places stay zero.
        """
        memory = self.memory.zeros(left + self.width + right, size)
        return Places(memory, left, self.width)

    def products(self, parts: Sequence[Matrix]) -> list[Weights]:
        """Register the matrices of :meth:`ChannelGroups.products` with the state."""
        return [self.memory.matrix(part) for part in parts]


class GroupedConvolution(Masked):
    """Causal convolution whose view of its own pixel is limited by a channel mask.

    It sees rows above, pixels to the left, and of its own pixel the groups that the mask allows.
    The kernel has no rows below, and its taps to the right in its own row are held at zero.

    Args:
        groups: how features are split.
        inputs: input features.
        outputs: output features of each map.
        above: how many rows above it sees.
        side: how many pixels to the left it sees; in the rows above, as many to the right too.
        maps: number of output maps, concatenated.
        inclusive: mask B, else mask A.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        inputs: int,
        outputs: int,
        above: int,
        side: int,
        maps: int = 1,
        inclusive: bool = True,
    ) -> None:
        # Without rows above nothing to the right can be seen, so those taps are left out.
        width = 2 * side + 1 if above else side + 1
        initial = nn.Conv2d(inputs, maps * outputs, (above + 1, width))
        # [maps * outputs, inputs, above + 1, width]
        mask = torch.ones(initial.weight.shape, dtype=torch.bool)
        mask[:, :, -1, side] = groups.mask(inputs, outputs, maps, inclusive)
        mask[:, :, -1, side + 1 :] = False
        super().__init__(initial.weight, initial.bias, mask)
        self.groups = groups
        self.maps = maps
        self.inclusive = inclusive
        self.above = above
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[batch, height, width, inputs]`` to ``[batch, height, width, maps * outputs]``."""
        right = self.side if self.above else 0
        # F.pad counts from the last dimension: features, columns, rows.
        padded = F.pad(x, (0, 0, self.side, right, self.above, 0)).movedim(-1, 1)
        return F.conv2d(padded, self.kernel(), self.bias).movedim(1, -1)

    def rows_above(self) -> Matrix:
        """Weights of the rows above, arranged by group.

        ``[(2 * side + 1) * above * inputs, maps * outputs]``: columns from left to right, and in a
        column the topmost row first.
        """
        # [columns, rows, inputs, outputs] before it is flattened.
        taps = self.weight[:, :, :-1].permute(3, 2, 1, 0).flatten(0, 2)
        return Matrix(self.groups.arranged(taps, self.maps).contiguous())

    def this_row(self) -> list[Matrix]:
        """Weights of the pixels to the left and of the visible part of the pixel itself.

        For each group ``[side * inputs + inputs seen, maps * outputs of the group]``, the leftmost
        pixel first.
        """
        left = self.weight[:, :, -1, : self.side].permute(2, 1, 0).flatten(0, 1)
        here = self.weight[:, :, -1, self.side]
        return self.groups.products(here, self.maps, self.inclusive, before=left)

    def offset(self) -> torch.Tensor:
        """The bias ``[maps * outputs]``, arranged by group."""
        assert self.bias is not None
        return self.groups.arranged(self.bias, self.maps)

    def field(self, field: torch.Tensor) -> torch.Tensor:
        """Receptive field of the outputs, given that of the inputs.

        Both are ``bool [sources, count, height, width]``.
        """
        # All groups of other pixels are visible; only within the pixel do groups matter.
        every = field.any(1)
        near = field_along(every, "columns", -self.side, self.side)
        above = field_along(near, "rows", -self.above, -1)
        left = field_along(every, "columns", -self.side, -1)
        return (above | left)[:, None] | self.groups.field_within(field, self.inclusive)

    def bind(self, step: ChannelGroupStep, bias: torch.Tensor | None = None) -> SteppedGroups:
        """Allocate memory for a step, and append the contribution of the rows above.

        Args:
            step: the step to write to.
            bias: added to the layer's own bias, ``[batch, 1, maps * outputs]``, maps concatenated.
        """
        # [batch, 1, maps * outputs]: the same bias for all places.
        combined = self.offset().expand(step.memory.batch, 1, -1)
        if bias is not None:
            combined = combined + self.groups.arranged(bias, self.maps)
        return SteppedGroups(self, step, step.memory.keep(combined))


class SteppedGroups:
    """A :class:`GroupedConvolution` bound to the memory of a step.

    The caller fills :attr:`input` group by group; :meth:`write_group` then computes the output at
    the current ``column``.

    Args:
        layer: the convolution.
        step: the step to write to.
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
        # One matrix for each group: the pixels to the left, then the pixel itself.
        self._here = step.products(layer.this_row())
        self.bias = bias
        self.input = step.places(inputs, layer.side, layer.side if layer.above else 0)
        """Input features of this row up to the current pixel, ``[batch, width, inputs]``.

        From the current pixel on, it still holds the features of the row above.
        """
        self.sums = step.places(outputs)
        """Bias plus contribution of the rows above, for each place of this row, by group.

        If the convolution sees no rows above, the caller fills this in.
        """
        if layer.above == 1:
            # At the start of a row, the memory still holds the whole row above.
            self._write_above(step, self.input)
        elif layer.above > 1:
            self._write_above(step, self._write_history(step, inputs))

    def _write_history(self, step: ChannelGroupStep, inputs: int) -> Places:
        """Append the update of the rows above, and return them: the topmost row first."""
        above = self._layer.above
        history = step.places(above * inputs, self._layer.side, self._layer.side)
        rows = history.row.split(inputs, dim=2)
        # The topmost row moves first, so that no row is overwritten before it has moved.
        for older, newer in pairwise(rows):
            step.row.map(newer, older)
        step.row.map(self.input.row, rows[-1])
        return history

    def _write_above(self, step: ChannelGroupStep, rows: Places) -> None:
        weight = step.memory.matrix(self._layer.rows_above())
        windows = rows.windows(self._layer.side, self._layer.side)
        step.row.linear(windows, weight, self.sums.row, add=self.bias)

    def write_group(
        self, program: OperationWriter, group: int, out: Operand, activation: str = ""
    ) -> None:
        """Append the output of one group at the current ``column``.

        ``out`` is ``[batch, maps * outputs of the group]``.
        """
        layer = self._layer
        known = self._ends[group + 1] if layer.inclusive else self._ends[group]
        inputs = self._ends[-1]
        # All features of the pixels to the left, then the visible ones of the pixel itself.
        window = self.input.window("column", left=layer.side).first(layer.side * inputs + known)
        above = self.sums.features(self._slices[group]).at("column")
        program.linear(window, self._here[group], out, add=above, activation=activation)

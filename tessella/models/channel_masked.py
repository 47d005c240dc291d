"""The common part of the three families of van den Oord et al. 2016, "Pixel Recurrent Neural
Networks" (Table 1).

Symbols are embedded, a 7 x 7 convolution under mask A makes ``2 * hidden`` features a pixel,
residual layers under mask B follow, then twice ReLU and a 1 x 1 convolution under mask B, and the
output. With a factored head the features of every layer are split into a group for each channel
(sec. 3.4, ``tessella.nn.channel_groups``) and the parameters of channel ``c`` are made from group
``c``. A joint head orders the channels itself: there is one group then, which sees nothing of the
pixel it predicts.

The paper feeds scaled intensities; here a level's vector is a free one plus a direction times the
level, which serves codes as well. As in the paper, only the margins of the convolutions let a pixel
know where it is.

A step computes one group of features in every layer: the groups before it at the pixel are known
and do not change. The contribution of the rows above to a layer is computed once a row, for all its
pixels by one product; that of the pixels to the left and of the groups before, by one product in
the group's turn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head, JointHead
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.density_model import DensityModel, symbol_field
from tessella.nn.channel_groups import (
    ChannelGroups,
    ChannelGroupStep,
    GroupedConvolution,
    SteppedGroups,
)
from tessella.nn.condition_embedding import ClassEmbedding
from tessella.nn.convolution import channels_last
from tessella.nn.embedding import ChannelEmbedding
from tessella.nn.stepping.program import (
    Operand,
    OperationWriter,
    Places,
    Program,
    SeveralPrograms,
)
from tessella.nn.stepping.state import State
from tessella.nn.stepping.step import MemoryAllocator, StateMemory

FIRST_REACH = 3
"""How far the first layer's 7 x 7 convolution sees."""

EMBEDDING_WIDTH = 16
"""Length of the vector of a symbol."""


class SteppedLayer(ABC):
    """A layer on the memory of a step."""

    @abstractmethod
    def group_input(self, group: int) -> Operand:
        """Where the layer takes a group of its input at the ``column``, ``[batch, features]``."""

    @abstractmethod
    def write_group(
        self, program: OperationWriter, group: int, out: Operand, activation: str
    ) -> None:
        """Append the layer's work on a group at the ``column``; its output goes to ``out``."""


class ChannelMaskedLayer(nn.Module, ABC):
    """A residual layer with channel groups, from ``2 * hidden`` features to as many."""

    biases: int
    """How many numbers of the layer a class adds to."""

    @abstractmethod
    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``[batch, height, width, 2 * hidden]`` to the same shape; ``bias [batch, 1, 1, biases]``
        is what the class adds."""

    @abstractmethod
    def start(self, step: ChannelGroupStep, bias: torch.Tensor | None) -> SteppedLayer:
        """Take memory for a step, and append the work once a row to ``step.row``.

        Args:
            step: where the layer is written.
            bias: what the class adds, ``[batch, 1, biases]``.
        """

    @abstractmethod
    def field(self, field: torch.Tensor) -> torch.Tensor:
        """Which sources reach the layer's features, given those that reach its input: both
        ``bool [sources, groups, height, width]``."""


class GroupedOutput(nn.Module):
    """Twice ReLU and a 1 x 1 convolution under mask B, then the parameters of each channel from its
    group.

    Args:
        groups: how features are split.
        inputs: features that come in.
        hidden: features of the two layers.
        head: whose parameters are made.
    """

    def __init__(self, groups: ChannelGroups, inputs: int, hidden: int, head: Head) -> None:
        super().__init__()
        self.groups = groups
        self.joint = head.joint
        self.slices = groups.slices(hidden)
        self.one = groups.linear(inputs, hidden)
        self.two = groups.linear(hidden, hidden)
        self.last = nn.ModuleList()
        for part in self.slices:
            linear = nn.Linear(part.stop - part.start, head.size)
            linear.bias.data.copy_(head.bias())
            self.last.append(linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., inputs]`` to ``[..., channels, size]``, or ``[..., size]`` of a joint head."""
        x = F.relu(self.two(F.relu(self.one(F.relu(x)))))
        parameters = []
        # Parameters of channel c come from group c alone.
        for linear, part in zip(self.last, self.slices, strict=True):
            parameters.append(linear(x[..., part]))
        return parameters[0] if self.joint else torch.stack(parameters, dim=-2)

    def start(self, step: ChannelGroupStep) -> SteppedGroupedOutput:
        """Take memory for a step."""
        return SteppedGroupedOutput(self, step)


class SteppedGroupedOutput:
    """A :class:`GroupedOutput` on the memory of a step.

    Args:
        layer: the output.
        step: where it is written.
    """

    def __init__(self, layer: GroupedOutput, step: ChannelGroupStep) -> None:
        self._layer = layer
        inputs = layer.one.weight.shape[1]
        self._input_slices = layer.groups.slices(inputs)
        self._one = step.products(layer.groups.products(layer.one.weight))
        self._two = step.products(layer.groups.products(layer.two.weight))
        self._inputs = step.memory.zeros(inputs)  # after the ReLU
        self._middle = step.memory.zeros(layer.one.weight.shape[0])  # after the first and the ReLU
        # Weights and bias of each group's parameters.
        self._last = []
        for linear in layer.last:
            assert isinstance(linear, nn.Linear)
            self._last.append((step.memory.matrix(linear.weight.T), linear.bias.detach()))

    def group_input(self, group: int) -> Operand:
        """Where a group of features goes, after a ReLU."""
        return self._inputs[:, self._input_slices[group]]

    def write_group(self, program: OperationWriter, group: int, out: torch.Tensor) -> None:
        """Append the way from a group's features to its parameters, ``[batch, size]``."""
        layer = self._layer
        part = layer.slices[group]
        assert layer.one.bias is not None
        assert layer.two.bias is not None
        # A group sees the groups before it and itself, which lie first.
        known_inputs = self._inputs[:, : self._input_slices[group].stop]
        first_bias = layer.one.bias[part].detach()
        middle = self._middle[:, part]
        program.linear(known_inputs, self._one[group], middle, add=first_bias, activation="relu")
        known = self._middle[:, : part.stop]
        second_bias = layer.two.bias[part].detach()
        features = program.zeros(part.stop - part.start)
        program.linear(known, self._two[group], features, add=second_bias, activation="relu")
        weight, bias = self._last[group]
        program.linear(features, weight, out, add=bias)


@dataclass
class GroupPrograms:
    """The programs of a state, and the memory that they share with its model."""

    known: Program
    """Takes in the symbols of a pixel that no later group of it will see, at a ``column``."""
    between_rows: Callable[[], None] | None
    """Work on a row that has become complete, before the next one begins."""
    row: Program
    """The contribution of the rows above to a row, in all layers."""
    first: Program
    """The first group of a row's first pixel."""
    groups: list[Program]
    """Each group at a ``column``, after what has become known since the group before."""
    symbols: list[torch.Tensor]
    """The symbol of each channel that has become known last: ``int64 [batch]``."""
    pixels: Places
    """Embedded pixels of this row, zeros for what is not known: ``[batch, width, features]``."""


@dataclass
class ChannelMaskedState(State):
    """Caches of the walk."""

    derived: ClassVar[frozenset[str]] = frozenset({"programs"})

    parameters: torch.Tensor
    """Of the group that came last: ``[batch, size]``."""
    labels: torch.Tensor | None
    """Classes of the images: ``int64 [batch]``."""
    memory: StateMemory = field(default_factory=StateMemory)
    joint: State | None = None
    """How far a joint head is within the pixel."""
    programs: GroupPrograms | None = None


class ChannelMasked(DensityModel):
    """Base of the models with channel groups; a family gives the layers.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: residual layers.
        hidden: features within a layer (``h``); there are twice as many between layers.
        last: features of the two last layers.
        dropout: share of the features dropped in training at the end of each layer.

    Raises:
        ConfigError: for sizes that make no network.
    """

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        layers: int = 3,
        hidden: int = 32,
        last: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(grid, head, conditioning)
        self.groups = ChannelGroups(1 if head.joint else grid.channels)
        least = self.groups.count
        if layers < 1 or hidden < least or last < least or not 0 <= dropout < 1:
            raise ConfigError(
                f"{self.name} needs layers >= 1, hidden and last >= {least} (a feature for each "
                f"channel) and 0 <= dropout < 1, got layers={layers}, hidden={hidden}, "
                f"last={last}, dropout={dropout}"
            )
        self.hidden = hidden
        self.last = last
        self.dropout = dropout
        self.embedding = ChannelEmbedding(grid, EMBEDDING_WIDTH)
        self.first = GroupedConvolution(
            self.groups,
            grid.channels * EMBEDDING_WIDTH,
            2 * hidden,
            above=FIRST_REACH,
            side=FIRST_REACH,
            inclusive=False,
        )
        # A class adds to every layer; one table holds the numbers of all of them.
        created = self.create_layers(layers)
        self.layers = nn.ModuleList(created)
        biases = layers * created[0].biases
        self.class_bias = ClassEmbedding(self.classes, biases) if self.classes else None
        self.output = GroupedOutput(self.groups, 2 * hidden, last, head)
        channels_last(self)

    @abstractmethod
    def create_layers(self, count: int) -> Sequence[ChannelMaskedLayer]:
        """The layers between the first one and the output."""

    def write_between_rows(
        self, step: ChannelGroupStep, layers: Sequence[SteppedLayer]
    ) -> Callable[[], None] | None:
        """Work of the layers on a row that has become complete; most have none."""
        return None

    def channel_layers(self) -> list[ChannelMaskedLayer]:
        """The layers, in order."""
        return [layer for layer in self.layers if isinstance(layer, ChannelMaskedLayer)]

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        features = self.first(self.embedding(x))
        biases = self._class_biases(condition.labels)
        for layer, bias in zip(self.channel_layers(), biases, strict=True):
            pixel_bias = None if bias is None else bias[:, None]
            features = self.recomputed(layer, features, pixel_bias)
        parameters: torch.Tensor = self.output(features)
        return parameters

    def _class_biases(self, labels: torch.Tensor | None) -> Iterable[torch.Tensor | None]:
        """What the class adds to each layer: ``[batch, 1, biases]``, or None."""
        if labels is None:
            return [None] * len(self.layers)
        assert self.class_bias is not None
        biases: torch.Tensor = self.class_bias(labels)
        return biases.unflatten(-1, (len(self.layers), 1, -1)).unbind(1)

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> ChannelMaskedState:
        condition = self.condition(cond, batch)
        parameters = self.first.weight.new_zeros(batch, self.head.size)
        state = ChannelMaskedState(parameters, condition.labels)
        state.programs = self._write(state)
        return state

    @torch.no_grad()
    def step(
        self, previous: torch.Tensor, index: int, state: State
    ) -> tuple[torch.Tensor, ChannelMaskedState]:
        assert isinstance(state, ChannelMaskedState)
        if state.programs is None:  # of a copy
            state.programs = self._write(state)
        programs = state.programs
        row, column, channel = self.grid.place(index)
        if index:
            programs.symbols[channel - 1].copy_(previous)
        if column == 0 and channel == 0:
            self._start_row(row, programs)
            programs.first.run(0)
        # With a joint head there is one group, and nothing to compute for later channels.
        elif channel < self.groups.count:
            programs.groups[channel].run(column)
        if not isinstance(self.head, JointHead):
            return state.parameters.clone(), state
        # The joint head keeps what it is given, and the next pixel overwrites it.
        if channel == 0:
            state.joint = self.head.start(state.parameters.clone())
        assert state.joint is not None
        before = previous if channel else None
        parameters, state.joint = self.head.next(before, channel, state.joint)
        return parameters, state

    def _start_row(self, row: int, programs: GroupPrograms) -> None:
        # The last pixel of the row above is taken in before its row is used.
        if row:
            programs.known.run(self.grid.width - 1)
            if programs.between_rows is not None:
                programs.between_rows()
        programs.row.run()
        # Symbols are added to the embedded pixels, so those of the row above must be gone.
        programs.pixels.row.zero_()

    def _write(self, state: ChannelMaskedState) -> GroupPrograms:
        """Write the programs of a state, which has or gets the memory."""
        like = state.parameters
        memory = MemoryAllocator(state.memory, len(like), like)
        known = Program(len(like), ("column",), like)
        first = Program(len(like), ("column",), like)
        groups = []
        for _ in range(self.groups.count):
            groups.append(Program(len(like), ("column",), like))
        symbols = []
        for _ in range(self.grid.channels):
            symbols.append(memory.zeros(dtype=torch.int64))
        # Group 0 is computed by two programs: at a row's first pixel nothing to the left is new.
        writers: list[OperationWriter] = [SeveralPrograms([first, groups[0]]), *groups[1:]]
        step = ChannelGroupStep(memory, self.grid.width, writers)
        # All layers take memory and write their work on a whole row, then the groups in turn.
        entry = self.first.start(step)
        self._write_lookups(known, groups, symbols, entry.input)
        layers = []
        for layer, bias in zip(
            self.channel_layers(), self._class_biases(state.labels), strict=True
        ):
            layers.append(layer.start(step, bias))
        output = self.output.start(step)
        for group, program in enumerate(step.groups):
            self._write_group(program, group, entry, layers, output)
            output.write_group(program, group, state.parameters)
        between_rows = self.write_between_rows(step, layers)
        return GroupPrograms(known, between_rows, step.row, first, groups, symbols, entry.input)

    def _write_lookups(
        self,
        known: Program,
        groups: Sequence[Program],
        symbols: Sequence[torch.Tensor],
        pixels: Places,
    ) -> None:
        """Append the symbols that have become known, each where a group sees it first."""
        table = self.embedding.table().detach()
        # The place before the column: the pixel to the left.
        to_the_left = replace(pixels, margin=pixels.margin - 1)
        for channel, symbol in enumerate(symbols):
            part = slice(channel * EMBEDDING_WIDTH, (channel + 1) * EMBEDDING_WIDTH)
            # The last channel is seen by no group of its pixel; with a joint head no channel is.
            if channel < len(groups) - 1:
                # Seen by the next group of the same pixel.
                here = pixels.features(part).at("column")
                groups[channel + 1].lookup(symbol, table[channel], here)
            else:
                here = pixels.features(part).at("column")
                known.lookup(symbol, table[channel], here)
                left = to_the_left.features(part).at("column")
                groups[0].lookup(symbol, table[channel], left)

    def _write_group(
        self,
        program: OperationWriter,
        group: int,
        entry: SteppedGroups,
        layers: Sequence[SteppedLayer],
        output: SteppedGroupedOutput,
    ) -> None:
        """Append the way of a group from the symbols known to the output."""
        entry.write_group(program, group, layers[0].group_input(group))
        for layer, following in pairwise(layers):
            layer.write_group(program, group, following.group_input(group), "")
        # The output begins with a ReLU, which the last layer applies on the way.
        layers[-1].write_group(program, group, output.group_input(group), "relu")

    def sizes(self) -> dict[str, object]:
        return {
            "layers": len(self.layers),
            "hidden": self.hidden,
            "last": self.last,
            "dropout": self.dropout,
        }

    def receptive_field(self) -> torch.Tensor:
        grid = self.grid
        # [sources, channels, height, width], of groups once the first layer has merged them.
        sources = torch.eye(grid.symbols, dtype=torch.bool).view(-1, *grid.shape).movedim(-1, 1)
        if self.groups.count != grid.channels:
            sources = sources.any(1, keepdim=True)
        field = self.first.field(sources)
        for layer in self.channel_layers():
            field = layer.field(field)
        # The output sees, within a pixel, the groups up to each one: [symbols or pixels, sources].
        field = self.groups.field_within(field).movedim(1, -1).flatten(1).T
        if not self.head.joint:
            return field
        pixels = field.unflatten(1, (grid.pixels, grid.channels)).any(-1)
        return symbol_field(grid, pixels, inside=True)

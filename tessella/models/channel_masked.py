"""What the three families of van den Oord et al. 2016, "Pixel Recurrent Neural Networks", have in
common (Table 1).

Symbols are embedded, a 7 x 7 convolution under mask A makes ``2 * hidden`` features a pixel,
residual layers under mask B follow, then twice ReLU and a 1 x 1 convolution under mask B, and the
output. With a factored head the features of every layer are split into a group for each channel
(sec. 3.4, ``tessella.nn.channel_groups``) and the parameters of channel ``c`` are made of group
``c``. A joint head orders the channels itself: there is one group then, which sees nothing of its
own pixel.

The paper feeds scaled intensities; here a level's vector is a free one plus a direction times the
level, which serves codes as well. As in the paper, the margins of the convolutions alone tell a
pixel where it is.

A step computes one group of features in every layer: the groups before it at the pixel are known
and do not change. What the rows above add to a layer is computed once a row, for all its pixels by
one product; what the pixels to the left and the groups before add, by one product in the group's
turn. All of it is written once for a state, as programs on the state's memory
(``tessella.nn.stepping.program``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head, JointHead
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.density_model import DensityModel, symbol_field
from tessella.nn.channel_groups import ChannelGroups, GroupedConvolution
from tessella.nn.condition_embedding import ClassEmbedding
from tessella.nn.convolution import channels_last
from tessella.nn.embedding import ChannelEmbedding
from tessella.nn.stepping.program import Matrix, Operand, Program, along, windows
from tessella.nn.stepping.state import State

FIRST_REACH = 3
"""How far the first layer's 7 x 7 convolution sees."""

EMBEDDED = 16
"""Length of the vector of a symbol."""


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
        self.groups, self.joint = groups, head.joint
        self.slices = groups.slices(hidden)
        self.one = groups.linear(inputs, hidden)
        self.two = groups.linear(hidden, hidden)
        self.last = nn.ModuleList(
            nn.Linear(place.stop - place.start, head.size) for place in self.slices
        )
        for linear in self.last:
            assert isinstance(linear, nn.Linear)
            linear.bias.data.copy_(head.bias())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., inputs]`` to ``[..., channels, size]``, or ``[..., size]`` of a joint head."""
        x = F.relu(self.two(F.relu(self.one(F.relu(x)))))
        parts = [
            linear(x[..., place]) for linear, place in zip(self.last, self.slices, strict=True)
        ]
        return parts[0] if self.joint else torch.stack(parts, dim=-2)


@dataclass
class Weights:
    """Weights of the first layer and of the output laid out for stepping; lists are by group."""

    table: torch.Tensor
    """Vectors of every channel and level: ``[channels, levels, EMBEDDED]``."""
    above: Matrix
    offset: torch.Tensor
    this_row: list[Matrix]
    one: list[Matrix]
    two: list[Matrix]
    last: list[Matrix]
    biases: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    """Of the output's three products."""


@dataclass
class Programs:
    """The programs of a state."""

    known: Program
    """Takes in the symbols of a pixel that no later group of it will see, at a ``column``."""
    row: Program
    """What the rows above add to a row, for all layers."""
    first: Program
    """The first group of a row's first pixel."""
    groups: list[Program]
    """Each group at a ``column``, after what has become known since the group before."""


@dataclass
class ChannelMaskedState(State):
    """Caches of the walk."""

    shared: ClassVar[frozenset[str]] = frozenset({"weights"})
    derived: ClassVar[frozenset[str]] = frozenset({"programs"})

    weights: Weights
    symbols: list[torch.Tensor]
    """The symbol of each channel that has become known last: ``int64 [batch]``."""
    rows: torch.Tensor
    """Embedded pixels of the rows above still seen, the farthest first, with margins of zeros:
    ``[batch, width + 6, 3 * features]``."""
    pixels: torch.Tensor
    """Embedded pixels of this row, zeros for what is not known, with a margin at the left:
    ``[batch, 3 + width, features]``."""
    above: torch.Tensor
    """What rows above and bias give the first layer in this row: ``[batch, width, 2 * hidden]``."""
    layers: Any
    """The state of the layers."""
    inputs: torch.Tensor
    """What the output sees of the pixel, after the ReLU: ``[batch, 2 * hidden]``."""
    middle: torch.Tensor
    """After its first product and the ReLU: ``[batch, last]``."""
    parameters: torch.Tensor
    """Of the group that came last: ``[batch, size]``."""
    joint: Any = None
    """How far a joint head is within the pixel."""
    programs: Programs | None = None


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
        layers: int,
        hidden: int,
        last: int,
        dropout: float,
    ) -> None:
        super().__init__(grid, head, conditioning)
        self.groups = ChannelGroups(1 if head.joint else grid.channels)
        least = self.groups.count
        if layers < 1 or hidden < least or last < least or not 0 <= dropout < 1:
            raise ConfigError(
                f"{self.name} needs layers >= 1, hidden and last >= {least} (a feature for each channel) and "
                f"0 <= dropout < 1, got layers={layers}, hidden={hidden}, last={last}, dropout={dropout}"
            )
        self.hidden, self.last, self.dropout = hidden, last, dropout
        self.wide = self.groups.slices(2 * hidden)
        self.embedding = ChannelEmbedding(grid, EMBEDDED)
        embedded = grid.channels * EMBEDDED
        self.first = GroupedConvolution(
            self.groups, embedded, 2 * hidden, FIRST_REACH, FIRST_REACH, inclusive=False
        )
        self.layers = nn.ModuleList(self.create_layers(layers))
        self.class_bias = (
            ClassEmbedding(self.classes, layers * self.biases) if self.classes else None
        )
        self.output = GroupedOutput(self.groups, 2 * hidden, last, head)
        channels_last(self)

    @property
    @abstractmethod
    def biases(self) -> int:
        """How many numbers of a layer a class adds to."""

    @abstractmethod
    def create_layers(self, count: int) -> list[nn.Module]:
        """The layers. Each goes from ``[batch, height, width, 2 * hidden]`` and what the class
        adds, ``[batch, 1, 1, biases]`` or None, to the features of the next."""

    @abstractmethod
    def init_layers(self, batch: int, class_bias: torch.Tensor | None) -> State:
        """The state of the layers. ``class_bias`` is ``[layers, batch, 1, biases]``."""

    @abstractmethod
    def write_row(self, program: Program, layers: Any) -> None:
        """Append the work of the layers once a row to a program over its pixels."""

    @abstractmethod
    def entering(self, group: int, layers: Any) -> Operand:
        """Where the layers take a group of the first layer's features at the ``column``."""

    @abstractmethod
    def write_layers(self, program: Program, group: int, out: torch.Tensor, layers: Any) -> None:
        """Append the layers' work on a group at the ``column``, of whose features the ReLU goes to
        ``out``."""

    def start_row(self, row: int, layers: Any) -> None:
        """Work of the layers once a row before :meth:`write_row`'s: of most none."""

    @abstractmethod
    def layer_field(self, field: torch.Tensor) -> torch.Tensor:
        """Which sources reach a layer's features, of those that reach its input:
        ``bool [sources, groups, height, width]``."""

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        features = self.first(self.embedding(x))
        biases = self._class_biases(condition)
        for i, layer in enumerate(self.layers):
            features = self.recomputed(
                layer, features, None if biases is None else biases[i, :, None]
            )
        parameters: torch.Tensor = self.output(features)
        return parameters

    def _class_biases(self, condition: Condition) -> torch.Tensor | None:
        """What the class adds to each layer: ``[layers, batch, 1, biases]``."""
        if condition.labels is None:
            return None
        assert self.class_bias is not None
        biases: torch.Tensor = self.class_bias(condition.labels)
        return biases.unflatten(-1, (len(self.layers), 1, -1)).movedim(1, 0)

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> ChannelMaskedState:
        condition = self.condition(cond, batch)
        make, grid = self.first.weight.new_zeros, self.grid
        embedded = grid.channels * EMBEDDED
        return ChannelMaskedState(
            weights=self._end_weights(),
            symbols=[make(batch, dtype=torch.int64) for _ in range(grid.channels)],
            rows=make(batch, grid.width + 2 * FIRST_REACH, FIRST_REACH * embedded),
            pixels=make(batch, FIRST_REACH + grid.width, embedded),
            above=make(batch, grid.width, 2 * self.hidden),
            layers=self.init_layers(batch, self._class_biases(condition)),
            inputs=make(batch, 2 * self.hidden),
            middle=make(batch, self.last),
            parameters=make(batch, self.head.size),
        )

    def _end_weights(self) -> Weights:
        groups, first, output = self.groups, self.first, self.output
        assert output.one.bias is not None
        assert output.two.bias is not None
        last = [linear for linear in output.last if isinstance(linear, nn.Linear)]
        return Weights(
            table=self.embedding.table(),
            above=first.rows_above(),
            offset=first.offset().detach(),
            this_row=first.this_row(),
            one=groups.products(output.one.weight),
            two=groups.products(output.two.weight),
            last=[Matrix(linear.weight.T) for linear in last],
            biases=[
                (
                    output.one.bias[place].detach(),
                    output.two.bias[place].detach(),
                    linear.bias.detach(),
                )
                for place, linear in zip(output.slices, last, strict=True)
            ],
        )

    @torch.no_grad()
    def step(
        self, previous: torch.Tensor, index: int, state: ChannelMaskedState
    ) -> tuple[torch.Tensor, ChannelMaskedState]:
        if state.programs is None:
            state.programs = self._write(state)
        row, column, channel = self.grid.place(index)
        if index:
            state.symbols[channel - 1].copy_(previous)
        if column == 0 and channel == 0:
            self._start_row(row, state, state.programs)
            state.programs.first.run(0)
        elif channel < self.groups.count:
            state.programs.groups[channel].run(column)
        if not isinstance(self.head, JointHead):
            return state.parameters.clone(), state
        if channel == 0:
            state.joint = self.head.start(state.parameters.clone())
        parameters, state.joint = self.head.next(
            previous if channel else None, channel, state.joint
        )
        return parameters, state

    def _start_row(self, row: int, state: ChannelMaskedState, programs: Programs) -> None:
        if row:
            programs.known.run(self.grid.width - 1)
        self.start_row(row, state.layers)
        programs.row.run()
        state.pixels.zero_()

    def _write(self, state: ChannelMaskedState) -> Programs:
        """The programs of a state."""
        channels, count, batch = self.grid.channels, self.groups.count, len(state.pixels)
        known, first, *groups = (Program(batch, ("column",), state.above) for _ in range(2 + count))
        unseen = range(count - 1, channels)
        self._write_lookups(known, unseen, FIRST_REACH, state)
        self._write_lookups(groups[0], unseen, FIRST_REACH - 1, state)
        self._write_group(first, 0, state)
        for group, program in enumerate(groups):
            if group:
                self._write_lookups(program, [group - 1], FIRST_REACH, state)
            self._write_group(program, group, state)
        return Programs(known, self._write_row(state), first, groups)

    def _write_lookups(
        self, program: Program, channels: Iterable[int], first: int, state: ChannelMaskedState
    ) -> None:
        """The symbols of ``channels`` at the place ``first + column`` of the row."""
        for channel in channels:
            own = state.pixels[:, :, channel * EMBEDDED : (channel + 1) * EMBEDDED]
            program.lookup(
                state.symbols[channel], state.weights.table[channel], along(own, "column", first)
            )

    def _write_row(self, state: ChannelMaskedState) -> Program:
        """One row down: what was this row is the one above."""
        width, embedded, weights = self.grid.width, state.pixels.shape[2], state.weights
        program = Program(len(state.pixels), (), state.above, places=width)
        *older, newest = state.rows[:, FIRST_REACH : FIRST_REACH + width].split(embedded, dim=2)
        for row, below in zip(older, [*older[1:], newest], strict=True):
            program.map(below, row)
        program.map(state.pixels[:, FIRST_REACH:], newest)
        program.linear(
            windows(state.rows, 2 * FIRST_REACH + 1),
            weights.above,
            state.above,
            plus=weights.offset,
        )
        self.write_row(program, state.layers)
        return program

    def _write_group(self, program: Program, group: int, state: ChannelMaskedState) -> None:
        """From the symbols known to the parameters that a group gives."""
        weights, wide, place = state.weights, self.wide[group], self.output.slices[group]
        seen = FIRST_REACH * state.pixels.shape[2] + group * EMBEDDED
        pixels = along(state.pixels, "column", count=FIRST_REACH + 1).upto(seen)
        above = along(state.above[:, :, wide], "column")
        program.linear(
            pixels, weights.this_row[group], self.entering(group, state.layers), plus=above
        )
        self.write_layers(program, group, state.inputs[:, wide], state.layers)
        one, two, last = weights.biases[group]
        middle, active = state.middle[:, place], program.room(place.stop - place.start)
        program.linear(
            state.inputs[:, : wide.stop], weights.one[group], middle, plus=one, then="relu"
        )
        program.linear(
            state.middle[:, : place.stop], weights.two[group], active, plus=two, then="relu"
        )
        program.linear(active, weights.last[group], state.parameters, plus=last)

    def sizes(self) -> dict[str, Any]:
        return {
            "layers": len(self.layers),
            "hidden": self.hidden,
            "last": self.last,
            "dropout": self.dropout,
        }

    def receptive_field(self) -> torch.Tensor:
        grid, count = self.grid, self.groups.count
        sources = torch.eye(grid.symbols, dtype=torch.bool).view(-1, *grid.shape).movedim(-1, 1)
        field = self.first.field(
            sources if count == grid.channels else sources.any(1, keepdim=True)
        )
        for _ in self.layers:
            field = self.layer_field(field)
        field = self.groups.field_within(field).movedim(1, -1).flatten(1).T
        if not self.head.joint:
            return field
        pixels = field.unflatten(1, (grid.pixels, grid.channels)).any(-1)
        return symbol_field(grid, pixels, inside=True)

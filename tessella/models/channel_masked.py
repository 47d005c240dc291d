"""What the three families of van den Oord et al. 2016, "Pixel Recurrent Neural Networks", have in common (Table 1).

Symbols are embedded, a 7 x 7 convolution under mask A makes ``2 * hidden`` features a pixel, residual layers under mask
B follow, then twice ReLU and a 1 x 1 convolution under mask B, and the output. With a factored head the features of
every layer are split into a group for each channel (sec. 3.4, ``tessella.nn.channel_groups``) and the parameters of
channel ``c`` are made of group ``c``. A joint head orders the channels itself: there is one group then, which sees
nothing of its own pixel.

The paper feeds scaled intensities; here a level's vector is a free one plus a direction times the level, which serves
codes as well. As in the paper, the margins of the convolutions alone tell a pixel where it is.

A step computes one group of features in every layer: the groups before it at the pixel are known and do not change.
What the rows above add to a layer is computed once a row, for all layers and pixels by one product; what the pixels to
the left add, once a pixel, for all layers.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head, JointHead
from tessella.models.base import DensityModel, symbol_field
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.nn.channel_groups import ChannelGroups, GroupedConvolution, windows
from tessella.nn.condition import ClassEmbedding
from tessella.nn.convolution import channels_last
from tessella.nn.embedding import ChannelEmbedding
from tessella.nn.state import State

FIRST_REACH = 3
"""How far the first layer's 7 x 7 convolution sees."""

EMBEDDED = 16
"""Length of the vector of a symbol."""


class GroupedOutput(nn.Module):
    """Twice ReLU and a 1 x 1 convolution under mask B, then the parameters of each channel from its group.

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
        self.last = nn.ModuleList(nn.Linear(place.stop - place.start, head.size) for place in self.slices)
        for linear in self.last:
            assert isinstance(linear, nn.Linear)
            linear.bias.data.copy_(head.bias())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., inputs]`` to ``[..., channels, size]``, or ``[..., size]`` of a joint head."""
        x = F.relu(self.two(F.relu(self.one(F.relu(x)))))
        parts = [linear(x[..., place]) for linear, place in zip(self.last, self.slices, strict=True)]
        return parts[0] if self.joint else torch.stack(parts, dim=-2)


@dataclass
class OutputWeights:
    """The output's weights laid out for stepping, lists by group."""

    one: list[torch.Tensor]
    two: list[torch.Tensor]
    biases: list[tuple[torch.Tensor, torch.Tensor]]


@dataclass
class OutputState(State):
    """What the groups of a pixel still to come will see of the ones before them."""

    shared: ClassVar[frozenset[str]] = frozenset({"weights"})

    weights: OutputWeights
    inputs: torch.Tensor
    """``[batch, inputs]``, after the ReLU."""
    middle: torch.Tensor
    """``[batch, hidden]``, after the ReLU."""


@dataclass
class Weights:
    """Weights of the first layer laid out for stepping."""

    table: torch.Tensor
    above: torch.Tensor
    left: torch.Tensor
    within: list[torch.Tensor]


@dataclass
class ChannelMaskedState(State):
    """Caches of the walk."""

    shared: ClassVar[frozenset[str]] = frozenset({"weights"})

    weights: Weights
    pixels: torch.Tensor
    """Embedded pixels of the rows still seen, with a margin of zeros: ``[batch, rows, width + 6, features]``. The last
    is this row up to the pixel, then the row above."""
    above: torch.Tensor
    """What rows above and bias give the first layer in this row: ``[batch, width, 2 * hidden]``."""
    sums: torch.Tensor
    """The same with the pixels to the left, at this pixel: ``[batch, 2 * hidden]``."""
    layers: Any
    """The state of the layers."""
    output: OutputState
    head: Any = None
    """How far a joint head is within the pixel."""


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
        self.first = GroupedConvolution(self.groups, embedded, 2 * hidden, FIRST_REACH, FIRST_REACH, own=False)
        self.layers = nn.ModuleList(self.create_layers(layers))
        self.class_bias = ClassEmbedding(self.classes, layers * self.biases) if self.classes else None
        self.output = GroupedOutput(self.groups, 2 * hidden, last, head)
        channels_last(self)

    @property
    @abstractmethod
    def biases(self) -> int:
        """How many numbers of a layer a class adds to."""

    @abstractmethod
    def create_layers(self, count: int) -> list[nn.Module]:
        """The layers. Each goes from ``[batch, height, width, 2 * hidden]`` and what the class adds, ``[batch, 1, 1,
        biases]`` or None, to the features of the next."""

    @abstractmethod
    def init_layers(self, batch: int, class_bias: torch.Tensor | None) -> State:
        """The state of the layers. ``class_bias`` is ``[layers, batch, 1, biases]``."""

    @abstractmethod
    def start_row(self, row: int, state: Any) -> None:
        """Work of the layers once a row."""

    @abstractmethod
    def start_pixel(self, column: int, state: Any) -> None:
        """Work of the layers once a pixel."""

    @abstractmethod
    def advance(self, column: int, group: int, x: torch.Tensor, state: Any) -> torch.Tensor:
        """A group of the first layer's features at a pixel to the same group after all layers."""

    @abstractmethod
    def layer_field(self, field: torch.Tensor) -> torch.Tensor:
        """Which sources reach a layer's features, of those that reach its input: ``bool [sources, groups, height,
        width]``."""

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        features = self.first(self.embedding(x))
        biases = self._class_biases(condition)
        for i, layer in enumerate(self.layers):
            features = self.recomputed(layer, features, None if biases is None else biases[i, :, None])
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
        make, width = self.first.weight.new_zeros, self.grid.width
        embedded = self.grid.channels * EMBEDDED
        return ChannelMaskedState(
            weights=Weights(
                self.embedding.table(), self.first.rows_above(), self.first.to_the_left(), self.first.within()
            ),
            pixels=make(batch, FIRST_REACH + 1, width + 2 * FIRST_REACH, embedded),
            above=make(batch, width, 2 * self.hidden),
            sums=make(batch, 2 * self.hidden),
            layers=self.init_layers(batch, self._class_biases(condition)),
            output=self._init_output(batch),
        )

    def _init_output(self, batch: int) -> OutputState:
        output, slices = self.output, self.output.slices
        assert output.one.bias is not None
        assert output.two.bias is not None
        biases = [(output.one.bias[place], output.two.bias[place]) for place in slices]
        one, two = self.groups.products(output.one.weight), self.groups.products(output.two.weight)
        make = self.first.weight.new_zeros
        return OutputState(OutputWeights(one, two, biases), make(batch, 2 * self.hidden), make(batch, self.last))

    @torch.no_grad()
    def step(
        self, previous: torch.Tensor, index: int, state: ChannelMaskedState
    ) -> tuple[torch.Tensor, ChannelMaskedState]:
        row, column, channel = self.grid.place(index)
        if index:
            _, before, last = self.grid.place(index - 1)
            place = state.pixels[:, -1, before + FIRST_REACH]
            place[:, last * EMBEDDED : (last + 1) * EMBEDDED] = state.weights.table[last][previous]
        if channel == 0:
            if column == 0:
                self._row(row, state)
            self._pixel(column, state)
        if not isinstance(self.head, JointHead):
            return self._group(column, channel, state), state
        if channel == 0:
            state.head = self.head.start(self._group(column, 0, state))
        parameters, state.head = self.head.next(previous if channel else None, channel, state.head)
        return parameters, state

    def _row(self, row: int, state: ChannelMaskedState) -> None:
        if row:
            state.pixels[:, :-1] = state.pixels[:, 1:].clone()
        seen = windows(state.pixels[:, :-1], 2 * FIRST_REACH + 1)
        torch.add(seen @ state.weights.above, self.first.offset(), out=state.above)
        self.start_row(row, state.layers)

    def _pixel(self, column: int, state: ChannelMaskedState) -> None:
        left = state.pixels[:, -1, column : column + FIRST_REACH].flatten(1)
        torch.addmm(state.above[:, column], left, state.weights.left, out=state.sums)
        self.start_pixel(column, state.layers)

    def _group(self, column: int, group: int, state: ChannelMaskedState) -> torch.Tensor:
        """The parameters ``[batch, size]`` that a group gives."""
        x = state.sums[:, self.wide[group]]
        if group:
            known = state.pixels[:, -1, column + FIRST_REACH, : group * EMBEDDED]
            x = torch.addmm(x, known, state.weights.within[group])
        x = self.advance(column, group, x, state.layers)
        return self._output(group, x, state.output)

    def _output(self, group: int, x: torch.Tensor, state: OutputState) -> torch.Tensor:
        weights, wide, place = state.weights, self.wide[group], self.output.slices[group]
        state.inputs[:, wide] = x.relu()
        bias_one, bias_two = weights.biases[group]
        middle = torch.addmm(bias_one, state.inputs[:, : wide.stop], weights.one[group])
        state.middle[:, place] = middle.relu_()
        last = torch.addmm(bias_two, state.middle[:, : place.stop], weights.two[group])
        parameters: torch.Tensor = self.output.last[group](last.relu_())
        return parameters

    def sizes(self) -> dict[str, Any]:
        return {"layers": len(self.layers), "hidden": self.hidden, "last": self.last, "dropout": self.dropout}

    def receptive_field(self) -> torch.Tensor:
        grid, count = self.grid, self.groups.count
        sources = torch.eye(grid.symbols, dtype=torch.bool).view(-1, *grid.shape).movedim(-1, 1)
        field = self.first.field(sources if count == grid.channels else sources.any(1, keepdim=True))
        for _ in self.layers:
            field = self.layer_field(field)
        field = self.groups.field_within(field).movedim(1, -1).flatten(1).T
        if not self.head.joint:
            return field
        pixels = field.unflatten(1, (grid.pixels, grid.channels)).any(-1)
        return symbol_field(grid, pixels, inside=True)

"""The common part of PixelCNN, Row LSTM and Diagonal BiLSTM.

All three are from van den Oord et al. 2016, "Pixel Recurrent Neural Networks" (Table 1).

A 7 x 7 convolution under mask A turns embedded symbols into ``2 * hidden`` features per pixel.
Residual layers under mask B follow, then two pairs of ReLU and 1 x 1 convolution under mask B, and
the output. With a factored head, the features of every layer are split into one group per channel
(sec. 3.4, ``tessella.nn.channel_groups``), and group ``c`` makes the parameters of channel ``c``. A
joint head orders the channels itself, so there is a single group, which sees nothing of the pixel
it predicts.

The paper's input is scaled intensities. Here the vector of a level is a free vector plus a
direction times the level, which also works for codes. As in the paper, a pixel can tell its
position only from the zero padding of the convolutions.

A step computes one group of features in every layer; earlier groups of the pixel are known and do
not change. The contribution of the rows above is computed once per row, with one product for all
pixels. That of the pixels to the left and of earlier groups takes one product per group. The layers
write their own part of it (``tessella.nn.channel_masked_layers``); the walk over groups, pixels and
rows, which all three families share, is here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.condition import UNCONDITIONAL, Condition, Conditioning
from tessella.models.density_model import JointWalk
from tessella.models.program_model import ProgramState, TwinModel
from tessella.models.receptive_fields import symbol_field
from tessella.nn.channel_groups import (
    ChannelGroups,
    ChannelGroupStep,
    GroupedConvolution,
    SteppedGroups,
)
from tessella.nn.channel_masked_layers import (
    ChannelMaskedLayer,
    GroupedOutput,
    SteppedGroupedOutput,
    SteppedLayer,
)
from tessella.nn.condition_embedding import ClassEmbedding
from tessella.nn.convolution import channels_last
from tessella.nn.embedding import ChannelEmbedding
from tessella.nn.last_layer import LastLayer
from tessella.nn.stepping.program import OperationWriter, Places, Program, SeveralPrograms
from tessella.nn.stepping.runs import Numbers, Runs, SteppedSymbols, Truths, places
from tessella.nn.stepping.step import MemoryAllocator, StateMemory, clearing_program

FIRST_REACH = 3
"""How far the first layer's 7 x 7 convolution sees, in rows and in columns."""

EMBEDDING_WIDTH = 16
"""Length of the vector of an embedded symbol."""


@dataclass
class GroupPrograms:
    """The programs of a state, and the memory through which the model feeds them."""

    end_row: Program
    """Embeds the symbols of a row's last pixel that no group has read, at a ``column``."""
    between_rows: Callable[[Runs, Truths], None] | None
    """Adds work on a complete row before the next row begins."""
    row: Program
    """Computes the contribution of the rows above to a new row, in all layers."""
    first: Program
    """Computes the first group of a row's first pixel."""
    groups: list[Program]
    """For each group, embeds the newest symbol and computes the group, at a ``column``."""
    clearing: Program
    """Zeroes the embedded pixels of the row."""


@dataclass
class ChannelMaskedState(ProgramState):
    """The cached state of a walk."""

    parameters: torch.Tensor
    """Parameters of the newest group: ``[batch, size]``."""


class ChannelMasked(TwinModel):
    """Base of the models with channel groups; subclasses create the layers.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: number of residual layers.
        hidden: features within a layer (``h``); there are twice as many between layers.
        last: features of the last two layers.
        dropout: dropout rate at the end of each layer.

    Raises:
        ConfigError: for a size that is out of range.
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
        # A class adds a bias to every layer; one table holds those of all layers.
        created = self.create_layers(layers)
        self.layers = nn.ModuleList(created)
        biases = layers * created[0].biases
        self.class_bias = ClassEmbedding(self.classes, biases) if self.classes else None
        self.output = GroupedOutput(
            self.groups, 2 * hidden, last, head.bias(), head.joint, head.mix
        )
        channels_last(self)

    @abstractmethod
    def create_layers(self, count: int) -> Sequence[ChannelMaskedLayer]:
        """The layers between the first one and the output."""

    def write_between_rows(
        self, step: ChannelGroupStep, layers: Sequence[SteppedLayer]
    ) -> Callable[[Runs, Truths], None] | None:
        """A function that adds the layers' work on a complete row; None where there is none.

        The work is done after a row is complete and before the next row begins.
        """
        return None

    def channel_layers(self) -> list[ChannelMaskedLayer]:
        """The layers, in order."""
        return [layer for layer in self.layers if isinstance(layer, ChannelMaskedLayer)]

    def blocks_to_recompute(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        features = self.first(self.embedding(x))
        biases = self._class_biases(condition.labels)
        for layer, bias in zip(self.channel_layers(), biases, strict=True):
            pixel_bias = None if bias is None else bias[:, None]
            features = self.recomputed(layer, features, pixel_bias)
        parameters: torch.Tensor = self.output(features)
        return parameters

    def _class_biases(self, labels: torch.Tensor | None) -> Iterable[torch.Tensor | None]:
        """Bias of the class for each layer: ``[batch, 1, biases]``, or None without classes."""
        if labels is None:
            return [None] * len(self.layers)
        assert self.class_bias is not None
        biases: torch.Tensor = self.class_bias(labels)
        return biases.unflatten(-1, (len(self.layers), 1, -1)).unbind(1)

    @torch.no_grad()
    def state_in(self, memory: StateMemory, condition: Condition, batch: int) -> ChannelMaskedState:
        parameters = memory.like(self.first.weight).new_zeros(batch, self.head.size)
        state = ChannelMaskedState(JointWalk(), condition.labels, memory, parameters)
        state.programs = self.write_programs(state, batch)
        return state

    def _add_runs(self, programs: GroupPrograms, runs: Runs, index: Numbers) -> None:
        """See :attr:`SteppedSymbols.add_runs`."""
        row, column, channel = places(self.grid, index)
        begins_row = (column == 0) & (channel == 0)
        # Complete the row above before anything reads it.
        follows_row = begins_row & (row > 0)
        runs.add(programs.end_row, self.grid.width - 1, when=follows_row)
        if programs.between_rows is not None:
            programs.between_rows(runs, follows_row)
        runs.add(programs.row, when=begins_row)
        # Embedded symbols are added to this memory, so it must be zero when a row begins.
        runs.add(programs.clearing, when=begins_row)
        runs.add(programs.first, 0, when=begins_row)
        # With a joint head there is a single group, so later channels need no program.
        for group, program in enumerate(programs.groups):
            runs.add(program, column, when=(channel == group) & (column + channel > 0))

    def write_programs(self, state: ProgramState, batch: int) -> SteppedSymbols:
        assert isinstance(state, ChannelMaskedState)
        like = state.parameters
        memory = MemoryAllocator(state.memory, batch, like)
        end_row = Program(batch, ("column",), like)
        first = Program(batch, ("column",), like)
        groups = []
        for _ in range(self.groups.count):
            groups.append(Program(batch, ("column",), like))
        symbols = []
        for _ in range(self.grid.channels):
            symbols.append(memory.zeros(dtype=torch.int64))
        # Two programs compute group 0, because the first pixel of a row has no left neighbour
        # whose newest symbol must be embedded.
        writers: list[OperationWriter] = [SeveralPrograms([first, groups[0]]), *groups[1:]]
        step = ChannelGroupStep(memory, self.grid.width, writers)
        # First every layer allocates memory and writes its work on rows; then come the groups.
        entry = self.first.bind(step)
        table = memory.table(self.embedding.table())
        self._write_lookups(end_row, groups, symbols, table, entry.input)
        layers = []
        for layer, bias in zip(
            self.channel_layers(), self._class_biases(state.labels), strict=True
        ):
            layers.append(layer.bind(step, bias))
        output = self.output.bind(step)
        for group, program in enumerate(step.groups):
            self._write_group(program, group, entry, layers, output)
            output.write_group(program, group, state.parameters)
        between_rows = self.write_between_rows(step, layers)
        clearing = clearing_program(memory, [entry.input.row])
        programs = GroupPrograms(end_row, between_rows, step.row, first, groups, clearing)
        add_runs = partial(self._add_runs, programs)
        return SteppedSymbols(symbols, add_runs, like)

    def _write_lookups(
        self,
        end_row: Program,
        groups: Sequence[Program],
        symbols: Sequence[torch.Tensor],
        table: torch.Tensor,
        pixels: Places,
    ) -> None:
        """Append the embedding of each symbol to the program that needs it first.

        Args:
            end_row: see :class:`GroupPrograms`.
            groups: one program for each group.
            symbols: the newest symbol of each channel, ``int64 [batch]``.
            table: vectors of the symbols, ``[channels, levels, width]``.
            pixels: receives the vectors, ``[batch, width, features]``.
        """
        # At a column, this addresses the pixel to its left.
        to_the_left = replace(pixels, margin=pixels.margin - 1)
        for channel, symbol in enumerate(symbols):
            part = slice(channel * EMBEDDING_WIDTH, (channel + 1) * EMBEDDING_WIDTH)
            # No group of a pixel reads its last channel; under a joint head, none reads any.
            if channel < len(groups) - 1:
                # The next group of the same pixel reads it.
                here = pixels.features(part).at("column")
                groups[channel + 1].lookup(symbol, table[channel], here)
            else:
                # The next pixel reads it, or the next row if this pixel is the last of its row.
                here = pixels.features(part).at("column")
                end_row.lookup(symbol, table[channel], here)
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
        """Append the work on one group in all layers, from the first to the last."""
        entry.write_group(program, group, layers[0].group_input(group))
        for layer, following in pairwise(layers):
            layer.write_group(program, group, following.group_input(group), "")
        # The output layers begin with a ReLU, which is fused into the last residual layer.
        layers[-1].write_group(program, group, output.group_input(group), "relu")

    def last_layers(self) -> Sequence[LastLayer]:
        return [layer for layer in self.output.last if isinstance(layer, LastLayer)]

    def sizes(self) -> dict[str, object]:
        return {
            "layers": len(self.layers),
            "hidden": self.hidden,
            "last": self.last,
            "dropout": self.dropout,
        }

    def receptive_field(self) -> torch.Tensor:
        grid = self.grid
        # [sources, channels, height, width]: each symbol reaches itself.
        sources = torch.eye(grid.symbols, dtype=torch.bool).view(-1, *grid.shape).movedim(-1, 1)
        if self.groups.count != grid.channels:
            sources = sources.any(1, keepdim=True)
        field = self.first.field(sources)
        for layer in self.channel_layers():
            field = layer.field(field)
        # Within a pixel, the output of a group sees the groups up to itself. The result is
        # [symbols, sources], or [pixels, sources] with a single group.
        field = self.groups.field_within(field).movedim(1, -1).flatten(1).T
        if not self.head.joint:
            return field
        pixels = field.unflatten(1, (grid.pixels, grid.channels)).any(-1)
        return symbol_field(grid, pixels, inside=True)

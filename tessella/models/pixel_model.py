"""The cached step of models whose backbone runs once per pixel.

A step first embeds the symbol that has just become known. At the first pixel of a row it does the
work on rows, and at the first channel of a pixel it runs the backbone. Further channels are left to
the output stage. All of this is written once for each state, as programs on the state's memory
(``tessella.nn.stepping.step``). A family composes its layers in :meth:`PixelModel.write` as it does
in ``forward``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from tessella.models.channel_output import OutputStage, SteppedChannels
from tessella.models.condition import Condition
from tessella.models.density_model import JointWalk
from tessella.models.program_model import ProgramState, TwinModel
from tessella.nn.embedding import EmbeddedSymbols
from tessella.nn.last_layer import LastLayer
from tessella.nn.stepping.program import Operand, Program
from tessella.nn.stepping.runs import Numbers, Runs, SteppedSymbols, places
from tessella.nn.stepping.step import GridStep, MemoryAllocator, PixelStep, StateMemory


@dataclass
class SteppedFeatures:
    """The memory through which a backbone is connected to the rest of a step."""

    pixels: Operand
    """Embedded pixel at a ``column``, to which each symbol's vector is added as it becomes known:
    ``[batch, size]``."""
    features: Operand
    """Input of the output stage at a pixel: ``[batch, features]``."""


@dataclass
class PixelPrograms:
    """The programs of a state."""

    step: PixelStep
    """Runs the backbone, and the output stage of a pixel's first channel."""
    lookups: list[Program]
    """For each channel, adds the vector of a symbol to its pixel, at a ``column``."""
    output: SteppedChannels
    """The rest of the output stage."""


@dataclass
class PixelState(ProgramState):
    """The cached state of a walk."""

    codes: torch.Tensor | None
    """Features of the codes that the model is conditioned on: ``[batch, height, width, size]``."""
    symbols: torch.Tensor
    """The newest symbol: ``int64 [batch]``."""


class PixelModel(TwinModel):
    """Base of the models with a backbone that runs once per pixel, and an output stage.

    A family sets :attr:`output`, and defines :meth:`symbol_embedding`, ``forward`` and
    :meth:`write`.
    """

    output: OutputStage

    @abstractmethod
    def symbol_embedding(self) -> EmbeddedSymbols:
        """The embedding that the backbone uses for symbols."""

    @abstractmethod
    def write(
        self, step: PixelStep, labels: torch.Tensor | None, codes: torch.Tensor | None
    ) -> SteppedFeatures:
        """Append the backbone's work on a pixel to the programs of a step.

        Args:
            step: made by :meth:`create_step`.
            labels: class of each image, ``int64 [batch]``.
            codes: result of :meth:`code_features`, in the memory of the state.
        """

    def last_layers(self) -> Sequence[LastLayer]:
        return [self.output.last]

    def create_step(self, memory: MemoryAllocator) -> PixelStep:
        """Create the empty programs of a step."""
        return GridStep(memory, self.grid.width)

    def code_features(self, codes: torch.Tensor) -> torch.Tensor:
        """Features for each pixel from a grid of codes: ``[batch, height, width, size]``.

        Only models that can be conditioned on codes define this.
        """
        raise NotImplementedError

    @torch.no_grad()
    def state_in(self, memory: StateMemory, condition: Condition, batch: int) -> PixelState:
        codes = None
        if condition.codes is not None:
            codes = self.code_features(condition.codes).contiguous()
        symbols = torch.zeros(batch, dtype=torch.int64, device=self.device)
        state = PixelState(JointWalk(), condition.labels, memory, codes, symbols)
        state.programs = self.write_programs(state, batch)
        return state

    def write_programs(self, state: ProgramState, batch: int) -> SteppedSymbols:
        assert isinstance(state, PixelState)
        table = self.symbol_embedding().table()
        memory = MemoryAllocator(state.memory, batch, table)
        # [channels, levels, size]; copies of the state share it.
        table = memory.table(table)
        step = self.create_step(memory)
        # The backbone must be written first, because the output stage reads its features.
        backbone = self.write(step, state.labels, state.codes)
        output = self.output.write(step, backbone.features, state.symbols)
        lookups = []
        for vectors in table:
            # Each channel needs its own program, because it has its own table.
            program = Program(batch, ("column",), table)
            program.lookup(state.symbols, vectors, backbone.pixels)
            lookups.append(program)
        programs = PixelPrograms(step, lookups, output)
        return SteppedSymbols(
            [state.symbols] * self.grid.channels,
            partial(self._add_runs, programs),
            output.parameters,
        )

    def _add_runs(self, programs: PixelPrograms, runs: Runs, index: Numbers) -> None:
        """See :attr:`SteppedSymbols.add_runs`."""
        row, column, channel = places(self.grid, index)
        # At the start of a pixel, the previous symbol belongs to the pixel before.
        _, previous_column, previous_channel = places(self.grid, index - 1)
        for number, lookup in enumerate(programs.lookups):
            known = (index > 0) & (previous_channel == number)
            runs.add(lookup, previous_column, when=known)
        begins_pixel = channel == 0
        programs.step.start_row(runs, row, when=begins_pixel & (column == 0))
        programs.step.start_pixel(runs, row, column, when=begins_pixel)
        # A joint head turns the parameters of a pixel into those of its channels by itself.
        for number, program in enumerate(programs.output.channels, start=1):
            runs.add(program, when=channel == number)

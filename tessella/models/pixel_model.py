"""Models whose backbone runs once a pixel: their cached steps.

A step looks up the symbol that has become known, at the first pixel of a row does the work of a
row, at the first channel of a pixel runs the backbone, and leaves the other channels to the output
stage. All of it is written once for a state, as programs on the state's memory
(``tessella.nn.stepping.step``). A family composes its layers in :meth:`PixelModel.write` as it does
in ``forward``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from tessella.heads import JointHead
from tessella.models.channel_output import OutputStage, SteppedChannels
from tessella.models.condition import Cond
from tessella.models.density_model import DensityModel
from tessella.nn.embedding import EmbeddedSymbols
from tessella.nn.stepping.program import Operand, Program
from tessella.nn.stepping.state import State
from tessella.nn.stepping.step import GridStep, MemoryAllocator, PixelStep, StateMemory


@dataclass
class SteppedFeatures:
    """A backbone written for a step."""

    pixels: Operand
    """Where the vectors of a pixel's symbols are summed up as they become known, by ``column``:
    ``[batch, size]``."""
    features: Operand
    """Input of the output stage at a pixel: ``[batch, features]``."""


@dataclass
class PixelPrograms:
    """The programs of a state."""

    step: PixelStep
    """The backbone, and the first part of the output stage."""
    known: list[Program]
    """For each channel, adds the vector of its symbol to its pixel, at a ``column``."""
    output: SteppedChannels


@dataclass
class PixelState(State):
    """The state of a walk over pixels."""

    derived: ClassVar[frozenset[str]] = frozenset({"programs"})

    labels: torch.Tensor | None
    """Of the condition: ``int64 [batch]``."""
    codes: torch.Tensor | None
    """Features of the codes that the model is conditioned on: ``[batch, height, width, size]``."""
    symbols: torch.Tensor
    """The symbol that became known last: ``int64 [batch]``."""
    memory: StateMemory
    """The caches of all layers."""
    joint: Any = None
    """How far a joint head is within the pixel."""
    programs: PixelPrograms | None = None


class PixelModel(DensityModel):
    """A model with a backbone that runs once a pixel, and an output stage that orders its channels.

    A family sets ``output``, and defines :meth:`symbol_embedding` and, beside ``forward``,
    :meth:`write`.
    """

    output: OutputStage

    @abstractmethod
    def symbol_embedding(self) -> EmbeddedSymbols:
        """The vectors that the backbone sees of symbols."""

    @abstractmethod
    def write(
        self, step: PixelStep, labels: torch.Tensor | None, codes: torch.Tensor | None
    ) -> SteppedFeatures:
        """Append the backbone's work on a pixel to the programs of a step.

        Args:
            step: what :meth:`create_step` gives.
            labels: of the condition, ``int64 [batch]``.
            codes: what :meth:`code_features` gave, in the memory of the state.
        """

    def create_step(self, memory: MemoryAllocator) -> PixelStep:
        """The programs that a step consists of."""
        return GridStep(memory, self.grid.width)

    def code_features(self, codes: torch.Tensor) -> torch.Tensor:
        """Features of a grid of codes for each pixel: ``[batch, height, width, size]``.

        For models that take codes.
        """
        raise NotImplementedError

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> PixelState:
        # Checked, so that a bad label is refused before any memory is taken.
        condition = self.condition(cond, batch)
        codes = None
        if condition.codes is not None:
            codes = self.code_features(condition.codes).contiguous()
        symbols = torch.zeros(batch, dtype=torch.int64, device=self.device)
        state = PixelState(condition.labels, codes, symbols, StateMemory())
        # Writing the programs fills the state's memory.
        state.programs = self._write_programs(state)
        return state

    def _write_programs(self, state: PixelState) -> PixelPrograms:
        batch = len(state.symbols)
        table = self.symbol_embedding().table().detach()
        memory = MemoryAllocator(state.memory, batch, table)
        # [channels, levels, size]; copies of the state share it.
        table = memory.table(table)
        step = self.create_step(memory)
        # The order matters here only: the output stage reads what the backbone wrote last.
        backbone = self.write(step, state.labels, state.codes)
        output = self.output.write(step, backbone.features, state.symbols)
        known = []
        for vectors in table:
            # A program for each channel, as each adds to the same pixel from a table of its own.
            program = Program(batch, ("column",), table)
            program.lookup(state.symbols, vectors, backbone.pixels)
            known.append(program)
        return PixelPrograms(step, known, output)

    @torch.no_grad()
    def step(
        self, previous: torch.Tensor, index: int, state: State
    ) -> tuple[torch.Tensor, PixelState]:
        assert isinstance(state, PixelState)
        if state.programs is None:
            # A copy of another state: its layers get the memory that was copied.
            state.programs = self._write_programs(state)
        programs = state.programs
        row, column, channel = self.grid.place(index)
        if index:
            state.symbols.copy_(previous)
            # The symbol before belongs to the pixel before, where a new pixel begins.
            _, previous_column, previous_channel = self.grid.place(index - 1)
            programs.known[previous_channel].run(previous_column)
        if channel == 0:
            if column == 0:
                programs.step.start_row(row)
            programs.step.start_pixel(row, column)
        parameters = programs.output.parameters
        # A joint head makes the channels' parameters one after the other from those of the pixel.
        if isinstance(self.head, JointHead):
            if channel == 0:
                state.joint = self.head.start(parameters.clone())
            known = state.symbols if channel else None
            given, state.joint = self.head.next(known, channel, state.joint)
            return given, state
        if channel:
            programs.output.channels[channel - 1].run()
        # The memory is written to again at the next step, so the caller gets a copy.
        return parameters.clone(), state

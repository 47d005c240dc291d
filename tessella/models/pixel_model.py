"""Models whose backbone runs once a pixel: what their cached steps share.

A step looks up the symbol that has become known, at the first channel of a pixel runs the backbone,
at the first pixel of a row what a row has to do before, and leaves the channels to the output
stage. All of it is written once for a state, as programs on the state's memory
(``tessella.nn.stepping.program``).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch

from tessella.heads import JointHead
from tessella.models.channel_output import Output, OutputState
from tessella.models.density_model import DensityModel
from tessella.nn.stepping.program import Operand, Program
from tessella.nn.stepping.state import State

B = TypeVar("B")


@dataclass
class Programs(Generic[B]):
    """The programs of a state.

    Args:
        known: for each channel, adds the vector of a symbol that has become known to its pixel's,
            at a ``column``.
        backbone: those of the family; the last one at a pixel ends with the output stage.
        channels: for each channel of a factored head but the first, makes its parameters.
    """

    known: list[Program]
    backbone: B
    channels: list[Program]


@dataclass
class Walk(State):
    """What a walk over pixels keeps, whatever the backbone."""

    shared: ClassVar[frozenset[str]] = frozenset({"table"})

    table: torch.Tensor
    """Vectors of every channel and level: ``[channels, levels, size]``."""
    symbols: torch.Tensor
    """The symbol that has become known last: ``int64 [batch]``."""
    output: OutputState


class PixelModel(DensityModel):
    """A model with a backbone that runs once a pixel and an ``output`` stage that orders its
    channels.

    Its states have two fields that are used here: ``walk``, a :class:`Walk`, and ``programs``,
    derived from the others: :class:`Programs`, or None before they are needed.
    """

    output: Output

    @abstractmethod
    def write(self, state: Any) -> Programs[Any]:
        """The programs of a state."""

    @abstractmethod
    def start_row(self, row: int, state: Any, backbone: Any) -> None:
        """Once a row, before its first pixel; everything above is known."""

    @abstractmethod
    def start_pixel(self, row: int, column: int, backbone: Any) -> None:
        """Once a pixel: the backbone and the output stage's first part."""

    def walk(self, table: torch.Tensor, batch: int) -> Walk:
        """The shared part of a state before the first symbol;
        ``table [channels, levels, size]``."""
        symbols = torch.zeros(batch, dtype=torch.int64, device=table.device)
        return Walk(table, symbols, self.output.init_state(batch))

    def written(self, walk: Walk, pixels: Operand, backbone: B) -> Programs[B]:
        """The programs around a ``backbone``; ``pixels`` is where the vectors of known pixels are
        summed up, by ``column``."""
        known = []
        for vectors in walk.table:
            program = Program(len(walk.symbols), ("column",), walk.table)
            program.lookup(walk.symbols, vectors, pixels)
            known.append(program)
        return Programs(known, backbone, self.output.write_channels(walk.symbols, walk.output))

    @torch.no_grad()
    def step(self, previous: torch.Tensor, index: int, state: Any) -> tuple[torch.Tensor, Any]:
        walk: Walk = state.walk
        if state.programs is None:
            state.programs = self.write(state)
        programs: Programs[Any] = state.programs
        row, column, channel = self.grid.place(index)
        if index:
            walk.symbols.copy_(previous)
            _, before, last = self.grid.place(index - 1)
            programs.known[last].run(before)
        if channel == 0:
            if column == 0:
                self.start_row(row, state, programs.backbone)
            self.start_pixel(row, column, programs.backbone)
        output = walk.output
        if isinstance(self.head, JointHead):
            if channel == 0:
                output.joint = self.head.start(output.parameters.clone())
            parameters, output.joint = self.head.next(
                walk.symbols if channel else None, channel, output.joint
            )
            return parameters, state
        if channel:
            programs.channels[channel - 1].run()
        return output.parameters.clone(), state

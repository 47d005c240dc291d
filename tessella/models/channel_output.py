"""The last stage of a pixel model, which orders the channels inside the pixel.
Each output stage has ``forward`` over whole maps, and ``write``, which appends its work to the
programs of a step: the first parameters of a pixel follow the backbone in the pixel's program, and
each of the other channels has a program of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from tessella.grid import Grid
from tessella.heads import Head, JointHead
from tessella.nn.stepping.program import Operand, OperationWriter, Program
from tessella.nn.stepping.step import PixelStep


@dataclass
class SteppedChannels:
    """An output stage written for a step."""

    parameters: torch.Tensor
    """Of the channel that came last, or of the pixel if the head is joint: ``[batch, size]``."""
    channels: list[Program] = field(default_factory=list)
    """For each channel but the first, makes its parameters once the channel before is known; empty
    where the head orders the channels."""


class OutputStage(nn.Module, ABC):
    """Base of the output stages."""

    last: nn.Linear
    """Gives a head's parameters."""

    @abstractmethod
    def forward(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Features and symbols to parameters.

        ``features [..., features]`` and ``x [..., channels]`` give ``[..., channels, size]``, or
        ``[..., size]`` of a joint head.
        """

    @abstractmethod
    def write(self, step: PixelStep, features: Operand, symbols: torch.Tensor) -> SteppedChannels:
        """Append what follows the ``features [batch, features]`` of a pixel.

        Args:
            step: where it is written.
            features: what the backbone gives.
            symbols: the symbol that became known last, ``int64 [batch]``.
        """

    def write_last(
        self, program: OperationWriter, step: PixelStep, x: Operand, parameters: torch.Tensor
    ) -> None:
        """Append the product that gives the parameters."""
        weight = step.memory.matrix(self.last.weight.T)
        program.linear(x, weight, parameters, add=self.last.bias.detach())


class FactoredOutput(OutputStage):
    """Parameters for each symbol, the channels before it in the pixel fed in by lookup.

    Channel ``c`` has the hidden vector ``W_c features + sum over j < c of E_jc[x_j]``; after the
    activation one matrix, shared by the channels, gives the parameters.

    Args:
        grid: the grid that is modelled.
        head: a factored head.
        features: width of the backbone's output, and of the hidden vectors.
    """

    def __init__(self, grid: Grid, head: Head, features: int) -> None:
        super().__init__()
        self.grid = grid
        self.hidden = features
        # The hidden vectors of all channels side by side.
        self.project = nn.Linear(features, grid.channels * features)
        # Channel c adds to the channels - 1 - c channels after it. As in SymbolEmbedding a level
        # has a free vector and a direction, which says that neighbouring levels are alike.
        later = range(grid.channels - 1, 0, -1)
        self.earlier = nn.ParameterList(
            torch.randn(grid.levels, count, features) * 0.3 for count in later
        )
        self.directions = nn.ParameterList(torch.randn(1, count, features) * 0.3 for count in later)
        self.last = _create_last(head, features)
        self.register_buffer(
            "values", torch.linspace(-1, 1, grid.levels)[:, None, None], persistent=False
        )
        self.values: torch.Tensor

    def forward(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        # For each channel [..., features].
        parts = list(self.project(features).split(self.hidden, dim=-1))
        for c in range(self.grid.channels - 1):
            # What the symbol of channel c adds to each of the channels after it.
            added = F.embedding(x[..., c], self._table(c).flatten(1)).split(self.hidden, dim=-1)
            for later, vector in enumerate(added, start=c + 1):
                parts[later] = parts[later] + vector
        # [..., channels, size]
        return self.last(F.silu(torch.stack(parts, dim=-2)))

    def write(self, step: PixelStep, features: Operand, symbols: torch.Tensor) -> SteppedChannels:
        # The vectors of all channels side by side; symbols are added as they become known.
        hidden = step.memory.zeros(self.grid.channels * self.hidden)
        parameters = step.pixel.zeros(self.last.out_features)
        project = step.memory.matrix(self.project.weight.T)
        step.pixel.linear(features, project, hidden, add=self.project.bias.detach())
        self._write_channel(step.pixel, step, hidden[:, : self.hidden], parameters)
        programs = []
        for c in range(self.grid.channels - 1):
            # Nothing moves: all of it happens in the memory of the pixel.
            program = Program(step.memory.batch, (), hidden)
            table = step.memory.table(self._table(c).flatten(1))
            # What channel c adds to the channels after it, at once; then the next channel's own
            # vector is complete.
            later = hidden[:, (c + 1) * self.hidden :]
            program.lookup(symbols, table, later)
            self._write_channel(program, step, later[:, : self.hidden], parameters)
            programs.append(program)
        return SteppedChannels(parameters, programs)

    def _write_channel(
        self,
        program: OperationWriter,
        step: PixelStep,
        hidden: torch.Tensor,
        parameters: torch.Tensor,
    ) -> None:
        active = program.zeros(self.hidden)
        program.map(hidden, active, "silu")
        self.write_last(program, step, active, parameters)

    def _table(self, channel: int) -> torch.Tensor:
        """Vectors that each level of ``channel`` adds to the channels after it.

        ``[levels, later channels, hidden]``.
        """
        return self.earlier[channel] + self.directions[channel] * self.values


class JointOutput(OutputStage):
    """One parameter vector a pixel; the head orders the channels.

    Args:
        head: a joint head.
        features: width of the backbone's output.
    """

    def __init__(self, head: JointHead, features: int) -> None:
        super().__init__()
        self.project = nn.Linear(features, features)
        self.last = _create_last(head, features)

    def forward(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.silu(self.project(features)))

    def write(self, step: PixelStep, features: Operand, symbols: torch.Tensor) -> SteppedChannels:
        active = step.pixel.zeros(self.project.out_features)
        parameters = step.pixel.zeros(self.last.out_features)
        project = step.memory.matrix(self.project.weight.T)
        bias = self.project.bias.detach()
        step.pixel.linear(features, project, active, add=bias, activation="silu")
        self.write_last(step.pixel, step, active, parameters)
        return SteppedChannels(parameters)


class LinearOutput(OutputStage):
    """Parameters by one linear map, where there is nothing to order inside a pixel.

    For a joint head, and for a factored one on grids of one channel.

    Args:
        head: the head.
        features: width of the backbone's output.
    """

    def __init__(self, head: Head, features: int) -> None:
        super().__init__()
        self.last = _create_last(head, features)
        self.joint = head.joint

    def forward(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        parameters = self.last(features)
        if self.joint:
            return parameters
        # A factored head wants a dimension for channels, here of one.
        return parameters.unsqueeze(-2)

    def write(self, step: PixelStep, features: Operand, symbols: torch.Tensor) -> SteppedChannels:
        parameters = step.pixel.zeros(self.last.out_features)
        self.write_last(step.pixel, step, features, parameters)
        return SteppedChannels(parameters)


def create_output(grid: Grid, head: Head, features: int, direct: bool = False) -> OutputStage:
    """The output stage that fits the head. ``direct`` takes a linear map where that is enough."""
    if direct and (head.joint or grid.channels == 1):
        return LinearOutput(head, features)
    if isinstance(head, JointHead):
        return JointOutput(head, features)
    return FactoredOutput(grid, head, features)


def _create_last(head: Head, features: int) -> nn.Linear:
    """A linear map to a head's parameters, which starts near the head's own start."""
    last = nn.Linear(features, head.size)
    last.bias.data.copy_(head.bias())
    return last

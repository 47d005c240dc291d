"""Output stages of pixel models: from features of a pixel to parameters of its channels.

Each output stage has ``forward`` over whole maps, and ``write``, which appends its work to the
programs of a step. The parameters of a pixel's first channel are computed in the same program as
the backbone; each further channel has its own program.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from tessella.grid import Grid
from tessella.heads import Head, JointHead
from tessella.nn.last_layer import LastLayer
from tessella.nn.stepping.program import Operand, OperationWriter, Program
from tessella.nn.stepping.step import PixelStep


@dataclass
class SteppedChannels:
    """An output stage bound to the memory of a step."""

    parameters: torch.Tensor
    """Parameters of the newest channel, or of the pixel for a joint head: ``[batch, size]``."""
    channels: list[Program] = field(default_factory=list)
    """One program for each channel but the first, which computes its parameters once the previous
    channel is known; empty for a joint head."""


class OutputStage(nn.Module, ABC):
    """Base of the output stages."""

    last: LastLayer
    """The last layer, which makes the head's parameters."""

    @abstractmethod
    def forward(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Turn features and symbols into parameters.

        Args:
            features: output of the backbone, ``[..., features]``.
            x: symbols, ``int64 [..., channels]``.

        Returns:
            ``[..., channels, size]``, or ``[..., size]`` for a joint head.
        """

    @abstractmethod
    def write(self, step: PixelStep, features: Operand, symbols: torch.Tensor) -> SteppedChannels:
        """Append the output stage to a step.

        Args:
            step: the step to write to.
            features: output of the backbone at a pixel, ``[batch, features]``.
            symbols: memory that holds the newest symbol, ``int64 [batch]``.
        """

    def write_last(
        self, program: OperationWriter, step: PixelStep, x: Operand, parameters: torch.Tensor
    ) -> None:
        """Append the last layer.

        Args:
            program: the program to append to.
            step: owns the memory.
            x: input, ``[batch, features]``.
            parameters: receives the result, ``[batch, size]``.
        """
        weight, bias = self.last.mixed()
        matrix = step.memory.matrix(weight.T)
        program.linear(x, matrix, parameters, add=step.memory.table(bias))


class FactoredOutput(OutputStage):
    """Parameters for each symbol, conditioned on the earlier channels of its pixel.

    Channel ``c`` has the hidden vector ``W_c features + sum over j < c of E_jc[x_j]``, where the
    ``E_jc`` are embeddings of the earlier channels. After an activation, one matrix that all
    channels share makes the parameters.

    Args:
        grid: the modelled grid.
        head: a factored head.
        features: width of the backbone's output, and of the hidden vectors.
    """

    def __init__(self, grid: Grid, head: Head, features: int) -> None:
        super().__init__()
        self.grid = grid
        self.hidden = features
        # One product makes the hidden vectors of all channels.
        self.project = nn.Linear(features, grid.channels * features)
        # Channel c contributes to the channels - 1 - c channels after it. As in SymbolEmbedding, a
        # level has a free vector plus a direction, which makes neighbouring levels similar.
        later = range(grid.channels - 1, 0, -1)
        self.earlier = nn.ParameterList(
            torch.randn(grid.levels, count, features) * 0.3 for count in later
        )
        self.directions = nn.ParameterList(torch.randn(1, count, features) * 0.3 for count in later)
        self.last = LastLayer(features, head.bias(), head.mix)
        self.register_buffer(
            "values", torch.linspace(-1, 1, grid.levels)[:, None, None], persistent=False
        )
        self.values: torch.Tensor

    def forward(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        # The hidden vector of each channel, [..., features].
        parts = list(self.project(features).split(self.hidden, dim=-1))
        for c in range(self.grid.channels - 1):
            # The contribution of channel c to each channel after it.
            added = F.embedding(x[..., c], self._table(c).flatten(1)).split(self.hidden, dim=-1)
            for later, vector in enumerate(added, start=c + 1):
                parts[later] = parts[later] + vector
        # [..., channels, size]
        return self.last(F.silu(torch.stack(parts, dim=-2)))

    def write(self, step: PixelStep, features: Operand, symbols: torch.Tensor) -> SteppedChannels:
        # The hidden vectors of all channels; symbols are added as they become known.
        hidden = step.memory.zeros(self.grid.channels * self.hidden)
        parameters = step.pixel.zeros(self.last.out_features)
        project = step.memory.matrix(self.project.weight.T)
        step.pixel.linear(features, project, hidden, add=step.memory.table(self.project.bias))
        self._write_channel(step.pixel, step, hidden[:, : self.hidden], parameters)
        programs = []
        for c in range(self.grid.channels - 1):
            # No variables: everything happens in the memory of the current pixel.
            program = Program(step.memory.batch, (), hidden)
            table = step.memory.table(self._table(c).flatten(1))
            # Add channel c to all later channels at once. Then the vector of the next channel is
            # complete.
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
        """Contribution of each level of ``channel`` to the channels after it.

        ``[levels, later channels, features]``.
        """
        return self.earlier[channel] + self.directions[channel] * self.values


class JointOutput(OutputStage):
    """One parameter vector for each pixel, for joint heads, which order the channels themselves.

    Args:
        head: a joint head.
        features: width of the backbone's output.
    """

    def __init__(self, head: JointHead, features: int) -> None:
        super().__init__()
        self.project = nn.Linear(features, features)
        self.last = LastLayer(features, head.bias(), head.mix)

    def forward(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.silu(self.project(features)))

    def write(self, step: PixelStep, features: Operand, symbols: torch.Tensor) -> SteppedChannels:
        active = step.pixel.zeros(self.project.out_features)
        parameters = step.pixel.zeros(self.last.out_features)
        project = step.memory.matrix(self.project.weight.T)
        bias = step.memory.table(self.project.bias)
        step.pixel.linear(features, project, active, add=bias, activation="silu")
        self.write_last(step.pixel, step, active, parameters)
        return SteppedChannels(parameters)


class LinearOutput(OutputStage):
    """Parameters by a single linear layer, where there is nothing to order inside a pixel.

    Args:
        head: a joint head, or a factored head on a grid of one channel.
        features: width of the backbone's output.
    """

    def __init__(self, head: Head, features: int) -> None:
        super().__init__()
        self.last = LastLayer(features, head.bias(), head.mix)
        self.joint = head.joint

    def forward(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        parameters = self.last(features)
        if self.joint:
            return parameters
        # A factored head expects a dimension of channels, here of size 1.
        return parameters.unsqueeze(-2)

    def write(self, step: PixelStep, features: Operand, symbols: torch.Tensor) -> SteppedChannels:
        parameters = step.pixel.zeros(self.last.out_features)
        self.write_last(step.pixel, step, features, parameters)
        return SteppedChannels(parameters)


def create_output(grid: Grid, head: Head, features: int, direct: bool = False) -> OutputStage:
    """Create the output stage that fits a head.

    Args:
        grid: the modelled grid.
        head: a head of that grid.
        features: width of the backbone's output.
        direct: use a single linear layer where that is enough.
    """
    if direct and (head.joint or grid.channels == 1):
        return LinearOutput(head, features)
    if isinstance(head, JointHead):
        return JointOutput(head, features)
    return FactoredOutput(grid, head, features)

"""The last stage of a model whose backbone runs once a pixel: it orders the channels inside the
pixel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.grid import Grid
from tessella.heads import Head, JointHead
from tessella.nn.stepping.program import Matrix, Operand, Program
from tessella.nn.stepping.state import State


@dataclass
class OutputState(State):
    """An output stage on its way through the channels of a pixel."""

    shared: ClassVar[frozenset[str]] = frozenset({"weights"})

    weights: OutputWeights
    hidden: torch.Tensor
    """What is known of all channels, before the activation: ``[batch, channels * hidden]``; empty
    where there is nothing to order."""
    active: torch.Tensor
    """The same of one channel after the activation: ``[batch, hidden]``."""
    parameters: torch.Tensor
    """Of the channel that came last, or of the pixel if the head is joint: ``[batch, size]``."""
    joint: Any = None
    """The joint head's state."""


@dataclass
class OutputWeights:
    """Weights laid out for stepping."""

    last: Matrix
    bias: torch.Tensor
    project: Matrix | None = None
    project_bias: torch.Tensor | None = None
    earlier: list[torch.Tensor] = field(default_factory=list)
    """What each level of a channel adds to the channels after it:
    ``[levels, later channels * hidden]``."""


class FactoredOutput(nn.Module):
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
        self.grid, self.hidden = grid, features
        self.project = nn.Linear(features, grid.channels * features)
        self.earlier = nn.ParameterList(
            torch.randn(grid.levels, grid.channels - 1 - c, features) * 0.3
            for c in range(grid.channels - 1)
        )
        self.directions = nn.ParameterList(
            torch.randn(1, grid.channels - 1 - c, features) * 0.3 for c in range(grid.channels - 1)
        )
        self.last = nn.Linear(features, head.size)
        self.last.bias.data.copy_(head.bias())
        self.register_buffer(
            "values", torch.linspace(-1, 1, grid.levels)[:, None, None], persistent=False
        )
        self.values: torch.Tensor

    def forward(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``features [..., features]`` and symbols ``x [..., channels]`` to
        ``[..., channels, size]``."""
        parts = list(self.project(features).split(self.hidden, dim=-1))
        for c in range(self.grid.channels - 1):
            later = F.embedding(x[..., c], self._table(c).flatten(1)).split(self.hidden, dim=-1)
            parts[c + 1 :] = [part + one for part, one in zip(parts[c + 1 :], later, strict=True)]
        return self.last(F.silu(torch.stack(parts, dim=-2)))

    def init_state(self, batch: int) -> OutputState:
        """The state before the first pixel."""
        weights = OutputWeights(
            *_matrix(self.last),
            *_matrix(self.project),
            [self._table(c).flatten(1) for c in range(len(self.earlier))],
        )
        make = self.last.weight.new_zeros
        channels, size = self.grid.channels, self.last.out_features
        return OutputState(
            weights,
            make(batch, channels * self.hidden),
            make(batch, self.hidden),
            make(batch, size),
        )

    def write(self, program: Program, features: Operand, state: OutputState) -> None:
        """Append to a pixel's program what follows its ``features [batch, features]``, up to the
        first parameters."""
        weights = state.weights
        assert weights.project is not None
        program.linear(features, weights.project, state.hidden, plus=weights.project_bias)
        self._write_channel(program, 0, state)

    def write_channels(self, symbols: torch.Tensor, state: OutputState) -> list[Program]:
        """For each channel but the first a program that makes its parameters, the channel before
        being ``symbols``."""
        programs = []
        for channel, table in enumerate(state.weights.earlier, start=1):
            program = Program(len(symbols), (), table)
            program.lookup(symbols, table, state.hidden[:, channel * self.hidden :])
            self._write_channel(program, channel, state)
            programs.append(program)
        return programs

    def _write_channel(self, program: Program, channel: int, state: OutputState) -> None:
        own = state.hidden[:, channel * self.hidden : (channel + 1) * self.hidden]
        program.map(own, state.active, "silu")
        program.linear(state.active, state.weights.last, state.parameters, plus=state.weights.bias)

    def _table(self, channel: int) -> torch.Tensor:
        """What each level of ``channel`` adds to the channels after it:
        ``[levels, later channels, hidden]``."""
        return self.earlier[channel] + self.directions[channel] * self.values


class JointOutput(nn.Module):
    """One parameter vector a pixel; the head orders the channels.

    Args:
        grid: the grid that is modelled.
        head: a joint head.
        features: width of the backbone's output.
    """

    def __init__(self, grid: Grid, head: JointHead, features: int) -> None:
        super().__init__()
        self.head = head
        self.project = nn.Linear(features, features)
        self.last = nn.Linear(features, head.size)
        self.last.bias.data.copy_(head.bias())

    def forward(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``features [..., features]`` to ``[..., size]``; the symbols ``x`` are not used here, but
        by the head."""
        return self.last(F.silu(self.project(features)))

    def init_state(self, batch: int) -> OutputState:
        """The state before the first pixel."""
        weights, make = (
            OutputWeights(*_matrix(self.last), *_matrix(self.project)),
            self.last.weight.new_zeros,
        )
        return OutputState(
            weights,
            make(batch, 0),
            make(batch, self.project.out_features),
            make(batch, self.last.out_features),
        )

    def write(self, program: Program, features: Operand, state: OutputState) -> None:
        """Append to a pixel's program what follows its ``features [batch, features]``."""
        weights = state.weights
        assert weights.project is not None
        program.linear(
            features, weights.project, state.active, plus=weights.project_bias, then="silu"
        )
        program.linear(state.active, weights.last, state.parameters, plus=weights.bias)

    def write_channels(self, symbols: torch.Tensor, state: OutputState) -> list[Program]:
        """None: the head orders the channels."""
        return []


class LinearOutput(nn.Module):
    """Parameters by one linear map, where there is nothing to order inside a pixel: for a joint
    head, and for a factored one on grids of one channel.

    Args:
        head: the head.
        features: width of the backbone's output.
    """

    def __init__(self, head: Head, features: int) -> None:
        super().__init__()
        self.head = head
        self.last = nn.Linear(features, head.size)
        self.last.bias.data.copy_(head.bias())

    def forward(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``features [..., features]`` to ``[..., size]``, or ``[..., 1, size]`` of a factored
        head."""
        parameters = self.last(features)
        return parameters if self.head.joint else parameters.unsqueeze(-2)

    def init_state(self, batch: int) -> OutputState:
        """The state before the first pixel."""
        make = self.last.weight.new_zeros
        return OutputState(
            OutputWeights(*_matrix(self.last)),
            make(batch, 0),
            make(batch, 0),
            make(batch, self.last.out_features),
        )

    def write(self, program: Program, features: Operand, state: OutputState) -> None:
        """Append to a pixel's program what follows its ``features [batch, features]``."""
        program.linear(features, state.weights.last, state.parameters, plus=state.weights.bias)

    def write_channels(self, symbols: torch.Tensor, state: OutputState) -> list[Program]:
        """None: there is one channel, or the head orders them."""
        return []


Output = FactoredOutput | JointOutput | LinearOutput


def create_output(grid: Grid, head: Head, features: int, direct: bool = False) -> Output:
    """The output stage that fits the head. ``direct`` takes a linear map where that is enough."""
    if direct and (head.joint or grid.channels == 1):
        return LinearOutput(head, features)
    if isinstance(head, JointHead):
        return JointOutput(grid, head, features)
    return FactoredOutput(grid, head, features)


def _matrix(layer: nn.Linear) -> tuple[Matrix, torch.Tensor]:
    return Matrix(layer.weight.T), layer.bias.detach()

"""The last stage of a model whose backbone runs once a pixel: it orders the channels inside the pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tessella.grid import Grid
from tessella.heads import Head, JointHead
from tessella.nn.state import State


@dataclass
class ChannelState(State):
    """What the channels of a pixel still to come will see."""

    hidden: torch.Tensor
    """``[batch, channels, hidden]``, before the activation."""


class FactoredOutput(nn.Module):
    """Parameters for each symbol, the channels before it in the pixel fed in by lookup.

    Channel ``c`` has the hidden vector ``W_c features + sum over j < c of E_jc[x_j]``; after the activation one
    matrix, shared by the channels, gives the parameters.

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
            torch.randn(grid.levels, grid.channels - 1 - c, features) * 0.3 for c in range(grid.channels - 1)
        )
        self.directions = nn.ParameterList(
            torch.randn(1, grid.channels - 1 - c, features) * 0.3 for c in range(grid.channels - 1)
        )
        self.last = nn.Linear(features, head.size)
        self.last.bias.data.copy_(head.bias())
        self.register_buffer("values", torch.linspace(-1, 1, grid.levels)[:, None, None], persistent=False)
        self.values: torch.Tensor

    def forward(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``features [..., features]`` and symbols ``x [..., channels]`` to ``[..., channels, size]``."""
        parts = list(self.project(features).split(self.hidden, dim=-1))
        for c in range(self.grid.channels - 1):
            later = F.embedding(x[..., c], self._table(c).flatten(1)).split(self.hidden, dim=-1)
            parts[c + 1 :] = [part + one for part, one in zip(parts[c + 1 :], later, strict=True)]
        return self.last(F.silu(torch.stack(parts, dim=-2)))

    def start(self, features: torch.Tensor) -> ChannelState:
        """Begin a pixel of ``features [batch, features]``."""
        return ChannelState(self.project(features).unflatten(-1, (self.grid.channels, self.hidden)))

    def step(self, previous: torch.Tensor, channel: int, state: ChannelState) -> tuple[torch.Tensor, ChannelState]:
        """Parameters ``[batch, size]`` of ``channel``; ``previous [batch]`` is the symbol of the channel before."""
        if channel:
            earlier, direction = self.earlier[channel - 1], self.directions[channel - 1]
            state.hidden[:, channel:] += earlier[previous] + direction * self.values[previous]
        return self.last(F.silu(state.hidden[:, channel])), state

    def _table(self, channel: int) -> torch.Tensor:
        """What each level of ``channel`` adds to the channels after it: ``[levels, later channels, hidden]``."""
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
        """``features [..., features]`` to ``[..., size]``; the symbols ``x`` are not used here, but by the head."""
        return self.last(F.silu(self.project(features)))

    def start(self, features: torch.Tensor) -> Any:
        """Begin a pixel of ``features [batch, features]``."""
        return self.head.start(self.forward(features, features))

    def step(self, previous: torch.Tensor, channel: int, state: Any) -> tuple[torch.Tensor, Any]:
        """Parameters ``[batch, 3 * components]`` of ``channel``, given the channels before it."""
        return self.head.next(previous if channel else None, channel, state)


class LinearOutput(nn.Module):
    """Parameters by one linear map, where there is nothing to order inside a pixel: for a joint head, and for a
    factored one on grids of one channel.

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
        """``features [..., features]`` to ``[..., size]``, or ``[..., 1, size]`` of a factored head."""
        parameters = self.last(features)
        return parameters if self.head.joint else parameters.unsqueeze(-2)

    def start(self, features: torch.Tensor) -> Any:
        """Begin a pixel of ``features [batch, features]``."""
        parameters = self.last(features)
        return self.head.start(parameters) if isinstance(self.head, JointHead) else parameters

    def step(self, previous: torch.Tensor, channel: int, state: Any) -> tuple[torch.Tensor, Any]:
        """Parameters of ``channel`` as :meth:`Head.symbol` takes them, given the channels before it."""
        if isinstance(self.head, JointHead):
            return self.head.next(previous if channel else None, channel, state)
        return state, state


Output = FactoredOutput | JointOutput | LinearOutput


def create_output(grid: Grid, head: Head, features: int, direct: bool = False) -> Output:
    """The output stage that fits the head. ``direct`` takes a linear map where that is enough."""
    if direct and (head.joint or grid.channels == 1):
        return LinearOutput(head, features)
    if isinstance(head, JointHead):
        return JointOutput(grid, head, features)
    return FactoredOutput(grid, head, features)

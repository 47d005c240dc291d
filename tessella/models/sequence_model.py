"""Models of the flattened image: one symbol after another, with no notion of a pixel's neighbours.

With a factored head such a model tells parameters for each symbol, from the symbols before it. With
a joint head it tells one vector for each pixel, from the symbols before the pixel, and the head
orders the channels. A *place* is what parameters are told for: a symbol, or a pixel.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head, JointHead
from tessella.models.condition import Condition, Conditioning
from tessella.models.density_model import DensityModel
from tessella.nn.stepping.state import State

LARGEST = 600_000_000
"""Numbers that one matrix of parameters may hold."""

TRAINED = 20
"""Bytes that training takes for a weight in float32: itself, its gradient, two moments of the
optimizer, average."""

MASKED = 30
"""The same of a weight under a mask: besides, the mask, the masked copy and the copy's gradient."""


@dataclass
class SequenceState(State):
    """What the states of sequence models share."""

    pixel: Any
    """How far a joint head is within the pixel; None at first."""


class SequenceModel(DensityModel):
    """What the models of the flattened image share.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
    """

    def __init__(self, grid: Grid, head: Head, conditioning: Conditioning) -> None:
        super().__init__(grid, head, conditioning)
        self.group = grid.channels if head.joint else 1
        """Symbols of a place."""
        self.places = grid.symbols // self.group
        self.free = 1 if grid.levels == 2 and not head.joint else head.size
        """Numbers that tell a place's parameters: one logit for two levels, whose other logit is
        zero."""

    @abstractmethod
    def learn(self, symbol: torch.Tensor, index: int, state: Any) -> None:
        """Take ``symbol [batch]``, number ``index`` of the sequence, into the state."""

    @abstractmethod
    def predict(self, place: int, state: Any) -> torch.Tensor:
        """Parameters of a place, whose earlier symbols the state has: ``[batch, size]``. Called
        once a place."""

    @torch.no_grad()
    def step(self, previous: torch.Tensor, index: int, state: Any) -> tuple[torch.Tensor, Any]:
        if index:
            self.learn(previous, index - 1, state)
        if not isinstance(self.head, JointHead):
            return self.predict(index, state), state
        pixel, channel = divmod(index, self.grid.channels)
        if channel == 0:
            state.pixel = self.head.start(self.predict(pixel, state))
        parameters, state.pixel = self.head.next(
            previous if channel else None, channel, state.pixel
        )
        return parameters, state

    def complete(self, free: torch.Tensor) -> torch.Tensor:
        """``[..., free]`` to the head's parameters ``[..., size]``."""
        return F.pad(free, (1, 0)) if self.free < self.head.size else free

    def free_bias(self) -> torch.Tensor:
        """A good start for the bias of what :meth:`complete` takes: ``[free]``."""
        return self.head.bias()[-self.free :]

    def on_grid(self, parameters: torch.Tensor) -> torch.Tensor:
        """``[batch, places, size]`` as :meth:`forward` returns them."""
        return parameters.unflatten(
            1, (self.grid.height, self.grid.width) if self.head.joint else self.grid.shape
        )

    def refuse_absurd(self, count: int, hint: str, bytes_each: int = TRAINED) -> None:
        """Refuse a matrix of ``count`` weights, which no ordinary machine trains.

        Args:
            count: weights of the matrix.
            hint: what to do, for the message.
            bytes_each: memory that training takes for a weight.

        Raises:
            ConfigError: above ``LARGEST``.
        """
        if count > LARGEST:
            raise ConfigError(
                f"{self.name} on a grid of {self.grid} would have a matrix of {count:,} weights, more than "
                f"{LARGEST:,} (to train it takes about {count * bytes_each / 2**30:.0f} GiB): {hint}"
            )

    def refuse_absurd_biases(self) -> None:
        """Refuse a bias of each class and place that is larger than a matrix may be.

        Raises:
            ConfigError: above ``LARGEST``.
        """
        self.refuse_absurd(
            (self.classes + 1) * self.places * self.free,
            f"each of the {self.classes} classes has biases of its own; take fewer classes, a smaller grid, fewer "
            "levels, or a head with few parameters (head='logistic-mixture')",
        )

    def classes_of(self, condition: Condition) -> torch.Tensor | slice:
        """What picks the rows of the images from a table ``[classes + 1, ...]``; of a model without
        classes its only row, which serves all images."""
        assert (condition.labels is None) == (not self.classes), (
            "a condition that model.condition did not make"
        )
        return slice(0, 1) if condition.labels is None else condition.labels

    def receptive_field(self) -> torch.Tensor:
        return torch.ones(self.grid.symbols, self.grid.symbols, dtype=torch.bool).tril(-1)


class SymbolInputs(nn.Module):
    """What a symbol is to the products of a sequence model: with two levels the bit itself, else a
    learned vector for each level, the same at all pixels, a free part and a direction times the
    level on [-1, 1].

    Args:
        grid: the grid that is modelled.
        width: length of the vectors above two levels.
    """

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.grid, self.width = grid, width if grid.levels > 2 else 1
        if grid.levels > 2:
            self.vectors = nn.Parameter(torch.randn(grid.channels, grid.levels, width) * 0.5)
            self.direction = nn.Parameter(torch.randn(grid.channels, 1, width))
            self.register_buffer(
                "values", torch.linspace(-1, 1, grid.levels)[:, None], persistent=False
            )
        else:
            self.register_buffer(
                "bits", torch.arange(2.0)[:, None].repeat(grid.channels, 1, 1), persistent=False
            )

    def table(self) -> torch.Tensor:
        """``[channels, levels, width]``."""
        if self.grid.levels == 2:
            return self.get_buffer("bits")
        return self.vectors + self.direction * self.get_buffer("values")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``int64 [batch, height, width, channels]`` to ``[batch, symbols, width]``."""
        first = torch.arange(self.grid.channels, device=x.device) * self.grid.levels
        return F.embedding((x + first).flatten(1), self.table().flatten(0, 1))

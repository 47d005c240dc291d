"""Models of the flattened image: one symbol after another, with no notion of a pixel's neighbours.

With a factored head such a model makes parameters for each symbol, from the symbols before it. With
a joint head it makes one vector for each pixel, from the symbols before the pixel, and the head
orders the channels. A *place* is what parameters are made for: a symbol, or a pixel.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head, JointHead
from tessella.models.condition import Condition, Conditioning
from tessella.models.density_model import DensityModel
from tessella.nn.stepping.state import State

MAX_WEIGHTS = 600_000_000
"""Numbers that one matrix of parameters may hold."""

TRAINING_BYTES = 20
"""Bytes that training takes for a weight in float32: itself, its gradient, two moments of the
optimizer, average."""

MASKED_TRAINING_BYTES = 30
"""As ``TRAINING_BYTES``, for a weight under a mask: also the mask, the masked copy and its gradient."""


@dataclass
class SequenceState(State):
    """Base of the states of sequence models."""

    pixel: State | None
    """How far a joint head is within the pixel; None at first."""


SequenceStateT = TypeVar("SequenceStateT", bound=SequenceState)


class SequenceModel(DensityModel, Generic[SequenceStateT]):
    """Base of the models of the flattened image.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
    """

    def __init__(self, grid: Grid, head: Head, conditioning: Conditioning) -> None:
        super().__init__(grid, head, conditioning)
        self.symbols_per_place = grid.channels if head.joint else 1
        """Symbols of a place."""
        self.places = grid.symbols // self.symbols_per_place
        self.free_size = 1 if grid.levels == 2 and not head.joint else head.size
        """Numbers that determine a place's parameters: one logit for two levels, whose other logit
        is zero."""

    @abstractmethod
    def observe(self, symbol: torch.Tensor, index: int, state: SequenceStateT) -> None:
        """Take ``symbol [batch]``, number ``index`` of the sequence, into the state."""

    @abstractmethod
    def predict(self, place: int, state: SequenceStateT) -> torch.Tensor:
        """Parameters of a place, whose earlier symbols the state has: ``[batch, size]``. Called
        once a place."""

    @torch.no_grad()
    def step(self, previous: torch.Tensor, index: int, state: State) -> tuple[torch.Tensor, State]:
        assert isinstance(state, SequenceState)
        family_state = cast("SequenceStateT", state)
        # The symbol before this one has become known.
        if index:
            self.observe(previous, index - 1, family_state)
        if not isinstance(self.head, JointHead):
            return self.predict(index, family_state), state
        # One prediction serves a pixel; the head makes its channels of it, one after the other.
        pixel, channel = divmod(index, self.grid.channels)
        if channel == 0:
            state.pixel = self.head.start(self.predict(pixel, family_state))
        assert state.pixel is not None
        before = previous if channel else None
        parameters, state.pixel = self.head.next(before, channel, state.pixel)
        return parameters, state

    def parameters_from_free(self, free: torch.Tensor) -> torch.Tensor:
        """``[..., free]`` to the head's parameters ``[..., size]``."""
        # With two levels the logit of level 0 is zero.
        return F.pad(free, (1, 0)) if self.free_size < self.head.size else free

    def free_bias(self) -> torch.Tensor:
        """A good start for the bias of the free parameters: ``[free]``."""
        return self.head.bias()[-self.free_size :]

    def on_grid(self, parameters: torch.Tensor) -> torch.Tensor:
        """``[batch, places, size]`` as :meth:`forward` returns them."""
        places = (self.grid.height, self.grid.width) if self.head.joint else self.grid.shape
        return parameters.unflatten(1, places)

    def check_matrix(self, count: int, hint: str, bytes_each: int = TRAINING_BYTES) -> None:
        """Refuse a matrix that no ordinary machine trains.

        Args:
            count: weights of the matrix.
            hint: how to make it smaller, for the message.
            bytes_each: memory that training takes for a weight.

        Raises:
            ConfigError: above ``MAX_WEIGHTS``.
        """
        if count > MAX_WEIGHTS:
            gibibytes = count * bytes_each / 2**30
            raise ConfigError(
                f"{self.name} on a grid of {self.grid} would have a matrix of {count:,} weights, "
                f"more than {MAX_WEIGHTS:,} (to train it takes about {gibibytes:.0f} GiB): {hint}"
            )

    def check_biases(self) -> None:
        """Refuse a bias of each class and place that is larger than a matrix may be.

        Raises:
            ConfigError: above ``MAX_WEIGHTS``.
        """
        self.check_matrix(
            (self.classes + 1) * self.places * self.free_size,
            f"each of the {self.classes} classes has biases of its own; take fewer classes, "
            "a smaller grid, fewer levels, or a head with few parameters (head='logistic-mixture')",
        )

    def class_rows(self, condition: Condition) -> torch.Tensor | slice:
        """The index that picks the rows of the images from a table ``[classes + 1, ...]``; for a
        model without classes its only row, which serves all images."""
        if condition.labels is None:
            assert not self.classes, "a condition that model.condition did not make"
            return slice(0, 1)
        assert self.classes, "a condition that model.condition did not make"
        return condition.labels

    def receptive_field(self) -> torch.Tensor:
        # Every symbol sees all before it.
        return torch.ones(self.grid.symbols, self.grid.symbols, dtype=torch.bool).tril(-1)


class SymbolInputs(nn.Module):
    """Input vectors of symbols: with two levels the bit itself, else a learned vector for each
    level.

    The vectors are shared by all pixels: a free part plus a direction times the level on [-1, 1].

    Args:
        grid: the grid that is modelled.
        width: length of the vectors above two levels.
    """

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.grid = grid
        # A bit needs no vector: one weight says all about it.
        self.width = width if grid.levels > 2 else 1
        if grid.levels > 2:
            self.vectors = nn.Parameter(torch.randn(grid.channels, grid.levels, width) * 0.5)
            self.direction = nn.Parameter(torch.randn(grid.channels, 1, width))
            values = torch.linspace(-1, 1, grid.levels)[:, None]
            self.register_buffer("values", values, persistent=False)
        else:
            bits = torch.arange(2.0)[:, None].repeat(grid.channels, 1, 1)
            self.register_buffer("bits", bits, persistent=False)

    def table(self) -> torch.Tensor:
        """``[channels, levels, width]``."""
        if self.grid.levels == 2:
            return self.get_buffer("bits")
        return self.vectors + self.direction * self.get_buffer("values")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``int64 [batch, height, width, channels]`` to ``[batch, symbols, width]``."""
        # One table of all channels: symbol k of channel c is row c * levels + k.
        first_row = torch.arange(self.grid.channels, device=x.device) * self.grid.levels
        return F.embedding((x + first_row).flatten(1), self.table().flatten(0, 1))

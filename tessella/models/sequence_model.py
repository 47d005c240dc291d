"""Models of the flattened image: a sequence of symbols, without two-dimensional neighbourhoods.

With a factored head, such a model makes parameters for each symbol from the symbols before it. With
a joint head, it makes one parameter vector for each pixel from the symbols before that pixel, and
the head orders the channels. A *place* is a position of this sequence of predictions: a symbol with
a factored head, a pixel with a joint head.
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
from tessella.models.density_model import DensityModel, JointWalk
from tessella.nn.stepping.state import State

MAX_WEIGHTS = 600_000_000
"""Upper limit on the number of weights in one matrix."""

TRAINING_BYTES = 20
"""Bytes that training needs for each float32 weight: the weight, its gradient, two moments of the
optimizer, and a running average."""

MASKED_TRAINING_BYTES = 30
"""The same for a weight under a mask, which adds the mask, the masked weight and its gradient."""


@dataclass
class SequenceState(State):
    """Base of the states of sequence models."""

    walk: JointWalk
    """The walk of a joint head."""


SequenceStateT = TypeVar("SequenceStateT", bound=SequenceState)


class SequenceModel(DensityModel, Generic[SequenceStateT]):
    """Base of the models of the flattened image.

    A family defines :meth:`observe` and :meth:`predict`, from which this class builds its cached
    step.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
    """

    def __init__(self, grid: Grid, head: Head, conditioning: Conditioning) -> None:
        super().__init__(grid, head, conditioning)
        self.symbols_per_place = grid.channels if head.joint else 1
        """1, or the number of channels for a joint head, whose places are pixels."""
        self.places = grid.symbols // self.symbols_per_place
        self.free_size = 1 if grid.levels == 2 and not head.joint else head.size
        """How many of a place's parameters the network computes. With two levels it computes one
        logit, and the other is fixed at zero."""

    @abstractmethod
    def observe(self, symbol: torch.Tensor, index: int, state: SequenceStateT) -> None:
        """Update the state with a symbol that has become known.

        Args:
            symbol: ``int64 [batch]``.
            index: its index in the sequence of symbols.
            state: updated in place.
        """

    @abstractmethod
    def predict(self, place: int, state: SequenceStateT) -> torch.Tensor:
        """Parameters of a place given the symbols before it: ``[batch, size]``.

        It is called once for each place, after :meth:`observe` for all symbols before it.
        """

    @torch.no_grad()
    def step(self, previous: torch.Tensor, index: int, state: State) -> tuple[torch.Tensor, State]:
        assert isinstance(state, SequenceState)
        family_state = cast("SequenceStateT", state)
        # The previous symbol has just become known.
        if index:
            self.observe(previous, index - 1, family_state)
        if not isinstance(self.head, JointHead):
            return self.predict(index, family_state), state
        # One prediction is made for each pixel, and the head turns it into its channels, in order.
        pixel, channel = divmod(index, self.grid.channels)
        parameters = self.predict(pixel, family_state) if channel == 0 else None
        return self.walk_pixel(parameters, previous, index, state.walk), state

    def parameters_from_free(self, free: torch.Tensor) -> torch.Tensor:
        """Add the fixed parameters: ``[..., free_size]`` to ``[..., size]``."""
        # With two levels the logit of level 0 is fixed at zero.
        return F.pad(free, (1, 0)) if self.free_size < self.head.size else free

    def free_bias(self) -> torch.Tensor:
        """Initial bias of the layer that makes the free parameters: ``[free_size]``."""
        return self.head.bias()[-self.free_size :]

    def on_grid(self, parameters: torch.Tensor) -> torch.Tensor:
        """Reshape ``[batch, places, size]`` to what :meth:`forward` returns."""
        places = (self.grid.height, self.grid.width) if self.head.joint else self.grid.shape
        return parameters.unflatten(1, places)

    def check_matrix(self, count: int, hint: str, bytes_each: int = TRAINING_BYTES) -> None:
        """Raise an error for a matrix that is too large to train on an ordinary machine.

        Args:
            count: number of weights.
            hint: how to make the matrix smaller, for the message.
            bytes_each: memory that training needs for each weight, in bytes.

        Raises:
            ConfigError: for more than ``MAX_WEIGHTS`` weights.
        """
        if count > MAX_WEIGHTS:
            gibibytes = count * bytes_each / 2**30
            raise ConfigError(
                f"{self.name} on a grid of {self.grid} would have a matrix of {count:,} weights, "
                f"more than {MAX_WEIGHTS:,} (to train it takes about {gibibytes:.0f} GiB): {hint}"
            )

    def check_biases(self) -> None:
        """Raise an error if the table of biases, one for each class and place, is too large.

        Raises:
            ConfigError: for more than ``MAX_WEIGHTS`` biases.
        """
        self.check_matrix(
            (self.classes + 1) * self.places * self.free_size,
            f"each of the {self.classes} classes has biases of its own; take fewer classes, "
            "a smaller grid, fewer levels, or a head with few parameters (head='logistic-mixture')",
        )

    def class_rows(self, condition: Condition) -> torch.Tensor | slice:
        """Index that selects each image's row of a table ``[classes + 1, ...]``.

        A model without classes has a single row, which all images share.
        """
        # These assertions catch a condition that belongs to another model.
        if condition.labels is None:
            assert not self.classes, "a condition that model.condition did not make"
            return slice(0, 1)
        assert self.classes, "a condition that model.condition did not make"
        return condition.labels

    def receptive_field(self) -> torch.Tensor:
        # Every symbol depends on all symbols before it.
        return torch.ones(self.grid.symbols, self.grid.symbols, dtype=torch.bool).tril(-1)


class SymbolInputs(nn.Module):
    """Input vectors of symbols, shared by all pixels.

    With two levels the vector is the bit itself. With more levels it is a learned vector for each
    level plus a learned direction times the level, scaled to [-1, 1].

    Args:
        grid: the modelled grid.
        width: length of the vectors, for more than two levels.
    """

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.grid = grid
        # A bit needs no longer vector: one weight per output can express all it has to say.
        self.width = width if grid.levels > 2 else 1
        if grid.levels > 2:
            self.vectors = nn.Parameter(torch.randn(grid.channels, grid.levels, width) * 0.5)
            self.direction = nn.Parameter(torch.randn(grid.channels, 1, width))
            values = torch.linspace(-1, 1, grid.levels)[:, None]
            self.register_buffer("values", values, persistent=False)
        else:
            # [channels, 2, 1]: the same table as for vectors, so that families need not tell.
            bits = torch.arange(2.0)[:, None].repeat(grid.channels, 1, 1)
            self.register_buffer("bits", bits, persistent=False)

    def table(self) -> torch.Tensor:
        """Input vectors of every channel and level: ``[channels, levels, width]``."""
        if self.grid.levels == 2:
            return self.get_buffer("bits")
        return self.vectors + self.direction * self.get_buffer("values")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``int64 [batch, height, width, channels]`` to ``[batch, symbols, width]``."""
        # The channels' tables are stacked: level k of channel c is row c * levels + k.
        first_row = torch.arange(self.grid.channels, device=x.device) * self.grid.levels
        return F.embedding((x + first_row).flatten(1), self.table().flatten(0, 1))

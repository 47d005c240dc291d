"""Models of the flattened image: a sequence of symbols, without two-dimensional neighbourhoods.

With a factored head, such a model makes parameters for each symbol from the symbols before it. With
a joint head, it makes one parameter vector for each pixel from the symbols before that pixel, and
the head orders the channels. A *place* is a position of this sequence of predictions: a symbol with
a factored head, a pixel with a joint head.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.condition import Condition, Conditioning
from tessella.models.density_model import DensityModel, JointWalk
from tessella.models.program_model import ProgramModel, ProgramState
from tessella.nn.sequence_step import SequenceStep
from tessella.nn.stepping.runs import Numbers, Runs, SteppedSymbols
from tessella.nn.stepping.step import MemoryAllocator, StateMemory

MAX_WEIGHTS = 600_000_000
"""Upper limit on the number of weights in one matrix."""

TRAINING_BYTES = 20
"""Bytes that training needs for each float32 weight: the weight, its gradient, two moments of the
optimizer, and a running average."""

MASKED_TRAINING_BYTES = 30
"""The same for a weight under a mask, which adds the mask, the masked weight and its gradient."""


class FlattenedModel(DensityModel):
    """Base of the models of the flattened image: places, and the parameters of each.

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


class SequenceModel(FlattenedModel, ProgramModel):
    """Base of the models of the flattened image that step through programs.

    A family defines ``forward`` and :meth:`write`.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
    """

    @abstractmethod
    def write(self, memory: MemoryAllocator, labels: torch.Tensor | None) -> SequenceStep:
        """Write the programs of a step.

        Args:
            memory: the memory of the state.
            labels: class of each image, ``int64 [batch]``.
        """

    @torch.no_grad()
    def state_in(self, memory: StateMemory, condition: Condition, batch: int) -> ProgramState:
        # Called only because it checks the condition.
        self.class_rows(condition)
        state = self.new_state(memory, condition.labels, batch)
        state.programs = self.write_programs(state, batch)
        return state

    def new_state(
        self, memory: StateMemory, labels: torch.Tensor | None, batch: int
    ) -> ProgramState:
        """A state without programs; a family overrides this if its state holds more."""
        return ProgramState(JointWalk(), labels, memory)

    def new_step(
        self, memory: MemoryAllocator, values: Mapping[str, Sequence[int]], size: int = 0
    ) -> SequenceStep:
        """A step without operations.

        Args:
            memory: the memory of the state.
            values: value of each variable at every place, by its name.
            size: number of parameters of a place, by default those of the head.
        """
        channels = self.grid.channels // self.symbols_per_place
        return SequenceStep(
            memory, self.symbols_per_place, channels, size or self.head.size, values
        )

    def write_programs(self, state: ProgramState, batch: int) -> SteppedSymbols:
        memory = MemoryAllocator(state.memory, batch, next(self.parameters()))
        step = self.write(memory, state.labels)
        # With a factored head a place has a single symbol, whatever its channel.
        newest = step.symbols * (self.grid.channels // self.symbols_per_place)
        add_runs = partial(self._add_runs, step)
        return SteppedSymbols(newest, add_runs, step.parameters)

    def _add_runs(self, step: SequenceStep, runs: Runs, index: Numbers) -> None:
        """See :attr:`SteppedSymbols.add_runs`."""
        begins_place = index % self.symbols_per_place == 0
        step.add_runs(runs, index // self.symbols_per_place, when=begins_place)


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

"""Independent pixels: each position has its own distribution, whatever the other pixels are.

This is the baseline for all other models. It can be fitted in closed form, by counting, so tests
also use it as an exact reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import FactoredHead, Head, JointHead
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.density_model import DensityModel, JointWalk
from tessella.models.receptive_fields import symbol_field
from tessella.nn.stepping.state import State


@dataclass
class IndependentState(State):
    """The class of each image, and the state of a joint head within the current pixel."""

    labels: torch.Tensor
    """``int64 [batch]``."""
    walk: JointWalk = field(default_factory=JointWalk)


class Independent(DensityModel):
    """``independent``: one parameter vector for each position and class.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
    """

    name = "independent"

    def __init__(self, grid: Grid, head: Head, conditioning: Conditioning) -> None:
        super().__init__(grid, head, conditioning)
        shape = (grid.height, grid.width) if head.joint else grid.shape
        # One row for each class, and one for the null class.
        noise = torch.randn(self.classes + 1, *shape, head.size)
        self.table = nn.Parameter(head.bias() + 0.1 * noise)

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        # The prediction is the same whatever the symbols are.
        if condition.labels is None:
            return self.table[0].expand(x.shape[0], *self.table.shape[1:])
        return self.table[condition.labels]

    def init_state(self, batch: int, cond: Cond = None) -> IndependentState:
        labels = self.condition(cond, batch).labels
        if labels is None:
            labels = torch.zeros(batch, dtype=torch.int64, device=self.device)
        return IndependentState(labels)

    def step(
        self, previous: torch.Tensor, index: int, state: State
    ) -> tuple[torch.Tensor, IndependentState]:
        assert isinstance(state, IndependentState)
        row, column, channel = self.grid.place(index)
        parameters = self.table[:, row, column].detach()[state.labels]
        if not isinstance(self.head, JointHead):
            return parameters[:, channel], state
        return self.walk_pixel(parameters, previous, index, state.walk), state

    @torch.no_grad()
    def fit(self, x: torch.Tensor | Iterable[torch.Tensor]) -> Independent:
        """Set the probabilities to smoothed histograms of ``x``.

        Args:
            x: symbols as :meth:`Grid.check` returns them, ``int64 [n, height, width, channels]``,
                or an iterable of such batches.

        Returns:
            The model itself.

        Raises:
            ConfigError: when the head is joint, or the model has classes.
        """
        if not isinstance(self.head, FactoredHead) or self.classes:
            raise ConfigError("histograms fit the categorical and ordinal heads, without classes")
        grid = self.grid
        # Laplace's rule: start with one count for every level.
        counts = torch.ones(grid.symbols * grid.levels, dtype=torch.float64)
        # Symbol t at level k is counted in bin t * levels + k.
        first_bin = torch.arange(grid.symbols) * grid.levels
        parts = [x] if isinstance(x, torch.Tensor) else x
        for part in parts:
            bins = (part.flatten(1).cpu() + first_bin).flatten()
            counts += torch.bincount(bins, minlength=len(counts))
        probabilities = counts.view(grid.symbols, grid.levels)
        probabilities /= probabilities.sum(1, keepdim=True)
        parameters = self.head.parameters_from_table(probabilities.log())
        self.table[0] = parameters.view(self.table.shape[1:]).to(self.table)
        return self

    def output_weights(self) -> Sequence[torch.Tensor]:
        return [self.table]

    def sizes(self) -> dict[str, object]:
        return {}

    def receptive_field(self) -> torch.Tensor:
        # No pixel sees another. Within a pixel, a joint head conditions on earlier channels.
        pixels = torch.zeros(self.grid.pixels, self.grid.pixels, dtype=torch.bool)
        return symbol_field(self.grid, pixels, inside=self.head.joint)

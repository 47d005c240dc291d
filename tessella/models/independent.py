"""Independent pixels: a distribution for each position, blind to all others.

The baseline every model is measured against, and the analytic oracle of the tests: fitted to counts it has a closed
form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import CategoricalHead, Head, JointHead
from tessella.models.base import Cond, DensityModel, symbol_field
from tessella.nn.state import State


@dataclass
class IndependentState(State):
    """The class of each image, and how far a joint head is within the pixel."""

    labels: torch.Tensor | None
    pixel: Any = None


class Independent(DensityModel):
    """``independent``: one parameter vector for each position (and class).

    Args:
        grid, head, classes: see :class:`DensityModel`.
    """

    name = "independent"

    def __init__(self, grid: Grid, head: Head, classes: int = 0) -> None:
        super().__init__(grid, head, classes)
        shape = (grid.height, grid.width) if head.joint else grid.shape
        self.table = nn.Parameter(head.bias() + 0.1 * torch.randn(classes + 1, *shape, head.size))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        if labels is None:
            return self.table[0].expand(len(x), *self.table.shape[1:])
        return self.table[labels]

    def init_state(self, batch: int, cond: Cond = None) -> IndependentState:
        labels = self.labels(cond, batch)
        return IndependentState(torch.zeros(batch, dtype=torch.int64, device=self.device) if labels is None else labels)

    def step(
        self, previous: torch.Tensor, index: int, state: IndependentState
    ) -> tuple[torch.Tensor, IndependentState]:
        row, column, channel = self.grid.place(index)
        parameters = self.table[:, row, column].detach()[state.labels]
        if not isinstance(self.head, JointHead):
            return parameters[:, channel], state
        if channel == 0:
            state.pixel = self.head.start(parameters)
        step, state.pixel = self.head.next(previous if channel else None, channel, state.pixel)
        return step, state

    @torch.no_grad()
    def fit(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Independent:
        """Set the probabilities to the histograms of ``x``, one count added to each level (Laplace's rule of
        succession).

        Args:
            x: checked symbols ``int64 [n, height, width, channels]``.
            labels: their classes, for a model with classes; the null class gets the histogram over all.

        Raises:
            ConfigError: when the head is not categorical.
        """
        if not isinstance(self.head, CategoricalHead):
            raise ConfigError("histograms fit the categorical head only")
        for label in range(self.classes + 1):
            part = x if labels is None or label == self.classes else x[labels == label]
            counts = torch.ones(self.grid.symbols, self.grid.levels, dtype=torch.float64)
            flat = part.flatten(1).T
            counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float64))
            self.table[label] = (counts / counts.sum(1, keepdim=True)).log().view(self.table.shape[1:]).to(self.table)
        return self

    def sizes(self) -> dict[str, Any]:
        return {}

    def receptive_field(self) -> torch.Tensor:
        pixels = torch.zeros(self.grid.pixels, self.grid.pixels, dtype=torch.bool)
        return symbol_field(self.grid, pixels, inside=self.head.joint)

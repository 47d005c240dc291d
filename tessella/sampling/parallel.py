"""Exact sampling by whole passes over the grid, see ``tessella.sampling.fixed_point``.

Final symbols are not computed again where that can be avoided. A finished image leaves the batch,
and a pass begins at the first row that is not final in all images, if the model supports that
(:meth:`DensityModel.forward_from`).
"""

from __future__ import annotations

import torch

from tessella.models.condition import Condition
from tessella.models.density_model import DensityModel, check_finite
from tessella.noise import Noise
from tessella.sampling.fixed_point import FixedPoint
from tessella.sampling.known_symbols import KnownSymbols
from tessella.sampling.rule import Rule

CACHED_NOISE = 1 << 25
"""How many values of noise are kept between passes; the rest is generated again in each pass."""


class Passes(FixedPoint):
    """Draws ``n`` images by passes over whole grids.

    Args:
        model: a density model.
        condition: condition of each image; with guidance, that of
            :func:`~tessella.sampling.walk.guidance_condition`.
        noise: noise of the images.
        rule: see :class:`Rule`.
        kept: symbols to keep, see :func:`tessella.complete`.
    """

    def __init__(
        self,
        model: DensityModel,
        condition: Condition,
        noise: Noise,
        rule: Rule,
        kept: KnownSymbols | None = None,
    ) -> None:
        # Symbols that are not known begin as zeros, which are as good a forecast as anything.
        super().__init__(model, noise, rule, kept)
        self.condition = condition
        self._noise_of_rows: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def advance(self) -> None:
        """Do one pass over the images that are not finished."""
        grid = self.model.grid
        active = (self.final < grid.symbols).nonzero()[:, 0]
        first_row = int(self.final[active].min()) // grid.row_symbols
        # Rows above the first open row are never computed again, so drop their noise.
        for row in list(self._noise_of_rows):
            if row < first_row:
                del self._noise_of_rows[row]
        drawn = self._draw_rows(active, first_row)
        self._accept(drawn, active, first_row * grid.row_symbols)
        if self.model.symbols_independent:
            self.final[active] = grid.symbols

    def _draw_rows(self, active: torch.Tensor, first_row: int) -> torch.Tensor:
        """Draw the rows from ``first_row`` on, all in one pass.

        Args:
            active: indices of the images, ``int64 [active images]``.
            first_row: index of the first row to draw.

        Returns:
            ``int64 [active images, symbols of these rows]``.
        """
        grid = self.model.grid
        x = self.x[active].unflatten(1, grid.shape)
        condition_rows = active
        if self.rule.guidance != 1:
            # Every image appears twice: with its class, and then with the null class.
            condition_rows = torch.cat([active, active + len(self.x)])
            x = x.repeat(2, 1, 1, 1)
        condition = self.condition.select(condition_rows.to(self.model.device))
        parameters = self.model.head_parameters(x, condition, first_row)
        drawn = []
        best_scores = []
        for row in range(first_row, grid.height):
            # Go row by row, because the tables of whole images may not fit into memory.
            distribution = self.model.head(parameters[:, row - first_row : row - first_row + 1])
            table = self._guided(distribution.table(x[:, row : row + 1])).flatten(1, 3)
            score = self.rule(table) + self._noise(row, active)  # [images, row symbols, levels]
            best, symbol = score.max(dim=-1)
            drawn.append(symbol)
            best_scores.append(best.sum())
        check_finite(torch.stack(best_scores))
        return torch.cat(drawn, dim=1)

    def _noise(self, row: int, active: torch.Tensor) -> torch.Tensor:
        """The noise of a row: ``[active images, symbols of a row, levels]``."""
        if row in self._noise_of_rows:
            return self._noise_of_rows[row][active]
        grid = self.model.grid
        places = range(row * grid.row_symbols, (row + 1) * grid.row_symbols)
        noise = torch.stack([self.noise.at(place) for place in places], dim=1)
        if (len(self._noise_of_rows) + 1) * noise.numel() <= CACHED_NOISE:
            self._noise_of_rows[row] = noise
        return noise[active]

"""Exact sampling by whole passes over the grid: the sample as a fixed point.

The noise of every symbol is fixed beforehand, so a sample is the one grid that a pass maps to
itself: ``x_t = argmax(log p(. | x_<t) + noise_t)``. Starting from a forecast, passes are repeated
until nothing changes (Jacobi iteration, Song et al. 2021, "Accelerating Feedforward Computation via
Parallel Nonlinear Equation Solving"; predictive sampling, Wiggers and Hoogeboom 2020, "Predictive
Sampling with Forecasting Autoregressive Models"). A symbol depends only on the symbols before it.
So if the first ``t`` symbols of a grid are final, a pass makes symbol ``t`` final, and also the
symbols after it up to the first wrong forecast. The result equals that of the sequential walk, and
the number of passes is at most the number of symbols.

Final symbols are not computed again where that can be avoided. A finished image leaves the batch,
and a pass begins at the first row that is not final in all images, if the model supports that
(:meth:`DensityModel.forward_from`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tessella.heads import Distribution
from tessella.models.condition import Condition
from tessella.models.density_model import DensityModel, check_finite
from tessella.noise import Noise
from tessella.sampling.known_symbols import KnownSymbols
from tessella.sampling.rule import Rule
from tessella.sampling.walk import guided

CACHED_NOISE = 1 << 25
"""How many values of noise are kept between passes; the rest is generated again in each pass."""


class Passes:
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
        self.model = model
        self.condition = condition
        self.noise = noise
        self.rule = rule
        self.kept = kept
        self.x = torch.zeros(noise.n, model.grid.symbols, dtype=torch.int64, device=model.device)
        """The current symbols, final or forecast: ``int64 [n, symbols]``."""
        # Known symbols are perfect forecasts; for the others, zeros are as good as anything.
        if kept is not None:
            self.x.copy_(kept.x)
        self.final = torch.zeros(noise.n, dtype=torch.int64)
        """How many symbols of each image are final: ``int64 [n]``."""
        self.passes = torch.zeros(noise.n, dtype=torch.int64)
        """How many passes each image has had: ``int64 [n]``."""
        self._noise_of_rows: dict[int, torch.Tensor] = {}

    def walk(self, every: int = 0) -> Iterator[tuple[int, torch.Tensor]]:
        """Draw the images, and yield partial grids like :func:`tessella.sampling.walk.walk`.

        A pass may finish more than ``every`` symbols; then some partial grids are skipped.

        Raises:
            NumericalError: when the model returns NaN or infinity.
        """
        grid = self.model.grid
        every = every or grid.row_symbols
        shown = 0
        seen = torch.zeros(len(self.x), *grid.shape, dtype=torch.int64, device=self.x.device)
        while shown < grid.symbols:
            self.advance()
            mark = int(self.final.min())
            # Show a multiple of `every` symbols, or all of them at the end.
            if mark < grid.symbols:
                mark = mark // every * every
            if mark > shown:
                seen.flatten(1)[:, shown:mark] = self.x[:, shown:mark]
                shown = mark
                yield shown, seen

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
        start = first_row * grid.row_symbols
        before = self.x[active, start:]
        # Final symbols stay, even if rounding would draw a different symbol in this pass.
        place = torch.arange(start, grid.symbols)
        final = (place < self.final[active, None]).to(drawn.device)
        drawn = torch.where(final, before, drawn)
        self.x[active, start:] = drawn
        # All symbols up to and including the first changed one were drawn from correct
        # predecessors, and so are final. Every pass makes at least one more symbol final.
        differs = (drawn != before).cpu()
        after_change = start + differs.int().argmax(1) + 1
        after_change = torch.where(differs.any(1), after_change, grid.symbols)
        self.final[active] = torch.maximum(after_change, self.final[active] + 1)
        if self.model.symbols_independent:
            self.final[active] = grid.symbols
        self.passes[active] += 1

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
            table = self._table(distribution, x[:, row : row + 1]).flatten(1, 3)
            score = self.rule(table) + self._noise(row, active)  # [images, row symbols, levels]
            best, symbol = score.max(dim=-1)
            drawn.append(symbol)
            best_scores.append(best.sum())
        check_finite(torch.stack(best_scores))
        symbols = torch.cat(drawn, dim=1)
        if self.kept is None:
            return symbols
        start = first_row * grid.row_symbols
        known = self.kept.known[active, start:]
        return torch.where(known, self.kept.x[active, start:], symbols)

    def _table(self, distribution: Distribution, x: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of all levels, after guidance: ``[images, ..., levels]``."""
        table = distribution.table(x)
        if self.rule.guidance == 1:
            return table
        return guided(table, self.rule.guidance).table()

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

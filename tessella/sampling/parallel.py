"""Exact sampling by whole passes over the grid: the sample as a fixed point.

The noise of every symbol is fixed before the first is drawn, so an image is the one grid that a
pass turns into
itself: ``x_t = argmax(log p(. | x_<t) + noise_t)``. Passes are repeated from a forecast until
nothing changes (Jacobi iteration, Song et al. 2021, "Accelerating Feedforward Computation via
Parallel Nonlinear Equation Solving"; predictive sampling, Wiggers and Hoogeboom 2020, "Predictive
Sampling with Forecasting Autoregressive Models"). Since a symbol depends on those before it only, a
pass over a grid whose first ``t`` symbols are final gives symbol ``t`` and as many after it as the
forecast had right: what the sequential walk draws, in at most as many passes as there are symbols.

What is final is not computed again: a finished image leaves the batch, and a pass begins at the
first row that is not final in all images, where the family can (:meth:`DensityModel.forward_from`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tessella.heads import Distribution
from tessella.models.condition import Condition
from tessella.models.density_model import DensityModel
from tessella.noise import Noise
from tessella.sampling.rule import Rule, guided

KEPT = 1 << 25
"""Numbers of noise that are kept from pass to pass; what goes beyond is made again when it is
needed."""


class Passes:
    """Draws ``n`` images by passes over whole grids.

    Args:
        model: a density model.
        condition: of the images; with guidance, of the images and then of the same without their
            class.
        noise: of the images.
        rule: see :class:`Rule`.
        x, known: symbols ``int64 [n, symbols]`` that are given, and where, see :func:`complete`.
    """

    def __init__(
        self,
        model: DensityModel,
        condition: Condition,
        noise: Noise,
        rule: Rule,
        x: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
    ) -> None:
        self.model, self.condition, self.noise, self.rule = model, condition, noise, rule
        self.given, self.known = x, known
        self.x = torch.zeros(noise.n, model.grid.symbols, dtype=torch.int64, device=model.device)
        """The forecast, then the images so far."""
        if x is not None:
            self.x.copy_(x)
        self.final = torch.zeros(noise.n, dtype=torch.int64)
        """How many symbols of each image are final."""
        self.passes = torch.zeros(noise.n, dtype=torch.int64)
        """How many passes each image has had."""
        self._kept: dict[int, torch.Tensor] = {}

    def walk(self, every: int = 0) -> Iterator[tuple[int, torch.Tensor]]:
        """As :func:`tessella.sampling.walk.walk`; passes over several marks at once yield the last
        of them."""
        grid = self.model.grid
        every, shown = every or grid.row_symbols, 0
        seen = torch.zeros(len(self.x), *grid.shape, dtype=torch.int64, device=self.x.device)
        while shown < grid.symbols:
            self.advance()
            final = int(self.final.min())
            mark = final if final == grid.symbols else final // every * every
            if mark > shown:
                seen.flatten(1)[:, shown:mark] = self.x[:, shown:mark]
                shown = mark
                yield shown, seen

    @torch.no_grad()
    def advance(self) -> None:
        """One pass over the images that are not finished."""
        grid = self.model.grid
        active = (self.final < grid.symbols).nonzero()[:, 0]
        first = int(self.final[active].min()) // grid.row_symbols
        self._kept = {row: noise for row, noise in self._kept.items() if row >= first}
        drawn = self._drawn(active, first)
        start = first * grid.row_symbols
        before = self.x[active, start:]
        # What is final stays, whatever rounding makes of it in another pass.
        place = torch.arange(start, grid.symbols)
        drawn = torch.where((place < self.final[active, None]).to(drawn.device), before, drawn)
        self.x[active, start:] = drawn
        differs = (drawn != before).cpu()
        changed = torch.where(differs.any(1), start + differs.int().argmax(1) + 1, grid.symbols)
        self.final[active] = torch.maximum(changed, self.final[active] + 1)
        self.passes[active] += 1

    def _drawn(self, active: torch.Tensor, first: int) -> torch.Tensor:
        """What a pass draws in the rows from ``first`` on: ``int64 [active images, symbols]``."""
        model, grid = self.model, self.model.grid
        x = self.x[active].unflatten(1, grid.shape)
        rows = active if self.rule.guidance == 1 else torch.cat([active, active + len(self.x)])
        x = x if self.rule.guidance == 1 else x.repeat(2, 1, 1, 1)
        parameters = model.forward_from(x, self.condition.select(rows.to(model.device)), first)
        drawn = []
        for row in range(first, grid.height):
            distribution = model.head(parameters[:, row - first : row - first + 1])
            table = self._table(distribution, x[:, row : row + 1]).flatten(1, 3)
            drawn.append((self.rule(table) + self._noise(row, active)).argmax(dim=-1))
        symbols = torch.cat(drawn, dim=1)
        if self.known is None or self.given is None:
            return symbols
        start = first * grid.row_symbols
        return torch.where(self.known[active, start:], self.given[active, start:], symbols)

    def _table(self, distribution: Distribution, x: torch.Tensor) -> torch.Tensor:
        table = distribution.table(x)
        return table if self.rule.guidance == 1 else guided(table, self.rule.guidance).table()

    def _noise(self, row: int, active: torch.Tensor) -> torch.Tensor:
        """The noise of a row: ``[active images, symbols of a row, levels]``."""
        if row not in self._kept:
            grid = self.model.grid
            places = range(row * grid.row_symbols, (row + 1) * grid.row_symbols)
            noise = torch.stack([self.noise.at(place) for place in places], dim=1)
            if (len(self._kept) + 1) * noise.numel() > KEPT:
                return noise[active]
            self._kept[row] = noise
        return self._kept[row][active]

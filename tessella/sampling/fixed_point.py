"""A sample as a fixed point: what the methods that draw many symbols at once have in common.

The noise of every symbol is fixed beforehand, so a sample is the one grid that drawing all symbols
again, each given those before it, maps to itself: ``x_t = argmax(log p(. | x_<t) + noise_t)``.
Guesses are drawn again until nothing changes (Jacobi iteration, Song et al. 2021, "Accelerating
Feedforward Computation via Parallel Nonlinear Equation Solving"; predictive sampling, Wiggers and
Hoogeboom 2020, "Predictive Sampling with Forecasting Autoregressive Models"). If the first ``t``
symbols of a grid are final, a pass makes symbol ``t`` final, and also the symbols after it up to
the first wrong guess. The result equals that of the sequential walk, and the number of passes is at
most the number of symbols.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch

from tessella.models.density_model import DensityModel
from tessella.noise import Noise
from tessella.sampling.known_symbols import KnownSymbols
from tessella.sampling.rule import Rule
from tessella.sampling.walk import guided


class FixedPoint(ABC):
    """Draws ``n`` images by passes over many symbols.

    Args:
        model: a density model.
        noise: noise of the images.
        rule: see :class:`Rule`.
        kept: symbols to keep, see :func:`tessella.complete`.
    """

    def __init__(
        self, model: DensityModel, noise: Noise, rule: Rule, kept: KnownSymbols | None = None
    ) -> None:
        self.model = model
        self.noise = noise
        self.rule = rule
        self.kept = kept
        self.x = torch.zeros(noise.n, model.grid.symbols, dtype=torch.int64, device=model.device)
        """The current symbols, final or guessed: ``int64 [n, symbols]``."""
        # Known symbols are perfect guesses.
        if kept is not None:
            self.x.copy_(kept.x)
        self.final = torch.zeros(noise.n, dtype=torch.int64)
        """How many symbols of each image are final: ``int64 [n]``."""
        self.passes = torch.zeros(noise.n, dtype=torch.int64)
        """How many passes each image has had: ``int64 [n]``."""

    @abstractmethod
    def advance(self) -> None:
        """Do one pass over images that are not finished."""

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

    def _accept(self, drawn: torch.Tensor, active: torch.Tensor, start: int) -> None:
        """Take over the symbols that a pass has drawn, and see which are final now.

        Args:
            drawn: symbols from ``start`` on, ``int64 [active images, count]``. No symbol before
                ``start`` has changed in this pass, and all symbols after the final ones up to the
                last one drawn are among them.
            active: indices of the images, none of which is final up to the last symbol drawn.
            start: index of the first symbol drawn.
        """
        stop = start + drawn.shape[1]
        before = self.x[active, start:stop]
        if self.kept is not None:
            known = self.kept.known[active, start:stop]
            drawn = torch.where(known, self.kept.x[active, start:stop], drawn)
        # Final symbols stay, even if rounding would draw a different symbol in this pass.
        place = torch.arange(start, stop)
        final = (place < self.final[active, None]).to(drawn.device)
        drawn = torch.where(final, before, drawn)
        self.x[active, start:stop] = drawn
        # All symbols up to and including the first changed one were drawn from correct
        # predecessors, and so are final. Every pass makes at least one more symbol final.
        differs = (drawn != before).cpu()
        after_change = start + differs.int().argmax(1) + 1
        after_change = torch.where(differs.any(1), after_change, stop)
        self.final[active] = torch.maximum(after_change, self.final[active] + 1)
        self.passes[active] += 1

    def _guided(self, table: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of all levels, after guidance: ``[images, ..., levels]``."""
        if self.rule.guidance == 1:
            return table
        return guided(table, self.rule.guidance).table()

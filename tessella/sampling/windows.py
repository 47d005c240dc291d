"""Exact sampling by passes over a window of the next pixels, see ``tessella.sampling.fixed_point``.

A cached step of a large model reads all weights to draw one symbol. Here a pass reads them once for
the next few pixels, whose symbols are guesses, and the window moves on to the first pixel whose
symbols are not final. Speculative decoding (Leviathan et al. 2023; Teng et al. 2024, "Accelerating
Auto-regressive Text-to-Image Generation with Training-free Speculative Jacobi Decoding") accepts
guesses at random, so that the distribution stays. With noise that is fixed beforehand a guess is
right or wrong, and the sample itself stays.

A symbol that comes into the window is guessed by its own noise and the newest distribution of the
symbol before it. All others are guessed by the pass before.
"""

from __future__ import annotations

import torch

from tessella.models.condition import Condition
from tessella.models.density_model import DensityModel, check_finite
from tessella.models.pixel_window import PixelWindow
from tessella.noise import Noise
from tessella.sampling.fixed_point import FixedPoint
from tessella.sampling.known_symbols import KnownSymbols
from tessella.sampling.rule import Rule

PIXELS = 8
"""Pixels of a window. A larger one saves few more passes, and each of them takes longer."""


class Windows(FixedPoint):
    """Draws ``n`` images by passes over a window, which is at the same place in all of them.

    Args:
        model: a density model.
        window: what :meth:`DensityModel.window` returns for as many images as ``condition`` has.
        condition: condition of each image; with guidance, that of
            :func:`~tessella.sampling.walk.guidance_condition`.
        noise: noise of the images.
        rule: see :class:`Rule`.
        kept: symbols to keep, see :func:`tessella.complete`.
    """

    def __init__(
        self,
        model: DensityModel,
        window: PixelWindow,
        condition: Condition,
        noise: Noise,
        rule: Rule,
        kept: KnownSymbols | None = None,
    ) -> None:
        super().__init__(model, noise, rule, kept)
        # With guidance, every image appears twice: with its class, and with the null class.
        self._copies = 1 if rule.guidance == 1 else 2
        self._window = window
        window.begin(condition)
        self._guessed = 0
        """How many symbols of each image have been guessed or drawn."""
        self._newest = torch.zeros(noise.n, model.grid.levels, device=model.device)
        """The newest distribution of the last of them: log-probabilities ``[n, levels]``."""
        self._noise_at: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def advance(self) -> None:
        """Do one pass over the window of all images."""
        grid = self.model.grid
        pixels = self._window.pixels
        # The last windows all end with the grid.
        first = min(int(self.final.min()) // grid.channels, grid.pixels - pixels)
        start = first * grid.channels
        stop = start + pixels * grid.channels
        noise = self._noise(start, stop)
        self._guess(noise, start, stop)
        drawn = self._draw(noise, first)
        # An image that is final up to the end of the window waits for the others.
        active = (self.final < stop).nonzero()[:, 0]
        self._accept(drawn[active], active, start)

    def _guess(self, noise: torch.Tensor, start: int, stop: int) -> None:
        """Guess the symbols that have come into the window ``start .. stop - 1``.

        Args:
            noise: of the window, ``[n, symbols, levels]``.
            start, stop: see above.
        """
        if self._guessed == stop:
            return
        new = slice(self._guessed, stop)
        score = self._newest[:, None] + noise[:, self._guessed - start :]
        guess = score.argmax(dim=-1)
        if self.kept is not None:
            guess = torch.where(self.kept.known[:, new], self.kept.x[:, new], guess)
        self.x[:, new] = guess
        self._guessed = stop

    def _draw(self, noise: torch.Tensor, first: int) -> torch.Tensor:
        """Draw the symbols of the window: ``int64 [n, symbols]``.

        Args:
            noise: of the window, ``[n, symbols, levels]``.
            first: index of the first pixel.
        """
        grid = self.model.grid
        x = self.x.repeat(self._copies, 1)
        here = x.unflatten(1, (grid.pixels, grid.channels))[:, None]
        here = here[:, :, first : first + self._window.pixels]
        parameters = self._window.parameters(x.unflatten(1, grid.shape), first)
        # [n, symbols, levels]
        table = self.rule(self._guided(self.model.head(parameters).table(here)).flatten(1, 3))
        self._newest = table[:, -1]
        best, symbol = (table + noise).max(dim=-1)
        check_finite(best.sum())
        return symbol

    def _noise(self, start: int, stop: int) -> torch.Tensor:
        """The noise of the symbols ``start .. stop - 1``: ``[n, symbols, levels]``."""
        # Symbols before the window are never drawn again, so drop their noise.
        for place in list(self._noise_at):
            if place < start:
                del self._noise_at[place]
        rows = []
        for place in range(start, stop):
            if place not in self._noise_at:
                self._noise_at[place] = self.noise.at(place)
            rows.append(self._noise_at[place])
        return torch.stack(rows, dim=1)

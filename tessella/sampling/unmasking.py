"""Drawing from a masked model: some of the missing symbols of an image a step, in any place.

See :class:`~tessella.sampling.unmasking_options.Unmasking` for what a step keeps. Candidates and
choices have noise addressed by image, step and place (:mod:`tessella.noise`), so that image ``i``
is the same whatever the batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tessella.errors import InputError
from tessella.models.condition import Cond
from tessella.models.density_model import DensityModel, check_finite
from tessella.models.masked_model import MaskedModel
from tessella.noise import Noise, place_noise
from tessella.sampling.known_symbols import KnownSymbols
from tessella.sampling.rule import Rule
from tessella.sampling.sampling_options import Sampling
from tessella.sampling.unmasking_options import Unmasking
from tessella.sampling.walk import guidance_condition, guided

STEP_PARTS = 1 << 16
"""Numbers of noise between those of two steps, more than a model has grids."""

CHOICE_PARTS = 1 << 48
"""The noise of choices has numbers from this one on, more than those of all candidates."""


def check_unmasking(model: DensityModel, options: Sampling) -> None:
    """Check that options of drawing and a model fit: masked models draw by unmasking, others not.

    Raises:
        InputError: naming what can.
    """
    if not model.states_bound:
        if options.unmasking is not None:
            raise InputError(
                f"{model.name} draws one symbol after another, not in a few steps: leave unmasking "
                "(--steps, --schedule, --choice-temperature) out, or take a model of the family "
                "masked"
            )
        return
    if options.method != "auto":
        raise InputError(
            f"{model.name} draws by unmasking several symbols a step, so method={options.method!r} "
            "means nothing to it: leave method out, or take a model such as any-order, which draws "
            "symbol by symbol"
        )


class Unmasker:
    """Draws the missing symbols of ``n`` images in a few steps.

    Args:
        model: a masked model.
        kept: what is known already.
        cond: see :data:`Cond`.
        rule: changes the distributions of candidates.
        unmasking: how many symbols a step keeps, and which.
        seed: of the first image.
        part: index of the grid, see :class:`Noise`.

    Raises:
        InputError: for a condition or a seed that does not fit.
    """

    def __init__(
        self,
        model: MaskedModel,
        kept: KnownSymbols,
        cond: Cond,
        rule: Rule,
        unmasking: Unmasking,
        seed: int,
        part: int,
    ) -> None:
        self.model = model
        self.rule = rule
        self.unmasking = unmasking
        self.seed = seed
        self.part = part
        self.x = kept.x.clone()  # int64 [n, symbols]
        self.known = kept.known.clone()  # bool [n, symbols]
        self.missing_at_first: list[int] = (~self.known).sum(1).tolist()
        # With guidance, every image is predicted with and without its class.
        if rule.guidance != 1:
            self.condition = guidance_condition(model, cond, len(kept))
        else:
            self.condition = model.condition(cond, len(kept))

    def walk(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Take all steps, and yield partial grids.

        Yields:
            ``(count, x)``: ``x int64 [n, height, width, channels]`` holds 0 where a symbol is
            missing, and at least ``count`` symbols of every image. It is the same tensor every
            time; clone it to keep it.

        Raises:
            NumericalError: when the model returns NaN or infinity.
        """
        symbols = self.x.shape[1]
        grids = self.x.unflatten(1, self.model.grid.shape)  # a view
        for step in range(1, self.unmasking.steps + 1):
            # As in walk(), nothing is yielded inside no_grad.
            with torch.no_grad():
                if not bool(self.known.all()):
                    self._take(step)
                in_place = int(self.known.sum(1).min())
            # Images with few missing symbols are complete before the last step.
            if in_place == symbols:
                break
            yield in_place, grids
        yield symbols, grids

    def _take(self, step: int) -> None:
        """Draw candidates of all missing symbols, and keep some."""
        table = self._table()  # [n, symbols, levels]
        candidates = self._candidates(table, step)
        confidence = table.gather(2, candidates[..., None])[..., 0]
        ranks = self._ranks(confidence, step)
        missing: list[int] = []
        before: list[int] = (~self.known).sum(1).tolist()
        for at_first, now in zip(self.missing_at_first, before, strict=True):
            # Every step keeps at least one.
            left = min(self.unmasking.missing_after(step, at_first), now - 1)
            missing.append(max(0, left))
        # Ranks count the missing symbols from the least confidence on.
        stays = ranks < torch.tensor(missing, device=ranks.device)[:, None]
        fixed = ~self.known & ~stays
        self.x.copy_(torch.where(fixed, candidates, self.x))
        self.known |= fixed

    def _table(self) -> torch.Tensor:
        """Log-probabilities of every symbol given the known ones: ``[n, symbols, levels]``."""
        shape = self.model.grid.shape
        x = self.x.unflatten(1, shape)
        known = self.known.unflatten(1, shape)
        guidance = self.rule.guidance
        if guidance != 1:
            x = torch.cat([x, x])
            known = torch.cat([known, known])
        parameters = self.model.predictions(x, known, self.condition)
        table = self.model.head(parameters).table().flatten(1, 3)
        if guidance != 1:
            table = guided(table, guidance).table()
        return table

    def _candidates(self, table: torch.Tensor, step: int) -> torch.Tensor:
        """A candidate for every missing symbol: ``int64 [n, symbols]``; 0 where all are known."""
        number = self.part + (step - 1) * STEP_PARTS
        noise = Noise(self.model.grid, len(table), self.seed, table.device, number)
        table = self.rule(table)
        candidates = torch.zeros_like(self.x)
        missing = (~self.known).any(0).nonzero()[:, 0].tolist()
        best = []
        for place in missing:
            # The Gumbel-max trick, see tessella.noise.
            score, level = (table[:, place] + noise.at(place)).max(dim=-1)
            candidates[:, place] = level
            best.append(score)
        check_finite(torch.stack(best))
        return candidates

    def _ranks(self, confidence: torch.Tensor, step: int) -> torch.Tensor:
        """Rank of every missing symbol by its confidence, the least first: ``int64 [n, symbols]``.

        Known symbols come last.
        """
        temperature = self.unmasking.choice_temperature
        if temperature:
            number = CHOICE_PARTS + self.part + (step - 1) * STEP_PARTS
            noise = place_noise(self.model.grid, len(confidence), self.seed, number)
            noise = noise.to(confidence.device)
            if temperature == float("inf"):
                confidence = noise
            else:
                left = 1 - step / self.unmasking.steps
                confidence = confidence + temperature * left * noise
        confidence = confidence.masked_fill(self.known, torch.inf)
        # Stable, so that ties go to the earlier place on every machine.
        return confidence.argsort(dim=1, stable=True).argsort(dim=1, stable=True)

"""The walk along a grid: next distribution, next symbol. A symbol drawn is sampling, a symbol given
is completion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch

from tessella.errors import InputError
from tessella.heads import Categorical, Distribution
from tessella.models.condition import Cond, Condition
from tessella.models.density_model import DensityModel, check_finite
from tessella.nn.stepping.state import State
from tessella.noise import Noise
from tessella.sampling.known_symbols import KnownSymbols
from tessella.sampling.rule import Rule

MAX_GUIDANCE = 1e30
"""Scales of guidance beyond this one have the same effect."""


class SymbolSource(ABC):
    """Where the symbols of a walk come from."""

    @abstractmethod
    def __call__(self, index: int, distribution: Distribution) -> torch.Tensor:
        """Symbol ``index`` of every image, ``int64 [n]``, in view of its distribution."""

    @abstractmethod
    def check(self) -> None:
        """Raise NumericalError where the model gave no probabilities; called once a row or so."""


class Draw(SymbolSource):
    """A source that draws: the argmax over levels of ``log p - log E`` (see ``tessella.noise``)."""

    def __init__(self, noise: Noise, rule: Rule) -> None:
        self.noise = noise
        self.rule = rule
        self._best_scores = torch.zeros(noise.n, dtype=torch.float64, device=noise.device)

    def __call__(self, index: int, distribution: Distribution) -> torch.Tensor:
        score = self.rule(distribution.table()) + self.noise.at(index)  # [n, levels]
        best, symbol = score.max(dim=-1)
        # Parameters that are NaN or infinite make the best score NaN, and the sum stays NaN: one
        # look at it a row costs less than one a symbol, which on a GPU would wait for the result.
        self._best_scores += best
        return symbol

    def check(self) -> None:
        check_finite(self._best_scores)


class KeepKnown(SymbolSource):
    """A source that gives what is known and asks another for the rest.

    Args:
        kept: what is known.
        rest: source of the symbols not known.
    """

    def __init__(self, kept: KnownSymbols, rest: SymbolSource) -> None:
        self.x = kept.x
        self.known = kept.known
        self.rest = rest
        # Where all images know a symbol, no distribution needs a table.
        self.known_in_all: list[bool] = kept.known.all(dim=0).tolist()

    def __call__(self, index: int, distribution: Distribution) -> torch.Tensor:
        # [n]; of the images that do not know this symbol it holds 0, which is not used.
        given = self.x[:, index]
        if self.known_in_all[index]:
            return given
        return torch.where(self.known[:, index], given, self.rest(index, distribution))

    def check(self) -> None:
        self.rest.check()


class Steps:
    """The distribution of one symbol after another, by cached steps or by whole passes, with or
    without guidance.

    Args:
        model: a density model.
        n: images.
        cond: see :data:`Cond`.
        cached: whether to take cached steps; else a pass over the whole grid for each symbol.
        guidance: see :class:`Rule`.
    """

    def __init__(
        self, model: DensityModel, n: int, cond: Cond, cached: bool, guidance: float
    ) -> None:
        self.model = model
        self.n = n
        self.guidance = guidance
        self.cached = cached
        self.state = self._first_state(cond)
        self._unconditional_start: State | None = None
        """A copy of the first state, where there is no condition."""

    def _first_state(self, cond: Cond) -> State:
        rows = self.n
        if self.guidance != 1:
            # The first half of the rows has the class, the second half the null class.
            cond = guidance_condition(self.model, cond, rows)
            rows = 2 * rows
        if self.cached:
            return self.model.init_state(rows, cond)
        return self.model.whole_grid_state(rows, cond)

    def restart(self, n: int, cond: Cond) -> bool:
        """Go back to the start in the memory of these steps.

        Returns:
            False where the memory does not serve, since the number of images is another.
        """
        if n != self.n or not self.cached:
            return False
        # Without a condition the first state is always the same, and a copy is made faster.
        if cond is None and self._unconditional_start is not None:
            self.state.load(self._unconditional_start)
            return True
        self.state.load(self._first_state(cond))
        self._unconditional_start = self.state.clone() if cond is None else None
        return True

    def next(self, previous: torch.Tensor, index: int) -> Distribution:
        """Distribution of symbol ``index`` of every image, given symbol ``previous [n]`` before
        it."""
        if self.guidance == 1:
            return self.model.head.symbol(self._step(previous, index))
        # Both halves have drawn the same symbol.
        both = self.model.head.symbol(self._step(previous.repeat(2), index))
        return guided(both.table(), self.guidance)

    def _step(self, previous: torch.Tensor, index: int) -> torch.Tensor:
        if self.cached:
            parameters, self.state = self.model.step(previous, index, self.state)
        else:
            parameters, self.state = self.model.whole_grid_step(previous, index, self.state)
        return parameters


def guidance_condition(model: DensityModel, cond: Cond, n: int) -> Condition:
    """The condition of the images, then the condition of the same images with the null class.

    Raises:
        InputError: where guidance makes no sense.
    """
    if not model.classes:
        raise InputError("guidance needs a model with classes; this one has none")
    if not model.null_class:
        raise InputError(
            "guidance needs the null class, and this model was trained with a class for every "
            "image: train with train.condition_dropout above 0"
        )
    given = model.condition(cond, n)
    assert given.labels is not None
    if cond is None or bool((given.labels == model.classes).all()):
        raise InputError("guidance needs a class for the images (cond=)")
    without_class = model.condition(Condition(None, given.codes), n)
    assert without_class.labels is not None
    # Codes are kept in both halves; only the class is left out.
    both = given.select(torch.arange(n).repeat(2))
    both.labels = torch.cat([given.labels, without_class.labels])
    return both


def guided(table: torch.Tensor, scale: float) -> Categorical:
    """Classifier-free guidance: the distribution of ``u + s (c - u)``, renormalized.

    Args:
        table: log-probabilities ``[2 * n, ..., levels]``: those with the class (``c``), then those
            without (``u``).
        scale: ``s``.
    """
    with_class, without = table.chunk(2)
    # Beyond this the product overflows to infinity; the level that gains most is certain before.
    scale = max(-MAX_GUIDANCE, min(scale, MAX_GUIDANCE))
    return Categorical(without + scale * (with_class - without))


def walk(steps: Steps, source: SymbolSource, every: int = 0) -> Iterator[tuple[int, torch.Tensor]]:
    """Walk the grid; yields ``(index, x)`` each time ``every`` more symbols are in place (0: a
    row).

    ``x int64 [n, height, width, channels]`` holds the first ``index`` symbols of each image and 0
    elsewhere. It is the same array every time: clone it to keep it.

    Raises:
        NumericalError: where the model gives no probabilities.
    """
    grid = steps.model.grid
    x = torch.zeros(steps.n, *grid.shape, dtype=torch.int64, device=steps.model.device)
    flat = x.flatten(1)  # a view: [n, symbols]
    previous = x.new_zeros(steps.n)
    every = every or grid.row_symbols
    for start in range(0, grid.symbols, every):
        stop = min(start + every, grid.symbols)
        # Gradients are off inside only: a generator that yields within the block would leave them
        # off in the code that iterates over it.
        with torch.no_grad():
            for index in range(start, stop):
                previous = source(index, steps.next(previous, index))
                flat[:, index] = previous
            source.check()
        yield stop, x

"""The walk along a grid: next distribution, next symbol. A symbol drawn is sampling, a symbol given
is completion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from tessella.errors import InputError
from tessella.heads import Distribution
from tessella.models.condition import Cond, Condition
from tessella.models.density_model import DensityModel
from tessella.nn.stepping.state import State
from tessella.noise import Noise
from tessella.sampling.rule import Rule, guided

Source = Callable[[int, Distribution], torch.Tensor]
"""Gives symbol ``index`` of every image, ``int64 [n]``, in view of its distribution."""


class Draw:
    """A source that draws: the argmax over levels of ``log p - log E`` (see ``tessella.noise``)."""

    def __init__(self, noise: Noise, rule: Rule) -> None:
        self.noise, self.rule = noise, rule

    def __call__(self, index: int, distribution: Distribution) -> torch.Tensor:
        return (self.rule(distribution.table()) + self.noise.at(index)).argmax(dim=-1)


class Complete:
    """A source that gives what is known and asks another for the rest.

    Args:
        x: ``int64 [n, symbols]``.
        known: ``bool [n, symbols]``.
        rest: source of the symbols not known.
    """

    def __init__(self, x: torch.Tensor, known: torch.Tensor, rest: Source) -> None:
        self.x, self.known, self.rest = x, known, rest
        self.whole = known.all(dim=0).tolist()

    def __call__(self, index: int, distribution: Distribution) -> torch.Tensor:
        given = self.x[:, index]
        if self.whole[index]:
            return given
        return torch.where(self.known[:, index], given, self.rest(index, distribution))


class Steps:
    """The distribution of one symbol after another, by cached steps or by whole passes, with or
    without guidance.

    Args:
        model: a density model.
        n: images.
        cond: see :data:`Cond`.
        method: ``"cached"`` or ``"naive"``.
        guidance: see :class:`Rule`.
    """

    def __init__(
        self, model: DensityModel, n: int, cond: Cond, method: str, guidance: float
    ) -> None:
        self.model, self.n, self.guidance, self.cached = model, n, guidance, method == "cached"
        self.state: Any = self._start(cond)
        self._fresh: State | None = None
        """The start, where there is no condition."""

    def _start(self, cond: Cond) -> State:
        rows = self.n
        if self.guidance != 1:
            cond, rows = doubled(self.model, cond, rows), 2 * rows
        return (self.model.init_state if self.cached else self.model.whole_grid_state)(rows, cond)

    def restart(self, n: int, cond: Cond) -> bool:
        """Go back to the start, in the same memory; False where the steps are of other images."""
        if n != self.n or not self.cached:
            return False
        if cond is None and self._fresh is not None:
            self.state.load(self._fresh)
        else:
            self.state.load(self._start(cond))
            self._fresh = self.state.clone() if cond is None else None
        return True

    def next(self, previous: torch.Tensor, index: int) -> Distribution:
        """Distribution of symbol ``index`` of every image, given symbol ``previous [n]`` before
        it."""
        step = self.model.step if self.cached else self.model.whole_grid_step
        if self.guidance == 1:
            parameters, self.state = step(previous, index, self.state)
            return self.model.head.symbol(parameters)
        parameters, self.state = step(previous.repeat(2), index, self.state)
        return guided(self.model.head.symbol(parameters).table(), self.guidance)


def doubled(model: DensityModel, cond: Cond, n: int) -> Condition:
    """The condition of the images, then the same with the null class.

    Raises:
        InputError: where guidance makes no sense.
    """
    if not model.classes:
        raise InputError("guidance needs a model with classes; this one has none")
    if not model.null_class:
        raise InputError(
            "guidance needs the null class, and this model was trained with a class for every image: train with "
            "train.condition_dropout above 0"
        )
    given = model.condition(cond, n)
    assert given.labels is not None
    if cond is None or bool((given.labels == model.classes).all()):
        raise InputError("guidance needs a class for the images (cond=)")
    both = given.select(torch.arange(n).repeat(2))
    free = model.condition(Condition(None, given.codes), n).labels
    assert free is not None
    both.labels = torch.cat([given.labels, free])
    return both


def walk(steps: Steps, source: Source, every: int = 0) -> Iterator[tuple[int, torch.Tensor]]:
    """Walk the grid; yields ``(index, x)`` each time ``every`` more symbols are in place (0: a
    row).

    ``x int64 [n, height, width, channels]`` holds the first ``index`` symbols of each image and 0
    elsewhere. It is the same array every time: clone it to keep it.
    """
    grid = steps.model.grid
    x = torch.zeros(steps.n, *grid.shape, dtype=torch.int64, device=steps.model.device)
    flat, previous = x.flatten(1), x.new_zeros(steps.n)
    every = every or grid.row_symbols
    for start in range(0, grid.symbols, every):
        stop = min(start + every, grid.symbols)
        with torch.no_grad():
            for index in range(start, stop):
                previous = source(index, steps.next(previous, index))
                flat[:, index] = previous
        yield stop, x

"""Walks along a grid for the benchmark of sampling: cached steps with and without the compiled
kernel, naive ones, and stretches of rows from where an image has got to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from floor import Counter, Counts, tensors_of

import tessella as ts
from tessella.noise import Noise
from tessella.sampling import Draw, Rule

SWITCH = "TESSELLA_KERNEL"
"""Environment variable, read when a state is made and first used: 0 keeps the compiled kernel
out."""


@contextmanager
def kernel(wanted: bool) -> Iterator[None]:
    """Allow the compiled kernel, or keep it out, for the states that are made and first used
    inside."""
    before = os.environ.pop(SWITCH, None)
    if not wanted:
        os.environ[SWITCH] = "0"
    try:
        yield
    finally:
        os.environ.pop(SWITCH, None)
        if before is not None:
            os.environ[SWITCH] = before


def kernel_available() -> bool:
    """Whether there is a kernel, and a compiler for it."""
    with kernel(True):
        try:
            from tessella.kernel import available
        except ImportError:
            return False
        return bool(available())


class Walk:
    """Cached steps of a batch of images, draws included.

    Args:
        model: whose steps.
        batch: images.
        state, previous: where to go on; a new image without them.
    """

    def __init__(
        self,
        model: ts.DensityModel,
        batch: int,
        state: Any = None,
        previous: torch.Tensor | None = None,
    ) -> None:
        self.model = model
        self.state = model.init_state(batch) if state is None else state
        self.previous = torch.zeros(batch, dtype=torch.int64) if previous is None else previous
        self.x = torch.zeros(batch, model.grid.symbols, dtype=torch.int64)
        self._source = Draw(Noise(model.grid, batch, 0), Rule())

    @torch.no_grad()
    def step(self, index: int) -> None:
        """Draw one symbol of every image."""
        parameters, self.state = self.model.step(self.previous, index, self.state)
        self.previous = self._source(index, self.model.head.symbol(parameters))
        self.x[:, index] = self.previous

    def row(self, row: int) -> None:
        """Draw a row."""
        for index in self._indices(row):
            self.step(index)

    def counted(self, row: int) -> list[Counts]:
        """Draw a row and count what its steps do."""
        counts = []
        for index in self._indices(row):
            with Counter(tensors_of([self.model, self.state])) as counter:
                self.step(index)
            counts.append(counter.counts())
        return counts

    def _indices(self, row: int) -> range:
        length = self.model.grid.row_symbols
        return range(row * length, (row + 1) * length)


@dataclass
class Rehearsal:
    """What one whole image, or its upper part, has shown."""

    x: torch.Tensor
    """The symbols drawn: ``[batch, height, width, channels]``."""
    seconds: float
    """About how long a whole image takes: the rows that were not counted, scaled."""
    counts: list[Counts]
    """Of the steps of the stretches."""
    stretches: list[tuple[int, Any, torch.Tensor]]
    """First row of each stretch; state and symbol before the row above it."""


def places(height: int, period: int, count: int) -> list[int]:
    """The first rows of ``count`` stretches of ``period`` rows, spread evenly: the middles of equal
    parts."""
    middles = [(2 * part + 1) * height // (2 * count) for part in range(count)]
    return sorted({row - row % period for row in middles})


def rehearse(
    model: ts.DensityModel, batch: int, starts: list[int], period: int, whole: bool = True
) -> Rehearsal:
    """Draw an image of every seed, keep the states before the stretches, and count the steps in
    them.

    Args:
        model, batch: what is drawn.
        starts: first rows of the stretches.
        period: rows of a stretch.
        whole: go on to the end of the image after the last stretch.
    """
    walk, grid = Walk(model, batch), model.grid
    counts: list[Counts] = []
    stretches, seconds, timed = [], 0.0, 0
    for row in range(grid.height if whole else starts[-1] + 1):
        coming = [first for first in starts if max(0, first - 1) == row]
        stretches += [(first, walk.state.clone(), walk.previous.clone()) for first in coming]
        if any(start <= row < start + period for start in starts):
            counts += walk.counted(row)
            continue
        started = time.perf_counter()
        walk.row(row)
        seconds, timed = seconds + time.perf_counter() - started, timed + 1
    estimate = seconds / timed * grid.height if timed else 0.0
    return Rehearsal(walk.x.view(batch, *grid.shape), estimate, counts, stretches)


def stretches(
    model: ts.DensityModel, batch: int, period: int, found: Rehearsal, compiled: bool
) -> Callable[[], float]:
    """Draw the stretches of a rehearsal once more: a piece of work that times itself, without
    copying the states and without the row above, in which a copied state makes anew what it derives
    from its tensors."""

    def act() -> float:
        seconds = 0.0
        for first, state, previous in found.stretches:
            walk = Walk(model, batch, state.clone(), previous.clone())
            with kernel(
                compiled
            ):  # what a state derives from its tensors, it derives in its first step
                walk.row(max(0, first - 1))
            started = time.perf_counter()
            for row in range(first, min(first + period, model.grid.height)):
                walk.row(row)
            seconds += time.perf_counter() - started
        return seconds

    return act


def cached_images(model: ts.DensityModel, batch: int, compiled: bool) -> Callable[[], None]:
    """Draw ``batch`` whole images."""

    def act() -> None:
        with kernel(compiled):
            ts.sample(model, n=batch, batch=batch, method="cached")

    return act


@torch.no_grad()
def naive_steps(model: ts.DensityModel, batch: int, count: int) -> None:
    """The first ``count`` steps of the naive sampler: a pass over the whole grid and a draw
    each."""
    state, previous = model.whole_grid_state(batch), torch.zeros(batch, dtype=torch.int64)
    source = Draw(Noise(model.grid, batch, 0), Rule())
    for index in range(count):
        parameters, state = model.whole_grid_step(previous, index, state)
        previous = source(index, model.head.symbol(parameters))


def passes(model: ts.DensityModel, batch: int, budget: float = 2.0) -> int:
    """Naive steps that fit into so many seconds, a row at most."""
    started = time.perf_counter()
    naive_steps(model, batch, 1)
    seconds = time.perf_counter() - started
    return max(1, min(model.grid.row_symbols, int(budget / seconds)))

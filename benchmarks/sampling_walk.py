"""Walks along a grid for the benchmark of sampling.

They are cached steps with and without the compiled kernel, naive ones, and stretches of rows from
where an image has got to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from floor import Counter, Counts, tensors_of

import tessella as ts
from tessella import kernel as compiled_kernel
from tessella.noise import Noise
from tessella.sampling import Draw, Rule
from tessella.sampling.kernel_walk import KernelWalk

SWITCH = "TESSELLA_KERNEL"
"""Environment variable, read when a state is made and first used: 0 keeps the kernel out."""


@contextmanager
def kernel(wanted: bool) -> Iterator[None]:
    """Allow the compiled kernel, or keep it out, for states that are made and first used inside."""
    # Removed rather than set to 1: without it the package decides by itself.
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
        return bool(compiled_kernel.available())


class Walk:
    """Cached steps of a batch of images, draws included.

    Args:
        model: whose steps.
        batch: images.
        state: where to go on; without it a new image begins.
        previous: the symbol before that place, ``[batch]``.
    """

    def __init__(
        self,
        model: ts.DensityModel,
        batch: int,
        state: ts.State | None = None,
        previous: torch.Tensor | None = None,
    ) -> None:
        if state is None:
            state = model.init_state(batch)
        if previous is None:
            previous = torch.zeros(batch, dtype=torch.int64)
        self.model = model
        self.state = state
        self.previous = previous
        self.x = torch.zeros(batch, model.grid.symbols, dtype=torch.int64)
        self._noise = Noise(model.grid, batch, 0)
        self._source = Draw(self._noise, Rule())
        self._in_kernel: KernelWalk | None = None
        self._kernel_was_asked = False

    @torch.no_grad()
    def step(self, index: int) -> None:
        """Draw one symbol of every image."""
        # The state may be changed in place; the returned one goes on.
        parameters, self.state = self.model.step(self.previous, index, self.state)
        self.previous = self._source(index, self.model.head.symbol(parameters))
        self.x[:, index] = self.previous

    @torch.no_grad()
    def row(self, row: int) -> None:
        """Draw a row: in one call of the kernel where it takes the model, else step by step."""
        indices = self._indices(row)
        if not self._kernel_was_asked:
            self._kernel_was_asked = True
            self._in_kernel = KernelWalk.of(self.model, self.state, len(self.x))
            if self._in_kernel is not None:
                self._in_kernel.begin(self.x, self._noise, Rule(), None)
        if self._in_kernel is None:
            for index in indices:
                self.step(index)
            return
        if row:
            self.x[:, indices.start - 1] = self.previous
        self._in_kernel.draw(indices.start, indices.stop)
        self.previous = self.x[:, indices.stop - 1].clone()

    def counted_row(self, row: int) -> list[Counts]:
        """Draw a row and count the work of its steps."""
        counts = []
        for index in self._indices(row):
            # A step may replace tensors of the state, so they are listed anew each time.
            with Counter(tensors_of([self.model, self.state])) as counter:
                self.step(index)
            counts.append(counter.counts())
        return counts

    def _indices(self, row: int) -> range:
        length = self.model.grid.row_symbols
        return range(row * length, (row + 1) * length)


@dataclass(frozen=True)
class Stretch:
    """A few rows, and where a walk stands before the row above them."""

    first: int
    """Its first row."""
    state: ts.State
    previous: torch.Tensor
    """The symbol drawn last, ``[batch]``."""

    @property
    def row_above(self) -> int:
        """The row that is walked before the stretch is timed."""
        return max(0, self.first - 1)


@dataclass
class Rehearsal:
    """The findings of one walk along a whole image, or along its upper part."""

    x: torch.Tensor
    """The symbols drawn: ``[batch, height, width, channels]``."""
    seconds: float
    """About how long a whole image takes: the rows that were not counted, scaled."""
    counts: list[Counts]
    """The work of the steps in the stretches."""
    stretches: list[Stretch]


def places(height: int, period: int, count: int) -> list[int]:
    """The first rows of ``count`` stretches of ``period`` rows, spread evenly.

    They are the middles of ``count`` equal parts, moved up to where a period begins.
    """
    middles = [(2 * part + 1) * height // (2 * count) for part in range(count)]
    return sorted({row - row % period for row in middles})


def rehearse(
    model: ts.DensityModel, batch: int, starts: list[int], period: int, whole: bool = True
) -> Rehearsal:
    """Draw an image of every seed, keep the states before the stretches, and count their steps.

    Args:
        model: that draws.
        batch: images.
        starts: first rows of the stretches.
        period: rows of a stretch.
        whole: go on to the end of the image after the last stretch.
    """
    grid = model.grid
    walk = Walk(model, batch)
    rows = grid.height
    if not whole:
        rows = starts[-1] + 1

    counts: list[Counts] = []
    kept: list[Stretch] = []
    seconds = 0.0
    timed = 0
    for row in range(rows):
        for first in starts:
            if row == max(0, first - 1):
                kept.append(Stretch(first, walk.state.clone(), walk.previous.clone()))
        if any(start <= row < start + period for start in starts):
            # Counting slows a step down manyfold, so these rows are not timed.
            counts += walk.counted_row(row)
            continue
        started = time.perf_counter()
        walk.row(row)
        seconds += time.perf_counter() - started
        timed += 1

    # Where every row was counted there is nothing to scale, and images are small.
    estimate = 0.0
    if timed:
        estimate = seconds / timed * grid.height
    return Rehearsal(walk.x.view(batch, *grid.shape), estimate, counts, kept)


def stretches(
    model: ts.DensityModel, batch: int, period: int, found: Rehearsal, compiled: bool
) -> Callable[[], float]:
    """A function that draws the stretches of a rehearsal once more and returns its seconds.

    Left out are the copies of the states and the row above each stretch: in its first step a copied
    state makes anew what it derives from its tensors.
    """

    def draw() -> float:
        seconds = 0.0
        for stretch in found.stretches:
            walk = Walk(model, batch, stretch.state.clone(), stretch.previous.clone())
            # The first step also decides whether the state uses the kernel.
            with kernel(compiled):
                walk.row(stretch.row_above)
            last = min(stretch.first + period, model.grid.height)
            started = time.perf_counter()
            for row in range(stretch.first, last):
                walk.row(row)
            seconds += time.perf_counter() - started
        return seconds

    return draw


def cached_images(model: ts.DensityModel, batch: int, compiled: bool) -> Callable[[], None]:
    """A function that draws ``batch`` whole images."""

    def draw() -> None:
        with kernel(compiled):
            ts.sample(model, n=batch, batch=batch, method="cached")

    return draw


@torch.no_grad()
def naive_steps(model: ts.DensityModel, batch: int, count: int) -> None:
    """The first steps of the naive sampler: each a pass over the whole grid and a draw."""
    # The slow way that cached steps must agree with: everything anew for each symbol.
    state = model.whole_grid_state(batch)
    previous = torch.zeros(batch, dtype=torch.int64)
    source = Draw(Noise(model.grid, batch, 0), Rule())
    for index in range(count):
        parameters, state = model.whole_grid_step(previous, index, state)
        previous = source(index, model.head.symbol(parameters))


def count_passes(model: ts.DensityModel, batch: int, budget: float = 2.0) -> int:
    """Naive steps that fit into so many seconds, a row at most."""
    started = time.perf_counter()
    naive_steps(model, batch, 1)
    seconds = time.perf_counter() - started
    return max(1, min(model.grid.row_symbols, int(budget / seconds)))

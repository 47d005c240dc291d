"""Threads that read the examples of the next steps while a step is taken.

What a step sees is a function of its number, so reading ahead changes speed only.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import torch

from tessella.training.examples import Examples

AHEAD = 2
"""Passes that wait for the step, for each thread."""


@runtime_checkable
class StepOrder(Protocol):
    """Which examples each step sees."""

    def at(self, step: int) -> torch.Tensor:
        """Indices ``int64 [batch]`` of the examples of a step."""


class ReadAhead:
    """Gives the passes of each step, and reads those of the next steps meanwhile.

    Args:
        examples: are read; None for those of an iterable, which gives them itself.
        order: which of them each step sees.
        passes: into which a step of this process is divided.
        rank, world: of this process: its part of each batch.
        workers: threads; with 0 nothing is read ahead.
    """

    def __init__(
        self,
        examples: Examples | None,
        order: StepOrder,
        *,
        passes: int,
        rank: int,
        world: int,
        workers: int,
    ) -> None:
        self._examples = examples
        self._order = order
        self._passes = passes
        self._rank = rank
        self._world = world
        self._workers = workers if examples is not None else 0
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: dict[tuple[int, int], Future[list[torch.Tensor]]] = {}

    def parts(self, step: int) -> list[torch.Tensor]:
        """Indices of the examples of each pass of a step, for this process."""
        mine = self._order.at(step).chunk(self._world)[self._rank]
        return list(mine.chunk(self._passes))

    def step(self, step: int) -> Iterator[tuple[torch.Tensor, list[torch.Tensor] | None]]:
        """The indices of each pass of a step, and what was read of them ahead, or None."""
        for number, part in enumerate(self.parts(step)):
            if not self._workers:
                yield part, None
                continue
            self._begin(step, number)
            yield part, self._waiting.pop((step, number)).result()

    def close(self) -> None:
        """End the threads; what was read ahead is dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._waiting.clear()

    def _begin(self, step: int, number: int) -> None:
        """Let the threads read from this pass on, as far as there is room."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, "read-ahead")
        assert self._examples is not None
        # A run that goes back reads anew: what waits for other steps is of no use.
        for key in list(self._waiting):
            if key < (step, number):
                self._waiting.pop(key).cancel()
        room = AHEAD * self._workers + 1
        while room > 0:
            parts = self.parts(step)
            for place in range(number, len(parts)):
                if (step, place) not in self._waiting:
                    future = self._pool.submit(self._examples.read, parts[place])
                    self._waiting[step, place] = future
                room -= 1
            step += 1
            number = 0

"""Engines: who makes the units of a job.

Every engine makes the same bytes, in any order. The process that asks for them writes the files, so
one process writes to an output, whoever made its units.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context

from tessella.bulk.units import MadeUnit, Units
from tessella.errors import ArtifactError

AHEAD = 2
"""Units for each process that are begun or wait for it; made units wait in memory to be written."""


class Engine(ABC):
    """Makes units."""

    @abstractmethod
    def make(self, units: Units, numbers: Sequence[int]) -> Iterator[MadeUnit]:
        """Make some units of a job, each once.

        Raises:
            TessellaError: what making a unit raised.
        """


@dataclass(frozen=True)
class LocalEngine(Engine):
    """Processes of this machine, each with a model of its own.

    Args:
        actors: processes; 1 makes the units in this one, 0 starts one for each processor.
    """

    actors: int = 1

    def make(self, units: Units, numbers: Sequence[int]) -> Iterator[MadeUnit]:
        actors = min(self.actors or processors(), len(numbers))
        if actors <= 1:
            for number in numbers:
                yield MadeUnit(number, units.make(number))
            return
        try:
            yield from _in_processes(units, numbers, actors)
        except BrokenProcessPool as error:
            raise ArtifactError(
                "a process that makes units ended, perhaps for want of memory: the same command"
                " goes on; with fewer --actors it takes less"
            ) from error


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_processes(units: Units, numbers: Sequence[int], actors: int) -> Iterator[MadeUnit]:
    """Make units in processes that are started anew: forked ones would inherit torch's threads."""
    context = get_context("spawn")
    with ProcessPoolExecutor(actors, context, _begin, (units,)) as pool:
        waiting: set[Future[MadeUnit]] = set()
        try:
            for number in numbers:
                if len(waiting) >= AHEAD * actors:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
                waiting.add(pool.submit(_make, number))
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            # Whoever stops early does not wait for units that nobody takes.
            pool.shutdown(wait=False, cancel_futures=True)


_units: Units | None = None
"""In a process that makes units: the units of its job, with the model that they loaded."""


def _begin(units: Units) -> None:
    global _units
    _units = units


def _make(number: int) -> MadeUnit:
    assert _units is not None
    return MadeUnit(number, _units.make(number))

"""Which programs run before a symbol: at once, or listed for many symbols.

A step says which programs are due before a symbol, and with what values of their variables, by
calls of :meth:`Runs.add`. It computes with the indices of symbols, rows and columns as if they were
plain numbers. Given numbers, :class:`RunsNow` runs each program at once: that is a step. Given
arrays, :class:`ListedRuns` collects the runs before a whole range of symbols, which the compiled
kernel then goes through by itself (``tessella.sampling.kernel_walk``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tessella.grid import Grid
from tessella.nn.stepping.program import Program

Numbers = int | npt.NDArray[np.int64]
"""An index, or those of a range of symbols."""

Truths = bool | npt.NDArray[np.bool_]
"""Whether something holds, at one symbol or at each of a range."""


def places(grid: Grid, index: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """:meth:`Grid.place` of a symbol, or of each of a range."""
    pixel = index // grid.channels
    return pixel // grid.width, pixel % grid.width, index % grid.channels


class Runs(ABC):
    """Takes the programs that are due before a symbol, or before each of a range of symbols."""

    @abstractmethod
    def add(self, program: Program, *values: Numbers, when: Truths = True) -> None:
        """Add a program after those added before.

        Args:
            program: the program.
            values: value of each variable.
            when: before which symbols it runs.
        """


class RunsNow(Runs):
    """Runs each program at once."""

    def add(self, program: Program, *values: Numbers, when: Truths = True) -> None:
        if when:
            # Indices of a single symbol are plain numbers.
            program.run(*values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class SteppedSymbols:
    """The steps of a model from symbol to symbol, bound to the memory of a state."""

    newest: Sequence[torch.Tensor]
    """For each channel, memory for its newest symbol: ``int64 [batch]``. A step begins by writing
    the symbol that has just become known."""
    add_runs: Callable[[Runs, Numbers], None]
    """Adds the programs that are due before the symbol of an index, or of each of several."""
    parameters: torch.Tensor
    """What the programs make: the parameters of a symbol, or under a joint head those of its pixel,
    which last until the next pixel: ``[batch, size]``."""
    sets: int = 1
    """If larger than 1, there are the parameters of so many sets, one after the other, and the
    distributions of all symbols are averaged: a set's weight is proportional to the probability
    that it gives to the symbols before. Those of a joint head are each those of
    :meth:`~tessella.heads.head.AveragingJointHead.part_of_average`."""


@dataclass(frozen=True)
class Timetable:
    """The runs before each of a range of symbols."""

    programs: list[Program]
    """Every program that runs, once each."""
    starts: npt.NDArray[np.int64]
    """The first run of each symbol, and last the number of all runs: ``[count + 1]``."""
    runs: npt.NDArray[np.int64]
    """For each run, the index of its program: ``[runs]``."""
    values: npt.NDArray[np.int64]
    """For each run, the values of its variables, padded with zeros: ``[runs, variables]``."""


class ListedRuns(Runs):
    """Lists the runs before each of ``count`` symbols.

    Args:
        count: number of symbols.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        # By identity: comparing programs would compare their memory.
        self._programs: dict[int, Program] = {}
        # For every call of `add`: before which symbols, which program, and its values.
        self._symbols: list[npt.NDArray[np.int64]] = []
        self._numbers: list[int] = []
        self._values: list[list[npt.NDArray[np.int64]]] = []

    def add(self, program: Program, *values: Numbers, when: Truths = True) -> None:
        symbols = np.flatnonzero(np.broadcast_to(when, self.count))
        # Some families have no work on rows; their row program is empty.
        if not program.operations or not len(symbols):
            return
        self._programs.setdefault(id(program), program)
        self._symbols.append(symbols)
        self._numbers.append(list(self._programs).index(id(program)))
        self._values.append([np.broadcast_to(value, self.count)[symbols] for value in values])

    def timetable(self) -> Timetable:
        """All runs in the order of the symbols, and of one symbol in the order of the calls."""
        variables = max([1, *(len(values) for values in self._values)])
        lengths = [len(symbols) for symbols in self._symbols]
        symbols = np.concatenate([np.zeros(0, dtype=np.int64), *self._symbols])
        numbers = np.repeat(np.array(self._numbers, dtype=np.int64), lengths)
        table = np.zeros((len(symbols), variables), dtype=np.int64)
        start = 0
        for length, values in zip(lengths, self._values, strict=True):
            for variable, value in enumerate(values):
                table[start : start + length, variable] = value
            start += length
        # A stable sort keeps the order of the calls within a symbol.
        order = np.argsort(symbols, kind="stable")
        starts = np.searchsorted(symbols[order], np.arange(self.count + 1))
        return Timetable(list(self._programs.values()), starts, numbers[order], table[order])

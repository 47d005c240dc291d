"""The programs of a step along a sequence of places, each predicted from the symbols before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from tessella.nn.stepping.memory import Operand, Places, Vectors
from tessella.nn.stepping.program import Program, SeveralPrograms
from tessella.nn.stepping.runs import Numbers, Runs, Truths
from tessella.nn.stepping.step import MemoryAllocator


class SequenceStep:
    """The programs of a step along a sequence, which predicts a place from the symbols before it.

    Args:
        memory: allocates the state's memory for the layers.
        symbols: number of symbols of a place.
        channels: number of places of a pixel.
        size: number of parameters of a place.
        values: the variables of all programs: for each name its value at every place.
    """

    def __init__(
        self,
        memory: MemoryAllocator,
        symbols: int,
        channels: int,
        size: int,
        values: Mapping[str, Sequence[int]],
    ) -> None:
        self.memory = memory
        self.symbols: list[torch.Tensor] = []
        """The symbols of the previous place: ``int64 [batch]`` each."""
        for _ in range(symbols):
            self.symbols.append(memory.zeros(dtype=torch.int64))
        self.parameters = memory.zeros(size)
        """Parameters of the newest place: ``[batch, size]``."""
        self._variables = tuple(values)
        # For each variable its values at all places.
        self._values = [np.array(column, dtype=np.int64) for column in values.values()]
        self.first = self._program()
        """Predicts the first place, before which nothing is known."""
        self.later = [self._program() for _ in range(channels)]
        """Predict any later place from the symbols of the place before: one program for each place
        of a pixel."""
        self.every = SeveralPrograms([self.first, *self.later])
        """Writes to all of them."""

    def _program(self) -> Program:
        return Program(self.memory.batch, self._variables, self.memory.like)

    def write_symbols(self, table: torch.Tensor, outs: Sequence[Operand]) -> None:
        """Append the lookup of the symbols of the place before.

        Args:
            table: vectors of the symbols, ``[channels, levels, features]``.
            outs: for each symbol, the memory that its vector is added to, ``[batch, features]``.
        """
        for channel, program in enumerate(self.later):
            for i, symbol in enumerate(self.symbols):
                # A negative index wraps around: the symbol before channel 0 is the last channel.
                program.lookup(symbol, table[channel - len(self.symbols) + i], outs[i])

    def write_bias(
        self, labels: torch.Tensor | None, bias: torch.Tensor, outs: Sequence[Operand]
    ) -> None:
        """Append the biases of the place, where the programs have the variable ``place``.

        Args:
            labels: class of each image, ``int64 [batch]``; None for the first class.
            bias: ``[classes, places, features]``.
            outs: memory that they are added to, ``[batch, features]`` each.
        """
        if labels is None:
            rows = self.memory.zeros(dtype=torch.int64)
        else:
            rows = self.memory.keep(labels)
        # A table [classes, features] for each place.
        tables = Vectors(self.memory.table(bias).transpose(0, 1))
        for out in outs:
            self.every.lookup(rows, tables.at("place"), out)

    def add_runs(self, runs: Runs, place: Numbers, when: Truths = True) -> None:
        """Add the prediction of a place.

        Args:
            runs: takes the program.
            place: index of the place in the sequence.
            when: whether the symbol that comes next begins the place.
        """
        values = [_at(column, place) for column in self._values]
        channel = place % len(self.later)
        runs.add(self.first, *values, when=when & (place == 0))
        for number, program in enumerate(self.later):
            runs.add(program, *values, when=when & (place > 0) & (channel == number))


def _at(column: npt.NDArray[np.int64], place: Numbers) -> Numbers:
    """The value at a place as a plain number, or those of several places."""
    return column.item(place) if isinstance(place, int) else column[place]


def write_newest(step: SequenceStep, table: torch.Tensor) -> torch.Tensor:
    """Append the vectors of the symbols of the place before, one after the other.

    Args:
        step: the step to write to.
        table: vectors of the symbols, ``[channels, levels, features]``.

    Returns:
        ``[batch, symbols * features]``.
    """
    features = table.shape[2]
    newest = step.every.zeros(len(step.symbols) * features)
    # A lookup adds to what is there, which is the place before that.
    step.every.map(torch.zeros_like(newest[0]), newest)
    step.write_symbols(step.memory.table(table), newest.split(features, dim=1))
    return newest


def write_known(step: SequenceStep, table: torch.Tensor, places: int) -> torch.Tensor:
    """Append the vectors of the symbols of the place before to those of all places before it.

    Args:
        step: the step to write to, with the variables of :func:`place_variables`.
        table: vectors of the symbols, ``[channels, levels, features]``.
        places: number of places.

    Returns:
        The vectors of all places, zero where nothing is known:
        ``[batch, places * symbols * features]``.
    """
    features = table.shape[2]
    memory = step.memory.zeros(places, len(step.symbols) * features)
    by_place = Places(memory)
    outs = []
    for start in range(0, memory.shape[2], features):
        outs.append(by_place.features(slice(start, start + features)).at("before"))
    step.write_symbols(step.memory.table(table), outs)
    return memory.flatten(1)


def place_variables(places: int, inputs: int) -> dict[str, Sequence[int]]:
    """The variables of a step whose weights are those of a place.

    Args:
        places: number of places.
        inputs: length of the vectors of a place's symbols together.

    Returns:
        ``place``, the index of the place; ``before``, that of the place before; and ``known``, the
        length of the vectors of all symbols before it.
    """
    known = range(0, places * inputs, inputs)
    return {"place": range(places), "before": range(-1, places - 1), "known": known}

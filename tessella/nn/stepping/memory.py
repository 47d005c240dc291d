"""Operands of programs: memory, and views of it that move with the walk.

Memory that a walk moves along is wrapped in an object that knows how its places lie, so that a
layer asks for "the place at this column" or "the three places around it" and never computes an
offset:

* :class:`Places`: the places of a row, ``[batch, places, size]``, perhaps with margins of zeros;
* :class:`Plane`: the rows of a map, ``[batch, rows, columns, size]``;
* :class:`Vectors`: one vector for each value of a variable, ``[n, size]``, shared by all images.

They all give :class:`Moving` operands, or plain tensors where nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


class Moving:
    """A view that moves along memory as a variable of the walk grows.

    Args:
        start: the view while the variable is 0.
        variable: its name.
        step: numbers that the view moves on as the variable grows by one.
    """

    def __init__(self, start: torch.Tensor, variable: str, step: int) -> None:
        self.start = start
        self.variable = variable
        self.step = step
        # Making a view costs as much as a small product, so each place's view is made once.
        self._views: dict[int, torch.Tensor] = {}

    def at(self, value: int) -> torch.Tensor:
        """The view for a value of the variable."""
        view = self._views.get(value)
        if view is None:
            offset = self.start.storage_offset() + self.step * value
            view = self.start.as_strided(self.start.shape, self.start.stride(), offset)
            self._views[value] = view
        return view

    def first(self, size: int) -> Moving:
        """The first ``size`` numbers of each vector."""
        # Shorter vectors begin where the whole ones do, so they move alike.
        return Moving(self.start[..., :size], self.variable, self.step)


Operand = torch.Tensor | Moving
"""What an operation reads or writes."""


@dataclass(frozen=True)
class Places:
    """The places of a row, one after the other in memory.

    Args:
        memory: ``[batch, margin + count + margin, size]``. Margins stay zero; a window may reach
            into them.
        margin: places of the memory before place 0.
        count: places of the row; -1 for all that follow the margin.
        variable, step: set where the row itself moves, see :meth:`Plane.row`.
    """

    memory: torch.Tensor
    margin: int = 0
    count: int = -1
    variable: str = ""
    step: int = 0

    @property
    def width(self) -> int:
        """Places of the row."""
        if self.count < 0:
            return self.memory.shape[-2] - self.margin
        return self.count

    @property
    def row(self) -> torch.Tensor:
        """All places without the margins, ``[batch, count, size]``; of a row that stays where it
        is."""
        assert not self.variable
        return self.memory[..., self.margin : self.margin + self.width, :]

    def moving_row(self) -> Operand:
        """As :attr:`row`, of a row that may move."""
        # The row where the variable is 0.
        row = replace(self, variable="").row
        if not self.variable:
            return row
        return Moving(row, self.variable, self.step)

    def at(self, variable: str, every: int = 1) -> Moving:
        """The place ``every * variable``: ``[batch, size]``."""
        return self.window(variable, every=every)

    def window(self, variable: str, left: int = 0, right: int = 0, every: int = 1) -> Moving:
        """The places from ``left`` before ``every * variable`` to ``right`` after it, side by side:
        ``[batch, (left + 1 + right) * size]``.

        ``right=-1`` leaves out the place itself.
        """
        assert not self.variable
        # The first place of the window at column 0, counted from the start of the memory.
        first = self.margin - left
        count = left + 1 + right
        # A window that reaches beyond the margin would read another image's places.
        assert first >= 0
        assert count == 1 or self._are_neighbours()
        # [batch, count * size], a view: the places of a window are one run of memory.
        start = self.memory[:, first : first + count].flatten(1)
        return Moving(start, variable, every * self.memory.stride(1))

    def windows(self, left: int, right: int, every: int = 1) -> Operand:
        """The windows of all places 0, ``every``, 2 ``every``, ...:
        ``[batch, count / every, (left + 1 + right) * size]``, a view."""
        first = self.margin - left
        taps = left + 1 + right
        size = self.memory.shape[2]
        assert first >= 0
        assert self._are_neighbours()
        places = self.memory[:, first:]
        # unfold gives [batch, windows, size, taps]. As places are neighbours in memory, the numbers
        # of a window are one run, and the view may be read with the window's places side by side.
        runs = places.unfold(1, taps, every)
        count = -(-self.width // every)
        shape = (runs.shape[0], count, taps * size)
        view = places.as_strided(shape, (runs.stride(0), runs.stride(1), 1))
        if not self.variable:
            return view
        return Moving(view, self.variable, self.step)

    def features(self, part: slice) -> Places:
        """The same places, some numbers of each."""
        return replace(self, memory=self.memory[..., part])

    def delayed(self) -> Places:
        """The same memory with place 0 one further to the right: what is written at a place of the
        result is read here at the place after it."""
        return replace(self, margin=self.margin + 1, count=self.width)

    def _are_neighbours(self) -> bool:
        return self.memory.stride(1) == self.memory.shape[2]


@dataclass(frozen=True)
class Plane:
    """The rows of a map.

    Args:
        memory: ``[batch, rows, columns, size]``, or ``[rows, columns, size]`` for all images.
        count: places of a row; the columns that follow are a margin of zeros. -1 for no margin.
    """

    memory: torch.Tensor
    count: int = -1

    def row(self, variable: str) -> Places:
        """The row of that number."""
        # From the end, as a map for all images has no dimension for them.
        step = self.memory.stride(-3)
        return Places(self.memory.select(-3, 0), 0, self.count, variable, step)


@dataclass(frozen=True)
class Vectors:
    """A vector for each value of a variable.

    Args:
        table: ``[n, size]``.
    """

    table: torch.Tensor

    def at(self, variable: str) -> Moving:
        """The vector of that number: ``[size]``."""
        return Moving(self.table[0], variable, self.table.stride(0))

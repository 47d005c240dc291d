"""Operands of programs: memory, and views of it that move with the walk.

A walk visits the pixels of a grid in raster order. Its *variables*, such as ``row`` and ``column``,
say where it is. Memory along which it moves is wrapped in an object that knows the layout, so that
a layer asks for "the place at this column" or "the three places around it" and never computes an
offset:

* :class:`Places`: the places of a row, ``[batch, places, size]``, optionally with zero margins;
* :class:`Plane`: the rows of a map, ``[batch, rows, columns, size]``;
* :class:`Vectors`: one vector for each value of a variable, ``[n, size]``, shared by all images;
  or one matrix.

They all return :class:`Moving` operands, or plain tensors where nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


class Moving:
    """A view that moves along memory as a variable of the walk grows.

    Args:
        start: the view at value 0 of the variable.
        variable: name of the variable.
        step: how many elements the view moves when the variable grows by one.
    """

    def __init__(self, start: torch.Tensor, variable: str, step: int) -> None:
        self.start = start
        self.variable = variable
        self.step = step
        # Creating a view costs as much as a small product, so each one is created only once.
        self._views: dict[int, torch.Tensor] = {}

    def at(self, value: int) -> torch.Tensor:
        """The view at a value of the variable."""
        view = self._views.get(value)
        if view is None:
            offset = self.start.storage_offset() + self.step * value
            view = self.start.as_strided(self.start.shape, self.start.stride(), offset)
            self._views[value] = view
        return view

    def first(self, size: int) -> Moving:
        """The first ``size`` elements of each vector."""
        # A shorter vector begins at the same element, so it moves in the same way.
        return Moving(self.start[..., :size], self.variable, self.step)


Operand = torch.Tensor | Moving
"""Memory that an operation reads or writes."""


def start_of(operand: Operand) -> torch.Tensor:
    """The tensor of an operand, of one that moves that at value 0 of its variable."""
    return operand.start if isinstance(operand, Moving) else operand


def operand_at(operand: Operand | None, where: dict[str, int]) -> torch.Tensor | None:
    """The tensor of an operand at the given values of the variables."""
    if isinstance(operand, Moving):
        return operand.at(where[operand.variable])
    return operand


@dataclass(frozen=True)
class Places:
    """The places of a row, one after the other in memory.

    Args:
        memory: ``[batch, left margin + count + right margin, size]``. Margins stay zero; a window
            may reach into them.
        margin: size of the left margin, in places.
        count: places in the row; -1 for all that follow the left margin.
        variable, step: set if the row itself moves, see :meth:`Plane.row`.
    """

    memory: torch.Tensor
    margin: int = 0
    count: int = -1
    variable: str = ""
    step: int = 0

    @property
    def width(self) -> int:
        """Number of places in the row."""
        if self.count < 0:
            return self.memory.shape[-2] - self.margin
        return self.count

    @property
    def row(self) -> torch.Tensor:
        """All places without the margins, ``[batch, count, size]``; the row must not move."""
        assert not self.variable
        return self._first_row()

    def moving_row(self) -> Operand:
        """All places without the margins, ``[batch, count, size]``; the row may move."""
        row = self._first_row()
        if not self.variable:
            return row
        return Moving(row, self.variable, self.step)

    def _first_row(self) -> torch.Tensor:
        """The row at value 0 of the variable, without the margins."""
        return self.memory[..., self.margin : self.margin + self.width, :]

    def at(self, variable: str, every: int = 1) -> Moving:
        """The place ``every * variable``: ``[batch, size]``."""
        return self.window(variable, every=every)

    def window(self, variable: str, left: int = 0, right: int = 0, every: int = 1) -> Moving:
        """The places around place ``every * variable``, concatenated.

        Args:
            variable: name of the variable.
            left: how many places before it.
            right: how many places after it; -1 leaves out the place itself.
            every: places to move on as the variable grows by one.

        Returns:
            ``[batch, (left + 1 + right) * size]``.
        """
        assert not self.variable
        # The first place of the window at column 0, counted from the start of the memory.
        first = self.margin - left
        count = left + 1 + right
        # A window beyond the margin would read the memory of another image.
        assert first >= 0
        assert count == 1 or self._are_neighbours()
        # [batch, count * size], a view: the places of a window are contiguous in memory.
        start = self.memory[:, first : first + count].flatten(1)
        return Moving(start, variable, every * self.memory.stride(1))

    def span(self, variable: str, count: int) -> Moving:
        """The places from place ``variable`` on: ``[batch, count, size]``."""
        assert not self.variable
        start = self.memory[:, self.margin : self.margin + count]
        return Moving(start, variable, self.memory.stride(1))

    def windows(self, left: int, right: int, every: int = 1) -> Operand:
        """The windows of the places 0, ``every``, 2 ``every``, and so on, as an overlapping view.

        Args:
            left, right: how many places before and after each.
            every: distance between the places.

        Returns:
            ``[batch, count / every, (left + 1 + right) * size]``.
        """
        first = self.margin - left
        taps = left + 1 + right
        size = self.memory.shape[2]
        assert first >= 0
        assert self._are_neighbours()
        places = self.memory[:, first:]
        # unfold gives [batch, windows, size, taps]. Since places are adjacent in memory, a window
        # is contiguous, and can be viewed as its places concatenated.
        runs = places.unfold(1, taps, every)
        count = -(-self.width // every)
        shape = (runs.shape[0], count, taps * size)
        view = places.as_strided(shape, (runs.stride(0), runs.stride(1), 1))
        if not self.variable:
            return view
        return Moving(view, self.variable, self.step)

    def features(self, part: slice) -> Places:
        """All places, restricted to the features of the slice ``part``."""
        return replace(self, memory=self.memory[..., part])

    def delayed(self) -> Places:
        """The same memory with all places shifted by one to the right.

        What is written to place ``i`` of the result is read at place ``i + 1`` of this row.
        """
        return replace(self, margin=self.margin + 1, count=self.width)

    def _are_neighbours(self) -> bool:
        return self.memory.stride(1) == self.memory.shape[2]


@dataclass(frozen=True)
class Plane:
    """The rows of a map.

    Args:
        memory: ``[batch, rows, columns, size]``, or ``[rows, columns, size]`` shared by all images.
        count: places in a row; the columns that follow are a margin of zeros. -1 for no margin.
    """

    memory: torch.Tensor
    count: int = -1

    def row(self, variable: str) -> Places:
        """The row whose index is the value of ``variable``."""
        # Count dimensions from the end: a shared map has no batch dimension.
        step = self.memory.stride(-3)
        return Places(self.memory.select(-3, 0), 0, self.count, variable, step)


@dataclass(frozen=True)
class Vectors:
    """A table with one vector or matrix for each value of a variable, shared by all images.

    Args:
        table: ``[n, size]``, or ``[n, inputs, outputs]``.
    """

    table: torch.Tensor

    def at(self, variable: str) -> Moving:
        """The vector or matrix whose index is the value of ``variable``."""
        return Moving(self.table[0], variable, self.table.stride(0))

    def span(self, variable: str, count: int) -> Moving:
        """The vectors from index ``variable`` on, one for each place: ``[count, size]``."""
        return Moving(self.table[:count], variable, self.table.stride(0))

"""A step along the rows of a grid, written layer by layer.

A layer that can step has, beside ``forward``, a method ``write`` that appends its work to the
programs of a :class:`GridStep`, taking memory from it as it goes. A model composes layers in
``write`` as it does in ``forward``, in the same order; no layer needs to know what is written
before or after it, because each kind of work has a program of its own:

* ``advance``, when a row has become complete: rows that a layer still sees move up by one;
* ``row``, at the start of a row: everything that depends on the rows above, for all its places;
* ``pixel``, at each pixel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from tessella.nn.stepping.memory import Places
from tessella.nn.stepping.operation import Matrix
from tessella.nn.stepping.program import OperationWriter, Program
from tessella.nn.stepping.state import State


@dataclass
class StateMemory(State):
    """The memory of a state, handed out to layers in the order in which they ask.

    Layers ask in the same order whenever they are written. So when a copy of a state is written
    again, they get the tensors of the copy in place of new ones.
    """

    shared: ClassVar[frozenset[str]] = frozenset({"matrices", "tables"})

    tensors: list[torch.Tensor] = field(default_factory=list)
    """Each with the images of the batch along dimension 0."""
    matrices: list[Matrix] = field(default_factory=list)
    """Weights laid out for stepping."""
    tables: list[torch.Tensor] = field(default_factory=list)
    """Other tensors made of the weights."""


class MemoryAllocator:
    """Hands out the memory of one state, for one writing of its programs.

    Args:
        memory: of the state; empty for a new one, which is filled.
        batch: images.
        like: a tensor of the type and on the device of all memory.
    """

    def __init__(self, memory: StateMemory, batch: int, like: torch.Tensor) -> None:
        self.batch = batch
        self.like = like
        self._memory = memory
        # How far each list has been handed out in this writing.
        self._tensors = 0
        self._matrices = 0
        self._tables = 0

    def zeros(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Memory ``[batch, *shape]``, zero before the walk."""
        return self.keep(self.like.new_zeros(self.batch, *shape, dtype=dtype))

    def keep(self, value: torch.Tensor) -> torch.Tensor:
        """Memory that holds ``value [batch, ...]`` before the walk.

        What depends on the condition must be kept: another condition is loaded into the same
        memory, and the programs stay.
        """
        tensors = self._memory.tensors
        # At the end of the list this is the first writing: the memory is new. Otherwise it is a
        # copy's, and its values must stay.
        if self._tensors == len(tensors):
            tensors.append(value.detach().clone())
        tensor = tensors[self._tensors]
        assert tensor.shape == value.shape, "layers must ask for memory in the same order"
        self._tensors += 1
        return tensor

    def matrix(self, weight: torch.Tensor | Matrix) -> Matrix:
        """Weights ``[inputs, outputs]`` for a program, shared with all copies of the state."""
        # A matrix keeps what the kernel packs, so that copies of a state pack nothing again.
        given = weight if isinstance(weight, Matrix) else Matrix(weight)
        matrices = self._memory.matrices
        if self._matrices == len(matrices):
            matrices.append(given)
        kept = matrices[self._matrices]
        assert kept.weight.shape == given.weight.shape, "layers must ask in the same order"
        self._matrices += 1
        return kept

    def table(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor made of the weights that no step changes, shared with all copies of the
        state."""
        tables = self._memory.tables
        if self._tables == len(tables):
            tables.append(value.detach())
        kept = tables[self._tables]
        assert kept.shape == value.shape, "layers must ask in the same order"
        self._tables += 1
        return kept


class PixelStep(ABC):
    """The programs of a step from pixel to pixel.

    Args:
        memory: where layers get the state's memory.
    """

    pixel: OperationWriter
    """The work at a pixel."""

    def __init__(self, memory: MemoryAllocator) -> None:
        self.memory = memory
        self.cleared: list[torch.Tensor] = []
        """Memory that is zero again when a row begins, after the work of the row."""

    @abstractmethod
    def start_row(self, row: int) -> None:
        """Do the work at the start of a row; everything above is known."""

    @abstractmethod
    def start_pixel(self, row: int, column: int) -> None:
        """Do the work at a pixel."""

    def clear(self) -> None:
        """Zero the memory named in :attr:`cleared`."""
        for tensor in self.cleared:
            tensor.zero_()


class GridStep(PixelStep):
    """The programs of a step at one resolution.

    Args:
        memory: where layers get the state's memory.
        width: places of a row.
        row, pixel, advance: programs; by default new ones, with the variables ``row``,
            :data:`PIXEL_VARIABLES` and none.
        column: the variable of ``pixel`` that is the column.
    """

    PIXEL_VARIABLES: ClassVar[tuple[str, ...]] = ("column", "position", "known", "previous")
    """The column of the pixel, its place in raster order, one more (what is known after it), and
    the column before, where ``width`` stands for the end of the row above."""

    def __init__(
        self,
        memory: MemoryAllocator,
        width: int,
        row: Program | None = None,
        pixel: OperationWriter | None = None,
        column: str = "column",
        advance: Program | None = None,
    ) -> None:
        super().__init__(memory)
        self.width = width
        self.column = column
        # Over all places of a row, like the row's own program.
        self.advance = advance or Program(memory.batch, (), memory.like, width)
        self.row = row or Program(memory.batch, ("row",), memory.like, width)
        self.pixel = pixel or Program(memory.batch, self.PIXEL_VARIABLES, memory.like)

    def places(self, size: int, left: int = 0, right: int = 0) -> Places:
        """Memory of the state for a row, zero before the walk, with margins of ``left`` and
        ``right`` places."""
        # Margins are never written to, so they stay zero.
        memory = self.memory.zeros(left + self.width + right, size)
        return Places(memory, left, self.width)

    def start_row(self, row: int) -> None:
        # Above the first row there is nothing to take in.
        if row:
            self.advance.run()
        # Reads the pixels of the complete row, which are cleared only after it.
        self.row.run(row)
        self.clear()

    def start_pixel(self, row: int, column: int) -> None:
        assert isinstance(self.pixel, Program)
        position = row * self.width + column
        # A model that asks for the pixel before keeps the last one of a row behind the row.
        previous = column - 1 if column else self.width
        self.pixel.run(column, position, position + 1, previous)

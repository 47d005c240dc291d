"""A step along the rows of a grid, written layer by layer.

Besides ``forward``, a layer that can step has a method ``write``, which appends its work to the
programs of a :class:`GridStep` and allocates memory from it. A model composes layers in ``write``
as it does in ``forward``, in the same order. No layer needs to know what is written before or after
it, because each kind of work has its own program:

* ``advance`` runs when a row is complete: the rows that layers still look at move up by one;
* ``row`` runs at the start of a row: everything that depends on the rows above, for all places;
* ``pixel`` runs at each pixel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from tessella.nn.integer.constants import IntegerConstants
from tessella.nn.stepping.memory import Operand, Places, Vectors
from tessella.nn.stepping.operation import Matrix, Weights
from tessella.nn.stepping.program import OperationWriter, Program
from tessella.nn.stepping.runs import Numbers, Runs, Truths
from tessella.nn.stepping.state import State


@dataclass
class StateMemory(State):
    """The memory of a state, in the order in which the layers asked for it.

    Layers always ask in the same order. So when programs are written for a copy of a state, the
    layers get the tensors of the copy instead of new ones.
    """

    shared: ClassVar[frozenset[str]] = frozenset({"matrices", "tables", "kept", "constants"})

    tensors: list[torch.Tensor] = field(default_factory=list)
    """Tensors ``[batch, ...]``."""
    matrices: list[Weights] = field(default_factory=list)
    """Weights laid out for stepping."""
    tables: list[torch.Tensor] = field(default_factory=list)
    """Other tensors computed from the weights."""
    kept: list[int] = field(default_factory=list)
    """Indices of those ``tensors`` that :meth:`MemoryAllocator.keep` filled."""
    constants: IntegerConstants | None = None
    """For an exact twin, the integers to use in place of all values that layers give."""
    rows: torch.Tensor | None = None
    """For an exact twin, each image's row in the kept constants: ``int64 [batch]``."""

    def like(self, weight: torch.Tensor) -> torch.Tensor:
        """A tensor of the type and on the device of this memory.

        Args:
            weight: any weight of the model; the memory of an exact twin has int32 whatever it is.
        """
        if self.constants is None:
            return weight
        return torch.empty(0, dtype=torch.int32, device=weight.device)


class MemoryAllocator:
    """Hands out the memory of a state while its programs are written.

    For a new state it allocates memory; for a copy it hands out the memory of the copy.

    Args:
        memory: the memory of the state; empty for a new state.
        batch: number of images.
        like: any tensor of the type and on the device that the memory should have; see
            :meth:`StateMemory.like`.
    """

    def __init__(self, memory: StateMemory, batch: int, like: torch.Tensor) -> None:
        self.batch = batch
        self.like = memory.like(like)
        self._memory = memory
        # How much of each list has been handed out so far.
        self._tensors = 0
        self._matrices = 0
        self._tables = 0

    def zeros(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Memory ``[batch, *shape]``, initially zero."""
        return self._next_tensor(self.like.new_zeros(self.batch, *shape, dtype=dtype))

    def keep(self, value: torch.Tensor) -> torch.Tensor:
        """Memory that initially holds ``value [batch, ...]``.

        Everything that depends on the condition must go through here: a new condition is loaded
        into the same memory, while the programs stay.
        """
        memory = self._memory
        if self._tensors == len(memory.tensors):
            memory.kept.append(self._tensors)
            if memory.constants is not None:
                assert memory.rows is not None
                table = memory.constants.kept[len(memory.kept) - 1]
                return self._next_tensor(table.index_select(0, memory.rows))
        # A clone, because the caller's tensor may be a view of a weight.
        return self._next_tensor(value.detach().clone())

    def _next_tensor(self, value: torch.Tensor) -> torch.Tensor:
        """``value``, which becomes memory of a new state, or the memory of a copy in its place."""
        tensors = self._memory.tensors
        # At the end of the list the memory is new. Otherwise it belongs to a copy, whose values
        # must stay.
        if self._tensors == len(tensors):
            tensors.append(value)
        tensor = tensors[self._tensors]
        assert tensor.shape == value.shape, "layers must ask for memory in the same order"
        self._tensors += 1
        return tensor

    def matrix(self, weight: torch.Tensor | Matrix) -> Weights:
        """Weights ``[inputs, outputs]`` for a program, shared with all copies of the state."""
        # A Matrix caches its packed weights, so copies of a state need not pack them again.
        weights = weight if isinstance(weight, Matrix) else Matrix(weight)
        matrices = self._memory.matrices
        if self._matrices == len(matrices):
            constants = self._memory.constants
            matrices.append(weights if constants is None else constants.matrices[self._matrices])
        kept = matrices[self._matrices]
        assert kept.shape == weights.shape, "layers must ask in the same order"
        self._matrices += 1
        return kept

    def table(self, value: torch.Tensor) -> torch.Tensor:
        """A constant tensor computed from the weights, shared with all copies of the state."""
        tables = self._memory.tables
        if self._tables == len(tables):
            constants = self._memory.constants
            tables.append(value.detach() if constants is None else constants.tables[self._tables])
        kept = tables[self._tables]
        assert kept.shape == value.shape, "layers must ask in the same order"
        self._tables += 1
        return kept


class PixelStep(ABC):
    """Base of the steps that go from pixel to pixel.

    Args:
        memory: allocates the state's memory for the layers.
    """

    pixel: OperationWriter
    """Collects the work at a pixel."""

    def __init__(self, memory: MemoryAllocator) -> None:
        self.memory = memory
        self.cleared: list[torch.Tensor] = []
        """Memory to zero when a row begins, after the work of the row program."""

        self._clearing: Program | None = None

    def here(self, memory: Places | Vectors) -> Operand:
        """What :attr:`pixel` reads and writes of memory along the pixels in raster order."""
        return memory.at("position")

    @abstractmethod
    def start_row(self, runs: Runs, row: Numbers, when: Truths = True) -> None:
        """Add the work at the start of a row, when all rows above are known."""

    @abstractmethod
    def start_pixel(self, runs: Runs, row: Numbers, column: Numbers, when: Truths = True) -> None:
        """Add the work at a pixel, when all pixels before it are known."""

    def clearing(self) -> Program:
        """The program that zeroes the memory in :attr:`cleared`."""
        # Written at its first use, when all layers have been written.
        if self._clearing is None:
            self._clearing = clearing_program(self.memory, self.cleared)
        return self._clearing


class GridStep(PixelStep):
    """The programs of a step at one resolution.

    Args:
        memory: allocates the state's memory for the layers.
        width: places in a row.
        row: program with the variable ``row``; by default a new one.
        pixel: program with :data:`PIXEL_VARIABLES`; by default a new one.
        column: name of the variable of ``pixel`` that holds the column.
        advance: program without variables; by default a new one.
    """

    PIXEL_VARIABLES: ClassVar[tuple[str, ...]] = ("column", "position", "known", "previous")
    """The pixel's column; its index in raster order; the number of pixels known after it, one
    more; and the column before it, or ``width`` in column 0 (see :meth:`start_pixel`)."""

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
        # Like `row`, `advance` works on all places of a row at once.
        self.advance = advance or Program(memory.batch, (), memory.like, width)
        self.row = row or Program(memory.batch, ("row",), memory.like, width)
        self.pixel = pixel or Program(memory.batch, self.PIXEL_VARIABLES, memory.like)

    def places(self, size: int, left: int = 0, right: int = 0) -> Places:
        """Memory of the state for a row of vectors of length ``size``, initially zero.

        Margins of ``left`` and ``right`` places stay zero.
        """
        # Nothing ever writes to the margins.
        memory = self.memory.zeros(left + self.width + right, size)
        return Places(memory, left, self.width)

    def start_row(self, runs: Runs, row: Numbers, when: Truths = True) -> None:
        # There is no complete row before the first.
        runs.add(self.advance, when=when & (row > 0))
        # The row program reads the pixels of the complete row, so they are cleared after it.
        runs.add(self.row, row, when=when)
        runs.add(self.clearing(), when=when)

    def start_pixel(self, runs: Runs, row: Numbers, column: Numbers, when: Truths = True) -> None:
        assert isinstance(self.pixel, Program)
        position = row * self.width + column
        # Models that need the previous pixel store the last pixel of a row at index `width`, which
        # is the remainder of -1.
        previous = (column - 1) % (self.width + 1)
        runs.add(self.pixel, column, position, position + 1, previous, when=when)


class WindowStep(PixelStep):
    """A step that works on several neighbouring pixels at once.

    It is for layers without work on rows, which see earlier pixels through attention only.

    Args:
        memory: allocates the state's memory for the layers.
        width: pixels in a row.
        pixels: how many pixels the step works on.
    """

    def __init__(self, memory: MemoryAllocator, width: int, pixels: int) -> None:
        super().__init__(memory)
        self.width = width
        self.pixels = pixels
        # The index of the first pixel, and how many pixels are known after it.
        self.program = Program(memory.batch, ("position", "known"), memory.like, pixels)
        self.pixel = self.program

    def here(self, memory: Places | Vectors) -> Operand:
        return memory.span("position", self.pixels)

    def start_row(self, runs: Runs, row: Numbers, when: Truths = True) -> None:
        """There is no work on rows."""

    def start_pixel(self, runs: Runs, row: Numbers, column: Numbers, when: Truths = True) -> None:
        position = row * self.width + column
        runs.add(self.program, position, position + 1, when=when)


def clearing_program(memory: MemoryAllocator, cleared: Sequence[torch.Tensor]) -> Program:
    """A program that zeroes memory.

    Args:
        memory: allocates the memory of the state.
        cleared: ``[batch, places, size]`` each, with the same number of places.
    """
    places = cleared[0].shape[1] if cleared else 0
    program = Program(memory.batch, (), memory.like, places)
    for tensor in cleared:
        program.map(tensor.new_zeros(tensor.shape[2]), tensor)
    return program

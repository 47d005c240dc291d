"""The work on a place as a program, listed once and run for one place after another.

A program is a list of operations on fixed memory.

A cached step does the same few products and nonlinearities at every pixel, and others at every row;
only the place where they read and write moves. A model lists them once for a state, on the state's
memory, and :meth:`Program.run` does them in one of three ways, which agree to rounding:

* in torch, operation after operation, into the memory given;
* compiled (``tessella.kernel``), all operations in one call, where the memory is a CPU's and a
  compiler is there;
* on a GPU, as a CUDA graph that reads from the device where the walk is.

An operand is a tensor ``[batch, size]`` (of a program over a row ``[batch, places, size]``) whose
last dimension is contiguous, a vector ``[size]`` that all share, or either of them
:class:`~tessella.nn.stepping.memory.Moving` with a variable of the walk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch

from tessella.nn.stepping.memory import Moving, Operand, Places, Plane, Vectors
from tessella.nn.stepping.operation import ACTIVATIONS, PAIRED, Matrix, Operation, Work
from tessella.nn.stepping.runners import Runner, create_runner

__all__ = [
    "Matrix",
    "Moving",
    "Operand",
    "OperationWriter",
    "Places",
    "Plane",
    "Program",
    "SeveralPrograms",
    "Vectors",
]


class OperationWriter(ABC):
    """Appends operations. Nothing is computed before the program runs."""

    @abstractmethod
    def append(self, operation: Operation) -> None:
        """Append one operation."""

    @abstractmethod
    def zeros(self, size: int) -> torch.Tensor:
        """New memory for values that live within one run.

        ``[batch, size]`` or ``[batch, places, size]``.

        It is no part of the state; see :class:`tessella.nn.stepping.step.StateMemory` for memory
        that is.
        """

    def linear(
        self,
        x: Operand,
        weight: Matrix,
        out: Operand,
        add: Operand | None = None,
        activation: str = "",
        residual: Operand | None = None,
    ) -> None:
        """``out = activation(x @ weight + add) + residual``.

        ``concat-elu`` gives ``elu`` of the sums and of their negatives, twice as wide. ``gate`` is
        ``tanh(a) * sigmoid(b)``, ``glu`` ``a * sigmoid(b)``, ``swiglu`` ``silu(a) * b``, half as
        wide; ``residual`` goes with these three only. Without an activation ``add`` may be ``out``.
        """
        assert activation in ACTIVATIONS
        assert residual is None or activation in PAIRED
        self.append(
            # y holds what is added before the activation, z what is added after it.
            Operation("linear", out, x, add, residual, activation=activation, weight=weight)
        )

    def map(self, x: Operand, out: Operand, activation: str = "") -> None:
        """``out = activation(x)``; a copy without one."""
        assert activation in ACTIVATIONS
        self.append(Operation("map", out, x, activation=activation))

    def add(self, x: Operand, y: Operand, out: Operand, activation: str = "") -> None:
        """``out = activation(x + y)``."""
        assert activation in ACTIVATIONS
        assert activation not in PAIRED
        self.append(Operation("add", out, x, y, activation=activation))

    def norm(self, x: Operand, scale: torch.Tensor, out: Operand, epsilon: float) -> None:
        """``out = x / sqrt(mean(x^2) + epsilon) * scale``, with ``scale [size]``."""
        self.append(Operation("norm", out, x, scale, epsilon=epsilon))

    def rotate(self, x: Operand, turns: Operand, out: Operand, heads: int) -> None:
        """Turn neighbouring pairs of each head.

        ``turns [2 * size of a head]`` are cosines, then signed sines, as
        :func:`tessella.nn.rotary.rotations` has them.
        """
        self.append(Operation("rotate", out, x, turns, heads=heads))

    def attend(
        self,
        query: Operand,
        keys: torch.Tensor,
        values: torch.Tensor,
        out: Operand,
        known: str,
        heads: int,
        groups: int = 0,
    ) -> None:
        """Attention of one query to the first places of a sequence; zeros where there are none.

        Args:
            query, out: ``[batch, heads * size]``.
            keys, values: ``[batch, places, groups * size]``, the places neighbours in memory.
            known: the variable that counts the places it looks at.
            heads: query heads.
            groups: heads of keys and values; 0 for as many.
        """
        self.append(
            Operation(
                "attend", out, query, keys, values, heads=heads, groups=groups or heads, known=known
            )
        )

    def lookup(self, symbols: torch.Tensor, table: torch.Tensor, out: Operand) -> None:
        """``out += table[symbols]`` with ``table [levels, size]`` and ``symbols int64 [batch]``."""
        # Symbols are checked when the program runs: those of a walk are not known before.
        self.append(Operation("lookup", out, symbols, table))

    def cell(self, gates: Operand, cells: Operand, out: Operand) -> None:
        """One step of an LSTM, see :func:`tessella.nn.lstm_cell.lstm_cell`.

        Args:
            gates: ``[batch, 4 * size]``.
            cells: ``[batch, size]``, of the type of :func:`tessella.nn.lstm_cell.cell_dtype`;
                renewed in place.
            out: the hidden state, ``[batch, size]``.
        """
        self.append(Operation("cell", out, gates, cells))


class Program(OperationWriter, Work):
    """Operations on the memory of one state.

    Args:
        batch: images.
        variables: what the walk moves, in the order in which :meth:`run` takes their values.
        like: a tensor of the type and on the device of all others.
        places: places of each image that are worked on at once; 0 for one, whose operands are
            ``[batch, size]``.
    """

    def __init__(
        self, batch: int, variables: Sequence[str], like: torch.Tensor, places: int = 0
    ) -> None:
        super().__init__(batch, tuple(variables), like, places)
        self._runner: Runner | None = None

    def append(self, operation: Operation) -> None:
        # A runner has laid out the operations that it knows.
        assert self._runner is None, "a program that has run is complete"
        self.operations.append(operation)

    def zeros(self, size: int) -> torch.Tensor:
        if self.places:
            return self.like.new_zeros(self.batch, self.places, size)
        return self.like.new_zeros(self.batch, size)

    def run(self, *values: int) -> None:
        """Do all operations at a place: a value for each variable."""
        # A family without work for rows has an empty program for them.
        if not self.operations:
            return
        if self._runner is None:
            # Only now are all operations known, and where they can run fastest.
            self._runner = create_runner(self)
        self._runner.run(values)


class SeveralPrograms(OperationWriter):
    """Appends each operation to several programs of one shape.

    Args:
        programs: at least one, with the same batch and places.
    """

    def __init__(self, programs: Sequence[Program]) -> None:
        assert programs
        self.programs = list(programs)

    def append(self, operation: Operation) -> None:
        for program in self.programs:
            # A copy, because a runner notes in an operation what it made for its own program.
            program.append(replace(operation))

    def zeros(self, size: int) -> torch.Tensor:
        return self.programs[0].zeros(size)

"""Programs: lists of operations on fixed memory, written once and run at every step.

A cached step does the same few products and nonlinearities at every pixel, and others at every row.
Only the place where they read and write moves. So a model lists them once, on the memory of a
state, and :meth:`Program.run` executes the list in one of three ways, which agree up to rounding:

* in plain torch, one operation after the other;
* compiled (``tessella.kernel``), all operations in one call, on a CPU with a C++ compiler;
* on a GPU, as a CUDA graph, which reads the current place from device memory.

A program on int32 memory belongs to an exact twin. It is computed with integers only
(``tessella.nn.integer``), compiled or in torch, which agree to the last bit.

An operand is a tensor ``[batch, size]``, or ``[batch, places, size]`` in a program over a whole
row, whose last dimension is contiguous. It can also be a vector ``[size]`` that all images share.
Either may be :class:`~tessella.nn.stepping.memory.Moving` with a variable of the walk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch

from tessella.nn.stepping.memory import Moving, Operand, Places, Plane, Vectors
from tessella.nn.stepping.operation import ACTIVATIONS, PAIRED, Matrix, Operation, Weights, Work
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
    "Weights",
]


class OperationWriter(ABC):
    """Appends operations to a program; nothing is computed until the program runs."""

    @abstractmethod
    def append(self, operation: Operation) -> None:
        """Append one operation."""

    @abstractmethod
    def zeros(self, size: int) -> torch.Tensor:
        """New scratch memory, ``[batch, size]`` or ``[batch, places, size]``.

        Its values last for one run. Memory that belongs to the state comes from
        :class:`tessella.nn.stepping.step.MemoryAllocator`.
        """

    def linear(
        self,
        x: Operand,
        weight: Weights,
        out: Operand,
        add: Operand | None = None,
        activation: str = "",
        residual: Operand | None = None,
    ) -> None:
        """``out = activation(x @ weight + add) + residual``.

        Args:
            x: input, ``[batch, inputs]``.
            weight: ``[inputs, outputs]``.
            out: receives the result, ``[batch, outputs]``. After ``concat-elu``, which is ``elu``
                of the sums and of their negatives, it is twice as wide; after ``gate``
                (``tanh(a) * sigmoid(b)``), ``glu`` (``a * sigmoid(b)``) and ``swiglu``
                (``silu(a) * b``), half as wide.
            add: added before the activation, ``[batch, outputs]`` or ``[outputs]``. Without an
                activation it may be ``out``.
            activation: a name in :data:`~tessella.nn.stepping.operation.ACTIVATIONS`.
            residual: added after the activation, of the shape of ``out``; only with ``gate``,
                ``glu`` and ``swiglu``.
        """
        assert activation in ACTIVATIONS
        # The runners fuse the residual with the product a * b of these activations.
        assert residual is None or activation in PAIRED
        self.append(
            # y holds what is added before the activation, z what is added after it.
            Operation("linear", out, x, add, residual, activation=activation, weight=weight)
        )

    def map(self, x: Operand, out: Operand, activation: str = "") -> None:
        """``out = activation(x)``; without an activation, a copy."""
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

    def rotate(self, x: Operand, cos_sin: Operand, out: Operand, heads: int) -> None:
        """Rotate adjacent pairs of each head.

        Args:
            x, out: ``[batch, heads * size]``.
            cos_sin: cosines and then signed sines, ``[2 * size]``, a row of
                :func:`tessella.nn.rotary.rotations`; in a program over several places also
                ``[places, 2 * size]``, a row for each.
            heads: number of heads.
        """
        self.append(Operation("rotate", out, x, cos_sin, heads=heads))

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
        """Attention of one query to the first places of a sequence.

        Args:
            query, out: ``[batch, heads * size]``.
            keys, values: ``[batch, places, groups * size]``, with adjacent places in memory.
            known: name of the variable that counts the places it looks at; at 0, ``out`` is zero.
                In a program over several places, each looks at one more than the place before it.
            heads: number of query heads.
            groups: number of heads of keys and values; 0 means as many as ``heads``.
        """
        # y and z hold keys and values.
        self.append(
            Operation(
                "attend", out, query, keys, values, heads=heads, groups=groups or heads, known=known
            )
        )

    def lookup(self, symbols: torch.Tensor, table: Operand, out: Operand) -> None:
        """``out += table[symbols]`` with ``table [levels, size]`` and ``symbols int64 [batch]``."""
        # Symbols change from run to run, so they are checked when the program runs.
        self.append(Operation("lookup", out, symbols, table))

    def cell(self, gates: Operand, cells: Operand, out: Operand) -> None:
        """One step of an LSTM, see :func:`tessella.nn.lstm_cell.lstm_cell`.

        Args:
            gates: ``[batch, 4 * size]``.
            cells: cell states, ``[batch, size]``, of the type of
                :func:`tessella.nn.lstm_cell.cell_dtype`; updated in place.
            out: receives the hidden state, ``[batch, size]``.
        """
        # y is the one input that is also written to.
        self.append(Operation("cell", out, gates, cells))

    def product(
        self,
        x: Operand,
        weight: Operand,
        out: Operand,
        add: Operand | None = None,
        activation: str = "",
        known: str = "",
        count: str = "",
    ) -> None:
        """``out = activation(x @ weight + add)``, with weights that move with the walk.

        Unlike those of :meth:`linear`, each of these weights serves a single place, so they are not
        packed but read where they are.

        Args:
            x: input, ``[batch, inputs]``.
            weight: ``[inputs, outputs]``, shared by all images; one of the two dimensions must be
                contiguous.
            out: receives the result, ``[batch, outputs]``.
            add: added before the activation, ``[batch, outputs]`` or ``[outputs]``; it may be
                ``out``.
            activation: a name in :data:`~tessella.nn.stepping.operation.ACTIVATIONS` whose result
                is as wide as its argument.
            known: name of the variable that counts the inputs, of which there may be none; the
                others are not looked at. Without a name all are used.
            count: name of the variable that counts the outputs; the rest of ``out`` is not
                written. Without a name all are.
        """
        assert activation in ACTIVATIONS
        assert activation not in PAIRED
        assert activation != "concat-elu"
        # y holds what is added, as for `linear`, and z the weights.
        self.append(
            Operation(
                "product", out, x, add, weight, activation=activation, known=known, count=count
            )
        )


class Program(OperationWriter, Work):
    """A list of operations on the memory of one state.

    Args:
        batch, like, places: see :class:`Work`.
        variables: names of the variables of the walk, in the order in which :meth:`run` takes
            their values.
    """

    def __init__(
        self, batch: int, variables: Sequence[str], like: torch.Tensor, places: int = 0
    ) -> None:
        super().__init__(batch, tuple(variables), like, places)
        self._runner: Runner | None = None

    def append(self, operation: Operation) -> None:
        # The runner has already laid out the operations, and would miss a new one.
        assert self._runner is None, "a program that has run is complete"
        self.operations.append(operation)

    def zeros(self, size: int) -> torch.Tensor:
        if self.places:
            return self.like.new_zeros(self.batch, self.places, size)
        return self.like.new_zeros(self.batch, size)

    def run(self, *values: int) -> None:
        """Run all operations at one place.

        Args:
            values: value of each variable.

        Raises:
            InputError: when a symbol to be looked up is out of range (compiled runs).
            IndexError: the same in torch.
        """
        # Some model families have no work on rows; their row program is empty.
        if not self.operations:
            return
        self.runner().run(values)

    def runner(self) -> Runner:
        """The way to run this program, which is complete from now on."""
        if self._runner is None:
            # Chosen at the first run, when all operations are known.
            self._runner = create_runner(self)
        return self._runner


class SeveralPrograms(OperationWriter):
    """Appends each operation to several programs at once.

    Args:
        programs: at least one, with the same batch and places.
    """

    def __init__(self, programs: Sequence[Program]) -> None:
        assert programs
        self.programs = list(programs)

    def append(self, operation: Operation) -> None:
        first, *others = self.programs
        first.append(operation)
        for program in others:
            # A copy, because runners store their own data in the operations of their program.
            program.append(replace(operation))

    def zeros(self, size: int) -> torch.Tensor:
        return self.programs[0].zeros(size)

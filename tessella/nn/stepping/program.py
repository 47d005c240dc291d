"""The work on a place as a program: operations on fixed memory, listed once and run for one place
after another.

A cached step does the same few products and nonlinearities at every pixel, and others at every row;
only the place where they read and write moves. A model lists them once for a state, on the state's
own tensors, and :meth:`Program.run` does them in one of three ways, which agree to rounding:

* in torch, operation after operation, into the memory given;
* compiled (``tessella.kernel``), all operations in one call, where the memory is a CPU's and a
  compiler is there;
* on a GPU, as a CUDA graph that reads from the device where the walk is.

``tessella.nn.stepping.runners`` has the three.

An operand is a tensor ``[batch, size]`` (of a program over a row ``[batch, places, size]``) whose
last dimension is contiguous, a vector ``[size]`` that all share, or either one :class:`Moving`
along memory with a variable of the walk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tessella.nn.stepping.operation import (
    PAIRS,
    Matrix,
    Moving,
    Operand,
    Operation,
    Work,
    along,
    windows,
)
from tessella.nn.stepping.runners import Runner, create_runner

__all__ = ["Matrix", "Moving", "Operand", "Program", "along", "windows"]


class Program(Work):
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

    def room(self, size: int) -> torch.Tensor:
        """New memory of zeros, ``[batch, size]`` or ``[batch, places, size]``."""
        return self.like.new_zeros(
            (self.batch, self.places, size) if self.places else (self.batch, size)
        )

    def linear(
        self, x: Operand, weight: Matrix, out: Operand, plus: Operand | None = None, then: str = "",
        residual: Operand | None = None,
    ) -> None:  # fmt: skip
        """``out = then(x @ weight + plus)``. Where nothing follows, ``plus`` may be ``out``.

        ``concat-elu`` gives ``elu`` of the sums and of their negatives, twice as wide. ``gate`` is
        ``tanh(a) * sigmoid(b)``, ``glu`` ``a * sigmoid(b)``, ``swiglu`` ``silu(a) * b``, half as
        wide, and ``residual`` is added to them.
        """
        assert residual is None or then in PAIRS
        self.operations.append(Operation("linear", out, x, plus, residual, then, weight))

    def map(self, x: Operand, out: Operand, then: str = "") -> None:
        """``out = then(x)``; a copy where nothing follows."""
        self.operations.append(Operation("map", out, x, then=then))

    def add(self, x: Operand, y: Operand, out: Operand, then: str = "") -> None:
        """``out = then(x + y)``."""
        assert then not in PAIRS
        self.operations.append(Operation("add", out, x, y, then=then))

    def norm(self, x: Operand, scale: torch.Tensor, out: Operand, epsilon: float) -> None:
        """``x`` divided by the root of its mean square (plus ``epsilon``), times
        ``scale [size]``."""
        self.operations.append(Operation("norm", out, x, scale, number=epsilon))

    def rotate(self, x: Operand, turns: Operand, out: Operand, heads: int) -> None:
        """Neighbouring pairs of each head turned by ``turns [2 * size of a head]``, cosines and
        signed sines as :func:`tessella.nn.attention.rotations` has them."""
        self.operations.append(Operation("rotate", out, x, turns, heads=heads))

    def attend(
        self, query: Operand, keys: torch.Tensor, contents: torch.Tensor, out: Operand, by: str, heads: int,
        groups: int = 0,
    ) -> None:  # fmt: skip
        """Attention of ``query [batch, heads * size]`` to the first places of ``keys`` and
        ``contents``, ``[batch, places, groups * size]``, whose places are neighbours in memory: as
        many as the variable ``by`` says; zeros where it says none."""
        groups = groups or heads
        self.operations.append(
            Operation("attend", out, query, keys, contents, heads=heads, groups=groups, by=by)
        )

    def lookup(self, symbols: torch.Tensor, table: torch.Tensor, out: Operand) -> None:
        """``out += table[symbols]`` with ``table [levels, size]`` and ``symbols int64 [batch]``."""
        self.operations.append(Operation("lookup", out, symbols, table))

    def cell(self, gates: Operand, cells: Operand, out: Operand) -> None:
        """A step of an LSTM (:func:`tessella.nn.lstm_cell.lstm_cell`): ``gates [batch, 4 * size]``;
        ``cells [batch, size]``, in half precision of :func:`tessella.nn.lstm_cell.cell_dtype`, are
        renewed in place."""
        self.operations.append(Operation("cell", out, gates, cells))

    def run(self, *values: int) -> None:
        """Do all operations at a place: a value for each variable."""
        if self._runner is None:
            self._runner = create_runner(self)
        self._runner.run(values)

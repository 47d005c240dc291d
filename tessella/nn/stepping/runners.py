"""The ways to run a program in torch: one operation after the other, or as a CUDA graph.

``tessella.nn.stepping.compiled`` has the compiled way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F

from tessella import kernel
from tessella.nn.integer.compiled_integers import IntegerCompiledRunner
from tessella.nn.integer.operations import IntegerTorchRunner
from tessella.nn.stepping.compiled import CompiledRunner
from tessella.nn.stepping.memory import Moving, Operand, operand_at
from tessella.nn.stepping.operation import Matrix, Operation, Work
from tessella.nn.stepping.torch_operations import (
    OptionalTensor,
    attend_places,
    attention_operands,
    counted,
    prepare,
    run_operation,
)


@runtime_checkable
class Runner(Protocol):
    """A way to run a program."""

    def run(self, values: Sequence[int]) -> None:
        """Run all operations with these values of the variables."""


def create_runner(work: Work) -> Runner:
    """The fastest runner for the program's device and type."""
    on_cpu = work.like.device.type == "cpu"
    if work.like.dtype == torch.int32:
        # Both give the same integers.
        if on_cpu and kernel.available():
            return IntegerCompiledRunner(work)
        return IntegerTorchRunner(work)
    if any(_is_observed(operation) for operation in work.operations):
        return ObservingRunner(work)
    # On a GPU, launching operations one by one costs more than computing them.
    if work.like.device.type == "cuda":
        return IndexedRunner(work)
    # The kernel computes in these two types only.
    compiles = work.like.dtype in (torch.float32, torch.float64)
    if on_cpu and compiles and kernel.available():
        return CompiledRunner(work)
    return TorchRunner(work)


class TorchRunner:
    """Runs a program in torch, operation after operation.

    Args:
        work: the operations.
    """

    def __init__(self, work: Work) -> None:
        # Allocate all scratch memory now, so that running allocates none.
        prepare(work)
        self._variables = work.variables
        self._operations = work.operations

    def run(self, values: Sequence[int]) -> None:
        """Run all operations with these values of the variables."""
        where = dict(zip(self._variables, values, strict=True))
        for operation in self._operations:
            self.run_one(operation, where)

    def run_one(self, operation: Operation, where: dict[str, int]) -> None:
        """Run one operation.

        Args:
            operation: what to do.
            where: value of each variable.
        """
        out, x, y, z = (operand_at(operand, where) for operand in operation.operands)
        assert out is not None
        assert x is not None
        known = where[operation.known] if operation.known else 0
        if operation.name == "product":
            out, x, y, z = counted(operation, where, out, x, y, z)
        run_operation(operation, out, x, y, z, known)


class ObservingRunner(TorchRunner):
    """Runs a program in torch, and notes the largest input of each matrix that asks for it."""

    def run(self, values: Sequence[int]) -> None:
        """Run all operations with these values of the variables."""
        where = dict(zip(self._variables, values, strict=True))
        for operation in self._operations:
            matrix = operation.weight
            if isinstance(matrix, Matrix) and matrix.largest_input is not None:
                x = operand_at(operation.x, where)
                assert x is not None
                matrix.largest_input = max(matrix.largest_input, float(x.abs().amax()))
            self.run_one(operation, where)


def _is_observed(operation: Operation) -> bool:
    matrix = operation.weight
    return isinstance(matrix, Matrix) and matrix.largest_input is not None


class IndexedRunner:
    """Runs a program whose variables are in device memory; on a GPU, as a CUDA graph.

    The graph is captured once. It repeats the same work on the same memory, so operands that move
    are gathered and scattered by indices computed on the device, and attention looks at all its
    memory through a mask. Nothing waits for the host. On a CPU the operations run one by one, so
    that tests can run this class without a GPU.

    Args:
        work: the operations.
    """

    def __init__(self, work: Work) -> None:
        prepare(work)
        self._variables = work.variables
        self._operations = work.operations
        self._device = work.like.device
        self._dtype = work.like.dtype
        count = max(1, len(work.variables))
        self._values = torch.zeros(count, dtype=torch.int64, device=self._device)
        self._offsets: dict[int, torch.Tensor] = {}
        used: set[str] = set()
        for operation in work.operations:
            used |= {operation.known, operation.count}
            for operand in operation.operands:
                if isinstance(operand, Moving):
                    used.add(operand.variable)
                    self._offsets[id(operand)] = _offsets(operand)
        # Setting a variable costs a call to the device, so unused ones are skipped.
        self._used = [i for i, name in enumerate(work.variables) if name in used]
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self, values: Sequence[int]) -> None:
        """Run all operations with these values of the variables."""
        # fill_ passes the value as a kernel argument; a copy from the host would synchronize.
        for i in self._used:
            self._values[i].fill_(values[i])
        if self._device.type != "cuda":
            self._run_all()
            return
        if self._graph is None:
            # Capturing only records the work, so the new graph is replayed below as well.
            self._graph = self._capture()
        self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        # cuBLAS initializes itself at the first product, and a graph must not capture that.
        square = torch.ones(16, 16, device=self._device, dtype=self._dtype)
        torch.addmm(square, square, square)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run_all()
        return graph

    def _run_all(self) -> None:
        for operation in self._operations:
            out, x, y, z = (self._read(operand) for operand in operation.operands)
            assert out is not None
            assert x is not None
            if operation.name == "attend":
                self._attend(operation, out, x, y, z)
            elif operation.name == "product":
                self._multiply(operation, out, x, y, z)
            else:
                run_operation(operation, out, x, y, z, 0)
            self._write(operation.out, out)
            if operation.name == "cell":
                # Cell states are updated in place, here in a gathered copy.
                self._write(operation.y, y)

    def _value(self, variable: str) -> torch.Tensor:
        """The value of a variable, on the device: ``int64 []``."""
        return self._values[self._variables.index(variable)]

    def _index(self, moving: Moving) -> torch.Tensor:
        """Current index of each element of an operand in its memory; the operand's shape."""
        return self._offsets[id(moving)] + moving.step * self._value(moving.variable)

    def _read(self, operand: Operand | None) -> OptionalTensor:
        if not isinstance(operand, Moving):
            return operand
        index = self._index(operand)
        return _whole_memory(operand).index_select(0, index.flatten()).view(index.shape)

    def _write(self, operand: Operand | None, value: OptionalTensor) -> None:
        """Scatter ``value`` to the current place of an operand, if it moves."""
        if isinstance(operand, Moving) and value is not None:
            index = self._index(operand).flatten()
            _whole_memory(operand).index_copy_(0, index, value.flatten())

    def _attend(
        self,
        operation: Operation,
        out: torch.Tensor,
        x: torch.Tensor,
        y: OptionalTensor,
        z: OptionalTensor,
    ) -> None:
        assert y is not None
        assert z is not None
        known = self._value(operation.known)
        if x.dim() == 3:
            out.copy_(attend_places(operation, x, y, z, known))
            return
        # With nothing known, the mask would hide every place and softmax would return NaN. So look
        # at the first place anyway, and replace the result by zeros below.
        places = torch.arange(y.shape[1], device=y.device)
        mask = places[None] < known.clamp(min=1)
        queries, keys, values = attention_operands(operation, x, y, z)
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        out.copy_(torch.where(known > 0, seen, 0).flatten(1))

    def _multiply(
        self,
        operation: Operation,
        out: torch.Tensor,
        x: torch.Tensor,
        y: OptionalTensor,
        z: OptionalTensor,
    ) -> None:
        # A graph multiplies all of its memory, so inputs that do not count become zeros.
        if operation.known:
            inputs = torch.arange(x.shape[1], device=x.device)
            x = torch.where(inputs < self._value(operation.known), x, 0)
        if not operation.count:
            run_operation(operation, out, x, y, z, 0)
            return
        result = torch.empty_like(out)
        run_operation(operation, result, x, y, z, 0)
        # Outputs that do not count keep what they have.
        outputs = torch.arange(out.shape[1], device=out.device)
        out.copy_(torch.where(outputs < self._value(operation.count), result, out))


def _whole_memory(moving: Moving) -> torch.Tensor:
    """All of the memory that a moving operand lies in: ``[elements]``."""
    start = moving.start
    numbers = start.untyped_storage().nbytes() // start.element_size()
    return start.as_strided((numbers,), (1,), 0)


def _offsets(moving: Moving) -> torch.Tensor:
    """Index of each element of an operand in its memory at value 0 of the variable.

    ``int64``, of the operand's shape.
    """
    start = moving.start
    offsets = torch.tensor(int(start.storage_offset()), device=start.device)
    for size, stride in zip(start.shape, start.stride(), strict=True):
        # Add one dimension of the operand at a time.
        offsets = offsets[..., None] + stride * torch.arange(size, device=start.device)
    return offsets

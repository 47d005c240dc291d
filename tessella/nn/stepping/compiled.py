"""Programs run by the compiled kernel (``tessella/kernel/program.cpp``).

Each operation becomes a record of type :data:`RECORD`. Its numbers for operation and activation are
positions in :data:`~tessella.nn.stepping.operation.OPERATIONS` and
:data:`~tessella.nn.stepping.operation.ACTIVATIONS`. The kernel exports one line of text with the
names and fields it was compiled with; :func:`check_layout` compares them with ours.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch

from tessella import kernel
from tessella.errors import ArtifactError, InputError
from tessella.nn.stepping.compact import STORAGES
from tessella.nn.stepping.memory import Moving, Operand, start_of
from tessella.nn.stepping.operation import (
    ACTIVATIONS,
    OPERATIONS,
    PAIRED,
    Matrix,
    Operation,
    Work,
)

OPERAND = np.dtype(
    [
        ("address", np.int64),
        ("image_stride", np.int64),
        ("place_stride", np.int64),
        ("step", np.int64),
        ("variable", np.int64),
    ]
)
"""Where an operand lies in memory. Strides and ``step`` count elements, not bytes. ``variable`` is
the index of the variable that the operand moves with, or -1."""

RECORD = np.dtype(
    [
        ("operation", np.int64),
        ("activation", np.int64),
        ("size", np.int64),
        ("inputs", np.int64),
        ("heads", np.int64),
        ("groups", np.int64),
        ("known", np.int64),
        ("count", np.int64),
        ("epsilon", np.float64),
        ("weight", np.int64),
        ("storage", np.int64),
        ("scales", np.int64),
        ("out", OPERAND),
        ("x", OPERAND),
        ("y", OPERAND),
        ("z", OPERAND),
    ]
)
"""One operation. ``inputs`` is the number of inputs of a product, or of levels of a table.
``known`` is the index of the variable that counts the places that attention looks at, or the inputs
of a product whose weights move, and ``count`` that of the variable that counts its outputs; -1
where all count. The strides of its weights (``z``) are those from input to input and from output
to output."""

THREAD_BYTES = 64 << 10
"""Bytes of weights of an operation on one row that justify one more thread. For less work, waiting
for the thread costs more than it saves."""


def layout() -> str:
    """The names and fields of this module, in the form that the kernel exports."""
    return layout_of(RECORD)


def layout_of(record: np.dtype[np.void]) -> str:
    """The names of operations and activations, and the fields of operands and of ``record``."""
    names = [name or "identity" for name in ACTIVATIONS]
    # layout() of program.cpp and of integer.cpp build the same text.
    return "; ".join(
        [
            "operations " + " ".join(OPERATIONS),
            "activations " + " ".join(names),
            "operand " + fields_of(OPERAND),
            "record " + fields_of(record),
        ]
    )


def fields_of(dtype: np.dtype[np.void]) -> str:
    """Name and byte offset of each field, then the size of the record in bytes."""
    assert dtype.fields is not None
    parts = [f"{name}:{dtype.fields[name][1]}" for name in dtype.names or ()]
    return " ".join([*parts, f"bytes:{dtype.itemsize}"])


@cache
def check_layout(library: ctypes.CDLL) -> None:
    """Compare the kernel's names and fields with ours.

    Raises:
        ArtifactError: when they differ, because the kernel would misread our records.
    """
    compare_layouts(library.tessella_layout().decode(), layout())


def compare_layouts(theirs: str, ours: str) -> None:
    """Compare the layout that a library exports with ours.

    Raises:
        ArtifactError: when they differ.
    """
    if theirs != ours:
        raise ArtifactError(
            "the compiled kernel has other operations or records than this version of Tessella "
            f"(it has '{theirs}', expected is '{ours}'): set TESSELLA_KERNEL=0 to run without "
            "it, or delete it from the cache"
        )


class KernelRunner:
    """Runs a program as one call of the kernel, whatever its numbers are.

    Args:
        work: the operations.
        function: runs records, see ``tessella_run`` in ``program.cpp``.
        records: one for each operation, as tuples.
        dtype: type of the records.
        weight_bytes: size of all packed weights.
        argument: last argument of ``function``.
    """

    def __init__(
        self,
        work: Work,
        function: Callable[..., int],
        records: list[tuple[object, ...]],
        dtype: np.dtype[np.void],
        weight_bytes: int,
        argument: int,
    ) -> None:
        self._run = function
        # Records hold bare addresses, so keep the operations: they keep the memory alive.
        self._operations = work.operations
        self._records = np.array(records, dtype=dtype)
        # The records name variables by index; the kernel reads their values here at each run.
        self._values = np.zeros(max(1, len(work.variables)), dtype=np.int64)
        # Assigning to the array would take three times as long.
        self._memory_of_values = self._values.data
        self._pack_values = struct.Struct(f"{len(work.variables)}q").pack_into
        # The weights are read once and multiplied with every row.
        bytes_an_operation = weight_bytes * (1 + work.rows) // (2 * max(1, len(records)))
        self._threads = 1 + bytes_an_operation // THREAD_BYTES
        self._weight_bytes = weight_bytes
        self._argument = argument
        # A call takes a few microseconds; looking these up each time would be a good part of it.
        self._fixed = (
            self._records.ctypes.data,
            len(self._records),
            work.batch,
            max(1, work.places),
            self._values.ctypes.data,
        )

    def run(self, values: Sequence[int]) -> None:
        """Run all operations.

        Args:
            values: value of each variable.

        Raises:
            InputError: when a symbol to be looked up is out of range.
        """
        self._pack_values(self._memory_of_values, 0, *values)
        # ctypes releases the interpreter's lock during the call, so other threads can run.
        threads = min(torch.get_num_threads(), self._threads)
        wrong_symbol = self._run(*self._fixed, threads, self._argument)
        if wrong_symbol:
            raise InputError(
                "a symbol given to a step is negative or not below the levels of its grid"
            )

    def facts(self) -> tuple[int, ...]:
        """``Program`` of ``tables.h``: address and number of records, batch, places, threads that
        share an operation, and bytes of packed weights."""
        records, count, batch, places, _ = self._fixed
        return records, count, batch, places, self._threads, self._weight_bytes


class CompiledRunner(KernelRunner):
    """Runs a program of floating-point numbers in the kernel.

    Args:
        work: the operations.
    """

    def __init__(self, work: Work) -> None:
        library = kernel.library()
        assert library is not None
        check_layout(library)
        lane_bytes = library.tessella_lane_bytes()
        records = [_record(operation, work, lane_bytes) for operation in work.operations]
        element = work.like.element_size()
        super().__init__(
            work,
            library.tessella_run,
            records,
            RECORD,
            count_weights(work) * element,
            element,
        )


def count_weights(work: Work) -> int:
    """Number of weights of all products."""
    weights = 0
    for operation in work.operations:
        if operation.weight is not None:
            weights += math.prod(operation.weight.shape)
        elif operation.name == "product":
            assert operation.z is not None
            weights += start_of(operation.z).numel()
    return weights


def _record(operation: Operation, work: Work, lane_bytes: int) -> tuple[object, ...]:
    """The fields of :data:`RECORD`, as a tuple: setting them one by one takes twice as long."""
    weight = 0
    storage = "whole"
    scales = 0
    inputs = 0
    if isinstance(operation.weight, Matrix):
        # The matrix keeps these weights alive; the record holds only their address.
        panels = operation.weight.panels(operation.activation in PAIRED, lane_bytes)
        weight = panels.weights.data_ptr()
        storage = panels.storage
        if panels.scales is not None:
            scales = panels.scales.data_ptr()
        inputs = operation.weight.shape[0]
    elif operation.name == "lookup":
        assert operation.y is not None
        inputs = len(start_of(operation.y))
    *operands, last = operation.operands
    fields = [operand_fields(operand, work) for operand in operands]
    if operation.name == "product":
        assert last is not None
        inputs = len(start_of(last))
        fields.append(weight_fields(last, work))
    else:
        fields.append(operand_fields(last, work))
    return (
        OPERATIONS.index(operation.name),
        ACTIVATIONS.index(operation.activation),
        operation.size,
        inputs,
        operation.heads,
        operation.groups,
        _variable(operation.known, work),
        _variable(operation.count, work),
        operation.epsilon,
        weight,
        STORAGES.index(storage),
        scales,
        *fields,
    )


def _variable(name: str, work: Work) -> int:
    """The index of a variable; -1 for none."""
    return work.variables.index(name) if name else -1


def operand_fields(operand: Operand | None, work: Work) -> tuple[int, int, int, int, int]:
    """The fields of :data:`OPERAND`."""
    if operand is None:
        return (0, 0, 0, 0, -1)  # the address 0 means that there is no operand
    start = start_of(operand)
    # The kernel reads and writes vectors as contiguous runs.
    assert start.shape[-1] == 1 or start.stride(-1) == 1
    strides = _strides(start, bool(work.places))
    return (start.data_ptr(), *strides, *_movement(operand, work))


def weight_fields(operand: Operand, work: Work) -> tuple[int, int, int, int, int]:
    """The fields of :data:`OPERAND` for weights ``[inputs, outputs]`` that move.

    Their strides are those from input to input and from output to output. One of them is 1.
    """
    start = start_of(operand)
    inputs, outputs = start.shape
    by_input, by_output = start.stride()
    # The stride of a dimension of size 1 says nothing, so it must not be what the kernel goes by.
    if outputs == 1 and by_input == 1:
        by_output = inputs
    elif inputs == 1 and by_output == 1:
        by_input = outputs
    assert 1 in (by_input, by_output), "one dimension of moving weights must be contiguous"
    return (start.data_ptr(), by_input, by_output, *_movement(operand, work))


def _movement(operand: Operand, work: Work) -> tuple[int, int]:
    """How many elements an operand moves, and the index of its variable; -1 for none."""
    if isinstance(operand, Moving):
        return operand.step, work.variables.index(operand.variable)
    return 0, -1


def _strides(start: torch.Tensor, over_places: bool) -> tuple[int, int]:
    """Strides from image to image and from place to place; 0 where all share the same data."""
    strides = []
    for size, stride in zip(start.shape[:-1], start.stride()[:-1], strict=True):
        # A dimension of size 1 is broadcast, whatever its stride.
        strides.append(0 if size == 1 else stride)
    if over_places:
        # [batch, places, size], [places, size] for all images, or [size] for all.
        image, place = ([0, 0, *strides])[-2:]
        return image, place
    # Keys and values are [batch, places, size] here; the kernel assumes that places are adjacent.
    return (strides[0] if strides else 0), 0

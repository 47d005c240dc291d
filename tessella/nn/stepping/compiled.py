"""Programs run by the compiled kernel (``tessella/kernel/program.cpp``).

An operation becomes a record of :data:`RECORD`, whose numbers for operations and activations are
positions in :data:`~tessella.nn.stepping.operation.OPERATIONS` and
:data:`~tessella.nn.stepping.operation.ACTIVATIONS`. The kernel says in one line of text which names
and which fields it was compiled with; :func:`check_layout` compares them with ours.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from tessella import kernel
from tessella.errors import ArtifactError, InputError
from tessella.nn.stepping.memory import Moving, Operand
from tessella.nn.stepping.operation import ACTIVATIONS, OPERATIONS, PAIRED, Operation, Work

OPERAND = np.dtype(
    [
        ("address", np.int64),
        ("image_stride", np.int64),
        ("place_stride", np.int64),
        ("step", np.int64),
        ("variable", np.int64),
    ]
)
"""Where an operand lies: strides and steps in numbers; ``variable`` is the index of the variable
that it moves with, or -1."""

RECORD = np.dtype(
    [
        ("operation", np.int64),
        ("activation", np.int64),
        ("size", np.int64),
        ("inputs", np.int64),
        ("heads", np.int64),
        ("groups", np.int64),
        ("known", np.int64),
        ("epsilon", np.float64),
        ("weight", np.int64),
        ("out", OPERAND),
        ("x", OPERAND),
        ("y", OPERAND),
        ("z", OPERAND),
    ]
)
"""One operation. ``inputs`` is what a product sums over, or the levels of a table; ``known`` is the
index of the variable that counts the places of an attention."""

THREAD_BYTES = 1 << 18
"""Bytes of weights per row from which a further thread pays; with fewer, waiting for it costs more
than it does."""


def layout() -> str:
    """Names and fields as this module has them, in the form that the kernel exports."""
    names = [name or "identity" for name in ACTIVATIONS]
    # The same form in layout() of program.cpp.
    return "; ".join(
        [
            "operations " + " ".join(OPERATIONS),
            "activations " + " ".join(names),
            "operand " + _fields(OPERAND),
            "record " + _fields(RECORD),
        ]
    )


def _fields(dtype: np.dtype[np.void]) -> str:
    """Name and byte offset of each field, then the bytes of the whole."""
    assert dtype.fields is not None
    parts = [f"{name}:{dtype.fields[name][1]}" for name in dtype.names or ()]
    return " ".join([*parts, f"bytes:{dtype.itemsize}"])


@cache
def check_layout(library: ctypes.CDLL) -> None:
    """Compare the kernel's names and fields with ours.

    Raises:
        ArtifactError: when they differ: records would be misread.
    """
    library.tessella_layout.restype = ctypes.c_char_p
    theirs = library.tessella_layout().decode()
    if theirs != layout():
        raise ArtifactError(
            "the compiled kernel has other operations or records than this version of Tessella "
            f"(it has '{theirs}', expected is '{layout()}'): set TESSELLA_KERNEL=0 to run without "
            "it, or delete it from the cache"
        )


class CompiledRunner:
    """Runs a program as one call of the kernel.

    Args:
        work: the operations.
    """

    def __init__(self, work: Work) -> None:
        library = kernel.library()
        assert library is not None
        check_layout(library)
        self._run = library.tessella_run
        # Records hold addresses only: the operations keep the memory alive.
        self._operations = work.operations
        # The records name variables by index; the kernel reads their values here at each run.
        self._values = np.zeros(max(1, len(work.variables)), dtype=np.int64)
        self._records = np.zeros(len(work.operations), dtype=RECORD)
        lane_bytes = library.tessella_lane_bytes()
        for record, operation in zip(self._records, work.operations, strict=True):
            _fill(record, operation, work, lane_bytes)
        self._element = work.like.element_size()
        self._threads = self._useful_threads(work)
        self._places = max(1, work.places)
        self._batch = work.batch

    def _useful_threads(self, work: Work) -> int:
        weights = 0
        for operation in work.operations:
            if operation.weight is not None:
                weights += operation.weight.weight.numel()
        # The weights are read once, and multiplied with every row.
        return 1 + weights * self._element * (1 + work.rows) // (2 * THREAD_BYTES)

    def run(self, values: Sequence[int]) -> None:
        """All operations, for the values of the variables.

        Raises:
            InputError: when a symbol to be looked up is none of its table.
        """
        self._values[: len(values)] = values
        # During the call ctypes releases the interpreter's lock, so other threads go on.
        wrong_symbol = self._run(
            self._records.ctypes.data,
            len(self._records),
            self._batch,
            self._places,
            self._values.ctypes.data,
            min(torch.get_num_threads(), self._threads),
            self._element,
        )
        if wrong_symbol:
            raise InputError(
                "a symbol given to a step is negative or not below the levels of its grid"
            )


def _fill(record: np.void, operation: Operation, work: Work, lane_bytes: int) -> None:
    record["operation"] = OPERATIONS.index(operation.name)
    record["activation"] = ACTIVATIONS.index(operation.activation)
    record["size"] = operation.size
    record["heads"] = operation.heads
    record["groups"] = operation.groups
    record["epsilon"] = operation.epsilon
    if operation.weight is not None:
        # The matrix keeps the packed weights, whose address stands in the record.
        packed = operation.weight.packed(operation.activation in PAIRED, lane_bytes)
        record["weight"] = packed.data_ptr()
        record["inputs"] = operation.weight.weight.shape[0]
    if operation.name == "lookup":
        assert isinstance(operation.y, torch.Tensor)
        record["inputs"] = len(operation.y)
    if operation.name == "attend":
        record["known"] = work.variables.index(operation.known)
    for name, operand in zip(("out", "x", "y", "z"), operation.operands, strict=True):
        _fill_operand(record[name], operand, work)


def _fill_operand(field: np.void, operand: Operand | None, work: Work) -> None:
    field["variable"] = -1
    if operand is None:
        return  # the address 0 says that there is none
    start = operand.start if isinstance(operand, Moving) else operand
    # Vectors of the result are read and written as runs.
    assert start.shape[-1] == 1 or start.stride(-1) == 1
    field["address"] = start.data_ptr()
    field["image_stride"], field["place_stride"] = _strides(start, bool(work.places))
    if isinstance(operand, Moving):
        field["step"] = operand.step
        field["variable"] = work.variables.index(operand.variable)


def _strides(start: torch.Tensor, over_places: bool) -> tuple[int, int]:
    """From image to image and from place to place; 0 along a dimension that all share."""
    strides = []
    for size, stride in zip(start.shape[:-1], start.stride()[:-1], strict=True):
        # A dimension of one image or place is shared by all, whatever its stride says.
        strides.append(0 if size == 1 else stride)
    if over_places:
        # [batch, places, size], [places, size] for all images, or [size] for all.
        image, place = ([0, 0, *strides])[-2:]
        return image, place
    # Keys and values are [batch, places, size] here: the kernel knows that places are neighbours.
    return (strides[0] if strides else 0), 0

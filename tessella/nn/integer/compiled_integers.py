"""Exact programs run by the compiled kernel (``tessella/kernel/integer.cpp``).

As for floating-point numbers (``tessella.nn.stepping.compiled``), each operation becomes a record,
and the kernel exports the names and fields that it was compiled with.
"""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from tessella import kernel
from tessella.nn.integer.functions import attention_scale, norm_epsilon, tables
from tessella.nn.integer.matrix import IntegerMatrix
from tessella.nn.stepping.compiled import (
    OPERAND,
    KernelRunner,
    compare_layouts,
    count_weights,
    layout_of,
    operand_fields,
)
from tessella.nn.stepping.operation import ACTIVATIONS, OPERATIONS, PAIRED, Matrix, Operation, Work

INTEGER_RECORD = np.dtype(
    [
        ("operation", np.int64),
        ("activation", np.int64),
        ("size", np.int64),
        ("inputs", np.int64),
        ("heads", np.int64),
        ("groups", np.int64),
        ("known", np.int64),
        ("shift", np.int64),
        ("constant", np.int64),
        ("weight", np.int64),
        ("shifts", np.int64),
        ("out", OPERAND),
        ("x", OPERAND),
        ("y", OPERAND),
        ("z", OPERAND),
    ]
)
"""One operation. ``inputs`` is the number of inputs of a product, or of levels of a table;
``shift`` is the input shift of a product, and ``shifts`` the address of its output shifts.
``constant`` is the epsilon of a norm or the scale of an attention's scores, as an integer."""


def integer_layout() -> str:
    """The names and fields of this module, in the form that the kernel exports."""
    return layout_of(INTEGER_RECORD)


@cache
def check_integer_layout(library: ctypes.CDLL) -> None:
    """Compare the kernel's names and fields with ours.

    Raises:
        ArtifactError: when they differ, because the kernel would misread our records.
    """
    compare_layouts(library.tessella_integer_layout().decode(), integer_layout())


class IntegerCompiledRunner(KernelRunner):
    """Runs an exact program in the kernel.

    Args:
        work: the operations, on int32 memory on the CPU.
    """

    def __init__(self, work: Work) -> None:
        library = kernel.library()
        assert library is not None
        check_integer_layout(library)
        lane_bytes = library.tessella_lane_bytes()
        records = []
        for operation in work.operations:
            records.append(_integer_record(operation, work, lane_bytes))
        # The kernel takes an array of the addresses of the tables.
        addresses = [tables()[name].ctypes.data for name in ("SIGMOID", "EXP")]
        self._tables = np.array(addresses, dtype=np.uintp)
        super().__init__(
            work,
            library.tessella_run_integers,
            records,
            INTEGER_RECORD,
            2 * count_weights(work),
            self._tables.ctypes.data,
        )


def pack(matrix: IntegerMatrix, paired: bool, lane_bytes: int) -> torch.Tensor:
    """The weights in the panels of the kernel: ``int32 [panels, inputs / 2, 2, lanes]``.

    Each int32 holds the 16-bit weights of two adjacent inputs. After an odd number of inputs comes
    a weight of zero.

    Args:
        matrix: keeps the result.
        paired: whether a gated activation follows, see
            :meth:`tessella.nn.stepping.operation.Matrix.packed`.
        lane_bytes: size of a vector register in bytes.
    """
    key = (paired, lane_bytes)
    if key not in matrix.packed:
        inputs = matrix.weight.shape[0]
        padded = F.pad(matrix.weight, (0, 0, 0, inputs % 2))
        # [inputs / 2, outputs, 2], and the last dimension becomes one int32.
        pairs = padded.unflatten(0, (-1, 2)).transpose(1, 2).contiguous()
        both = pairs.flatten().view(torch.int32).view(pairs.shape[:2])
        matrix.packed[key] = Matrix(both).packed(paired, lane_bytes)
    return matrix.packed[key]


def _integer_record(operation: Operation, work: Work, lane_bytes: int) -> tuple[object, ...]:
    """The fields of :data:`INTEGER_RECORD`."""
    inputs = 0
    known = 0
    shift = 0
    constant = 0
    weight = 0
    shifts = 0
    if operation.name == "linear":
        matrix = operation.weight
        assert isinstance(matrix, IntegerMatrix)
        assert matrix.output_shift.dtype == torch.int32
        assert matrix.output_shift.is_contiguous()
        inputs = len(matrix.weight)
        shift = matrix.input_shift
        weight = pack(matrix, operation.activation in PAIRED, lane_bytes).data_ptr()
        shifts = matrix.output_shift.data_ptr()
    elif operation.name == "lookup":
        assert isinstance(operation.y, torch.Tensor)
        inputs = len(operation.y)
    elif operation.name == "attend":
        known = work.variables.index(operation.known)
        constant = attention_scale(operation.size // operation.heads)
    elif operation.name == "norm":
        constant = norm_epsilon(operation.epsilon)
    return (
        OPERATIONS.index(operation.name),
        ACTIVATIONS.index(operation.activation),
        operation.size,
        inputs,
        operation.heads,
        operation.groups,
        known,
        shift,
        constant,
        weight,
        shifts,
        *(operand_fields(operand, work) for operand in operation.operands),
    )

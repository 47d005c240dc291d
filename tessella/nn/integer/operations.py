"""The operations of exact programs in torch, the reference for the compiled kernel.

Each function is one definition of ``docs/arithmetic.md``. Numbers are int32 in memory. In between,
integers travel in float64, which holds all those below 2^53 exactly, in whatever order they are
added, or in int64. Dividing by a power of two only moves the binary point, so rounding is exact
too: half a unit is added, and the sum rounded down.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from tessella.nn.integer.functions import (
    LIMIT,
    attention_scale,
    clamp,
    decay,
    norm_epsilon,
    rounded,
    sigmoid,
    store,
    tanh,
    wide_table,
)
from tessella.nn.integer.matrix import INPUT_LIMIT, IntegerMatrix
from tessella.nn.stepping.memory import operand_at
from tessella.nn.stepping.operation import PAIRED, Operation, Work


class IntegerTorchRunner:
    """Runs an exact program in torch, operation after operation.

    Args:
        work: the operations, on int32 memory.
    """

    def __init__(self, work: Work) -> None:
        self._variables = work.variables
        self._operations = work.operations

    def run(self, values: Sequence[int]) -> None:
        """Run all operations with these values of the variables."""
        where = dict(zip(self._variables, values, strict=True))
        for operation in self._operations:
            out, x, y, z = (operand_at(operand, where) for operand in operation.operands)
            assert out is not None
            assert x is not None
            known = where[operation.known] if operation.known else 0
            OPERATIONS_IN_TORCH[operation.name](operation, out, x, y, z, known)


def multiply(x: torch.Tensor, matrix: IntegerMatrix) -> torch.Tensor:
    """``x @ w`` as ``docs/arithmetic.md`` defines it.

    Args:
        x: integers, ``[..., inputs]``.
        matrix: the weights.

    Returns:
        Integers, ``float64 [..., outputs]``.
    """
    inputs = _shifted(x, matrix.input_shift).clamp_(-INPUT_LIMIT, INPUT_LIMIT)
    # 8191 * 32767 * inputs is far below 2^53, so float64 adds these products exactly.
    sums = inputs @ matrix.in_float64(x.device)
    return torch.addcmul(_half(x.device), sums, matrix.unit(x.device)).floor_()


def activate(name: str, x: torch.Tensor) -> torch.Tensor:
    """Apply an activation; the result is not clamped yet.

    Args:
        name: its name.
        x: integers, ``float64 [..., size]``; pairs are concatenated along the last dimension.

    Returns:
        Integers, ``float64 [..., size]``, or ``[..., size / 2]`` for pairs.
    """
    if name in PAIRED:
        return _activate_pairs(name, *x.chunk(2, dim=-1))
    if name == "relu":
        return x.clamp(min=0)
    if name == "silu":
        return _product(x, _sigmoid(x), 15)
    if name == "elu":
        return _elu(x)
    if name == "concat-elu":
        return torch.cat([_elu(x), _elu(-x)], dim=-1)
    assert not name
    return x


def _activate_pairs(name: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if name == "gate":
        tanh_table = wide_table("tanh", a.device)
        tanh_a = tanh_table[a.clamp(-(2**19), 2**19).add_(2**19).long()]
        return _product(tanh_a, _sigmoid(b), 14)
    if name == "glu":
        return _product(a, _sigmoid(b), 15)
    assert name == "swiglu"
    # This product can exceed 2^53, up to which float64 holds every integer.
    return rounded(_product(a, _sigmoid(a), 15).long() * b.long(), 16).double()


def _sigmoid(x: torch.Tensor) -> torch.Tensor:
    return wide_table("sigmoid", x.device)[x.clamp(-(2**20), 2**20).add_(2**20).long()]


def _elu(x: torch.Tensor) -> torch.Tensor:
    # The decay of the negative part; of a positive number it is that of 0, which is 2^16.
    decayed = wide_table("decay", x.device)[x.neg().clamp_(0, 2**20).long()]
    return x.clamp(min=0).add_(decayed).sub_(2**16)


def _product(a: torch.Tensor, b: torch.Tensor, shift: int) -> torch.Tensor:
    """``a b / 2^shift``, rounded, for integers in float64 whose product is below 2^52."""
    return torch.addcmul(_half(a.device), a, b, value=2.0**-shift).floor_()


def _shifted(x: torch.Tensor, shift: int) -> torch.Tensor:
    """``x / 2^shift``, rounded, for integers of any type: float64."""
    if not shift:
        return x.double()
    return torch.add(_half(x.device), x, alpha=2.0**-shift).floor_()


@functools.cache
def _half(device: torch.device) -> torch.Tensor:
    """The number 1/2: ``float64 []``."""
    return torch.tensor(0.5, dtype=torch.float64, device=device)


def _linear(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    z: torch.Tensor | None,
    known: int,
) -> None:
    matrix = operation.weight
    assert isinstance(matrix, IntegerMatrix)
    sums = multiply(x, matrix)
    if y is not None:
        sums += y
    if operation.activation == "relu":
        # Both limits in one call, and the result needs no further one.
        out.copy_(sums.clamp_(0, LIMIT))
        return
    result = sums.clamp_(-LIMIT, LIMIT)
    # Without an activation and a residual there is nothing more to limit.
    if operation.activation:
        result = activate(operation.activation, result)
    if z is not None:
        result = result + z
    if operation.activation or z is not None:
        result = result.clamp_(-LIMIT, LIMIT)
    out.copy_(result)


def _map(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    z: torch.Tensor | None,
    known: int,
) -> None:
    if operation.activation == "relu":
        out.copy_(x.clamp(min=0))
    elif operation.activation:
        out.copy_(activate(operation.activation, x.double()).clamp_(-LIMIT, LIMIT))
    else:
        out.copy_(x)


def _add(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    z: torch.Tensor | None,
    known: int,
) -> None:
    assert y is not None
    sums = torch.add(x.double(), y).clamp_(-LIMIT, LIMIT)
    out.copy_(activate(operation.activation, sums).clamp_(-LIMIT, LIMIT))


def _norm(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    z: torch.Tensor | None,
    known: int,
) -> None:
    assert y is not None
    wide = x.long()
    # The number of bits of the largest element, [..., 1]. The exponent of a float64 is exact.
    bits = torch.frexp(wide.abs().amax(-1, keepdim=True).double()).exponent
    shift = (bits - 15).clamp(min=0).long()
    narrow = rounded(wide, shift)
    epsilon = norm_epsilon(operation.epsilon)
    squares = (narrow * narrow).sum(-1, keepdim=True) << 12
    mean = torch.div(squares, x.shape[-1], rounding_mode="floor")
    # Below 2^52, so that the root in float64, rounded down, is exact.
    square = mean + (torch.full_like(shift, epsilon) >> (2 * shift))
    root = square.double().sqrt().floor().long().clamp(min=1)
    reciprocal = torch.div((1 << 36) + (root >> 1), root, rounding_mode="floor")
    unit = rounded(narrow * reciprocal, 14)
    out.copy_(store(rounded(unit * y, 16)))


def _rotate(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    z: torch.Tensor | None,
    known: int,
) -> None:
    assert y is not None
    # [batch, heads, size / 2, 2]: adjacent elements are partners.
    pairs = x.long().unflatten(-1, (operation.heads, -1, 2))
    cosines, sines = y.long().view(2, 1, -1, 2)
    turned = pairs * cosines + pairs.flip(-1) * sines
    out.copy_(store(rounded(turned, 16).flatten(-3)))


def _attend(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    z: torch.Tensor | None,
    known: int,
) -> None:
    if not known:
        out.zero_()
        return
    assert y is not None
    assert z is not None
    groups = operation.groups
    sharing = operation.heads // groups
    # Queries [batch, groups, heads / groups, size]; keys and values [batch, groups, places, size].
    queries = _narrow_query(x).unflatten(1, (groups, sharing, -1))
    keys = _narrow_query(y[:, :known]).unflatten(2, (groups, -1)).transpose(1, 2)
    values = clamp(rounded(z[:, :known].long(), 4), 1 << 26)
    values = values.unflatten(2, (groups, -1)).transpose(1, 2)
    scale = attention_scale(queries.shape[-1])
    # Sums below 2^50 are exact in float64.
    products = (queries.double() @ keys.transpose(2, 3).double()).long()
    scores = rounded((products >> 4) * scale, 16)
    weights = decay(scores.amax(-1, keepdim=True) - scores)
    total = weights.sum(-1, keepdim=True)
    # These sums may exceed 2^53, so they stay in int64: [batch, groups, sharing, places, size].
    mixed = (weights[..., None] * values[:, :, None]).sum(-2)
    mean = torch.div(2 * mixed + total, 2 * total, rounding_mode="floor")
    out.copy_(store(mean * 16).flatten(1))


def _narrow_query(x: torch.Tensor) -> torch.Tensor:
    return clamp(rounded(x.long(), 6), 1 << 20)


def _lookup(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    z: torch.Tensor | None,
    known: int,
) -> None:
    assert y is not None
    # Unlike y[x], embedding also rejects negative symbols, with an IndexError.
    out.copy_(store(out.long() + F.embedding(x, y)))


def _cell(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor | None,
    z: torch.Tensor | None,
    known: int,
) -> None:
    assert y is not None
    emit, forget, write, content = x.long().chunk(4, dim=-1)
    kept = rounded(sigmoid(forget) * y, 15)
    written = rounded(sigmoid(write) * tanh(content), 14)
    state = store(kept + written)
    y.copy_(state)
    out.copy_(rounded(sigmoid(emit) * tanh(state), 14))


OPERATIONS_IN_TORCH: dict[
    str,
    Callable[
        [
            Operation,
            torch.Tensor,
            torch.Tensor,
            torch.Tensor | None,
            torch.Tensor | None,
            int,
        ],
        None,
    ],
] = {
    "linear": _linear,
    "map": _map,
    "add": _add,
    "norm": _norm,
    "rotate": _rotate,
    "attend": _attend,
    "lookup": _lookup,
    "cell": _cell,
}

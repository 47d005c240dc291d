"""The operations of programs in torch: what the compiled kernel must agree with."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from tessella.nn.lstm_cell import lstm_cell_
from tessella.nn.rotary import rms_norm, rotate
from tessella.nn.stepping.operation import Operation, Work

SMALL_RESULT = 2048
"""Up to so many numbers, calling torch costs more than computing."""

FEW_ROWS = 16
LARGE_WEIGHT = 1 << 17
"""Up to so many rows, and from so many weights on, torch leaves a product to one thread unless it
is cut into parts."""

Values = torch.Tensor | None


def prepare(work: Work) -> None:
    """Give the products of a program the memory that they need in torch, and choose those that are
    multiplied in halves.

    Products of one width share their memory: a program runs one operation after the other.
    """
    shared: dict[int, torch.Tensor] = {}
    for operation in work.operations:
        if operation.weight is None:
            continue
        weight = operation.weight.weight
        inputs, outputs = weight.shape
        if work.like.device.type == "cpu" and goes_in_halves(work.rows, weight):
            # A single vector times a wide matrix goes fastest by halves of the inputs.
            by_inputs = work.rows == 1 and outputs > inputs and inputs % 2 == 0
            operation.halved = operation.weight.by_inputs() if by_inputs else weight
        # The result of a product over a row may lie in pieces, which torch cannot multiply into.
        if operation.activation or work.places:
            if outputs not in shared:
                shared[outputs] = work.like.new_empty(work.rows, outputs)
            operation.sums = shared[outputs]


def run_operation(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: Values,
    z: Values,
    known: int,
) -> None:
    """Do one operation on operands that are where they belong; ``known`` places are attended to."""
    run = TORCH_OPERATIONS[operation.name]
    run(operation, out, x, y, z, known)


def goes_in_halves(rows: int, weight: torch.Tensor) -> bool:
    """Whether a product goes faster in two halves.

    With few rows torch leaves a product to one thread; two halves make a batched product, which it
    gives to two.
    """
    if weight.T.is_contiguous():
        cut = weight.shape[1]
    elif weight.is_contiguous():
        cut = weight.shape[0]
    else:
        return False
    large = rows <= FEW_ROWS and weight.numel() >= LARGE_WEIGHT
    return large and cut % 2 == 0 and torch.get_num_threads() > 1


def multiply_in_halves(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x @ weight`` in two halves, of the outputs or of the inputs, whichever are contiguous parts
    of memory."""
    if weight.T.is_contiguous():
        # [outputs, inputs] to [2, inputs, outputs / 2]: each half gives half of the outputs.
        halves = weight.T.unflatten(0, (2, -1)).transpose(1, 2)
        products = torch.bmm(x.expand(2, *x.shape), halves)
        return products.transpose(0, 1).flatten(1)
    # [2, inputs / 2, outputs]: each half gives a part of every sum.
    halves = weight.unflatten(0, (2, -1))
    parts = x.unflatten(1, (2, -1)).transpose(0, 1)
    return torch.bmm(parts, halves).sum(0)


def activate(name: str, sums: torch.Tensor, out: torch.Tensor, residual: Values = None) -> None:
    """``out = activation(sums) + residual``; ``sums`` is used as working memory."""
    if not name:
        out.copy_(sums)
    elif name == "relu":
        torch.clamp(sums, min=0, out=out)
    elif name == "silu":
        # x * sigmoid(x); sums must not be overwritten before both are read.
        torch.mul(sums, sums.sigmoid(), out=out)
    elif name == "elu":
        out.copy_(F.elu(sums, inplace=True))
    elif name == "concat-elu":
        # elu(x) and elu(-x) side by side, in one call for both.
        positive, negative = out.chunk(2, dim=-1)
        torch.neg(sums, out=negative)
        positive.copy_(sums)
        F.elu(out, inplace=True)
    else:
        _activate_pairs(name, sums, out, residual)


def _activate_pairs(name: str, sums: torch.Tensor, out: torch.Tensor, residual: Values) -> None:
    # Views of the sums, which are spent here.
    a, b = sums.chunk(2, dim=-1)
    if name == "gate" and sums.numel() > SMALL_RESULT:
        # tanh(x) = 2 sigmoid(2 x) - 1: one call for both halves, four times faster on a CPU.
        a.mul_(2)
        sums.sigmoid_()
        a.mul_(2).sub_(1)
    elif name == "gate":
        a.tanh_()
        b.sigmoid_()
    elif name == "glu":
        b.sigmoid_()
    else:
        assert name == "swiglu"
        F.silu(a, inplace=True)
    if residual is None:
        torch.mul(a, b, out=out)
    else:
        torch.addcmul(residual, a, b, out=out)


def _linear(
    operation: Operation, out: torch.Tensor, x: torch.Tensor, y: Values, z: Values, known: int
) -> None:
    assert operation.weight is not None
    weight = operation.weight.weight
    sums = out if operation.sums is None else operation.sums
    if x.dim() == 2 and y is not None:
        # y may be the memory of the sums itself: both forms read it before they write.
        if operation.halved is None:
            torch.addmm(y, x, weight, out=sums)
        else:
            torch.add(multiply_in_halves(x, operation.halved), y, out=sums)
    else:
        # [batch * places, inputs]; overlapping windows are copied here.
        flat = x.reshape(-1, x.shape[-1])
        if operation.halved is None:
            torch.mm(flat, weight, out=sums)
        else:
            sums.copy_(multiply_in_halves(flat, operation.halved))
        sums = sums.view(*x.shape[:-1], -1)
        if y is not None:
            sums += y
    if operation.sums is not None:
        activate(operation.activation, sums, out, z)


def _map(
    operation: Operation, out: torch.Tensor, x: torch.Tensor, y: Values, z: Values, known: int
) -> None:
    if operation.activation:
        activate(operation.activation, x.clone(), out)
    else:
        out.copy_(x)


def _add(
    operation: Operation, out: torch.Tensor, x: torch.Tensor, y: Values, z: Values, known: int
) -> None:
    assert y is not None
    if operation.activation:
        activate(operation.activation, x + y, out)
    else:
        torch.add(x, y, out=out)


def _norm(
    operation: Operation, out: torch.Tensor, x: torch.Tensor, y: Values, z: Values, known: int
) -> None:
    assert y is not None
    out.copy_(rms_norm(x, y, operation.epsilon))


def _rotate(
    operation: Operation, out: torch.Tensor, x: torch.Tensor, y: Values, z: Values, known: int
) -> None:
    assert y is not None
    # [batch, heads, size], turned by [2, size].
    heads = x.unflatten(1, (operation.heads, -1))
    out.copy_(rotate(heads, y.view(2, -1)).flatten(1))


def _attend(
    operation: Operation, out: torch.Tensor, x: torch.Tensor, y: Values, z: Values, known: int
) -> None:
    if not known:
        out.zero_()
        return
    assert y is not None
    assert z is not None
    queries, keys, values = attention_operands(operation, x, y[:, :known], z[:, :known])
    out.copy_(F.scaled_dot_product_attention(queries, keys, values).flatten(1))


def attention_operands(
    operation: Operation, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Heads apart, ``[batch, groups, queries or places, size]`` each.

    Query heads that share keys take the place of a sequence of queries, so that no key is repeated.
    """
    sharing = operation.heads // operation.groups
    queries = query.unflatten(1, (operation.groups, sharing, -1))
    keys = keys.unflatten(2, (operation.groups, -1)).transpose(1, 2)
    values = values.unflatten(2, (operation.groups, -1)).transpose(1, 2)
    return queries, keys, values


def _lookup(
    operation: Operation, out: torch.Tensor, x: torch.Tensor, y: Values, z: Values, known: int
) -> None:
    assert y is not None
    # Unlike y[x] it refuses negative symbols too, with an IndexError.
    out += F.embedding(x, y)


def _cell(
    operation: Operation, out: torch.Tensor, x: torch.Tensor, y: Values, z: Values, known: int
) -> None:
    assert y is not None
    lstm_cell_(x, y, out)


TORCH_OPERATIONS: dict[
    str, Callable[[Operation, torch.Tensor, torch.Tensor, Values, Values, int], None]
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

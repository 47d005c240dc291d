"""The operations of programs in torch, the reference for the compiled kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from tessella.nn.lstm_cell import lstm_cell_
from tessella.nn.rotary import rms_norm, rotate
from tessella.nn.stepping.operation import Matrix, Operation, Work

SMALL_RESULT = 2048
"""Elements up to which the overhead of calling torch exceeds the cost of computing."""

FEW_ROWS = 16
LARGE_WEIGHT = 1 << 17
"""With at most ``FEW_ROWS`` rows and at least ``LARGE_WEIGHT`` weights, torch computes a product in
a single thread unless it is split."""

OptionalTensor = torch.Tensor | None


def prepare(work: Work) -> None:
    """Allocate scratch memory for products, and choose the products to split in halves.

    Products of the same width share their memory, because a program runs one operation at a time.
    """
    shared: dict[int, torch.Tensor] = {}
    for operation in work.operations:
        if not isinstance(operation.weight, Matrix):
            continue
        weight = operation.weight.weight
        inputs, outputs = weight.shape
        if work.like.device.type == "cpu" and splits_in_halves(work.rows, weight):
            # A single vector times a wide matrix goes fastest by halves of the inputs.
            by_inputs = work.rows == 1 and outputs > inputs and inputs % 2 == 0
            operation.split_weight = operation.weight.by_inputs() if by_inputs else weight
        # The result of a product over a row may not be contiguous, so torch cannot write into it.
        if operation.activation or work.places:
            if outputs not in shared:
                shared[outputs] = work.like.new_empty(work.rows, outputs)
            operation.sums = shared[outputs]


def run_operation(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: OptionalTensor,
    z: OptionalTensor,
    known: int,
) -> None:
    """Run one operation.

    Args:
        operation: what to do.
        out, x, y, z: its operands at the current place.
        known: how many places attention looks at.
    """
    run = TORCH_OPERATIONS[operation.name]
    run(operation, out, x, y, z, known)


def counted(
    operation: Operation,
    where: dict[str, int],
    out: torch.Tensor,
    x: torch.Tensor,
    y: OptionalTensor,
    z: OptionalTensor,
) -> tuple[torch.Tensor, torch.Tensor, OptionalTensor, OptionalTensor]:
    """The operands of a product, cut to the inputs and outputs that count.

    Args:
        operation: the product.
        where: value of each variable.
        out, x, y, z: its operands at the current place.
    """
    assert z is not None
    inputs = where[operation.known] if operation.known else x.shape[1]
    outputs = where[operation.count] if operation.count else out.shape[1]
    added = None if y is None else y[..., :outputs]
    return out[:, :outputs], x[:, :inputs], added, z[:inputs, :outputs]


def splits_in_halves(rows: int, weight: torch.Tensor) -> bool:
    """Whether a product is faster when it is split in two halves.

    With few rows, torch uses one thread for a product. Two halves make a batched product, for which
    it uses two threads.
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
    """``x @ weight``, split into two halves.

    Either the outputs or the inputs are halved, whichever halves are contiguous in memory.

    Args:
        x: ``[rows, inputs]``.
        weight: ``[inputs, outputs]``.

    Returns:
        ``[rows, outputs]``.
    """
    if weight.T.is_contiguous():
        # [outputs, inputs] to [2, inputs, outputs / 2]: each half gives half of the outputs.
        halves = weight.T.unflatten(0, (2, -1)).transpose(1, 2)
        products = torch.bmm(x.expand(2, *x.shape), halves)
        return products.transpose(0, 1).flatten(1)
    # [2, inputs / 2, outputs]: each half contributes to all outputs.
    halves = weight.unflatten(0, (2, -1))
    parts = x.unflatten(1, (2, -1)).transpose(0, 1)
    return torch.bmm(parts, halves).sum(0)


def activate(
    name: str, sums: torch.Tensor, out: torch.Tensor, residual: OptionalTensor = None
) -> None:
    """``out = activation(sums) + residual``; ``sums`` is used as working memory."""
    if not name:
        out.copy_(sums)
    elif name == "relu":
        torch.clamp(sums, min=0, out=out)
    elif name == "silu":
        # x * sigmoid(x); the sums must stay intact until both factors are read.
        torch.mul(sums, sums.sigmoid(), out=out)
    elif name == "elu":
        out.copy_(F.elu(sums, inplace=True))
    elif name == "concat-elu":
        # Write x and -x into the two halves, then apply elu to both in one call.
        positive, negative = out.chunk(2, dim=-1)
        torch.neg(sums, out=negative)
        positive.copy_(sums)
        F.elu(out, inplace=True)
    else:
        _activate_pairs(name, sums, out, residual)


def _activate_pairs(
    name: str, sums: torch.Tensor, out: torch.Tensor, residual: OptionalTensor
) -> None:
    # Views of the sums, which are overwritten here.
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
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: OptionalTensor,
    z: OptionalTensor,
    known: int,
) -> None:
    assert isinstance(operation.weight, Matrix)
    weight = operation.weight.weight
    sums = out if operation.sums is None else operation.sums
    if x.dim() == 2 and y is not None:
        # y may be the memory of the sums itself: both forms read it before they write.
        if operation.split_weight is None:
            torch.addmm(y, x, weight, out=sums)
        else:
            torch.add(multiply_in_halves(x, operation.split_weight), y, out=sums)
    else:
        # [batch * places, inputs]; overlapping windows are copied here.
        flat = x.reshape(-1, x.shape[-1])
        if operation.split_weight is None:
            torch.mm(flat, weight, out=sums)
        else:
            sums.copy_(multiply_in_halves(flat, operation.split_weight))
        sums = sums.view(*x.shape[:-1], -1)
        if y is not None:
            sums += y
    # Without scratch memory the product is already in `out`, and there is no activation.
    if operation.sums is not None:
        activate(operation.activation, sums, out, z)


def _map(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: OptionalTensor,
    z: OptionalTensor,
    known: int,
) -> None:
    if operation.activation:
        # A clone, because `activate` uses its input as working memory.
        activate(operation.activation, x.clone(), out)
    else:
        out.copy_(x)


def _add(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: OptionalTensor,
    z: OptionalTensor,
    known: int,
) -> None:
    assert y is not None
    if operation.activation:
        activate(operation.activation, x + y, out)
    else:
        torch.add(x, y, out=out)


def _norm(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: OptionalTensor,
    z: OptionalTensor,
    known: int,
) -> None:
    assert y is not None
    out.copy_(rms_norm(x, y, operation.epsilon))


def _rotate(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: OptionalTensor,
    z: OptionalTensor,
    known: int,
) -> None:
    assert y is not None
    # [batch, heads, size] or [batch, places, heads, size].
    heads = x.unflatten(-1, (operation.heads, -1))
    # [2, size], or [places, 1, 2, size]: all heads of a place turn alike.
    turns = y.unflatten(-1, (2, -1))
    if turns.dim() == 3:
        turns = turns.unsqueeze(1)
    out.copy_(rotate(heads, turns).flatten(-2))


def _attend(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: OptionalTensor,
    z: OptionalTensor,
    known: int,
) -> None:
    assert y is not None
    assert z is not None
    if x.dim() == 3:
        seen = known + x.shape[1] - 1
        out.copy_(attend_places(operation, x, y[:, :seen], z[:, :seen], known))
        return
    # Attention to nothing would be a softmax over no values, which is NaN.
    if not known:
        out.zero_()
        return
    queries, keys, values = attention_operands(operation, x, y[:, :known], z[:, :known])
    out.copy_(F.scaled_dot_product_attention(queries, keys, values).flatten(1))


def attention_operands(
    operation: Operation, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split query, keys and values into heads, as torch's attention takes them.

    Query heads that share keys are treated as a sequence of queries, so that no key is repeated.

    Args:
        operation: the attention operation.
        query: ``[batch, heads * size]``.
        keys, values: ``[batch, places, groups * size]``.

    Returns:
        The query as ``[batch, groups, heads / groups, size]``; keys and values as
        ``[batch, groups, places, size]``.
    """
    sharing = operation.heads // operation.groups
    queries = query.unflatten(1, (operation.groups, sharing, -1))
    keys = keys.unflatten(2, (operation.groups, -1)).transpose(1, 2)
    values = values.unflatten(2, (operation.groups, -1)).transpose(1, 2)
    return queries, keys, values


def attend_places(
    operation: Operation,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    known: int | torch.Tensor,
) -> torch.Tensor:
    """Attention of several neighbouring places, each to one place more than the one before it.

    Args:
        operation: the attention operation.
        query: ``[batch, count, heads * size]``.
        keys, values: ``[batch, places, groups * size]``.
        known: how many places the first of them looks at, as a number or ``int64 []``.

    Returns:
        ``[batch, count, heads * size]``.
    """
    count = query.shape[1]
    # How many places each looks at, [count, 1].
    seen = known + torch.arange(count, device=query.device)[:, None]
    # With nothing known, the mask would hide every place and softmax would return NaN. So look at
    # the first place anyway, and replace the result by zeros below.
    mask = torch.arange(keys.shape[1], device=query.device) < seen.clamp(min=1)
    # Each place stands for an image of its own, [batch * count, heads * size], to split the heads.
    queries, keys, values = attention_operands(operation, query.flatten(0, 1), keys, values)
    # [batch, groups, count, sharing, size]: heads that share keys are a sequence of queries.
    queries = queries.unflatten(0, (-1, count)).transpose(1, 2)
    sharing = queries.shape[3]
    attended = F.scaled_dot_product_attention(
        queries.flatten(2, 3), keys, values, attn_mask=mask.repeat_interleave(sharing, dim=0)
    )
    by_place = attended.unflatten(2, (count, sharing)).transpose(1, 2).flatten(2)
    return torch.where(seen > 0, by_place, 0)


def _lookup(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: OptionalTensor,
    z: OptionalTensor,
    known: int,
) -> None:
    assert y is not None
    # Unlike y[x], embedding also rejects negative symbols, with an IndexError.
    out += F.embedding(x, y)


def _cell(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: OptionalTensor,
    z: OptionalTensor,
    known: int,
) -> None:
    assert y is not None
    lstm_cell_(x, y, out)


def _product(
    operation: Operation,
    out: torch.Tensor,
    x: torch.Tensor,
    y: OptionalTensor,
    z: OptionalTensor,
    known: int,
) -> None:
    # What does not count has been cut off, see `counted`.
    assert z is not None
    sums = x @ z if y is None else torch.addmm(y, x, z)
    activate(operation.activation, sums, out)


TORCH_OPERATIONS: dict[
    str,
    Callable[[Operation, torch.Tensor, torch.Tensor, OptionalTensor, OptionalTensor, int], None],
] = {
    "linear": _linear,
    "map": _map,
    "add": _add,
    "norm": _norm,
    "rotate": _rotate,
    "attend": _attend,
    "lookup": _lookup,
    "cell": _cell,
    "product": _product,
}

"""Three ways to run a program (``tessella.nn.stepping.program``): in torch, compiled, and as a CUDA
graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from tessella import kernel
from tessella.errors import InputError
from tessella.nn.attention import rms_norm, rotate
from tessella.nn.lstm_cell import lstm_cell_
from tessella.nn.stepping.operation import CODES, PAIRS, THEN, Moving, Operand, Operation, Work


class Runner(ABC):
    """A way to run a program."""

    @abstractmethod
    def run(self, values: Sequence[int]) -> None:
        """All operations, for the values of the variables."""


def create_runner(work: Work) -> Runner:
    """The fastest way there is here."""
    if work.like.device.type == "cuda":
        return Indexed(work)
    compiled = work.like.device.type == "cpu" and work.like.dtype in (torch.float32, torch.float64)
    return Compiled(work) if compiled and kernel.available() else Plain(work)


class Plain(Runner):
    """A program run in torch, operation after operation.

    Args:
        work: the operations.
    """

    def __init__(self, work: Work) -> None:
        prepare(work)
        self._variables, self._operations = work.variables, work.operations

    def run(self, values: Sequence[int]) -> None:
        where = dict(zip(self._variables, values, strict=True))
        for o in self._operations:
            x, y, z = (_at(operand, where) for operand in (o.x, o.y, o.z))
            ACTS[o.code](o, _at(o.out, where), x, y, z, where.get(o.by, 0))


def _at(operand: Operand | None, where: dict[str, int]) -> torch.Tensor | None:
    """An operand at a place."""
    return operand.at(where[operand.by]) if isinstance(operand, Moving) else operand


Given = torch.Tensor | None


def prepare(work: Work) -> None:
    """What products in torch need: memory for sums that something follows, shared by operations of
    a width, and whether they are done in halves."""
    rows, rooms = work.batch * max(1, work.places), dict[int, torch.Tensor]()
    for o in work.operations:
        if o.weight is not None:
            inputs, outputs = o.weight.weight.shape
            if work.like.device.type == "cpu" and goes_in_halves(rows, o.weight.weight):
                wide = rows == 1 and outputs > inputs and inputs % 2 == 0
                o.halved = o.weight.by_inputs() if wide else o.weight.weight
            if o.then or work.places:
                o.room = rooms.setdefault(outputs, work.like.new_empty(rows, outputs))


def _linear(
    o: Operation, out: torch.Tensor, x: torch.Tensor, y: Given, z: Given, places: int
) -> None:
    assert o.weight is not None
    weight, halved, room = o.weight.weight, o.halved, out if o.room is None else o.room
    flat = x.reshape(-1, x.shape[-1])
    if x.dim() == 2 and y is not None:  # y may be the room
        sums = (
            torch.addmm(y, x, weight, out=room)
            if halved is None
            else torch.add(_halves(x, halved), y, out=room)
        )
    else:
        sums = (
            torch.mm(flat, weight, out=room)
            if halved is None
            else room.copy_(_halves(flat, halved))
        )
        sums = sums.view(*x.shape[:-1], -1)
        if y is not None:
            sums += y
    if o.room is not None:
        _then(o.then, sums, out, z)


FEW_NUMBERS = 2048
"""Up to so many numbers the calls cost more than what they do."""

FEW, LARGE = 16, 1 << 17
"""Up to so many rows, and from so many weights on, threads do not share a product unless it is cut
for them."""


def goes_in_halves(rows: int, weight: torch.Tensor) -> bool:
    """Whether a product goes faster in two halves: with few rows, torch's product is done by one
    thread or as if."""
    even = (
        weight.shape[1]
        if weight.T.is_contiguous()
        else weight.shape[0]
        if weight.is_contiguous()
        else 1
    )
    return rows <= FEW and weight.numel() >= LARGE and even % 2 == 0 and torch.get_num_threads() > 1


def _halves(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x @ weight`` in two halves, of the outputs or of the inputs, whichever are contiguous parts
    of memory."""
    if weight.T.is_contiguous():
        halves = weight.T.unflatten(0, (2, -1)).transpose(1, 2)
        return torch.bmm(x.expand(2, *x.shape), halves).transpose(0, 1).flatten(1)
    return torch.bmm(x.unflatten(1, (2, -1)).transpose(0, 1), weight.unflatten(0, (2, -1))).sum(0)


def _then(then: str, sums: torch.Tensor, out: torch.Tensor, residual: Given = None) -> None:
    """What follows a product; ``sums`` is spent."""
    if not then:
        out.copy_(sums)
    elif then == "relu":
        torch.clamp(sums, min=0, out=out)
    elif then == "silu":
        torch.mul(sums, sums.sigmoid(), out=out)
    elif then == "elu":
        out.copy_(F.elu(sums, inplace=True))
    elif then == "concat-elu":
        first, second = out.chunk(2, dim=-1)
        torch.neg(sums, out=second)
        first.copy_(sums)
        F.elu(out, inplace=True)
    else:
        a, b = sums.chunk(2, dim=-1)
        if (
            then == "gate" and sums.numel() > FEW_NUMBERS
        ):  # tanh(x) = 2 sigmoid(2 x) - 1, four times faster on a CPU
            a.mul_(2)
            sums.sigmoid_()
            a.mul_(2).sub_(1)
        elif then == "gate":
            a.tanh_()
            b.sigmoid_()
        elif then == "glu":
            b.sigmoid_()
        signal, strength = F.silu(a, inplace=True) if then == "swiglu" else a, b
        if residual is None:
            torch.mul(signal, strength, out=out)
        else:
            torch.addcmul(residual, signal, strength, out=out)


def _map(o: Operation, out: torch.Tensor, x: torch.Tensor, y: Given, z: Given, places: int) -> None:
    _then(o.then, x.clone() if o.then else x, out)


def _add(o: Operation, out: torch.Tensor, x: torch.Tensor, y: Given, z: Given, places: int) -> None:
    assert y is not None
    if o.then:
        _then(o.then, x + y, out)
    else:
        torch.add(x, y, out=out)


def _norm(
    o: Operation, out: torch.Tensor, x: torch.Tensor, y: Given, z: Given, places: int
) -> None:
    assert y is not None
    out.copy_(rms_norm(x, y, o.number))


def _rotate(
    o: Operation, out: torch.Tensor, x: torch.Tensor, y: Given, z: Given, places: int
) -> None:
    assert y is not None
    out.copy_(rotate(x.unflatten(1, (o.heads, -1)), y.view(2, -1)).flatten(1))


def _attend(
    o: Operation, out: torch.Tensor, x: torch.Tensor, y: Given, z: Given, places: int
) -> None:
    if not places:
        out.zero_()
        return
    assert y is not None
    assert z is not None
    keys, contents = (
        memory[:, :places].unflatten(2, (o.groups, -1)).transpose(1, 2) for memory in (y, z)
    )
    # Query heads that share keys stand where a sequence of queries would, so that nothing is
    # repeated.
    query = x.unflatten(1, (o.groups, o.heads // o.groups, -1))
    out.copy_(F.scaled_dot_product_attention(query, keys, contents).flatten(1))


def _lookup(
    o: Operation, out: torch.Tensor, x: torch.Tensor, y: Given, z: Given, places: int
) -> None:
    assert y is not None
    out += y[x]


def _cell(
    o: Operation, out: torch.Tensor, x: torch.Tensor, y: Given, z: Given, places: int
) -> None:
    assert y is not None
    lstm_cell_(x, y, out)


ACTS: dict[str, Callable[..., None]] = {
    "linear": _linear,
    "map": _map,
    "add": _add,
    "norm": _norm,
    "rotate": _rotate,
    "attend": _attend,
    "lookup": _lookup,
    "cell": _cell,
}


THREAD_BYTES = 1 << 18
"""A further thread pays from about so many bytes of weights a row on: below, waiting for it costs
more."""


class Compiled(Runner):
    """A program as the kernel's records.

    Args:
        work: the operations.
    """

    def __init__(self, work: Work) -> None:
        library = kernel.library()
        assert library is not None
        self._act, self._operations = library.tessella_run, work.operations
        self._values = np.zeros(max(1, len(work.variables)), dtype=np.int64)
        lane_bytes = library.tessella_lane_bytes()
        self._records = np.stack([_record(o, work, lane_bytes) for o in work.operations])
        assert library.tessella_record_bytes() == self._records.itemsize * self._records.shape[1]
        places, element = max(1, work.places), work.like.element_size()
        weights = sum(o.weight.weight.numel() for o in work.operations if o.weight is not None)
        self._threads = 1 + weights * element * (1 + work.batch * places) // (2 * THREAD_BYTES)
        self._before = (
            self._records.ctypes.data,
            len(self._records),
            work.batch,
            places,
            self._values.ctypes.data,
        )
        self._element = element

    def run(self, values: Sequence[int]) -> None:
        self._values[: len(values)] = values
        if self._act(*self._before, min(torch.get_num_threads(), self._threads), self._element):
            raise InputError(
                "a symbol given to a step is negative or not below the levels of its grid"
            )


def _record(o: Operation, work: Work, lane_bytes: int) -> np.ndarray:
    """An operation as 64-bit integers, in the order of the kernel's ``Op``."""
    weight = 0 if o.weight is None else o.weight.packed(o.then in PAIRS, lane_bytes).data_ptr()
    inputs = 0 if o.weight is None else o.weight.weight.shape[0]
    if o.code == "lookup":
        assert isinstance(o.y, torch.Tensor)
        inputs = len(o.y)
    if o.code == "attend":
        inputs = work.variables.index(o.by)
    number = int(np.float64(o.number).view(np.int64))
    fields = [
        CODES.index(o.code),
        THEN.index(o.then),
        o.size,
        inputs,
        o.heads,
        o.groups,
        number,
        weight,
    ]
    for operand in (o.out, o.x, o.y, o.z):
        fields += _address(operand, work)
    return np.array(fields, dtype=np.int64)


def _address(operand: Operand | None, work: Work) -> list[int]:
    """Address, strides of images and places, step and variable of an operand."""
    if operand is None:
        return [0, 0, 0, 0, -1]
    start = operand.start if isinstance(operand, Moving) else operand
    assert start.shape[-1] == 1 or start.stride(-1) == 1
    strides = [
        0 if size == 1 else stride for size, stride in zip(start.shape, start.stride(), strict=True)
    ][:-1]
    image, place = ([0, 0] + strides)[-2:] if work.places else ([0] + strides[:1])[-1:] + [0]
    moves = (
        [operand.step, work.variables.index(operand.by)] if isinstance(operand, Moving) else [0, -1]
    )
    return [start.data_ptr(), image, place, *moves]


class Indexed(Runner):
    """Operations at a place that stands in device memory: on a GPU captured once, as a CUDA graph.

    A graph repeats the same work on the same memory, so operands that move are gathered and
    scattered by indices that are computed on the device, and attention looks at all its memory
    through a mask. Nothing waits for the host. Off a GPU the operations run one by one.

    Args:
        work: the operations.
    """

    def __init__(self, work: Work) -> None:
        prepare(work)
        self._variables, self._operations = work.variables, work.operations
        self._device, self._dtype = work.like.device, work.like.dtype
        self._values = torch.zeros(
            max(1, len(work.variables)), dtype=torch.int64, device=work.like.device
        )
        operands = [operand for o in work.operations for operand in (o.out, o.x, o.y, o.z)]
        self._offsets = {
            id(moving): _offsets(moving) for moving in operands if isinstance(moving, Moving)
        }
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self, values: Sequence[int]) -> None:
        for i, value in enumerate(values):
            self._values[i].fill_(value)
        if self._device.type != "cuda":
            self._all()
            return
        if self._graph is None:
            self._graph = self._captured()
        self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        square = torch.ones(16, 16, device=self._device, dtype=self._dtype)
        torch.addmm(
            square, square, square
        )  # the library of products is set up outside of the graph
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._all()
        return graph

    def _all(self) -> None:
        for o in self._operations:
            out, x, y, z = (self._read(operand) for operand in (o.out, o.x, o.y, o.z))
            assert out is not None
            assert x is not None
            if o.code == "attend":
                self._attend(o, out, x, y, z)
            else:
                ACTS[o.code](o, out, x, y, z, 0)
            self._write(o.out, out)
            if o.code == "cell":
                self._write(o.y, y)

    def _index(self, moving: Moving) -> torch.Tensor:
        """Where an operand's numbers lie in its memory."""
        return (
            self._offsets[id(moving)] + moving.step * self._values[self._variables.index(moving.by)]
        )

    def _read(self, operand: Operand | None) -> torch.Tensor | None:
        if not isinstance(operand, Moving):
            return operand
        index = self._index(operand)
        return _memory(operand).index_select(0, index.flatten()).view(index.shape)

    def _write(self, operand: Operand | None, value: Given) -> None:
        """Put what was computed for an operand that moves where it is now."""
        if isinstance(operand, Moving) and value is not None:
            _memory(operand).index_copy_(0, self._index(operand).flatten(), value.flatten())

    def _attend(self, o: Operation, out: torch.Tensor, x: torch.Tensor, y: Given, z: Given) -> None:
        assert y is not None
        assert z is not None
        known = self._values[self._variables.index(o.by)]
        # With nothing known the mask would hide everything: then look at the first place, and
        # forget it.
        mask = torch.arange(y.shape[1], device=y.device)[None] < known.clamp(min=1)
        keys, contents = (memory.unflatten(2, (o.groups, -1)).transpose(1, 2) for memory in (y, z))
        query = x.unflatten(1, (o.groups, o.heads // o.groups, -1))
        seen = F.scaled_dot_product_attention(query, keys, contents, attn_mask=mask)
        out.copy_(torch.where(known > 0, seen, 0).flatten(1))


def _memory(moving: Moving) -> torch.Tensor:
    """All the memory that a moving operand lies in: ``[numbers]``."""
    numbers = moving.start.untyped_storage().nbytes() // moving.start.element_size()
    return moving.start.as_strided((numbers,), (1,), 0)


def _offsets(moving: Moving) -> torch.Tensor:
    """Where the numbers of an operand lie in its memory while the variable is 0: int64 of the
    operand's shape."""
    start = moving.start
    offsets = torch.tensor(int(start.storage_offset()), device=start.device)
    for size, stride in zip(start.shape, start.stride(), strict=True):
        offsets = offsets[..., None] + stride * torch.arange(size, device=start.device)
    return offsets

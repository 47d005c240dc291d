"""The floor of a step: its least possible time, counted from the calls of torch that it makes.

Counted are, for each step, the bytes of weights and caches that products and attention read (what
stands in the model or in the state before the step; each piece once a step), the operations of
products and attention, and the calls of torch that do something (views do not). A machine that
reads ``bandwidth`` bytes a second, multiplies ``gigaflops`` and takes some microseconds for a call
cannot take a step in less than the greatest of the three times. The first two are
*physical*: no program gets below them with these weights in this precision. The third holds only
for a program that calls torch as often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from machine import Machine
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

VECTOR_PRODUCTS = {"mv", "addmv", "dot"}


@dataclass(frozen=True)
class Counts:
    """The work of one step."""

    bytes: int
    flops: int
    products: int
    """Calls that multiply, attention among them."""
    calls: int
    """All calls that do something."""


class Counter(TorchDispatchMode):
    """Counts the work of one step; enter it around the step.

    Args:
        kept: tensors that stand before the step, the model's and the state's.
    """

    def __init__(self, kept: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._kept = {tensor.untyped_storage().data_ptr() for tensor in kept}
        # Bytes by address and length: a piece that is read twice in a step counts once, since the
        # second time it can come from a cache.
        self._read: dict[tuple[int, int], int] = {}
        self._flops = 0
        self._products = 0
        self._calls = 0

    # Any, since torch hands over whatever an operation takes and gives back.
    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view:
            return out
        self._calls += 1
        flops = _count_flops(func, args, kwargs, out)
        if flops:
            self._products += 1
            self._flops += flops
            self._note_reads(args)
        return out

    def _note_reads(self, operands: Iterable[object]) -> None:
        """Count the bytes of operands that stand before the step."""
        for tensor in operands:
            if not isinstance(tensor, torch.Tensor):
                continue
            if tensor.untyped_storage().data_ptr() in self._kept:
                numbers = _distinct(tensor)
                self._read[tensor.data_ptr(), numbers] = numbers * tensor.element_size()

    def counts(self) -> Counts:
        """The counts so far."""
        return Counts(sum(self._read.values()), self._flops, self._products, self._calls)


def _count_flops(
    func: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any], out: object
) -> int:
    """Operations of a call that multiplies; 0 for every other call."""
    packet = func.overloadpacket  # type: ignore[attr-defined]
    name = packet.__name__
    if packet in flop_registry:
        # Formulas take the result as out_val, and not the place that it is written to.
        options = {key: value for key, value in kwargs.items() if key != "out"}
        return int(flop_registry[packet](*args, **options, out_val=out))
    if "scaled_dot_product" in name:
        # torch registers no formula for attention on a CPU.
        query, key, value = args[:3]
        return int(sdpa_flop_count(query.shape, key.shape, value.shape))
    if name in VECTOR_PRODUCTS:
        # The matrix is the largest operand, and each of its numbers is used once.
        return 2 * max(tensor.numel() for tensor in args if isinstance(tensor, torch.Tensor))
    return 0


def _distinct(tensor: torch.Tensor) -> int:
    """Numbers that a tensor occupies in memory.

    Expanded dimensions count once; windows that overlap count for the numbers they cover.
    """
    if not tensor.numel():
        return 0
    reach = 1
    apart = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        reach += (size - 1) * stride
        # A stride of zero repeats numbers that count already.
        if stride:
            apart *= size
    return min(reach, apart)


def tensors_of(value: object, seen: dict[int, object] | None = None) -> Iterator[torch.Tensor]:
    """Every tensor that a state or a model holds.

    ``seen`` keeps all objects that were met alive, so that no address is used twice.
    """
    if seen is None:
        seen = {}
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, torch.Tensor):
        yield value
        return
    for part in _parts(value):
        yield from tensors_of(part, seen)


def _parts(value: object) -> Iterable[object]:
    """The values that an object holds, one level down."""
    if isinstance(value, torch.nn.Module):
        return [*value.parameters(), *value.buffers()]
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, dict):
        return value.values()
    if is_dataclass(value):
        # Not vars(): a dataclass with slots has none.
        return [getattr(value, field.name) for field in fields(value)]
    if hasattr(value, "__dict__") and not isinstance(value, type):
        return vars(value).values()
    return ()


def floor(counts: list[Counts], machine: Machine) -> dict[str, float]:
    """Means over steps, and the times (ms a step) under which this machine cannot take them."""
    steps = len(counts)
    flops = sum(count.flops for count in counts) / steps
    products = sum(count.products for count in counts) / steps
    calls = sum(count.calls for count in counts) / steps

    # Bandwidth depends on the working set, so times are averaged here, not sizes.
    reading = sum(count.bytes / machine.bandwidth(count.bytes) for count in counts) / steps
    calling = products * machine.product_us + (calls - products) * machine.elementwise_us
    bytes_ms = 1e3 * reading
    flops_ms = flops / machine.gigaflops / 1e6
    return {
        "bytes": sum(count.bytes for count in counts) / steps,
        "flops": flops,
        "products": products,
        "calls": calls,
        "bytes_ms": bytes_ms,
        "flops_ms": flops_ms,
        "calls_ms": calling / 1e3,
        "physical_ms": max(bytes_ms, flops_ms),
    }

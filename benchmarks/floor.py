"""The floor of a step: what it must read and multiply, counted from the calls of torch that it
makes.

Counted are, for each step, the bytes of weights and caches that products and attention read (what
stands in the model or in the state before the step; each piece once a step), the operations of
products and attention, and the calls of torch that do something (views do not). A machine that
reads ``bandwidth`` bytes a second, multiplies ``gigaflops`` and takes some microseconds for a call
cannot take a step in less than the greatest of the three times. The first two are
*physical*: no program gets below them with these weights in this precision. The third holds only
for a program that calls torch as often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from machine import Machine
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

VECTOR_PRODUCTS = {"mv", "addmv", "dot"}


@dataclass(frozen=True)
class Counts:
    """Of one step."""

    bytes: int
    flops: int
    products: int
    """Calls that multiply, attention among them."""
    calls: int
    """All calls that do something."""


class Counter(TorchDispatchMode):
    """Counts what one step does; enter it around the step.

    Args:
        kept: tensors that stand before the step, the model's and the state's.
    """

    def __init__(self, kept: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._kept = {tensor.untyped_storage().data_ptr() for tensor in kept}
        self._read: dict[tuple[int, int], int] = {}
        self._flops = self._products = self._calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view:
            return out
        self._calls += 1
        flops = _flops(func, args, kwargs, out)
        if flops:
            self._products += 1
            self._flops += flops
            for tensor in args:
                if (
                    isinstance(tensor, torch.Tensor)
                    and tensor.untyped_storage().data_ptr() in self._kept
                ):
                    numbers = _distinct(tensor)
                    self._read[tensor.data_ptr(), numbers] = numbers * tensor.element_size()
        return out

    def counts(self) -> Counts:
        """What was counted."""
        return Counts(sum(self._read.values()), self._flops, self._products, self._calls)


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Operations of a call that multiplies; 0 of another one."""
    packet = func.overloadpacket
    name = packet.__name__
    if packet in flop_registry:
        return int(
            flop_registry[packet](
                *args, **{k: v for k, v in kwargs.items() if k != "out"}, out_val=out
            )
        )
    if "scaled_dot_product" in name:
        return int(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
    return (
        2 * max(t.numel() for t in args if isinstance(t, torch.Tensor))
        if name in VECTOR_PRODUCTS
        else 0
    )


def _distinct(tensor: torch.Tensor) -> int:
    """Numbers of a tensor in memory: what is expanded counts once, windows that overlap count what
    they cover."""
    spread = 1 + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    apart = math.prod(
        size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride
    )
    return min(spread, apart) if tensor.numel() else 0


def tensors_of(value: Any, seen: dict[int, Any] | None = None) -> Iterator[torch.Tensor]:
    """Every tensor that a state or a model holds. ``seen`` keeps what was met, so that no address
    is used twice."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, torch.Tensor):
        yield value
        return
    if isinstance(value, torch.nn.Module):
        parts: Iterable[Any] = [*value.parameters(), *value.buffers()]
    elif isinstance(value, (list, tuple)):
        parts = value
    elif isinstance(value, dict):
        parts = value.values()
    elif is_dataclass(value):
        parts = [getattr(value, field.name) for field in fields(value)]
    else:
        parts = (
            vars(value).values()
            if hasattr(value, "__dict__") and not isinstance(value, type)
            else ()
        )
    for part in parts:
        yield from tensors_of(part, seen)


def floor(counts: list[Counts], machine: Machine) -> dict[str, float]:
    """Means over steps, and the times (ms a step) under which this machine cannot take them."""
    n = len(counts)
    size, flops = sum(c.bytes for c in counts) / n, sum(c.flops for c in counts) / n
    products, calls = sum(c.products for c in counts) / n, sum(c.calls for c in counts) / n
    found = {"bytes": size, "flops": flops, "products": products, "calls": calls}
    found["bytes_ms"] = 1e3 * sum(c.bytes / machine.bandwidth(c.bytes) for c in counts) / n
    found["flops_ms"] = flops / machine.gigaflops / 1e6
    found["calls_ms"] = (
        products * machine.product_us + (calls - products) * machine.elementwise_us
    ) / 1e3
    found["physical_ms"] = max(found["bytes_ms"], found["flops_ms"])
    return found

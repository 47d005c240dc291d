"""Bytes and operations of a training step, counted while it runs.

A step runs under a dispatch mode of torch, which sees every operation, also those of the backward
pass. A tensor's memory counts from the operation that made it until nothing refers to it any more.
So the peak is that of the tensors themselves; work space inside of an operation is not seen.

Counting works on the CPU and without any memory (``FakeTensorMode``) alike.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

PRODUCT_WORDS = ("attention", "lstm", "gru", "rnn", "fft", "linear", "matmul")
"""Words in the names of operations that multiply; one that is not counted is worth a remark."""


class LiveMemory(TorchDispatchMode):
    """Follows the memory of tensors made within the block.

    Args:
        known: tensors that were there before; their memory does not count.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.live = 0
        """Bytes now, without the gradients of parameters."""
        self.gradients = 0
        """Bytes of the gradients of parameters now."""
        self.peak = 0
        """Most bytes, with gradients."""
        self.peak_without_gradients = 0
        """Most bytes, without gradients."""
        self.gradients_at_peak = 0
        """Bytes of gradients when :attr:`peak_without_gradients` was reached."""
        self.operations = 0
        """Operations that compute something; views do not."""
        self.moved = 0
        """Bytes that these operations read and write."""
        self.uncounted: set[str] = set()
        """Names of operations that multiply and whose products are not counted."""
        # By identity: storages cannot be compared.
        self._sizes: dict[int, int] = {}
        self._are_gradients: set[int] = set()
        self._watches: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in known:
            # Of size zero, so that views of it cost nothing.
            self._watch(tensor.untyped_storage(), 0)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # Questions about shapes and devices are operations too, of the name space prim.
        if not func.is_view and func.namespace != "prim":
            self.operations += 1
            for leaf in tree_leaves((args, kwargs, result)):
                if isinstance(leaf, torch.Tensor):
                    self.moved += leaf.nbytes
        packet = func.overloadpacket
        name = str(packet)
        if packet not in COUNTED and any(word in name for word in PRODUCT_WORDS):
            self.uncounted.add(name)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self._watch(storage, storage.nbytes())
        return result

    def is_gradient(self, gradient: torch.Tensor) -> None:
        """From now on count this tensor as the gradient of a parameter."""
        key = id(gradient.untyped_storage())
        if key in self._sizes and key not in self._are_gradients:
            self._are_gradients.add(key)
            self.live -= self._sizes[key]
            self.gradients += self._sizes[key]

    def _watch(self, storage: torch.UntypedStorage, size: int) -> None:
        """Count a storage that is new until it is freed."""
        key = id(storage)
        if key in self._sizes:
            return
        self._sizes[key] = size
        self._watches[key] = weakref.ref(storage, lambda _: self._forget(key))
        self.live += size
        self.peak = max(self.peak, self.live + self.gradients)
        if self.live > self.peak_without_gradients:
            self.peak_without_gradients = self.live
            self.gradients_at_peak = self.gradients

    def _forget(self, key: int) -> None:
        size = self._sizes.pop(key)
        del self._watches[key]
        if key in self._are_gradients:
            self._are_gradients.remove(key)
            self.gradients -= size
        else:
            self.live -= size


@contextmanager
def gradients_reported(module: nn.Module, memory: LiveMemory) -> Iterator[None]:
    """Tell ``memory`` of each gradient as the backward pass of the block makes it."""

    def tell(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            memory.is_gradient(parameter.grad)

    handles = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            handles.append(parameter.register_post_accumulate_grad_hook(tell))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def product_counter() -> FlopCounterMode:
    """torch's counter of the operations of products, also for the attention of CPUs."""
    return FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward_flops(
    grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""What torch does not count of itself. Causal attention counts as if it looked everywhere, which is
how torch counts that of GPUs."""

COUNTED = {*flop_registry, *CPU_ATTENTION}
"""Operations whose products are counted."""

"""The gate ``tanh(a) * sigmoid(b)`` of gated convolutions (van den Oord et al. 2016b, eq. 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def gate(x: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """``tanh`` of the first half of ``x`` along ``dim`` times ``sigmoid`` of the second."""
    return GateFunction.apply(x, dim)


class GateFunction(torch.autograd.Function):
    """The gate, with a backward pass that writes the gradient into one tensor.

    Autograd would make a gradient for each half, pad both with zeros and add them.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int) -> torch.Tensor:
        # In memory the gated dimension comes last, whichever dimension of the shape it is.
        a, b = x.movedim(dim, -1).chunk(2, dim=-1)
        # Save the factors instead of a and b: the derivatives are functions of the factors.
        signal = fast_tanh(a)
        strength = fast_sigmoid(b)
        ctx.dim = dim
        ctx.save_for_backward(signal, strength)
        return (signal * strength).movedim(-1, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        signal, strength = ctx.saved_tensors
        last = gradient.movedim(ctx.dim, -1)
        both = last.new_empty(*last.shape[:-1], 2 * last.shape[-1])
        signal_part, strength_part = both.chunk(2, dim=-1)
        # Both write into their half: (1 - tanh^2) and sigmoid (1 - sigmoid), times the gradient.
        torch.ops.aten.tanh_backward.grad_input(last * strength, signal, grad_input=signal_part)
        torch.ops.aten.sigmoid_backward.grad_input(
            last * signal, strength, grad_input=strength_part
        )
        return both.movedim(-1, ctx.dim), None


def fast_tanh(x: torch.Tensor) -> torch.Tensor:
    """``tanh`` of ``x``, computed on a CPU through the sigmoid in float32, where that is faster.

    The error is about 1e-7, absolute rather than relative, which is harmless in a gate; in bfloat16
    the result is rounded to that.
    """
    if not _computes_in_float32(x):
        return x.tanh()
    # 2 x is exact, in bfloat16 too.
    return (2 * x).float().sigmoid_().mul_(2).sub_(1).to(x.dtype)


def fast_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """``sigmoid`` of ``x``, computed on a CPU in float32 and in memory without gaps.

    Half a gate is a tensor with gaps. There, or in bfloat16, torch takes two to five times as long.
    """
    if not _computes_in_float32(x):
        return x.sigmoid()
    copy = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return copy.sigmoid_().to(x.dtype)


def _computes_in_float32(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)

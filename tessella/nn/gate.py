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
        # Save the factors instead of a and b: the derivatives are functions of the factors.
        a, b = x.chunk(2, dim=dim)
        signal = fast_tanh(a)
        strength = b.sigmoid()
        ctx.dim = dim
        ctx.save_for_backward(signal, strength)
        return signal * strength

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        signal, strength = ctx.saved_tensors
        # In memory the gated dimension comes last, whichever dimension of the shape it is.
        last = gradient.movedim(ctx.dim, -1)
        both = last.new_empty(*last.shape[:-1], 2 * last.shape[-1]).movedim(-1, ctx.dim)
        signal_part, strength_part = both.chunk(2, dim=ctx.dim)
        # Both write into their half: (1 - tanh^2) and sigmoid (1 - sigmoid), times the gradient.
        torch.ops.aten.tanh_backward.grad_input(gradient * strength, signal, grad_input=signal_part)
        torch.ops.aten.sigmoid_backward.grad_input(
            gradient * signal, strength, grad_input=strength_part
        )
        return both, None


def fast_tanh(x: torch.Tensor) -> torch.Tensor:
    """``tanh`` of ``x``, computed through the sigmoid in float32 on a CPU, where that is faster.

    The error is about 1e-7, absolute rather than relative, which is harmless in a gate.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return (2 * x).sigmoid_().mul_(2).sub_(1)
    return x.tanh()

"""The gate ``tanh(a) * sigmoid(b)`` of gated convolutions (van den Oord et al. 2016b, eq. 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def gate(x: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """``tanh`` of the first half of ``x`` along ``dim`` times ``sigmoid`` of the second."""
    return GateFunction.apply(x, dim)


class GateFunction(torch.autograd.Function):
    """The gate, with a gradient that is written once into one tensor.

    Autograd would make a gradient for each half, pad both with zeros and add them.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int) -> torch.Tensor:
        # The factors are kept for the gradient rather than a and b: their derivatives need only
        # them.
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
        # The result has the gated dimension last in memory, wherever it stands in the shape.
        last = gradient.movedim(ctx.dim, -1)
        both = last.new_empty(*last.shape[:-1], 2 * last.shape[-1]).movedim(-1, ctx.dim)
        signal_part, strength_part = both.chunk(2, dim=ctx.dim)
        # Both write into their part: (1 - tanh^2) and sigmoid (1 - sigmoid), times what arrives.
        torch.ops.aten.tanh_backward.grad_input(gradient * strength, signal, grad_input=signal_part)
        torch.ops.aten.sigmoid_backward.grad_input(
            gradient * signal, strength, grad_input=strength_part
        )
        return both, None


def fast_tanh(x: torch.Tensor) -> torch.Tensor:
    """``tanh``; in float32 on a CPU by way of the sigmoid, which is faster there.

    Its error is absolute (1e-7), not relative, which does not matter to a factor of a gate.
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return (2 * x).sigmoid_().mul_(2).sub_(1)
    return x.tanh()

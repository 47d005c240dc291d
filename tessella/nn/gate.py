"""The gate ``tanh(a) * sigmoid(b)`` of gated convolutions (van den Oord et al. 2016b, eq. 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def gate(x: torch.Tensor, dim: int = 1) -> torch.Tensor:
    """``tanh`` of the first half of ``x`` along ``dim`` times ``sigmoid`` of the second."""
    return _Gate.apply(x, dim)


class _Gate(torch.autograd.Function):
    """The gate with a gradient that is written once into one tensor; the halves that autograd would
    make of it are padded with zeros and added."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int) -> torch.Tensor:
        a, b = x.chunk(2, dim=dim)
        signal, strength = _tanh(a), b.sigmoid()
        ctx.dim = dim
        ctx.save_for_backward(signal, strength)
        return signal * strength

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        signal, strength = ctx.saved_tensors
        ends = gradient.movedim(ctx.dim, -1)
        both = ends.new_empty(*ends.shape[:-1], 2 * ends.shape[-1]).movedim(-1, ctx.dim)
        of_signal, of_strength = both.chunk(2, dim=ctx.dim)
        torch.ops.aten.tanh_backward.grad_input(gradient * strength, signal, grad_input=of_signal)
        torch.ops.aten.sigmoid_backward.grad_input(
            gradient * signal, strength, grad_input=of_strength
        )
        return both, None


def _tanh(x: torch.Tensor) -> torch.Tensor:
    """``tanh``; in float32 on a CPU by way of the sigmoid, which is faster. The error is absolute,
    1e-7, not relative, which does not matter to a factor of a gate."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return (2 * x).sigmoid_().mul_(2).sub_(1)
    return x.tanh()

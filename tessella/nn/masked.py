"""Layers whose weights a mask holds at zero where information must not flow."""

from __future__ import annotations

from abc import ABC

import torch
import torch.nn.functional as F
from torch import nn


class Masked(nn.Module, ABC):
    """A layer with a mask over its weights. The mask is made by the model and is not saved.

    Args:
        weight: first values of the weights.
        bias: first values of the bias, or None for no bias.
        mask: ``bool``, of the shape of the weights: where they may differ from zero.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, mask: torch.Tensor) -> None:
        super().__init__()
        assert mask.dtype == torch.bool
        assert mask.shape == weight.shape
        self.weight = nn.Parameter(weight.detach())
        self.bias = None if bias is None else nn.Parameter(bias.detach())
        # Not saved: it follows from the sizes.
        self.register_buffer("mask", mask, persistent=False)
        self.mask: torch.Tensor

    def kernel(self) -> torch.Tensor:
        """The weights, zero where the mask is."""
        # Also the gradient of a masked weight is zero, so it never moves.
        return self.weight * self.mask

    @property
    def masked(self) -> int:
        """Number of weights that are held at zero."""
        return int((~self.mask).sum())


class MaskedLinear(Masked):
    """``x [..., inputs]`` to ``[..., outputs]``.

    Args:
        mask: ``bool [outputs, inputs]``.
        bias: whether to add one.
    """

    def __init__(self, mask: torch.Tensor, bias: bool = True) -> None:
        outputs, inputs = mask.shape
        initial = nn.Linear(inputs, outputs, bias=bias)
        super().__init__(initial.weight, initial.bias if bias else None, mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.kernel(), self.bias)

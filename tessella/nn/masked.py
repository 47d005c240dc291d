"""Layers with masked weights: zero wherever information must not flow."""

from __future__ import annotations

from abc import ABC

import torch
import torch.nn.functional as F
from torch import nn


class Masked(nn.Module, ABC):
    """Base of the layers whose weights are masked.

    Args:
        weight: initial weights.
        bias: initial bias, or None for no bias.
        mask: ``bool``, of the shape of the weights; True where a weight may differ from zero.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, mask: torch.Tensor) -> None:
        super().__init__()
        assert mask.dtype == torch.bool
        assert mask.shape == weight.shape
        self.weight = nn.Parameter(weight.detach())
        self.bias = None if bias is None else nn.Parameter(bias.detach())
        # Not saved: the model derives it from its sizes.
        self.register_buffer("mask", mask, persistent=False)
        self.mask: torch.Tensor

    def kernel(self) -> torch.Tensor:
        """The weights, with zeros where the mask is False."""
        # The gradient of a masked weight is zero too, so training never changes it.
        return self.weight * self.mask

    @property
    def masked(self) -> int:
        """Number of masked weights."""
        return int((~self.mask).sum())


class MaskedLinear(Masked):
    """A linear layer under a mask, from ``[..., inputs]`` to ``[..., outputs]``.

    Args:
        mask: ``bool [outputs, inputs]``.
        bias: whether to add a bias.
    """

    def __init__(self, mask: torch.Tensor, bias: bool = True) -> None:
        outputs, inputs = mask.shape
        # Start from torch's usual initialization of a layer of this size.
        initial = nn.Linear(inputs, outputs, bias=bias)
        super().__init__(initial.weight, initial.bias if bias else None, mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.kernel(), self.bias)

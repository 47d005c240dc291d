"""Last layers: linear, followed by the fixed matrix that a head wants to apply first."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Mix = Callable[[torch.Tensor], torch.Tensor]
"""Multiplies ``[outputs]`` or ``[outputs, n]`` by a fixed matrix: a head's ``mix``."""


class LastLayer(nn.Linear):
    """A linear layer that makes a head's parameters, ``M (W x + b)`` with a fixed matrix ``M``.

    It is computed as ``(M W) x + M b``. There are many more inputs ``x`` in a training step than
    there are features, so the product with ``M`` then costs next to nothing, forward and backward.
    The gradient is that of the two products one after the other.

    Args:
        inputs: input features.
        bias: initial bias, ``[outputs]``.
        mix: the product with ``M``.
    """

    def __init__(self, inputs: int, bias: torch.Tensor, mix: Mix) -> None:
        super().__init__(inputs, len(bias))
        self.bias.data.copy_(bias)
        self.mix = mix

    def mixed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``M W`` and ``M b``: ``[outputs, inputs]`` and ``[outputs]``."""
        return self.mix(self.weight), self.mix(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, *self.mixed())

"""What every quantizer does: vectors to symbols, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn


@dataclass(frozen=True)
class QuantizerOutput:
    """What a quantizer makes of a batch of vectors.

    Args:
        symbols: ``int64 [..., depth]``.
        z: the quantized vectors ``[..., dim]``, in the type of the input, through which gradients
            pass.
        losses: scalars to add to the loss, already weighted.
        stats: scalars without gradient, to log.
    """

    symbols: torch.Tensor
    z: torch.Tensor
    losses: dict[str, torch.Tensor]
    stats: dict[str, torch.Tensor]


class Quantizer(nn.Module, ABC):
    """Vectors ``[..., dim]`` to ``depth`` symbols of ``levels`` values each, and back.

    A subclass computes in the type of its own tensors, also under autocast; gives codes exactly,
    whatever gradient passes; and keeps all it learns in parameters and buffers, equal in all
    processes.
    """

    name: ClassVar[str]
    dim: int
    levels: int
    """Codes of each codebook: a symbol lies in ``[0, levels)``."""
    depth: int
    """Symbols a vector: the channels of a grid."""

    @abstractmethod
    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        """Quantize vectors ``[..., dim]``; in training mode also learn from them."""

    @abstractmethod
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        """Vectors ``[..., dim]`` to symbols ``int64 [..., depth]``. Learns nothing."""

    @abstractmethod
    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        """Symbols ``int64 [..., depth]`` to vectors ``[..., dim]``."""

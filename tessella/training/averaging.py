"""Averaged weights: an exponential moving average of what the optimizer visits.

They are the ones that get validated and saved.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """A copy of a module whose parameters follow the trained ones slowly.

    Buffers, such as a codebook's counts, are copied as they are.

    Args:
        module: the trained module.
        decay: of the average. Early on ``(1 + step) / (10 + step)`` is used where it is smaller, so
            that the random weights of the beginning are soon forgotten. 0 copies.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        # In eval mode for good: it is validated and saved, and never trained.
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards ``module`` after optimizer step ``step`` (from 0)."""
        # 0.1 at the first step, 0.5 at the ninth, 0.99 after some 900.
        decay = min(self.decay, (1 + step) / (10 + step))
        # average <- average + (1 - decay) (trained - average), in one call for all tensors.
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)
        buffers = zip(learned_buffers(self.module), learned_buffers(module), strict=True)
        for averaged, trained in buffers:
            averaged.copy_(trained)

    def gather(self, module: nn.Module) -> None:
        """Bring :attr:`module` up to date, before it is validated or saved.

        All processes must call this.

        Args:
            module: the trained module.
        """

    def take_parts(self, module: nn.Module) -> None:
        """Go on from what :attr:`module` holds now, with ``module`` as the trained one."""


def learned_buffers(module: nn.Module) -> list[torch.Tensor]:
    """Buffers that training changes, such as a codebook: those that are saved.

    Masks and the like are not.
    """
    # torch has no public way to ask which buffers a module saves.
    buffers: list[torch.Tensor] = []
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                buffers.append(buffer)
    return buffers

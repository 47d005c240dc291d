"""Averaged weights: an exponential moving average of what the optimizer visits, which is what gets
validated and saved."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """A copy of a module whose parameters follow the trained ones slowly and whose buffers are
    theirs.

    Args:
        module: the trained module.
        decay: of the average; early on ``(1 + step) / (10 + step)`` where that is smaller. 0
            copies.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards ``module`` after optimizer step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)
        for mine, theirs in zip(learned_buffers(self.module), learned_buffers(module), strict=True):
            mine.copy_(theirs)


def learned_buffers(module: nn.Module) -> list[torch.Tensor]:
    """Buffers that training changes, as a codebook is: the ones that are saved. Masks and the like
    are not."""
    return [
        buffer
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if name not in part._non_persistent_buffers_set
    ]

"""Averaged weights: an exponential moving average of what the optimizer visits, which is what gets validated and
saved."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """A copy of a module whose parameters follow the trained ones slowly and whose buffers are theirs.

    Args:
        module: the trained module.
        decay: of the average; early on ``(1 + step) / (10 + step)`` where that is smaller. 0 copies.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards ``module`` after optimizer step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)
        for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)

"""How a sampler bends the distribution of a symbol before it draws from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tessella.errors import InputError
from tessella.heads import Categorical


@dataclass(frozen=True)
class Rule:
    """How the table of a symbol is bent before it is drawn from; the defaults leave it as it is.

    The order is: guidance ``u + s (c - u)`` on log-probabilities, renormalize, temperature, top-k,
    top-p.

    Args:
        temperature: divides the log-probabilities; above 0.
        top_k: keep exactly this many levels, ties going to the lower level; 0 keeps all.
        top_p: then keep the smallest set of likeliest levels whose mass reaches this; in (0, 1].
        guidance: scale ``s`` of classifier-free guidance (Ho and Salimans 2022); 1 is the
            conditional model itself.

    Raises:
        InputError: for a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(
                f"temperature must be above 0, got {self.temperature} (top_k=1 takes the likeliest level)"
            )
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise InputError(f"top_k must be an integer of at least 0, got {self.top_k!r}")
        if not math.isfinite(self.guidance):
            raise InputError(f"guidance must be a finite number, got {self.guidance}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must lie in (0, 1], got {self.top_p}")

    def __call__(self, table: torch.Tensor) -> torch.Tensor:
        """Bend ``table [..., levels]``, log-probabilities in nats. Levels left out become
        ``-inf``."""
        if self.temperature != 1:
            table = torch.log_softmax(table / self.temperature, dim=-1)
        if 0 < self.top_k < table.shape[-1]:
            table = _keep(table, torch.arange(table.shape[-1], device=table.device) < self.top_k)
        if self.top_p < 1:
            ranked = table.sort(dim=-1, descending=True, stable=True).values.softmax(dim=-1)
            table = _keep(table, ranked.cumsum(dim=-1) - ranked < self.top_p)
        return table


def _keep(table: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Only the levels whose rank (likeliest first, ties to the lower level) is marked in
    ``ranks [..., levels]``."""
    order = table.sort(dim=-1, descending=True, stable=True).indices
    kept = torch.zeros_like(table, dtype=torch.bool).scatter_(-1, order, ranks.expand_as(table))
    return table.masked_fill(~kept, -torch.inf)


def guided(table: torch.Tensor, scale: float) -> Categorical:
    """Classifier-free guidance: ``u + s (c - u)`` of log-probabilities
    ``table [2 * n, ..., levels]``, those with the class first, then those without."""
    given, free = table.chunk(2)
    return Categorical(free + scale * (given - free))

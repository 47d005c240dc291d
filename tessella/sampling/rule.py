"""Changes to a symbol's distribution before drawing: temperature, top-k, top-p, guidance.

The options can be imported without torch, so that the command line can build its flags from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from tessella.errors import InputError, check_integer, check_number

if TYPE_CHECKING:
    import torch

MIN_TEMPERATURE = 1e-30
"""Below this temperature the most likely level is taken; dividing by it would overflow float32."""

MAX_TEMPERATURE = 1e30
"""Higher temperatures are clamped to this; all levels are then equally likely in float32."""


class RuleKeywords(TypedDict, total=False):
    """The options of a :class:`Rule`, as keywords of the sampling functions."""

    temperature: float
    top_k: int
    top_p: float
    guidance: float


@dataclass(frozen=True)
class Rule:
    """How a symbol's distribution is changed before a level is drawn; by default, not at all.

    The changes apply in this order: guidance ``u + s (c - u)`` on log-probabilities,
    renormalization, temperature, top-k, top-p. A ``temperature`` or ``top_p`` near 0 keeps only the
    most likely level. Ties go to the lower level.

    Args:
        temperature: divides the log-probabilities; above 0.
        top_k: keep exactly this many of the most likely levels; 0 keeps all.
        top_p: then keep the smallest set of most likely levels whose total probability reaches
            this; in (0, 1].
        guidance: scale ``s`` of classifier-free guidance (Ho and Salimans 2022); 1 is the
            conditional model itself.

    Raises:
        InputError: for a value of the wrong type or out of range.
    """

    temperature: float = 1.0
    """Divides the log-probabilities."""
    top_k: int = 0
    """Keep only this many of the most likely levels of each symbol; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of levels whose probability reaches this."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; needs a class."""

    def __post_init__(self) -> None:
        # check_number has inclusive bounds only, so exclusive ones are checked here.
        check_number("temperature", self.temperature)
        if self.temperature <= 0:
            raise InputError(
                f"temperature must be above 0, got {self.temperature}; "
                "top_k=1 takes the likeliest level"
            )
        check_integer("top_k", self.top_k)
        check_number("guidance", self.guidance)
        check_number("top_p", self.top_p)
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must lie in (0, 1], got {self.top_p}")

    @property
    def applies(self) -> bool:
        """Whether the rule changes any table."""
        # bool, because the numbers may be those of numpy.
        return bool(self.temperature != 1 or self.top_k or self.top_p != 1)

    def __call__(self, table: torch.Tensor) -> torch.Tensor:
        """Apply temperature, top-k and top-p; guidance is applied by the sampler.

        Args:
            table: log-probabilities in nats, ``[..., levels]``.

        Returns:
            Log-probabilities of the same shape, ``-inf`` for excluded levels. They are not
            renormalized after top-k and top-p, because the argmax after adding noise is the same.
        """
        if not self.applies:
            return table
        import torch

        levels = torch.arange(table.shape[-1], device=table.device)
        if self.temperature < MIN_TEMPERATURE:
            # Dividing would overflow to -inf for every level, so take the limit directly.
            likeliest = table.argmax(dim=-1, keepdim=True)
            table = table.masked_fill(levels != likeliest, -torch.inf)
        elif self.temperature != 1:
            # Clamped, because -inf (probability 0) divided by infinity is NaN.
            table = torch.log_softmax(table / min(self.temperature, MAX_TEMPERATURE), dim=-1)
        # Select by rank, because a threshold would also keep all ties with the k-th level.
        if 0 < self.top_k < table.shape[-1]:
            table = _keep(table, levels < self.top_k)
        if self.top_p < 1:
            # The softmax renormalizes the levels that top-k has left.
            ranked = table.sort(dim=-1, descending=True, stable=True).values.softmax(dim=-1)
            mass_before = ranked.cumsum(dim=-1) - ranked
            # Always keep the first level: float32 rounds a tiny top_p to 0, and no mass is below 0.
            table = _keep(table, (mass_before < self.top_p) | (levels == 0))
        return table


def _keep(table: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Exclude all levels except those of certain ranks.

    Args:
        table: log-probabilities, ``[..., levels]``.
        ranks: whether to keep the level of each rank, ``bool [..., levels]``. Rank 0 is the most
            likely level; of equally likely levels, the lower one comes first.

    Returns:
        ``table`` with ``-inf`` for the excluded levels.
    """
    import torch

    # A stable sort keeps equal levels in their order. order[r] is the level of rank r.
    order = table.sort(dim=-1, descending=True, stable=True).indices
    kept = torch.zeros_like(table, dtype=torch.bool).scatter_(-1, order, ranks.expand_as(table))
    return table.masked_fill(~kept, -torch.inf)

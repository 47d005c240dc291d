"""How a sampler changes the distribution of a symbol before it draws from it.

The options are readable without torch, so that the command line can make its flags of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from tessella.errors import InputError, check_integer, check_number

if TYPE_CHECKING:
    import torch

MIN_TEMPERATURE = 1e-30
"""Below this temperature the likeliest level is certain. Far lower ones overflow float32."""

MAX_TEMPERATURE = 1e30
"""Above this temperature all levels are equally likely, as far as float32 can tell."""


class RuleKeywords(TypedDict, total=False):
    """The options of a :class:`Rule`, as keywords of the functions that sample."""

    temperature: float
    top_k: int
    top_p: float
    guidance: float


@dataclass(frozen=True)
class Rule:
    """How the table of a symbol is changed before a level is drawn; the defaults leave it alone.

    The order is: guidance ``u + s (c - u)`` on log-probabilities, renormalize, temperature, top-k,
    top-p. A temperature or a ``top_p`` near 0 leaves the likeliest level alone; of levels that are
    equally likely, the lowest.

    Args:
        temperature: divides the log-probabilities; above 0.
        top_k: keep exactly this many levels, ties going to the lower level; 0 keeps all.
        top_p: then keep the smallest set of likeliest levels whose mass reaches this; in (0, 1].
        guidance: scale ``s`` of classifier-free guidance (Ho and Salimans 2022); 1 is the
            conditional model itself.

    Raises:
        InputError: for a value of another type, or out of range.
    """

    temperature: float = 1.0
    """Divides the log-probabilities."""
    top_k: int = 0
    """Keep so many of the likeliest levels of each symbol; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of levels whose probability reaches this."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; needs a class."""

    def __post_init__(self) -> None:
        # Bounds that are not allowed themselves (0) are checked apart from the type.
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

    def __call__(self, table: torch.Tensor) -> torch.Tensor:
        """Change ``table [..., levels]``, log-probabilities in nats.

        Returns:
            Log-probabilities of the same shape, those of levels left out ``-inf``. Top-k and top-p
            do not renormalize: the argmax after adding noise does not need it.
        """
        import torch

        levels = torch.arange(table.shape[-1], device=table.device)
        if self.temperature < MIN_TEMPERATURE:
            # The quotient would overflow to -inf for every level. The limit is the likeliest one.
            likeliest = table.argmax(dim=-1, keepdim=True)
            table = table.masked_fill(levels != likeliest, -torch.inf)
        elif self.temperature != 1:
            # An infinite divisor would turn levels of probability 0 (-inf) into NaN.
            table = torch.log_softmax(table / min(self.temperature, MAX_TEMPERATURE), dim=-1)
        # Exactly k levels, where a threshold would keep all that tie with the k-th.
        if 0 < self.top_k < table.shape[-1]:
            table = _keep(table, levels < self.top_k)
        if self.top_p < 1:
            # Among the levels that are left: softmax renormalizes after top-k.
            ranked = table.sort(dim=-1, descending=True, stable=True).values.softmax(dim=-1)
            mass_before = ranked.cumsum(dim=-1) - ranked
            # The first is always kept: float32 rounds a tiny top_p to 0, which no mass is below.
            table = _keep(table, (mass_before < self.top_p) | (levels == 0))
        return table


def _keep(table: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Leave only the levels whose rank is marked in ``ranks [..., levels]``.

    Rank 0 is the likeliest level; of equal levels the lower one comes first.
    """
    import torch

    # A stable sort keeps equal levels in their order. order[r] is the level of rank r.
    order = table.sort(dim=-1, descending=True, stable=True).indices
    kept = torch.zeros_like(table, dtype=torch.bool).scatter_(-1, order, ranks.expand_as(table))
    return table.masked_fill(~kept, -torch.inf)

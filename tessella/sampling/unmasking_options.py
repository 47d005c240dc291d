"""How many symbols a masked model draws at a time, which ones, and when; without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from tessella.errors import InputError, check_integer, check_number, unknown

UnmaskingSchedule = Literal["cosine", "arccos", "linear"]
"""How the share of masked places falls with the steps, see :class:`Unmasking`."""

UNMASKING_SCHEDULES: tuple[UnmaskingSchedule, ...] = get_args(UnmaskingSchedule)
"""All schedules, for checks and help texts."""


@dataclass(frozen=True)
class Unmasking:
    """How a masked model draws: a few passes, each of which fixes some of the missing symbols.

    A step draws a candidate for every missing symbol, and keeps those of the greatest confidence:
    the log-probability of the candidate under the model, after guidance and before temperature and
    the like, plus Gumbel noise times ``choice_temperature``, which falls linearly to 0 with the
    steps (Chang et al. 2022, section 3.2). Every step keeps at least one.

    With as many steps as symbols, ``schedule="linear"`` and ``choice_temperature=math.inf`` a step
    keeps one random symbol. That draws exactly from the mixture of the model's distributions under
    all orders.

    Args:
        steps: passes over the grid; 1 draws all symbols independently.
        schedule: after a share ``t`` of the steps, ``cos(pi t / 2)``, ``2 arccos(t) / pi`` or
            ``1 - t`` of the symbols that were missing at first are missing still.
        choice_temperature: 0 always keeps the most confident ones; ``math.inf`` random ones.

    Raises:
        InputError: for an unknown schedule, or a number that is out of range.
    """

    steps: int = 12
    """Passes in which a masked model draws an image."""
    schedule: UnmaskingSchedule = "cosine"
    """How the share of symbols that are still missing falls with the steps."""
    choice_temperature: float = 4.5
    """Noise in the choice of the symbols that a step keeps; 0 keeps the most confident ones, inf
    random ones."""

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, least=1)
        if self.schedule not in UNMASKING_SCHEDULES:
            raise InputError(unknown("schedule", self.schedule, UNMASKING_SCHEDULES))
        if self.choice_temperature != math.inf:
            check_number("choice_temperature", self.choice_temperature, least=0)

    def missing_after(self, step: int, missing: int) -> int:
        """Symbols of an image that are still missing after some of the steps.

        Args:
            step: number of steps taken.
            missing: symbols that were missing at first.
        """
        if step >= self.steps:
            return 0
        if self.schedule == "linear":
            # In integers, so that as many steps as symbols take one each.
            return missing * (self.steps - step) // self.steps
        part = step / self.steps
        if self.schedule == "cosine":
            share = math.cos(math.pi / 2 * part)
        else:
            share = 2 / math.pi * math.acos(part)
        return math.floor(missing * share)

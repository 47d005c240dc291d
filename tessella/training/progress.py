"""How far a run is, and which of its validations was the best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tessella.errors import ArtifactError


@dataclass(frozen=True, order=True)
class Rank:
    """Place of a validation among those of a run: the smallest rank is the best.

    Ranks are compared by tier first, so that a task can say that some validations beat all others
    whatever their figures.

    Args:
        tier: 0 unless the task knows better and worse kinds of validations.
        value: the figure to minimize among validations of one tier.
        reason: for people, why a validation of this rank is kept.
    """

    tier: int
    value: float
    reason: str = field(default="", compare=False)


@dataclass
class Progress:
    """How far a run is; kept in every checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Wall-clock seconds over all sittings: preparation, training, validation and saving."""
    training: float = 0.0
    """Seconds of these that steps took; less than the whole in runs of older versions."""
    validations: int = 0
    validating: float = 0.0
    """Seconds of these that validations took."""
    reserve: float = 0.0
    """Seconds kept free at the end of a run of so many minutes, for its last validation."""
    bad_steps: int = 0
    """Steps that were not taken because a gradient was not finite."""
    bad_in_a_row: int = 0
    """How many of them came last, one after the other."""
    best: float = math.inf
    """The task's metric at the best validation; infinite before the first one."""
    best_step: int = 0
    rank: Rank | None = None
    """Rank of the best validation; None before the first one."""
    figures: dict[str, float] = field(default_factory=dict)
    """All validation figures of the best weights."""

    def record(self, rank: Rank, metric: float, figures: dict[str, float]) -> bool:
        """Take note of a validation of the current step. Returns whether it is the best so far."""
        # Of equal ranks the earlier one stays.
        if self.rank is not None and not rank < self.rank:
            return False
        self.rank = rank
        self.best = metric
        self.best_step = self.step
        self.figures = figures
        return True

    def to_json(self) -> dict[str, object]:
        """JSON values; :meth:`from_json` reads them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: object, source: str) -> Progress:
        """Read what :meth:`to_json` gave, or an older version wrote.

        Args:
            values: parsed JSON.
            source: where it stands, for the message.

        Raises:
            ArtifactError: when an entry is missing, unknown or of a wrong type.
        """
        if not isinstance(values, Mapping):
            raise ArtifactError(f"{source} does not say how far the run is: restore the file")
        # The file may come from anywhere: every entry is checked before anything counts on it.
        progress = cls()
        for name in ("step", "validations", "best_step", "bad_steps", "bad_in_a_row"):
            setattr(progress, name, _count(values, name, source))
        for name in ("seconds", "training", "validating", "reserve"):
            setattr(progress, name, _number(values, name, source, default=0.0))
        # JSON knows no infinity: before the first validation the file says null.
        progress.best = _number(values, "best", source, default=math.inf)
        progress.figures = _figures(values.get("figures", {}), source)
        progress.rank = _rank(values.get("rank"), progress, source)
        return progress


LEVELS_SQUARED = 255.0**2
"""Mean squared error between black and white."""


def _rank(value: object, progress: Progress, source: str) -> Rank | None:
    if isinstance(value, Mapping):
        tier = _count(value, "tier", source)
        return Rank(tier, _number(value, "value", source, 0.0), str(value.get("reason", "")))
    if value is not None:
        raise ArtifactError(f"{source}: rank must be an object, got {value!r}")
    if math.isinf(progress.best):
        return None
    if "precedence" not in progress.figures:
        return Rank(0, progress.best)
    # Earlier versions folded tier and value of an adversarial run into one number: 1 / (1 + passes)
    # with the adversarial term, 1 + error before it, 2 + error at a takeover.
    precedence = progress.best
    progress.best = progress.figures.get("mse", precedence)
    if precedence <= 1:
        return Rank(0, 1 - 1 / max(precedence, 1e-12))
    tier = 1 if precedence < 2 else 2
    return Rank(tier, (precedence - tier) * LEVELS_SQUARED)


def _count(values: Mapping[str, object], name: str, source: str) -> int:
    value = values.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ArtifactError(f"{source}: {name} must be a whole number of at least 0, got {value!r}")
    return value


def _number(values: Mapping[str, object], name: str, source: str, default: float) -> float:
    value = values.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ArtifactError(f"{source}: {name} must be a number, got {value!r}")
    return float(value)


def _figures(values: object, source: str) -> dict[str, float]:
    if not isinstance(values, Mapping):
        raise ArtifactError(f"{source}: figures must be an object, got {values!r}")
    figures: dict[str, float] = {}
    for name in values:
        # null stands for an infinite figure, such as the PSNR of a perfect reconstruction.
        figures[str(name)] = _number(values, name, source, default=math.inf)
    return figures

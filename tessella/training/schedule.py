"""When a run ends, how fast it learns, when it validates, and how long it still takes.

A run ends at the first of its limits (steps, epochs, minutes). The share of it that has passed, the
largest over the limits, drives the learning rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tessella.config import TrainConfig
from tessella.training.progress import Progress

VALIDATIONS = 20
"""Validations of a run whose recipe does not say how often."""

VALIDATING = 0.1
"""Largest share of the time of a run limited by minutes that validations take.

The first and the last one are not held to it.
"""

FINAL_RATE = 0.01
"""Learning rate at the end, as a share of its peak."""

WARMUP_SHARE = 0.05
"""Share of a run after which warm-up has ended, however many steps it was to take."""

LARGEST_RESERVE = 0.5
"""Largest share of the minutes that is kept free for the last validation."""

FEW_STEPS = 100
"""A run of fewer steps hardly learns anything, which is said before it starts."""

ENOUGH_STEPS = 500
"""Steps that the advice of :meth:`Limits.few_steps_warning` aims at."""


@dataclass(frozen=True)
class Limits:
    """The limits of a run; a limit of 0 is none."""

    steps: int
    """Optimizer steps."""
    examples: float
    """Examples seen: those of an epoch, times the epochs."""
    seconds: float
    """Wall-clock seconds of the whole run."""
    batch: int
    """Examples of a step."""

    def passed(self, progress: Progress) -> float:
        """Share of the run that has passed, in 0..1: the largest over the limits."""
        # The limit that is nearest decides, so that the rate has fallen when the run ends.
        share = 0.0
        if self.steps:
            share = max(share, progress.step / self.steps)
        if self.examples:
            share = max(share, progress.step * self.batch / self.examples)
        if self.seconds:
            # The last validation and the last checkpoint belong to the minutes too: training ends
            # early enough for them.
            share = max(share, progress.seconds / (self.seconds - progress.reserve))
        return min(1.0, share)

    def reserve(self, ending_seconds: float, step_seconds: float) -> float:
        """Seconds to keep free at the end of a run limited by time; 0 for another run.

        Args:
            ending_seconds: what a validation with its checkpoint took.
            step_seconds: of a step. The last one ends half a step late on average.
        """
        return min(ending_seconds + step_seconds / 2, LARGEST_RESERVE * self.seconds)

    def expected_steps(self, progress: Progress, step_seconds: float) -> float:
        """Steps that the whole run will have taken at its end, by its first limit.

        Args:
            step_seconds: of a step, for a limit of time.
        """
        # The run ends at the first limit, so the least of these counts.
        totals = []
        if self.steps:
            totals.append(float(self.steps))
        if self.examples:
            totals.append(self.examples / self.batch)
        if self.seconds:
            left = max(0.0, self.seconds - progress.reserve - progress.seconds)
            totals.append(progress.step + left / max(step_seconds, 1e-9))
        return min(totals, default=math.inf)

    def seconds_left(self, progress: Progress, step_seconds: float) -> float:
        """Seconds until the run ends, at the present pace."""
        remaining = self.expected_steps(progress, step_seconds) - progress.step
        return max(0.0, remaining * step_seconds) + progress.reserve

    def few_steps_warning(self, progress: Progress, step_seconds: float) -> str | None:
        """A line of advice where the run will take too few steps to learn much, else None."""
        total = self.expected_steps(progress, step_seconds)
        if total >= FEW_STEPS:
            return None
        # A run takes one step at least, however short it is.
        steps = max(1, math.floor(total))
        minutes = math.ceil(ENOUGH_STEPS * step_seconds / 60)
        noun = "step" if steps == 1 else "steps"
        return (
            f"warning: about {steps} {noun} of {step_seconds:.2g} s fit into this run, too few to"
            f" learn much: train for at least {ENOUGH_STEPS} (about {minutes} min here), or make"
            " steps cheaper with a smaller train.batch, data.size or model"
        )


def limits_of(config: TrainConfig, n: int) -> Limits:
    """The limits of a run on ``n`` training examples."""
    return Limits(config.steps, config.epochs * n, 60 * config.minutes, config.batch)


def rate_factor(share: float, step: int, warmup: int) -> float:
    """Learning rate as a share of its peak: linear warm-up, then half a cosine over the run.

    Warm-up lasts ``warmup`` steps or a twentieth of the run, whichever is shorter: a run of few
    steps must reach its rate too.

    Args:
        share: of the run that has passed.
        step: from 0.
        warmup: steps; 0 for none.
    """
    cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * share))
    if not warmup:
        return cosine
    # Whichever of the two is further along.
    warmed = max((step + 1) / warmup, share / WARMUP_SHARE)
    return cosine * min(1.0, warmed)


def validation_due(config: TrainConfig, progress: Progress, share: float) -> bool:
    """Whether it is time to validate, ``share`` of the run having passed."""
    if config.validate_every:
        return progress.step % config.validate_every == 0
    # Slow validations become fewer: they get a tenth of the time.
    if config.minutes and progress.validating > VALIDATING * progress.seconds:
        return False
    return share * VALIDATIONS >= progress.validations + 1


def checkpoint_due(config: TrainConfig, progress: Progress) -> bool:
    """Whether a checkpoint is to be written besides those of the validations."""
    return config.checkpoint_every > 0 and progress.step % config.checkpoint_every == 0


@dataclass
class Pace:
    """Seconds of a step, measured while a run goes on.

    A forecast from two steps is wrong where other programs come and go. The average forgets in some
    twenty steps.
    """

    step_seconds: float = 0.0
    steps: int = 0
    """Steps that were measured."""

    def update(self, seconds: float) -> None:
        """Take another step into account."""
        self.steps += 1
        # The first steps count alike; a fixed weight would cling to the very first one.
        weight = max(0.05, 1 / self.steps)
        self.step_seconds += weight * (seconds - self.step_seconds)


def duration(seconds: float) -> str:
    """A duration for people.

    >>> duration(4.2), duration(75), duration(7300)
    ('4 s', '1:15 min', '2:01 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d} h"

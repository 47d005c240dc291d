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
"""Steps that the advice of :func:`few_steps_warning` aims at."""


def passed(config: TrainConfig, progress: Progress, n: int) -> float:
    """Share of the run that has passed, in 0..1: the largest over its limits.

    Args:
        n: training examples, for a limit of epochs.
    """
    share = 0.0
    if config.steps:
        share = max(share, progress.step / config.steps)
    if config.epochs:
        share = max(share, progress.step * config.batch / (config.epochs * n))
    if config.minutes:
        # The last validation and the last checkpoint belong to the minutes too: training ends
        # early enough for them.
        share = max(share, progress.seconds / (60 * config.minutes - progress.reserve))
    return min(1.0, share)


def reserve(config: TrainConfig, ending_seconds: float, step_seconds: float) -> float:
    """Seconds to keep free at the end of a run of so many minutes.

    Args:
        ending_seconds: what a validation with its checkpoint took.
        step_seconds: of a step. The last one ends half a step late on average.
    """
    if not config.minutes:
        return 0.0
    return min(ending_seconds + step_seconds / 2, LARGEST_RESERVE * 60 * config.minutes)


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
    warmed = max((step + 1) / warmup, share / WARMUP_SHARE)
    return cosine * min(1.0, warmed)


def validation_due(config: TrainConfig, progress: Progress, share: float) -> bool:
    """Whether it is time to validate, ``share`` of the run having passed."""
    if config.validate_every:
        return progress.step % config.validate_every == 0
    if config.minutes and progress.validating > VALIDATING * progress.seconds:
        return False
    return share * VALIDATIONS >= progress.validations + 1


def checkpoint_due(config: TrainConfig, progress: Progress) -> bool:
    """Whether a checkpoint is to be written besides those of the validations."""
    return config.checkpoint_every > 0 and progress.step % config.checkpoint_every == 0


def expected_steps(config: TrainConfig, progress: Progress, n: int, step_seconds: float) -> float:
    """Steps that the whole run will have taken at its end, by its first limit.

    Args:
        n: training examples.
        step_seconds: of a step, for a limit of minutes.
    """
    totals = []
    if config.steps:
        totals.append(float(config.steps))
    if config.epochs:
        totals.append(config.epochs * n / config.batch)
    if config.minutes:
        left = max(0.0, 60 * config.minutes - progress.reserve - progress.seconds)
        totals.append(progress.step + left / max(step_seconds, 1e-9))
    return min(totals, default=math.inf)


def seconds_left(config: TrainConfig, progress: Progress, n: int, step_seconds: float) -> float:
    """Seconds until the run ends, at the present pace."""
    remaining = expected_steps(config, progress, n, step_seconds) - progress.step
    return max(0.0, remaining * step_seconds) + progress.reserve


def few_steps_warning(
    config: TrainConfig, progress: Progress, n: int, step_seconds: float
) -> str | None:
    """A line of advice where the run will take too few steps to learn much, else None."""
    total = expected_steps(config, progress, n, step_seconds)
    if total >= FEW_STEPS:
        return None
    steps = max(1, math.floor(total))
    minutes = math.ceil(ENOUGH_STEPS * step_seconds / 60)
    return (
        f"warning: about {steps} steps of {step_seconds:.2g} s fit into this run, too few to learn"
        f" much: train for at least {ENOUGH_STEPS} (about {minutes} min here), or make steps"
        " cheaper with a smaller train.batch, data.size or model"
    )


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

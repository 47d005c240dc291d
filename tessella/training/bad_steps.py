"""Steps whose gradient is not finite: what ``train.on_nonfinite`` makes of them.

The gradient is that of all processes, so all of them come here at the same step, and decide alike.
"""

from __future__ import annotations

import math

from tessella.config import TrainConfig
from tessella.errors import TrainingError
from tessella.training.progress import Progress


def count_bad_step(progress: Progress) -> None:
    """Count a step that is not taken."""
    progress.bad_steps += 1
    progress.bad_in_a_row += 1


def goes_on(config: TrainConfig, progress: Progress) -> bool:
    """Whether a run goes on after the bad steps that were counted."""
    if config.on_nonfinite == "stop":
        return False
    in_a_row = progress.bad_in_a_row <= config.nonfinite_in_a_row
    return in_a_row and progress.bad_steps <= config.nonfinite_in_all


def bad_step_error(
    config: TrainConfig, progress: Progress, loss: float, norm: float, rate: float
) -> TrainingError:
    """The error that ends a run.

    Args:
        config, progress: of the run, before the step.
        loss: mean loss of the step.
        norm: norm of its gradient.
        rate: learning rate of the step.
    """
    assert not math.isfinite(norm)
    count = ""
    if config.on_nonfinite != "stop":
        count = f" ({progress.bad_in_a_row} such steps in a row, {progress.bad_steps} in all)"
    return TrainingError(
        f"the loss became {loss} (gradient norm {norm}) at step {progress.step + 1}{count};"
        " the state before it is saved. Resume with a lower rate,"
        f" for example train.learning_rate={rate / 3:.2g}, or a smaller train.clip"
    )


def bad_step_line(progress: Progress, loss: float, back_to: int | None) -> str:
    """A line for people about a step that is not taken.

    Args:
        progress: of the run, before the step.
        loss: mean loss of the step.
        back_to: step of the checkpoint whose weights were taken; None where the step is left out.
    """
    answer = "it is left out"
    if back_to is not None:
        answer = f"back to the weights of step {back_to}"
    return (
        f"step {progress.step + 1}: the gradient is not finite (loss {loss}); {answer}"
        f" ({progress.bad_in_a_row} in a row, {progress.bad_steps} in all)"
    )

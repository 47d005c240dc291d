"""What a run says of itself: what is about to happen, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tessella import data
from tessella.training import loop, schedule
from tessella.training.forecast import Forecast
from tessella.training.progress import Progress
from tessella.training.tasks import Task


def report_data(
    images: data.ImageSet, held_out: data.ImageSet, out: Path, say: Callable[[str], None]
) -> None:
    """Say which files were left out, and how the images are divided."""
    skipped = sorted({*images.skipped, *held_out.skipped})
    # Three are shown; all are in a file of the run.
    if skipped:
        noun = "file" if len(skipped) == 1 else "files"
        more = ""
        if len(skipped) > 3:
            more = f"; {len(skipped) - 3} more, all in {out / 'skipped.txt'}"
        say(f"{len(skipped)} {noun} skipped: {'; '.join(skipped[:3])}{more}")
    say(f"split: {images.recipe['split_rule']}")


def announce(session: loop.Session, record: Mapping[str, object], expected: Forecast) -> None:
    """Say what is about to happen: overlap, size and time, terms of the loss."""
    if record["overlap"]:
        session.say(
            f"note: {record['overlap']} validation images are, pixel for pixel, training images too"
        )
    session.say(_size_and_time(session, expected))
    warning = session.limits.few_steps_warning(session.progress, expected.step_seconds)
    if warning:
        session.say(warning)
    terms = session.task.summary()
    if terms:
        session.say(terms)


def _size_and_time(session: loop.Session, expected: Forecast) -> str:
    """One line on what the run will take."""
    config = session.config
    n = len(session.examples)
    limits: list[str] = []
    for name, value in (
        ("steps", config.steps),
        ("epochs", config.epochs),
        ("minutes", config.minutes),
    ):
        if value:
            limits.append(f"{value:g} {name}")
    resuming = ""
    if session.progress.step:
        resuming = f"resuming at step {session.progress.step}, "
    left = session.limits.seconds_left(session.progress, expected.step_seconds)
    return (
        f"{expected.parameters / 1e6:.3g} M parameters, {n} training images,"
        f" {expected.memory_bytes / 2**20:.0f} MiB, {expected.step_seconds:.3g} s a step,"
        f" about {expected.epoch_seconds:.3g} s an epoch of {-(-n // config.batch)} steps;"
        f" {resuming}until {', '.join(limits)} (about {schedule.duration(left)})"
    )


def ending(task: Task, progress: Progress, out: Path, stopped: bool) -> str:
    """The last line of a run."""
    # The reason is worth a word where the best is not simply the least of the metric.
    reason = ""
    if progress.rank is not None and progress.rank.reason not in ("", f"least {task.metric}"):
        reason = f" ({progress.rank.reason})"
    place = f"saved to {out}"
    if stopped:
        place = f"interrupted: tessella train --resume {out} goes on"
    return (
        f"step {progress.step}, {progress.seconds:.0f} s: best {task.shown_metric}"
        f" {progress.best:.4f} at step {progress.best_step}{reason}; {place}"
    )

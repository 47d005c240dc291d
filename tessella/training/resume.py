"""Going on with a run: what must be as it was, and back to the newest whole checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tessella.errors import ArtifactError, TrainingError
from tessella.training import checkpoint, loop
from tessella.training.progress import Progress
from tessella.training.run_directory import environment

Record = Mapping[str, Any]
"""``run.json``, or a part of it, whose types have been checked."""

NOTED = ("tessella", "torch", "threads", "world_size", "device")
"""Facts of the environment that a run needs unchanged to repeat bit for bit."""

IDENTITY = ("count", "shape", "sha256", "classes")
"""Facts of a split that decide what is trained; others, such as its place, may change."""


def resume(
    session: loop.Session,
    record: Record,
    say: Callable[[str], None],
) -> bool:
    """Go back to the newest whole checkpoint of a run.

    Args:
        session: set up anew; its progress, weights and optimizer are put back.
        record: the entries ``recipe`` and ``data`` of ``run.json``, as they are now.
        say: gets a line for each thing that is worth knowing.

    Returns:
        False where there is no checkpoint, and the run starts again from the beginning.

    Raises:
        TrainingError: for other data or another model.
        ArtifactError: when there is no run, or it cannot be written.
    """
    run = session.run
    before = run.facts()
    now = environment(session.fabric.device, session.fabric.world_size)
    _check_same(session, before, record)
    # Nothing was written up to here: what does not fit is refused without a trace.
    run.lock()
    run.sweep()
    session.fabric.barrier()
    lines = _restore(session, before)
    restored = bool(session.checkpoints)
    # Steps after the checkpoint will be taken, and logged, again.
    run.cut_log(session.progress.step)
    finished = session.share >= 1
    if finished:
        lines.append(
            f"{run.path} is finished after step {session.progress.step}:"
            " give more --steps, --epochs or --minutes to go on"
        )
    lines += _environment_notes(before.get("environment") or {}, now)
    if session.fabric.is_global_zero:
        for line in lines:
            say(line)
    best_is_here = session.progress.best_step == session.progress.step
    if restored and best_is_here and before.get("status") in ("running", "failed"):
        # The last sitting may have ended between the checkpoint and the model of this step.
        loop.keep(session)
    # A finished run that has nothing left to do is no sitting.
    if before.get("status") != "finished" or not finished:
        sittings = list(before.get("sittings") or [])
        sittings.append({"step": session.progress.step, "environment": now})
        run.update(status="running", recipe=record["recipe"], sittings=sittings)
    return restored


def _check_same(session: loop.Session, before: Record, record: Record) -> None:
    """Refuse to go on with other images or another model."""
    path = session.run.path
    if "data" not in before or "task" not in before:
        raise ArtifactError(f"{path}/run.json does not say what was trained on what: restore it")
    changed = _changed(before["data"], record["data"])
    if changed:
        raise TrainingError(
            f"{path} was trained on other images than there are now ({'; '.join(changed)}):"
            " put them back, or train anew with another --out"
        )
    if before["task"] != session.task.describe():
        raise TrainingError(f"{path} trains another model: {before['task']}")
    # What an optimizer remembers is of no use to another. The first records did not name it.
    settings = before.get("recipe", {}).get("train", {})
    optimizer = settings.get("optimizer", "adamw")
    if optimizer != session.config.optimizer:
        raise TrainingError(
            f"{path} was trained with train.optimizer={optimizer}: leave that as it was, or train"
            " anew with another --out"
        )


def _changed(before: Record, now: Record) -> list[str]:
    """How the images differ, in words."""
    differences: list[str] = []
    for split in ("train", "valid"):
        old = before.get(split) or {}
        new = now[split]
        if old.get("source") == "iterable":
            differences.append(f"{split} came from an iterable, whose order is not kept")
        for name in IDENTITY:
            # Records of earlier versions may lack a fact.
            if name in old and old[name] != new.get(name):
                was = str(old[name])[:16]
                differences.append(f"{split} {name} was {was} and is {str(new.get(name))[:16]}")
    return differences


def _environment_notes(before: Record, now: Record) -> list[str]:
    """A line for each difference that keeps the run from repeating bit for bit."""
    notes: list[str] = []
    for name in NOTED:
        if name in before and before[name] != now[name]:
            notes.append(
                f"note: {name} was {before[name]} and is {now[name]}:"
                " the run will not repeat bit for bit"
            )
    return notes


def _restore(session: loop.Session, before: Record) -> list[str]:
    """Put the newest whole checkpoint back, where there is one. Returns lines about it."""
    path = session.run.path
    try:
        tensors, state, problems = checkpoint.newest(path)
    except ArtifactError as error:
        # A model without a checkpoint may be all that is left of hours: it is not trained over.
        if (path / "config.json").exists():
            raise ArtifactError(
                f"{error}; the model it holds stays as it is: train anew with another --out"
            ) from error
        return [f"{error}; starting again from the beginning"]
    checkpoint.restore(tensors, session.task.module, session.average.module, session.optimizer)
    session.average.take_parts(session.task.module)
    session.task.recall(state.get("memory", {}))
    session.progress = Progress.from_json(state["progress"], str(path))
    _count_the_end(session.progress, before)
    session.checkpoints = [session.progress.step]
    return [f"skipped a checkpoint: {problem}" for problem in problems]


def _count_the_end(progress: Progress, before: Record) -> None:
    """Add the time that the last sitting took after its last checkpoint.

    A run of so many minutes that has ended would otherwise seem to have a few seconds left.
    """
    if before.get("status") not in ("finished", "interrupted") or "progress" not in before:
        return
    # run.json is written after the checkpoint, with the time of saving in it.
    last = Progress.from_json(before["progress"], "run.json")
    if last.step == progress.step:
        progress.seconds = max(progress.seconds, last.seconds)
        progress.reserve = last.reserve

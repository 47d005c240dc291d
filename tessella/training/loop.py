"""The one training loop, for density models, tokenizers and priors: set up, main, fit, validate.

Nothing of a data loader needs saving, since the data order, the augmentation and the dropout of a
step are pure functions of the seed and the step.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tessella import progress_bars
from tessella.config import TrainConfig
from tessella.distributed import mean_over_processes, value_of_first
from tessella.errors import ArtifactError, ConfigError, TrainingError
from tessella.training import bad_steps, checkpoint, schedule, signals
from tessella.training.averaging import Average, learned_buffers
from tessella.training.engine import Fabric, cuda_devices
from tessella.training.examples import BatchPart, Examples, mix
from tessella.training.expectation import Expectation
from tessella.training.optimizers import add_penalty, create_optimizer
from tessella.training.progress import Progress
from tessella.training.read_ahead import ReadAhead
from tessella.training.run_directory import RunDirectory
from tessella.training.sharding import ShardedAverage, clip_gradient, share_whole_gradients
from tessella.training.stream import Stream
from tessella.training.tasks import Task

LOG_EVERY = 10
"""Steps between lines of the log."""

PACE_KNOWN = 20
"""Steps of a sitting after which its pace is compared with the forecast."""

PACE_DIFFERS = 1.5
"""Ratio of pace and forecast from which on the difference is worth a line."""


@dataclass
class Session:
    """The parts of a run that the loop works with, put together by :func:`setup`."""

    fabric: Fabric
    task: Task
    wrapped: Any
    """The task as the engine wraps it: same call, and gradients shared by all processes."""
    optimizer: torch.optim.Optimizer
    average: Average
    examples: Examples | Stream
    valid: Examples
    config: TrainConfig
    run: RunDirectory
    limits: schedule.Limits
    say: Callable[[str], None] = print
    progress: Progress = field(default_factory=Progress)
    pace: schedule.Pace = field(default_factory=schedule.Pace)
    stop: signals.StopFlag = field(default_factory=signals.StopFlag)
    checkpoints: list[int] = field(default_factory=list)
    """Steps of the checkpoints that are known to be whole: written, or resumed from."""
    started: float = field(default_factory=time.monotonic)
    """Reading of the clock when the run, over all sittings, had taken no time."""
    forecast_seconds: float = 0.0
    """Forecast of a step; 0 where none was made."""
    expectation: Expectation | None = None
    """The curve that the recipe expects of this run; None where it has none."""

    @property
    def divided(self) -> bool:
        """Whether each process holds a part of the weights only."""
        return isinstance(self.average, ShardedAverage)

    @property
    def share(self) -> float:
        """Share of the run that has passed."""
        return self.limits.passed(self.progress)

    def read_clock(self) -> float:
        """Seconds of the run by the clock of the first process, which all processes go by.

        With clocks of their own, one would end the run while another waits for its gradients.
        """
        return value_of_first(time.monotonic() - self.started, self.fabric.device)


def setup(
    fabric: Fabric,
    task: Task,
    examples: Examples | Stream,
    valid: Examples,
    config: TrainConfig,
    run: RunDirectory,
    say: Callable[[str], None] = print,
) -> Session:
    """Move everything to its device and make the optimizer and the average.

    Raises:
        ConfigError: for a batch that cannot be divided over passes and devices, or Muon where
            there is nothing for it.
    """
    parts = config.accumulate * fabric.world_size
    if config.batch % parts:
        raise ConfigError(
            f"batch={config.batch} must be divisible by accumulate x devices = {parts}"
        )
    divided = config.sharding == "full" and fabric.world_size > 1
    # The average is a copy, made before the engine wraps the task.
    average = (ShardedAverage if divided else Average)(task.module, config.average)
    # Of a model that is divided only the first process needs a whole copy at hand.
    if not divided or fabric.is_global_zero:
        average.module.to(fabric.device)
    # The engine may put other parameters in the place of those that it divides, so that the
    # optimizer comes after it.
    wrapped = fabric.setup(task)
    average.take_parts(task.module)
    optimizer: Any = fabric.setup_optimizers(create_optimizer(task, config))
    limits = schedule.limits_of(config, len(examples))
    return Session(
        fabric=fabric,
        task=task,
        wrapped=wrapped,
        optimizer=optimizer,
        average=average,
        examples=examples,
        valid=valid,
        config=config,
        run=run,
        limits=limits,
        say=say,
    )


def main(session: Session) -> Progress:
    """Train from where the progress is to the end of the run, or to a signal.

    A checkpoint is always left behind.

    Raises:
        TrainingError: when the loss is not finite; the last good state is kept.
        ArtifactError: when something cannot be written; what was written before stays good.
    """
    random_state = torch.random.fork_rng(devices=cuda_devices(session.fabric))
    try:
        with signals.setting(session.stop, signals.AT_TERMINAL), random_state:
            fit(session)
        session.run.close()
        _save_status(session, "finished" if session.share >= 1 else "interrupted")
    except (TrainingError, ArtifactError) as error:
        session.run.close()
        # A disk too full for what came before may be too full for this note.
        with contextlib.suppress(ArtifactError):
            _save_status(session, "failed")
        if isinstance(error, TrainingError):
            raise
        raise _with_advice(session, error) from error
    return session.progress


def fit(session: Session) -> None:
    """Take steps, with a validation and a checkpoint now and then."""
    progress = session.progress
    reader = _reader(session)
    session.started = time.monotonic() - progress.seconds
    bar = _progress_bar(session)
    with contextlib.closing(reader):
        _take_steps(session, reader, bar)
    _report_replaced(session)
    if session.share < 1 or not progress.best_step:
        _save_checkpoint(session)
        # A model to load must be there, even after an early signal. A resumed run knows nothing of
        # this validation and makes those that are due.
        if not progress.validations and validate(session, log=False):
            keep(session)
    bar.close()


def _report_replaced(session: Session) -> None:
    """Say how many images of a stream were damaged."""
    examples = session.examples
    if isinstance(examples, Examples) and examples.replaced and session.fabric.is_global_zero:
        session.say(
            f"{examples.replaced} damaged images were met; others took their places"
            " (tessella data verify SOURCE lists them)"
        )


def _reader(session: Session) -> ReadAhead:
    """Reads the examples of each step, ahead if the recipe asks for it."""
    config = session.config
    examples = session.examples
    return ReadAhead(
        examples if isinstance(examples, Examples) else None,
        examples.order(config.batch, config.seed),
        passes=config.accumulate,
        rank=session.fabric.global_rank,
        world=session.fabric.world_size,
        workers=config.workers,
    )


def _take_steps(session: Session, reader: ReadAhead, bar: progress_bars.ProgressBar) -> None:
    """Take steps until the run has passed, or a signal came."""
    config = session.config
    progress = session.progress
    while session.share < 1 and not _stopped(session):
        # The rate follows the share of the run, so that every limit ends on a low rate.
        factor = schedule.rate_factor(session.share, progress.step, config.warmup)
        rate = config.learning_rate * factor
        figures = _step(session, reader, rate)
        progress.step += 1
        session.average.update(session.task.module, progress.step - 1)
        before = progress.seconds
        progress.seconds = session.read_clock()
        progress.training += progress.seconds - before
        session.pace.update(progress.seconds - before)
        _report_step(session, bar, figures, rate)
        share = session.share
        if share >= 1 or schedule.validation_due(config, progress, share):
            _validate_and_save(session)
        elif schedule.checkpoint_due(config, progress):
            _save_checkpoint(session)
            progress.seconds = session.read_clock()
        # The bar counts thousandths of the run, whichever limit drives it.
        bar.update(round(session.share * 1000) - bar.n)


def validate(session: Session, log: bool = True) -> bool:
    """Measure the averaged weights on held-out examples. Returns whether they are the best so far.

    Raises:
        TrainingError: when the figure that ranks them is not finite.
    """
    progress = session.progress
    task = session.task
    session.average.gather(task.module)
    found = None
    if session.fabric.is_global_zero:
        averaged = session.average.module
        figures = task.validate(averaged, session.valid, session.config.batch, progress.step)
        found = task.judge(averaged, figures)
    # The first process measures for all: they must agree on what is the best.
    found = session.fabric.broadcast(found)
    assert found is not None
    # A figure that is no number would compare as neither better nor worse, and be kept for ever.
    finite = math.isfinite(found.rank.value)
    metric = found.figures[task.metric]
    better = finite and progress.record(found.rank, metric, found.figures)
    if log:
        entry: dict[str, object] = {
            "step": progress.step,
            "seconds": round(progress.seconds, 3),
            "training_seconds": round(progress.training, 3),
        }
        for name, value in found.figures.items():
            entry[f"valid/{name}"] = value
        if better:
            entry["kept"] = found.rank.reason
        session.run.log(entry)
    if not finite:
        raise TrainingError(
            f"validation gives {task.shown_metric} = {metric} at step {progress.step}"
        )
    return better


def keep(session: Session) -> None:
    """Save the averaged weights, which are the best so far, as the model of the run.

    This comes after the checkpoint of the same step, never before it: a model that is missing, or
    half replaced, is saved again by a resumed run, from that checkpoint; and no model is there that
    no checkpoint knows of.
    """
    progress = session.progress
    session.average.gather(session.task.module)
    if session.fabric.is_global_zero:
        facts: dict[str, object] = {
            "validation": progress.figures,
            "training": {"steps": progress.step, "seconds": round(progress.seconds, 1)},
        }
        session.task.save(session.average.module, session.run.path, facts)
        _show_pictures(session)
    session.fabric.barrier()


def _show_pictures(session: Session) -> None:
    """Show what the best model makes on the board of the run, if it takes pictures."""
    board = session.run.board
    if board is None or not board.shows_pictures:
        return
    made = session.task.pictures(session.average.module, session.valid)
    for name, image in made.items():
        board.picture(session.progress.step, name, image)


def _step(session: Session, reader: ReadAhead, rate: float) -> dict[str, float]:
    """Take one optimizer step. Returns its scalars.

    Raises:
        TrainingError: when the gradient is not finite, and the run is not to go on without the
            step; the state before it is saved.
    """
    fabric = session.fabric
    config = session.config
    # No scheduler: the rate is a function of the progress, which checkpoints hold.
    for group in session.optimizer.param_groups:
        group["lr"] = rate
    session.wrapped.train()
    # Dropout is drawn by the network as it goes, so each process has numbers of its own.
    torch.manual_seed(mix(config.seed, session.progress.step, fabric.global_rank))
    # A codebook learns while it is passed: what a batch that turns out bad taught it must not stay.
    buffers = [buffer.clone() for buffer in learned_buffers(session.task.module)]
    start = fabric.global_rank * (config.batch // fabric.world_size)
    totals: dict[str, torch.Tensor] = {}
    for count, (part, read) in enumerate(reader.step(session.progress.step), start=1):
        place = BatchPart(start, config.batch)
        start += len(part)
        # The same numbers in each pass and process: random changes follow the place in the batch.
        generator = _generator_of_changes(session)
        x, labels = session.examples.batch(part, generator, fabric.device, place, read)
        # Gradients are shared between processes once, after the last pass.
        more_passes = count < config.accumulate
        with fabric.no_backward_sync(session.wrapped, enabled=more_passes):
            figures = session.wrapped(x, labels)
            fabric.backward(figures["loss"] / config.accumulate)
        for name, value in figures.items():
            share = value.detach().to(fabric.device, torch.float64) / config.accumulate
            totals[name] = totals[name] + share if name in totals else share
    if session.divided:
        share_whole_gradients(session.task.parameters())
    _add_penalty(session)
    norm = _clip(session)
    figures_of_step = _mean_figures(totals)
    # Gradient and figures are those of the whole batch, so that all processes decide alike.
    if not math.isfinite(norm):
        _undo_step(session, buffers)
        _answer_bad_step(session, figures_of_step["loss"], norm, rate)
        return {**figures_of_step, "gradient_norm": norm}
    session.progress.bad_in_a_row = 0
    # From here on nothing of this step can be taken back.
    session.optimizer.step()
    session.optimizer.zero_grad()
    return {**figures_of_step, "gradient_norm": norm}


def _generator_of_changes(session: Session) -> torch.Generator:
    """Source of the augmentation of the next step, equal in all processes."""
    seed = mix(session.config.seed, session.progress.step, 0)
    return torch.Generator().manual_seed(mix(seed, 1))


def _mean_figures(totals: dict[str, torch.Tensor]) -> dict[str, float]:
    """The figures of a step, as means over all processes."""
    values = mean_over_processes(torch.stack(list(totals.values())))
    return dict(zip(totals, values.tolist(), strict=True))


def _add_penalty(session: Session) -> None:
    """Add the gradient of the L2 penalty, which is alike in every process."""
    if session.config.l2:
        add_penalty(session.optimizer, session.config.l2)


def _clip(session: Session) -> float:
    """Scale the gradient down to the largest norm that is allowed. Returns the norm before."""
    # The norm is wanted in any case: it shows a gradient that is not finite.
    if session.divided:
        largest = session.config.clip or math.inf
        return float(clip_gradient(session.task.parameters(), largest))
    if not session.config.clip:
        gradients = [p.grad for p in session.task.parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients))
    norm = session.fabric.clip_gradients(
        session.wrapped, session.optimizer, max_norm=session.config.clip, error_if_nonfinite=False
    )
    return float(norm)  # type: ignore[arg-type]


def _undo_step(session: Session, buffers: list[torch.Tensor]) -> None:
    """Drop the gradient of a bad step and what it taught the codebooks."""
    session.optimizer.zero_grad()
    with torch.no_grad():
        for buffer, before in zip(learned_buffers(session.task.module), buffers, strict=True):
            buffer.copy_(before)


def _answer_bad_step(session: Session, loss: float, norm: float, rate: float) -> None:
    """Leave a bad step out, or go back, or end the run, as ``train.on_nonfinite`` has it.

    Raises:
        TrainingError: when the run is to end; a checkpoint is saved.
    """
    config = session.config
    progress = session.progress
    bad_steps.count_bad_step(progress)
    if not bad_steps.goes_on(config, progress):
        _save_checkpoint(session)
        raise bad_steps.bad_step_error(config, progress, loss, norm, rate)
    back_to = None
    # Before the first checkpoint the step is left out.
    if config.on_nonfinite == "rollback" and session.checkpoints:
        back_to = session.checkpoints[-1]
        tensors = checkpoint.read_step(session.run.path, back_to)
        module = session.task.module
        checkpoint.restore(tensors, module, session.average.module, session.optimizer)
        session.average.take_parts(module)
    if session.fabric.is_global_zero:
        session.say(bad_steps.bad_step_line(progress, loss, back_to))


def _validate_and_save(session: Session) -> None:
    """Validate, write a checkpoint, save the model if it is the best; count the time of all that.

    The first process decides whether the model is the best, so all reach the same barriers.
    """
    progress = session.progress
    ending = session.share >= 1
    before = progress.seconds
    better = validate(session)
    # At the end the verdict says the same.
    if not ending:
        _compare_with_expectation(session)
    # The time that it took counts towards the minutes of the run.
    progress.validations += 1
    progress.seconds = session.read_clock()
    progress.validating += progress.seconds - before
    # A validation that took longer than the time between two of them is not made up for.
    progress.validations = max(
        progress.validations, math.floor(session.share * schedule.VALIDATIONS)
    )
    _save_checkpoint(session)
    if better:
        keep(session)
    progress.seconds = session.read_clock()
    if not ending:
        # The end of the run will take a validation and a save like this one.
        took = progress.seconds - before
        progress.reserve = session.limits.reserve(took, session.pace.step_seconds)


def _save_checkpoint(session: Session) -> None:
    """Write a checkpoint. All processes must call this; the first one writes."""
    writes = session.fabric.is_global_zero
    session.average.gather(session.task.module)
    # Where each has a part of the weights, all take part in putting them together.
    if writes or session.divided:
        state = {
            "progress": session.progress.to_json(),
            "task": session.task.describe(),
            "memory": session.task.memory(),
        }
        # The log must be on disk before the checkpoint that counts on it.
        if writes:
            session.run.flush()
        checkpoint.save(
            session.run.path,
            session.progress.step,
            session.task.module,
            session.average.module,
            session.optimizer,
            state,
            writes,
        )
    step = session.progress.step
    session.checkpoints = [earlier for earlier in session.checkpoints if earlier < step]
    session.checkpoints.append(step)
    if writes:
        checkpoint.drop(session.run.path, session.checkpoints)
    session.fabric.barrier()


def _save_status(session: Session, status: str) -> None:
    """Write to ``run.json`` how the run stands."""
    session.run.update(status=status, progress=session.progress.to_json())


def _with_advice(session: Session, error: ArtifactError) -> ArtifactError:
    """An error of writing, with what to do about it."""
    restart = "starts again: there was no checkpoint yet"
    if session.checkpoints:
        restart = f"goes on from the checkpoint of step {session.checkpoints[-1]}"
    return ArtifactError(
        f"training stopped after step {session.progress.step}: {error}. Make space (or put right"
        f" what else is wrong); then tessella train --resume {session.run.path} {restart}"
    )


def _stopped(session: Session) -> bool:
    """Whether any process got a signal to stop."""
    if session.fabric.world_size == 1:
        return session.stop.is_set()
    # A signal may reach one process only, and all must leave the loop at the same step, with the
    # same status.
    status = torch.tensor(float(session.stop.status), device=session.fabric.device)
    most = session.fabric.all_reduce(status, reduce_op="max")
    assert isinstance(most, torch.Tensor)
    # A signal that came after the exchange counts at the next step: the others know nothing of it.
    if most == 0:
        return False
    session.stop.status = int(most)
    session.stop.set()
    return True


def _report_step(
    session: Session, bar: progress_bars.ProgressBar, figures: dict[str, float], rate: float
) -> None:
    """Log every tenth step, and show loss and remaining time."""
    progress = session.progress
    if session.pace.steps == PACE_KNOWN:
        _correct_forecast(session)
    if progress.step % LOG_EVERY != 1 and LOG_EVERY > 1:
        return
    entry: dict[str, object] = {
        "step": progress.step,
        "seconds": round(progress.seconds, 3),
        "learning_rate": rate,
    }
    session.run.log(entry | figures)
    bar.set_postfix_str(_bar_text(session, figures["loss"]))


def _bar_text(session: Session, loss: float) -> str:
    """Remaining time, loss and best validation, for the progress bar."""
    best = "no validation yet"
    if session.progress.best_step:
        best = f"best valid {session.task.shown_metric} {session.progress.best:.4f}"
    left = schedule.duration(_seconds_left(session))
    return f"{left} left, {loss:.4f} {session.task.shown_unit}, {best}"


def _correct_forecast(session: Session) -> None:
    """Say so where steps take much longer, or much less time, than the forecast said."""
    measured = session.pace.step_seconds
    if not session.forecast_seconds or not measured or not session.fabric.is_global_zero:
        return
    # Small differences are of no interest to anybody.
    ratio = measured / session.forecast_seconds
    if 1 / PACE_DIFFERS <= ratio <= PACE_DIFFERS:
        return
    session.say(
        f"steps take {measured:.2g} s, not {session.forecast_seconds:.2g} s as forecast:"
        f" about {schedule.duration(_seconds_left(session))} left"
    )


def _compare_with_expectation(session: Session) -> None:
    """Say how far the run is from the curve of its recipe, where that has one."""
    if session.expectation is None or not session.fabric.is_global_zero:
        return
    progress = session.progress
    remark = session.expectation.remark(progress.step, progress.best)
    if remark:
        session.say(f"best {session.task.shown_metric} {progress.best:.4f}, {remark}")


def _seconds_left(session: Session) -> float:
    return session.limits.seconds_left(session.progress, session.pace.step_seconds)


def _progress_bar(session: Session) -> progress_bars.ProgressBar:
    return progress_bars.create(
        total=1000,
        initial=round(session.share * 1000),
        disable=not session.fabric.is_global_zero,
        bar_format="{percentage:3.0f}% |{bar}| {elapsed}{postfix}",
    )

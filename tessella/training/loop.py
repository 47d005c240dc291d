"""The one training loop, for density models, tokenizers and priors: set up, main, fit, validate.

Nothing of a data loader needs saving, since the data order, the augmentation and the dropout of a
step are pure functions of the seed and the step. A run ends at the first of its limits; the share
of it that has passed drives the learning rate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]

from tessella.config import TrainConfig
from tessella.errors import ArtifactError, ConfigError, TrainingError
from tessella.pipeline import pick_device
from tessella.training import checkpoint
from tessella.training.averaging import Average, learned_buffers
from tessella.training.examples import Examples, Order, mix
from tessella.training.run_directory import Progress, RunDirectory
from tessella.training.tasks import Task

try:
    from lightning_fabric import Fabric
except ImportError:  # the same engine as a part of the lightning package
    from lightning.fabric import Fabric  # type: ignore[no-redef]

VALIDATIONS = 20
"""Validations of a run whose recipe does not say."""

VALIDATING = 0.1
"""Share of the time of a run of so many minutes that they take at most, the first and the last
aside."""

FINAL_RATE = 0.01
"""Learning rate at the end, as a share of its peak."""

LOG_EVERY = 10
"""Steps between lines of the log."""


@dataclass
class Session:
    """What the loop works on, put together by :func:`setup`."""

    fabric: Fabric
    task: Task
    wrapped: Any
    optimizer: Any
    average: Average
    examples: Examples
    valid: Examples
    config: TrainConfig
    run: RunDirectory
    progress: Progress
    stop: threading.Event
    checkpoints: list[int] = field(default_factory=list)
    """Steps of the checkpoints that are known to be whole: written, or resumed from."""


UNDECAYED = ("bias", "hidden_bias", "gain")
"""Parameters of more than one dimension that weight decay leaves alone, as it does all of one
dimension."""


def create_fabric(config: TrainConfig) -> Fabric:
    """The engine: devices and precision.

    Raises:
        ConfigError: for a device or a precision that is not there.
    """
    device = pick_device(config.device).type
    if device == "cuda" and config.devices > torch.cuda.device_count():
        raise ConfigError(
            f"devices={config.devices}, but this machine has {torch.cuda.device_count()} CUDA devices"
        )
    precisions = {"32": "32-true", "bf16": "bf16-mixed"}
    if config.precision not in ("auto", *precisions):
        raise ConfigError(f"precision must be auto, 32 or bf16, got {config.precision!r}")
    fast = device == "cuda" and torch.cuda.is_bf16_supported()
    half = config.precision == "bf16" or (config.precision == "auto" and fast)
    return Fabric(
        accelerator=device,
        devices=config.devices,
        strategy="ddp" if config.devices > 1 else "auto",
        precision="bf16-mixed" if half else "32-true",
    )


def setup(
    fabric: Fabric,
    task: Task,
    examples: Examples,
    valid: Examples,
    config: TrainConfig,
    run: RunDirectory,
) -> Session:
    """Move everything to its device and make the optimizer and the average."""
    if config.batch % (config.accumulate * fabric.world_size):
        raise ConfigError(
            f"batch={config.batch} must be divisible by accumulate x devices = {config.accumulate * fabric.world_size}"
        )
    average = Average(task.module, config.average)
    average.module.to(fabric.device)
    trained = [
        (name.rpartition(".")[2], p) for name, p in task.named_parameters() if p.requires_grad
    ]
    matrices = [p for name, p in trained if p.dim() > 1 and name not in UNDECAYED]
    others = [p for name, p in trained if p.dim() <= 1 or name in UNDECAYED]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        fused=fabric.device.type in ("cpu", "cuda"),
    )
    wrapped, optimizer = fabric.setup(task, optimizer)
    return Session(
        fabric,
        task,
        wrapped,
        optimizer,
        average,
        examples,
        valid,
        config,
        run,
        Progress(),
        threading.Event(),
    )


@contextlib.contextmanager
def compiled(networks: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Within, these networks run compiled.

    Raises:
        ConfigError: where there is no compiler.
    """
    if device.type == "cpu" and not any(
        shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")
    ):
        raise ConfigError(
            "train.compile needs a C++ compiler (CXX names one), and there is none: leave it out"
        )
    for network in networks:
        network.compile()
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None


def main(session: Session) -> Progress:
    """Train from where the progress is to the end of the run, or to a signal; always leaves a
    checkpoint behind.

    Raises:
        TrainingError: when the loss is not finite; the last good state is kept.
        ArtifactError: when something cannot be written; what was written before stays good.
    """
    try:
        with _signals(session.stop), torch.random.fork_rng(devices=_cuda(session.fabric)):
            fit(session)
        share = passed(session.config, session.progress, len(session.examples))
        session.run.close()
        _note(session, "finished" if share >= 1 else "interrupted")
    except (TrainingError, ArtifactError) as error:
        session.run.close()
        with contextlib.suppress(
            ArtifactError
        ):  # a full disk takes this note no more than what came before
            _note(session, "failed")
        if isinstance(error, TrainingError):
            raise
        last = session.checkpoints[-1] if session.checkpoints else 0
        kept = (
            f"goes on from the checkpoint of step {last}"
            if last
            else "starts again: there was no checkpoint yet"
        )
        raise ArtifactError(
            f"training stopped after step {session.progress.step}: {error}. Make space (or put right what else is "
            f"wrong); then tessella train --resume {session.run.path} {kept}"
        ) from error
    return session.progress


def fit(session: Session) -> None:
    """Steps, with a validation and a checkpoint now and then."""
    config, progress, run = session.config, session.progress, session.run
    order = Order(len(session.examples), config.batch, config.seed)
    started = time.monotonic() - progress.seconds
    bar = _bar(session)
    share = passed(config, progress, len(session.examples))
    while share < 1 and not _stopped(session):
        rate = config.learning_rate * schedule(share, progress.step, config.warmup)
        figures = _step(session, order, rate)
        progress.step += 1
        session.average.update(session.task.module, progress.step - 1)
        progress.seconds = time.monotonic() - started
        if progress.step % LOG_EVERY == 1 or LOG_EVERY == 1:
            run.log(
                {
                    "step": progress.step,
                    "seconds": round(progress.seconds, 3),
                    "learning_rate": rate,
                    **figures,
                }
            )
            bar.set_postfix_str(
                f"{figures['loss']:.4f} {session.task.unit}, best valid {progress.best:.4f}"
            )
        # All processes go by the clock of the first, or they would part ways.
        progress.seconds = session.fabric.broadcast(progress.seconds)
        share = passed(config, progress, len(session.examples))
        due, better, before = _due(config, progress, share), False, progress.seconds
        if due or share >= 1:
            better = validate(session)
            progress.validations += 1
            progress.seconds = time.monotonic() - started
            progress.seconds = session.fabric.broadcast(progress.seconds)
            progress.validating += progress.seconds - before
            # A validation that took longer than the time between two of them is not made up for.
            share_now = passed(config, progress, len(session.examples))
            progress.validations = max(progress.validations, math.floor(share_now * VALIDATIONS))
        if (
            due
            or share >= 1
            or (config.checkpoint_every and progress.step % config.checkpoint_every == 0)
        ):
            _save_checkpoint(session)
            if better:
                keep(session)
            progress.seconds = time.monotonic() - started
        bar.update(round(share * 1000) - bar.n)
    if share < 1 or not progress.best_step:
        _save_checkpoint(session)
        if not progress.validations and validate(session, log=False):
            keep(
                session
            )  # so that there is a model to load; a resumed run knows nothing of it, and makes its own
    bar.close()


def validate(session: Session, log: bool = True) -> bool:
    """Measure the averaged weights on held-out examples. Returns whether they are the best so
    far."""
    progress, task, figures = session.progress, session.task, {}
    if session.fabric.is_global_zero:
        figures = task.validate(session.average.module, session.valid, session.config.batch)
    figures = session.fabric.broadcast(figures)
    if log:
        told = {f"valid/{name}": value for name, value in figures.items()}
        session.run.log({"step": progress.step, "seconds": round(progress.seconds, 3), **told})
    if not math.isfinite(figures[task.metric]):
        raise TrainingError(
            f"validation gives {task.metric} = {figures[task.metric]} at step {progress.step}"
        )
    better: bool = figures[task.metric] < progress.best
    if better:
        progress.best, progress.best_step, progress.figures = (
            figures[task.metric],
            progress.step,
            figures,
        )
    return better


def keep(session: Session) -> None:
    """Save the averaged weights, which are the best so far, as the model of the run.

    This comes after the checkpoint of the same step, never before it: a model that is missing, or
    half replaced, is saved again by a resumed run, from that checkpoint; and no model is there that
    no checkpoint knows of.
    """
    progress = session.progress
    facts = {"training": {"steps": progress.step, "seconds": round(progress.seconds, 1)}}
    if session.fabric.is_global_zero:
        session.task.save(
            session.average.module, session.run.path, {"validation": progress.figures, **facts}
        )
    session.fabric.barrier()


def passed(config: TrainConfig, progress: Progress, n: int) -> float:
    """Share of the run that has passed: the largest over its limits."""
    shares = [0.0]
    if config.steps:
        shares.append(progress.step / config.steps)
    if config.epochs:
        shares.append(progress.step * config.batch / (config.epochs * n))
    if config.minutes:
        shares.append(progress.seconds / (60 * config.minutes))
    return min(1.0, max(shares))


def schedule(share: float, step: int, warmup: int) -> float:
    """Learning rate as a share of its peak: linear warm-up over steps, half a cosine over the
    run."""
    cosine = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * share))
    return cosine * min(1.0, (step + 1) / warmup) if warmup else cosine


@dataclass(frozen=True)
class Forecast:
    """What a run will take, measured on a copy before it starts."""

    parameters: int
    step_seconds: float
    epoch_seconds: float
    memory_bytes: int
    """Peak of the process (CPU) or of the device."""


def forecast(session: Session) -> Forecast:
    """Time two steps forward and backward on a copy of the task, which leaves the run untouched."""
    import copy

    config, device = session.config, session.fabric.device
    with torch.random.fork_rng(devices=_cuda(session.fabric)):
        trial = copy.deepcopy(session.task).train()
        indices = torch.arange(
            config.batch // config.accumulate // session.fabric.world_size
        ) % len(session.examples)
        times = []
        for _ in range(2):
            started = time.monotonic()
            x, labels = session.examples.batch(indices, torch.Generator().manual_seed(0), device)
            with session.fabric.autocast():
                loss = trial(x, labels)["loss"]
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.monotonic() - started)
    seconds = min(times) * config.accumulate
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak
    parameters = sum(p.numel() for p in session.task.parameters())
    return Forecast(parameters, seconds, seconds * len(session.examples) / config.batch, memory)


def _step(session: Session, order: Order, rate: float) -> dict[str, float]:
    """One optimizer step. Returns its scalars."""
    fabric, config, step = session.fabric, session.config, session.progress.step
    for group in session.optimizer.param_groups:
        group["lr"] = rate
    session.wrapped.train()
    rank, world = fabric.global_rank, fabric.world_size
    # Each process draws its own augmentation and dropout, and sees its own part of the batch.
    seed = mix(config.seed, step, rank)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(mix(seed, 1))
    # A codebook learns while it is passed: what a batch that turns out bad taught it must not stay.
    buffers = [buffer.clone() for buffer in learned_buffers(session.task.module)]
    totals: dict[str, float] = {}
    for count, part in enumerate(
        order.at(step).chunk(world)[rank].chunk(config.accumulate), start=1
    ):
        x, labels = session.examples.batch(part, generator, fabric.device)
        with fabric.no_backward_sync(session.wrapped, enabled=count < config.accumulate):
            figures = session.wrapped(x, labels)
            fabric.backward(figures["loss"] / config.accumulate)
        for name, value in figures.items():
            totals[name] = totals.get(name, 0.0) + float(value.detach()) / config.accumulate
    _penalize(session)
    norm = _clip(session)
    if not math.isfinite(
        norm
    ):  # the gradient is shared by all processes, the loss is each one's own
        session.optimizer.zero_grad()
        with torch.no_grad():
            for buffer, before in zip(learned_buffers(session.task.module), buffers, strict=True):
                buffer.copy_(before)
        _save_checkpoint(session)
        raise TrainingError(
            f"the loss became {totals['loss']} (gradient norm {norm}) at step {step + 1}; "
            "the state before it is saved. "
            f"Resume with a lower rate, for example train.learning_rate={rate / 3:.2g}, or a smaller train.clip"
        )
    session.optimizer.step()
    session.optimizer.zero_grad()
    return {**totals, "gradient_norm": norm}


def _penalize(session: Session) -> None:
    """Add the gradient of the L2 penalty, which every process has alike."""
    if session.config.l2:
        for parameter in session.optimizer.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach(), alpha=session.config.l2)


def _clip(session: Session) -> float:
    if not session.config.clip:
        grads = [p.grad for p in session.task.parameters() if p.grad is not None]
        return float(nn.utils.get_total_norm(grads))
    norm = session.fabric.clip_gradients(
        session.wrapped, session.optimizer, max_norm=session.config.clip, error_if_nonfinite=False
    )
    return float(norm)  # type: ignore[arg-type]


def _save_checkpoint(session: Session) -> None:
    if session.fabric.is_global_zero:
        state = {"progress": dataclasses.asdict(session.progress), "task": session.task.describe()}
        state["memory"] = session.task.memory()
        task, average, out = session.task.module, session.average.module, session.run.path
        session.run.flush()
        checkpoint.save(out, session.progress.step, task, average, session.optimizer, state)
        session.checkpoints = [
            *(s for s in session.checkpoints if s < session.progress.step),
            session.progress.step,
        ]
        checkpoint.drop(out, session.checkpoints)
    session.fabric.barrier()


def _note(session: Session, status: str) -> None:
    """Write to ``run.json`` how the run stands."""
    session.run.update(status=status, progress=dataclasses.asdict(session.progress))


def _stopped(session: Session) -> bool:
    """Whether any process was told to stop."""
    if session.fabric.world_size == 1:
        return session.stop.is_set()
    flag = torch.tensor(float(session.stop.is_set()), device=session.fabric.device)
    total = session.fabric.all_reduce(flag, reduce_op="sum")
    assert isinstance(total, torch.Tensor)
    return bool(total > 0)


def _due(config: TrainConfig, progress: Progress, share: float) -> bool:
    """Whether it is time to validate."""
    if config.validate_every:
        return progress.step % config.validate_every == 0
    if config.minutes and progress.validating > VALIDATING * progress.seconds:
        return False
    return share * VALIDATIONS >= progress.validations + 1


def _bar(session: Session) -> Any:
    shown = session.fabric.is_global_zero and sys.stderr.isatty()
    progress = passed(session.config, session.progress, len(session.examples))
    return tqdm(
        total=1000,
        initial=round(progress * 1000),
        disable=not shown,
        bar_format="{percentage:3.0f}% |{bar}| {elapsed}<{remaining} {postfix}",
    )


def _cuda(fabric: Fabric) -> list[torch.device]:
    return [fabric.device] if fabric.device.type == "cuda" else []


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run after the current step, with a checkpoint; a second Ctrl-C is
    not waited for."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

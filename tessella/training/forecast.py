"""Time and memory that a run will take, measured before it starts."""

from __future__ import annotations

import contextlib
import copy
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.distributed.fsdp import FSDPModule

from tessella.training.averaging import learned_buffers
from tessella.training.engine import Fabric, cuda_devices
from tessella.training.examples import Examples
from tessella.training.stream import Stream
from tessella.training.tasks import Task


@dataclass(frozen=True)
class Forecast:
    """Size and speed of a run."""

    parameters: int
    step_seconds: float
    epoch_seconds: float
    memory_bytes: int
    """Peak of the process (CPU) or of the device."""


def forecast(
    fabric: Fabric, task: Task, examples: Examples | Stream, batch: int, passes: int
) -> Forecast:
    """Time two steps forward and backward on a copy of the task.

    The run stays untouched: weights, codebooks and random numbers are the copy's. A task that is
    divided among processes has no copy; it is put back as it was. Other programs on
    the machine make the figure wrong, so the loop measures again while it runs.

    Args:
        batch: examples of a step, over all devices.
        passes: into which a step is split.
    """
    device = fabric.device
    part = batch // passes // fabric.world_size
    indices = torch.arange(part) % len(examples)
    times: list[float] = []
    with torch.random.fork_rng(devices=cuda_devices(fabric)), _trial(task) as trial:
        for _ in range(2):
            started = time.monotonic()
            x, labels = examples.batch(indices, torch.Generator().manual_seed(0), device)
            with fabric.autocast():
                loss = trial(x, labels)["loss"]
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.monotonic() - started)
    if isinstance(examples, Stream):
        examples.rewind()
    # The first one pays for what is set up once.
    step_seconds = min(times) * passes
    return Forecast(
        parameters=sum(p.numel() for p in task.parameters()),
        step_seconds=step_seconds,
        epoch_seconds=step_seconds * len(examples) / batch,
        memory_bytes=_peak_memory(device),
    )


@contextlib.contextmanager
def _trial(task: Task) -> Iterator[Task]:
    """A task in training mode whose steps leave no trace."""
    if not isinstance(task, FSDPModule):
        # The steps train codebooks and leave gradients behind.
        yield copy.deepcopy(task).train()
        return
    buffers = [buffer.clone() for buffer in learned_buffers(task.module)]
    yield task.train()
    task.zero_grad()
    with torch.no_grad():
        for buffer, before in zip(learned_buffers(task.module), buffers, strict=True):
            buffer.copy_(before)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

"""How many images a step takes: checked against the memory of the machine, or chosen by it."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import torch

from tessella import files
from tessella.config import TrainConfig
from tessella.errors import ConfigError
from tessella.nn.outline import machine_memory
from tessella.pipeline import pick_device
from tessella.training.examples import Examples
from tessella.training.prepare import TrainingData
from tessella.training.stream import Stream
from tessella.training.tasks import Task

COPIES = 5
"""Weights, gradient, two averages of the optimizer and averaged weights."""

MEMORY_SHARE = 0.5
"""Share of the memory of a machine that a chosen batch may fill."""

BACKWARD = 2
"""Memory of a step, in what its forward pass keeps: the backward pass needs about as much again."""


def largest_batch(
    task: Task, examples: Examples | Stream, config: TrainConfig, processes_here: int
) -> int:
    """The largest power of two of images that one process can pass at a time, at most all.

    It is measured before the process meets the others, so that nothing is waited for. On a GPU
    growing batches are tried until one does not fit; on a CPU, where a program that takes too much
    is killed, it follows from what one image keeps for the backward pass.

    Args:
        task: untouched; a copy is tried.
        examples: of training.
        config: says which device.
        processes_here: processes that share the memory of this machine.

    Raises:
        ConfigError: when not even one image fits.
    """
    device = pick_device(config.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    most = max(1, len(examples))
    fits = 0
    batch = 1
    if device.type == "cuda":
        while batch <= most and _fits_on_gpu(task, examples, batch, device):
            fits = batch
            batch *= 2
    else:
        weights, each = _bytes_kept(task, examples)
        room = MEMORY_SHARE * machine_memory() / processes_here - COPIES * weights
        while batch <= most and BACKWARD * batch * each <= room:
            fits = batch
            batch *= 2
    if not fits:
        raise ConfigError(
            "train.batch=0 takes the largest batch that fits, and one image does not: take"
            " train.checkpointing=true or a smaller model"
        )
    return fits


def recorded_batch(out: Path) -> int:
    """The batch that a run has chosen before; 0 where it has none yet."""
    path = out / "run.json"
    if not path.exists():
        return 0
    recipe = files.read_json_object(path).get("recipe")
    train = recipe.get("train") if isinstance(recipe, dict) else None
    batch = train.get("batch") if isinstance(train, dict) else None
    return batch if isinstance(batch, int) else 0


def _bytes_kept(task: Task, examples: Examples | Stream) -> tuple[int, int]:
    """Bytes of the weights, and of what a pass of one image keeps for the gradient."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    weights = sum(p.numel() * p.element_size() for p in task.parameters())
    totals: list[int] = []
    # Two sizes, so that what does not grow with the batch, such as the weights, falls out.
    for batch in (1, 2):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            loss = _pass(copy.deepcopy(task), examples, batch, torch.device("cpu"))
        # Freed memory is used again, so nothing may be freed before it is counted.
        totals.append(sum(kept.values()))
        del loss
    return weights, max(1, totals[1] - totals[0])


def _fits_on_gpu(task: Task, examples: Examples | Stream, batch: int, device: torch.device) -> bool:
    """Whether a pass forward and backward fits beside what the optimizer will take."""
    weights = sum(p.numel() * p.element_size() for p in task.parameters())
    torch.cuda.empty_cache()
    try:
        # Held while the pass is tried: the optimizer's averages and the averaged weights.
        others = torch.empty(3 * weights, dtype=torch.uint8, device=device)
        trial = copy.deepcopy(task).to(device)
        with torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_bf16_supported()):
            loss = _pass(trial, examples, batch, device)
        loss.backward()
        torch.cuda.synchronize(device)
        del others
    except torch.OutOfMemoryError:
        return False
    return True


def _pass(
    task: Task, examples: Examples | Stream, batch: int, device: torch.device
) -> torch.Tensor:
    """The loss of a batch, whose random numbers leave no trace."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        indices = torch.arange(batch) % len(examples)
        x, labels = examples.batch(indices, torch.Generator().manual_seed(0), device)
        if isinstance(examples, Stream):
            examples.rewind()
        return task.train()(x, labels)["loss"]


def check_batch(train: TrainingData, batch: int) -> None:
    """Refuse a batch that does not fit into this machine's memory.

    Raises:
        ConfigError: naming what it takes and what there is.
    """
    # Symbols become int64, and an index stands beside each example.
    itemsize = 1 if train.examples.pixels else 8
    bytes_each = itemsize * int(np.prod(train.examples.example_shape)) + 8
    needed = batch * bytes_each
    memory = machine_memory()
    if needed > memory // 4:
        raise ConfigError(
            f"train.batch={batch} examples take {files.byte_count(needed)} before the"
            f" network sees them, and this machine has {files.byte_count(memory)}; there are"
            f" {len(train.examples)} training images: take a smaller batch"
        )

"""What one pass over some images takes: bytes, operations, calls; as a line in their number.

Two small batches are enough: the tensors of a pass and its products grow evenly with the images,
beside what is there for the weights alone, so ``bytes = fixed + each * images``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tessella.planning.held_bytes import WeightBytes, weight_bytes
from tessella.planning.live_memory import LiveMemory, gradients_reported, product_counter
from tessella.planning.recipe_task import PlannedTask

BATCHES = (2, 3)
"""Images of the passes that are counted. With one image some operations are different ones."""

LARGEST_REAL_PASS = 3e10
"""Rough operations of an image up to which a pass is made in earnest; beyond that only the shapes
of its tensors are followed, which costs the same for all sizes."""


@dataclass(frozen=True)
class Line:
    """A quantity that grows evenly with the images of a pass."""

    fixed: float
    each: float

    def at(self, images: float) -> float:
        """The quantity for so many images."""
        return self.fixed + self.each * images


@dataclass(frozen=True)
class StepCounts:
    """What a forward and a backward pass take, for any number of images.

    All memory is beyond weights and gradients, unless it says otherwise.
    """

    held: WeightBytes
    """What is held for the weights, with or without a pass."""
    activations: Line
    """Bytes that are kept between the passes, without what the head keeps."""
    logits: Line
    """Bytes of the head's parameters, and of all that is kept to differentiate its loss."""
    peak: Line
    """Most bytes at any moment."""
    gradients_at_peak: Line
    """Bytes of the gradients of the weights that exist at that moment, in a first pass."""
    flops: Line
    """Operations of products and convolutions."""
    calls: Line
    """Operations that are called, views left out."""
    moved: Line
    """Bytes that operations read and write."""
    uncounted: tuple[str, ...]
    """Operations that multiply and are not among ``flops``."""
    followed: bool
    """Whether the passes were made of shapes alone."""


@dataclass(frozen=True)
class _Pass:
    """The counts of one pass."""

    activations: int
    logits: int
    peak: int
    gradients_at_peak: int
    flops: int
    calls: int
    moved: int
    uncounted: tuple[str, ...]


def count_step(planned: PlannedTask, checkpointing: bool, half: bool) -> StepCounts:
    """Count what a pass takes, on two small batches.

    Args:
        planned: what is trained.
        checkpointing: whether activations are computed again.
        half: whether products are in bfloat16.

    Raises:
        ConfigError: for checkpointing where it does not serve.
    """
    followed = planned.rough_flops() > LARGEST_REAL_PASS
    if followed:
        try:
            passes = _both_passes(planned, checkpointing, half, followed=True)
        except RuntimeError:
            # Quantizers and the like look at values, which shapes do not have.
            followed = False
    if not followed:
        passes = _both_passes(planned, checkpointing, half, followed=False)
    held, few, more = passes
    return StepCounts(
        held=held,
        activations=_line(few.activations, more.activations),
        logits=_line(few.logits, more.logits),
        peak=_line(few.peak, more.peak),
        gradients_at_peak=_line(few.gradients_at_peak, more.gradients_at_peak),
        flops=_line(few.flops, more.flops),
        calls=_line(few.calls, more.calls),
        moved=_line(few.moved, more.moved),
        uncounted=more.uncounted,
        followed=followed,
    )


def _line(few: float, more: float) -> Line:
    """The line through the counts of both batches."""
    each = (more - few) / (BATCHES[1] - BATCHES[0])
    # Neither part can be negative, whatever is rounded within.
    each = max(0.0, each)
    return Line(max(0.0, few - each * BATCHES[0]), each)


def _both_passes(
    planned: PlannedTask, checkpointing: bool, half: bool, followed: bool
) -> tuple[WeightBytes, _Pass, _Pass]:
    mode: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if followed:
        mode = FakeTensorMode()
    with mode:
        task = planned.build()
        task.train()
        few, more = BATCHES
        with task.adapted(checkpointing, condition_dropout=0.1):
            return (
                weight_bytes(task, planned.recipe.train),
                _one_pass(planned, task, few, half),
                _one_pass(planned, task, more, half),
            )


def _one_pass(planned: PlannedTask, task: nn.Module, images: int, half: bool) -> _Pass:
    """Make one pass over zeros and count."""
    x, labels = planned.examples(images)
    known = [*task.parameters(), *task.buffers(), x]
    if labels is not None:
        known.append(labels)
    memory = LiveMemory(known)
    with contextlib.ExitStack() as stack:
        # Dropout and quantizers draw; the caller's generator stays as it is.
        stack.enter_context(torch.random.fork_rng(devices=[]))
        products = stack.enter_context(product_counter())
        stack.enter_context(memory)
        stack.enter_context(gradients_reported(task, memory))
        logits = stack.enter_context(_heads_watched(planned, task, memory))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = task(x, labels)["loss"]
        kept = memory.live
        loss.backward()
    for parameter in task.parameters():
        parameter.grad = None
    of_head = logits.kept(kept)
    return _Pass(
        activations=kept - of_head,
        logits=of_head,
        peak=memory.peak_without_gradients,
        gradients_at_peak=memory.gradients_at_peak,
        flops=products.get_total_flops(),
        calls=memory.operations,
        moved=memory.moved,
        uncounted=tuple(sorted(memory.uncounted)),
    )


@dataclass
class _HeadMemory:
    """Memory of the heads of density models: what is kept from a network's last layer on."""

    network_ended: list[int]
    """Live bytes when each network had made its parameters, without these."""
    head_began: list[int]
    """Live bytes when the next network began."""

    def kept(self, at_the_end: int) -> int:
        """Bytes that all heads keep, once the loss is there."""
        total = 0
        if not self.head_began:
            return total
        # A hierarchy has a network and a head for each grid, one after the other.
        ends = [*self.head_began[1:], at_the_end]
        for start, end in zip(self.network_ended, ends, strict=True):
            total += max(0, end - start)
        return total


@contextlib.contextmanager
def _heads_watched(
    planned: PlannedTask, task: nn.Module, memory: LiveMemory
) -> Iterator[_HeadMemory]:
    """Note the memory before and after each density model of the task."""
    found = _HeadMemory([], [])

    def begin(*_: object) -> None:
        found.head_began.append(memory.live)

    def end(module: nn.Module, inputs: object, parameters: object) -> None:
        size = 0
        if isinstance(parameters, torch.Tensor):
            size = parameters.untyped_storage().nbytes()
        found.network_ended.append(memory.live - size)

    handles = []
    for model in planned.density_models(task):
        handles.append(model.register_forward_pre_hook(begin))
        handles.append(model.register_forward_hook(end))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()

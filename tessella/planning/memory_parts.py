"""Memory of a training step on one device, by what it holds."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tessella.planning.accelerators import Hardware
from tessella.planning.held_bytes import WeightBytes
from tessella.planning.step_counts import StepCounts

LARGEST_BATCH = 1 << 20
"""Images beyond which nobody asks what fits."""


@dataclass(frozen=True)
class MemoryParts:
    """Bytes on one device at the fullest moment of a step."""

    program: float
    """Libraries and context."""
    weights: float
    gradients: float
    buckets: float
    """Gradients on their way to other devices."""
    gathered: float
    """Weights and gradients of the block at work, where they are spread over devices."""
    moments: float
    average: float
    activations: float
    """What the backward pass needs of the network."""
    logits: float
    """The parameters of the distributions, and what their loss keeps."""
    at_work: float
    """What the operations at the fullest moment hold beside all that."""

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


def memory_parts(
    held: WeightBytes,
    counts: StepCounts,
    images: float,
    passes: int,
    full: bool,
    hardware: Hardware,
) -> MemoryParts:
    """Memory of a step on one device.

    Args:
        held: for the weights.
        counts: of a pass.
        images: of a pass on this device.
        passes: of a step, ``train.accumulate``.
        full: whether weights, gradients, moments and average are spread over all devices.
        hardware: the devices.
    """
    world = hardware.world
    share = 1 / world if full else 1.0
    gradients = held.gradients * share
    # In a single pass on one device gradients come as activations go.
    if world == 1 and passes == 1:
        gradients = min(gradients, counts.gradients_at_peak.at(images))
    # DistributedDataParallel copies gradients into buckets that it sends.
    buckets = held.gradients if world > 1 and not full else 0
    gathered = 2 * held.largest_block if full and world > 1 else 0
    activations = counts.activations.at(images)
    logits = counts.logits.at(images)
    at_work = max(0.0, counts.peak.at(images) - activations - logits)
    # At the end of the backward pass all gradients are there, and nothing else of the step.
    missing = held.gradients * share - gradients - activations - logits - at_work
    return MemoryParts(
        program=hardware.accelerator.program,
        weights=(held.weights + held.spare) * share,
        gradients=gradients,
        buckets=buckets,
        gathered=gathered,
        moments=held.moments * share,
        average=held.average * share,
        activations=activations,
        logits=logits,
        at_work=at_work + max(0.0, missing),
    )


def fits(parts: MemoryParts, hardware: Hardware) -> bool:
    """Whether a step fits into a device, with room for the gaps of an allocator."""
    return parts.total <= hardware.usable * hardware.device_memory


def largest_batch(held: WeightBytes, counts: StepCounts, full: bool, hardware: Hardware) -> int:
    """Most images of a pass that fit into a device; 0 where not even one does."""
    low = 0
    high = LARGEST_BATCH + 1
    # What low images take fits, and what high images take does not, or is not asked for.
    while high - low > 1:
        middle = (low + high) // 2
        parts = memory_parts(held, counts, middle, 1, full, hardware)
        if fits(parts, hardware):
            low = middle
        else:
            high = middle
    return low

"""Seconds that a device computes for a pass: operations over what a family achieves of the peak.

On a processor the share of the peak is measured, for whole training steps of each family. On GPUs
nothing was measured: there products run at an assumed share of the peak, everything else moves
memory, and no operation takes less than the time to call it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tessella.planning.accelerators import Hardware
from tessella.planning.held_bytes import WeightBytes
from tessella.planning.step_counts import StepCounts

MEASURED_SHARES: Mapping[str, Mapping[str, float]] = {
    "gated-pixelcnn": {"32": 0.64, "bf16": 0.43},
    "pixelcnn": {"32": 0.61, "bf16": 0.43},
    "pixelcnn++": {"32": 0.50, "bf16": 0.27},
    "pixelsnail": {"32": 0.24, "bf16": 0.145},
    "transformer": {"32": 0.58, "bf16": 0.29},
    "row-lstm": {"32": 0.46, "bf16": 0.25},
    "diagonal-bilstm": {"32": 0.35, "bf16": 0.16},
    "lstm": {"32": 0.13, "bf16": 0.05},
    "fvsbn": {"32": 0.21, "bf16": 0.10},
    "nade": {"32": 0.01, "bf16": 0.004},
    "made": {"32": 0.19, "bf16": 0.08},
}
"""Share of the peak that a training step of a family achieves on a processor, by precision, at its
default sizes: the seconds of ``results/training_share.json``, whose operations leave out attention,
which counts here. Wider models achieve more."""

ASSUMED_SHARE = {"32": 0.4, "bf16": 0.25}
"""The same for what was not measured."""

GPU_SHARE = 0.4
"""Share of a GPU's peak that products achieve: assumed, not measured."""

GPU_BANDWIDTH_SHARE = 0.8
"""Share of the bandwidth that other operations achieve: assumed, not measured."""

CALL_SECONDS = 8e-6
"""Least time of an operation on a GPU, which Python has to call: assumed, not measured."""

OPTIMIZER_TOUCHES = 9
"""How often the optimizer and the average read or write a weight or something of its size."""

BACKWARD_SHARE = 2 / 3
"""Share of a pass that is backward: each product of the forward pass has two there."""

BACKWARD_SHARE_RECOMPUTED = 3 / 4
"""The same where activations are computed again."""


@dataclass(frozen=True)
class ComputeTime:
    """Seconds of a device."""

    one_pass: float
    backward: float
    """Of ``one_pass``, the part in which gradients come."""
    optimizer: float
    reason: str
    """How they were found, in a few words."""


def compute_time(
    family: str,
    counts: StepCounts,
    held: WeightBytes,
    images: float,
    precision: str,
    checkpointing: bool,
    shards: int,
    hardware: Hardware,
) -> ComputeTime:
    """Seconds that a device computes in a step.

    Args:
        family: name of the model, the tokenizer, or ``vae``.
        counts: of a pass.
        held: bytes for the weights.
        images: of a pass.
        precision: ``32`` or ``bf16``.
        checkpointing: whether activations are computed again.
        shards: devices over which the weights are spread.
        hardware: the device.
    """
    flops = counts.flops.at(images)
    peak = hardware.peak(precision)
    if hardware.accelerator.is_gpu:
        seconds, reason = _gpu_seconds(counts, images, peak, hardware)
        touched = OPTIMIZER_TOUCHES * held.gradients / shards
        optimizer = touched / (GPU_BANDWIDTH_SHARE * hardware.accelerator.bandwidth)
    else:
        share = MEASURED_SHARES.get(family, ASSUMED_SHARE)[precision]
        seconds = flops / (share * peak)
        known = "measured" if family in MEASURED_SHARES else "assumed"
        reason = f"{flops / 1e9:.3g} GFLOP a pass at {share:.0%} of {peak / 1e9:.3g} GFLOP/s"
        reason += f" (share {known})"
        # The measured share is that of a whole step.
        optimizer = 0.0
    part = BACKWARD_SHARE_RECOMPUTED if checkpointing else BACKWARD_SHARE
    return ComputeTime(seconds, part * seconds, optimizer, reason)


def _gpu_seconds(
    counts: StepCounts, images: float, peak: float, hardware: Hardware
) -> tuple[float, str]:
    """Seconds of a pass on a GPU, and what they are made of."""
    flops = counts.flops.at(images)
    multiplying = flops / (GPU_SHARE * peak)
    moving = counts.moved.at(images) / (GPU_BANDWIDTH_SHARE * hardware.accelerator.bandwidth)
    calling = counts.calls.at(images) * CALL_SECONDS
    if calling > multiplying + moving:
        reason = f"{counts.calls.at(images):,.0f} calls at {1e6 * CALL_SECONDS:.0f} µs (assumed)"
        return calling, reason
    reason = (
        f"{flops / 1e12:.3g} TFLOP a pass at {GPU_SHARE:.0%} of {peak / 1e12:.3g} TFLOP/s, and"
        f" {counts.moved.at(images) / 1e9:.3g} GB moved (shares assumed)"
    )
    return multiplying + moving, reason

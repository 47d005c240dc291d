"""A plan as lines for people and as JSON for programs."""

from __future__ import annotations

from dataclasses import asdict, fields

from tessella.planning.accelerators import Hardware
from tessella.planning.choice import TrainingPlan
from tessella.planning.memory_parts import MemoryParts

TITLES = {
    "program": "libraries and context",
    "weights": "weights",
    "gradients": "gradients",
    "buckets": "gradients under way",
    "gathered": "gathered block",
    "moments": "optimizer moments",
    "average": "averaged weights",
    "activations": "activations",
    "logits": "logits",
    "at_work": "operation at work",
}
"""Parts of the memory, as they are shown."""


def size(count: float) -> str:
    """Bytes in powers of ten, as the memory of devices is counted.

    >>> size(2_500_000_000), size(130_000), size(12)
    ('2.5 GB', '130 kB', '12 bytes')
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"


def duration_text(seconds: float) -> str:
    """A duration of any length.

    >>> duration_text(0.0123), duration_text(90), duration_text(200_000)
    ('12.3 ms', '1.5 min', '2.31 days')
    """
    for unit, factor in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms"


def text_of(plan: TrainingPlan) -> str:
    """The plan in lines, each choice with its reason."""
    rows = [*_choices(plan), *_speed(plan)]
    lines = [_heading(plan), ""]
    for name, value, reason in rows:
        lines.append(f"{name:16} {value:14} {reason}".rstrip())
    lines.append("")
    lines += _memory_lines(plan)
    lines.append("")
    lines.append(_command(plan))
    return "\n".join(lines)


def facts_of(plan: TrainingPlan) -> dict[str, object]:
    """The plan as JSON values; bytes and seconds, nothing rounded."""
    reasons = {}
    for name, _, reason in [*_choices(plan), *_speed(plan)]:
        reasons[name] = reason
    way = plan.way
    return {
        "family": plan.family,
        "parameters": plan.held.parameters,
        "hardware": asdict(plan.hardware) | {"title": plan.hardware.accelerator.title},
        "batch": plan.batch,
        "batch_a_device": way.images * way.passes,
        "sharding": _sharding(way.full),
        "checkpointing": way.checkpointing,
        "precision": plan.precision,
        "accumulate": way.passes,
        "largest_pass_a_device": plan.largest,
        "largest_pass_of_all_ways": plan.largest_of_all,
        "step_seconds": way.step_seconds,
        "compute_seconds": way.passes * way.compute.one_pass + way.compute.optimizer,
        "images_a_second": plan.images_a_second,
        "run_images": plan.images or None,
        "run_seconds": plan.run_seconds or None,
        "memory": asdict(way.memory) | {"total": way.memory.total},
        "device_memory": plan.hardware.device_memory,
        "sent_bytes_a_step": way.traffic.sent,
        "sending_seconds": way.traffic.seconds,
        "waiting_seconds": way.traffic.exposed,
        "flops_an_image": plan.counts.flops.each,
        "uncounted_operations": list(plan.counts.uncounted),
        "reasons": reasons,
    }


def _heading(plan: TrainingPlan) -> str:
    hardware = plan.hardware
    return (
        f"{plan.family}, {plan.held.parameters:,} parameters, on {hardware.describe()}"
        f" with {size(hardware.device_memory)}"
    )


def _choices(plan: TrainingPlan) -> list[tuple[str, str, str]]:
    """Name, value and reason of each setting."""
    way = plan.way
    each = way.images * way.passes
    return [
        ("batch a device", str(each), _batch_reason(plan)),
        ("sharding", _sharding(way.full), _sharding_reason(plan)),
        ("checkpointing", "on" if way.checkpointing else "off", _checkpointing_reason(plan)),
        ("precision", plan.precision, _precision_reason(plan)),
        ("accumulate", str(way.passes), _accumulate_reason(plan)),
        ("largest batch", str(plan.largest), _largest_reason(plan)),
    ]


def _sharding(full: bool) -> str:
    return "full" if full else "none"


def _batch_reason(plan: TrainingPlan) -> str:
    asked = plan.recipe.train.batch
    world = plan.hardware.world
    if plan.batch == asked:
        return f"the recipe's batch of {asked}, over {_devices(plan.hardware)}"
    return (
        f"batch {plan.batch} in place of the recipe's {asked}, which cannot be divided over"
        f" {world} devices"
    )


def _sharding_reason(plan: TrainingPlan) -> str:
    state = plan.held.weights + plan.held.gradients + plan.held.moments + plan.held.average
    what = f"weights, gradients, moments and average take {size(state)}"
    if plan.hardware.world == 1:
        return f"{what}; one device has nobody to share with"
    if plan.way.full:
        return f"{what}: each device holds 1/{plan.hardware.world} of it, gathered as it is needed"
    return f"{what} on each device, which fit; gathering them would send more"


def _checkpointing_reason(plan: TrainingPlan) -> str:
    if plan.recipe.model is None:
        return "serves density models only"
    if plan.way.checkpointing:
        return "activations are computed again: without that, a step does not fit or is slower"
    kept = size(plan.way.memory.activations)
    return f"the activations of {plan.way.images} images, {kept}, fit, and time is saved"


def _precision_reason(plan: TrainingPlan) -> str:
    if plan.recipe.train.precision != "auto":
        return "the recipe asks for it"
    if plan.hardware.accelerator.is_gpu:
        return "products in bfloat16, weights in float32: the default on a GPU"
    return "the default on a processor"


def _accumulate_reason(plan: TrainingPlan) -> str:
    way = plan.way
    if way.passes == 1:
        return "a step is one pass"
    passes = f"a step is {way.passes} passes of {way.images} images"
    return f"{passes}: larger ones do not fit or are slower"


def _largest_reason(plan: TrainingPlan) -> str:
    share = plan.hardware.usable
    text = f"images of a pass that fit into {share:.0%} of the memory of a device, as planned"
    if plan.largest_of_all > plan.largest:
        text += f"; {plan.largest_of_all} in another way"
    return text


def _speed(plan: TrainingPlan) -> list[tuple[str, str, str]]:
    """Name, value and reason of each forecast."""
    way = plan.way
    rate = plan.images_a_second
    counted = way.compute.reason
    if plan.counts.uncounted:
        counted += f"; not counted: {', '.join(plan.counts.uncounted)}"
    rows = [
        ("step", duration_text(way.step_seconds), counted),
        ("throughput", f"{_number(rate)} images/s", f"{_devices(plan.hardware)} together"),
        ("run", *_run_time(plan)),
    ]
    if plan.hardware.world > 1:
        took = duration_text(way.traffic.seconds)
        waited = duration_text(way.traffic.exposed)
        reason = f"from each device in {took}, of which {waited} are waited for"
        rows.append(("sent a step", size(way.traffic.sent), reason))
    else:
        rows.append(("sent a step", "0 bytes", "there is one device"))
    return rows


def _run_time(plan: TrainingPlan) -> tuple[str, str]:
    if not plan.images:
        return ("unknown", "the recipe counts epochs: give --images, epochs times images")
    steps = plan.images / plan.batch
    return (
        duration_text(plan.run_seconds),
        f"{plan.images:,} images in {steps:,.0f} steps, without validations",
    )


def _memory_lines(plan: TrainingPlan) -> list[str]:
    """The memory of a device, by part."""
    memory = plan.way.memory
    share = memory.total / plan.hardware.device_memory
    lines = [f"memory of a device: {size(memory.total)}, {share:.0%} of it"]
    for field in fields(MemoryParts):
        value = getattr(memory, field.name)
        if value:
            lines.append(f"  {TITLES[field.name]:22} {size(value)}")
    return lines


def _command(plan: TrainingPlan) -> str:
    """The settings as words of a command."""
    way = plan.way
    words = [f"train.batch={plan.batch}", f"train.accumulate={way.passes}"]
    if way.checkpointing:
        words.append("train.checkpointing=true")
    words.append(f"train.precision={plan.precision}")
    # One device needs none of these.
    if plan.hardware.world > 1:
        words.append(f"train.sharding={_sharding(way.full)}")
        words.append(f"train.devices={plan.hardware.devices}")
    command = f"as words of tessella train: {' '.join(words)}"
    if plan.hardware.nodes > 1:
        command += (
            f"\non each machine, under torchrun --nnodes {plan.hardware.nodes}"
            f" --nproc-per-node {plan.hardware.devices}"
        )
    return command


def _number(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _devices(hardware: Hardware) -> str:
    if hardware.world == 1:
        return "1 device"
    return f"{hardware.world} devices"

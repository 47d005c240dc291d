"""How to train a recipe on given machines: the settings of the fastest step that fits.

Every way of sharding, checkpointing and splitting a batch is priced with the same formulas of
memory and time. Of those that fit the fastest is chosen, and of about equally fast ones the
simplest. So more memory never makes a step slower.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from tessella.config import Recipe
from tessella.errors import ConfigError
from tessella.files import byte_count
from tessella.planning.accelerators import Hardware
from tessella.planning.compute_time import ComputeTime, compute_time
from tessella.planning.held_bytes import WeightBytes
from tessella.planning.memory_parts import MemoryParts, fits, largest_batch, memory_parts
from tessella.planning.recipe_task import PlannedTask
from tessella.planning.step_counts import StepCounts, count_step
from tessella.planning.traffic import Traffic, traffic

EQUALLY_FAST = 1.02
"""Ratio of times up to which the simpler of two ways is taken: forecasts are no better."""

MOST_PASSES = 4096
"""Most passes into which a step is split."""


@dataclass(frozen=True)
class Way:
    """One way to take the steps of a recipe, and what it costs."""

    full: bool
    """Whether weights are spread over the devices: ``train.sharding``."""
    checkpointing: bool
    passes: int
    """``train.accumulate``."""
    images: int
    """Of a pass, on one device."""
    memory: MemoryParts
    compute: ComputeTime
    traffic: Traffic

    @property
    def step_seconds(self) -> float:
        """Seconds of a step."""
        computing = self.passes * self.compute.one_pass + self.compute.optimizer
        return computing + self.traffic.exposed

    @property
    def complexity(self) -> tuple[bool, bool, int]:
        """What makes a way less simple, the gravest first."""
        return (self.full, self.checkpointing, self.passes)


@dataclass(frozen=True)
class TrainingPlan:
    """How to train a recipe, what it takes, and why."""

    recipe: Recipe
    hardware: Hardware
    family: str
    held: WeightBytes
    counts: StepCounts
    """Of the way that was chosen."""
    precision: str
    batch: int
    """Images of a step, over all devices."""
    way: Way
    largest: int
    """Most images of a pass that fit into a device, in the way that was chosen."""
    largest_of_all: int
    """The same over all ways."""
    simplest_that_fails: MemoryParts | None
    """Memory of the recipe's batch in one pass, nothing spread or computed again, where that does
    not fit."""
    images: int
    """Images that the run sees; 0 where that is not known."""

    @property
    def images_a_second(self) -> float:
        """Images of all devices in a second."""
        return self.batch / self.way.step_seconds

    @property
    def run_seconds(self) -> float:
        """Seconds of all steps, without validations; 0 where their number is not known."""
        return self.images / self.images_a_second


def plan(planned: PlannedTask, hardware: Hardware, images: int = 0) -> TrainingPlan:
    """Choose how to train a recipe.

    Args:
        planned: what the recipe trains.
        hardware: the machines.
        images: that the run is to see; 0 takes what the recipe says in steps or minutes.

    Raises:
        ConfigError: where not even one image a device fits, or the recipe leaves the batch open.
    """
    recipe = planned.recipe
    precision = _precision(recipe, hardware)
    batch = _batch(recipe, hardware)
    family = _family(recipe)
    counted = {False: count_step(planned, False, precision == "bf16")}
    # Other kinds of models have no parts that could be computed again.
    if recipe.model is not None:
        counted[True] = count_step(planned, True, precision == "bf16")
    held = counted[False].held
    largest = _largest_batches(recipe, held, counted, hardware)
    ways = list(_ways(recipe, held, counted, batch, precision, hardware))
    fitting = [way for way in ways if fits(way.memory, hardware)]
    if not fitting:
        raise ConfigError(_nothing_fits(recipe, ways, hardware))
    fastest = min(way.step_seconds for way in fitting)
    good = [way for way in fitting if way.step_seconds <= EQUALLY_FAST * fastest]
    chosen = min(good, key=lambda way: way.complexity)
    simplest = min(ways, key=lambda way: way.complexity)
    counts = counted[chosen.checkpointing]
    return TrainingPlan(
        recipe=recipe,
        hardware=hardware,
        family=family,
        held=held,
        counts=counts,
        precision=precision,
        batch=batch,
        way=chosen,
        largest=largest[chosen.full, chosen.checkpointing],
        largest_of_all=max(largest.values()),
        simplest_that_fails=None if fits(simplest.memory, hardware) else simplest.memory,
        images=images or _images_of_run(recipe, batch, chosen.step_seconds),
    )


def _precision(recipe: Recipe, hardware: Hardware) -> str:
    """The precision that a run on these devices takes."""
    if recipe.train.precision != "auto":
        return recipe.train.precision
    return "bf16" if hardware.accelerator.is_gpu else "32"


def _batch(recipe: Recipe, hardware: Hardware) -> int:
    """The recipe's batch, or the next larger one that can be divided over the devices.

    Raises:
        ConfigError: for a batch of 0.
    """
    if not recipe.train.batch:
        raise ConfigError(
            "train.batch=0 leaves the batch to the run, and a plan needs a number: give"
            " train.batch, such as 64; the plan also says which is the largest"
        )
    return -(-recipe.train.batch // hardware.world) * hardware.world


def _family(recipe: Recipe) -> str:
    if recipe.model is not None:
        return recipe.model.name
    if recipe.tokenizer is not None:
        return recipe.tokenizer.name
    return "vae"


def _shardings(recipe: Recipe, hardware: Hardware) -> tuple[bool, ...]:
    """Ways to spread weights that a run accepts; one device has nobody to spread them to."""
    if hardware.world == 1 or not _can_be_sharded(recipe):
        return (False,)
    return (False, True)


def _can_be_sharded(recipe: Recipe) -> bool:
    """Whether a run of the recipe accepts ``train.sharding=full``."""
    train = recipe.train
    return train.optimizer != "muon" and not train.compile and recipe.adversarial is None


def _largest_batches(
    recipe: Recipe, held: WeightBytes, counted: dict[bool, StepCounts], hardware: Hardware
) -> dict[tuple[bool, bool], int]:
    """Most images of a pass, by sharding and checkpointing."""
    found = {}
    for full, checkpointing in itertools.product(_shardings(recipe, hardware), counted):
        counts = counted[checkpointing]
        found[full, checkpointing] = largest_batch(held, counts, full, hardware)
    return found


def _ways(
    recipe: Recipe,
    held: WeightBytes,
    counted: dict[bool, StepCounts],
    batch: int,
    precision: str,
    hardware: Hardware,
) -> Iterator[Way]:
    """All ways to take a step, priced."""
    each = batch // hardware.world
    splits = [passes for passes in range(1, min(each, MOST_PASSES) + 1) if each % passes == 0]
    for full, checkpointing, passes in itertools.product(
        _shardings(recipe, hardware), counted, splits
    ):
        counts = counted[checkpointing]
        images = each // passes
        compute = compute_time(
            family=_family(recipe),
            counts=counts,
            held=held,
            images=images,
            precision=precision,
            checkpointing=checkpointing,
            shards=hardware.world if full else 1,
            hardware=hardware,
        )
        yield Way(
            full=full,
            checkpointing=checkpointing,
            passes=passes,
            images=images,
            memory=memory_parts(held, counts, images, passes, full, hardware),
            compute=compute,
            traffic=traffic(held, compute, passes, full, hardware),
        )


def _nothing_fits(recipe: Recipe, ways: list[Way], hardware: Hardware) -> str:
    """The message where no way fits."""
    least = min(ways, key=lambda way: way.memory.total)
    advice = "take smaller sizes, smaller images or a device with more memory"
    if not least.full and _can_be_sharded(recipe):
        advice += ", or more devices, over which weights can be spread"
    return (
        f"the least that a step takes is {byte_count(int(least.memory.total))} a device"
        f" ({least.images} image a pass), and a plan fills {hardware.usable:.0%} of the"
        f" {byte_count(int(hardware.device_memory))} of a device: {advice}"
    )


def _images_of_run(recipe: Recipe, batch: int, step_seconds: float) -> int:
    """Images that a run sees by its limits in steps and minutes; 0 for one in epochs alone."""
    train = recipe.train
    limits = []
    if train.steps:
        limits.append(train.steps * batch)
    if train.minutes:
        limits.append(max(1, int(60 * train.minutes / step_seconds)) * batch)
    return min(limits, default=0)

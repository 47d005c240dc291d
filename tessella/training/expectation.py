"""How far a run is from the learning curve that its recipe expects.

A recipe may hold the curve of a run that was measured (:class:`~tessella.config.ExpectedConfig`).
It says something of another run only where that trains the same thing: with the same settings, on
the same images. Everywhere else nothing is said.

Steps are compared, since a minute is worth as much as the machine. Runs that end after so many
minutes take more steps on a faster machine, and their learning rate falls later: the verdict says
so where the pace differs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from tessella.config import ExpectedConfig, Recipe, to_dict
from tessella.grid import Grid
from tessella.training.progress import Progress

DIGITS = 16
"""Hexadecimal digits of the hashes that a recipe holds."""

PACE_DIFFERS = 1.5
"""Ratio of the paces of two machines from which on the difference is worth a word."""

WITHOUT_EFFECT = {
    "data": ("source",),
    "train": (
        "seed",
        "device",
        "devices",
        "precision",
        "threads",
        "checkpointing",
        "compile",
        "validate_every",
        "checkpoint_every",
    ),
}
"""Settings that do not decide what is trained, or on how much: where the images are (their hash is
compared), chance, and how the machine does its work."""


@dataclass(frozen=True)
class Expectation:
    """The curve of a recipe, for a run that it holds for.

    Args:
        table: of the recipe.
        timed: whether the run ends after so many minutes, so that its learning rate follows the
            clock.
    """

    table: ExpectedConfig
    timed: bool

    def at(self, step: int) -> float | None:
        """The figure that is expected after so many steps.

        Between two rows it is linear in the logarithm of the step; after the last row it stays.
        None before the first row.
        """
        curve = self.table.curve
        if step < curve[0][0]:
            return None
        for (first, _, high), (last, _, low) in itertools.pairwise(curve):
            if step <= last:
                way = math.log(step / first) / math.log(last / first)
                return high + way * (low - high)
        return curve[-1][2]

    def remark(self, step: int, best: float) -> str:
        """How far the best figure so far is from the curve; empty before its first row."""
        expected = self.at(step)
        if expected is None or not math.isfinite(best):
            return ""
        difference = best - expected
        side = "above" if difference > 0 else "below"
        unit = self.table.unit
        if step > self.table.curve[-1][0]:
            when = f"at its end, step {self.table.curve[-1][0]:,}"
        else:
            when = f"after {step:,} steps"
        distance = f"{_short(abs(difference))} {unit} {side}"
        return f"{distance} what the recipe expects {when} ({expected:.4g})"

    def verdict(self, progress: Progress) -> str:
        """Whether a run is on track, and how the machines compare; empty where nothing is known."""
        remark = self.remark(progress.step, progress.best)
        expected = self.at(progress.step)
        if not remark or expected is None:
            return ""
        pace = self._pace(progress)
        track = "on track"
        if abs(progress.best - expected) > self.table.tolerance:
            track = "ahead" if progress.best < expected else "behind"
            # With another schedule a run may be as good as it can be, and away from the curve.
            if pace and self.timed:
                track = "off the curve, as another pace can make it"
        return f"{track}: {remark}; within {_short(self.table.tolerance)} is on track{pace}"

    def _pace(self, progress: Progress) -> str:
        """A word about the pace where it differs from that of the machine of the curve."""
        last_step, last_minute, _ = self.table.curve[-1]
        if not progress.seconds:
            return ""
        ratio = (progress.step / progress.seconds) / (last_step / (60 * last_minute))
        if 1 / PACE_DIFFERS <= ratio <= PACE_DIFFERS:
            return ""
        machine = self.table.machine or "the machine of the recipe"
        if ratio > 1:
            pace = f". Steps came {ratio:.1f} times as fast as on {machine}"
            schedule = "more steps fit into the same minutes and the learning rate falls later"
        else:
            pace = f". Steps came {1 / ratio:.1f} times as slowly as on {machine}"
            schedule = "fewer steps fit into the same minutes and the learning rate falls sooner"
        # A run of so many steps has the same schedule on every machine.
        if not self.timed:
            return pace
        return f"{pace}: {schedule}, so that figures after equal steps compare roughly"


def expectation_of(
    recipe: Recipe, images: Mapping[str, object], task: Mapping[str, object], metric: str
) -> Expectation | None:
    """The expectation that a recipe has of a run; None where it has none, or trains another thing.

    Args:
        recipe: of the run, with all that was overridden.
        images: identity of the training images.
        task: description of what is trained.
        metric: the figure that its validations minimize.
    """
    table = recipe.expected
    if table is None:
        return None
    of_this_run = (metric, settings_hash(recipe), data_hash(images), grid_text(task))
    if (table.figure, table.settings, table.data, table.grid) != of_this_run:
        return None
    return Expectation(table, timed=recipe.train.minutes > 0)


def settings_hash(recipe: Recipe) -> str:
    """Hash of the settings that decide what is trained, and how.

    Only values that differ from their defaults count, so that a new option, which is off by
    default, leaves the hashes of recipes as they are.
    """
    described: dict[str, object] = {"prior": bool(recipe.prior_of)}
    for entry in dataclasses.fields(recipe):
        table = getattr(recipe, entry.name)
        # What is no table says nothing of the training.
        if entry.name == "expected" or not dataclasses.is_dataclass(table):
            continue
        usual = {field.name: _default(field) for field in dataclasses.fields(table)}
        without_effect = WITHOUT_EFFECT.get(entry.name, ())
        given = {}
        for key, value in to_dict(table).items():
            if key not in without_effect and value != usual[key]:
                given[key] = value
        described[entry.name] = given
    text = json.dumps(described, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _short(number: float) -> str:
    """A distance: more digits than these are noise."""
    return f"{number:.3f}" if number < 1 else f"{number:.3g}"


def _default(field: dataclasses.Field[object]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def data_hash(images: Mapping[str, object]) -> str:
    """The beginning of the hash of the training images; empty where they have none."""
    return str(images.get("sha256") or "")[:DIGITS]


def grid_text(task: Mapping[str, object]) -> str:
    """The symbols that are modelled, as the description of a task has them; empty without a grid.

    The codes of two tokenizers may differ in number and kind where the recipe of their prior is the
    same.
    """
    model = task.get("model")
    if not isinstance(model, Mapping):
        return ""
    grids = []
    # A hierarchy holds a model for each grid.
    for part in model.get("priors", [model]):
        # A model of several scales has all of them.
        of_part = part.get("grids", [])
        if "grid" in part:
            of_part = [part["grid"]]
        for grid in of_part:
            grids.append(str(Grid(**grid)))
    return ", ".join(grids)

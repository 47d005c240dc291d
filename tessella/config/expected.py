"""The learning curve that a recipe was measured to take, to compare a run with."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from tessella.errors import ConfigError

Row = tuple[int, float, float]
"""Step, minute, and the best validation figure up to there."""


@dataclass(frozen=True)
class ExpectedConfig:
    """The table ``[expected]`` of a recipe, which ``scripts/expected_curve.py`` writes.

    Steps count, since machines differ; minutes are for people, and give the pace of the machine.
    """

    figure: str = "bits_per_dim"
    """The validation figure, as logs name it; the smaller the better."""
    unit: str = "bits/dim"
    """Its unit, for people."""
    machine: str = ""
    """Where it was measured, for people."""
    gigaflops: float = 0.0
    """Speed of that machine: products of float32 matrices, in 10^9 operations a second, as
    ``benchmarks/machine.py`` measures them; 0 where nobody did."""
    tolerance: float = 0.0
    """Distance from the curve, in its unit, up to which a run is on track."""
    settings: str = ""
    """Of what the recipe says about data, model and training: other settings, other curve."""
    data: str = ""
    """The first 16 digits of the SHA-256 of the training images."""
    grid: str = ""
    """The symbols that the model is of; empty for a tokenizer or a VAE."""
    curve: tuple[tuple[int, float, float], ...] = ()
    """Rows of step, minute and the best figure of all validations up to there."""


def check_curve(curve: tuple[Row, ...]) -> None:
    """Check the rows of a curve.

    Raises:
        ConfigError: when there are fewer than two, or they do not rise in steps and minutes.
    """
    if len(curve) < 2:
        raise ConfigError(f"expected.curve needs two rows or more, got {len(curve)}")
    for step, minute, figure in curve:
        if step < 1 or not 0 < minute < math.inf or not math.isfinite(figure):
            raise ConfigError(
                "a row of expected.curve is [step, minute, figure], such as [100, 0.5, 2.31],"
                f" got {[step, minute, figure]}"
            )
    for before, after in itertools.pairwise(curve):
        if after[0] <= before[0] or after[1] <= before[1]:
            raise ConfigError(
                "steps and minutes of expected.curve must rise,"
                f" got {list(after)} after {list(before)}"
            )

"""Write the learning curve of a finished run into its recipe, as the table ``[expected]``.

    python scripts/expected_curve.py digits runs/digits              # a recipe that ships
    python scripts/expected_curve.py mine.toml runs/a runs/b         # one of a file, from two seeds
    python scripts/expected_curve.py mnist runs/mnist --machine "1 thread of an AMD EPYC (AVX2)" \\
        --gigaflops 61

The curve is that of the first run: the best validation figure up to some ten steps, evenly spaced
in the logarithm of the step. Of several runs, which should differ in ``train.seed`` only, the
largest distance from it becomes the tolerance, but never less than a hundredth of the last figure;
of one run it is two hundredths, since nobody knows better. ``train`` prints how far a run is from
the curve, where it trains the same on the same images.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path

from tessella import config
from tessella.config import ExpectedConfig, Recipe
from tessella.pipeline.run_record import RunRecord, read_run_record, train_split
from tessella.training.expectation import Expectation, data_hash, grid_text, settings_hash

RECIPES = Path(__file__).resolve().parents[1] / "tessella" / "recipes"

ROWS = 12
"""Rows of a curve, at most."""

LEAST_TOLERANCE = 0.01
"""Least tolerance, as a share of the last figure."""

TOLERANCE_OF_ONE = 0.02
"""The same where one run alone was measured."""

UNITS = {"bits_per_dim": "bits/dim", "mse": "(0..255)²"}
"""Units of the figures that training minimizes."""

Row = tuple[int, float, float]


def expected(recipe: Recipe, runs: list[Path], machine: str, gigaflops: float) -> ExpectedConfig:
    """The table of a recipe.

    Args:
        recipe: as it is in its file.
        runs: of the recipe; the first gives the curve.
        machine: in words; empty for what the run says.
        gigaflops: of the machine; 0 where nobody measured them.

    Raises:
        SystemExit: when a run is not one of this recipe, or has no curve.
    """
    if recipe.adversarial:
        raise SystemExit(
            "an adversarial term raises the error that a validation measures: there is no curve to"
            " expect"
        )
    records = [read_run_record(run) for run in runs]
    for run, record in zip(runs, records, strict=True):
        check_settings(recipe, run, record)
    task = records[0].get("task") or {}
    figure = "mse" if task.get("kind") == "tokenizer" else "bits_per_dim"
    points = read_points(runs[0], figure)
    unit = UNITS[figure]
    # Logs name bits alike, whether they are of pixels or of codes.
    if recipe.prior_of:
        unit = "bits/code"
    table = ExpectedConfig(
        figure=figure,
        unit=unit,
        machine=machine or machine_of(records[0]),
        gigaflops=gigaflops,
        tolerance=0.0,
        settings=settings_hash(recipe),
        data=data_hash(train_split(records[0])),
        grid=grid_text(task),
        curve=thinned(points),
    )
    config.check_curve(table.curve)
    others = [read_points(run, figure) for run in runs[1:]]
    values = vars(table) | {"tolerance": tolerance(table, others)}
    return ExpectedConfig(**values)


def check_settings(recipe: Recipe, run: Path, record: RunRecord) -> None:
    """Refuse a run that did not train what the recipe says."""
    stored = {name: table for name, table in (record.get("recipe") or {}).items() if table}
    trained: Recipe = config.from_dict(Recipe, stored)
    if settings_hash(trained) != settings_hash(recipe):
        raise SystemExit(f"{run} was trained with other settings than those of the recipe")
    if record.get("status") != "finished":
        raise SystemExit(f"{run} has not finished: its learning rate has not fallen yet")


def read_points(run: Path, figure: str) -> list[Row]:
    """The points of a run's curve: step, minute, best figure up to there."""
    points: list[Row] = []
    best = math.inf
    for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if f"valid/{figure}" in entry:
            best = min(best, entry[f"valid/{figure}"])
            points.append((entry["step"], entry["seconds"] / 60, best))
    if len(points) < 2:
        raise SystemExit(f"{run} has {len(points)} validations of {figure}: a curve needs two")
    return points


def thinned(points: list[Row]) -> tuple[Row, ...]:
    """Some of the points, evenly spaced in the logarithm of the step, the last among them."""
    last = points[-1][0]
    ratio = (last / points[0][0]) ** (1 / (ROWS - 1))
    kept: list[Row] = []
    for point in points:
        far_enough = not kept or point[0] >= kept[-1][0] * ratio * 0.999
        if point[0] == last and not far_enough and len(kept) > 1:
            kept.pop()
        if far_enough or point[0] == last:
            kept.append(point)
    # Six digits: rows of a tiny run on a fast machine lie a few milliseconds apart.
    return tuple((step, round(minute, 6), round(figure, 4)) for step, minute, figure in kept)


def tolerance(table: ExpectedConfig, others: list[list[Row]]) -> float:
    """How far runs of the recipe are from its curve, after the first tenth of the steps."""
    last_step, _, last_figure = table.curve[-1]
    if not others:
        return round(TOLERANCE_OF_ONE * last_figure, 4)
    curve = Expectation(table, timed=False)
    largest = LEAST_TOLERANCE * last_figure
    for points in others:
        for step, _, figure in points:
            wanted = curve.at(step)
            # The first steps fall so steeply that a step more or less is a large distance.
            if wanted is not None and step >= last_step / 10:
                largest = max(largest, abs(figure - wanted))
    return round(largest, 4)


def machine_of(record: RunRecord) -> str:
    """The machine of a run in words."""
    environment = record.get("environment") or {}
    device = str(environment.get("device"))
    if device == "cpu":
        device = f"{environment.get('threads')} of {environment.get('cores')} cores of a CPU"
    return f"{device}, torch {environment.get('torch')}"


def as_toml(table: ExpectedConfig) -> str:
    """The table as TOML."""
    lines = ["[expected]"]
    for name, value in vars(table).items():
        if name == "curve" or value in ("", 0.0):
            continue
        lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    lines.append("# step, minute, best validation up to there")
    lines.append("curve = [")
    lines += [f"    [{step}, {minute}, {figure}]," for step, minute, figure in table.curve]
    return "\n".join([*lines, "]", ""])


def written(text: str, table: ExpectedConfig) -> str:
    """The text of a recipe with the table at its end, in the place of an earlier one."""
    # An earlier table ends where the next one begins, or with the file.
    without = re.sub(r"^\[expected\]\n.*?(?=^\[[a-z]|\Z)", "", text, flags=re.DOTALL | re.MULTILINE)
    return without.rstrip() + "\n\n" + as_toml(table)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a recipe that ships, or a .toml file")
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs of it")
    parser.add_argument("--machine", default="", help="the machine in words")
    parser.add_argument("--gigaflops", type=float, default=0.0, help="see benchmarks/machine.py")
    parser.add_argument("--print", action="store_true", help="print the table, write nothing")
    given = parser.parse_args(arguments)
    file = Path(given.recipe)
    if file.suffix != ".toml":
        file = RECIPES / f"{given.recipe}.toml"
    recipe = config.load_recipe(str(file))
    table = expected(recipe, given.runs, given.machine, given.gigaflops)
    if given.print:
        print(as_toml(table), end="")
        return
    file.write_text(written(file.read_text(encoding="utf-8"), table), encoding="utf-8")
    print(f"{file.name}: {len(table.curve)} rows, tolerance {table.tolerance:g} {table.unit}")


if __name__ == "__main__":
    main(sys.argv[1:])

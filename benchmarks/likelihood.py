"""Models on named data: cells of model, data, budget and seed, each trained once, scored and timed.

    python benchmarks/likelihood.py list                  # which cells are done, begun, to do
    python benchmarks/likelihood.py run 'binary-mnist/*'  # in turn; continues after an interruption
    python benchmarks/likelihood.py compare TABLE/A TABLE/B         # A minus B, paired
    python benchmarks/likelihood.py probe binary-mnist/made train.learning_rate=1e-3,3e-3

``benchmarks/likelihood.toml`` lists the cells (``likelihood_cells.py`` says how). Each trains in
``runs/likelihood/TABLE/CELL``, goes on there from its last checkpoint, and writes
``results/likelihood/TABLE/CELL.json`` when it is done: the settings, the learning curve, the test
figures with their standard errors, the machine, and how long an image takes to draw; and beside it
the bits of each test image (``.safetensors``). A cell whose settings have changed since is refused,
and trained anew with ``--again`` alone. Cells may be tokenizers, and priors on the codes of another
cell: these are measured in bits of the pixels, as ``benchmarks/bounds.py`` counts them.

A cell with seeds is trained once with each, in ``CELL-seedN``. The mean over the seeds that are
done is in ``results/likelihood/summaries.json``, with a standard error that holds images and seeds
(``seed_statistics.py``). ``compare`` pairs two cells seed by seed and image by image and keeps the
difference in ``results/likelihood/comparisons.json``.

``probe`` is how the settings were found: a short training for each of the values of a key, judged
by the validation images; its results are kept in ``results/likelihood/probes.json``.

``python scripts/model_tables.py`` and ``python scripts/speed_run_tables.py`` make the tables and
plots of ``docs/models.md`` and ``docs/likelihood.md`` from these files. Data are found in the
folder ``TESSELLA_TEST_DATA``; what is made of them is made when a cell first needs it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import harness
import machine
import numpy as np
import seed_statistics
import torch
from likelihood_cells import Cell, find_cells, minutes_of, plain, state
from likelihood_measure import measure

from tessella import config as configs
from tessella import files
from tessella.config import Recipe
from tessella.errors import ConfigError, InputError, TessellaError
from tessella.training import train_recipe

SHOWN = {"new": "to do"}
"""How states are shown, where that differs."""
MACHINE_SETS = (1, 16, 256)
"""Working sets, in MiB, for which the machine's bandwidth is measured beside each cell."""
UNEQUAL = 1.15
"""Ratio of the speeds of a machine from which on two runs had no equal minutes."""


def run(cell: Cell, again: bool) -> bool:
    """Bring a cell to its end. Returns False if training was interrupted.

    Raises:
        ConfigError: if its settings have changed since it was begun.
    """
    out = cell.run
    if state(cell) == "changed" and not again:
        raise ConfigError(
            f"the settings of {cell.id} have changed since it was trained: --again trains it anew"
        )
    if again:
        shutil.rmtree(out, ignore_errors=True)
        cell.result.unlink(missing_ok=True)

    # Made before the run, so that its minutes do not count.
    recipe = cell.located_recipe()
    # Times of an image depend on it too, so it is set for the whole process.
    torch.set_num_threads(cell.recipe.train.threads or torch.get_num_threads())
    # One figure for each sitting, kept beside the run until it is finished.
    busy_file = out / "busy.json"
    busy = []
    if busy_file.exists():
        busy = json.loads(busy_file.read_text())
    other_load = harness.gauge_other_load()
    trained = train_recipe(
        recipe,
        out,
        resume=(out / "run.json").exists(),
        say=lambda line: print("  " + line),
    )
    busy.append(other_load())
    busy_file.write_text(json.dumps(busy))
    if trained.interrupted:
        return False

    row = measure(cell, out)
    # The worst sitting, since it is the one to doubt.
    row["processors_busy_with_others"] = max(busy)
    # Machines of one name can differ in speed, so it is measured beside each cell.
    row["machine"] = machine.measure(MACHINE_SETS, sweeps=1).facts()
    row["machine_gigaflops"] = row["machine"]["gigaflops"]
    harness.write("", [row], str(cell.result))
    print(f"  {describe(row)}", flush=True)
    return True


def describe(row: harness.Row) -> str:
    """The figures that a cell reached, as a line to read."""
    if "test" in row:
        test = row["test"]
        return (
            f"{test['bits_per_dim']:.4f} ± {test['bits_per_dim_se']:.4f} bits/dim, "
            f"{test['nats_per_image']:.2f} ± {test['nats_per_image_se']:.2f} nats"
        )
    # Bounds of a tokenizer without a likelihood have no bits, those of pixels have no PSNR.
    figures = []
    if row["bits_per_dim"] is not None:
        figures.append(f"{row['bits_per_dim']:.4f} bits/dim")
    if row["psnr_db"] is not None:
        figures.append(f"PSNR {row['psnr_db']:.2f} dB")
    return ", ".join(figures)


def summarize(cell: Cell, fresh: bool) -> None:
    """Write the mean over the seeds of a cell that are done, with its standard error.

    Args:
        cell: any of its seeds.
        fresh: whether a seed was just measured; else only a summary that is missing is written, as
            an interruption leaves it.
    """
    done = seeds_done(cell.group)
    if not done:
        return
    if not fresh:
        for row in harness.read_rows(harness.results_path("likelihood/summaries")):
            if (row["table"], row["cell"], row["seeds"]) == (cell.table, cell.name, list(done)):
                return
    bits, groups = bits_of(list(done.values()))
    found = seed_statistics.estimate(bits, groups)
    rows = [harness.read_rows(each.result)[0] for each in done.values()]
    row = {
        "table": cell.table,
        "cell": cell.name,
        "seeds": list(done),
        "bits_per_dim": found.facts(),
        # Nats of an image in a bit/dim: both figures are of the same images.
        "nats_of_a_bit": rows[0]["test"]["nats_per_image"] / rows[0]["test"]["bits_per_dim"],
        "sha256": rows[0]["test"]["sha256"],
        "steps": [each["steps"] for each in rows],
        "machine_gigaflops": [each["machine_gigaflops"] for each in rows],
    }
    harness.merge("likelihood/summaries", row, ["table", "cell"])


def seeds_done(group: str) -> dict[int | None, Cell]:
    """The seeds of ``TABLE/CELL`` whose bits of each image are there, in their order."""
    found = {}
    for cell in find_cells([group]):
        # Files of other settings are of another model; those of old cells hold no such bits.
        if cell.group == group and state(cell) == "done" and cell.bits_of_images.exists():
            found[cell.seed] = cell
    return found


def bits_of(done: Sequence[Cell]) -> tuple[np.ndarray, np.ndarray | None]:
    """Bits/dim ``[seeds, images]``, and the photograph of each image, if they are tiles.

    Raises:
        InputError: where cells were measured on other test images.
    """
    rows = []
    groups = None
    hashes = set()
    for cell in done:
        tensors = files.read_tensors(cell.bits_of_images)
        rows.append(tensors["bits_per_dim"].double().numpy())
        if "groups" in tensors:
            groups = tensors["groups"].numpy()
        test = harness.read_rows(cell.result)[0]["test"]
        # Draws of the same grey images differ with their number.
        hashes.add((test["sha256"], test.get("draws", 1)))
    if len(hashes) > 1:
        names = ", ".join(cell.id for cell in done)
        raise InputError(f"{names} were tested on different images: their bits cannot be paired")
    return np.stack(rows), groups


def compare(ours: str, theirs: str) -> harness.Row:
    """The difference of two cells, over the seeds that both have; writes and returns the row.

    Raises:
        InputError: where no seed of both is done, or the test images differ.
    """
    one = seeds_done(ours)
    other = seeds_done(theirs)
    shared = [seed for seed in one if seed in other]
    if not shared:
        raise InputError(
            f"nothing to compare: seeds done of {ours}: {list(one)}, of {theirs}: {list(other)}; "
            f"run them first: python benchmarks/likelihood.py run {ours} {theirs}"
        )
    pairs = [one[seed] for seed in shared] + [other[seed] for seed in shared]
    bits, groups = bits_of(pairs)
    # Half of the rows is of the one, half of the other.
    found = seed_statistics.difference(bits[: len(shared)], bits[len(shared) :], groups)
    rows = [harness.read_rows(cell.result)[0] for cell in pairs]
    test = rows[0]["test"]
    nats = test["nats_per_image"] / test["bits_per_dim"]
    row = {
        "ours": ours,
        "theirs": theirs,
        "seeds": shared,
        "bits_per_dim": found.facts(),
        "nats": {"mean": nats * found.mean, "se": nats * found.se},
        "sha256": test["sha256"],
        "machine_gigaflops": [each["machine_gigaflops"] for each in rows],
    }
    harness.merge("likelihood/comparisons", row, ["ours", "theirs"])
    return row


def describe_difference(row: harness.Row) -> str:
    """A comparison as lines to read."""
    bits = row["bits_per_dim"]
    seeds = f"seeds {', '.join(map(str, row['seeds']))}"
    if row["seeds"] == [None]:
        seeds = "one seed"
    line = (
        f"{row['ours']} minus {row['theirs']}: {bits['mean']:+.4f} ± {bits['se']:.4f} bits/dim, "
        f"{row['nats']['mean']:+.3f} ± {row['nats']['se']:.3f} nats an image "
        f"({seeds}; {bits['images']:,} images or photographs)"
    )
    if bits["se_seeds"] is None:
        line += "\nthe error does not cover the seed of training: one seed alone"
    else:
        line += (
            f"\nof the error, images {bits['se_images']:.4f}, seeds {bits['se_seeds']:.4f} bits/dim"
        )
    slowest = min(row["machine_gigaflops"])
    fastest = max(row["machine_gigaflops"])
    if fastest > UNEQUAL * slowest:
        line += (
            f"\nthe machine gave {slowest:.0f} to {fastest:.0f} GFLOP/s beside these runs: "
            "their minutes were not equal"
        )
    return line


def list_cells(cells: Sequence[Cell]) -> str:
    """A line for each cell: how far it is, and minutes done of those it is given."""
    width = max(len(cell.id) for cell in cells)
    totals = {"done": 0.0, "left": 0.0}
    lines = []
    for cell in cells:
        how = state(cell)
        spent = minutes_of(cell)
        budget = cell.recipe.train.minutes
        if how == "done":
            totals["done"] += spent
        elif how != "trained":
            totals["left"] += max(0.0, budget - spent)
        lines.append(f"{cell.id:{width}}  {SHOWN.get(how, how):8}  {spent:7.1f} of {budget:g} min")
    lines.append(
        f"{len(cells)} cells: {totals['done'] / 60:.1f} hours done, {totals['left'] / 60:.1f} to do"
        " (training; tests and times come on top)"
    )
    return "\n".join(lines)


def probe(cell: Cell, variants: Sequence[str], minutes: float) -> None:
    """Train each combination of values for a few minutes and record its validation."""
    for change in combinations(variants):
        values = configs.to_dict(cell.located_recipe())
        values = configs.apply_overrides(values, [*change, f"train.minutes={minutes}"])
        recipe = configs.from_dict(Recipe, values)
        with tempfile.TemporaryDirectory() as out:
            # Nothing of a probe is kept but its figures.
            trained = train_recipe(recipe, Path(out) / "run", say=lambda line: None)
        row = {
            "cell": cell.id,
            "minutes": minutes,
            "change": " ".join(change),
            "steps": trained.progress.step,
            "settings": plain(recipe),
            "threads": torch.get_num_threads(),
            "valid_bits_per_dim": trained.progress.best,
            "best_step": trained.progress.best_step,
        }
        print(json.dumps(row), flush=True)
        harness.merge("likelihood/probes", row, ["cell", "minutes", "change"])


def combinations(variants: Sequence[str]) -> list[list[str]]:
    """``a=1,2 b=3`` as ``[[a=1, b=3], [a=2, b=3]]``."""
    choices = []
    for variant in variants:
        key, _, values = variant.partition("=")
        choices.append([f"{key}={value}" for value in values.split(",")])
    return [list(combination) for combination in itertools.product(*choices)]


def run_cells(cells: Sequence[Cell], again: bool) -> None:
    """Bring cells to their ends, one after another; exits where one is interrupted."""
    for cell in cells:
        how = state(cell)
        print(f"{cell.id}: {SHOWN.get(how, how)}", flush=True)
        due = how != "done" or again
        if due and not run(cell, again):
            sys.exit("interrupted: the same command without --again goes on")
        # Bounds are no bits of a test image that could be paired.
        if not cell.in_bounds:
            summarize(cell, fresh=due)


def main() -> None:
    """List, train, compare or probe the cells that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["list", "run", "compare", "probe"])
    parser.add_argument(
        "cells",
        nargs="*",
        help="TABLE/CELL, * and ? allowed; to compare two; of probe one cell, then KEY=VALUE,...",
    )
    parser.add_argument("--again", action="store_true", help="train anew what is done")
    parser.add_argument("--minutes", type=float, default=1.0, help="of a probe")
    parser.add_argument(
        "--threads", type=int, default=2, help="of probes, and of cells that do not say"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.part == "probe":
        name, *variants = chosen.cells
        probe(find_cells([name])[0], variants, chosen.minutes)
    elif chosen.part == "compare":
        if len(chosen.cells) != 2:
            parser.error(f"compare takes two cells, got {len(chosen.cells)}")
        print(describe_difference(compare(*chosen.cells)))
    elif chosen.part == "list":
        print(list_cells(find_cells(chosen.cells or ["*"])))
    else:
        run_cells(find_cells(chosen.cells or ["*"]), chosen.again)


if __name__ == "__main__":
    try:
        main()
    except TessellaError as error:
        sys.exit(f"error: {error}")

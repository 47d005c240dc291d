"""Models on named data: cells of model, data and budget, each trained once, scored and timed.

    python benchmarks/likelihood.py list                  # which cells are done, begun, to do
    python benchmarks/likelihood.py run 'binary-mnist/*'  # in turn; continues after an interruption
    python benchmarks/likelihood.py probe binary-mnist/made train.learning_rate=1e-3,3e-3

``benchmarks/likelihood.toml`` lists the cells. Each trains in ``runs/likelihood/TABLE/CELL``, goes
on there from its last checkpoint, and writes ``results/likelihood/TABLE/CELL.json`` when it is
done: the settings, the learning curve, the test figures with their standard errors, and how long an
image takes to draw. A cell whose settings have changed since is refused, and trained anew with
``--again`` alone. ``python scripts/model_tables.py`` makes the tables and plots of
``docs/models.md`` from these files. Cells may be tokenizers, and priors on the codes of another
cell: these are measured in bits of the pixels, as ``benchmarks/bounds.py`` counts them.

``probe`` is how the settings were found: a short training for each of the values of a key, judged
by the validation images; its results are kept in ``results/likelihood/probes.json``.

Data are found in the folder ``TESSELLA_TEST_DATA``.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import os
import shutil
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bounds
import harness
import machine
import numpy as np
import torch

import tessella as ts
from tessella import config as configs
from tessella import data, files
from tessella.config import Recipe
from tessella.errors import ConfigError, TessellaError
from tessella.evaluation import data_config
from tessella.pipeline import Generator
from tessella.training import train_recipe

DATA = Path(os.environ.get("TESSELLA_TEST_DATA", harness.ROOT.parent / "shared" / "data"))
RUNS = harness.ROOT / "runs" / "likelihood"
BATCHES = (1, 16)
"""Images drawn at a time."""
PARTS = ("data", "model", "tokenizer", "prior_of", "train")
"""The parts of a recipe that make a cell."""
REACH = 24
"""Levels to either side of the true one whose probability is recorded."""
TABLE = 2**23
"""Probabilities in memory at a time: larger tensors cost more in pages than they save in calls."""
NEAR = 512
"""Images, spread evenly over the test images, over which these probabilities are averaged."""

Settings = dict[str, Any]
"""Parts of a recipe as plain values."""


@dataclass(frozen=True)
class Cell:
    """A model to be trained on named data for so long.

    Args:
        table: its table in ``likelihood.toml``.
        name: of the cell in its table.
        recipe: what to train; the path of its data is relative to the folder of images, the
            tokenizer of a prior is another cell.
        in_bounds: whether to measure bits as ``bounds.py`` does, since the table compares pixels
            with codes.
        each_image: whether to keep the bits of each image, and the probabilities of the true
            level's neighbours.
    """

    table: str
    name: str
    recipe: Recipe
    each_image: bool = False
    in_bounds: bool = False

    @property
    def id(self) -> str:
        """``TABLE/CELL``."""
        return f"{self.table}/{self.name}"

    @property
    def result(self) -> Path:
        """The file of its results."""
        return harness.results_path(f"likelihood/{self.id}")

    @property
    def settings(self) -> Settings:
        """The recipe as plain values, as JSON gives them back."""
        return plain(self.recipe)

    def located_recipe(self) -> Recipe:
        """The recipe with the paths at which its data and its tokenizer lie on this machine."""
        source = self.recipe.data.source
        kind, _, path = source.partition(":")
        # The photographs come in one archive, and a cell names how many it trains on.
        if path.startswith("kodak-"):
            source = f"{kind}:{kodak(int(path.removeprefix('kodak-')))}"
        elif path:
            source = f"{kind}:{DATA / path}"
        tokenizer = ""
        if self.recipe.prior_of:
            tokenizer = str(RUNS / self.recipe.prior_of)
        located = replace(self.recipe.data, source=source)
        return replace(self.recipe, data=located, prior_of=tokenizer)


def cells() -> list[Cell]:
    """All cells of ``likelihood.toml``, in its order.

    Raises:
        ConfigError: for settings that no recipe knows.
    """
    text = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
    found: list[Cell] = []
    for name, table in tomllib.loads(text).items():
        found.extend(cells_of_table(name, table))
    return found


def cells_of_table(name: str, table: Settings) -> Iterator[Cell]:
    """The cells of one table, each of them once for every variant."""
    for variant, changes in table.get("variants", {"": {}}).items():
        for label, settings in table["cells"].items():
            # A cell changes what its table says, and a variant changes both.
            parts = merge_layers([table, settings, changes])
            # Strict: a misspelt key is an error here, not a setting without effect.
            recipe = configs.from_dict(Recipe, parts, f"{name}.{label}")
            full_name = label
            if variant:
                full_name = f"{label}-{variant}"
            yield Cell(
                name,
                full_name,
                recipe,
                each_image=table.get("each_image", False),
                in_bounds=table.get("in_bounds", False),
            )


def merge_layers(layers: Sequence[Settings]) -> Settings:
    """The parts of a recipe, later layers over earlier ones."""
    merged: Settings = {}
    for part in PARTS:
        for layer in layers:
            if part not in layer:
                continue
            value = layer[part]
            if isinstance(value, dict):
                # A table keeps the keys that a later layer does not name.
                merged[part] = {**merged.get(part, {}), **value}
            else:
                merged[part] = value
    return merged


def kodak(count: int) -> Path:
    """Unpack a part of ``kodak24.zip``; returns its folder.

    The first ``count`` photographs (15 at most) are to train on, 3 others to validate with and 6 to
    test on; these two do not depend on ``count``.
    """
    place = RUNS / "data" / f"kodak-{count}"
    with zipfile.ZipFile(DATA / "kodak24.zip") as archive:
        names = sorted(archive.namelist())
        splits = {"train": names[:count], "valid": names[15:18], "test": names[18:]}
        for split, members in splits.items():
            folder = place / split
            folder.mkdir(parents=True, exist_ok=True)
            for name in members:
                # Files that are rewritten would have to be decoded anew.
                if not (folder / name).exists():
                    files.write_bytes(folder / name, archive.read(name))
    return place


def plain(recipe: Recipe) -> Settings:
    """The parts of a recipe that make a cell, as JSON gives them back."""
    # The way through JSON turns tuples into lists, as in the file it is compared with.
    values: Settings = json.loads(json.dumps(configs.to_dict(recipe)))
    return {part: values[part] for part in PARTS if values[part]}


def state(cell: Cell) -> str:
    """``done``, ``changed``, ``new``, or how far its run is."""
    if cell.result.exists():
        row = harness.read_rows(cell.result)[0]
        if has_settings_of(cell, row["settings"]):
            return "done"
        return "changed"

    record = RUNS / cell.id / "run.json"
    if not record.exists():
        return "new"
    facts = json.loads(record.read_text(encoding="utf-8"))
    if not has_settings_of(cell, facts["recipe"]):
        return "changed"
    if facts["status"] == "finished":
        return "trained"
    return "begun"


def has_settings_of(cell: Cell, settings: Settings) -> bool:
    """Whether settings are those of a cell.

    Keys that were added to recipes since count with their defaults. The folders of data and
    tokenizer do not count.
    """
    parts = {part: settings[part] for part in PARTS if settings.get(part)}
    recipe: Recipe = configs.from_dict(Recipe, parts)
    return without_folders(plain(recipe)) == without_folders(cell.settings)


def without_folders(settings: Settings) -> Settings:
    """Settings without the folders of data and tokenizer."""
    kind, _, path = settings["data"]["source"].partition(":")
    source = f"{kind}:{Path(path).name}"
    # Of a tokenizer its table and its cell remain.
    tokenizer = "/".join(Path(settings.get("prior_of", "")).parts[-2:])
    return {
        **settings,
        "data": {**settings["data"], "source": source},
        "prior_of": tokenizer,
    }


def run(cell: Cell, again: bool) -> bool:
    """Bring a cell to its end. Returns False if training was interrupted.

    Raises:
        ConfigError: if its settings have changed since it was begun.
    """
    out = RUNS / cell.id
    if state(cell) == "changed" and not again:
        raise ConfigError(
            f"the settings of {cell.id} have changed since it was trained: --again trains it anew"
        )
    if again:
        shutil.rmtree(out, ignore_errors=True)
        cell.result.unlink(missing_ok=True)

    # Times of an image depend on it too, so it is set for the whole process.
    torch.set_num_threads(cell.recipe.train.threads or torch.get_num_threads())
    # One figure for each sitting, kept beside the run until it is finished.
    busy_file = out / "busy.json"
    busy = []
    if busy_file.exists():
        busy = json.loads(busy_file.read_text())
    other_load = harness.gauge_other_load()
    trained = train_recipe(
        cell.located_recipe(),
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
    row["machine_gigaflops"] = machine.gigaflops(2048)
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


def measure(cell: Cell, out: Path) -> harness.Row:
    """The row of a trained cell."""
    facts = json.loads((out / "run.json").read_text(encoding="utf-8"))
    progress = facts["progress"]
    count = facts["data"]["train"]["count"]
    row: harness.Row = {
        "table": cell.table,
        "cell": cell.name,
        "settings": cell.settings,
        "train_images": count,
        "steps": progress["step"],
        "best_step": progress["best_step"],
        "minutes": progress["seconds"] / 60,
        "epochs": progress["step"] * cell.recipe.train.batch / count,
        "valid": progress["figures"],
        "curve": curve(out),
        "sittings": facts.get("sittings", []),
    }
    if cell.in_bounds:
        return row | measure_bounds(out)
    return row | measure_likelihood(cell, out)


def measure_likelihood(cell: Cell, out: Path) -> harness.Row:
    """Exact figures on the test images, and times."""
    test = test_images(out)
    model = ts.load(out)
    assert isinstance(model, Generator)
    prior = model.priors[0]
    # An image needs a table of as many probabilities as it has symbols times levels.
    batch = min(100, max(1, TABLE // (prior.grid.symbols * prior.grid.levels)))
    # The run, not the model, so that images seen in training are counted.
    found = ts.assess(out, test, batch=batch)
    row: harness.Row = {
        "parameters": prior.parameter_count(),
        "test": test_figures(found.figures),
        "seconds_an_image": {str(n): seconds_an_image(model, n) for n in BATCHES},
    }
    if cell.each_image:
        bits = found.measured.values["nats"] / (prior.grid.symbols * ts.grid.LN2)
        row["each_image"] = {
            "bits_per_dim": [round(float(value), 6) for value in bits],
            "of": file_names(test),
        }
        row["neighbours"] = neighbours(model, np.asarray(test.images[:]))
    return row


def test_figures(figures: harness.Row) -> harness.Row:
    """The figures of an evaluation that a row keeps."""
    kept: harness.Row = {}
    for name in (
        "images",
        "bits_per_dim",
        "nats_per_image",
        "baseline_bits_per_dim",
        "scored_grid",
        "weights",
    ):
        # Only images that were scaled to the model have a scored grid.
        if name in figures:
            kept[name] = figures[name]
    for name in ("bits_per_dim_se", "nats_per_image_se"):
        kept[name] = figures[name]
    kept["sha256"] = figures["data"]["sha256"]
    kept["identical"] = figures["overlap"]["identical"]
    return kept


def measure_bounds(out: Path) -> harness.Row:
    """Bits of the pixels, exact or bounded, and times."""
    row = bounds.measure(str(out), test_images(out), samples=0, batch=100)
    # Those of the tokenizer are among these minutes.
    row["all_minutes"] = row.pop("minutes")
    row["seconds_an_image"] = None
    model = ts.load(out)
    if isinstance(model, Generator):
        row["seconds_an_image"] = {str(n): seconds_an_image(model, n) for n in BATCHES}
    return row


def test_images(out: Path) -> data.ImageSet:
    """All test images of a run, even if it was trained on a limited number of images."""
    return data.load(replace(data_config(out), limit=0), "test")


def file_names(images: data.ImageSet) -> list[str]:
    """The file that each tile is from; empty if the images are no tiles."""
    if images.names is None:
        return []
    return [str(name).partition("#")[0] for name in images.names]


def curve(out: Path) -> list[tuple[float, float]]:
    """Seconds of training, and bits/dim of the averaged weights on the validation images."""
    points = []
    for text in (out / "log.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if "valid/bits_per_dim" in line:
            points.append((line["seconds"], line["valid/bits_per_dim"]))
    return points


def seconds_an_image(model: Generator, batch: int) -> float:
    """Seconds to draw an image, ``batch`` at a time, the median of three."""
    times = harness.alternate({"ours": lambda: model.sample(batch, batch=batch)}, rounds=3)
    return times["ours"]["median"] / batch


@torch.no_grad()
def neighbours(model: Generator, images: np.ndarray) -> list[float]:
    """Mean probability of the levels ``-REACH .. REACH`` away from the true one.

    For each distance the mean is over the symbols for which such a level exists.
    """
    prior = model.priors[0]
    levels = prior.grid.levels
    chosen = np.unique(np.linspace(0, len(images) - 1, NEAR).astype(int))
    symbols = model.encode(images[chosen])
    total = torch.zeros(2 * REACH + 1, dtype=torch.float64)
    number = torch.zeros(2 * REACH + 1, dtype=torch.float64)
    for part in symbols.split(32):
        # [batch, height, width, channels, levels]
        probabilities = prior.distribution(part).table(part).exp()
        for i, distance in enumerate(range(-REACH, REACH + 1)):
            near = part + distance
            exists = (near >= 0) & (near < levels)
            # Clamped, since gather refuses levels that do not exist; these are left out below.
            index = near.clamp(0, levels - 1)[..., None]
            probability = probabilities.gather(-1, index)[..., 0]
            total[i] += probability[exists].double().sum()
            number[i] += exists.sum()
    return [round(float(mean), 6) for mean in total / number]


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


def main() -> None:
    """List, train or probe the cells that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["list", "run", "probe"])
    parser.add_argument(
        "cells",
        nargs="*",
        help="TABLE/CELL, * and ? allowed; of probe one cell, then KEY=VALUE,...",
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
        return
    for cell in find_cells(chosen.cells or ["*"]):
        how = state(cell)
        print(f"{cell.id}: {how}", flush=True)
        if chosen.part == "list" or (how == "done" and not chosen.again):
            continue
        if not run(cell, chosen.again):
            sys.exit("interrupted: the same command without --again goes on")


def find_cells(patterns: Sequence[str]) -> list[Cell]:
    """The cells whose names match a pattern, in their order; exits if there are none."""
    every = cells()
    found = []
    for cell in every:
        if any(fnmatch.fnmatch(cell.id, pattern) for pattern in patterns):
            found.append(cell)
    if not found:
        known = ", ".join(cell.id for cell in every)
        raise SystemExit(f"no cell is named {' or '.join(patterns)}; there are {known}")
    return found


if __name__ == "__main__":
    try:
        main()
    except TessellaError as error:
        sys.exit(f"error: {error}")

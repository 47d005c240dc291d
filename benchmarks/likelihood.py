"""Models on named data: cells of model, data and budget, each trained once, scored and timed.

    python benchmarks/likelihood.py list                  # which cells are done, begun, to do
    python benchmarks/likelihood.py run 'binary-mnist/*'  # in turn; continues after an interruption
    python benchmarks/likelihood.py probe binary-mnist/made train.learning_rate=1e-3,3e-3

``benchmarks/likelihood.toml`` lists the cells. Each trains in ``runs/likelihood/TABLE/CELL``, goes
on there from its last checkpoint, and writes ``results/likelihood/TABLE/CELL.json`` when it is
done: the settings, the learning curve, the test figures with their standard errors, and how long an
image takes to draw. A cell whose settings have changed since is refused, and trained anew with
``--again`` alone. ``python scripts/model_tables.py`` makes the tables and plots of
``docs/models.md`` of these files. Cells may be tokenizers, and priors on the codes of another cell:
told in bits of the pixels, as ``benchmarks/bounds.py`` counts them.

``probe`` is how the settings were found: a short training for each of the values of a key, judged
by the validation images; what it saw is kept in ``results/likelihood/probes.json``.

Data are found in the folder ``TESSELLA_TEST_DATA``.
"""

from __future__ import annotations

import argparse
import fnmatch
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
from tessella.training.api import train_recipe

DATA = Path(os.environ.get("TESSELLA_TEST_DATA", harness.ROOT.parent / "shared" / "data"))
RUNS = harness.ROOT / "runs" / "likelihood"
BATCHES = (1, 16)
"""Images drawn at a time."""
PARTS = ("data", "model", "tokenizer", "prior_of", "train")
"""Of a recipe, what makes a cell."""
REACH = 24
"""Levels to either side of the true one whose probability is told."""
TABLE = 2**23
"""Probabilities in memory at a time: larger tensors cost more in pages than they save in calls."""
NEAR = 512
"""Images, spread evenly over those of the test, that tell it."""


@dataclass(frozen=True)
class Cell:
    """A model to be trained on named data for so long.

    Args:
        table: its table in ``likelihood.toml``.
        name: of the cell in its table.
        recipe: what to train; the path of its data is relative to the folder of images, the
            tokenizer of a prior is another cell.
        in_bounds: whether to tell bits as ``bounds.py`` does, since the table compares pixels with
            codes.
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
        return f"{self.table}/{self.name}"

    @property
    def result(self) -> Path:
        return harness.results_path(f"likelihood/{self.id}")

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe as plain values, as JSON gives them back."""
        return plain(self.recipe)

    def at_home(self) -> Recipe:
        """The recipe with its data, and its tokenizer, where they are."""
        tokenizer = str(RUNS / self.recipe.prior_of) if self.recipe.prior_of else ""
        kind, _, path = self.recipe.data.source.partition(":")
        place = (
            kodak(int(path.removeprefix("kodak-"))) if path.startswith("kodak-") else DATA / path
        )
        source = f"{kind}:{place}" if path else kind
        return replace(
            self.recipe, data=replace(self.recipe.data, source=source), prior_of=tokenizer
        )


def cells() -> list[Cell]:
    """Those of ``likelihood.toml``, in its order.

    Raises:
        ConfigError: for settings that no recipe knows.
    """
    tables = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return [cell for name, table in tables.items() for cell in _of_table(name, table)]


def _of_table(name: str, table: dict[str, Any]) -> Iterator[Cell]:
    for variant, over in table.get("variants", {"": {}}).items():
        for label, own in table["cells"].items():
            layers = [table, own, over]
            parts = [part for part in PARTS if any(part in layer for layer in layers)]
            facts = {
                part: _merged([layer[part] for layer in layers if part in layer]) for part in parts
            }
            recipe = configs.from_dict(Recipe, facts, f"{name}.{label}")
            full = f"{label}-{variant}" if variant else label
            options = {option: table.get(option, False) for option in ("each_image", "in_bounds")}
            yield Cell(name, full, recipe, **options)


def _merged(layers: list[Any]) -> Any:
    """Tables over one another; of plain values the last."""
    return (
        {k: v for layer in layers for k, v in layer.items()}
        if isinstance(layers[0], dict)
        else layers[-1]
    )


def kodak(count: int) -> Path:
    """A folder with the first ``count`` photographs of ``kodak24.zip`` to train on (15 at most), 3
    others to validate with and 6 to test on; the last two are the same for every ``count``."""
    place = RUNS / "data" / f"kodak-{count}"
    with zipfile.ZipFile(DATA / "kodak24.zip") as archive:
        names = sorted(archive.namelist())
        for split, part in (
            ("train", names[:count]),
            ("valid", names[15:18]),
            ("test", names[18:]),
        ):
            folder = place / split
            folder.mkdir(parents=True, exist_ok=True)
            for name in part:
                if not (folder / name).exists():
                    files.write_bytes(folder / name, archive.read(name))
    return place


def plain(recipe: Recipe) -> dict[str, Any]:
    """What a cell says of a recipe, as JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(configs.to_dict(recipe)))
    return {name: found[name] for name in PARTS if found[name]}


def state(cell: Cell) -> str:
    """``done``, ``changed``, ``new``, or how far its run is."""
    if cell.result.exists():
        row = json.loads(cell.result.read_text(encoding="utf-8"))["rows"][0]
        return "done" if _made_with(row["settings"], cell) else "changed"
    facts = _run_facts(cell)
    if facts is None:
        return "new"
    if not _made_with(facts["recipe"], cell):
        return "changed"
    return "trained" if facts["status"] == "finished" else "begun"


def _run_facts(cell: Cell) -> dict[str, Any] | None:
    path = RUNS / cell.id / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _made_with(settings: dict[str, Any], cell: Cell) -> bool:
    """Whether these are a cell's settings: those that came later count with their defaults, and the
    folder in which data and tokenizer were does not."""
    found: Recipe = configs.from_dict(
        Recipe, {part: settings[part] for part in PARTS if settings.get(part)}
    )
    return _anywhere(plain(found)) == _anywhere(cell.settings)


def _anywhere(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the folders of data and tokenizer."""
    kind, _, path = settings["data"]["source"].partition(":")
    tokenizer = "/".join(Path(settings.get("prior_of", "")).parts[-2:])
    return settings | {
        "data": settings["data"] | {"source": f"{kind}:{Path(path).name}"},
        "prior_of": tokenizer,
    }


def run(cell: Cell, again: bool) -> bool:
    """Bring a cell to its end. Returns False where training was interrupted.

    Raises:
        ConfigError: where its settings have changed since it was begun.
    """
    out, how = RUNS / cell.id, state(cell)
    if how == "changed" and not again:
        raise ConfigError(
            f"the settings of {cell.id} have changed since it was trained: --again trains it anew"
        )
    if again:
        shutil.rmtree(out, ignore_errors=True)
        cell.result.unlink(missing_ok=True)
    torch.set_num_threads(cell.recipe.train.threads or torch.get_num_threads())
    busy = harness.others()
    before = _busy_before(out)
    trained = train_recipe(
        cell.at_home(), out, resume=(out / "run.json").exists(), say=lambda line: print("  " + line)
    )
    (out / "busy.json").write_text(json.dumps([*before, busy()]))
    if trained.interrupted:
        return False
    row = measure(cell, out) | {"processors_busy_with_others": max([*before, busy()])}
    row["machine_gigaflops"] = machine.gigaflops(2048)
    harness.write("", [row], str(cell.result))
    print(f"  {told(row)}", flush=True)
    return True


def _busy_before(out: Path) -> list[float]:
    path = out / "busy.json"
    found: list[float] = json.loads(path.read_text()) if path.exists() else []
    return found


def told(row: dict[str, Any]) -> str:
    """What a cell reached, for the one who waits."""
    if "test" not in row:
        figures = (("bits_per_dim", "{:.4f} bits/dim"), ("psnr_db", "PSNR {:.2f} dB"))
        return ", ".join(text.format(row[name]) for name, text in figures if row[name] is not None)
    test = row["test"]
    return f"{test['bits_per_dim']:.4f} ± {test['bits_per_dim_se']:.4f} bits/dim, " + (
        f"{test['nats_per_image']:.2f} ± {test['nats_per_image_se']:.2f} nats"
    )


def measure(cell: Cell, out: Path) -> dict[str, Any]:
    """The row of a trained cell."""
    facts = json.loads((out / "run.json").read_text(encoding="utf-8"))
    progress, count = facts["progress"], facts["data"]["train"]["count"]
    row: dict[str, Any] = {"table": cell.table, "cell": cell.name, "settings": cell.settings}
    row |= {"train_images": count, "steps": progress["step"], "best_step": progress["best_step"]}
    row |= {
        "minutes": progress["seconds"] / 60,
        "epochs": progress["step"] * cell.recipe.train.batch / count,
    }
    row |= {
        "valid": progress["figures"],
        "curve": curve(out),
        "sittings": facts.get("sittings", []),
    }
    return row | (_in_bounds(out) if cell.in_bounds else _likelihood(cell, out))


def _likelihood(cell: Cell, out: Path) -> dict[str, Any]:
    """Exact figures on the test images, and times."""
    test = test_images(out)
    model = ts.load(out)
    assert isinstance(model, Generator)
    grid = model.priors[0].grid
    found = ts.assess(out, test, batch=min(100, max(1, TABLE // (grid.symbols * grid.levels))))
    row: dict[str, Any] = {"parameters": model.priors[0].parameter_count()}
    kept = (
        "images",
        "bits_per_dim",
        "nats_per_image",
        "baseline_bits_per_dim",
        "scored_grid",
        "weights",
    )
    row["test"] = {name: found.figures[name] for name in kept if name in found.figures}
    row["test"] |= {
        f"{name}_se": found.figures[f"{name}_se"] for name in ("bits_per_dim", "nats_per_image")
    }
    row["test"] |= {
        "sha256": found.figures["data"]["sha256"],
        "identical": found.figures["overlap"]["identical"],
    }
    row["seconds_an_image"] = {str(n): seconds_an_image(model, n) for n in BATCHES}
    if cell.each_image:
        bits = found.measured.values["nats"] / (grid.symbols * ts.grid.LN2)
        row["each_image"] = {"bits_per_dim": [round(float(b), 6) for b in bits], "of": _files(test)}
        row["neighbours"] = neighbours(model, test.images)
    return row


def _in_bounds(out: Path) -> dict[str, Any]:
    """Bits of the pixels, exact or bounded, and times."""
    row = bounds.measure(str(out), test_images(out), samples=0, batch=100)
    row["all_minutes"] = row.pop("minutes")
    model = ts.load(out)
    row["seconds_an_image"] = (
        {str(n): seconds_an_image(model, n) for n in BATCHES}
        if isinstance(model, Generator)
        else None
    )
    return row


def test_images(out: Path) -> data.ImageSet:
    """All of them, also where few were to be trained on."""
    return data.load(replace(data_config(out), limit=0), "test")


def _files(images: data.ImageSet) -> list[str]:
    """Of tiles, which file each is from."""
    return [] if images.names is None else [str(name).partition("#")[0] for name in images.names]


def curve(out: Path) -> list[tuple[float, float]]:
    """Seconds of training and bits/dim of the averaged weights on the validation images."""
    lines = [
        json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [
        (line["seconds"], line["valid/bits_per_dim"])
        for line in lines
        if "valid/bits_per_dim" in line
    ]


def seconds_an_image(model: Generator, batch: int) -> float:
    """To draw an image, ``batch`` at a time, the median of three."""
    times = harness.alternate({"ours": lambda: model.sample(batch, batch=batch)}, rounds=3)
    return times["ours"]["median"] / batch


@torch.no_grad()
def neighbours(model: Generator, images: Any) -> list[float]:
    """Mean probability of the levels ``-REACH .. REACH`` away from the true one, of those that
    exist."""
    prior = model.priors[0]
    chosen = np.unique(np.linspace(0, len(images) - 1, NEAR).astype(int))
    symbols, levels = model.encode(np.asarray(images[:])[chosen]), prior.grid.levels
    total, number = (
        torch.zeros(2 * REACH + 1, dtype=torch.float64),
        torch.zeros(2 * REACH + 1, dtype=torch.float64),
    )
    for part in symbols.split(32):
        table = prior.distribution(part).table(part).exp()
        for i, distance in enumerate(range(-REACH, REACH + 1)):
            near = part + distance
            there = (near >= 0) & (near < levels)
            chance = table.gather(-1, near.clamp(0, levels - 1)[..., None])[..., 0]
            total[i] += chance[there].double().sum()
            number[i] += there.sum()
    return [round(float(p), 6) for p in total / number]


def probe(cell: Cell, variants: Sequence[str], minutes: float) -> None:
    """Train each combination of the values given for the keys, for a few minutes, and tell what
    validation says."""
    for change in _combinations(variants):
        values = configs.apply_overrides(
            configs.to_dict(cell.at_home()), [*change, f"train.minutes={minutes}"]
        )
        given = configs.from_dict(Recipe, values)
        with tempfile.TemporaryDirectory() as out:
            trained = train_recipe(given, Path(out) / "run", say=lambda line: None)
        row = {
            "cell": cell.id,
            "minutes": minutes,
            "change": " ".join(change),
            "steps": trained.progress.step,
        }
        row |= {"settings": plain(given), "threads": torch.get_num_threads()}
        row |= {
            "valid_bits_per_dim": trained.progress.best,
            "best_step": trained.progress.best_step,
        }
        print(json.dumps(row), flush=True)
        harness.merge("likelihood/probes", row, ["cell", "minutes", "change"])


def _combinations(variants: Sequence[str]) -> list[list[str]]:
    """``a=1,2 b=3`` as ``[[a=1, b=3], [a=2, b=3]]``."""
    found: list[list[str]] = [[]]
    for variant in variants:
        key, _, values = variant.partition("=")
        found = [[*before, f"{key}={value}"] for before in found for value in values.split(",")]
    return found


def main() -> None:
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
        probe(_chosen([name])[0], variants, chosen.minutes)
        return
    for cell in _chosen(chosen.cells or ["*"]):
        how = state(cell)
        print(f"{cell.id}: {how}", flush=True)
        if chosen.part == "run" and (how != "done" or chosen.again) and not run(cell, chosen.again):
            sys.exit("interrupted: the same command without --again goes on")


def _chosen(patterns: Sequence[str]) -> list[Cell]:
    every = cells()
    found = [
        cell for cell in every if any(fnmatch.fnmatch(cell.id, pattern) for pattern in patterns)
    ]
    if not found:
        raise SystemExit(
            f"no cell is named {' or '.join(patterns)}; there are {', '.join(c.id for c in every)}"
        )
    return found


if __name__ == "__main__":
    try:
        main()
    except TessellaError as error:
        sys.exit(f"error: {error}")

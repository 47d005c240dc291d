"""Every registered density model, small: what a minute of training gives, what a step costs.

    python benchmarks/families.py smoke [--minutes 1] [--models made lstm]  # results/families.json
    python benchmarks/families.py cost [--models transformer]               # results/cost.json

``smoke`` trains each model at its default sizes for the same minutes on the 8x8 digits with the
same options, scores the test digits, draws samples, and times cached steps. It is a smoke test, no
ranking: sizes and training options are nobody's best. ``cost`` measures, in a process of its own,
one training step at batch 4 and the memory it takes beyond model, optimizer and libraries, on
64x64x3 pixels of 256 levels and 32x32 codes of 512, with and without activation checkpointing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from PIL import Image

import tessella as ts
from tessella import data
from tessella.config import DataConfig
from tessella.errors import ConfigError
from tessella.evaluation.metrics import standard_error
from tessella.pipeline import pixel_generator

GRIDS = {"64x64x3 pixels": ts.Grid(64, 64, 3, 256), "32x32 codes": ts.Grid(32, 32, 1, 512)}
COST_BATCH, SAMPLES, ENLARGED = 4, 16, 5
LARGEST = 300_000_000
"""Parameters above which a step is not measured: weights, gradients and moments would take the
machine."""


def digits(split: str) -> data.ImageSet:
    return data.load(DataConfig(source="digits"), split)


def smoke(name: str, minutes: float) -> tuple[dict[str, Any], ts.DensityModel]:
    """Train, score and time one model."""
    train, test = digits("train"), digits("test")
    grid = ts.Grid(8, 8, 1, train.levels)
    model = ts.create(name, grid)
    fresh = score(model, test)
    noise = harness.others()
    with tempfile.TemporaryDirectory() as out:
        run = ts.train(
            model,
            train,
            valid=digits("valid"),
            out=Path(out) / "run",
            minutes=minutes,
            say=lambda line: None,
        )
        lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    steps = max(line["step"] for line in lines if "step" in line)
    model.eval()
    bits = score(model, test)
    row = {"model": name, "commit": harness.commit(), "parameters": model.parameter_count()}
    row |= {"minutes": minutes, "steps": steps}
    row |= {
        "seconds_an_epoch": 60 * minutes / (steps * 64 / len(train)),
        "processors_busy_with_others": noise(),
    }
    row |= {"bits_per_dim": float(bits.mean()), "standard_error": standard_error(bits)}
    row |= {"fresh_bits_per_dim": float(fresh.mean()), "test_images": len(test)}
    return row | {f"steps_a_second_batch_{n}": steps_a_second(model, n) for n in (1, 64)}, model


def score(model: ts.DensityModel, images: data.ImageSet) -> torch.Tensor:
    """Bits per dimension of each image."""
    symbols = pixel_generator(model).encode(np.asarray(images.images[:]))
    with torch.no_grad():
        return torch.cat([model.bits_per_dim(part) for part in symbols.split(64)])


def steps_a_second(model: ts.DensityModel, batch: int) -> float:
    """Symbols of an image drawn in a second, ``batch`` images at a time."""
    times = harness.alternate({"cached": lambda: ts.sample(model, n=batch, batch=batch)}, rounds=3)
    return model.grid.symbols / times["cached"]["median"]


def picture(models: dict[str, ts.DensityModel], kept: int, path: Path) -> None:
    """Samples of every model, a strip each, five times as large, under the first ``kept`` strips
    that are there."""
    rows = [
        pixel_generator(model).sample(SAMPLES, seed=0).numpy()[..., 0] for model in models.values()
    ]
    strips = [
        np.pad(np.hstack([np.pad(x, 1) for x in row]), 1).repeat(ENLARGED, 0).repeat(ENLARGED, 1)
        for row in rows
    ]
    if kept:
        strips.insert(0, np.asarray(Image.open(path))[: kept * len(strips[0])])
    Image.fromarray(np.concatenate(strips)).save(path)


def cost(name: str, grid: ts.Grid, checkpointing: bool) -> dict[str, Any]:
    """Seconds and memory of a training step; runs in a process of its own."""
    model = ts.create(name, grid).train()
    if model.parameter_count() > LARGEST:
        raise ConfigError(f"{model.parameter_count():,} parameters, more than {LARGEST:,}")
    model.checkpointing = checkpointing
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randint(grid.levels, (COST_BATCH, *grid.shape))

    def step(part: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=False)
        (-model.distribution(part).log_prob(part).mean()).backward()
        optimizer.step()

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # its moments are there before memory is measured
    before, seconds = resident(), []
    for _ in range(3):
        started = time.perf_counter()
        step(x)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {
        "parameters": model.parameter_count(),
        "seconds_a_step": sorted(seconds)[1],
        "mebibytes_an_image": max(0.0, peak - before) / COST_BATCH,
    }


def resident() -> float:
    """Memory of this process now, in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def cost_apart(name: str, place: str, checkpointing: bool, limit: float) -> dict[str, Any]:
    """:func:`cost` in a new process, killed after ``limit`` seconds."""
    words = [sys.executable, __file__, "cost-one", name, place, str(int(checkpointing))]
    row = {
        "model": name,
        "commit": harness.commit(),
        "grid": place,
        "batch": COST_BATCH,
        "checkpointing": checkpointing,
    }
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return row | {"failed": f"no three steps within {limit:.0f} s"}
    if done.returncode:
        return row | {
            "failed": done.stderr.strip().splitlines()[-1]
            if done.stderr.strip()
            else f"exit {done.returncode}"
        }
    return row | json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["smoke", "cost", "cost-one"])
    parser.add_argument("one", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument(
        "--models", nargs="*", default=[name for name in ts.MODELS if name != "independent"]
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument(
        "--limit", type=float, default=240, help="seconds that the three steps of a cost may take"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.part == "cost-one":
        name, place, checkpointing = chosen.one
        try:
            print(json.dumps(cost(name, GRIDS[place], checkpointing == "1")))
        except ConfigError as error:
            sys.exit(f"refused: {error}")
    elif chosen.part == "cost":
        rows = kept_rows(Path(chosen.out or harness.ROOT / "results" / "cost.json"), chosen.models)
        for name in chosen.models:
            for place in GRIDS:
                for checkpointing in (False, True):
                    rows.append(cost_apart(name, place, checkpointing, chosen.limit))
                    print(rows[-1], flush=True)
        harness.write("cost", rows, chosen.out)
    else:
        smoke_all(chosen.models, chosen.minutes, chosen.out)


def kept_rows(path: Path, models: list[str]) -> list[dict[str, Any]]:
    """Rows of other models that were measured before."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in rows if row["model"] not in models]


def smoke_all(names: list[str], minutes: float, out: str) -> None:
    """The table, the baseline first, and the picture. Models that are not named keep what was
    measured before; those that are named go to the end."""
    train, test = digits("train"), digits("test")
    baseline = ts.create("independent", ts.Grid(8, 8, 1, train.levels))
    baseline.fit(pixel_generator(baseline).encode(np.asarray(train.images[:])))
    bits = score(baseline, test)
    first = {
        "model": "independent",
        "commit": harness.commit(),
        "parameters": baseline.parameter_count(),
        "bits_per_dim": float(bits.mean()),
    }
    path = Path(out) if out else harness.ROOT / "results" / "families.json"
    others = kept_rows(path, ["independent", *names])
    rows = [first | {"standard_error": standard_error(bits)}, *others]
    models: dict[str, ts.DensityModel] = {}
    for name in names:
        row, models[name] = smoke(name, minutes)
        rows.append(row)
        print(json.dumps(row), flush=True)
    harness.write("families", rows, out)
    shown = path.with_suffix(".png") if out else harness.ROOT / "docs" / "images" / "families.png"
    picture(models, len(others), shown)


if __name__ == "__main__":
    main()

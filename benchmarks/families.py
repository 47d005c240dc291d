"""One benchmark over every family: short trainings on digits, and the cost of a training step.

    python benchmarks/families.py smoke [--minutes 1] [--models made lstm]  # results/families.json
    python benchmarks/families.py cost [--models transformer]               # results/cost.json

``smoke`` trains each model at its default sizes for equal minutes on the 8x8 digits with equal
options, scores the test digits, draws samples, and times cached steps. It is a smoke test, no
ranking: sizes and training options are nobody's best. ``cost`` measures, in a separate process,
one training step at batch 4 and the memory it takes beyond model, optimizer and libraries, on
64x64x3 pixels of 256 levels and 32x32 codes of 512, with and without activation checkpointing.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
import numpy as np
import torch
from PIL import Image

import tessella as ts
from tessella import data
from tessella.config import DataConfig
from tessella.errors import ConfigError
from tessella.evaluation.metrics import standard_error
from tessella.models.independent import Independent
from tessella.pipeline import pixel_generator

GRIDS = {"64x64x3 pixels": ts.Grid(64, 64, 3, 256), "32x32 codes": ts.Grid(32, 32, 1, 512)}
BASELINE = "independent"
COST_BATCH = 4
COST_STEPS = 3
TRAINING_BATCH = 64
"""Batch of a training by default, from which epochs are counted."""
SCORED_AT_ONCE = 64
SAMPLES = 16
ENLARGED = 5
LARGEST = 300_000_000
"""Parameters above which a step is not measured.

Weights, gradients and moments of a larger model would take all memory of the machine.
"""


def digits(split: str) -> data.ImageSet:
    """A split of the digits."""
    return data.load(DataConfig(source="digits"), split)


def smoke(name: str, minutes: float) -> tuple[harness.Row, ts.DensityModel]:
    """Train, score and time one model; returns its row and the trained model."""
    train = digits("train")
    test = digits("test")
    model = ts.create(name, ts.Grid(8, 8, 1, train.levels))
    # Before training, to show in the table how much of the bits is learned.
    fresh = score(model, test)

    # A minute beside busy neighbours is fewer steps, so their load is recorded.
    other_load = harness.gauge_other_load()
    with tempfile.TemporaryDirectory() as out:
        run = ts.train(
            model,
            train,
            valid=digits("valid"),
            out=Path(out) / "run",
            minutes=minutes,
            say=lambda line: None,
        )
        log = (run.path / "log.jsonl").read_text().splitlines()
    steps = last_step(log)
    model.eval()
    bits = score(model, test)

    epochs = steps * TRAINING_BATCH / len(train)
    row = {
        "model": name,
        "commit": harness.commit(),
        "parameters": model.parameter_count(),
        "minutes": minutes,
        "steps": steps,
        "seconds_an_epoch": 60 * minutes / epochs,
        "processors_busy_with_others": other_load(),
        "bits_per_dim": float(bits.mean()),
        "standard_error": standard_error(bits),
        "fresh_bits_per_dim": float(fresh.mean()),
        "test_images": len(test),
    }
    for batch in (1, 64):
        row[f"steps_a_second_batch_{batch}"] = steps_a_second(model, batch)
    return row, model


def last_step(log: list[str]) -> int:
    """The last optimizer step that the lines of a log mention."""
    last = 0
    for line in log:
        # Lines about the whole run have no step.
        last = max(last, json.loads(line).get("step", 0))
    return last


def score(model: ts.DensityModel, images: data.ImageSet) -> torch.Tensor:
    """Bits per dimension of each image, ``[n]``."""
    symbols = pixel_generator(model).encode(np.asarray(images.images[:]))
    with torch.no_grad():
        return torch.cat([model.bits_per_dim(part) for part in symbols.split(SCORED_AT_ONCE)])


def steps_a_second(model: ts.DensityModel, batch: int) -> float:
    """Symbols of an image drawn in a second, ``batch`` images at a time."""
    times = harness.alternate({"cached": lambda: ts.sample(model, n=batch, batch=batch)}, rounds=3)
    return model.grid.symbols / times["cached"]["median"]


def draw_picture(models: dict[str, ts.DensityModel], kept: int, path: Path) -> None:
    """Samples of every model, a strip each, below the first ``kept`` strips of the old picture."""
    strips = []
    for model in models.values():
        # [SAMPLES, height, width, 1]: the digits are grey.
        images = pixel_generator(model).sample(SAMPLES, seed=0).numpy()[..., 0]
        framed = [np.pad(image, 1) for image in images]
        strip = np.pad(np.hstack(framed), 1)
        strips.append(strip.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1))
    if kept:
        # Models that were measured before are not trained again for their pictures.
        height = len(strips[0])
        strips.insert(0, np.asarray(Image.open(path))[: kept * height])
    Image.fromarray(np.concatenate(strips)).save(path)


def cost(name: str, grid: ts.Grid, checkpointing: bool) -> harness.Row:
    """Seconds and memory of a training step; runs in a separate process.

    Raises:
        ConfigError: for a model with more than ``LARGEST`` parameters.
    """
    model = ts.create(name, grid).train()
    if model.parameter_count() > LARGEST:
        raise ConfigError(f"{model.parameter_count():,} parameters, more than {LARGEST:,}")
    model.checkpointing = checkpointing
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randint(grid.levels, (COST_BATCH, *grid.shape))

    # Gradients and moments exist before memory is measured, since they are not the step's.
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()

    before = resident()
    seconds = []
    for _ in range(COST_STEPS):
        started = time.perf_counter()
        # Kept, since freeing and taking gradients would move the peak of memory.
        optimizer.zero_grad(set_to_none=False)
        loss = -model.distribution(x).log_prob(x).mean()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    # The largest size of the whole process so far, which the steps set.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {
        "parameters": model.parameter_count(),
        "seconds_a_step": statistics.median(seconds),
        "mebibytes_an_image": max(0.0, peak - before) / COST_BATCH,
    }


def resident() -> float:
    """Memory of this process now, in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def cost_apart(name: str, place: str, checkpointing: bool, limit: float) -> harness.Row:
    """:func:`cost` in a new process, killed after ``limit`` seconds."""
    command = [sys.executable, __file__, "cost-one", name, place, str(int(checkpointing))]
    row = {
        "model": name,
        "commit": harness.commit(),
        "grid": place,
        "batch": COST_BATCH,
        "checkpointing": checkpointing,
    }
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return row | {"failed": f"no three steps within {limit:.0f} s"}
    if done.returncode == 0:
        # Libraries may print before the result.
        return row | json.loads(done.stdout.splitlines()[-1])

    errors = done.stderr.strip().splitlines()
    if errors:
        return row | {"failed": errors[-1]}
    # Killed by the system, for its memory most likely: nothing was printed.
    return row | {"failed": f"exit {done.returncode}"}


def kept_rows(path: Path, models: list[str]) -> list[harness.Row]:
    """Rows of other models that were measured before."""
    return [row for row in harness.read_rows(path) if row["model"] not in models]


def cost_all(names: list[str], limit: float, out: str) -> None:
    """Measure the cost of all models and write it; models that are not named keep their rows."""
    rows = kept_rows(harness.results_path("cost", out), names)
    for name in names:
        for place in GRIDS:
            for checkpointing in (False, True):
                # Each in a separate process, since a peak of memory never falls.
                row = cost_apart(name, place, checkpointing, limit)
                rows.append(row)
                print(row, flush=True)
    harness.write("cost", rows, out)


def smoke_all(names: list[str], minutes: float, out: str) -> None:
    """Make the table, the baseline first, and the picture.

    Models that are not named keep what was measured before; those that are named go to the end.
    """
    path = harness.results_path("families", out)
    kept = kept_rows(path, [BASELINE, *names])
    rows = [baseline_row(), *kept]
    models: dict[str, ts.DensityModel] = {}
    for name in names:
        row, models[name] = smoke(name, minutes)
        rows.append(row)
        print(json.dumps(row), flush=True)
    harness.write("families", rows, out)

    picture = harness.ROOT / "docs" / "images" / "families.png"
    if out:
        picture = path.with_suffix(".png")
    draw_picture(models, len(kept), picture)


def baseline_row() -> harness.Row:
    """The row of independent symbols, whose frequencies are counted, not trained."""
    train = digits("train")
    model = ts.create(BASELINE, ts.Grid(8, 8, 1, train.levels))
    assert isinstance(model, Independent)
    # It is the independent model, whose best table is a count.
    model.fit(pixel_generator(model).encode(np.asarray(train.images[:])))
    bits = score(model, digits("test"))
    return {
        "model": BASELINE,
        "commit": harness.commit(),
        "parameters": model.parameter_count(),
        "bits_per_dim": float(bits.mean()),
        "standard_error": standard_error(bits),
    }


def main() -> None:
    """Run the part that the command line names."""
    families = [name for name in ts.MODELS if name != BASELINE]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["smoke", "cost", "cost-one"])
    parser.add_argument("one", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="*", default=families)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument(
        "--limit", type=float, default=240, help="seconds that the three steps of a cost may take"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.part == "smoke":
        smoke_all(chosen.models, chosen.minutes, chosen.out)
    elif chosen.part == "cost":
        cost_all(chosen.models, chosen.limit, chosen.out)
    else:
        name, place, checkpointing = chosen.one
        try:
            print(json.dumps(cost(name, GRIDS[place], checkpointing == "1")))
        except ConfigError as error:
            # Begins with the word that scripts/model_tables.py looks for.
            sys.exit(f"refused: {error}")


if __name__ == "__main__":
    main()

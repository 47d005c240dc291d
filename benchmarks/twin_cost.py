"""What exact twins cost in bits, for each family and each head, on real images.

    python benchmarks/twin_cost.py --crops natural-crops.npz
    python benchmarks/twin_cost.py --only lstm --steps 20 --json tiny.json
    python benchmarks/twin_cost.py --runs runs/mnist --test 100

Each model is trained for so many steps in 32-bit floating point, converted with a few of its
training images, and scored together with its twin on the same held-out images: the difference is
what integers cost. There are two sets: the 8x8 digits (17 levels), and with ``--crops`` colour
images of 8x8 pixels and 256 levels, from the corners of the crops that
``benchmarks/natural_crops.py`` wrote. With ``--runs``, models that were trained before are measured
instead, on the test images of their data. Results are merged into ``results/twin_cost.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
import torch

import tessella as ts
from tessella import data
from tessella.config import DataConfig
from tessella.evaluation.image_source import data_config
from tessella.evaluation.metrics import standard_error
from tessella.pipeline import Generator, pixel_generator

FAMILIES = (
    "gated-pixelcnn",
    "pixelcnn++",
    "pixelsnail",
    "transformer",
    "pixelcnn",
    "row-lstm",
    "diagonal-bilstm",
    "lstm",
)
PREDICTED = "logistic-mixture, predictor"
"""Stands for the head with a linear predictor."""
HEADS = ("categorical", "ordinal", "logistic-mixture", PREDICTED)
KEYS = ("set", "family", "head")

SIDE = 8
"""Of the images from the corners of crops."""
CROPS = (4000, 100, 1000)
"""Crops for training, for validation and to compare on."""
CALIBRATION = 16
"""Training images for the conversion."""
SCORED_AT_ONCE = 50
LARGEST_COST = 0.002
"""Bits per dimension that a twin may cost."""


@dataclass(frozen=True)
class Images:
    """A set of real images to train on, and to compare on."""

    name: str
    train: data.ImageSet | np.ndarray
    valid: data.ImageSet | np.ndarray
    test: data.ImageSet | np.ndarray
    grid: ts.Grid


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--crops", type=Path, help="npz file of natural crops")
    parser.add_argument(
        "--runs", nargs="*", type=Path, default=[], help="trained runs to measure instead"
    )
    parser.add_argument("--only", nargs="*", default=FAMILIES, help="families")
    parser.add_argument("--sets", nargs="*", help="only those whose names begin like this")
    parser.add_argument("--heads", nargs="*", default=HEADS)
    parser.add_argument("--steps", type=int, default=200, help="training steps of each model")
    parser.add_argument("--batch", type=int, default=32, help="images of a training step")
    parser.add_argument("--test", type=int, default=100, help="held-out images to score")
    parser.add_argument("--json", default="", help="another file of results")
    chosen = parser.parse_args()
    torch.set_num_threads(1)

    largest = 0.0
    for run in chosen.runs:
        largest = max(largest, report(measure_run(run, chosen.test), chosen.json))
    if not chosen.runs:
        for images in image_sets(chosen.crops):
            if chosen.sets and not images.name.startswith(tuple(chosen.sets)):
                continue
            for family in chosen.only:
                for head in chosen.heads:
                    row = measure_family(images, family, head, chosen)
                    largest = max(largest, report(row, chosen.json))
    if largest > LARGEST_COST:
        sys.exit(f"a twin costs {largest:.5f} bits/dim, more than {LARGEST_COST}")


def report(row: harness.Row, out: str) -> float:
    """Keep and print a row; returns what the twin costs."""
    harness.merge("twin_cost", row, KEYS, out)
    cost: float = row["cost"]
    print(
        f"{row['set']}, {row['family']}, {row['head']}: {row['model_bits_per_dim']:.4f} bits/dim, "
        f"the twin {cost:+.6f} ± {row['cost_se']:.6f}",
        flush=True,
    )
    return cost


def image_sets(crops: Path | None) -> list[Images]:
    """The digits, and corners of natural crops if there is a file of them."""
    parts = []
    for split in data.SPLITS:
        parts.append(data.load(DataConfig(source="digits"), split))
    sets = [Images("8x8 digits", *parts, ts.Grid(8, 8, 1, 17))]
    if crops is not None:
        cut = []
        with np.load(crops) as arrays:
            for split, count in zip(data.SPLITS, CROPS, strict=True):
                cut.append(corners(arrays[f"{split}_images"], count))
        sets.append(Images("8x8x3 natural crops", *cut, ts.Grid(SIDE, SIDE, 3, 256)))
    return sets


def corners(crops: np.ndarray, count: int) -> np.ndarray:
    """The upper left corners of ``count`` crops, evenly spaced among the photographs."""
    chosen = np.arange(count) * len(crops) // count
    return crops[chosen, :SIDE, :SIDE]


def measure_family(
    images: Images, family: str, head: str, chosen: argparse.Namespace
) -> harness.Row:
    """Train a model shortly and compare it with its twin."""
    if head == PREDICTED:
        model = ts.create(family, images.grid, head="logistic-mixture", seed=0, predictor=True)
    else:
        model = ts.create(family, images.grid, head=head, seed=0)
    with tempfile.TemporaryDirectory() as out:
        ts.train(
            model,
            images.train,
            valid=images.valid,
            out=Path(out) / "run",
            steps=chosen.steps,
            # Once, at the end: no training here is long enough for a better model before it.
            validate_every=chosen.steps,
            batch=chosen.batch,
            seed=0,
            threads=1,
            say=lambda line: None,
        )
    generator = pixel_generator(model)
    row: harness.Row = {"set": images.name, "family": family, "head": head, "steps": chosen.steps}
    return row | compare(generator, images.train, images.test, chosen.test)


def measure_run(run: Path, test: int) -> harness.Row:
    """Compare the model of a run with its twin, on test images of its data."""
    generator = ts.load(run)
    assert isinstance(generator, Generator)
    model = generator.priors[0]
    row: harness.Row = {"set": f"run {run.name}", "family": model.name}
    row["head"] = model.head.name if model.predictor is None else PREDICTED
    config = data_config(run)
    held_out = data.load(config, "test")
    return row | compare(generator, data.load(config, "train"), held_out, test)


def compare(
    generator: Generator,
    train: data.ImageSet | np.ndarray,
    test: data.ImageSet | np.ndarray,
    count: int,
) -> harness.Row:
    """Bits per dimension of a model and of its twin on the same images."""
    model = generator.priors[0].eval()
    twin = model.exact(encode(generator, train, CALIBRATION))
    symbols = encode(generator, test, count)
    of_model = score(model, symbols)
    of_twin = score(twin, symbols)
    cost = of_twin - of_model
    return {
        "test_images": len(symbols),
        "model_bits_per_dim": float(of_model.mean()),
        "twin_bits_per_dim": float(of_twin.mean()),
        "cost": float(cost.mean()),
        "cost_se": standard_error(cost),
        "largest_cost_of_an_image": float(cost.max()),
        "within_limit": float(cost.mean()) <= LARGEST_COST,
    }


def encode(generator: Generator, images: data.ImageSet | np.ndarray, count: int) -> torch.Tensor:
    """Symbols of ``count`` images, evenly spaced."""
    pixels = images if isinstance(images, np.ndarray) else np.asarray(images.images[:])
    count = min(count, len(pixels))
    return generator.encode(pixels[np.arange(count) * len(pixels) // count])


@torch.no_grad()
def score(model: ts.DensityModel, symbols: torch.Tensor) -> torch.Tensor:
    """Bits per dimension of each image, ``[n]``."""
    return torch.cat([model.bits_per_dim(part) for part in symbols.split(SCORED_AT_ONCE)])


if __name__ == "__main__":
    main()

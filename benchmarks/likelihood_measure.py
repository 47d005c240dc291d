"""What is measured of a trained cell of ``likelihood.py``: its row.

The test figure is the mean over all test images, with its standard error. Where a table says
``draws``, the test images are grey and a model sees them binarized: each is drawn so many times,
pixel by pixel from Bernoulli(v/255), with the seeds ``binarize_seed``, ``binarize_seed + 1``, ...,
the same for every model, and its figure is the mean over its draws. That mean is an unbiased
estimate of the expected bits of the image, which is what a model that is trained on fresh draws
learns; the standard error over images holds the scatter of the draws too.

The first point of a curve is the model before its first step: made anew from the recipe, whose seed
decides the weights, and measured on the validation images as a validation measures them, and on at
most ``START_IMAGES`` of the test images, spread evenly.
"""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path

import bounds
import harness
import likelihood_data
import numpy as np
import torch
from likelihood_cells import Cell

import tessella as ts
from tessella import data, files
from tessella.evaluation import data_config
from tessella.models import DensityModel
from tessella.pipeline import Generator
from tessella.training import build
from tessella.training.trainer import VALID_LIMIT

BATCHES = (1, 16)
"""Images drawn at a time."""
REACH = 24
"""Levels to either side of the true one whose probability is recorded."""
TABLE = 2**23
"""Probabilities in memory at a time: larger tensors cost more in pages than they save in calls."""
NEAR = 512
"""Images, spread evenly over the test images, over which these probabilities are averaged."""
START_IMAGES = 500
"""Test images on which the untrained model is measured."""


def measure(cell: Cell, out: Path) -> harness.Row:
    """The row of a trained cell."""
    facts = json.loads((out / "run.json").read_text(encoding="utf-8"))
    progress = facts["progress"]
    count = facts["data"]["train"]["count"]
    train = cell.recipe.train
    row: harness.Row = {
        "table": cell.table,
        "cell": cell.name,
        "seed": train.seed,
        "settings": cell.settings,
        "budget_minutes": train.minutes,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "training_data": {
            "train_sha256": facts["data"]["train"]["sha256"],
            "valid_sha256": facts["data"]["valid"]["sha256"],
            "made": likelihood_data.description(cell.recipe.data),
        },
        "train_images": count,
        "steps": progress["step"],
        "best_step": progress["best_step"],
        "minutes": progress["seconds"] / 60,
        "training_minutes": progress.get("training", 0.0) / 60,
        "images_seen": progress["step"] * train.batch,
        "epochs": progress["step"] * train.batch / count,
        "valid": progress["figures"],
        "curve": curve(out, train.batch),
        "sittings": facts.get("sittings", []),
    }
    if cell.in_bounds:
        return row | measure_bounds(out)
    row |= measure_likelihood(cell, out)
    row["start"] = measure_start(cell)
    return row


def versions() -> dict[str, str]:
    """The versions of what computes the figures."""
    return {
        "tessella": ts.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def curve(out: Path, batch: int) -> list[harness.Row]:
    """The validations of a run, each of the averaged weights.

    Returns:
        For each ``seconds`` of the run (preparation, validations and saving among them),
        ``training_seconds`` of its steps alone, ``step``, ``images`` seen and ``bits_per_dim``.
    """
    points = []
    for text in (out / "log.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if "valid/bits_per_dim" in line:
            points.append(
                {
                    "seconds": line["seconds"],
                    "training_seconds": line.get("training_seconds"),
                    "step": line["step"],
                    "images": line["step"] * batch,
                    "bits_per_dim": line["valid/bits_per_dim"],
                }
            )
    return points


def measure_start(cell: Cell) -> harness.Row:
    """Bits/dim before the first step, on validation and on test images."""
    recipe = cell.located_recipe()
    images = build.load_split(recipe, "train")
    model = build.build_model(recipe, images, None)
    assert isinstance(model, DensityModel)
    # A predictor is fitted before the first step.
    if model.predictor is not None:
        model.fit_predictor(torch.as_tensor(images.images))
    valid = data.load(recipe.data, "valid")
    # A validation looks at the first images.
    first = replace(valid, images=valid.images[:VALID_LIMIT], labels=None, names=None)
    every = data.load(replace(recipe.data, limit=0), "test")
    places = np.unique(np.linspace(0, len(every) - 1, START_IMAGES).astype(int))
    spread = replace(every, images=every.images[places], labels=None, names=None)
    row: harness.Row = {}
    for name, images in (("valid", first), ("test", spread)):
        figures = ts.evaluate(model, images, batch=batch_of(model))
        row[name] = {
            "images": len(images),
            "bits_per_dim": figures["bits_per_dim"],
            "bits_per_dim_se": figures["bits_per_dim_se"],
        }
    return row


def batch_of(model: DensityModel) -> int:
    """Images to measure at a time."""
    # An image needs a table of as many probabilities as it has symbols times levels.
    return min(100, max(1, TABLE // (model.grid.symbols * model.grid.levels)))


def measure_likelihood(cell: Cell, out: Path) -> harness.Row:
    """Exact figures on the test images, and times. Writes the bits of each image beside the row."""
    test = held_out_images(out)
    model = ts.load(out)
    assert isinstance(model, Generator)
    prior = model.priors[0]
    # The run, not the model, so that images seen in training are counted.
    found = ts.assess(out, test, batch=batch_of(prior))
    nats = [found.measured.values["nats"].numpy()]
    for draw in range(1, cell.draws):
        again = ts.assess(out, held_out_images(out, draw), batch=batch_of(prior))
        nats.append(again.measured.values["nats"].numpy())
    bits = np.mean(nats, axis=0) / (prior.grid.symbols * ts.grid.LN2)

    figures = test_figures(found.figures)
    if cell.draws > 1:
        figures |= averaged(np.mean(nats, axis=0), prior.grid.symbols)
        figures["draws"] = cell.draws
    row: harness.Row = {
        "parameters": prior.parameter_count(),
        "test": figures,
        "seconds_an_image": {str(n): seconds_an_image(model, n) for n in BATCHES},
    }
    groups = groups_of_test(cell, test)
    save_bits(cell, bits, groups)
    if cell.each_image:
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
    # Of training images that are drawn anew nobody can say which ones were seen.
    kept["identical"] = None
    if figures["overlap"] is not None:
        kept["identical"] = figures["overlap"]["identical"]
    return kept


def averaged(nats: np.ndarray, symbols: int) -> harness.Row:
    """The figures of images whose nats are means over draws, ``[n]``."""
    error = float(nats.std(ddof=1)) / len(nats) ** 0.5
    in_bits = symbols * ts.grid.LN2
    return {
        "nats_per_image": float(nats.mean()),
        "nats_per_image_se": error,
        "bits_per_dim": float(nats.mean()) / in_bits,
        "bits_per_dim_se": error / in_bits,
    }


def save_bits(cell: Cell, bits: np.ndarray, groups: np.ndarray | None) -> None:
    """Write bits/dim of each test image, and the photograph it is a tile of, if any."""
    tensors = {"bits_per_dim": torch.from_numpy(bits.astype(np.float32))}
    if groups is not None:
        tensors["groups"] = torch.from_numpy(groups.astype(np.int32))
    cell.bits_of_images.parent.mkdir(parents=True, exist_ok=True)
    files.write_tensors(cell.bits_of_images, tensors)


def groups_of_test(cell: Cell, test: data.ImageSet) -> np.ndarray | None:
    """The number of the photograph that each test image is a tile of; None of whole images."""
    names = file_names(test)
    if len(set(names)) < len(names):
        return np.unique(names, return_inverse=True)[1]
    return likelihood_data.photographs_of_test(cell.located_recipe().data)


def measure_bounds(out: Path) -> harness.Row:
    """Bits of the pixels, exact or bounded, and times."""
    row = bounds.measure(str(out), held_out_images(out), samples=0, batch=100)
    # Those of the tokenizer are among these minutes.
    row["all_minutes"] = row.pop("minutes")
    row["seconds_an_image"] = None
    model = ts.load(out)
    if isinstance(model, Generator):
        row["seconds_an_image"] = {str(n): seconds_an_image(model, n) for n in BATCHES}
    return row


def held_out_images(out: Path, draw: int = 0) -> data.ImageSet:
    """All test images of a run, even if it was trained on a limited number of images.

    Args:
        out: the run.
        draw: which Bernoulli draw, of images that are binarized.
    """
    config = data_config(out)
    config = replace(config, limit=0, binarize_seed=config.binarize_seed + draw)
    return data.load(config, "test")


def file_names(images: data.ImageSet) -> list[str]:
    """The file that each tile is from; empty if the images are no tiles."""
    if images.names is None:
        return []
    return [str(name).partition("#")[0] for name in images.names]


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

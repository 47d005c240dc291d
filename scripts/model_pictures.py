"""Draw what a model does: samples, their nearest training images, completions, reconstructions.

    python scripts/model_pictures.py digits                 # a model that ships, or a run
    python scripts/model_pictures.py mnist --data mnist:mnist.npz
    python scripts/model_pictures.py --all                  # every model that ships

Pictures go to ``docs/images/models/NAME-WHAT.png`` and take at most 100 KB each: fewer images are
shown where they would take more. Images are those of the run; where it names a file that is not
there, the file is looked for in the folder TESSELLA_TEST_DATA.

Samples come at temperature 1, which is what the model says, and with two common rules, which do
not. A model of several classes is also shown class by class, with guidance and without. Beside each
sample stands the training image that is nearest to it, by the sum of squared differences of the
pixels: a model that copies its training images shows here. A model of codes is shown with its
reconstructions, too, since no sample can be sharper than those.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import tessella as ts
from tessella import data
from tessella.config import DataConfig
from tessella.data import ImageSet
from tessella.evaluation import data_config
from tessella.files import pictures
from tessella.pipeline import (
    Generator,
    SavedModel,
    bundled,
    class_count,
    fingerprint,
    load_saved,
    locate,
)
from tessella.sampling import SamplingKeywords
from tessella.tokenizers import Tokenizer

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images" / "models"

LARGEST = 100_000
"""Bytes that a picture may take."""

RULES: dict[str, SamplingKeywords] = {
    "temperature 1": {},
    "temperature 0.9": {"temperature": 0.9},
    "top-p 0.95": {"top_p": 0.95},
}
"""Rules of drawing by their captions."""

CLASS_RULES: dict[str, SamplingKeywords] = {
    "temperature 1": {},
    "guidance 1.5, top-p 0.95": {"guidance": 1.5, "top_p": 0.95},
}
"""Rules of the picture that has a column for each class."""

MASKED = 128
"""Grey level of pixels that are not kept."""

VARIANTS = 4
"""Completions of an image."""

CHUNK = 5000
"""Training images that are compared at a time."""

SHEET = 240
"""Pixels of a sheet's side, about: small images are magnified to it."""

Panels = list[tuple[str, np.ndarray]]
"""Captions and sheets."""


def draw_all(run: str, source: str = "") -> list[Path]:
    """Draw every picture that a model has.

    Args:
        run: a model that ships, or a run directory.
        source: where its images are now; empty where the run says.

    Returns:
        The files.
    """
    model = load_saved(run)
    config = images_of(run, source)
    held_out = data.load(config, "valid")
    # Neighbours in a split may be alike.
    stride = max(1, len(held_out) // 64)
    shown = np.asarray(held_out.images[:])[::stride]
    name = Path(run).name
    if isinstance(model, Tokenizer):
        return [draw(name, "reconstructions", lambda n: reconstructions(model, shown[:n]), model)]
    if not isinstance(model, Generator):
        raise SystemExit(f"{run} is neither a density model nor a tokenizer: nothing to draw")
    training = data.load(replace(config, flip=False), "train")
    drawn = [
        draw(name, "samples", lambda n: samples(model, n), model),
        draw(name, "nearest", lambda n: beside_nearest(model, n, training), model),
        draw(name, "completions", lambda n: completions(model, shown[: n // 4]), model),
    ]
    if class_count(model):
        drawn.append(draw(name, "classes", lambda n: class_columns(model, n), model))
    if model.two_stage:
        coded = model.tokenizer
        drawn.append(
            draw(name, "reconstructions", lambda n: reconstructions(coded, shown[:n]), model)
        )
    return drawn


def images_of(run: str, source: str) -> DataConfig:
    """The images of a run, at the place where they are now."""
    config = data_config(locate(run))
    if source:
        return replace(config, source=source)
    kind, _, path = config.source.partition(":")
    elsewhere = Path(os.environ.get("TESSELLA_TEST_DATA", "")) / path
    if path and not Path(path).exists() and elsewhere.exists():
        return replace(config, source=f"{kind}:{elsewhere}")
    return config


def draw(name: str, what: str, make: Callable[[int], Panels], model: SavedModel) -> Path:
    """Write a picture of as many images as its bytes allow.

    Args:
        name: of the model.
        what: the picture shows.
        make: panels with so many images.
        model: that is shown.
    """
    path = FOLDER / f"{name}-{what}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Which model made it is written into the PNG.
    facts = {"tessella": ts.__version__, "seed": 0, "model": fingerprint(model)}
    for count in (36, 24, 16, 8, 4):
        pictures.save_png(path, pictures.captioned(make(count)), facts)
        if path.stat().st_size <= LARGEST:
            return path
    raise SystemExit(f"{path} takes {path.stat().st_size:,} bytes even with four images")


def samples(model: Generator, count: int) -> Panels:
    """Samples by each rule, of the same seeds."""
    panels = []
    for caption, rule in RULES.items():
        drawn = model.sample(count, seed=0, cond=classes(model, count), **rule).numpy()
        panels.append((caption, sheet(drawn)))
    return panels


def class_columns(model: Generator, count: int) -> Panels:
    """Samples of every class by a few rules, in a column for each class."""
    columns = class_count(model)
    labels = torch.arange(columns * max(1, round(count / columns))) % columns
    panels = []
    for caption, rule in CLASS_RULES.items():
        drawn = model.sample(len(labels), seed=0, cond=labels, **rule).numpy()
        page = pictures.sheet(drawn, columns, magnified(drawn))
        panels.append((f"classes 0 to {columns - 1}, {caption}", page))
    return panels


def classes(model: Generator, count: int) -> torch.Tensor | None:
    """All classes in turn, of a model that has some."""
    if not class_count(model):
        return None
    return torch.arange(count) % class_count(model)


def beside_nearest(model: Generator, count: int, training: ImageSet) -> Panels:
    """Samples, each with the nearest training image on its right."""
    drawn = model.sample(count // 2, seed=0, cond=classes(model, count // 2)).numpy()
    found = nearest_candidates(drawn, training)
    columns = max(1, count // 6)
    pairs = pictures.beside_nearest(drawn, found, columns, magnified(drawn))
    return [("sample | nearest of the training images", pairs)]


def nearest_candidates(images: np.ndarray, training: ImageSet) -> np.ndarray:
    """Training images among which the nearest of each image is: the nearest of every chunk."""
    kept = []
    flat = images.reshape(len(images), -1).astype(np.float32)
    for start in range(0, len(training), CHUNK):
        chunk = np.asarray(training.images[start : start + CHUNK])
        others = chunk.reshape(len(chunk), -1).astype(np.float32)
        # |a - b|^2 less |a|^2, which is alike for all b.
        distances = (others**2).sum(1)[None] - 2 * flat @ others.T
        kept.append(chunk[np.unique(distances.argmin(1))])
    return np.concatenate(kept)


def completions(model: Generator, images: np.ndarray) -> Panels:
    """Held-out images, their upper halves, and ways to go on from these."""
    height, width = images.shape[1:3]
    known = torch.zeros(height, width, dtype=torch.bool)
    known[: height // 2] = True
    repeated = np.repeat(images, VARIANTS, axis=0)  # [n * variants, h, w, c]
    drawn = model.complete(repeated, known, seed=0).numpy()
    variants = drawn.reshape(len(images), VARIANTS, *images.shape[1:])
    halves = np.where(known.numpy()[None, :, :, None], images, MASKED).astype(np.uint8)
    columns = 2 + VARIANTS
    rows = np.concatenate([images[:, None], halves[:, None], variants], axis=1)
    page = pictures.sheet(rows.reshape(-1, *images.shape[1:]), columns, magnified(images))
    return [(f"held out | its upper half | completed in {VARIANTS} ways", page)]


def reconstructions(model: Tokenizer, images: np.ndarray) -> Panels:
    """Held-out images beside what comes back of their codes."""
    rebuilt = model.decode(model.encode(images), images.shape[1:3]).numpy()
    grids = ", ".join(f"{grid.height}x{grid.width} of {grid.levels}" for grid in model.grids())
    return [("held out", sheet(images)), (f"rebuilt from codes, {grids}", sheet(rebuilt))]


def sheet(images: np.ndarray) -> np.ndarray:
    return pictures.sheet(images, round(len(images) ** 0.5), magnified(images))


def magnified(images: np.ndarray) -> int:
    """Times that a pixel is repeated, so that small images can be seen."""
    side = round(len(images) ** 0.5) * max(images.shape[1:3])
    return min(6, max(1, SHEET // side))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", help="a model that ships, or a run directory")
    parser.add_argument("--data", default="", help="where the images of the run are now")
    parser.add_argument("--all", action="store_true", help="every model that ships")
    given = parser.parse_args(arguments)
    if not given.run and not given.all:
        parser.error("give RUN, or --all")
    runs = bundled() if given.all else [given.run]
    for run in runs:
        for path in draw_all(run, given.data):
            print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])

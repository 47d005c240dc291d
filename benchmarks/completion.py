"""What the lower half of an image says about its upper half, under trained runs.

    python benchmarks/completion.py RUN [RUN ...] --data npz:PATH --bits 28x28

The upper half of every held-out image is scored in two ways: alone, ``log p(upper)`` in raster
order, which is all that a raster model can do, since its upper half comes first; and, where the
model predicts in any order, given the lower half, ``log p(upper | lower)``, exactly. These are the
probabilities with which ``tessella complete`` draws it. The runs must be pixel models of images of
one size and one number of levels, without classes. All are measured on the same images, so that
differences are taken image by image. Writes ``results/completion.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np
import torch

import tessella as ts
from tessella import data
from tessella.config import DataConfig
from tessella.evaluation.metrics import standard_error
from tessella.grid import Grid

Scores = dict[str, torch.Tensor]
"""Nats of each image's upper half, ``[n]``, by what it was given."""


@dataclass(frozen=True)
class Scored:
    """A run and what it gives to the upper halves."""

    run: str
    family: str
    parameters: int
    minutes: float | None
    seconds: float
    scores: Scores


def pixel_model(run: str) -> ts.DensityModel:
    """The density model of a run.

    Raises:
        ValueError: for a run that holds something else, or a model with classes.
    """
    loaded = ts.load(run, expect=ts.Generator)
    model = loaded.prior
    if loaded.two_stage or not isinstance(model, ts.DensityModel) or model.classes:
        raise ValueError(f"{run} is no model of pixels without classes")
    return model


def symbols_of(images: np.ndarray, grid: Grid) -> torch.Tensor:
    """Images ``uint8 [n, h, w, c]`` as symbols of a grid.

    Raises:
        ValueError: when their size is not that of the grid.
    """
    if images.shape[1:] != grid.shape:
        raise ValueError(f"the images are {images.shape[1:]}, the models describe {grid}")
    identity = ts.create_tokenizer(
        "identity", image_size=(grid.height, grid.width), channels=grid.channels, levels=grid.levels
    )
    symbols = identity.encode(images)
    assert isinstance(symbols, torch.Tensor)
    return symbols


def lower_half(grid: Grid) -> torch.Tensor:
    """The rows from the middle on: ``bool [height, width]``."""
    known = torch.zeros(grid.height, grid.width, dtype=torch.bool)
    known[grid.height // 2 :] = True
    return known


@torch.no_grad()
def score(model: ts.DensityModel, x: torch.Tensor, batch: int) -> Scores:
    """Nats of the upper half of each image, alone and (where that can be had) given the lower."""
    known = lower_half(model.grid)
    alone: list[torch.Tensor] = []
    given: list[torch.Tensor] = []
    for part in x.split(batch):
        nats = model.log_prob(part, reduce=False)  # [b, h, w, c]
        alone.append(-nats[:, ~known].flatten(1).sum(1))
        if model.any_order:
            given.append(-ts.log_prob_missing(model, part, known))
    scores = {"alone": torch.cat(alone).double()}
    if given:
        scores["given_lower"] = torch.cat(given).double()
    return scores


def measure(run: str, images: np.ndarray, batch: int) -> Scored:
    """Score all images under a run."""
    model = pixel_model(run)
    x = symbols_of(images, model.grid)
    started = time.perf_counter()
    scores = score(model, x, batch)
    return Scored(
        run=run,
        family=model.name,
        parameters=model.parameter_count(),
        minutes=minutes_of_training(Path(run)),
        seconds=time.perf_counter() - started,
        scores=scores,
    )


def minutes_of_training(run: Path) -> float | None:
    """Minutes that a run took; None where it does not say."""
    record = run / "run.json"
    if not record.exists():
        return None
    facts = json.loads(record.read_text(encoding="utf-8"))
    return float(facts["progress"]["seconds"]) / 60


def row_of(scored: Scored, compared: torch.Tensor, facts: harness.Row) -> harness.Row:
    """A row of the result file.

    Args:
        scored: of a run.
        compared: the nats ``[n]`` that are subtracted, image by image.
        facts: of the images, alike for all runs.
    """
    row: harness.Row = {
        "run": Path(scored.run).name,
        "model": scored.family,
        "parameters": scored.parameters,
        "minutes": scored.minutes,
        "seconds": scored.seconds,
        **facts,
    }
    for name, nats in scored.scores.items():
        row[f"nats_{name}"] = float(nats.mean())
        row[f"nats_{name}_se"] = standard_error(nats)
        difference = nats - compared
        row[f"nats_{name}_minus_reference"] = float(difference.mean())
        row[f"nats_{name}_minus_reference_se"] = standard_error(difference)
    return row


def reference(measured: Sequence[Scored]) -> torch.Tensor:
    """The nats ``[n]`` that others are compared with: of the first run that sees the lower half.

    Without such a run, those of the first run.
    """
    for scored in measured:
        if "given_lower" in scored.scores:
            return scored.scores["given_lower"]
    return measured[0].scores["alone"]


def main() -> None:
    """Measure the runs that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="run directories")
    parser.add_argument("--data", required=True, help="source of the images, such as mnist:PATH")
    parser.add_argument("--bits", default="", help="shape of images that are stored as bits")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=0, help="only so many images; 0 for all")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)

    config = DataConfig(source=chosen.data, bits=chosen.bits, limit=chosen.limit)
    images = data.load(config, chosen.split).images[:]
    facts: harness.Row = {"images": len(images), "split": chosen.split}
    measured = [measure(run, images, chosen.batch) for run in chosen.runs]
    compared = reference(measured)
    rows = [row_of(scored, compared, facts) for scored in measured]
    for row in rows:
        print(json.dumps(row))
    print(harness.write("completion", rows, chosen.out))


if __name__ == "__main__":
    main()

"""Priors on the codes of one tokenizer: bits of a code, and the time of a drawing.

    python benchmarks/code_priors.py RUN [RUN ...] --data npz:PATH --sheet code_priors.png

The runs are priors on one tokenizer, trained for the same minutes, such as::

    tessella train cifar10-prior --tokenizer tessella/bundle/cifar10-codes/tokenizer \\
        --data npz:PATH --minutes 20 --model MODEL --out runs/codes-MODEL \\
        model.layers=6 model.width=128 model.dropout=0.05

with the models ``transformer``, ``any-order`` and ``masked``. Bits are measured on the same
held-out images, exactly, or as a bound where a model states no exact probability. Drawings are
timed in turn, as symbols, at each batch size; a masked model with each number of steps. The sheet
has a row of images for each of them. Writes ``results/code_priors.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import harness
import numpy as np
import torch

import tessella as ts
from tessella import data
from tessella.config import DataConfig
from tessella.data import ImageSet
from tessella.files import pictures
from tessella.pipeline import fingerprint
from tessella.sampling import Unmasking

SHOWN = 10
"""Images of a row of the sheet."""


@dataclass(frozen=True)
class Drawer:
    """A prior, and how it draws.

    Args:
        run: name of the run.
        generator: the prior with its tokenizer.
        unmasking: how a masked model draws; None for others.
    """

    run: str
    generator: ts.Generator
    unmasking: Unmasking | None

    @property
    def label(self) -> str:
        """The run, and the steps of a masked model."""
        if self.unmasking is None:
            return self.run
        return f"{self.run}, {self.unmasking.steps} steps"

    @property
    def passes(self) -> int:
        """Evaluations of the network for an image: steps, or one for every symbol."""
        if self.unmasking is None:
            return self.generator.symbols
        return min(self.unmasking.steps, self.generator.symbols)

    def classes(self, n: int) -> torch.Tensor | None:
        """A class for each of ``n`` images, in turn; None for a model without classes."""
        if not self.generator.classes:
            return None
        return torch.arange(n) % self.generator.classes

    def draw(self, n: int) -> None:
        """Draw the symbols of ``n`` images together."""
        stream = self.generator.stream_symbols(
            n, cond=self.classes(n), every=self.generator.symbols, unmasking=self.unmasking
        )
        for _ in stream:
            pass

    def images(self, n: int) -> np.ndarray:
        """``n`` images: uint8 ``[n, h, w, c]``."""
        drawn = self.generator.sample(n, cond=self.classes(n), unmasking=self.unmasking)
        return drawn.cpu().numpy()


def drawers_of(run: str, steps: Sequence[int]) -> list[Drawer]:
    """The ways of drawing from a run: one, or one for each number of steps of a masked model."""
    generator = ts.load(run, expect=ts.Generator)
    name = Path(run).name
    if not generator.priors[0].states_bound:
        return [Drawer(name, generator, None)]
    return [Drawer(name, generator, Unmasking(steps=count)) for count in steps]


def check_tokenizers(drawers: Sequence[Drawer]) -> None:
    """Check that all runs model the codes of one tokenizer.

    Raises:
        ValueError: naming the runs, where they do not.
    """
    found = {fingerprint(drawer.generator.tokenizer) for drawer in drawers}
    if len(found) > 1:
        runs = ", ".join(sorted({drawer.run for drawer in drawers}))
        raise ValueError(f"bits of different codes do not compare: {runs} have several tokenizers")


def bits_of(run: str, images: ImageSet, batch: int) -> harness.Row:
    """Bits of a code, with their standard error, and whether they are exact or a bound."""
    started = time.perf_counter()
    figures = ts.evaluate(run, images, batch=batch)
    exact = "bits_per_code" in figures
    name = "bits_per_code" if exact else "bound_bits_per_code"
    return {
        "bits_per_code": figures[name],
        "bits_per_code_se": figures[f"{name}_se"],
        "bits_are": "exact" if exact else "a bound",
        "condition": figures.get("condition"),
        "images": figures["images"],
        "seconds_of_scoring": time.perf_counter() - started,
    }


def minutes_of_training(run: Path) -> float | None:
    """Minutes that a run took; None where it does not say."""
    record = run / "run.json"
    if not record.exists():
        return None
    facts = json.loads(record.read_text(encoding="utf-8"))
    return float(facts["progress"]["seconds"]) / 60


def time_drawings(
    drawers: Sequence[Drawer], batches: Sequence[int], rounds: int
) -> dict[str, harness.Row]:
    """Milliseconds an image of each way of drawing, at each batch size, measured in turn."""
    found: dict[str, harness.Row] = {drawer.label: {} for drawer in drawers}
    for batch in batches:
        work = {drawer.label: partial(drawer.draw, batch) for drawer in drawers}
        for label, seconds in harness.alternate(work, rounds).items():
            found[label][f"ms_an_image_at_{batch}"] = 1000 * seconds["median"] / batch
    return found


def save_sheet(drawers: Sequence[Drawer], out: Path) -> None:
    """Save a picture with a row of images for each way of drawing, from equal seeds."""
    rows = np.concatenate([drawer.images(SHOWN) for drawer in drawers])
    made: dict[str, object] = {"rows": [drawer.label for drawer in drawers]}
    pictures.save_png(out, pictures.sheet(rows, columns=SHOWN), made)


def main() -> None:
    """Measure the runs that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="run directories of priors on one tokenizer")
    parser.add_argument("--data", required=True, help="source of the images, such as npz:PATH")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=2000, help="images to score; 0 for all")
    parser.add_argument("--steps", nargs="*", type=int, default=[8, 12], help="of masked models")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sheet", default="", help="picture of samples, a row for each")
    parser.add_argument("--out", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)

    by_run = {run: drawers_of(run, chosen.steps) for run in chosen.runs}
    drawers = [drawer for several in by_run.values() for drawer in several]
    check_tokenizers(drawers)
    images = data.load(DataConfig(source=chosen.data, limit=chosen.limit), chosen.split)
    times = time_drawings(drawers, chosen.batches, chosen.rounds)
    rows: list[harness.Row] = []
    for run, several in by_run.items():
        bits = bits_of(run, images, batch=64)
        for drawer in several:
            facts: harness.Row = {
                "run": drawer.label,
                "model": drawer.generator.prior.name,
                "parameters": drawer.generator.prior.parameter_count(),
                "minutes": minutes_of_training(Path(run)),
                "passes_an_image": drawer.passes,
            }
            rows.append(facts | bits | times[drawer.label])
            print(json.dumps(rows[-1]), flush=True)
    if chosen.sheet:
        save_sheet(drawers, Path(chosen.sheet))
    print(harness.write("code_priors", rows, chosen.out))


if __name__ == "__main__":
    main()

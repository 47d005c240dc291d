"""Bits per sub-pixel of the images of a test split, under trained runs of any kind.

    python benchmarks/bounds.py RUN [RUN ...] --data npz:PATH

Of a pixel model the bits are exact. Of a two-stage model whose tokenizer has a likelihood they are
bounded from above by those of the encoder's codes under the prior plus those of the pixels given
the codes; of a VAE by the importance-weighted bound. Tokenizers without a prior give the pixels'
part alone. All runs are measured on the same images; runs on other levels than 256 are refused,
since the images differ. PSNR is that of reconstructions. Writes ``results/bounds.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
import torch

import tessella as ts
from tessella import data
from tessella.config import DataConfig
from tessella.data import ImageSet
from tessella.pipeline import Generator, load
from tessella.tokenizers import Tokenizer
from tessella.vae import VAE

LEVELS = 256
"""Levels of the images."""
ERRORS = ("bits_per_dim_se", "psnr_db_se")
COLUMNS = (
    "run",
    "model",
    "minutes",
    "symbols",
    "bits_per_dim",
    "exact",
    "code_bits",
    "pixel_bits",
    "psnr_db",
    "seconds_an_image",
)


def measure(run: str, images: ImageSet, samples: int, batch: int) -> harness.Row:
    """One row of the table; with ``samples=0`` nothing is drawn.

    Raises:
        ValueError: for a model of fewer levels than the images have.
    """
    model = load(run)
    check_levels(run, model)

    started = time.perf_counter()
    figures = ts.evaluate(run, images, batch=batch)
    seconds = time.perf_counter() - started

    # The keys are those of COLUMNS, and of scripts/tokenizer_tables.py.
    row = {"run": Path(run).name, "model": describe(model), "images": len(images)}
    row |= bits(model, figures)
    row["evaluation_seconds"] = seconds
    for name in ("psnr_db", "psnr_db_se", "ssim", "bound_samples"):
        row[name] = figures.get(name)
    row["parameters"] = count_parameters(model)
    row["symbols"] = count_symbols(model)
    row["minutes"] = minutes_of_training(Path(run))
    row["seconds_an_image"] = None
    # A tokenizer alone has nothing to draw its codes from.
    if samples and not isinstance(model, Tokenizer):
        row["seconds_an_image"] = seconds_an_image(model, samples)
    row["weights"] = figures["weights"]
    row["data"] = dict(figures["data"])
    return row


def check_levels(run: str, model: Generator | Tokenizer | VAE) -> None:
    """Refuse a model of other levels than the images have.

    Raises:
        ValueError: for such a model.
    """
    levels = LEVELS
    if isinstance(model, VAE):
        levels = model.levels
    elif isinstance(model, Generator) and not model.two_stage:
        levels = model.priors[0].grid.levels
    # The prior of a two-stage model has levels too, but those are codes: its tokenizer rebuilds
    # pixels of any level.
    if levels != LEVELS:
        raise ValueError(
            f"{run} knows {levels} levels, the images have {LEVELS}: their bits cannot be compared"
        )


def count_parameters(model: Generator | Tokenizer | VAE) -> int:
    """Parameters of a model, those of its tokenizer among them."""
    if isinstance(model, Generator):
        return harness.count_parameters(model.tokenizer, model.prior)
    return harness.count_parameters(model)


def bits(model: Generator | Tokenizer | VAE, figures: Mapping[str, Any]) -> harness.Row:
    """Bits per sub-pixel of the images, and their parts."""
    exact = isinstance(model, Generator) and not model.two_stage
    # Codes lose details, so with them bits are known up to a bound.
    name = "bound_bits_per_dim"
    if exact:
        name = "bits_per_dim"
    return {
        "bits_per_dim": figures.get(name),
        "bits_per_dim_se": figures.get(f"{name}_se"),
        "exact": exact,
        "code_bits": figures.get("code_bits_per_dim", figures.get("bits_per_image_dim")),
        "pixel_bits": figures.get("pixel_bits_per_dim"),
    }


def count_symbols(model: Generator | Tokenizer | VAE) -> int | None:
    """Length of the sequence that is drawn symbol by symbol; None where nothing is."""
    if not isinstance(model, Generator):
        return None
    return sum(prior.grid.symbols for prior in model.priors)


def minutes_of_training(run: Path) -> float | None:
    """Minutes that a run took, with those of its tokenizer; None where these are unknown."""
    if not (run / "run.json").exists():
        return None
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    # Seconds over all sittings, validation and saving among them.
    minutes = float(facts["progress"]["seconds"]) / 60
    tokenizer = facts["recipe"].get("prior_of")
    if not tokenizer:
        return minutes
    # A tokenizer may have been moved away or bundled without its record.
    earlier = minutes_of_training(Path(tokenizer))
    if earlier is None:
        return None
    return earlier + minutes


def describe(model: Generator | Tokenizer | VAE) -> str:
    """The names of the parts of a model."""
    if not isinstance(model, Generator):
        return str(model.name)
    names = [prior.name for prior in model.priors]
    if model.two_stage:
        names.insert(0, str(model.tokenizer.name))
    return " + ".join(names)


def seconds_an_image(model: Generator | VAE, samples: int) -> float:
    """Seconds to draw an image, the best of three batches."""
    times = []
    for seed in range(3):
        started = time.perf_counter()
        model.sample(samples, seed=seed)
        times.append(time.perf_counter() - started)
    return min(times) / samples


def format_table(rows: list[harness.Row]) -> str:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [format_cell(row, name) for name in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_cell(row: Mapping[str, Any], name: str) -> str:
    """A figure, with its standard error where it has one."""
    value = row[name]
    if value is None:
        text = ""
    elif isinstance(value, float):
        text = f"{value:.4g}"
    else:
        text = str(value)

    error_name = f"{name}_se"
    error = row.get(error_name)
    if error_name in ERRORS and error is not None:
        text += f" ± {error:.2g}"
    return text


def main() -> None:
    """Measure the runs that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="run directories")
    parser.add_argument("--data", required=True, help="source of the images, such as cifar10:PATH")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=0, help="only so many images; 0 for all")
    parser.add_argument("--samples", type=int, default=16, help="images drawn at a time")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--json", action="store_true", help="print the rows as JSON, not as a table"
    )
    parser.add_argument("--out", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)

    images = data.load(DataConfig(source=chosen.data, limit=chosen.limit), chosen.split)
    rows = [measure(run, images, chosen.samples, chosen.batch) for run in chosen.runs]
    path = harness.write("bounds", rows, chosen.out)
    # With --json nothing else is printed, so that the output can be piped.
    if chosen.json:
        print(json.dumps(rows, indent=2))
    else:
        print(format_table(rows))
        print(path)


if __name__ == "__main__":
    main()

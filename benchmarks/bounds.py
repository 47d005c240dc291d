"""One currency: what the images of a test split cost under trained runs of any kind, in bits per
sub-pixel.

    python benchmarks/bounds.py RUN [RUN ...] --data npz:PATH

Of a pixel model the bits are exact. Of a two-stage model whose tokenizer has a likelihood they are
bounded from above by those of the encoder's codes under the prior plus those of the pixels given
the codes; of a VAE by the importance-weighted bound. Tokenizers without a prior tell the pixels'
part alone. All runs are measured on the same images; runs on other levels than 256 are refused,
since the images differ. PSNR is that of reconstructions. Writes ``results/bounds.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import harness
import torch

import tessella as ts
from tessella import data
from tessella.config import DataConfig
from tessella.pipeline import Generator, load
from tessella.tokenizers import Tokenizer
from tessella.vae import VAE

LEVELS = 256
"""Of the images."""
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
)
COLUMNS += ("seconds_an_image",)


def measure(run: str, images: Any, samples: int, batch: int) -> dict[str, Any]:
    """One row of the table; with ``samples=0`` nothing is drawn.

    Raises:
        ValueError: for a model of fewer levels than the images have.
    """
    model = load(run)
    levels = LEVELS
    if isinstance(model, VAE):
        levels = model.levels
    elif isinstance(model, Generator) and not model.two_stage:
        levels = model.priors[0].grid.levels
    if levels != LEVELS:
        raise ValueError(
            f"{run} knows {levels} levels, the images have {LEVELS}: their bits cannot be compared"
        )
    started = time.perf_counter()
    figures = ts.evaluate(run, images, batch=batch)
    row = {
        "run": Path(run).name,
        "model": _name(model),
        "images": len(images),
        **_bits(model, figures),
    }
    row["evaluation_seconds"] = time.perf_counter() - started
    row |= {name: figures.get(name) for name in ("psnr_db", "psnr_db_se", "ssim", "bound_samples")}
    parts = [model.tokenizer, model.prior] if isinstance(model, Generator) else [model]
    row["parameters"] = sum(p.numel() for part in parts for p in part.parameters())
    row |= {"symbols": _symbols(model), "minutes": _minutes(Path(run))}
    drawn = samples and not isinstance(model, Tokenizer)
    row["seconds_an_image"] = _seconds(model, samples) if drawn else None
    return row | {"weights": figures["weights"], "data": dict(figures["data"])}


def _bits(model: Generator | Tokenizer | VAE, figures: dict[str, Any]) -> dict[str, Any]:
    """Bits per sub-pixel of the images, and their parts."""
    exact = isinstance(model, Generator) and not model.two_stage
    name = "bits_per_dim" if exact else "bound_bits_per_dim"
    return {
        "bits_per_dim": figures.get(name),
        "bits_per_dim_se": figures.get(f"{name}_se"),
        "exact": exact,
        "code_bits": figures.get("code_bits_per_dim", figures.get("bits_per_image_dim")),
        "pixel_bits": figures.get("pixel_bits_per_dim"),
    }


def _symbols(model: Generator | Tokenizer | VAE) -> int | None:
    """Length of the sequence that is drawn symbol by symbol; None where nothing is."""
    return (
        sum(prior.grid.symbols for prior in model.priors) if isinstance(model, Generator) else None
    )


def _minutes(run: Path) -> float | None:
    """Of training, that of the tokenizer of a two-stage run among it; None where that is no longer
    known."""
    if not (run / "run.json").exists():
        return None
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    before = facts["recipe"].get("prior_of")
    earlier = _minutes(Path(before)) if before else 0.0
    return None if earlier is None else earlier + float(facts["progress"]["seconds"]) / 60


def _name(model: Generator | Tokenizer | VAE) -> str:
    if not isinstance(model, Generator):
        return str(model.name)
    names = [prior.name for prior in model.priors]
    return " + ".join([str(model.tokenizer.name), *names] if model.two_stage else names)


def _seconds(model: Generator | VAE, samples: int) -> float:
    """Seconds for an image, the best of three batches."""
    times = []
    for seed in range(3):
        started = time.perf_counter()
        model.sample(samples, seed=seed)
        times.append(time.perf_counter() - started)
    return min(times) / samples


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = []
        for name in COLUMNS:
            value, error = row[name], row.get(f"{name}_se") if f"{name}_se" in ERRORS else None
            text = (
                "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
            )
            cells.append(text + (f" ± {error:.2g}" if error is not None else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
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
    print(json.dumps(rows, indent=2) if chosen.json else _table(rows))
    path = harness.write("bounds", rows, chosen.out)
    if not chosen.json:
        print(path)


if __name__ == "__main__":
    main()

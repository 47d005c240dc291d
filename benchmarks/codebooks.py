"""Every quantizer in one VQ-VAE at equal bits, and the health of ``vq-ema`` codebooks, on CIFAR-10.

    python benchmarks/codebooks.py --minutes 10            # the table: results/codebooks.json
    python benchmarks/codebooks.py --steps 2000 --only fsq # one row
    python benchmarks/codebooks.py --health --minutes 20   # vq-ema with 512 and 4096 codes

Each row is trained in a process of its own: the same encoder and decoder (the sizes and training
options of the recipe ``cifar10-vqvae``), the same images and seed, the same steps or minutes, 64
places of 9 bits an image. It is validated once, at the end, and measured on the 10,000 test images.
A row that is there with the same limit is not trained again; ``--again`` does.
vector-quantize-pytorch is measured where it is installed (``pip install vector-quantize-pytorch``).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import harness
import torch

import tessella as ts
from tessella import data
from tessella.config import DataConfig, load_recipe, to_dict
from tessella.data.image_set import ImageSet
from tessella.tokenizers import create_tokenizer
from tessella.tokenizers.quantizers import QUANTIZERS, Quantizer, QuantizerOutput

RECIPE = "cifar10-vqvae"
DATA = os.environ.get("TESSELLA_TEST_DATA", str(harness.ROOT.parent / "shared" / "data"))
PEER = "vector-quantize-pytorch"
TARGETS = {"vq-ema 512": 0.95, "vq-ema 4096": 0.90}
"""Share of the codes that must be used."""
LEAST_EVEN = 0.4
"""Perplexity by number of codes that must be reached."""


@dataclass(frozen=True)
class Row:
    """A quantizer, its number of codes, and its further arguments."""

    quantizer: str
    codes: int = 512
    options: Mapping[str, Any] = field(default_factory=dict)


ROWS = {
    "vq-ema": Row("vq-ema"),
    "rotation": Row("rotation"),
    "vq": Row("vq"),
    "vq, 8 dimensions, cosine": Row("vq", options={"code_dim": 8, "cosine": True}),
    "simvq": Row("simvq"),
    "fsq 8x8x8": Row("fsq", options={"levels": [8, 8, 8]}),
    "lfq": Row("lfq"),
    "residual-vq, 3 of 8": Row("residual-vq", 8, {"depth": 3}),
    PEER: Row(PEER),
    f"{PEER}, as vq-ema": Row(
        PEER, options={"decay": 0.98, "commitment": 0.25, "start": True, "revive_below": 2}
    ),
}
HEALTH = {name: Row("vq-ema", int(name.split()[1])) for name in TARGETS}


class Peer(Quantizer):
    """``VectorQuantize`` of vector-quantize-pytorch, at its own defaults unless told otherwise.

    Args:
        dim, codebook_size: as of every quantizer.
        decay: of its moving averages.
        commitment: weight of its loss.
        start: whether k-means places the codes.
        revive_below: count below which it replaces a code.
    """

    name = PEER
    depth = 1

    def __init__(
        self,
        dim: int = 64,
        codebook_size: int = 512,
        decay: float = 0.8,
        commitment: float = 1.0,
        start: bool = False,
        revive_below: int = 0,
    ) -> None:
        from vector_quantize_pytorch import VectorQuantize  # type: ignore[import-not-found]

        super().__init__()
        self.dim, self.levels = dim, codebook_size
        self.theirs = VectorQuantize(
            dim=dim,
            codebook_size=codebook_size,
            decay=decay,
            commitment_weight=commitment,
            kmeans_init=start,
            threshold_ema_dead_code=revive_below,
        )

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        quantized, symbols, loss = self.theirs(z.reshape(1, -1, self.dim))
        return QuantizerOutput(
            symbols.view(*z.shape[:-1], 1), quantized.view(z.shape), {"commitment": loss.sum()}, {}
        )

    @torch.no_grad()
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        return self.theirs(z.reshape(1, -1, self.dim))[1].view(*z.shape[:-1], 1)

    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        return self.theirs.codebook[symbols.squeeze(-1)]


def images(folder: Path, split: str) -> ImageSet:
    """CIFAR-10, JPEG-recompressed: ``train`` and ``valid`` of the training file, ``test`` all of
    the test file."""
    file = folder / f"cifar10_jpeg_recompressed_{'test' if split == 'test' else 'train'}.npz"
    return data.load(DataConfig(source=f"npz:{file}"), split)


def trained(row: Row, folder: Path, limit: Mapping[str, float], threads: int) -> dict[str, Any]:
    """Train a VQ-VAE with a quantizer and measure it; runs in a process of its own."""
    QUANTIZERS[PEER] = Peer
    recipe, test = load_recipe(RECIPE), images(folder, "test")
    assert recipe.tokenizer is not None
    torch.manual_seed(recipe.tokenizer.seed)
    torch.set_num_threads(threads)
    sizes = {**recipe.tokenizer.sizes, "codebook_size": row.codes, "quantizer": row.quantizer}
    model = create_tokenizer(
        "vqvae", image_size=[32, 32], channels=3, **sizes, options=dict(row.options)
    )
    options = {
        **to_dict(recipe.train),
        "minutes": 0.0,
        "steps": 0,
        "threads": threads,
        "validate_every": 10**9,
        **limit,
    }
    noise = harness.others()
    with tempfile.TemporaryDirectory() as out:
        run = ts.train(
            model,
            images(folder, "train"),
            valid=images(folder, "valid"),
            out=Path(out) / "run",
            **options,
        )
        log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    grid = model.grid()
    figures = ts.evaluate(model, test)
    for name in ("weights", "overlap", "data"):
        figures.pop(name)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bits_a_place": grid.channels * math.log2(grid.levels),
        "steps": run.progress.step,
        "seconds_a_step": _step_seconds(log),
        "processors_busy_with_others": noise(),
        **figures,
        "usage": _mean(figures["codebook_used"]) / grid.levels,
    }


def _step_seconds(log: list[dict[str, Any]]) -> float:
    """The median over stretches between lines of the log."""
    lines = [line for line in log if "seconds" in line]
    pairs = itertools.pairwise(lines)
    took = [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairs]
    return statistics.median(took)


def _mean(values: float | list[float]) -> float:
    return statistics.fmean(values) if isinstance(values, list) else values


def apart(name: str, row: Row, chosen: argparse.Namespace) -> dict[str, Any]:
    """:func:`trained` in a new process; what it prints last is the result."""
    words = [sys.executable, __file__, "--data", str(chosen.data), "--threads", str(chosen.threads)]
    words += [
        "--minutes",
        str(chosen.minutes),
        "--steps",
        str(chosen.steps),
        "--child",
        json.dumps(asdict(row)),
    ]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"name": name, "failed": f"exit {done.returncode}"}
    return {"name": name, **json.loads(done.stdout.splitlines()[-1])}


def verdict(row: Mapping[str, Any]) -> dict[str, Any]:
    """Whether a codebook reaches its targets."""
    if "failed" in row:
        return {}
    reached = row["usage"] >= TARGETS[row["name"]] and row["code_perplexity_share"] >= LEAST_EVEN
    return {
        "target_usage": TARGETS[row["name"]],
        "target_perplexity_share": LEAST_EVEN,
        "reached": reached,
    }


def shown(row: Mapping[str, Any]) -> str:
    """A row for people."""
    if "failed" in row:
        return f"{row['name']:36} failed: {row['failed']}"
    error = row["psnr_db_se"]
    return (
        f"{row['name']:36} {row['psnr_db']:.3f} ± {error:.3f} dB, {row['usage']:6.1%} used, "
        "perplexity "
        f"{_mean(row['code_perplexity']):7.1f} ({_mean(row['code_perplexity_share']):.3f} of the "
        "codes), "
        f"{row['seconds_a_step']:.4f} s a step, {row['steps']} steps"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="rows, by name")
    parser.add_argument("--health", action="store_true")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument(
        "--data", type=Path, default=Path(DATA), help="folder of cifar10_jpeg_recompressed_*.npz"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="train rows that are there too")
    parser.add_argument("--out", default="")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if bool(chosen.minutes) == bool(chosen.steps):
        parser.error("give --minutes or --steps")
    if 0 < chosen.steps <= 20:
        parser.error("--steps must be more than 20: a step is timed between lines of the log")
    limit = {"minutes": chosen.minutes} if chosen.minutes else {"steps": chosen.steps}
    if chosen.child:
        print(
            json.dumps(trained(Row(**json.loads(chosen.child)), chosen.data, limit, chosen.threads))
        )
        return
    table = HEALTH if chosen.health else ROWS
    if unknown := set(chosen.only) - set(table):
        parser.error(f"no row is named {', '.join(sorted(unknown))}; there are: {'; '.join(table)}")
    run_all({name: table[name] for name in chosen.only or table}, limit, chosen)


def run_all(
    table: Mapping[str, Row], limit: Mapping[str, float], chosen: argparse.Namespace
) -> None:
    """Train each row that is not there yet, and write it at once."""
    path = harness.results_path("codebooks", chosen.out)
    there = (
        {row["name"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    )
    for name, row in table.items():
        told = {"limit": dict(limit), "part": "health" if chosen.health else "equal bits"}
        kept = there.get(name, {})
        if (
            not chosen.again
            and "failed" not in kept
            and all(kept.get(key) == value for key, value in told.items())
        ):
            print(f"{shown(kept)} (kept)", flush=True)
            continue
        if row.quantizer == PEER and not importlib.util.find_spec("vector_quantize_pytorch"):
            print(f"{name:36} left out: {PEER} is not installed", flush=True)
            continue
        result = apart(name, row, chosen) | told
        result |= verdict(result) if chosen.health else {}
        harness.merge("codebooks", result, ["name"], chosen.out)
        print(shown(result), flush=True)


if __name__ == "__main__":
    main()

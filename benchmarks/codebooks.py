"""All quantizers in one VQ-VAE at equal bits, and the health of ``vq-ema``, on CIFAR-10.

    python benchmarks/codebooks.py --minutes 10            # the table: results/codebooks.json
    python benchmarks/codebooks.py --steps 2000 --only fsq # one row
    python benchmarks/codebooks.py --health --minutes 20   # vq-ema with 512 and 4096 codes

Each row is trained in a separate process. All have one encoder and decoder (sizes and training
options of the recipe ``cifar10-vqvae``), equal images, seed, and steps or minutes, and 64 places of
9 bits an image. A row is validated once, at the end, and measured on the 10,000 test images. Rows
that the file has for this limit are kept, unless ``--again`` is given.
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
from tessella.data import ImageSet
from tessella.tokenizers import create_tokenizer
from tessella.tokenizers.quantizers import QUANTIZERS, Quantizer, QuantizerOutput

RECIPE = "cifar10-vqvae"
DATA = os.environ.get("TESSELLA_TEST_DATA", str(harness.ROOT.parent / "shared" / "data"))
PEER = "vector-quantize-pytorch"
TARGETS = {"vq-ema 512": 0.95, "vq-ema 4096": 0.90}
"""Share of the codes that must be used."""
LEAST_PERPLEXITY = 0.4
"""Perplexity over number of codes that must be reached."""
NEVER = 10**9
"""Steps between validations, so that only the one at the end takes place."""


@dataclass(frozen=True)
class Variant:
    """A quantizer, its number of codes, and its other arguments."""

    quantizer: str
    codes: int = 512
    options: Mapping[str, Any] = field(default_factory=dict)


ROWS = {
    "vq-ema": Variant("vq-ema"),
    "rotation": Variant("rotation"),
    "vq": Variant("vq"),
    "vq, 8 dimensions, cosine": Variant("vq", options={"code_dim": 8, "cosine": True}),
    "simvq": Variant("simvq"),
    "fsq 8x8x8": Variant("fsq", options={"levels": [8, 8, 8]}),
    "lfq": Variant("lfq"),
    "residual-vq, 3 of 8": Variant("residual-vq", 8, {"depth": 3}),
    PEER: Variant(PEER),
    f"{PEER}, as vq-ema": Variant(
        PEER, options={"decay": 0.98, "commitment": 0.25, "start": True, "revive_below": 2}
    ),
}
HEALTH = {name: Variant("vq-ema", int(name.split()[1])) for name in TARGETS}


class Peer(Quantizer):
    """``VectorQuantize`` of vector-quantize-pytorch; the defaults are those of that library.

    Args:
        dim: length of a vector.
        codebook_size: number of codes.
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
        self.dim = dim
        self.levels = codebook_size
        self.theirs = VectorQuantize(
            dim=dim,
            codebook_size=codebook_size,
            decay=decay,
            commitment_weight=commitment,
            kmeans_init=start,
            threshold_ema_dead_code=revive_below,
        )

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        # z: [batch, height, width, dim]; the peer takes [1, vectors, dim].
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
    """CIFAR-10, JPEG-recompressed.

    ``train`` and ``valid`` are parts of the training file, ``test`` is all of the test file.
    """
    name = "train"
    if split == "test":
        name = "test"
    file = folder / f"cifar10_jpeg_recompressed_{name}.npz"
    return data.load(DataConfig(source=f"npz:{file}"), split)


def trained(row: Variant, folder: Path, limit: Mapping[str, float], threads: int) -> harness.Row:
    """Train a VQ-VAE with a quantizer and measure it; runs in a separate process."""
    # In this process alone, so that the peer never appears among the package's quantizers.
    QUANTIZERS.register(PEER)(Peer)
    recipe = load_recipe(RECIPE)
    test = images(folder, "test")
    # The type of a recipe cannot say that this one trains a tokenizer.
    assert recipe.tokenizer is not None
    torch.manual_seed(recipe.tokenizer.seed)
    torch.set_num_threads(threads)
    # All rows have the encoder and the decoder of the recipe.
    sizes = {**recipe.tokenizer.sizes, "codebook_size": row.codes, "quantizer": row.quantizer}
    model = create_tokenizer(
        recipe.tokenizer.name,
        image_size=[32, 32],
        channels=3,
        **sizes,
        options=dict(row.options),
    )
    # Threads and limits of the recipe are replaced, everything else of its training stays.
    options = {
        **to_dict(recipe.train),
        "minutes": 0.0,
        "steps": 0,
        "threads": threads,
        "validate_every": NEVER,
        **limit,
    }
    other_load = harness.gauge_other_load()
    with tempfile.TemporaryDirectory() as out:
        run = ts.train(
            model,
            images(folder, "train"),
            valid=images(folder, "valid"),
            out=Path(out) / "run",
            **options,
        )
        # The folder is gone after this block.
        lines = (run.path / "log.jsonl").read_text().splitlines()
        log = [json.loads(line) for line in lines]

    grid = model.grid()
    figures = ts.evaluate(model, test)
    # Facts about the images, equal for all rows.
    for name in ("weights", "overlap", "data"):
        figures.pop(name)
    return {
        "parameters": harness.count_parameters(model),
        "bits_a_place": grid.channels * math.log2(grid.levels),
        "steps": run.progress.step,
        "seconds_a_step": seconds_of_a_step(log),
        "processors_busy_with_others": other_load(),
        **figures,
        # Counted in codes; a share can be compared between numbers of codes.
        "usage": _mean(figures["codebook_used"]) / grid.levels,
    }


def seconds_of_a_step(log: list[harness.Row]) -> float:
    """Seconds of a step: the median over stretches between lines of the log."""
    # Validations are logged too, at the step of a training line.
    lines = [line for line in log if "loss" in line]
    seconds_a_step = []
    for before, after in itertools.pairwise(lines):
        seconds = after["seconds"] - before["seconds"]
        seconds_a_step.append(seconds / (after["step"] - before["step"]))
    return statistics.median(seconds_a_step)


def _mean(values: float | list[float]) -> float:
    """The mean over the levels of a tokenizer that has several; a single value as it is."""
    if isinstance(values, list):
        return statistics.fmean(values)
    return values


def train_apart(name: str, row: Variant, chosen: argparse.Namespace) -> harness.Row:
    """:func:`trained` in a new process; what it prints last is the result."""
    command = [sys.executable, __file__]
    command += ["--data", str(chosen.data), "--threads", str(chosen.threads)]
    command += ["--minutes", str(chosen.minutes), "--steps", str(chosen.steps)]
    # The row travels as JSON, so the child need not look it up in a table.
    command += ["--child", json.dumps(asdict(row))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    # A row that fails, for want of memory perhaps, does not end the others.
    if done.returncode:
        return {"name": name, "failed": f"exit {done.returncode}"}
    return {"name": name, **json.loads(done.stdout.splitlines()[-1])}


def verdict(row: Mapping[str, Any]) -> harness.Row:
    """Whether a codebook reaches its targets."""
    if "failed" in row:
        return {}
    target = TARGETS[row["name"]]
    enough_used = row["usage"] >= target
    even_enough = row["code_perplexity_share"] >= LEAST_PERPLEXITY
    return {
        "target_usage": target,
        "target_perplexity_share": LEAST_PERPLEXITY,
        "reached": enough_used and even_enough,
    }


def describe(row: Mapping[str, Any]) -> str:
    """A row as a line to read."""
    if "failed" in row:
        return f"{row['name']:36} failed: {row['failed']}"
    quality = f"{row['psnr_db']:.3f} ± {row['psnr_db_se']:.3f} dB"
    perplexity = _mean(row["code_perplexity"])
    share = _mean(row["code_perplexity_share"])
    return (
        f"{row['name']:36} {quality}, {row['usage']:6.1%} used, "
        f"perplexity {perplexity:7.1f} ({share:.3f} of the codes), "
        f"{row['seconds_a_step']:.4f} s a step, {row['steps']} steps"
    )


def main() -> None:
    """Train the rows that the command line names, or the one row of a child process."""
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
    parser.add_argument("--again", action="store_true", help="train rows that the file has, too")
    parser.add_argument("--out", default="")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if bool(chosen.minutes) == bool(chosen.steps):
        parser.error("give --minutes or --steps")
    if 0 < chosen.steps <= 20:
        parser.error("--steps must be more than 20: a step is timed between lines of the log")
    limit = {"steps": chosen.steps}
    if chosen.minutes:
        limit = {"minutes": chosen.minutes}
    if chosen.child:
        row = Variant(**json.loads(chosen.child))
        print(json.dumps(trained(row, chosen.data, limit, chosen.threads)))
        return

    table = ROWS
    if chosen.health:
        table = HEALTH
    unknown = set(chosen.only) - set(table)
    if unknown:
        parser.error(f"no row is named {', '.join(sorted(unknown))}; there are: {'; '.join(table)}")
    run_all({name: table[name] for name in chosen.only or table}, limit, chosen)


def run_all(
    table: Mapping[str, Variant], limit: Mapping[str, float], chosen: argparse.Namespace
) -> None:
    """Train each row that is missing, and write it at once."""
    path = harness.results_path("codebooks", chosen.out)
    known = {row["name"]: row for row in harness.read_rows(path)}
    part = "equal bits"
    if chosen.health:
        part = "health"
    terms = {"limit": dict(limit), "part": part}

    for name, row in table.items():
        kept = known.get(name, {})
        # A row of another limit is no answer to what was asked, so it is trained anew.
        comparable = all(kept.get(key) == value for key, value in terms.items())
        if comparable and "failed" not in kept and not chosen.again:
            print(f"{describe(kept)} (kept)", flush=True)
            continue
        # Left out rather than failed: the peer is optional.
        if row.quantizer == PEER and not importlib.util.find_spec("vector_quantize_pytorch"):
            print(f"{name:36} left out: {PEER} is not installed", flush=True)
            continue
        result = train_apart(name, row, chosen) | terms
        if chosen.health:
            result |= verdict(result)
        # Written row by row, since all of them take hours.
        harness.merge("codebooks", result, ["name"], chosen.out)
        print(describe(result), flush=True)


if __name__ == "__main__":
    main()

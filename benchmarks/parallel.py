"""Parallel decoding against cached steps, on trained models: whether they draw the same, in how
many passes, how fast.

    python benchmarks/parallel.py                                      # the bundled models
    python benchmarks/parallel.py --runs runs/binary-mnist runs/cifar10-prior --seeds 256

Of every run ``--seeds`` images are drawn by both methods in float64, where no symbol may differ,
and in float32, where rounding may turn a near-tie: counted are the images that differ, and how near
a tie the first difference was (nats). Then both are timed in turn.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import harness
import torch

import tessella as ts
from tessella.noise import Noise
from tessella.sampling import Passes, Rule, choose

BATCH = 64


def by_passes(model: ts.DensityModel, n: int, seed: int) -> Passes:
    """``n`` images drawn by passes."""
    walk = Passes(model, model.condition(None, n), Noise(model.grid, n, seed, model.device), Rule())
    for _ in walk.walk():
        pass
    return walk


def compare(model: ts.DensityModel, seeds: int) -> dict[str, Any]:
    """Both methods on the same seeds: what differs, and the passes."""
    passes, images, symbols, gaps = [], 0, 0, []
    for seed in range(0, seeds, BATCH):
        n = min(BATCH, seeds - seed)
        walk, cached = by_passes(model, n, seed), ts.sample(model, n, seed, "cached")
        passes.append(walk.passes)
        differs = walk.x != cached.flatten(1)
        images, symbols = images + int(differs.any(1).sum()), symbols + int(differs.sum())
        gaps += first_gaps(model, cached, differs, seed)
    each = torch.cat(passes).double()
    return {
        "images": seeds,
        "images_that_differ": images,
        "symbols_that_differ": symbols,
        "widest_tie_nats": max(gaps, default=0.0),
        "passes_mean": float(each.mean()),
        "passes_se": float(each.std() / len(each) ** 0.5),
        "passes_greatest": int(each.max()),
        "passes_share_of_symbols": float(each.mean()) / model.grid.symbols,
    }


def first_gaps(
    model: ts.DensityModel, x: torch.Tensor, differs: torch.Tensor, seed: int
) -> list[float]:
    """Of every image that differs, how far apart the two best scores were at its first difference
    (nats)."""
    gaps = []
    for image in differs.any(1).nonzero()[:, 0].tolist():
        place = int(differs[image].int().argmax())
        table = model.distribution(x[image : image + 1], model.condition(None, 1)).table(
            x[image : image + 1]
        )
        score = table.flatten(1, 3)[0, place] + Noise(model.grid, 1, seed + image).at(place)[0]
        first, second = score.topk(2).values.tolist()
        gaps.append(first - second)
    return gaps


def measure(run: str, seeds: int, batches: list[int], rounds: int) -> dict[str, Any]:
    """One row."""
    loaded = ts.load(run)
    assert isinstance(loaded, ts.Generator)
    model = loaded.prior
    row = {
        "run": Path(run).name,
        "model": model.name,
        "grid": str(model.grid),
        "symbols": model.grid.symbols,
    }
    row |= {"auto": choose(model), "float32": compare(model, seeds)}
    for batch in batches:
        work = {
            "cached": partial(ts.sample, model, batch, 0, "cached", None, batch),
            "parallel": partial(by_passes, model, batch, 0),
        }
        times = {name: t["median"] for name, t in harness.alternate(work, rounds).items()}
        row[f"batch_{batch}"] = {f"{name}_s": time for name, time in times.items()}
        row[f"batch_{batch}"]["parallel_over_cached"] = times["parallel"] / times["cached"]
    model.double()
    return row | {"float64": compare(model, seeds)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", nargs="+", default=["digits", "digits-codes"], help="run directories"
    )
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    rows = []
    for run in chosen.runs:
        with torch.no_grad():
            row = measure(run, chosen.seeds, chosen.batches, chosen.rounds)
        rows.append(row)
        wide, passes = row["float64"], row["float64"]["passes_share_of_symbols"]
        print(
            f"{row['run']}: {wide['symbols_that_differ']} symbols differ in float64, "
            f"{row['float32']['symbols_that_differ']} in float32; {wide['passes_mean']:.1f} "
            f"passes, {passes:.1%} of "
            f"{row['symbols']} symbols; "
            + "; ".join(
                f"batch {b}: {row[f'batch_{b}']['parallel_over_cached']:.1f} times the seconds"
                for b in chosen.batches
            ),
            flush=True,
        )
    print(harness.write("parallel", rows, chosen.out))


if __name__ == "__main__":
    main()

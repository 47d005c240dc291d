"""Parallel decoding against cached steps, on trained models: equality, passes and speed.

    python benchmarks/parallel.py                                      # the bundled models
    python benchmarks/parallel.py --runs runs/binary-mnist runs/cifar10-prior --seeds 256

Of every run ``--seeds`` images are drawn by both methods in float64, where no symbol may differ,
and in float32, where rounding may turn a near-tie: counted are the images that differ, and how near
a tie the first difference was (nats). Then both are timed in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import harness
import torch

import tessella as ts
from tessella.noise import Noise
from tessella.sampling import Passes, Rule, choose

BATCH = 64


def draw_by_passes(model: ts.DensityModel, n: int, seed: int) -> Passes:
    """Draw ``n`` images by passes; returns the finished walk."""
    noise = Noise(model.grid, n, seed, model.device)
    walk = Passes(model, model.condition(None, n), noise, Rule())
    # Each turn is a pass over the grid, from the symbols that the one before has drawn.
    for _ in walk.walk():
        pass
    return walk


def compare(model: ts.DensityModel, seeds: int) -> harness.Row:
    """Draw by both methods from equal seeds; returns their differences and the passes."""
    passes = []
    images = 0
    symbols = 0
    gaps = []
    for seed in range(0, seeds, BATCH):
        n = min(BATCH, seeds - seed)
        # Image i uses seed + i, whatever the batch, so both methods see equal noise.
        walk = draw_by_passes(model, n, seed)
        cached = ts.sample(model, n, seed, "cached")
        passes.append(walk.passes)
        # [n, symbols]
        differs = walk.x != cached.flatten(1)
        images += int(differs.any(1).sum())
        symbols += int(differs.sum())
        gaps += first_gaps(model, cached, differs, seed)

    passes_of_images = torch.cat(passes).double()
    mean = float(passes_of_images.mean())
    return {
        "images": seeds,
        "images_that_differ": images,
        "symbols_that_differ": symbols,
        "widest_tie_nats": max(gaps, default=0.0),
        "passes_mean": mean,
        "passes_se": float(passes_of_images.std() / len(passes_of_images) ** 0.5),
        "passes_greatest": int(passes_of_images.max()),
        "passes_share_of_symbols": mean / model.grid.symbols,
    }


def first_gaps(
    model: ts.DensityModel, x: torch.Tensor, differs: torch.Tensor, seed: int
) -> list[float]:
    """How near a tie the first difference of each image was.

    Args:
        model: that drew the images.
        x: images ``[n, height, width, channels]``, as cached steps drew them.
        differs: symbols that passes drew otherwise, ``[n, symbols]``.
        seed: of the first image.

    Returns:
        For every image that differs, the distance of its two best scores there, in nats.
    """
    gaps = []
    for image in differs.any(1).nonzero()[:, 0].tolist():
        # argmax of a boolean row is the first place that is true.
        place = int(differs[image].int().argmax())
        one = x[image : image + 1]
        log_probs = model.distribution(one, model.condition(None, 1)).table(one)
        # A symbol is drawn as the argmax of its log-probabilities plus Gumbel noise.
        score = log_probs.flatten(1, 3)[0, place] + Noise(model.grid, 1, seed + image).at(place)[0]
        first, second = score.topk(2).values.tolist()
        gaps.append(first - second)
    return gaps


def measure(run: str, seeds: int, batches: list[int], rounds: int) -> harness.Row:
    """One row: the figures of a run."""
    loaded = ts.load(run)
    assert isinstance(loaded, ts.Generator)
    model = loaded.prior
    # A hierarchy of priors draws grid by grid and is not measured here.
    assert isinstance(model, ts.DensityModel)
    row = {
        "run": Path(run).name,
        "model": model.name,
        "grid": str(model.grid),
        "symbols": model.grid.symbols,
        "auto": choose(model),
        "float32": compare(model, seeds),
    }
    for batch in batches:
        work: dict[str, Callable[[], object]] = {
            "cached": partial(ts.sample, model, batch, 0, "cached", None, batch),
            "parallel": partial(draw_by_passes, model, batch, 0),
        }
        times = harness.alternate(work, rounds)
        cached = times["cached"]["median"]
        parallel = times["parallel"]["median"]
        row[f"batch_{batch}"] = {
            "cached_s": cached,
            "parallel_s": parallel,
            "parallel_over_cached": parallel / cached,
        }
    # Last, since the model stays in float64 from here on.
    model.double()
    row["float64"] = compare(model, seeds)
    return row


def describe(row: harness.Row, batches: list[int]) -> str:
    """A row as a line to read."""
    wide = row["float64"]
    ratios = []
    for batch in batches:
        ratio = row[f"batch_{batch}"]["parallel_over_cached"]
        ratios.append(f"batch {batch}: {ratio:.1f} times the seconds")
    return (
        f"{row['run']}: {wide['symbols_that_differ']} symbols differ in float64, "
        f"{row['float32']['symbols_that_differ']} in float32; "
        f"{wide['passes_mean']:.1f} passes, {wide['passes_share_of_symbols']:.1%} of "
        f"{row['symbols']} symbols; " + "; ".join(ratios)
    )


def main() -> None:
    """Measure the runs that the command line names."""
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
    # Float64 is where equality is promised, float32 is what users run.
    rows = []
    for run in chosen.runs:
        with torch.no_grad():
            row = measure(run, chosen.seeds, chosen.batches, chosen.rounds)
        rows.append(row)
        print(describe(row, chosen.batches), flush=True)
    print(harness.write("parallel", rows, chosen.out))


if __name__ == "__main__":
    main()

"""Exact sampling: cached steps against whole passes, and the proof that both draw the same.

    python benchmarks/sampling.py                     # the gated PixelCNN 10 x 128 on 32x32x1, 256 levels
    python benchmarks/sampling.py --batches 1 16 64 --rounds 5 --out results/sampling.json

A *step* is one symbol of the whole batch, its draw included. The naive sampler costs one pass over the whole grid and
one draw a step; its passes all cost the same, so a few are timed, in turn with whole cached samples.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import harness
import torch

import tessella as ts
from tessella.noise import Noise
from tessella.sampling import Draw, Rule, Steps


def naive_steps(model: ts.DensityModel, batch: int, count: int) -> None:
    """The first ``count`` steps of the naive sampler."""
    steps = Steps(model, batch, None, "naive", 1.0)
    source, previous = Draw(Noise(model.grid, batch, 0), Rule()), torch.zeros(batch, dtype=torch.int64)
    for index in range(count):
        previous = source(index, steps.next(previous, index))


def measure(batch: int, rounds: int, passes: int, sizes: dict[str, Any]) -> dict[str, Any]:
    """One row: milliseconds a step of both methods, their ratio, and whether they draw the same."""
    grid = ts.Grid(32, 32, 1, 256)
    model = ts.create("gated-pixelcnn", grid, **sizes)
    others = harness.others()
    times = harness.alternate(
        {
            "cached": partial(ts.sample, model, n=batch, batch=batch),
            "naive": partial(naive_steps, model, batch, passes),
        },
        rounds,
    )
    noise = others()
    replay = ts.replay(model, ts.sample(model, n=batch, batch=batch))
    cached, naive = times["cached"]["median"] / grid.symbols, times["naive"]["median"] / passes
    return {
        "model": "gated-pixelcnn",
        "sizes": sizes,
        "parameters": sum(p.numel() for p in model.parameters()),
        "grid": str(grid),
        "batch": batch,
        "cached_ms_a_step": 1e3 * cached,
        "naive_ms_a_step": 1e3 * naive,
        "naive_over_cached": naive / cached,
        "pixels_a_second": batch / cached,
        "symbols_that_differ": int(replay.differs.sum()),
        "symbols_replayed": replay.differs.numel(),
        "spread": {name: t["greatest"] / t["least"] for name, t in times.items()},
        "processors_busy_with_others": noise,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=4, help="whole passes timed a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--out", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    sizes, rows = {"layers": chosen.layers, "hidden": chosen.hidden}, []
    for batch in chosen.batches:
        row = measure(batch, chosen.rounds, chosen.passes, sizes)
        rows.append(row)
        print(
            f"batch {batch:3}: cached {row['cached_ms_a_step']:.3f} ms a step, naive {row['naive_ms_a_step']:.1f} ms, "
            f"{row['naive_over_cached']:.0f}x; {row['pixels_a_second']:.0f} pixels/s; "
            f"{row['symbols_that_differ']} of {row['symbols_replayed']} symbols differ",
            flush=True,
        )
    print(harness.write("sampling", rows, chosen.out))


if __name__ == "__main__":
    main()

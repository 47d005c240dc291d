"""Time against the side of the image, and one large image: parts of the benchmark of sampling.

The cached sampler takes as long for a pixel of a large image as of a small one, so that an image
costs time in proportion to its pixels; the naive sampler takes a pass over all pixels for each of
them. Up to ``WHOLE`` squared whole images are timed, beyond it a few rows in the middle of one that
was walked up to them.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import harness
from sampling_walk import (
    cached_images,
    kernel,
    kernel_available,
    naive_steps,
    passes,
    rehearse,
    stretches,
)

import tessella as ts

SIDES = (16, 32, 64, 128, 256)
WHOLE = 64
ROWS = 2
"""Rows timed in the middle of larger images."""
SIZES = {"layers": 5, "hidden": 64}
KEYS = ("what", "side", "batch")


def rows(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows that were asked for."""
    if chosen.growth:
        for side in (8, 16) if chosen.smoke else chosen.sides:
            for batch in chosen.batches or (1,):
                yield growth(side, batch, chosen.rounds, 8 if chosen.smoke else WHOLE)
    if chosen.big:
        yield big(16 if chosen.smoke else 256)


def growth(side: int, batch: int, rounds: int, whole: int) -> dict[str, Any]:
    """Milliseconds a pixel of the gated PixelCNN on an image of ``side`` squared, by each way of
    sampling."""
    grid = ts.Grid(side, side, 1, 256)
    model, noise = ts.create("gated-pixelcnn", grid, **SIZES), harness.others()
    count = passes(model, batch)
    acts: dict[str, tuple[Callable[[], object], int]] = {
        "naive": (partial(naive_steps, model, batch, count), count)
    }
    for name in ("plain", "kernel") if kernel_available() else ("plain",):
        if side <= whole:
            acts[name] = (cached_images(model, batch, name == "kernel"), grid.pixels)
            continue
        with kernel(name == "kernel"):
            found = rehearse(model, batch, [side // 2], 1, whole=False)
        acts[name] = (stretches(model, batch, ROWS, found, name == "kernel"), ROWS * side)
    seconds = harness.alternate({name: act for name, (act, _) in acts.items()}, rounds)
    ms = {name: 1e3 * t["median"] / acts[name][1] for name, t in seconds.items()}
    return {
        "what": "growth",
        "side": side,
        "batch": batch,
        "model": "gated-pixelcnn",
        "sizes": SIZES,
        "grid": str(grid),
        "ms_a_pixel": ms,
        "seconds_an_image": {name: value * grid.pixels / 1e3 / batch for name, value in ms.items()},
        "rows_timed": side if side <= whole else ROWS,
        "processors_busy_with_others": noise(),
    }


def big(side: int) -> dict[str, Any]:
    """One image of ``side`` squared in three channels, drawn whole, and its replay."""
    grid = ts.Grid(side, side, 3, 256)
    model, noise = ts.create("gated-pixelcnn", grid, **SIZES), harness.others()
    started = time.perf_counter()
    x = ts.sample(model, n=1)
    drawn = time.perf_counter()
    try:
        replay = ts.replay(model, x)
        proof = {
            "symbols_that_differ": int(replay.differs.sum()),
            "greatest_gap": float(replay.gap.max()),
        }
        proof["replay_seconds"] = time.perf_counter() - drawn
    except (MemoryError, RuntimeError) as error:
        proof = {"replay_failed": str(error)[:200]}
    unit = 1 if sys.platform == "darwin" else 2**10
    return {
        "what": "big",
        "side": side,
        "batch": 1,
        "model": "gated-pixelcnn",
        "sizes": SIZES,
        "grid": str(grid),
        "symbols": grid.symbols,
        "kernel": kernel_available(),
        "seconds": drawn - started,
        "ms_a_symbol": 1e3 * (drawn - started) / grid.symbols,
        **proof,
        "peak_mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20,
        "processors_busy_with_others": noise(),
    }

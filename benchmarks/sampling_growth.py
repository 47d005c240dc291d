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

import harness
import torch
from sampling_walk import (
    cached_images,
    count_passes,
    kernel,
    kernel_available,
    naive_steps,
    rehearse,
    stretches,
)

import tessella as ts

MODEL = "gated-pixelcnn"
SIDES = (16, 32, 64, 128, 256)
WHOLE = 64
"""Side up to which whole images are timed."""
ROWS = 2
"""Rows timed in the middle of larger images."""
SIZES = {"layers": 5, "hidden": 64}
KEYS = ("what", "side", "batch")


def rows(chosen: argparse.Namespace) -> Iterator[harness.Row]:
    """The rows that were asked for, one after another."""
    sides = chosen.sides
    whole = WHOLE
    big_side = 256
    if chosen.smoke:
        sides = (8, 16)
        whole = 8
        big_side = 16
    if chosen.growth:
        for side in sides:
            for batch in chosen.batches or (1,):
                yield growth(side, batch, chosen.rounds, whole)
    if chosen.big:
        yield big(big_side)


def create(grid: ts.Grid) -> ts.DensityModel:
    """The model that all rows are about."""
    return ts.create(MODEL, grid, layers=SIZES["layers"], hidden=SIZES["hidden"])


def growth(side: int, batch: int, rounds: int, whole: int) -> harness.Row:
    """Milliseconds a pixel of the gated PixelCNN, by each way of sampling.

    Args:
        side: of the square image.
        batch: images drawn at a time.
        rounds: how often each way is timed.
        whole: side up to which whole images are timed.
    """
    grid = ts.Grid(side, side, 1, 256)
    model = create(grid)
    other_load = harness.gauge_other_load()

    # How many pixels are timed differs from way to way.
    count = count_passes(model, batch)
    work: dict[str, Callable[[], object]] = {"naive": partial(naive_steps, model, batch, count)}
    pixels = {"naive": count}
    ways = ["plain"]
    if kernel_available():
        ways.append("kernel")
    for name in ways:
        compiled = name == "kernel"
        if side <= whole:
            work[name] = cached_images(model, batch, compiled)
            pixels[name] = grid.pixels
        else:
            # A walk through the upper half shows how a row in the middle fares.
            with kernel(compiled):
                found = rehearse(model, batch, [side // 2], 1, whole=False)
            work[name] = stretches(model, batch, ROWS, found, compiled)
            pixels[name] = ROWS * side

    # Cached ways should be flat in the side, the naive one grows with the pixels.
    milliseconds = {}
    for name, times in harness.alternate(work, rounds).items():
        milliseconds[name] = 1e3 * times["median"] / pixels[name]
    seconds_an_image = {}
    for name, value in milliseconds.items():
        seconds_an_image[name] = value * grid.pixels / 1e3 / batch
    return {
        "what": "growth",
        "side": side,
        "batch": batch,
        "model": MODEL,
        "sizes": SIZES,
        "grid": str(grid),
        "ms_a_pixel": milliseconds,
        "seconds_an_image": seconds_an_image,
        "rows_timed": side if side <= whole else ROWS,
        "processors_busy_with_others": other_load(),
    }


def big(side: int) -> harness.Row:
    """One image of ``side`` squared in three channels, drawn whole, and its replay."""
    grid = ts.Grid(side, side, 3, 256)
    model = create(grid)
    other_load = harness.gauge_other_load()
    started = time.perf_counter()
    # Drawn once: at 256x256x3 this takes minutes.
    x = ts.sample(model, n=1)
    seconds = time.perf_counter() - started
    return {
        "what": "big",
        "side": side,
        "batch": 1,
        "model": MODEL,
        "sizes": SIZES,
        "grid": str(grid),
        "symbols": grid.symbols,
        "kernel": kernel_available(),
        "seconds": seconds,
        "ms_a_symbol": 1e3 * seconds / grid.symbols,
        **prove(model, x),
        "peak_mebibytes": peak_mebibytes(),
        "processors_busy_with_others": other_load(),
    }


def prove(model: ts.DensityModel, x: torch.Tensor) -> harness.Row:
    """Replay an image in one pass; returns the symbols that differ, or why it was not replayed."""
    started = time.perf_counter()
    try:
        replay = ts.replay(model, x)
    except (MemoryError, RuntimeError) as error:
        # A pass over a large image needs memory for all of its symbols at once.
        return {"replay_failed": str(error)[:200]}
    return {
        "symbols_that_differ": int(replay.differs.sum()),
        "greatest_gap": float(replay.gap.max()),
        "replay_seconds": time.perf_counter() - started,
    }


def peak_mebibytes() -> float:
    """The largest resident size of this process so far."""
    # macOS counts in bytes, Linux in KiB.
    unit = 2**10
    if sys.platform == "darwin":
        unit = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20

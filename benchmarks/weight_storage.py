"""What weights of few bits cost in bits, and what they gain in time.

    python benchmarks/weight_storage.py                              # digits, whose images ship
    python benchmarks/weight_storage.py --models digits mnist=npz:mnist.npz --test 500
    python benchmarks/weight_storage.py --models --step          # only the times of the transformer
    python benchmarks/weight_storage.py --models --memory transformer pixelcnn++

Each bundled model is scored on the same test images with its own weights and with rounded ones; the
difference is what rounding costs. Each symbol of a sample of the rounded model is drawn again by a
pass over it. Steps are those of the large transformer of ``sampling.py`` with fresh weights, in
turn, the draw left out. Memory is what a process of its own holds before and after it draws an
image of a model of ``sampling.py`` (Linux, glibc). Rows are merged into ``results/weights.json``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import harness
import torch
from sampling import WORKS

import tessella as ts
from tessella import data
from tessella.config import DataConfig
from tessella.errors import ConfigError
from tessella.evaluation.metrics import standard_error
from tessella.models.weight_storage import WeightKind
from tessella.pipeline import Generator

KEYS = ("what", "weights", "batch")
REPLAYED = 8
"""Images whose symbols are drawn again."""
KINDS = ("float32", *get_args(WeightKind))
WARM_STEPS = 3
TIMED_STEPS = 12


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="*", default=["digits=digits"], help="bundled models, as NAME=DATA"
    )
    parser.add_argument("--test", type=int, default=500, help="test images to score")
    parser.add_argument("--step", action="store_true", help="time the steps of the transformer")
    parser.add_argument("--batches", nargs="*", type=int, default=[1], help="of these steps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--memory",
        nargs="*",
        default=[],
        choices=list(WORKS),
        help="of which models to measure memory",
    )
    parser.add_argument("--json", default="", help="another file of results")
    chosen = parser.parse_args()

    for named in chosen.models:
        name, _, source = named.partition("=")
        for row in costs(name, source or name, chosen.test):
            harness.merge("weights", row, KEYS, chosen.json)
            print(
                f"{name}, {row['weights']}: {row['bits_per_dim']:.5f} bits/dim, cost "
                f"{row['cost']:+.6f} ± {row['cost_se']:.6f}, {row['differ']} symbols differ",
                flush=True,
            )
    if chosen.step:
        for batch in chosen.batches:
            for row in steps(batch, chosen.rounds):
                harness.merge("weights", row, KEYS, chosen.json)
                print(
                    f"{row['what']}, batch {batch}, {row['weights']}: {row['ms']:.2f} ms a step, "
                    f"{row['ratio']:.2f}x",
                    flush=True,
                )
    for name in chosen.memory:
        for kind in KINDS:
            # A process of its own holds nothing of what was measured before.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                try:
                    row = pool.apply(memory, (name, kind))
                except ConfigError as error:
                    print(f"{name}, {kind}: {error}", flush=True)
                    continue
            harness.merge("weights", row, KEYS, chosen.json)
            print(
                f"{name}, {kind}: parameters of {row['parameter_mb']:.0f} MB, "
                f"{row['before_mb']:.0f} MB resident before drawing and {row['after_mb']:.0f} MB "
                f"after, {row['growth']:.2f} times the parameters more",
                flush=True,
            )


@torch.no_grad()
def costs(name: str, source: str, count: int) -> list[harness.Row]:
    """Bits per dimension of a bundled model under each kind of weights, on the same images."""
    generator = ts.load(name)
    assert isinstance(generator, Generator)
    model = generator.priors[0].eval()
    images = data.load(DataConfig(source=source), "test").images
    symbols = generator.encode(images[:count])
    own = model.bits_per_dim(symbols).double()
    rows = []
    for kind in get_args(WeightKind):
        try:
            rounded = ts.quantize_weights(model, kind)
        except ConfigError as error:
            print(f"{name}: {error}", flush=True)
            continue
        bits = rounded.bits_per_dim(symbols).double()
        replayed = ts.replay(rounded, ts.sample(rounded, n=REPLAYED, method="cached"))
        row: harness.Row = {"what": name, "weights": kind, "batch": REPLAYED}
        row |= {"test_images": len(symbols), "bits_per_dim": float(bits.mean())}
        row |= {"cost": float((bits - own).mean()), "cost_se": standard_error(bits - own)}
        row |= {"differ": int(replayed.differs.sum()), "symbols": replayed.differs.numel()}
        rows.append(row)
    return rows


def steps(batch: int, rounds: int) -> list[harness.Row]:
    """Milliseconds of a step of the large transformer under each kind of weights."""
    model = WORKS["transformer"].create().eval()
    models = {"float32": model}
    for kind in get_args(WeightKind):
        models[kind] = ts.quantize_weights(model, kind)
    work: dict[str, Callable[[], object]] = {}
    for name, each in models.items():
        work[name] = partial(seconds_of_steps, each, batch)
    times = harness.alternate(work, rounds)
    rows = []
    for name in models:
        milliseconds = times[name]["median"] * 1e3
        ratio = times["float32"]["median"] / times[name]["median"]
        row: harness.Row = {"what": "transformer", "weights": name, "batch": batch}
        row |= {"ms": milliseconds, "ratio": ratio, "threads": torch.get_num_threads()}
        rows.append(row)
    return rows


@torch.no_grad()
def seconds_of_steps(model: ts.DensityModel, batch: int) -> float:
    """Mean seconds of a step, without the preparation of its weights."""
    state = model.init_state(batch)
    previous = torch.zeros(batch, dtype=torch.int64)
    for index in range(WARM_STEPS):
        _, state = model.step(previous, index, state)
    started = time.perf_counter()
    for index in range(WARM_STEPS, WARM_STEPS + TIMED_STEPS):
        _, state = model.step(previous, index, state)
    return (time.perf_counter() - started) / TIMED_STEPS


def memory(name: str, kind: str) -> harness.Row:
    """Memory of this process before and after it draws an image, in MB of 10^6 bytes."""
    model = WORKS[name].create().eval()
    if kind != "float32":
        model = ts.quantize_weights(model, kind)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    before = resident_bytes()
    sampler = ts.sampling.Sampler(model)
    # The sampler, and with it all that drawing needs, lives on.
    for _ in sampler.stream(n=1):
        pass
    after = resident_bytes()
    row: harness.Row = {"what": f"{name}, memory", "weights": kind, "batch": 1}
    row |= {"parameter_mb": parameters / 1e6, "before_mb": before / 1e6, "after_mb": after / 1e6}
    row |= {"growth": (after - before) / parameters}
    return row


def resident_bytes() -> int:
    """Memory of this process that is not backed by files, once what is free is given back."""
    gc.collect()
    # The C library keeps freed memory, as much as there happened to be.
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status does not say how much memory is resident")


if __name__ == "__main__":
    main()

"""Exact sampling of every family: naive, cached and compiled, peers, the distance to the floor.

    python benchmarks/sampling.py                                  # everything
    python benchmarks/sampling.py --work transformer --batches 1  # a part; replaces its rows
    PEERS_DIR=checkouts python benchmarks/sampling.py              # with the samplers of others
    python benchmarks/sampling.py --growth                         # from 16x16 to 256x256
    python benchmarks/sampling.py --big                            # one 256x256x3 image, replayed

Rows go to ``results/sampling.json``, those of ``--growth`` and ``--big`` to another file,
``results/growth.json``.

A *step* is one symbol of the whole batch, its draw included. All ways of sampling are timed in turn
and reported by medians. Whole images are drawn where the cached steps of one take less than
``--whole-below`` seconds; else stretches of rows spread evenly over an image that was walked up to
them. The naive sampler costs one pass over the whole grid for every step, so a few are timed. Every
sample is replayed: one pass over it, plus its noise, must draw it again. The floor is that of
``floor.py`` on the machine as ``machine.py`` measures it. How ``parallel`` fares depends on what a
model has learned: ``benchmarks/parallel.py`` times it on trained ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import harness
import sampling_growth
import torch
from floor import floor
from machine import Machine, measure
from sampling_peers import Peer, PeerOfBatch, find_peers
from sampling_walk import (
    Rehearsal,
    cached_images,
    count_passes,
    kernel,
    kernel_available,
    naive_steps,
    places,
    rehearse,
    stretches,
)

import tessella as ts

STRETCHES = 4
"""Places in an image whose rows are counted, and timed on slow models."""


@dataclass(frozen=True)
class Work:
    """A model and the batches it is measured at."""

    model: str
    grid: ts.Grid
    sizes: dict[str, Any] = field(default_factory=dict)
    batches: tuple[int, ...] = (1, 16)
    head: str = "categorical"
    period: int = 1
    """Rows after which the work of rows repeats."""

    def create(self) -> ts.DensityModel:
        """The model, with fresh weights."""
        return ts.create(self.model, self.grid, head=self.head, **self.sizes)


DIGITS = ts.Grid(28, 28, 1, 2)
WORKS = {
    "gated-pixelcnn": Work(
        "gated-pixelcnn", ts.Grid(32, 32, 1, 256), {"layers": 10, "hidden": 128}, (1, 16, 64)
    ),
    "pixelcnn++": Work(
        "pixelcnn++",
        ts.Grid(32, 32, 3, 256),
        {"blocks": 5, "filters": 160, "scales": 3, "embedding": 0},
        (1, 16),
        "logistic-mixture",
        period=4,
    ),
    "pixelsnail": Work(
        "pixelsnail",
        ts.Grid(32, 32, 1, 512),
        {
            "blocks": 4,
            "residual_blocks": 4,
            "channels": 256,
            "residual_channels": 256,
            "kernel": 5,
            "heads": 8,
        },
        (1,),
    ),
    "transformer": Work(
        "transformer",
        ts.Grid(16, 16, 1, 1024),
        {"layers": 12, "width": 768, "heads": 12},
        (1, 8),
    ),
    "pixelcnn": Work("pixelcnn", DIGITS, {"layers": 7, "hidden": 64}),
    "pixelcnn-large": Work("pixelcnn", ts.Grid(32, 32, 1, 256), {"layers": 15, "hidden": 128}),
    "row-lstm": Work("row-lstm", DIGITS, {"layers": 7, "hidden": 64}),
    "diagonal-bilstm": Work("diagonal-bilstm", DIGITS, {"layers": 7, "hidden": 64}),
    "lstm": Work("lstm", DIGITS, {"layers": 2, "hidden": 256}),
    "fvsbn": Work("fvsbn", DIGITS),
    "nade": Work("nade", DIGITS, {"hidden": 500}),
    "made": Work("made", DIGITS, {"layers": 2, "hidden": 500}),
}


def small(work: Work) -> Work:
    """A work of equal family at a size that takes no time."""
    grid = ts.Grid(8, 8, work.grid.channels, work.grid.levels)
    sizes = {}
    # A model whose rows repeat has scales, and an image of 8x8 has room for three.
    if work.period > 1:
        sizes["scales"] = 3
    return replace(work, grid=grid, sizes=sizes)


@dataclass
class Rehearsals:
    """The cached steps of one model at one batch, before they are timed."""

    plain: Rehearsal
    compiled: Rehearsal | None
    """None where no kernel takes the model's steps."""

    def by_way(self) -> dict[str, Rehearsal]:
        """The rehearsals by the names that result files use."""
        ways = {"plain": self.plain}
        if self.compiled is not None:
            ways["kernel"] = self.compiled
        return ways


def rehearse_both(work: Work, model: ts.DensityModel, batch: int) -> Rehearsals:
    """Walk an image without the kernel and, if there is one, with it."""
    # A stretch is a period long; with long periods fewer are enough.
    starts = places(work.grid.height, work.period, max(2, STRETCHES // work.period))
    with kernel(False):
        plain = rehearse(model, batch, starts, work.period)
    if not kernel_available():
        return Rehearsals(plain, None)
    with kernel(True):
        compiled = rehearse(model, batch, starts, work.period)
    # The kernel replaces many calls of torch by one; as many calls mean that it was not used.
    calls_of_plain = sum(counts.calls for counts in plain.counts)
    calls_of_compiled = sum(counts.calls for counts in compiled.counts)
    if calls_of_compiled < calls_of_plain:
        return Rehearsals(plain, compiled)
    return Rehearsals(plain, None)


@dataclass(frozen=True)
class Timing:
    """Times of all ways of sampling, and how they were taken."""

    milliseconds: dict[str, float]
    """Milliseconds a step, by way."""
    facts: harness.Row


def time_all(
    work: Work,
    model: ts.DensityModel,
    batch: int,
    rehearsals: Rehearsals,
    peers: list[Peer],
    chosen: argparse.Namespace,
) -> Timing:
    """Time every way of sampling in turn."""
    # All ways take equal rows, so that their times can be compared.
    whole = rehearsals.plain.seconds < chosen.whole_below
    rows = work.grid.height
    if not whole:
        rows = len(rehearsals.plain.stretches) * work.period

    functions: dict[str, Callable[[], object]] = {}
    steps = {}
    for name, rehearsal in rehearsals.by_way().items():
        compiled = name == "kernel"
        if whole:
            functions[name] = cached_images(model, batch, compiled)
        else:
            functions[name] = stretches(model, batch, work.period, rehearsal, compiled)
        steps[name] = rows * work.grid.row_symbols
    # A naive step costs a pass over the whole grid wherever it is, so the first ones do.
    count = count_passes(model, batch)
    functions["naive"] = partial(naive_steps, model, batch, count)
    steps["naive"] = count
    for peer in peers:
        functions[peer.name] = peer.draw
        steps[peer.name] = peer.steps

    milliseconds = {}
    spread = {}
    for name, times in harness.alternate(functions, chosen.rounds).items():
        milliseconds[name] = 1e3 * times["median"] / steps[name]
        spread[name] = times["greatest"] / times["least"]
    facts = {
        "rounds": chosen.rounds,
        "rows_timed": rows,
        "passes_timed": count,
        "spread": spread,
    }
    return Timing(milliseconds, facts)


def prove(model: ts.DensityModel, rehearsals: Rehearsals) -> harness.Row:
    """Compare each sample with what one pass over it would draw."""
    differ = {}
    gaps = {}
    for name, rehearsal in rehearsals.by_way().items():
        # Fast steps are worth nothing if they draw from another distribution.
        replay = ts.replay(model, rehearsal.x)
        differ[name] = int(replay.differs.sum())
        gaps[name] = float(replay.gap.max())
    return {
        "symbols_replayed": rehearsals.plain.x.numel(),
        "symbols_that_differ": differ,
        "greatest_gap": gaps,
    }


def rates(
    work: Work, model: ts.DensityModel, batch: int, ms: dict[str, float], peers: list[Peer]
) -> harness.Row:
    """Rates and ratios from milliseconds a step."""
    grid = work.grid
    # A user gets the kernel where it is compiled, and plain torch elsewhere.
    best = min(ms["plain"], ms.get("kernel", ms["plain"]))
    # A step draws a symbol of each image of the batch.
    seconds = best * grid.symbols / 1e3 / batch
    peer_rows = []
    for peer in peers:
        peer_seconds = ms[peer.name] * peer.image_steps / 1e3 / batch
        peer_rows.append(
            {
                "name": peer.name,
                "what": peer.what,
                "parameters": peer.parameters,
                "ms_a_step": ms[peer.name],
                "seconds_an_image": peer_seconds,
                "over_ours": peer_seconds / seconds,
            }
        )
    return {
        "model": work.model,
        "sizes": work.sizes,
        "head": work.head,
        "parameters": harness.count_parameters(model),
        "grid": str(grid),
        "ms_a_step": {name: ms[name] for name in ("naive", "plain", "kernel") if name in ms},
        "naive_over_ours": ms["naive"] / best,
        "seconds_an_image": seconds,
        "pixels_a_second": grid.pixels / seconds,
        "symbols_a_second": grid.symbols / seconds,
        "peers": peer_rows,
    }


def fractions(ms: dict[str, float], bound: dict[str, float]) -> dict[str, float]:
    """Shares of the time that the floor explains.

    They are of the physical floor, and for plain torch also of the floor with calls.
    """
    shares = {}
    for name in ("plain", "kernel"):
        if name in ms:
            shares[name] = bound["physical_ms"] / ms[name]
    # The kernel calls torch less often than was counted, so that floor does not hold for it.
    with_calls = max(bound["physical_ms"], bound["calls_ms"])
    return shares | {"plain_with_calls": with_calls / ms["plain"]}


def measure_work(
    name: str,
    work: Work,
    batch: int,
    peers: list[Peer],
    machine: Machine,
    chosen: argparse.Namespace,
) -> harness.Row:
    """One row of the table."""
    model = work.create()
    other_load = harness.gauge_other_load()
    # Rehearsed first: it also warms up the caches of torch and the compiler.
    rehearsals = rehearse_both(work, model, batch)
    timing = time_all(work, model, batch, rehearsals, peers, chosen)
    # Read before the proof, whose time is not reported.
    busy = other_load()
    bound = floor(rehearsals.plain.counts, machine)
    return {
        "work": name,
        "batch": batch,
        **rates(work, model, batch, timing.milliseconds, peers),
        "floor": bound,
        "fraction": fractions(timing.milliseconds, bound),
        **prove(model, rehearsals),
        **timing.facts,
        "processors_busy_with_others": busy,
    }


def describe(row: harness.Row) -> str:
    """A row as a line to read."""
    ms = ", ".join(f"{name} {value:.3f}" for name, value in row["ms_a_step"].items())
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in row["fraction"].items())
    parts = [
        f"{row['work']} batch {row['batch']}: {ms} ms a step",
        f"naive is {row['naive_over_ours']:.0f}x",
        f"{row['pixels_a_second']:.0f} pixels/s",
        f"of the floor {shares}",
    ]
    for peer in row["peers"]:
        parts.append(f"{peer['name']} {peer['ms_a_step']:.1f} ms, {peer['over_ours']:.1f}x ours")
    parts.append(f"{row['symbols_that_differ']} of {row['symbols_replayed']} symbols differ")
    for reason in row["peers_missing"]:
        parts.append(f"no peer ({reason})")
    return "; ".join(parts)


def measure_machine(chosen: argparse.Namespace) -> Machine:
    """Measure this machine and write its row.

    Better figures of earlier runs on it, in the file of results, stay.
    """
    if chosen.smoke:
        machine = measure((1, 2, 4), 1)
    else:
        machine = measure()
    earlier = earlier_machine(harness.results_path("sampling", chosen.out))
    if earlier is not None:
        machine = machine.better(earlier)
    # Batch 0, since rows are found by work and batch.
    row = {"work": "machine", "batch": 0, **machine.facts()}
    harness.merge("sampling", row, ("work", "batch"), chosen.out)
    return machine


def earlier_machine(path: Path) -> Machine | None:
    """The figures of this machine in a file of results; None if it has none."""
    if not path.exists():
        return None
    results = json.loads(path.read_text(encoding="utf-8"))
    here = harness.hardware()
    # Processors of one name may differ, and with other threads a machine gives other figures.
    for key in ("cpu", "instructions", "threads"):
        if results["hardware"].get(key) != here[key]:
            return None
    for row in results["rows"]:
        if row.get("work") == "machine":
            speeds = {}
            # The keys of JSON are strings.
            for mebibytes, speed in row["gigabytes_a_second"].items():
                speeds[int(mebibytes)] = speed
            return Machine(
                gigabytes_a_second=speeds,
                gigaflops=row["gigaflops"],
                product_us=row["product_us"],
                elementwise_us=row["elementwise_us"],
                threads=row["threads"],
            )
    return None


def parse_arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument(
        "--batches", type=int, nargs="+", default=None, help="instead of those of each work"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--whole-below", type=float, default=20.0, help="seconds of an image that is drawn whole"
    )
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument(
        "--growth", action="store_true", help="time against the side of the image, instead"
    )
    parser.add_argument("--sides", type=int, nargs="+", default=list(sampling_growth.SIDES))
    parser.add_argument("--big", action="store_true", help="one 256x256x3 image, instead")
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", default="")
    return parser.parse_args()


def main() -> None:
    """Measure what the command line names; each row is written at once."""
    chosen = parse_arguments()
    torch.set_num_threads(chosen.threads)
    if chosen.growth or chosen.big:
        for row in sampling_growth.rows(chosen):
            path = harness.merge("growth", row, sampling_growth.KEYS, chosen.out)
            print(row, path, flush=True)
        return

    machine = measure_machine(chosen)
    for name in chosen.work:
        work = WORKS[name]
        if chosen.smoke:
            work = small(work)
        makers: list[PeerOfBatch] = []
        missing = ["not asked for"]
        if not chosen.no_peers:
            makers, missing = find_peers(name)
        for batch in chosen.batches or work.batches:
            # A peer prepares its tensors for one size of batch.
            peers = [peer_of(batch) for peer_of in makers]
            row = measure_work(name, work, batch, peers, machine, chosen)
            row["peers_missing"] = missing
            harness.merge("sampling", row, ("work", "batch"), chosen.out)
            print(describe(row), flush=True)


if __name__ == "__main__":
    main()

"""Exact sampling of every family: naive, cached and compiled, peers, and the distance to the floor.

    python benchmarks/sampling.py                                  # everything: hours
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
from typing import Any

import harness
import sampling_growth
import torch
from floor import floor
from machine import Machine, measure
from sampling_peers import Peer, peers_of
from sampling_walk import (
    Rehearsal,
    cached_images,
    kernel,
    kernel_available,
    naive_steps,
    passes,
    places,
    rehearse,
    stretches,
)

import tessella as ts

STRETCHES = 4
"""Where the rows that are counted, and timed on slow models, stand in an image."""


@dataclass(frozen=True)
class Work:
    """A model and the batches it is measured at."""

    model: str
    grid: ts.Grid
    sizes: dict[str, Any] = field(default_factory=dict)
    batches: tuple[int, ...] = (1, 16, 64)
    head: str = "categorical"
    period: int = 1
    """Rows after which the work of rows repeats."""

    def create(self) -> ts.DensityModel:
        """The model, with fresh weights."""
        return ts.create(self.model, self.grid, head=self.head, **self.sizes)


DIGITS = ts.Grid(28, 28, 1, 2)
WORKS = {
    "gated-pixelcnn": Work(
        "gated-pixelcnn", ts.Grid(32, 32, 1, 256), {"layers": 10, "hidden": 128}
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
        (1, 8),
    ),
    "transformer": Work(
        "transformer",
        ts.Grid(16, 16, 1, 1024),
        {"layers": 12, "width": 768, "heads": 12},
        (1, 8, 16, 64),
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
    """The same family at a size that takes no time."""
    grid = ts.Grid(8, 8, work.grid.channels, work.grid.levels)
    return replace(work, grid=grid, sizes={} if work.period == 1 else {"scales": 3})


@dataclass
class Rehearsals:
    """The cached steps of one model at one batch, before they are timed."""

    plain: Rehearsal
    compiled: Rehearsal | None
    """None where no kernel takes the model's steps."""


def rehearsals(work: Work, model: ts.DensityModel, batch: int) -> Rehearsals:
    """Walk an image with and, where there is one, without the kernel."""
    starts = places(work.grid.height, work.period, max(2, STRETCHES // work.period))
    with kernel(False):
        plain = rehearse(model, batch, starts, work.period)
    if not kernel_available():
        return Rehearsals(plain, None)
    with kernel(True):
        compiled = rehearse(model, batch, starts, work.period)
    used = sum(c.calls for c in compiled.counts) < sum(c.calls for c in plain.counts)
    return Rehearsals(plain, compiled if used else None)


def timed(
    work: Work,
    model: ts.DensityModel,
    batch: int,
    found: Rehearsals,
    peers: list[Peer],
    rounds: int,
    limit: float,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Milliseconds a step of every way of sampling, and how they were taken."""
    whole = found.plain.seconds < limit
    rows = len(found.plain.stretches) * work.period
    steps = work.grid.symbols if whole else rows * work.grid.row_symbols
    acts: dict[str, tuple[Callable[[], object], int]] = {}
    for name, walk in (("plain", found.plain), ("kernel", found.compiled)):
        if walk is not None:
            compiled = name == "kernel"
            images = cached_images(model, batch, compiled)
            acts[name] = (
                images if whole else stretches(model, batch, work.period, walk, compiled),
                steps,
            )
    count = passes(model, batch)
    acts["naive"] = (partial(naive_steps, model, batch, count), count)
    acts |= {peer.name: (peer.act, peer.steps) for peer in peers}
    seconds = harness.alternate({name: act for name, (act, _) in acts.items()}, rounds)
    facts = {
        "rounds": rounds,
        "rows_timed": work.grid.height if whole else rows,
        "passes_timed": count,
        "spread": {name: t["greatest"] / t["least"] for name, t in seconds.items()},
    }
    return {name: 1e3 * t["median"] / acts[name][1] for name, t in seconds.items()}, facts


def proof(model: ts.DensityModel, found: Rehearsals) -> dict[str, Any]:
    """What one pass over each sample says of it."""
    rows = {"plain": found.plain} | ({"kernel": found.compiled} if found.compiled else {})
    replays = {name: ts.replay(model, walk.x) for name, walk in rows.items()}
    return {
        "symbols_replayed": found.plain.x.numel(),
        "symbols_that_differ": {
            name: int(replay.differs.sum()) for name, replay in replays.items()
        },
        "greatest_gap": {name: float(replay.gap.max()) for name, replay in replays.items()},
    }


def row_of(
    work: Work, model: ts.DensityModel, batch: int, ms: dict[str, float], peers: list[Peer]
) -> dict[str, Any]:
    """Rates and ratios of what was timed."""
    grid, best = work.grid, min(ms["plain"], ms.get("kernel", ms["plain"]))
    seconds = best * grid.symbols / 1e3 / batch
    others = []
    for peer in peers:
        theirs = ms[peer.name] * peer.image_steps / 1e3 / batch
        others.append(
            {
                "name": peer.name,
                "what": peer.what,
                "parameters": peer.parameters,
                "ms_a_step": ms[peer.name],
                "seconds_an_image": theirs,
                "over_ours": theirs / seconds,
            }
        )
    return {
        "model": work.model,
        "sizes": work.sizes,
        "head": work.head,
        "parameters": sum(p.numel() for p in model.parameters()),
        "grid": str(grid),
        "ms_a_step": {name: ms[name] for name in ("naive", "plain", "kernel") if name in ms},
        "naive_over_ours": ms["naive"] / best,
        "seconds_an_image": seconds,
        "pixels_a_second": grid.pixels / seconds,
        "symbols_a_second": grid.symbols / seconds,
        "peers": others,
    }


def fractions(ms: dict[str, float], bound: dict[str, float]) -> dict[str, float]:
    """Shares of the time that the floor explains: the physical one, and for plain torch the one
    with calls too."""
    shares = {name: bound["physical_ms"] / ms[name] for name in ("plain", "kernel") if name in ms}
    return shares | {"plain_with_calls": max(bound["physical_ms"], bound["calls_ms"]) / ms["plain"]}


def measure_work(
    name: str,
    work: Work,
    batch: int,
    peers: list[Peer],
    machine: Machine,
    chosen: argparse.Namespace,
) -> dict[str, Any]:
    """One row of the table."""
    model, noise = work.create(), harness.others()
    found = rehearsals(work, model, batch)
    ms, facts = timed(work, model, batch, found, peers, chosen.rounds, chosen.whole_below)
    facts["processors_busy_with_others"] = noise()
    bound = floor(found.plain.counts, machine)
    row = {"work": name, "batch": batch, **row_of(work, model, batch, ms, peers)}
    return row | {"floor": bound, "fraction": fractions(ms, bound)} | proof(model, found) | facts


def line(row: dict[str, Any]) -> str:
    """A row in a line."""
    ms = ", ".join(f"{name} {value:.3f}" for name, value in row["ms_a_step"].items())
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in row["fraction"].items())
    others = "".join(
        f"; {p['name']} {p['ms_a_step']:.1f} ms, {p['over_ours']:.1f}x ours" for p in row["peers"]
    )
    return (
        f"{row['work']} batch {row['batch']}: {ms} ms a step; naive is "
        f"{row['naive_over_ours']:.0f}x; "
        f"{row['pixels_a_second']:.0f} pixels/s; of the floor {shares}{others}; "
        f"{row['symbols_that_differ']} of {row['symbols_replayed']} symbols differ"
        + "".join(f"; no peer ({why})" for why in row["peers_missing"])
    )


def machine_of(chosen: argparse.Namespace) -> Machine:
    """This machine, measured now; better figures of earlier runs on it, in the file of results,
    stay."""
    machine = measure((1, 2, 4), 1) if chosen.smoke else measure()
    path, here = harness.results_path("sampling", chosen.out), harness.hardware()
    found = json.loads(path.read_text()) if path.exists() else {"rows": []}
    for row in found["rows"]:
        if row.get("work") == "machine" and all(
            found["hardware"][key] == here[key] for key in ("cpu", "threads")
        ):
            speeds = {
                int(mebibytes): speed for mebibytes, speed in row["gigabytes_a_second"].items()
            }
            figures = {
                key: row[key] for key in ("gigaflops", "product_us", "elementwise_us", "threads")
            }
            machine = machine.better(Machine(speeds, **figures))
    harness.merge(
        "sampling",
        {"work": "machine", "batch": 0, **machine.facts()},
        ("work", "batch"),
        chosen.out,
    )
    return machine


def arguments() -> argparse.Namespace:
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
    chosen = arguments()
    torch.set_num_threads(chosen.threads)
    if chosen.growth or chosen.big:
        for row in sampling_growth.rows(chosen):
            print(row, harness.merge("growth", row, sampling_growth.KEYS, chosen.out), flush=True)
        return
    machine = machine_of(chosen)
    for name in chosen.work:
        work = small(WORKS[name]) if chosen.smoke else WORKS[name]
        there, missing = ([], ["not asked for"]) if chosen.no_peers else peers_of(name)
        for batch in chosen.batches or work.batches:
            row = measure_work(name, work, batch, [peer(batch) for peer in there], machine, chosen)
            row["peers_missing"] = missing
            harness.merge("sampling", row, ("work", "batch"), chosen.out)
            print(line(row), flush=True)


if __name__ == "__main__":
    main()

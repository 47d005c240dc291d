"""Steps of two processes that share a batch, against two that train by themselves.

    python benchmarks/several_speed.py --json results/several_speed.json

Each process has one thread. The two that share pass half of the batch each and exchange gradients;
the two that do not pass a batch of half the size each, at the same time, so that both kinds meet
the same memory and caches. The ratio of their times of a step is the efficiency. It wants two idle
cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

import harness
import numpy as np
import several_processes
import torch

import tessella as ts

SIDE = 28


def train_for_a_while(out: Path, batch: int, chosen: argparse.Namespace) -> None:
    """Train on random images, and leave the seconds of a step beside the run."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chance = np.random.default_rng(0)
    images = chance.integers(0, 2, (2000, SIDE, SIDE, 1), dtype=np.uint8) * 255
    grid = ts.Grid(SIDE, SIDE, 1, 2)
    model = ts.create("gated-pixelcnn", grid, layers=chosen.layers, hidden=chosen.hidden)
    run = ts.train(
        model,
        images[:1900],
        valid=images[1900:],
        out=out,
        say=lambda line: None,
        steps=chosen.steps,
        batch=batch,
        validate_every=chosen.steps,
        device="cpu",
        threads=1,
        board="none",
    )
    # All processes of a run have the same progress; each of two runs has its own.
    seconds = run.progress.training / run.progress.step
    (out.parent / f"{out.name}.seconds").write_text(str(seconds))


def together(folder: Path, chosen: argparse.Namespace) -> float:
    """Seconds of a step of two processes that share a batch."""
    out = folder / "together"
    several_processes.in_processes(2, lambda: train_for_a_while(out, chosen.batch, chosen))
    return float((folder / "together.seconds").read_text())


def apart(folder: Path, chosen: argparse.Namespace) -> float:
    """Seconds of a step of two processes that know nothing of each other."""
    forked = multiprocessing.get_context("fork")
    children = []
    for number in range(2):
        given = (folder / f"apart-{number}", chosen.batch // 2, chosen)
        children.append(forked.Process(target=train_for_a_while, args=given))
    for child in children:
        child.start()
    for child in children:
        child.join()
    seconds = [float((folder / f"apart-{number}.seconds").read_text()) for number in range(2)]
    return max(seconds)


def main() -> None:
    """Measure in turn, and say what sharing costs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32, help="of a step, over both processes")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default="", help="file to write the row to")
    chosen = parser.parse_args()
    times: dict[str, list[float]] = {"together": [], "apart": []}
    for _ in range(chosen.rounds):
        with tempfile.TemporaryDirectory() as name:
            times["together"].append(together(Path(name), chosen))
            times["apart"].append(apart(Path(name), chosen))
    shared = statistics.median(times["together"])
    alone = statistics.median(times["apart"])
    row = {
        "batch": chosen.batch,
        "layers": chosen.layers,
        "hidden": chosen.hidden,
        "seconds_of_a_step": times,
        "efficiency": alone / shared,
    }
    print(f"{shared:.4f} s a step together, {alone:.4f} s apart: efficiency {alone / shared:.2f}")
    if chosen.json:
        print(harness.write("several_speed", [row], chosen.json))


if __name__ == "__main__":
    sys.exit(main())

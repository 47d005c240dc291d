"""Is this checkout as fast as another one? Sampling and training of every family, in turn.

    git worktree add ../before d74fdea
    python benchmarks/two_checkouts.py ../before

Both checkouts do the same work: a cached step of sampling at two batch sizes, and a training step
(forward, backward, Adam). Each checkout lives in a process of its own, which stays up; the work
alternates between the two, piece by piece, so that both meet the noise of the machine alike. The
result is the median over rounds of the ratio of neighbouring measurements, this checkout over the
other: 1.03 means three percent slower. Only what is public in both checkouts is used. Writes
``results/two_checkouts.json``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

FAMILIES: dict[str, dict[str, Any]] = {
    "fvsbn": {},
    "nade": {"hidden": 128},
    "made": {"hidden": 256, "layers": 1},
    "lstm": {"layers": 2, "hidden": 64},
    "row-lstm": {"layers": 2, "hidden": 48},
    "diagonal-bilstm": {"layers": 2, "hidden": 48},
    "pixelcnn": {"layers": 4, "hidden": 48},
    "gated-pixelcnn": {"layers": 4, "hidden": 64},
    "pixelcnn++": {"filters": 32, "layers": 2, "scales": 2},
    "pixelsnail": {},
    "transformer": {"layers": 4, "width": 64},
}
"""What is built, with sizes of some milliseconds a step; a name unknown there keeps its default."""

SIDE = 16
"""Rows and columns of the images, which have one channel of 16 levels."""

BATCHES = (1, 16)
"""Images drawn at once."""

TRAINED = 16
"""Images of a training step."""


def build(family: str) -> Any:
    """The model of a family with those of its sizes that it takes."""
    import tessella as ts
    from tessella.errors import ConfigError

    grid = ts.Grid(SIDE, SIDE, 1, 16)
    try:
        return ts.create(family, grid, **FAMILIES[family])
    except ConfigError:
        return ts.create(family, grid)


def child() -> None:
    """Answer each line of standard input, a piece of work, with the seconds that it took."""
    import torch

    import tessella as ts

    torch.set_num_threads(int(os.environ["BENCHMARK_THREADS"]))
    models: dict[str, Any] = {}
    optimizers: dict[str, Any] = {}
    for line in sys.stdin:
        kind, family, batch = line.split()
        if family not in models:
            models[family] = build(family)
            optimizers[family] = torch.optim.Adam(models[family].parameters(), lr=1e-5)
        model = models[family]
        if kind == "sample":
            model.eval()
            started = time.perf_counter()
            ts.sample(model, n=int(batch), seed=0, method="cached")
            seconds = time.perf_counter() - started
        else:
            generator = torch.Generator().manual_seed(0)
            x = torch.randint(16, (int(batch), SIDE, SIDE, 1), generator=generator)
            model.train()
            started = time.perf_counter()
            # Several steps, or the smallest models would measure the clock.
            for _ in range(3):
                optimizers[family].zero_grad()
                loss = -_log_prob(model, x)
                loss.backward()
                optimizers[family].step()
            seconds = time.perf_counter() - started
        print(seconds, flush=True)


def _log_prob(model: Any, x: Any) -> Any:
    """The mean log-probability of a batch, with a gradient."""
    return model.distribution(x).log_prob(x).flatten(1).sum(1).mean()


class Checkout:
    """A process that works with the package of one checkout."""

    def __init__(self, root: Path, threads: int) -> None:
        environment = {**os.environ, "PYTHONPATH": str(root), "BENCHMARK_THREADS": str(threads)}
        command = [sys.executable, str(Path(__file__).resolve()), "--child"]
        self.process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def warm_seconds(self, work: str) -> float:
        """Do a piece of work twice and time the second.

        The first finds the caches cold, and the threads of the other checkout still spinning: it
        takes up to 1.6 times as long, also where a checkout is compared with itself.
        """
        self.seconds(work)
        return self.seconds(work)

    def seconds(self, work: str) -> float:
        """Do a piece of work."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(work + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def compare(work: str, here: Checkout, there: Checkout, rounds: int) -> dict[str, Any]:
    """Measure a piece of work in both checkouts, in turn."""
    for checkout in (here, there):
        for _ in range(2):  # what is built once must not be timed
            checkout.seconds(work)
    ours = []
    theirs = []
    for turn in range(rounds):
        # The order changes from round to round, so that neither always comes second.
        if turn % 2:
            ours.append(here.warm_seconds(work))
            theirs.append(there.warm_seconds(work))
        else:
            theirs.append(there.warm_seconds(work))
            ours.append(here.warm_seconds(work))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "work": work,
        "seconds": statistics.median(ours),
        "seconds_other": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
    }


def main() -> None:
    """Compare, print a line for each piece of work, and write the results."""
    parser = argparse.ArgumentParser(description="Compare the speed of two checkouts.")
    parser.add_argument("other", nargs="?", help="root of the other checkout")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="only work that holds this word")
    parser.add_argument("--out", default="")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child()
        return

    from harness import write

    other = Path(options.other).resolve()
    head = ["git", "-C", str(other), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    here = Checkout(ROOT, options.threads)
    there = Checkout(other, options.threads)
    rows = []
    for family in FAMILIES:
        pieces = [f"sample {family} {batch}" for batch in BATCHES]
        for work in [*pieces, f"train {family} {TRAINED}"]:
            if options.only in work:
                row = compare(work, here, there, options.rounds)
                rows.append(row)
                print(f"{work:30} {row['ratio']:.3f} of {commit}", flush=True)
    ratios = [row["ratio"] for row in rows]
    summary = {"other": commit, "median_ratio": statistics.median(ratios)}
    print(f"median over the work: {summary['median_ratio']:.3f}")
    write("two_checkouts", [summary, *rows], options.out)


if __name__ == "__main__":
    main()

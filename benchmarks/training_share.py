"""What share of the processor a training step of each family uses, in float32 and in bfloat16.

    python benchmarks/training_share.py [--only gated] [--threads 1] [--rounds 5]

A step is forward, loss, backward, the norm of the gradient and AdamW, as in a run, at the default
sizes of the family. The operations of its products and convolutions, counted by torch, over its
seconds are what it achieves; the product of two 2048x2048 matrices, measured in turn with it, is
what the processor can do in that precision. Everything that is not a product (activations, losses,
copies, calls) lowers the share. Bfloat16 is that of ``train.precision=bf16``: products in bfloat16,
weights and losses in float32.

Seconds are those of the processor, divided by the threads, so that waiting for neighbours does not
count. Writes ``results/training_share.json``; ``scripts/performance_tables.py`` makes the table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from harness import Row, alternate, count_parameters, gauge_other_load, write
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tessella as ts
from tessella.training.engine import kept_memory

PRODUCT = "product"
SIDE = 2048
"""Rows and columns of the matrices whose product shows what the processor can do."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Work:
    """A model that is trained."""

    family: str
    grid: ts.Grid
    batch: int
    sizes: Mapping[str, Any] = field(default_factory=dict)
    head: str = "categorical"

    @property
    def name(self) -> str:
        """The family, with what differs from its defaults."""
        sizes = "".join(f" {name}={value}" for name, value in self.sizes.items())
        head = "" if self.head == "categorical" else f", {self.head}"
        return f"{self.family}{sizes}{head}"


PIXELS = ts.Grid(32, 32, 3, 256)
DIGITS = ts.Grid(28, 28, 1, 2)
"""For families whose weights grow with the square of the symbols."""

WORKS = (
    Work("gated-pixelcnn", PIXELS, 4, {"layers": 5, "hidden": 48}, "logistic-mixture"),
    Work("gated-pixelcnn", PIXELS, 4),
    Work("gated-pixelcnn", PIXELS, 4, {"layers": 10, "hidden": 128}),
    Work("pixelcnn", PIXELS, 4),
    Work("pixelcnn++", PIXELS, 4, head="logistic-mixture"),
    Work("pixelsnail", PIXELS, 4),
    Work("transformer", PIXELS, 1),
    Work("row-lstm", PIXELS, 4),
    Work("diagonal-bilstm", PIXELS, 4),
    Work("lstm", PIXELS, 4),
    Work("fvsbn", DIGITS, 64),
    Work("nade", DIGITS, 64),
    Work("made", DIGITS, 64),
)


def step_of(work: Work, model: ts.DensityModel, kind: torch.dtype) -> Callable[[], None]:
    """A function that takes one training step in this precision."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(work.grid.levels, (work.batch, *work.grid.shape), generator=generator)

    def step() -> None:
        # The loss is within, as in a run, where autocast is around the whole task.
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            loss = -model.distribution(x).log_prob(x).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """The same work, which returns the seconds that each thread had a processor."""

    def run_and_time() -> float:
        started = time.process_time()
        run()
        return (time.process_time() - started) / torch.get_num_threads()

    return run_and_time


def product_of(kind: torch.dtype) -> Callable[[], object]:
    """A function that multiplies two square matrices in this precision."""
    a = torch.randn(SIDE, SIDE).to(kind)
    return lambda: a @ a


def measure(work: Work, rounds: int) -> Row:
    """Measure a model in both precisions, in turn with the products."""
    pieces: dict[str, Callable[[], object]] = {}
    for precision, kind in PRECISIONS.items():
        model = ts.create(work.family, work.grid, head=work.head, **work.sizes)
        pieces[precision] = step_of(work, model, kind)
        pieces[f"{PRODUCT} {precision}"] = product_of(kind)
    with FlopCounterMode(display=False) as counter:
        pieces["float32"]()
    gflop = counter.get_total_flops() / 1e9
    other_load = gauge_other_load()
    seconds = alternate({name: timed(run) for name, run in pieces.items()}, rounds)

    row: Row = {
        "work": work.name,
        "grid": str(work.grid),
        "batch": work.batch,
        "parameters": count_parameters(model),
        "gflop": gflop,
        "busy_others": other_load(),
    }
    for precision in PRECISIONS:
        # Others can only add to a time, so the least of each is the truest.
        least = seconds[precision]["least"]
        peak = 2 * SIDE**3 / seconds[f"{PRODUCT} {precision}"]["least"] / 1e9
        row[precision] = {
            "seconds": seconds[precision],
            "gflops": gflop / least,
            "peak_gflops": peak,
            "share": gflop / least / peak,
        }
    return row


def line(row: Row) -> str:
    """What a person sees of a row."""
    text = f"{row['work']:52}"
    for precision in PRECISIONS:
        figures = row[precision]
        milliseconds = 1000 * figures["seconds"]["least"]
        text += f" {precision} {milliseconds:7.1f} ms, {figures['share']:.0%} of the peak;"
    return text


def main() -> None:
    """Measure every family, and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="only models whose name holds this word")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    rows = []
    # As in a run, which keeps its memory from step to step.
    with kept_memory():
        for work in WORKS:
            if chosen.only in work.name:
                rows.append(measure(work, chosen.rounds))
                print(line(rows[-1]), flush=True)
    write("training_share", rows, chosen.out)


if __name__ == "__main__":
    main()

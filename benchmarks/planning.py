"""How far plans are from what training takes: memory, seconds, and what processes send each other.

    python benchmarks/planning.py memory [--only gated]       # peaks of memory, minutes
    python benchmarks/planning.py time [--rounds 5]           # seconds, on a quiet machine
    python benchmarks/planning.py exchange                    # sums over two processes
    python benchmarks/planning.py examples                    # the plans of docs/scale.md

``memory`` trains each recipe for two steps in a process of its own and asks Linux for the peak,
counted anew after a step with one image has brought everything that stays. ``time`` times steps in
turn with a product of matrices, which shows the peak of the processor, and gives the share of it
that a family achieves. ``exchange`` sums tensors over two processes with Gloo: a check of the form
of the formula, since processes on one machine have no network between them.

Rows go to ``results/planning.json``, by kind and name; ``scripts/planning_tables.py`` makes the
tables of ``docs/scale.md``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import harness
import torch
import torch.distributed as dist
from harness import Row

from tessella.config import load_recipe
from tessella.planning import Hardware, PlannedTask, facts_of, plan, planned_task
from tessella.planning.compute_time import ASSUMED_SHARE, MEASURED_SHARES
from tessella.planning.memory_parts import memory_parts
from tessella.planning.step_counts import count_step
from tessella.training.averaging import Average
from tessella.training.engine import kept_memory
from tessella.training.optimizers import create_optimizer
from tessella.training.tasks import Task

MIB = 2**20
SIDE = 2048
"""Rows and columns of the matrices whose product shows what the processor can do."""

SENT = (1 * MIB, 8 * MIB, 64 * MIB)
"""Bytes that are summed over two processes."""

SMALLEST_MAPPED = 65536
"""Bytes from which on glibc maps a piece of memory by itself, where it is asked to."""

RESET_PEAK = "5"
"""What Linux takes as the wish to count a process's peak of memory anew."""


@dataclass(frozen=True)
class Work:
    """A recipe that is trained.

    Args:
        family: what is planned.
        recipe: a recipe that ships.
        overrides: its values that differ.
        batches: images of a step.
        tokenizer: recipe of the tokenizer of a prior.
    """

    family: str
    recipe: str
    overrides: tuple[str, ...]
    batches: tuple[int, ...]
    tokenizer: str = ""

    def planned(self) -> PlannedTask:
        """What is trained."""
        return planned_task(load_recipe(self.recipe, self.overrides), self.tokenizer)


def pixels(family: str, *batches: int, head: str = "categorical") -> Work:
    """A family on 32x32 colours, at its default sizes or those of the recipe."""
    overrides = (f"model.name={family}", f"model.head={head}", "train.optimizer=adamw")
    return Work(family, "cifar10", overrides, batches)


def digits(family: str, *batches: int) -> Work:
    """A family whose weights grow with the square of the symbols, on binary 28x28 digits."""
    overrides = (f"model.name={family}", "train.optimizer=adamw", "model.head=categorical")
    return Work(family, "binary-mnist", overrides, batches)


WORKS = (
    pixels("gated-pixelcnn", 4, 16, head="logistic-mixture"),
    pixels("pixelcnn", 4, 16),
    pixels("pixelcnn++", 4, 16, head="logistic-mixture"),
    pixels("pixelsnail", 4, 16),
    pixels("transformer", 2, 8),
    pixels("row-lstm", 4, 16),
    pixels("diagonal-bilstm", 4, 16),
    pixels("lstm", 4, 16),
    digits("fvsbn", 64, 256),
    digits("nade", 64, 256),
    digits("made", 64, 256),
    Work("vqvae", "cifar10-vqvae", (), (16, 64)),
    Work("vqvae-2", "cifar10-vqvae2", (), (16, 64)),
    Work("vqgan", "digits-vqgan", (), (64, 256)),
    Work("vae", "cifar10-vae", (), (16, 64)),
    Work("prior", "cifar10-prior", (), (16, 64), tokenizer="cifar10-vqvae"),
)


@dataclass(frozen=True)
class Example:
    """A plan of the documentation.

    Args:
        name: of the case.
        recipe: a recipe that ships.
        overrides: its values that differ.
        hardware: the machines.
        options: the same, as words of ``tessella plan``.
        tokenizer: recipe of the tokenizer of a prior.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...]
    hardware: Hardware
    options: str = ""
    tokenizer: str = ""

    @property
    def command(self) -> str:
        """What a person types for it."""
        words = ["tessella plan", self.recipe]
        if self.tokenizer:
            words.append(f"--tokenizer {self.tokenizer}")
        if self.options:
            words.append(self.options)
        return " ".join([*words, *self.overrides])


WIDE = ("model.layers=20", "model.hidden=256", "train.batch=512", "train.steps=100000")
LARGE = (
    "data.size=256",
    "model.name=transformer",
    "model.layers=24",
    "model.width=1024",
    "model.heads=16",
    "train.batch=2048",
    "train.minutes=0",
    "train.steps=200000",
)
VERY_LARGE = (
    "data.size=256",
    "model.name=transformer",
    "model.layers=40",
    "model.width=4096",
    "model.heads=32",
    "train.batch=2048",
    "train.minutes=0",
    "train.steps=200000",
)

EXAMPLES = (
    Example("a laptop", "cifar10", (), Hardware()),
    Example("one GPU", "cifar10", (*WIDE, "train.minutes=0"), Hardware("h100"), "--gpus 1"),
    Example(
        "8 GPUs", "cifar10", (*WIDE, "train.minutes=0"), Hardware("h100", devices=8), "--gpus 8"
    ),
    Example(
        "4 machines of 8 GPUs",
        "folder-prior",
        LARGE,
        Hardware("h100", devices=8, nodes=4),
        "--gpus 8 --nodes 4",
        tokenizer="folder-vqgan",
    ),
    Example(
        "4 machines of 8 GPUs, a model that fits on none",
        "folder-prior",
        VERY_LARGE,
        Hardware("h100", devices=8, nodes=4, network=50e9),
        "--gpus 8 --nodes 4 --network 50",
        tokenizer="folder-vqgan",
    ),
)
"""From a laptop to several machines."""


class Trained:
    """A task with optimizer and average, as a run has them.

    Args:
        work: what is trained.
    """

    def __init__(self, work: Work) -> None:
        self.planned = work.planned()
        self.task: Task = self.planned.build().train()
        self.optimizer = create_optimizer(self.task, self.planned.recipe.train)
        self.average = Average(self.task.module, 0.99)

    def step(self, images: int) -> None:
        """Take one optimizer step on so many images."""
        x, labels = self.planned.examples(images)
        self.task(x, labels)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.task.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.task.module, 0)


def process_memory(field: str) -> int:
    """A figure of this process, in bytes: ``VmRSS`` now, ``VmHWM`` at its peak (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise LookupError(f"/proc/self/status has no {field}")


def measure_memory(work: Work, batch: int) -> Row:
    """Memory of this process while it trains; it must have done nothing before."""
    program = process_memory("VmRSS")
    trained = Trained(work)
    trained.step(1)
    # What the first step freed goes back, so that the rest is what stays.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    before = process_memory("VmRSS")
    for _ in range(2):
        trained.step(batch)
    peak = process_memory("VmHWM")
    return {"program": program, "held": before - program, "step": peak - before, "peak": peak}


def forecast_memory(work: Work, batch: int) -> Row:
    """What the plan says of the same."""
    planned = work.planned()
    counts = count_step(planned, checkpointing=False, half=False)
    parts = memory_parts(counts.held, counts, batch, 1, False, Hardware())
    return {
        "program": parts.program,
        "held": parts.weights + parts.moments + parts.average,
        "step": parts.gradients + parts.activations + parts.logits + parts.at_work,
        "peak": parts.total,
    }


def memory_row(work: Work, batch: int) -> Row:
    """Forecast and measurement, in a process of its own."""
    measured = json.loads(run_apart("memory-one", work.family, str(batch)))
    mapped = json.loads(run_apart("memory-one", work.family, str(batch), mapped=True))
    forecast = forecast_memory(work, batch)
    return {
        "kind": "memory",
        "name": f"{work.family} {batch}",
        "family": work.family,
        "recipe": work.recipe,
        "overrides": list(work.overrides),
        "batch": batch,
        "measured": measured,
        "measured_without_gaps": mapped,
        "forecast": forecast,
        "ratio_of_step": forecast["step"] / mapped["step"],
        "ratio_of_peak": forecast["peak"] / measured["peak"],
    }


def run_apart(*words: str, mapped: bool = False) -> str:
    """The last line that this program prints, run with other words in a new process.

    Args:
        mapped: whether each tensor is mapped by itself, so that the heap has no gaps (glibc).
    """
    command = [sys.executable, __file__, *words]
    environment = {**os.environ, "PYTHONPATH": str(harness.ROOT)}
    if mapped:
        environment["MALLOC_MMAP_THRESHOLD_"] = str(SMALLEST_MAPPED)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """The same work, which returns the seconds that each thread had a processor."""

    def run_and_time() -> float:
        started = time.process_time()
        run()
        return (time.process_time() - started) / torch.get_num_threads()

    return run_and_time


def time_row(work: Work, batch: int, rounds: int) -> Row:
    """Seconds of a step, and what was planned with the peak of this processor."""
    counts = count_step(work.planned(), checkpointing=False, half=False)
    trained = Trained(work)
    matrix = torch.randn(SIDE, SIDE)
    other_load = harness.gauge_other_load()
    with kept_memory():
        pieces = {
            "step": timed(lambda: trained.step(batch)),
            "product": timed(lambda: matrix @ matrix),
        }
        seconds = harness.alternate(pieces, rounds)
    # Others can only add to a time, so the least of each is the truest.
    peak = 2 * SIDE**3 / seconds["product"]["least"]
    flops = counts.flops.at(batch)
    least = seconds["step"]["least"]
    planned_share = MEASURED_SHARES.get(work.family, ASSUMED_SHARE)["32"]
    return {
        "kind": "time",
        "name": f"{work.family} {batch}",
        "family": work.family,
        "recipe": work.recipe,
        "overrides": list(work.overrides),
        "batch": batch,
        "seconds": seconds["step"],
        "gflop": flops / 1e9,
        "peak_gflops": peak / 1e9,
        "share": flops / least / peak,
        "planned_share": planned_share,
        "forecast_seconds": flops / (planned_share * peak),
        "busy_others": other_load(),
    }


def exchange_row(rounds: int) -> Row:
    """Seconds of sums over two processes, and the line of the formula through two of them."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        command = [sys.executable, __file__, "exchange-one", meeting, str(rounds)]
        environment = {**os.environ, "PYTHONPATH": str(harness.ROOT)}
        other = subprocess.Popen([*command, "1"], env=environment)
        try:
            first = subprocess.run(
                [*command, "0"], env=environment, capture_output=True, text=True, check=True
            )
            assert other.wait(timeout=60) == 0
        finally:
            other.kill()
    seconds = json.loads(first.stdout.splitlines()[-1])
    small, middle, large = (seconds[str(size)] for size in SENT)
    # Two of n = 2 processes: each sends as many bytes as there are, and 2 messages.
    rate = (SENT[2] - SENT[0]) / (large - small)
    latency = max(0.0, small - SENT[0] / rate)
    forecast = latency + SENT[1] / rate
    return {
        "kind": "exchange",
        "name": "two processes, Gloo",
        "seconds": seconds,
        "bytes_a_second": rate,
        "latency_seconds": latency,
        "middle_forecast_seconds": forecast,
        "ratio": forecast / middle,
    }


def exchange(meeting: str, rounds: int, rank: int) -> dict[int, float]:
    """Median seconds of a sum over both processes, by bytes."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found = {}
    for size in SENT:
        tensor = torch.ones(size // 4)
        seconds = []
        for _ in range(1 + rounds):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(tensor)
            seconds.append(time.perf_counter() - started)
        # The first one opens the connection.
        found[size] = statistics.median(seconds[1:])
    dist.destroy_process_group()
    return found


def example_row(example: Example) -> Row:
    """A plan, with the command that makes it."""
    recipe = load_recipe(example.recipe, example.overrides)
    made = plan(planned_task(recipe, example.tokenizer), example.hardware)
    return {
        "kind": "example",
        "name": example.name,
        "command_line": example.command,
        "plan": facts_of(made),
    }


def work_of(family: str) -> Work:
    """The work of a family."""
    return next(work for work in WORKS if work.family == family)


def measure(chosen: argparse.Namespace) -> None:
    """Measure what was chosen, and write each row as it comes."""
    if chosen.what == "exchange":
        keep(exchange_row(chosen.rounds), chosen.out)
        return
    if chosen.what == "examples":
        for example in EXAMPLES:
            if chosen.only not in example.name:
                continue
            keep(example_row(example), chosen.out)
        return
    for work in WORKS:
        if chosen.only not in work.family:
            continue
        for batch in work.batches:
            if chosen.what == "memory":
                keep(memory_row(work, batch), chosen.out)
            else:
                keep(time_row(work, batch, chosen.rounds), chosen.out)


def keep(row: Row, out: str) -> None:
    """Write a row and show it."""
    harness.merge("planning", row, ("kind", "name"), out)
    figures = []
    for name in ("ratio_of_step", "ratio_of_peak", "share", "forecast_seconds", "ratio"):
        if name in row:
            figures.append(f"{name} {row[name]:.3g}")
    print(f"{row['kind']:9} {row['name']:24} {', '.join(figures)}", flush=True)


def main() -> None:
    """Read the command line; the words ending in -one are those of new processes."""
    if sys.argv[1:2] == ["memory-one"]:
        torch.set_num_threads(1)
        print(json.dumps(measure_memory(work_of(sys.argv[2]), int(sys.argv[3]))))
        return
    if sys.argv[1:2] == ["exchange-one"]:
        print(json.dumps(exchange(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("memory", "time", "exchange", "examples"))
    parser.add_argument("--only", default="", help="only families whose name holds this word")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="")
    torch.set_num_threads(1)
    measure(parser.parse_args())


if __name__ == "__main__":
    main()

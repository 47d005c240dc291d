"""Shared by all benchmarks: medians of alternating runs, and result files with their origin."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]

PROCESSOR_TIMES = Path("/proc/stat")
IDLE_FIELDS = (3, 4)
"""Places of idle time and of waiting for a disk among the processor times of Linux."""

Row = dict[str, Any]
"""A row of a result file. What it holds differs from benchmark to benchmark."""


def alternate(
    work: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1
) -> dict[str, dict[str, float]]:
    """Time several pieces of work in turn, so that all of them meet the same noise.

    A piece that returns a float has timed itself, in seconds, and left out its preparation.

    Returns:
        For each name the median, least and greatest wall-clock seconds over ``rounds`` runs, after
        ``warm`` runs that do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(warm + rounds):
        for name, run in work.items():
            started = time.perf_counter()
            result = run()
            seconds = time.perf_counter() - started
            if isinstance(result, float):
                seconds = result
            if turn >= warm:
                times[name].append(seconds)

    spread = {}
    for name, seconds_of_runs in times.items():
        spread[name] = {
            "median": statistics.median(seconds_of_runs),
            "least": min(seconds_of_runs),
            "greatest": max(seconds_of_runs),
        }
    return spread


def gauge_other_load() -> Callable[[], float]:
    """Start to watch how busy other processes keep the machine (Linux).

    Returns:
        A function that returns the processors that others kept busy, on average, since the start;
        NaN on other systems.
    """
    if not PROCESSOR_TIMES.exists():
        return lambda: float("nan")

    start_wall, start_busy, start_ours = _processor_seconds()

    def busy_with_others() -> float:
        wall, busy, ours = _processor_seconds()
        others = (busy - start_busy) - (ours - start_ours)
        # The kernel counts in ticks, so the difference can be slightly negative.
        return max(0.0, others) / (wall - start_wall)

    return busy_with_others


def _processor_seconds() -> tuple[float, float, float]:
    """Wall-clock seconds, busy seconds of all processors, and those of this process."""
    # The first line reads "cpu", then ticks spent in user code, in the kernel, idle, and so on.
    first_line = PROCESSOR_TIMES.read_text().splitlines()[0]
    busy_ticks = 0
    for place, field in enumerate(first_line.split()[1:9]):
        if place not in IDLE_FIELDS:
            busy_ticks += int(field)
    ours = os.times()
    busy = busy_ticks / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy, ours.user + ours.system


def hardware() -> dict[str, Any]:
    """The machine and the software, as JSON values."""
    gpu = None
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name()
    return {
        "cpu": _processor_name() or platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor_name() -> str:
    """The name of the processor as Linux has it, empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    for line in path.read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return ""


def commit() -> str:
    """The commit that ran, followed by a plus if the tree had changes."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    # Only code can change a figure: documents and results that are being written do not count.
    changed = subprocess.run(
        [*git, "status", "--porcelain", "tessella", "benchmarks"], capture_output=True, text=True
    )
    if changed.stdout.strip():
        return head + "+"
    return head


class StandIn(types.ModuleType):
    """A module that has every name, for one that a peer imports and does not use.

    Each name is a class that has every name in turn.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        # A module with a path is a package, so that "import name.part" works.
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        # Python asks for names such as __file__ and can do without them.
        if name.startswith("__"):
            raise AttributeError(name)
        return type(
            name,
            (),
            {"__getattr__": lambda self, other: other, "VisionDataset": object, "Dataset": object},
        )


@contextmanager
def importing(folder: Path, packages: Sequence[str], absent: Sequence[str] = ()) -> Iterator[None]:
    """Import from a peer's checkout, and leave no trace of it.

    Args:
        folder: put on the path meanwhile.
        packages: top names of the peer's modules, forgotten afterwards: several peers have one
            named ``utils``.
        absent: modules that stand-ins replace meanwhile.
    """
    before = {}
    for name in [*_loaded(packages), *absent]:
        if name in sys.modules:
            before[name] = sys.modules.pop(name)
    for name in absent:
        sys.modules[name] = StandIn(name)
    # First, so that the peer wins over an installed package of its name.
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [*_loaded(packages), *absent]:
            sys.modules.pop(name, None)
        # Last, after the peer is gone: names may be shared.
        sys.modules.update(before)


def _loaded(packages: Sequence[str]) -> list[str]:
    """Names of the modules of some packages that have been imported."""
    return [name for name in sys.modules if name.split(".")[0] in packages]


def count_parameters(*modules: torch.nn.Module) -> int:
    """Number of parameters of some modules."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def results_path(name: str, out: str = "") -> Path:
    """``results/NAME.json``, or ``out``."""
    if out:
        return Path(out)
    return ROOT / "results" / f"{name}.json"


def read_rows(path: Path) -> list[Row]:
    """The rows of a result file; none if it does not exist."""
    if not path.exists():
        return []
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def write(name: str, rows: list[Row], out: str = "") -> Path:
    """Write ``results/NAME.json`` (or ``out``): the rows, and what they were measured with."""
    path = results_path(name, out)
    # Results of some benchmarks lie in a folder below results/.
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {
        "command": ["python", *sys.argv],
        "commit": commit(),
        "hardware": hardware(),
        "written": _now(),
        "rows": rows,
    }
    path.write_text(json.dumps(contents, indent=2) + "\n")
    return path


def merge(name: str, row: Row, keys: Sequence[str], out: str = "") -> Path:
    """Replace the row with equal ``keys`` in ``results/NAME.json`` (or ``out``), or add one.

    The row gets the commit and the time. Rows that lack a key are dropped.
    """
    by_key = {}
    for old in read_rows(results_path(name, out)):
        if all(key in old for key in keys):
            by_key[tuple(old[key] for key in keys)] = old
    # Each row has its own commit, since the rows of a file are measured over days.
    stamped = row | {"commit": commit(), "written": _now()}
    by_key[tuple(row[key] for key in keys)] = stamped
    return write(name, list(by_key.values()), out)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""What every benchmark shares: medians of alternating runs, and a JSON file that says where the
numbers come from."""

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


def alternate(
    work: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1
) -> dict[str, dict[str, float]]:
    """Time several pieces of work in turn, so that all meet the same noise.

    A piece that returns a float has timed itself, in seconds, and left out what it had to prepare.

    Returns:
        For each name the median, least and greatest wall-clock seconds over ``rounds`` runs after
        ``warm`` ones.
    """
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(warm + rounds):
        for name, act in work.items():
            started = time.perf_counter()
            own = act()
            if turn >= warm:
                times[name].append(own if isinstance(own, float) else time.perf_counter() - started)
    return {
        n: {"median": statistics.median(t), "least": min(t), "greatest": max(t)}
        for n, t in times.items()
    }


def others() -> Callable[[], float]:
    """Start a gauge of noise; called later, it tells how many processors others kept busy meanwhile
    (Linux)."""

    def now() -> tuple[float, float, float]:
        fields = [int(f) for f in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        busy = sum(f for i, f in enumerate(fields) if i not in (3, 4)) / os.sysconf("SC_CLK_TCK")
        own = os.times()
        return time.perf_counter(), busy, own.user + own.system

    if not Path("/proc/stat").exists():
        return lambda: float("nan")
    start = now()

    def since() -> float:
        wall, busy, own = (b - a for a, b in zip(start, now(), strict=True))
        return max(0.0, busy - own) / wall

    return since


def hardware() -> dict[str, Any]:
    """The machine and the software, as JSON values."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        names = [
            line
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0].split(":", 1)[1].strip() if names else ""
    return {
        "cpu": model or platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that ran, with a plus when the tree had changes."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "tessella", "benchmarks"], capture_output=True, text=True
    )
    return head + ("+" if changed.stdout.strip() else "")


class StandIn(types.ModuleType):
    """A module that has every name, each a class that has every name: for what a peer imports and
    does not use."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> type:
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

    def of_peer() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] in packages]

    before = {
        name: sys.modules.pop(name)
        for name in [*of_peer(), *(n for n in absent if n in sys.modules)]
    }
    sys.modules.update({name: StandIn(name) for name in absent})
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [*of_peer(), *absent]:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def results_path(name: str, out: str = "") -> Path:
    """``results/NAME.json``, or ``out``."""
    return Path(out) if out else ROOT / "results" / f"{name}.json"


def write(name: str, rows: list[dict[str, Any]], out: str = "") -> Path:
    """Write ``results/NAME.json`` (or ``out``): the rows, and what they were measured with."""
    path = results_path(name, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"command": ["python", *sys.argv], "commit": commit(), "hardware": hardware()}
    facts["written"] = datetime.now(UTC).isoformat(timespec="seconds")
    path.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")
    return path


def merge(name: str, row: dict[str, Any], keys: Sequence[str], out: str = "") -> Path:
    """Put one row into ``results/NAME.json`` (or ``out``) in place of the one with the same
    ``keys``; it gets the commit and the time. Rows that lack a key are dropped."""
    path = results_path(name, out)
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    by_key = {tuple(r[key] for key in keys): r for r in rows if all(key in r for key in keys)}
    stamp = {"commit": commit(), "written": datetime.now(UTC).isoformat(timespec="seconds")}
    by_key[tuple(row[key] for key in keys)] = row | stamp
    return write(name, list(by_key.values()), out)

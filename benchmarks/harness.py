"""What every benchmark shares: medians of alternating runs, and a JSON file that says where the numbers come from."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


def alternate(work: Mapping[str, Callable[[], object]], rounds: int, warm: int = 1) -> dict[str, dict[str, float]]:
    """Time several pieces of work in turn, so that all meet the same noise.

    Returns:
        For each name the median, least and greatest wall-clock seconds over ``rounds`` runs after ``warm`` ones.
    """
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(warm + rounds):
        for name, act in work.items():
            started = time.perf_counter()
            act()
            if turn >= warm:
                times[name].append(time.perf_counter() - started)
    return {n: {"median": statistics.median(t), "least": min(t), "greatest": max(t)} for n, t in times.items()}


def others() -> Callable[[], float]:
    """Start a gauge of noise; called later, it tells how many processors others kept busy meanwhile (Linux)."""

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
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else ""
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that ran, with a plus when the tree had changes."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "tessella", "benchmarks"], capture_output=True, text=True)
    return head + ("+" if changed.stdout.strip() else "")


def write(name: str, rows: list[dict[str, Any]], out: str = "") -> Path:
    """Write ``results/NAME.json`` (or ``out``): the rows, and what they were measured with."""
    path = Path(out) if out else ROOT / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"command": ["python", *sys.argv], "commit": commit(), "hardware": hardware()}
    facts["written"] = datetime.now(UTC).isoformat(timespec="seconds")
    path.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")
    return path

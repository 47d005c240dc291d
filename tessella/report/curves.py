"""The curves of a run: its log, read whatever state it is in, and drawn as text."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

POINTS = 600
"""Points of a curve that are kept; a longer one becomes the means of as many stretches."""

ROWS = 10
"""Rows of the table that stands for the curves where they cannot be drawn."""

HEIGHT = 15
"""Lines of a plot in the terminal."""

MISSING_PLOTEXT = 'curves in the terminal need plotext: pip install "tessella[plots]"'

Curve = Mapping[str, list[float]]
"""``step`` and ``value``, of the same length."""
Curves = Mapping[str, Curve]


def read_log(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The entries of a log, and how it stands. A line that was cut short is counted, not read."""
    if not path.exists():
        return [], {"step": 0, "age_seconds": None, "unreadable": 0}
    entries, unreadable = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            entries.append(entry | {"step": int(entry["step"])})
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            unreadable += 1
    age = max(0.0, time.time() - path.stat().st_mtime)
    return entries, {
        "step": entries[-1]["step"] if entries else 0,
        "age_seconds": age,
        "unreadable": unreadable,
    }


def curves_of(entries: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Name to steps and values, without those that are no numbers."""
    curves: dict[str, dict[str, list[float]]] = {}
    for entry in entries:
        for name, value in entry.items():
            if (
                name not in ("step", "seconds")
                and isinstance(value, (int, float))
                and math.isfinite(value)
            ):
                curve = curves.setdefault(name, {"step": [], "value": []})
                curve["step"].append(entry["step"])
                curve["value"].append(value)
    return {name: thinned(curve, POINTS) for name, curve in curves.items()}


def thinned(curve: Curve, points: int) -> dict[str, list[float]]:
    """A curve of at most so many points: the means of equal stretches of it."""
    steps, values = curve["step"], curve["value"]
    if len(steps) <= points:
        return {"step": list(steps), "value": list(values)}
    edges = [round(i * len(steps) / points) for i in range(points + 1)]
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    return {
        name: [sum(xs[p]) / len(xs[p]) for p in parts]
        for name, xs in (("step", steps), ("value", values))
    }


def after_start(curve: Curve) -> dict[str, list[float]]:
    """A curve without its first twentieth, whose height would flatten all that follows; a short one
    stays whole."""
    if len(curve["step"]) < 20:
        return dict(curve)
    first = curve["step"][-1] / 20
    kept = [
        (step, value)
        for step, value in zip(curve["step"], curve["value"], strict=True)
        if step >= first
    ]
    return {"step": [step for step, _ in kept], "value": [value for _, value in kept]}


def panels(curves: Curves) -> list[tuple[str, dict[str, str]]]:
    """Which curves belong on one plot: the unit of the plot, and its curves as name to label."""
    if "valid/bits_per_dim" in curves or "mse" not in curves:
        plots = [("bits/dim", {"loss": "training", "valid/bits_per_dim": "validation"})]
    else:
        plots = [
            ("training loss", {"loss": "training"}),
            ("validation squared error, (0..255)²", {"valid/mse": "validation"}),
        ]
    there = [
        (unit, {name: label for name, label in named.items() if name in curves})
        for unit, named in plots
    ]
    return [(unit, named) for unit, named in there if named]


def draw(curves: Curves, width: int = 80, colour: bool = False) -> str:
    """Training loss and validation over the steps, as text; a table where plotext is not
    installed."""
    if not any(len(curve["step"]) > 1 for curve in curves.values()):
        return ""
    if not _has_plotext():
        return f"{MISSING_PLOTEXT}\n\n{_table(curves)}"
    drawn = [_draw(curves, unit, named, min(width, 120), colour) for unit, named in panels(curves)]
    return "\n\n".join(plot for plot in drawn if plot)


def _has_plotext() -> bool:
    try:
        found = importlib.util.find_spec("plotext")
    except ValueError:  # there, but emptied
        return False
    if not found:
        return False
    import plotext

    return hasattr(plotext, "clear_figure")  # version 6 has other names


def _draw(curves: Curves, unit: str, named: Mapping[str, str], width: int, colour: bool) -> str:
    import plotext

    if not any(len(curves[name]["step"]) > 1 for name in named):
        return ""  # a single point is no curve
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(width, HEIGHT)
    steps: list[float] = []
    for name, label in named.items():
        if label == "validation":
            curve = after_start(curves[name])
            plotext.scatter(curve["step"], curve["value"], marker="o", color="orange")
        else:
            curve = after_start(thinned(curves[name], width // 2))
            plotext.plot(curve["step"], curve["value"], marker="braille", color="blue")
        steps += curve["step"]
    ticks = _ticks(min(steps), max(steps), max(2, width // 12))
    plotext.xticks(ticks, [f"{tick:,}" for tick in ticks])
    drawn = plotext.build()
    plotext.clear_figure()
    signs = {"training": "line: training, smoothed", "validation": "o: validation"}
    title = f"{unit} by step ({'; '.join(signs[label] for label in named.values())})"
    lines = (drawn if colour else plotext.uncolorize(drawn)).rstrip().splitlines()
    return "\n".join([title, *(line.rstrip() for line in lines)])


def _ticks(low: float, high: float, number: int) -> list[int]:
    """Round numbers from ``low`` to ``high``, about so many."""
    rough = max(1.0, (high - low) / number)
    unit = 10 ** math.floor(math.log10(rough))
    stride = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return list(range(math.ceil(low / stride) * stride, int(high) + 1, stride)) or [int(low)]


def _table(curves: Curves) -> str:
    """About ten rows of step, loss and validation."""
    metric = next((name for name in ("valid/bits_per_dim", "valid/mse") if name in curves), "")
    anchor = curves[metric] if metric else curves["loss"]
    ends = [anchor["step"][round(i * (len(anchor["step"]) - 1) / (ROWS - 1))] for i in range(ROWS)]
    lines = [f"{'step':>10}{'loss':>12}{metric.removeprefix('valid/'):>16}"]
    for step in dict.fromkeys(ends):
        values = [_at(curves.get(name), step) for name in ("loss", metric)]
        lines.append(f"{step:>10,.0f}{values[0]:>12}{values[1]:>16}")
    return "\n".join(line.rstrip() for line in lines)


def _at(curve: Curve | None, step: float) -> str:
    """The last value of a curve at a step."""
    before = (
        [v for s, v in zip(curve["step"], curve["value"], strict=True) if s <= step]
        if curve
        else []
    )
    return f"{before[-1]:.4f}" if before else ""

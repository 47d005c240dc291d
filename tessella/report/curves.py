"""The curves of a run: its log, read whatever state it is in, and drawn as text."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from tessella import files

POINTS = 600
"""Points of a curve that are kept; a longer one becomes the means of as many stretches."""

ROWS = 10
"""Rows of the table that replaces the curves where they cannot be drawn."""

HEIGHT = 15
"""Lines of a plot in the terminal."""

WIDEST = 120
"""Columns of a plot in the terminal, at most."""

LOG_BYTES = 1 << 29
"""Largest log that is read: some millions of lines."""

NO_CURVES = ("step", "seconds", "training_seconds", "kept")
"""Entries of the log that are not curves; ``kept`` marks a validation whose weights were kept."""

LARGEST = 1e300
"""Numbers of a log beyond this are left out."""

MISSING_PLOTEXT = 'curves in the terminal need plotext: pip install "tessella[plots]"'

Entry = Mapping[str, float]
"""A line of the log: numbers by name, ``step`` among them."""
Curve = Mapping[str, list[float]]
"""``step`` and ``value``, of the same length."""
Curves = Mapping[str, Curve]


class LogState(TypedDict):
    """Last step of a log, its age (None without a log), and how many lines cannot be read."""

    step: int
    age_seconds: float | None
    unreadable: int


NO_LOG: LogState = {"step": 0, "age_seconds": None, "unreadable": 0}
"""Of a run that has no log."""


def read_log(path: Path) -> tuple[list[Entry], LogState]:
    """The entries of a log, and how it stands.

    Lines that were cut short or are not entries are counted and left out.

    Raises:
        ArtifactError: when the log is not a regular file, or far too large.
    """
    if not path.exists():
        return [], NO_LOG
    # Lines that are not UTF-8 are damaged, and counted below.
    text = files.read_bytes(path, LOG_BYTES).decode(errors="replace")
    entries: list[Entry] = []
    unreadable = 0
    for line in text.splitlines():
        entry = _entry(line)
        if entry is None:
            unreadable += 1
        else:
            entries.append(entry)
    last_step = 0
    if entries:
        last_step = int(entries[-1]["step"])
    # The clock of the machine that writes may be ahead.
    age = max(0.0, time.time() - path.stat().st_mtime)
    return entries, {"step": last_step, "age_seconds": age, "unreadable": unreadable}


def _entry(line: str) -> Entry | None:
    """The numbers of a line; None where it is not an entry."""
    try:
        # Early versions wrote NaN and Infinity, which strict JSON does not have.
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    numbers: dict[str, float] = {}
    for name, value in values.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # Larger numbers are beyond floats, and so beyond plots.
        if is_number and (value != value or abs(value) < LARGEST):
            numbers[name] = value
    if "kept" in values:
        numbers["kept"] = 1
    step = numbers.get("step", math.nan)
    if math.isnan(step):
        return None
    return {**numbers, "step": int(step)}


def curves_of(entries: list[Entry]) -> dict[str, dict[str, list[float]]]:
    """Steps and values of each curve, without values that are not finite."""
    curves: dict[str, dict[str, list[float]]] = {}
    for entry in entries:
        for name, value in entry.items():
            if name not in NO_CURVES and math.isfinite(value):
                curve = curves.setdefault(name, {"step": [], "value": []})
                curve["step"].append(entry["step"])
                curve["value"].append(value)
    return {name: thinned(curve, POINTS) for name, curve in curves.items()}


def thinned(curve: Curve, points: int) -> dict[str, list[float]]:
    """A curve of at most ``points`` points: the means of equal stretches of it."""
    steps = curve["step"]
    values = curve["value"]
    if len(steps) <= points:
        return {"step": list(steps), "value": list(values)}
    # Edges of equal stretches, to the nearest entry.
    edges = [round(number * len(steps) / points) for number in range(points + 1)]
    short: dict[str, list[float]] = {"step": [], "value": []}
    for start, stop in itertools.pairwise(edges):
        short["step"].append(sum(steps[start:stop]) / (stop - start))
        short["value"].append(sum(values[start:stop]) / (stop - start))
    return short


def after_start(curve: Curve) -> dict[str, list[float]]:
    """A curve without its first twentieth, whose height would flatten all that follows.

    A short curve stays whole.
    """
    if len(curve["step"]) < 20:
        return dict(curve)
    first = curve["step"][-1] / 20
    kept: dict[str, list[float]] = {"step": [], "value": []}
    for step, value in zip(curve["step"], curve["value"], strict=True):
        if step >= first:
            kept["step"].append(step)
            kept["value"].append(value)
    return kept


def panels(curves: Curves, of_codes: bool = False) -> list[tuple[str, dict[str, str]]]:
    """Which curves belong on one plot: the unit of the plot, and its curves as name to label.

    Args:
        curves: by name.
        of_codes: whether bits are those of codes, not of pixels.
    """
    bits = "bits/code" if of_codes else "bits/dim"
    # Density models train on what they are validated by; tokenizers do not.
    if "valid/bits_per_dim" in curves or "mse" not in curves:
        plots = {bits: {"loss": "training", "valid/bits_per_dim": "validation"}}
    else:
        plots = {
            "training loss": {"loss": "training"},
            "validation squared error, (0..255)²": {"valid/mse": "validation"},
        }
    found = []
    for unit, labels in plots.items():
        present = {name: label for name, label in labels.items() if name in curves}
        if present:
            found.append((unit, present))
    return found


def draw(curves: Curves, width: int = 80, colour: bool = False, of_codes: bool = False) -> str:
    """Training loss and validation over the steps, as text.

    Where plotext is not installed, a table of a few steps.
    """
    if not any(len(curve["step"]) > 1 for curve in curves.values()):
        return ""
    if not _has_plotext():
        return f"{MISSING_PLOTEXT}\n\n{_table(curves, of_codes)}"
    drawn = []
    for unit, labels in panels(curves, of_codes):
        plot = _draw(curves, unit, labels, min(width, WIDEST), colour)
        if plot:
            drawn.append(plot)
    return "\n\n".join(drawn)


def _has_plotext() -> bool:
    try:
        found = importlib.util.find_spec("plotext")
    except ValueError:  # there, but emptied
        return False
    if not found:
        return False
    import plotext

    return hasattr(plotext, "clear_figure")  # version 6 has other names


def _draw(curves: Curves, unit: str, labels: Mapping[str, str], width: int, colour: bool) -> str:
    """One plot as text; empty where no curve has two points."""
    import plotext

    if not any(len(curves[name]["step"]) > 1 for name in labels):
        return ""
    # The library has one figure for the whole process.
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(width, HEIGHT)
    steps: list[float] = []
    for name, label in labels.items():
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
    legend = "; ".join(signs[label] for label in labels.values())
    if not colour:
        drawn = plotext.uncolorize(drawn)
    lines = [line.rstrip() for line in drawn.rstrip().splitlines()]
    return "\n".join([f"{unit} by step ({legend})", *lines])


def _ticks(low: float, high: float, number: int) -> list[int]:
    """About ``number`` round numbers from ``low`` to ``high``."""
    rough = max(1.0, (high - low) / number)
    # The power of ten below, then the first of 1, 2, 5, 10 times it that is enough.
    unit = 10 ** math.floor(math.log10(rough))
    stride = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / stride) * stride
    return list(range(first, int(high) + 1, stride)) or [int(low)]


def _table(curves: Curves, of_codes: bool) -> str:
    """About ten rows of step, loss and validation."""
    metric = ""
    for name in ("valid/bits_per_dim", "valid/mse"):
        if name in curves:
            metric = name
            break
    # Rows are at validations, where both columns have a value.
    steps = curves[metric or "loss"]["step"]
    title = metric.removeprefix("valid/")
    if of_codes:
        title = title.replace("bits_per_dim", "bits_per_code")
    lines = [f"{'step':>10}{'loss':>12}{title:>16}"]
    before = None
    for row in range(ROWS):
        step = steps[round(row * (len(steps) - 1) / (ROWS - 1))]
        if step == before:
            continue
        before = step
        loss = _at(curves.get("loss"), step)
        value = _at(curves.get(metric), step)
        lines.append(f"{step:>10,.0f}{loss:>12}{value:>16}".rstrip())
    return "\n".join(lines)


def _at(curve: Curve | None, step: float) -> str:
    """The last value of a curve at a step."""
    last = ""
    if curve is not None:
        for at, value in zip(curve["step"], curve["value"], strict=True):
            if at <= step:
                last = f"{value:.4f}"
    return last

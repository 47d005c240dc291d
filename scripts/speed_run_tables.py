"""Write the tables of docs/likelihood.md from results/likelihood, and draw their pictures.

    python scripts/speed_run_tables.py            # rewrites the text between the markers

The pictures need matplotlib.
"""

from __future__ import annotations

import bisect
import importlib.util
import json
import math
import re
import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import likelihood_tables as cells_tables
from likelihood_tables import Row, bits_per_dim, budget, curve_points, origin
from performance_tables import MISSING, NOTHING, table

DOCUMENT = cells_tables.ROOT / "docs" / "likelihood.md"

TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60)
"""Minutes that a picture names, as far as it reaches."""


@dataclass(frozen=True)
class Section:
    """One table of the document, with its picture.

    Args:
        table: of ``benchmarks/likelihood.toml``, and the marker in the document.
        unit: ``nats`` of an image, or ``bits/dim``.
        older: a table of runs that began before ``table``: where a cell of ``table`` was not
            measured for a budget, the one of the same name and budget there stands in.
        minutes: of the longest runs, at which the validation curve is told too.
    """

    table: str
    unit: str
    older: str = ""
    minutes: tuple[float, ...] = ()


SECTIONS = (
    Section("speed-mnist-fixed", "nats", older="binary-mnist"),
    Section("speed-mnist-dynamic", "nats"),
    Section("speed-mnist-grey", "bits/dim"),
    Section("speed-digits", "bits/dim", older="digits"),
    Section("speed-crops", "bits/dim"),
    Section("speed-cifar10", "bits/dim"),
    Section("data-cifar10", "bits/dim", minutes=(0, 1, 5, 20)),
    Section("predictor-crops", "bits/dim", minutes=(0, 1, 5, 20)),
    Section("predictor-cifar10", "bits/dim", minutes=(0, 1, 5, 20)),
    Section("optimizer-mnist-fixed", "nats", minutes=(0, 1, 5, 20)),
    Section("optimizer-cifar10", "bits/dim", minutes=(0, 1, 5, 20)),
)


@dataclass(frozen=True)
class Entry:
    """A cell with one budget: its seeds, and the figure over them in the unit of its section."""

    label: str
    minutes: float
    rows: tuple[Row, ...]
    figure: float
    error: float
    in_unit: float
    """What a bit/dim is in the unit."""


# From files to entries.


def entries(section: Section) -> list[Entry]:
    """All cells of a section that were measured, in the order in which they are listed."""
    found = _entries_of_table(section, section.table)
    known = {(entry.label, entry.minutes) for entry in found}
    if section.older:
        budgets = _budgets(section.table)
        for entry in _entries_of_table(section, section.older):
            if entry.minutes in budgets and (entry.label, entry.minutes) not in known:
                found.append(entry)
    listed = cells_tables.labels(section.table)
    return sorted(found, key=lambda entry: cells_tables.position(listed, entry.label))


def _entries_of_table(section: Section, name: str) -> list[Entry]:
    by_cell: dict[str, list[Row]] = {}
    for row in cells_tables.rows(name):
        by_cell.setdefault(row["cell"], []).append(row)
    found = []
    for cell, rows in by_cell.items():
        rows.sort(key=lambda row: row["settings"]["train"]["seed"])
        found.append(_entry(section, name, cell, rows))
    return found


def _entry(section: Section, name: str, cell: str, rows: list[Row]) -> Entry:
    """The figure of a cell: of its summary over seeds, or of its only row."""
    test = rows[0]["test"]
    in_unit = 1.0
    if section.unit == "nats":
        in_unit = test["nats_per_image"] / test["bits_per_dim"]
    mean = bits_per_dim(rows[0])
    error = float(test["bits_per_dim_se"])
    summary = _summary(name, cell)
    if summary is not None:
        # Of images and seeds, and of photographs where images are tiles.
        mean = summary["bits_per_dim"]["mean"]
        error = summary["bits_per_dim"]["se"]
        measured = [row for row in rows if row["settings"]["train"]["seed"] in summary["seeds"]]
        # A cell without seeds says null.
        if measured:
            rows = measured
    elif len(rows) > 1:
        raise AssertionError(f"{name}/{cell} has {len(rows)} seeds and no summary of them")
    return Entry(
        label=_label(name, cell),
        minutes=budget(rows[0]),
        rows=tuple(rows),
        figure=in_unit * mean,
        error=in_unit * error,
        in_unit=in_unit,
    )


def _summary(name: str, cell: str) -> Row | None:
    """The summary over seeds that ``benchmarks/likelihood.py`` wrote."""
    path = cells_tables.CELLS / "summaries.json"
    if not path.exists():
        return None
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        if (row["table"], row["cell"]) == (name, cell):
            return dict(row)
    return None


def _label(name: str, cell: str) -> str:
    """The name of a cell without that of its variant."""
    label, _, variant = cell.rpartition("-")
    if variant in _variants(name):
        return label
    return cell


def _variants(name: str) -> dict[str, Any]:
    text = cells_tables.LISTED.read_text(encoding="utf-8")
    return dict(tomllib.loads(text)[name].get("variants", {}))


def _budgets(name: str) -> list[float]:
    """Minutes of the variants of a table."""
    return sorted(changes["train"]["minutes"] for changes in _variants(name).values())


# The tables.


def speed_run(section: Section) -> str:
    """The table of a section, best first, and its picture."""
    found = entries(section)
    if not found:
        return NOTHING
    by_label: dict[str, dict[float, Entry]] = {}
    for entry in found:
        by_label.setdefault(entry.label, {})[entry.minutes] = entry
    budgets = sorted({entry.minutes for entry in found})

    titles = ["cell", "parameters"]
    for number in budgets:
        titles.append(f"{number:g} min: test {section.unit} ± se (seeds)")
        titles.append(f"images seen in {number:g} min")
    for minute in section.minutes:
        titles.append(f"validation at {minute:g} min")
    lines = []
    for label, by_budget in sorted(by_label.items(), key=lambda item: _rank(item[1], budgets)):
        longest = by_budget[max(by_budget)]
        line = [f"`{label}`", f"{longest.rows[0]['parameters']:,}"]
        for number in budgets:
            line += _figures(by_budget.get(number))
        for minute in section.minutes:
            line.append(_curve_at(longest, minute))
        lines.append(line)
    everything = [row for entry in found for row in entry.rows]
    note = f"*{_note(section, found)}; {origin(everything)}*"
    picture = f"![{section.table}](images/{_picture(section)})"
    return f"{table(titles, lines)}\n\n{note}\n\n{picture}"


def _rank(by_budget: dict[float, Entry], budgets: Sequence[float]) -> list[float]:
    """Order of a line: by the figure of the first budget, then of the next."""
    order = []
    for number in budgets:
        order.append(by_budget[number].figure if number in by_budget else math.inf)
    return order


def _figures(entry: Entry | None) -> list[str]:
    """Figure and number of images seen, of one budget."""
    if entry is None:
        return [MISSING, MISSING]
    digits = 2 if entry.in_unit != 1 else 4
    figure = f"{entry.figure:.{digits}f} ± {entry.error:.{digits}f} ({len(entry.rows)})"
    seen = []
    for row in entry.rows:
        seen.append(row["steps"] * row["settings"]["train"]["batch"])
    return [figure, f"{statistics.mean(seen):,.0f}"]


def _curve_at(entry: Entry, minute: float) -> str:
    """The validation curve at a minute, the mean over seeds."""
    values = []
    for row in entry.rows:
        value = curve_value(row, minute)
        if value is not None:
            values.append(entry.in_unit * value)
    if not values:
        return MISSING
    digits = 2 if entry.in_unit != 1 else 4
    return f"{statistics.mean(values):.{digits}f}"


def curve_value(row: Row, minute: float) -> float | None:
    """Validation bits/dim at a minute of a run, linear between two validations.

    None before the first one, unless the model was measured before its first step, and after the
    end of the run.
    """
    points = curve_points(row)
    if "start" in row:
        points.insert(0, (0.0, row["start"]["valid"]["bits_per_dim"]))
    times = [time for time, _ in points]
    # A run ends some seconds beside its budget.
    if times and times[-1] < minute <= budget(row):
        return points[-1][1]
    if not times or not times[0] <= minute <= times[-1]:
        return None
    after = bisect.bisect_left(times, minute)
    if times[after] == minute:
        return points[after][1]
    (early, high), (late, low) = points[after - 1 : after + 1]
    return high + (low - high) * (minute - early) / (late - early)


def _note(section: Section, found: Sequence[Entry]) -> str:
    """What the figures of a table are of."""
    row = found[0].rows[0]
    parts = [f"{row['test']['images']:,} test images"]
    draws = {entry.rows[0]["test"].get("draws", 1) for entry in found}
    if max(draws) > 1:
        parts.append(f"each the mean of {max(draws)} Bernoulli draws")
    if section.older:
        older = set()
        for entry in found:
            older |= {each["table"] for each in entry.rows}
        if section.older in older:
            parts.append("figures of one seed hold images alone in their error")
    busy = []
    for entry in found:
        for each in entry.rows:
            busy.append(each.get("processors_busy_with_others", math.nan))
    # Not a number where the system does not say; older files lack it.
    known = [number for number in busy if math.isfinite(number)]
    if known:
        parts.append(f"other programs kept {max(known):.1f} processors busy at most")
    return ", ".join(parts)


def comparisons() -> str:
    """The differences that ``likelihood.py compare`` has measured."""
    path = cells_tables.CELLS / "comparisons.json"
    if not path.exists():
        return NOTHING
    titles = ["cell", "minus", "bits/dim ± se", "nats an image ± se", "seeds", "images"]
    lines = []
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        bits = row["bits_per_dim"]
        lines.append(
            [
                f"`{row['ours']}`",
                f"`{row['theirs']}`",
                f"{bits['mean']:+.4f} ± {bits['se']:.4f}",
                f"{row['nats']['mean']:+.2f} ± {row['nats']['se']:.2f}",
                str(len(row["seeds"])),
                f"{bits['images']:,}",
            ]
        )
    return table(titles, lines)


def filled(text: str) -> str:
    """The document with its tables made anew."""
    blocks = {section.table: speed_run(section) for section in SECTIONS}
    blocks["comparisons"] = comparisons()
    for name, block in blocks.items():
        parts = re.split(f"<!-- {name} -->.*?<!-- /{name} -->", text, flags=re.DOTALL)
        assert len(parts) == 2, f"docs/likelihood.md has {len(parts) - 1} places for {name}"
        text = f"<!-- {name} -->\n{block}\n<!-- /{name} -->".join(parts)
    return text


# The pictures.


def draw_pictures() -> str:
    """Draw the curves of every section that has cells; returns what was done, in words."""
    if importlib.util.find_spec("matplotlib") is None:
        return 'no pictures: matplotlib is missing, pip install "tessella[plots]"'
    drawn = []
    for section in SECTIONS:
        found = entries(section)
        if found:
            drawn.append(_draw(section, found))
    return ", ".join(drawn) or "no pictures: nothing was measured"


def _picture(section: Section) -> str:
    return f"{section.table}.png"


def _draw(section: Section, found: Sequence[Entry]) -> str:
    """Draw validation curves against minutes, and test figures at the ends; returns the path."""
    figure, panels = cells_tables.new_figure(1, 1, 8)
    axes = panels[0, 0]
    labels = [entry.label for entry in found]
    colours = cells_tables.colours_of(labels)
    least = math.inf
    most = -math.inf
    named = set()
    # The longest runs first: their curves have the names.
    for entry in sorted(found, key=lambda entry: -entry.minutes):
        colour = colours[entry.label]
        for row in entry.rows:
            points = curve_points(row)
            values = [entry.in_unit * bits for _, bits in points]
            least = min(least, *values, entry.figure)
            most = max(most, *values, entry.figure)
            label = None
            if entry.label not in named:
                label = entry.label
                named.add(entry.label)
            axes.plot([time for time, _ in points], values, color=colour, label=label, lw=1.0)
        bars = {"yerr": entry.error, "fmt": "o", "ms": 4, "capsize": 3}
        axes.errorbar(entry.minutes, entry.figure, color=colour, **bars)
    # The first seconds of a curve can lie so high that all that follows would be one line.
    highest = min(most + 0.02 * least, 1.5 * least)
    axes.set(
        xscale="log",
        ylim=(0.98 * least, highest),
        xlabel="minutes of the run, everything included",
        ylabel=f"{section.unit}: validation (lines), test (dots)",
        title=section.table,
    )
    # After the scale, which would replace the ticks; plain numbers, not powers of ten.
    left, right = axes.get_xlim()
    ticks = [minutes for minutes in TICKS if left <= minutes <= right]
    axes.set_xticks(ticks, [f"{minutes:g}" for minutes in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    path = cells_tables.IMAGES / _picture(section)
    figure.savefig(path, dpi=90)
    return str(path)


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    print(draw_pictures())

"""The tables and plots of docs/models.md that come from the cells of benchmarks/likelihood.py."""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from performance_tables import MISSING, NOTHING, short, table

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
CELLS = ROOT / "results" / "likelihood"
LISTED = ROOT / "benchmarks" / "likelihood.toml"
IMAGES = ROOT / "docs" / "images"

Row = dict[str, Any]
"""The figures of a cell."""

NATS = 28 * 28 * math.log(2)
"""Nats of an image of binarized MNIST, in a bit/dim."""

PUBLISHED = {
    "fvsbn": "97.45",
    "nade": "88.33",
    "made": "88.40",
    "made-masks": "86.64",
    "pixelcnn": "81.30",
    "row-lstm": "80.54",
    "diagonal-bilstm": "79.20",
}
"""Nats on the fixed binarized MNIST: MADE (one hidden layer and one mask; two layers and 32 masks)
of Germain et al. 2015, FVSBN and NADE as cited there and in later papers, the others of van den
Oord et al. 2016a. docs/models.md says which of them were seen where."""

HEADS = ("categorical", "ordinal", "logistic-mixture")
HEAD_COLOURS = {"categorical": "#8a8a8a", "ordinal": "#2166ac", "logistic-mixture": "#e08214"}


# Rows of cells, and figures that several tables have.


def rows(name: str) -> list[Row]:
    """The cells of a table, in the order in which they are listed.

    Each has with it what its file says of where it ran.
    """
    found = []
    for path in sorted((CELLS / name).glob("*.json")):
        file = json.loads(path.read_text(encoding="utf-8"))
        found.append(file["rows"][0] | {"hardware": file["hardware"], "commit": file["commit"]})
    # Files of a folder come by name, not in the order of the list.
    listed = labels(name)
    return sorted(found, key=lambda row: position(listed, row["cell"]))


def labels(name: str) -> list[str]:
    """The cells that a table lists, or the table whose cells it takes."""
    tables = tomllib.loads(LISTED.read_text(encoding="utf-8"))
    table = tables[name]
    cells = dict(table.get("cells", {}))
    if "cells_of" in table:
        cells = tables[table["cells_of"]]["cells"] | cells
    return list(cells)


def position(listed: list[str], cell: str) -> int:
    """Where a cell is listed, or the one that it is a variant of; unknown cells come last."""
    # The name of a variant is that of its cell, a hyphen, and its own.
    for label in (cell, cell.rpartition("-")[0]):
        if label in listed:
            return listed.index(label)
    return len(listed)


def family(row: Row) -> str:
    """The name of a cell's model."""
    return str(row["settings"]["model"]["name"])


def budget(row: Row) -> float:
    """Minutes that a cell was given to train."""
    return float(row["settings"]["train"]["minutes"])


def bits_per_dim(row: Row) -> float:
    """Bits/dim on the test images."""
    return float(row["test"]["bits_per_dim"])


def curve_points(row: Row) -> list[tuple[float, float]]:
    """Minutes of a run, and bits/dim on the validation images, from its first validation on."""
    points = []
    for point in row["curve"]:
        if isinstance(point, dict):
            points.append((point["seconds"] / 60, point["bits_per_dim"]))
        else:
            # Older files have pairs.
            seconds, bits = point
            points.append((seconds / 60, bits))
    return points


def epochs(row: Row) -> str:
    """How often each training image was seen; in brackets until the weights that are reported."""
    until_best = row["epochs"] * row["best_step"] / row["steps"]
    return f"{row['epochs']:.1f} ({until_best:.1f})"


def milliseconds_an_image(row: Row) -> str:
    """Time to draw an image, one and sixteen at a time."""
    seconds = row["seconds_an_image"]
    return f"{1000 * seconds['1']:.3g}, {1000 * seconds['16']:.3g}"


def sizes(row: Row) -> str:
    """The sizes that are not the defaults, and the options of training."""
    train = row["settings"]["train"]
    parts = [f"{name} {value}" for name, value in row["settings"]["model"]["sizes"].items()]
    if train.get("l2"):
        parts.append(f"L2 {train['l2']:g}")
    parts.append(f"batch {train['batch']}")
    parts.append(f"rate {train['learning_rate']:g}")
    return ", ".join(parts)


def paired(row: Row, base: Row) -> tuple[float, float]:
    """Mean difference of bits/dim image by image, and its standard error."""
    # The difference of two models varies much less between images than either model's bits.
    assert row["test"]["sha256"] == base["test"]["sha256"]
    one = row["each_image"]
    other = base["each_image"]
    differences = []
    for a, b in zip(one["bits_per_dim"], other["bits_per_dim"], strict=True):
        differences.append(a - b)
    return mean_of({"bits_per_dim": differences, "of": one["of"]})


def mean_of(each: dict[str, Any]) -> tuple[float, float]:
    """Mean and standard error over images.

    Where images are tiles of files, the error is that of a mean of so many files, since tiles of a
    photograph are alike (its files have equally many tiles, or the mean is that of files).
    """
    values = each["bits_per_dim"]
    if each["of"]:
        by_file: dict[str, list[float]] = defaultdict(list)
        for file, value in zip(each["of"], values, strict=True):
            by_file[file].append(value)
        # One value for each photograph.
        values = [statistics.mean(part) for part in by_file.values()]
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def origin(cells: Sequence[Row]) -> str:
    """Where rows were measured.

    Machines of one name can differ in speed, so a range of what they multiply is added.
    """
    machines = dict.fromkeys(_machine(row["hardware"]) for row in cells)
    commits = dict.fromkeys(row["commit"] for row in cells)
    return f"{' and '.join(machines)}{_speeds(cells)}, commit {', '.join(commits)}"


def _machine(hardware: dict[str, Any]) -> str:
    """A machine in words."""
    threads = f"{hardware['threads']} thread"
    if hardware["threads"] > 1:
        threads += "s"
    # Older files do not say which instructions torch used.
    instructions = ""
    if "instructions" in hardware:
        instructions = f" with {hardware['instructions']}"
    return f"{threads} of {hardware['cpu']}{instructions}, torch {hardware['torch']}"


def _speeds(cells: Sequence[Row]) -> str:
    """The range of speeds of the machines, in brackets; empty if no row has one."""
    powers = [row["machine_gigaflops"] for row in cells if "machine_gigaflops" in row]
    if not powers:
        return ""
    # Equal after rounding, they are given once.
    ends = dict.fromkeys(f"{power:.0f}" for power in (min(powers), max(powers)))
    note = ""
    if len(powers) < len(cells):
        note = f", {len(powers)} of {len(cells)} rows"
    return f" ({' to '.join(ends)} GFLOP/s in a product of matrices{note})"


# The tables.


def binary_mnist() -> str:
    """Every family on the fixed binarized MNIST."""
    cells = rows("binary-mnist")
    if not cells:
        return NOTHING
    titles = [
        "cell",
        "sizes",
        "parameters",
        "minutes",
        "GFLOP/s",
        "epochs (best at)",
        "test nats ± se",
        "published",
        "ms an image, 1 and 16",
    ]
    lines = []
    for row in cells:
        power = MISSING
        if "machine_gigaflops" in row:
            power = f"{row['machine_gigaflops']:.0f}"
        test = row["test"]
        lines.append(
            [
                f"`{row['cell']}`",
                sizes(row),
                f"{row['parameters']:,}",
                f"{row['minutes']:.0f}",
                power,
                epochs(row),
                f"{test['nats_per_image']:.2f} ± {test['nats_per_image_se']:.2f}",
                PUBLISHED.get(row["cell"], MISSING),
                milliseconds_an_image(row),
            ]
        )
    return f"{table(titles, lines)}\n\n*{origin(cells)}*"


def minutes() -> str:
    """Every family on the digits, for several budgets."""
    cells = rows("digits")
    if not cells:
        return NOTHING
    by_family: dict[str, dict[float, Row]] = defaultdict(dict)
    for row in cells:
        by_family[family(row)][budget(row)] = row
    budgets = sorted({budget(row) for row in cells})

    # A column of bits for every budget.
    titles = ["model", "parameters"]
    for number in budgets:
        titles.append(f"{number:g} min")
    titles += [f"epochs in {budgets[-1]:g} min", "ms an image, 1 at a time", "16 at a time"]
    lines = []
    for name, by_budget in by_family.items():
        bits = []
        for number in budgets:
            if number in by_budget:
                row = by_budget[number]
                error = row["test"]["bits_per_dim_se"]
                bits.append(f"{bits_per_dim(row):.3f} ± {error:.3f}")
            else:
                bits.append(MISSING)
        # Time to draw depends on the model and hardly on how long it was trained.
        longest = by_budget[max(by_budget)]
        seconds = longest["seconds_an_image"]
        lines.append(
            [
                f"`{name}`",
                f"{longest['parameters']:,}",
                *bits,
                f"{longest['epochs']:,.0f}",
                short(1000 * seconds["1"]),
                short(1000 * seconds["16"]),
            ]
        )
    images = cells[0]["test"]["images"]
    note = f"Test bits/dim ± se of {images} digits; {origin(cells)}"
    return f"{table(titles, lines)}\n\n*{note}*"


def heads() -> str:
    """One network under every head, compared image by image."""
    titles = [
        "data",
        "training images",
        "head",
        "epochs (best at)",
        "test bits/dim ± se",
        "minus categorical ± se",
        "true level",
        "± 1",
        "± 1 to 4",
    ]
    lines = []
    cells = []
    for data, by_head in comparisons_of_heads():
        # The table shows what another head gains or loses.
        base = by_head.get("categorical")
        for name, row in by_head.items():
            cells.append(row)
            difference = MISSING
            if base and name != "categorical":
                mean, error = paired(row, base)
                difference = f"{mean:+.4f} ± {error:.4f}"
            # Not the error in the file, which takes tiles of a photograph for independent.
            error = mean_of(row["each_image"])[1]
            lines.append(
                [
                    data,
                    f"{row['train_images']:,}",
                    f"`{name}`",
                    epochs(row),
                    f"{bits_per_dim(row):.3f} ± {error:.3f}",
                    difference,
                    *_near_shares(row["neighbours"]),
                ]
            )
    if not lines:
        return NOTHING
    budgets = dict.fromkeys(f"{budget(row):g} minutes" for row in cells)
    tests = dict.fromkeys(_test_images(row) for row in cells)
    note = (
        f"{', '.join(budgets)} each, batch and rate the same; tested on {' and '.join(tests)}; "
        f"{origin(cells)}"
    )
    return f"{table(titles, lines)}\n\n*{note}*"


def _near_shares(probabilities: Sequence[float]) -> list[str]:
    """Probability of the true level, of the two beside it, and of the eight nearest."""
    middle = len(probabilities) // 2
    true = probabilities[middle]
    beside = probabilities[middle - 1] + probabilities[middle + 1]
    nearest = sum(probabilities[middle - 4 : middle + 5]) - true
    return [f"{100 * true:.2f} %", f"{100 * beside:.2f} %", f"{100 * nearest:.1f} %"]


def _test_images(row: Row) -> str:
    """Number and kind of the test images."""
    images = f"{row['test']['images']:,}"
    files = len(set(row["each_image"]["of"]))
    if files:
        return f"{images} tiles of {files} photographs"
    return f"{images} images"


def comparisons_of_heads() -> list[tuple[str, dict[str, Row]]]:
    """Data, and the row of each head, few training images before more."""
    found = []
    for name, title in (
        ("heads-cifar10", "CIFAR-10, a part"),
        ("heads-kodak", "Kodak, 32x32 tiles"),
    ):
        # Cells are named HEAD-SIZE; those of one size are compared.
        by_size: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in rows(name):
            size = row["cell"].rpartition("-")[2]
            by_size[size][row["settings"]["model"]["head"]] = row
        for by_head in sorted(by_size.values(), key=_least_images):
            ordered = {}
            for head in HEADS:
                if head in by_head:
                    ordered[head] = by_head[head]
            found.append((title, ordered))
    return found


def _least_images(by_head: dict[str, Row]) -> int:
    """The least number of training images of some rows."""
    return min(row["train_images"] for row in by_head.values())


def codes() -> str:
    """A model of the pixels and a model of the codes, for equal images and minutes."""
    titles = [
        "test images",
        "drawn",
        "models",
        "symbols",
        "minutes",
        "parameters",
        "bits/dim ± se",
        "of codes",
        "of pixels",
        "PSNR, dB",
        "ms an image, 1 and 16",
    ]
    lines = []
    cells = []
    for name, title in (("codes-mnist", "MNIST"), ("codes-cifar10", "CIFAR-10, a part")):
        by_cell = {row["cell"]: row for row in rows(name)}
        # Bits can be compared on equal images alone.
        hashes = {row["data"]["sha256"] for row in by_cell.values()}
        assert len(hashes) <= 1, f"{name}: other test images"
        # The third cell of a table, the tokenizer, draws nothing.
        for cell in ("pixels", "codes"):
            if cell in by_cell:
                cells.append(by_cell[cell])
                lines.append(_codes_line(title, by_cell[cell]))
    if not lines:
        return NOTHING
    return f"{table(titles, lines)}\n\n*{origin(cells)}*"


def _codes_line(title: str, row: Row) -> list[str]:
    """A row of the table of pixels and codes."""
    bits = f"{row['bits_per_dim']:.3f} ± {row['bits_per_dim_se']:.3f}"
    if not row["exact"]:
        bits = f"≤ {bits}"
    return [
        f"{title}, {row['images']:,}",
        row["cell"],
        row["model"].replace(" + ", ", "),
        f"{row['symbols']:,}",
        f"{row['all_minutes']:.1f}",
        f"{row['parameters']:,}",
        bits,
        short(row["code_bits"]),
        short(row["pixel_bits"]),
        short(row["psnr_db"]),
        milliseconds_an_image(row),
    ]


TABLES = {"binary-mnist": binary_mnist, "minutes": minutes, "heads": heads, "codes": codes}
"""By marker: the function that makes the table."""


# The plots.


def draw_pictures() -> str:
    """Draw what minutes buy and what heads are worth; returns what was done, in words."""
    if importlib.util.find_spec("matplotlib") is None:
        return 'no pictures: matplotlib is missing, pip install "tessella[plots]"'
    drawn = [_draw_minutes(IMAGES / "minutes.png"), _draw_heads(IMAGES / "heads.png")]
    return ", ".join(drawn)


def new_figure(down: int, across: int, width: float) -> tuple[Figure, np.ndarray]:
    """A figure and its panels, ``[down, across]``."""
    # Not pyplot, which would look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.4 * down), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(down, across, squeeze=False)


def colours_of(names: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """A colour for every name."""
    from matplotlib import colormaps

    # The palette alternates dark and light shades: the ten dark ones differ most, and come first.
    shades = [*range(0, 20, 2), *range(1, 20, 2)]
    palette = colormaps["tab20"]
    colours: dict[str, tuple[float, ...]] = {}
    for place, name in enumerate(sorted(names)):
        colours[name] = palette(shades[place % 20])
    return colours


def _draw_minutes(path: Path) -> str:
    """Draw the digits above and binarized MNIST below; returns what was done, in words."""
    digits = rows("digits")
    binary = rows("binary-mnist")
    if not digits or not binary:
        return "no picture of minutes: there are no cells of digits or binary-mnist"
    colours = colours_of({family(row) for row in [*digits, *binary]})
    figure, panels = new_figure(2, 2, 12)
    _plot_budgets(panels[0, 0], digits, colours)

    longest = max(budget(row) for row in digits)
    points = []
    for row in digits:
        if budget(row) == longest:
            points.append((family(row), row, bits_per_dim(row)))
    _scatter(panels[0, 1], points, colours)
    panels[0, 1].set(ylabel="test bits/dim", title=f"Digits: after {longest:g} min")

    _plot_curves(panels[1, 0], binary, colours)
    points = []
    for row in binary:
        points.append((row["cell"], row, row["test"]["nats_per_image"]))
    _scatter(panels[1, 1], points, colours)
    panels[1, 1].set(ylabel="test nats", title="Binarized MNIST: at the end of the run")
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    return str(path)


def _plot_budgets(axes: Axes, digits: Sequence[Row], colours: dict[str, tuple[float, ...]]) -> None:
    """Plot bits/dim against the minutes of training, a line for each family."""
    by_family: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in digits:
        by_family[family(row)].append((budget(row), bits_per_dim(row)))
    for name, points in by_family.items():
        points.sort()
        times = [time for time, _ in points]
        bits = [value for _, value in points]
        axes.plot(times, bits, marker="o", color=colours[name], label=name)
    axes.set(
        xscale="log",
        xlabel="minutes of training",
        ylabel="test bits/dim",
        title="Digits: a run for each point",
    )
    axes.legend(frameon=False, fontsize=8)
    # After the scale, which would replace the ticks.
    budgets = sorted({budget(row) for row in digits})
    axes.set_xticks(budgets, [f"{number:g}" for number in budgets])
    axes.minorticks_off()


def _plot_curves(axes: Axes, binary: Sequence[Row], colours: dict[str, tuple[float, ...]]) -> None:
    """Plot validation nats against the minutes within a run, a line for each cell."""
    least = math.inf
    for row in binary:
        times = [time for time, _ in curve_points(row)]
        nats = [NATS * bits for _, bits in curve_points(row)]
        # The range shows where curves end, not the high values at their beginnings.
        least = min(least, *nats)
        # Variants of a family have its colour, dashed.
        style = "-"
        if row["cell"] != family(row):
            style = "--"
        axes.plot(times, nats, color=colours[family(row)], ls=style, label=row["cell"])
    axes.set(xscale="log", ylim=(0.98 * least, 1.5 * least), xlabel="minutes into the one run")
    axes.set(ylabel="validation nats", title="Binarized MNIST: within one run")
    axes.legend(frameon=False, fontsize=8)


def _scatter(
    axes: Axes, points: Sequence[tuple[str, Row, float]], colours: dict[str, tuple[float, ...]]
) -> None:
    """Plot figures over the time an image takes to draw, each with its label."""
    for label, row, figure in points:
        place = (1000 * row["seconds_an_image"]["16"], figure)
        axes.plot(*place, "o", color=colours[family(row)])
        axes.annotate(label, place, xytext=(5, 3), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel="ms to draw an image, 16 at a time")
    # Room for the labels, which begin right of their points.
    axes.margins(x=0.25)


def _draw_heads(path: Path) -> str:
    """Draw the probabilities near the true level; returns what was done, in words."""
    comparisons = comparisons_of_heads()
    if not comparisons:
        return "no picture of heads: there are no cells of them"
    figure, panels = new_figure(1, len(comparisons), 4.2 * len(comparisons))
    for axes, (data, by_head) in zip(panels[0], comparisons, strict=True):
        for name, row in by_head.items():
            reach = len(row["neighbours"]) // 2
            percents = [100 * probability for probability in row["neighbours"]]
            label = f"{name}, {bits_per_dim(row):.3f} bits/dim"
            distances = range(-reach, reach + 1)
            axes.plot(distances, percents, color=HEAD_COLOURS[name], label=label, lw=1.3)
        count = next(iter(by_head.values()))["train_images"]
        axes.set(
            xlabel="levels away from the true one",
            ylabel="probability, %",
            title=f"{data}; {count:,} to learn from",
        )
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    return str(path)

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
from typing import Any

from performance_tables import NOTHING, short, table

ROOT = Path(__file__).resolve().parents[1]
CELLS = ROOT / "results" / "likelihood"
LISTED = ROOT / "benchmarks" / "likelihood.toml"
IMAGES = ROOT / "docs" / "images"

Row = dict[str, Any]

NATS = 28 * 28 * math.log(2)
"""Of an image of binarized MNIST, in a bit/dim."""

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


def rows(name: str) -> list[Row]:
    """The cells of a table, in the order in which they are listed; each with what its file says of
    where it ran."""
    found = []
    for path in sorted((CELLS / name).glob("*.json")):
        file = json.loads(path.read_text(encoding="utf-8"))
        found.append(file["rows"][0] | {"hardware": file["hardware"], "commit": file["commit"]})
    listed = list(tomllib.loads(LISTED.read_text(encoding="utf-8"))[name]["cells"])
    return sorted(found, key=lambda row: _place(listed, row["cell"]))


def _place(listed: list[str], cell: str) -> int:
    """Of a cell, or of the one that it is a variant of."""
    for label in (cell, cell.rpartition("-")[0]):
        if label in listed:
            return listed.index(label)
    return len(listed)


def binary_mnist() -> str:
    """Every family on the fixed binarized MNIST."""
    there = rows("binary-mnist")
    if not there:
        return NOTHING
    cells = []
    for row in there:
        test, drawn = row["test"], row["seconds_an_image"]
        cells.append(
            [
                f"`{row['cell']}`",
                sizes(row),
                f"{row['parameters']:,}",
                f"{row['minutes']:.0f}",
                f"{row['machine_gigaflops']:.0f}" if "machine_gigaflops" in row else "–",
                epochs(row),
                f"{test['nats_per_image']:.2f} ± {test['nats_per_image_se']:.2f}",
                PUBLISHED.get(row["cell"], "–"),
                f"{1000 * drawn['1']:.3g}, {1000 * drawn['16']:.3g}",
            ]
        )
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
    return f"{table(titles, cells)}\n\n*{origin(there)}*"


def epochs(row: Row) -> str:
    """How often each training image was seen, and how often by the weights that are told."""
    return f"{row['epochs']:.1f} ({row['epochs'] * row['best_step'] / row['steps']:.1f})"


def sizes(row: Row) -> str:
    """Those that are not the defaults, and what there is of options."""
    model, train = row["settings"]["model"], row["settings"]["train"]
    given = [f"{name} {value}" for name, value in model["sizes"].items()]
    given += [f"L2 {train['l2']:g}"] if train.get("l2") else []
    return ", ".join([*given, f"batch {train['batch']}", f"rate {train['learning_rate']:g}"])


def minutes() -> str:
    """Every family on the digits, for several budgets."""
    there = rows("digits")
    if not there:
        return NOTHING
    by: dict[str, dict[float, Row]] = defaultdict(dict)
    for row in there:
        by[family(row)][row["settings"]["train"]["minutes"]] = row
    budgets = sorted({minutes for of in by.values() for minutes in of})
    cells = []
    for name, of in by.items():
        last = of[max(of)]
        bits = [
            f"{_bits(of[m]):.3f} ± {of[m]['test']['bits_per_dim_se']:.3f}" if m in of else "–"
            for m in budgets
        ]
        drawn = last["seconds_an_image"]
        cells.append(
            [
                f"`{name}`",
                f"{last['parameters']:,}",
                *bits,
                f"{last['epochs']:,.0f}",
                *(short(1000 * drawn[n]) for n in ("1", "16")),
            ]
        )
    titles = [
        "model",
        "parameters",
        *(f"{m:g} min" for m in budgets),
        f"epochs in {budgets[-1]:g} min",
    ]
    titles += ["ms an image, 1 at a time", "16 at a time"]
    return (
        f"{table(titles, cells)}\n\n*Test bits/dim ± se of {there[0]['test']['images']} digits; "
        f"{origin(there)}*"
    )


def heads() -> str:
    """One network under every head, compared image by image."""
    cells, there = [], []
    for data, of in _heads():
        base = of.get("categorical")
        for name, row in of.items():
            there.append(row)
            test, near = row["test"], row["neighbours"]
            middle = len(near) // 2
            difference = "–"
            if base and name != "categorical":
                mean, error = paired(row, base)
                difference = f"{mean:+.4f} ± {error:.4f}"
            cells.append(
                [
                    data,
                    f"{row['train_images']:,}",
                    f"`{name}`",
                    epochs(row),
                    f"{test['bits_per_dim']:.3f} ± {mean_of(row['each_image'])[1]:.3f}",
                    difference,
                    f"{100 * near[middle]:.2f} %",
                    f"{100 * (near[middle - 1] + near[middle + 1]):.2f} %",
                    f"{100 * (sum(near[middle - 4 : middle + 5]) - near[middle]):.1f} %",
                ]
            )
    if not cells:
        return NOTHING
    titles = [
        "data",
        "training images",
        "head",
        "epochs (best at)",
        "test bits/dim ± se",
        "minus categorical ± se",
    ]
    titles += ["true level", "± 1", "± 1 to 4"]
    each = ", ".join(
        dict.fromkeys(f"{row['settings']['train']['minutes']:g} minutes" for row in there)
    )
    tests = " and ".join(dict.fromkeys(_tests(row) for row in there))
    return (
        f"{table(titles, cells)}\n\n*{each} each, batch and rate the same; tested on {tests}; "
        f"{origin(there)}*"
    )


def _tests(row: Row) -> str:
    files = len(set(row["each_image"]["of"]))
    return f"{row['test']['images']:,} " + (f"tiles of {files} photographs" if files else "images")


def codes() -> str:
    """A model of the pixels and a model of the codes, the same images and minutes."""
    cells, there = [], []
    for name, title in (("codes-mnist", "MNIST"), ("codes-cifar10", "CIFAR-10, a part")):
        of = {row["cell"]: row for row in rows(name)}
        assert len({row["data"]["sha256"] for row in of.values()}) <= 1, (
            f"{name}: other test images"
        )
        for row in (of[cell] for cell in ("pixels", "codes") if cell in of):
            there.append(row)
            drawn = row["seconds_an_image"]
            cells.append(
                [
                    f"{title}, {row['images']:,}",
                    row["cell"],
                    row["model"].replace(" + ", ", "),
                    f"{row['symbols']:,}",
                    f"{row['all_minutes']:.1f}",
                    f"{row['parameters']:,}",
                    f"{'' if row['exact'] else '≤ '}{row['bits_per_dim']:.3f} ± "
                    f"{row['bits_per_dim_se']:.3f}",
                    short(row["code_bits"]),
                    short(row["pixel_bits"]),
                    short(row["psnr_db"]),
                    f"{1000 * drawn['1']:.3g}, {1000 * drawn['16']:.3g}",
                ]
            )
    if not cells:
        return NOTHING
    titles = [
        "test images",
        "drawn",
        "models",
        "symbols",
        "minutes",
        "parameters",
        "bits/dim ± se",
        "of codes",
    ]
    titles += ["of pixels", "PSNR, dB", "ms an image, 1 and 16"]
    return f"{table(titles, cells)}\n\n*{origin(there)}*"


def _heads() -> list[tuple[str, dict[str, Row]]]:
    """Data, and the row of each head, few training images before more."""
    found = []
    for name, title in (
        ("heads-cifar10", "CIFAR-10, a part"),
        ("heads-kodak", "Kodak, 32x32 tiles"),
    ):
        by: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in rows(name):
            by[row["cell"].rpartition("-")[2]][row["settings"]["model"]["head"]] = row
        order = ("categorical", "ordinal", "logistic-mixture")
        for of in sorted(
            by.values(), key=lambda of: min(row["train_images"] for row in of.values())
        ):
            found += [(title, {head: of[head] for head in order if head in of})]
    return found


def paired(row: Row, base: Row) -> tuple[float, float]:
    """Mean difference of bits/dim image by image, and its standard error."""
    assert row["test"]["sha256"] == base["test"]["sha256"]
    one, other = row["each_image"], base["each_image"]
    pairs = zip(one["bits_per_dim"], other["bits_per_dim"], strict=True)
    return mean_of({"bits_per_dim": [a - b for a, b in pairs], "of": one["of"]})


def mean_of(each: dict[str, Any]) -> tuple[float, float]:
    """Mean and standard error over images; where images are tiles of files, the error is that of a
    mean of so many files, since tiles of a photograph are alike (its files have equally many tiles,
    or the mean is that of files)."""
    values = each["bits_per_dim"]
    if each["of"]:
        by: dict[str, list[float]] = defaultdict(list)
        for file, value in zip(each["of"], values, strict=True):
            by[file].append(value)
        values = [statistics.mean(part) for part in by.values()]
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def family(row: Row) -> str:
    return str(row["settings"]["model"]["name"])


def origin(there: Sequence[Row]) -> str:
    """Where rows were measured: machines that are not told apart by their names are by what they
    multiply."""
    machines = dict.fromkeys(_machine(row["hardware"]) for row in there)
    commits = ", ".join(dict.fromkeys(row["commit"] for row in there))
    powers = [row["machine_gigaflops"] for row in there if "machine_gigaflops" in row]
    rows = "" if len(powers) == len(there) else f", {len(powers)} of {len(there)} rows"
    speeds = (
        " to ".join(dict.fromkeys(f"{power:.0f}" for power in (min(powers), max(powers))))
        if powers
        else ""
    )
    power = f" ({speeds} GFLOP/s in a product of matrices{rows})" if powers else ""
    return f"{' and '.join(machines)}{power}, commit {commits}"


def _machine(hardware: dict[str, Any]) -> str:
    threads, with_ = (
        hardware["threads"],
        f" with {hardware['instructions']}" if "instructions" in hardware else "",
    )
    return (
        f"{threads} thread{'s' * (threads > 1)} of {hardware['cpu']}{with_}, torch "
        f"{hardware['torch']}"
    )


def _bits(row: Row) -> float:
    return float(row["test"]["bits_per_dim"])


TABLES = {"binary-mnist": binary_mnist, "minutes": minutes, "heads": heads, "codes": codes}


def pictures() -> str:
    """Draw what minutes buy and what heads are worth; returns what was done."""
    if importlib.util.find_spec("matplotlib") is None:
        return 'no pictures: matplotlib is missing, pip install "tessella[plots]"'
    drawn = [_draw_minutes(IMAGES / "minutes.png"), _draw_heads(IMAGES / "heads.png")]
    return ", ".join(drawn)


def _figure(down: int, across: int, width: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.4 * down), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(down, across, squeeze=False)


def _colours(names: Iterable[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    every = sorted(names)
    return {name: colormaps["tab20"](i % 20) for i, name in enumerate(every)}


def _draw_minutes(path: Path) -> str:
    digits, binary = rows("digits"), rows("binary-mnist")
    if not digits or not binary:
        return "no picture of minutes: there are no cells of digits or binary-mnist"
    colours = _colours({family(row) for row in [*digits, *binary]})
    figure, (above, below) = _figure(2, 2, 12)
    by: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in digits:
        by[family(row)].append((row["settings"]["train"]["minutes"], _bits(row)))
    for name, points in by.items():
        above[0].plot(
            *zip(*sorted(points), strict=True), marker="o", color=colours[name], label=name
        )
    above[0].set(
        xscale="log",
        xlabel="minutes of training",
        ylabel="test bits/dim",
        title="Digits: a run for each point",
    )
    above[0].legend(frameon=False, fontsize=8)
    longest = max(minutes for points in by.values() for minutes, _ in points)
    last = [row for row in digits if row["settings"]["train"]["minutes"] == longest]
    _scatter(above[1], [(family(row), row, _bits(row)) for row in last], colours)
    above[1].set(ylabel="test bits/dim", title=f"Digits: after {longest:g} min")
    for row in binary:
        seconds, bits = zip(*row["curve"], strict=True)
        minutes, nats = [s / 60 for s in seconds], [b * NATS for b in bits]
        below[0].plot(minutes, nats, color=colours[family(row)], ls=_style(row), label=row["cell"])
    low = NATS * min(bits for row in binary for _, bits in row["curve"])
    below[0].set(xscale="log", ylim=(0.98 * low, 1.5 * low), xlabel="minutes into the one run")
    below[0].set(ylabel="validation nats", title="Binarized MNIST: within one run")
    _scatter(
        below[1], [(row["cell"], row, row["test"]["nats_per_image"]) for row in binary], colours
    )
    below[1].set(ylabel="test nats", title="Binarized MNIST: at the end of the run")
    below[0].legend(frameon=False, fontsize=8)
    budgets = sorted({minutes for points in by.values() for minutes, _ in points})
    above[0].set_xticks(budgets, [f"{minutes:g}" for minutes in budgets])
    above[0].minorticks_off()
    for axes in (*above, *below):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    return str(path)


def _scatter(axes: Any, there: Sequence[tuple[str, Row, float]], colours: dict[str, Any]) -> None:
    """Figures over the time an image takes to draw, each with its label."""
    for label, row, figure in there:
        at = 1000 * row["seconds_an_image"]["16"], figure
        axes.plot(*at, "o", color=colours[family(row)])
        axes.annotate(label, at, xytext=(5, 3), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel="ms to draw an image, 16 at a time")
    axes.margins(x=0.25)


def _style(row: Row) -> str:
    return "-" if row["cell"] == family(row) else "--"


def _draw_heads(path: Path) -> str:
    there = _heads()
    if not there:
        return "no picture of heads: there are no cells of them"
    colours = {"categorical": "#8a8a8a", "ordinal": "#2166ac", "logistic-mixture": "#e08214"}
    figure, (panels,) = _figure(1, len(there), 4.2 * len(there))
    for axes, (data, of) in zip(panels, there, strict=True):
        for name, row in of.items():
            near = row["neighbours"]
            distance = range(-(len(near) // 2), len(near) // 2 + 1)
            label = f"{name}, {_bits(row):.3f} bits/dim"
            axes.plot(distance, [100 * p for p in near], color=colours[name], label=label, lw=1.3)
        count = next(iter(of.values()))["train_images"]
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

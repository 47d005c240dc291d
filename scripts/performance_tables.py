"""Write the tables of docs/performance.md from the files under results/, and draw its picture.

python scripts/performance_tables.py            # rewrites what stands between the markers; the
picture wants matplotlib
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "images" / "performance.png"
NOTHING = "*Not measured yet.*"
WAYS = {"naive": "naive", "plain": "cached, plain torch", "kernel": "cached, compiled kernel"}

Found = dict[str, Any]


def short(value: float | None) -> str:
    """A figure with about three digits."""
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:,.0f}"
    places = 1 if value >= 10 else 2 if value >= 1 else 3 if value >= 0.01 or not value else 4
    return f"{value:.{places}f}"


def percent(share: float | None) -> str:
    """A share of the floor."""
    return (
        "–"
        if share is None
        else f"{100 * share:.0f} %"
        if share >= 0.095
        else f"{100 * share:.1f} %"
    )


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def origin(found: Found, rows: Sequence[Found]) -> str:
    """What the figures were measured with."""
    hardware = found["hardware"]
    commits = dict.fromkeys(str(row.get("commit", found["commit"])) for row in rows)
    return (
        f"{hardware['threads']} threads of {hardware['cpu']}, torch {hardware['torch']}, commit "
        f"{', '.join(commits)}"
    )


def measured(found: Found) -> list[Found]:
    """The rows of models of results/sampling.json, in the order of their names there."""
    rows = [row for row in found.get("rows", []) if row.get("work", "machine") != "machine"]
    order = list(dict.fromkeys(row["work"] for row in rows))
    return sorted(rows, key=lambda row: (order.index(row["work"]), row["batch"]))


def machine(found: Found) -> str:
    """What the machine gives."""
    for row in found.get("rows", []):
        if row.get("work") == "machine":
            speeds = row["gigabytes_a_second"]
            text = table(
                ["working set, MiB", *speeds],
                [["GB/s read", *(f"{speed:.0f}" for speed in speeds.values())]],
            )
            facts = (
                f"Products of matrices: {row['gigaflops']:.0f} GFLOP/s in float32. A small "
                "product takes "
                f"{row['product_us']:.1f} µs, a small elementwise call "
                f"{row['elementwise_us']:.1f} µs."
            )
            return f"{text}\n\n{facts}\n\n*{origin(found, [row])}*"
    return NOTHING


def works(found: Found) -> str:
    """What was measured: sizes and grids."""
    rows = {row["work"]: row for row in measured(found)}
    if not rows:
        return NOTHING
    cells = [
        [f"`{name}`", _sizes(row), row["grid"], f"{row['parameters'] / 1e6:.2f} M"]
        for name, row in rows.items()
    ]
    return table(["work", "sizes", "grid", "parameters"], cells)


def _sizes(row: Found) -> str:
    parts = [row["model"]] if row["model"] != row["work"] else []
    parts += [f"{key}={value}" for key, value in row["sizes"].items()]
    parts += [f"head={row['head']}"] if row["head"] != "categorical" else []
    return ", ".join(parts) or "default"


def sampling(found: Found) -> str:
    """Times and rates of every work."""
    rows = measured(found)
    if not rows:
        return NOTHING
    titles = [
        "work",
        "batch",
        "naive, ms a step",
        "plain torch",
        "kernel",
        "symbols/s",
        "pixels/s",
        "s an image",
    ]
    titles += ["naive / ours", "symbols that differ"]
    cells = []
    for row in rows:
        ms = [short(row["ms_a_step"].get(name)) for name in WAYS]
        rates = [f"{row[key]:,.0f}" for key in ("symbols_a_second", "pixels_a_second")]
        differ = f"{sum(row['symbols_that_differ'].values()):,} of {_replayed(row):,}"
        cells.append(
            [f"`{row['work']}`", str(row["batch"]), *ms, *rates, short(row["seconds_an_image"])]
            + [f"{short(row['naive_over_ours'])}x", differ]
        )
    return f"{table(titles, cells)}\n\n*{origin(found, rows)}*"


def _replayed(row: Found) -> int:
    return int(row["symbols_replayed"] * len(row["symbols_that_differ"]))


def bounds(found: Found) -> str:
    """The floor of a step and the share of the time it explains."""
    rows = measured(found)
    if not rows:
        return NOTHING
    titles = [
        "work",
        "batch",
        "MB read",
        "MFLOP",
        "calls",
        "reading, ms",
        "multiplying, ms",
        "calling, ms",
    ]
    titles += ["plain torch: of the physical floor", "with calls", "kernel: of the physical floor"]
    cells = []
    for row in rows:
        bound, share = row["floor"], row["fraction"]
        work = [short(bound["bytes"] / 1e6), short(bound["flops"] / 1e6), f"{bound['calls']:.0f}"]
        ms = [short(bound[f"{name}_ms"]) for name in ("bytes", "flops", "calls")]
        shares = [percent(share.get(name)) for name in ("plain", "plain_with_calls", "kernel")]
        cells.append([f"`{row['work']}`", str(row["batch"]), *work, *ms, *shares])
    return table(titles, cells)


def peers(found: Found) -> str:
    """The samplers of others."""
    titles = [
        "work",
        "batch",
        "peer",
        "its parameters",
        "its ms a pixel or code",
        "its s an image",
        "ours",
        "ratio",
    ]
    cells, models = [], {}
    for row in measured(found):
        for peer in row["peers"]:
            models[peer["name"], peer["what"].split(";")[0]] = row["work"]
            size, ms = f"{peer['parameters'] / 1e6:.2f} M", short(peer["ms_a_step"])
            seconds = [short(peer["seconds_an_image"]), short(row["seconds_an_image"])]
            cells.append(
                [
                    f"`{row['work']}`",
                    str(row["batch"]),
                    peer["name"],
                    size,
                    ms,
                    *seconds,
                    f"{short(peer['over_ours'])}x",
                ]
            )
    if not cells:
        return NOTHING
    return "\n".join(
        [
            table(titles, cells),
            "",
            *(f"- {name} (`{work}`): {what}" for (name, what), work in models.items()),
        ]
    )


def growth(found: Found) -> str:
    """Time a pixel against the side of the image."""
    rows = [row for row in found.get("rows", []) if row["what"] == "growth"]
    if not rows:
        return NOTHING
    rows.sort(key=lambda row: (row["batch"], row["side"]))
    titles = ["side", "batch", *(f"{title}: ms a pixel (s an image)" for title in WAYS.values())]
    cells = [
        [str(row["side"]), str(row["batch"]), *(_pixel(row, name) for name in WAYS)] for row in rows
    ]
    sizes = (
        f"{rows[0]['model']} "
        f"{_sizes(rows[0] | {'work': rows[0]['model'], 'head': 'categorical'})}, 256 levels"
    )
    return f"{table(titles, cells)}\n\n*{sizes}; {origin(found, rows)}*"


def _pixel(row: Found, name: str) -> str:
    if name not in row["ms_a_pixel"]:
        return "–"
    return f"{short(row['ms_a_pixel'][name])} ({short(row['seconds_an_image'][name])})"


def big(found: Found) -> str:
    """One large image."""
    sentences = []
    for row in found.get("rows", []):
        if row["what"] == "big":
            kernel = "with" if row["kernel"] else "without"
            drawn = (
                f"One image of {row['grid']} ({row['symbols']:,} symbols), {kernel} the kernel: "
                f"{short(row['seconds'])} s, {short(row['ms_a_symbol'])} ms a symbol."
            )
            proof = "It was not replayed: memory."
            if "symbols_that_differ" in row:
                proof = (
                    f"Of its symbols {row['symbols_that_differ']:,} differ in a replay, one pass "
                    "of "
                    f"{short(row['replay_seconds'])} s."
                )
            sentences.append(f"{drawn} {proof} *{origin(found, [row])}*")
    return "\n\n".join(sentences) or NOTHING


def parallel(found: Found) -> str:
    """Parallel decoding on trained models. Left out, with its heading, while there are no rows."""
    rows = found.get("rows", [])
    if not rows:
        return ""
    titles = [
        "run",
        "model",
        "symbols",
        "passes",
        "of the symbols",
        "differ in float64",
        "differ in float32",
    ]
    titles += ["batch 1: cached s", "parallel s", "batch 16: cached s", "parallel s", "auto"]
    cells = []
    for row in rows:
        wide, single = row["float64"], row["float32"]
        passes = (
            f"{wide['passes_mean']:.1f} ± {wide['passes_se']:.1f}, at most "
            f"{wide['passes_greatest']}"
        )
        cell = [
            row["run"],
            row["model"],
            f"{row['symbols']}",
            passes,
            f"{wide['passes_share_of_symbols']:.1%}",
        ]
        cell += [
            f"{part['images_that_differ']} of {part['images']} images" for part in (wide, single)
        ]
        for batch in ("batch_1", "batch_16"):
            cell += [short(row[batch][name]) for name in ("cached_s", "parallel_s")]
        cells.append([*cell, row["auto"]])
    text = (
        "The noise of every symbol is fixed beforehand, so that whole passes over the grid, each "
        "from what the one "
        'before has drawn, end where the walk would: a sample of `method="parallel"` is that of '
        '`method="cached"`. '
        "Passes are counted in float64. On a CPU a pass costs too much for most families; `auto` "
        "therefore takes "
        "cached steps, but for MADE on two levels, whose step costs a good part of a pass."
    )
    return f"## Parallel decoding\n\n{text}\n\n{table(titles, cells)}\n\n*{origin(found, rows)}*"


TABLES = {
    "machine": ("sampling", machine),
    "works": ("sampling", works),
    "sampling": ("sampling", sampling),
    "floor": ("sampling", bounds),
    "peers": ("sampling", peers),
    "growth": ("growth", growth),
    "big": ("growth", big),
    "parallel": ("parallel", parallel),
}
"""By marker: the file under results/ and what is made of it."""


def results(name: str) -> Found:
    """A file under results/; empty where there is none."""
    path = ROOT / "results" / f"{name}.json"
    found: Found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def filled(text: str) -> str:
    """The document with its tables made anew."""
    for name, (file, make) in TABLES.items():
        block = f"<!-- {name} -->\n{make(results(file))}\n<!-- /{name} -->"
        parts = re.split(f"<!-- {name} -->.*?<!-- /{name} -->", text, flags=re.DOTALL)
        assert len(parts) == 2, f"docs/performance.md has {len(parts) - 1} places for {name}"
        text = block.join(parts)
    return text


def picture(path: Path) -> str:
    """Draw growth and shares of the floor; returns what was done."""
    times = [
        row
        for row in results("growth").get("rows", [])
        if row["what"] == "growth" and row["batch"] == 1
    ]
    shares = {
        row["work"]: row["fraction"] for row in measured(results("sampling")) if row["batch"] == 1
    }
    if not times or not shares:
        return "no picture: results/growth.json and results/sampling.json are needed"
    if importlib.util.find_spec("matplotlib") is None:
        return 'no picture: matplotlib is missing, pip install "tessella[plots]"'
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _growth(left, sorted(times, key=lambda row: row["side"]))
    _shares(right, shares)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return f"{path}"


COLOURS = {"naive": "#8a8a8a", "plain": "#e08214", "kernel": "#2166ac"}


def _growth(axes: Any, rows: list[Found]) -> None:
    """Milliseconds a pixel against the side."""
    for name, title in WAYS.items():
        there = [
            (row["side"], row["ms_a_pixel"][name]) for row in rows if name in row["ms_a_pixel"]
        ]
        if there:
            axes.loglog(*zip(*there, strict=True), marker="o", color=COLOURS[name], label=title)
    sides = [row["side"] for row in rows]
    axes.set_xticks(sides, [str(side) for side in sides])
    axes.minorticks_off()
    axes.set(xlabel="side of the image", ylabel="ms a pixel, batch 1", title="Gated PixelCNN")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _shares(axes: Any, shares: dict[str, dict[str, float]]) -> None:
    """Shares of the physical floor."""
    names, ways = list(shares), ("plain", "kernel")
    for place, way in enumerate(ways):
        there = [
            (i, 100 * shares[name][way]) for i, name in enumerate(names) if way in shares[name]
        ]
        if there:
            at, values = zip(*there, strict=True)
            bars = axes.barh(
                [i + 0.4 * place - 0.2 for i in at],
                values,
                0.38,
                color=COLOURS[way],
                label=WAYS[way],
            )
            axes.bar_label(bars, fmt="%.2g", padding=2, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="% of the physical floor, batch 1", title="How near the floor a step comes")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    print(picture(PICTURE))

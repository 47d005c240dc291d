"""Write the tables of docs/performance.md from the files under results/, and draw its picture.

    python scripts/performance_tables.py            # rewrites the text between the markers

The picture needs matplotlib.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "images" / "performance.png"
NOTHING = "*Not measured yet.*"
MISSING = "–"
"""A cell without a figure."""
WAYS = {"naive": "naive", "plain": "cached, plain torch", "kernel": "cached, compiled kernel"}
COLOURS = {"naive": "#8a8a8a", "plain": "#e08214", "kernel": "#2166ac"}

Results = dict[str, Any]
"""A file under results/, or one of its rows."""


def short(value: float | None) -> str:
    """A figure with about three digits."""
    if value is None:
        return MISSING
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    if value >= 1:
        return f"{value:.2f}"
    # Zero needs no more digits than a hundredth.
    if value >= 0.01 or not value:
        return f"{value:.3f}"
    return f"{value:.4f}"


def percent(share: float | None) -> str:
    """A share of the floor."""
    if share is None:
        return MISSING
    # 9.5 % and more round to two digits without decimals.
    if share >= 0.095:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.1f} %"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def origin(results: Results, rows: Sequence[Results]) -> str:
    """The machine and the commits that some rows of a file were measured with."""
    hardware = results["hardware"]
    # A row that was measured before the others carries its commit.
    commits = dict.fromkeys(str(row.get("commit", results["commit"])) for row in rows)
    return (
        f"{hardware['threads']} threads of {hardware['cpu']}, torch {hardware['torch']}, commit "
        f"{', '.join(commits)}"
    )


def model_rows(results: Results) -> list[Results]:
    """The rows of models of results/sampling.json, in the order of their names there."""
    rows = [row for row in results.get("rows", []) if row.get("work", "machine") != "machine"]
    order = list(dict.fromkeys(row["work"] for row in rows))
    # A row that is measured again goes to the end of the file, so batches must be sorted too.
    return sorted(rows, key=lambda row: (order.index(row["work"]), row["batch"]))


def machine(results: Results) -> str:
    """Bandwidth and speed of the machine."""
    for row in results.get("rows", []):
        if row.get("work") == "machine":
            return _machine_table(results, row)
    return NOTHING


def _machine_table(results: Results, row: Results) -> str:
    """Bandwidth by working set, and the other figures of a machine in a sentence."""
    speeds = row["gigabytes_a_second"]
    titles = ["working set, MiB", *speeds]
    cells = ["GB/s read", *(f"{speed:.0f}" for speed in speeds.values())]
    sentence = (
        f"Products of matrices: {row['gigaflops']:.0f} GFLOP/s in float32. A small product takes "
        f"{row['product_us']:.1f} µs, a small elementwise call {row['elementwise_us']:.1f} µs."
    )
    return f"{table(titles, [cells])}\n\n{sentence}\n\n*{origin(results, [row])}*"


def works(results: Results) -> str:
    """Sizes and grids of the models that were measured."""
    # All batches of a work have equal sizes, so one row of each is enough.
    rows = {row["work"]: row for row in model_rows(results)}
    if not rows:
        return NOTHING
    lines = []
    for name, row in rows.items():
        parameters = f"{row['parameters'] / 1e6:.2f} M"
        lines.append([f"`{name}`", sizes(row), row["grid"], parameters])
    return table(["work", "sizes", "grid", "parameters"], lines)


def sizes(row: Results) -> str:
    """The sizes of a model that are not the defaults."""
    parts = []
    if row["model"] != row["work"]:
        parts.append(row["model"])
    for key, value in row["sizes"].items():
        parts.append(f"{key}={value}")
    if row["head"] != "categorical":
        parts.append(f"head={row['head']}")
    return ", ".join(parts) or "default"


def sampling(results: Results) -> str:
    """Times and rates of every work."""
    rows = model_rows(results)
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
        "naive / ours",
        "symbols that differ",
    ]
    lines = []
    for row in rows:
        differ = row["symbols_that_differ"]
        # Each way of sampling was replayed.
        replayed = int(row["symbols_replayed"] * len(differ))
        lines.append(
            [
                f"`{row['work']}`",
                str(row["batch"]),
                *(short(row["ms_a_step"].get(way)) for way in WAYS),
                f"{row['symbols_a_second']:,.0f}",
                f"{row['pixels_a_second']:,.0f}",
                short(row["seconds_an_image"]),
                f"{short(row['naive_over_ours'])}x",
                f"{sum(differ.values()):,} of {replayed:,}",
            ]
        )
    return f"{table(titles, lines)}\n\n*{origin(results, rows)}*"


def bounds(results: Results) -> str:
    """The floor of a step and the share of the time it explains."""
    rows = model_rows(results)
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
        "plain torch: of the physical floor",
        "with calls",
        "kernel: of the physical floor",
    ]
    lines = []
    for row in rows:
        bound = row["floor"]
        share = row["fraction"]
        lines.append(
            [
                f"`{row['work']}`",
                str(row["batch"]),
                short(bound["bytes"] / 1e6),
                short(bound["flops"] / 1e6),
                f"{bound['calls']:.0f}",
                short(bound["bytes_ms"]),
                short(bound["flops_ms"]),
                short(bound["calls_ms"]),
                percent(share.get("plain")),
                percent(share.get("plain_with_calls")),
                percent(share.get("kernel")),
            ]
        )
    return table(titles, lines)


def peers(results: Results) -> str:
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
    lines = []
    # The works by peer and model: a model is explained once below the table.
    models: dict[tuple[str, str], str] = {}
    for row in model_rows(results):
        for peer in row["peers"]:
            # After a semicolon stands what was timed, which differs between batches.
            model = peer["what"].split(";")[0]
            models[peer["name"], model] = row["work"]
            lines.append(
                [
                    f"`{row['work']}`",
                    str(row["batch"]),
                    peer["name"],
                    f"{peer['parameters'] / 1e6:.2f} M",
                    short(peer["ms_a_step"]),
                    short(peer["seconds_an_image"]),
                    short(row["seconds_an_image"]),
                    f"{short(peer['over_ours'])}x",
                ]
            )
    if not lines:
        return NOTHING
    paragraphs = [table(titles, lines), ""]
    for (name, model), work in models.items():
        paragraphs.append(f"- {name} (`{work}`): {model}")
    return "\n".join(paragraphs)


def growth(results: Results) -> str:
    """Time a pixel against the side of the image."""
    rows = [row for row in results.get("rows", []) if row["what"] == "growth"]
    if not rows:
        return NOTHING
    rows.sort(key=lambda row: (row["batch"], row["side"]))
    titles = ["side", "batch"]
    for title in WAYS.values():
        titles.append(f"{title}: ms a pixel (s an image)")
    lines = []
    for row in rows:
        cells = [_times_of_pixel_and_image(row, way) for way in WAYS]
        lines.append([str(row["side"]), str(row["batch"]), *cells])

    # These rows name no work and no head, which sizes() leaves out if they are the usual ones.
    model = rows[0]["model"]
    with_defaults = {**rows[0], "work": model, "head": "categorical"}
    note = f"{model} {sizes(with_defaults)}, 256 levels; {origin(results, rows)}"
    return f"{table(titles, lines)}\n\n*{note}*"


def _times_of_pixel_and_image(row: Results, way: str) -> str:
    """Milliseconds a pixel, and seconds an image in brackets."""
    if way not in row["ms_a_pixel"]:
        return MISSING
    return f"{short(row['ms_a_pixel'][way])} ({short(row['seconds_an_image'][way])})"


def big(results: Results) -> str:
    """One large image."""
    paragraphs = []
    for row in results.get("rows", []):
        if row["what"] != "big":
            continue
        kernel = "without"
        if row["kernel"]:
            kernel = "with"
        drawn = (
            f"One image of {row['grid']} ({row['symbols']:,} symbols), {kernel} the kernel: "
            f"{short(row['seconds'])} s, {short(row['ms_a_symbol'])} ms a symbol."
        )
        # A replay needs memory for all symbols at once.
        proof = "It was not replayed: memory."
        if "symbols_that_differ" in row:
            proof = (
                f"Of its symbols {row['symbols_that_differ']:,} differ in a replay, one pass of "
                f"{short(row['replay_seconds'])} s."
            )
        paragraphs.append(f"{drawn} {proof} *{origin(results, [row])}*")
    if not paragraphs:
        return NOTHING
    return "\n\n".join(paragraphs)


PARALLEL_TEXT = (
    "The noise of every symbol is fixed beforehand, so that whole passes over the grid, each from "
    "what the one before has drawn, end where the walk would: a sample of "
    '`method="parallel"` is that of `method="cached"`. Passes are counted in float64. On a CPU a '
    "pass costs too much for most families; `auto` therefore takes cached steps, but for MADE on "
    "two levels where the kernel does not draw it (no compiler, a GPU): there a "
    "step costs a good part of a pass."
)


def parallel(results: Results) -> str:
    """Parallel decoding on trained models; empty, without a heading, while there are no rows."""
    rows = results.get("rows", [])
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
        "batch 1: cached s",
        "parallel s",
        "batch 16: cached s",
        "parallel s",
        "auto",
    ]
    lines = []
    for row in rows:
        wide = row["float64"]
        single = row["float32"]
        # A mean over images, which differ in how many passes they take.
        passes = f"{wide['passes_mean']:.1f} ± {wide['passes_se']:.1f}"
        lines.append(
            [
                row["run"],
                row["model"],
                str(row["symbols"]),
                f"{passes}, at most {wide['passes_greatest']}",
                f"{wide['passes_share_of_symbols']:.1%}",
                f"{wide['images_that_differ']} of {wide['images']} images",
                f"{single['images_that_differ']} of {single['images']} images",
                short(row["batch_1"]["cached_s"]),
                short(row["batch_1"]["parallel_s"]),
                short(row["batch_16"]["cached_s"]),
                short(row["batch_16"]["parallel_s"]),
                row["auto"],
            ]
        )
    heading = "## Parallel decoding"
    body = table(titles, lines)
    return f"{heading}\n\n{PARALLEL_TEXT}\n\n{body}\n\n*{origin(results, rows)}*"


def weights(results: Results) -> str:
    """What weights of few bits cost in bits/dim, and what they gain in time."""
    costs = [row for row in results.get("rows", []) if "cost" in row]
    steps = [row for row in results.get("rows", []) if "ms" in row]
    rows = steps + costs
    if not rows:
        return NOTHING
    blocks = []
    if steps:
        lines = []
        for row in steps:
            line = [f"`{row['what']}`", str(row["batch"]), row["weights"]]
            lines.append([*line, short(row["ms"]), f"{row['ratio']:.2f}x"])
        titles = ["work", "batch", "weights", "ms a step", "float32 / these"]
        blocks.append(table(titles, lines))
    if costs:
        lines = []
        for row in costs:
            cost = f"{row['cost']:+.6f} ± {row['cost_se']:.6f}"
            differ = f"{row['differ']} of {row['symbols']:,}"
            lines.append([row["what"], row["weights"], f"{row['bits_per_dim']:.4f}", cost, differ])
        titles = [
            "model",
            "weights",
            "bits/dim (codes: bits)",
            "cost",
            "symbols that differ in a replay",
        ]
        blocks.append(table(titles, lines))
    blocks.append(f"*{origin(results, rows)}*")
    return "\n\n".join(blocks)


def memory(results: Results) -> str:
    """What drawing an image takes beside the parameters."""
    rows = [row for row in results.get("rows", []) if "after_mb" in row]
    if not rows:
        return NOTHING
    lines: dict[str, list[str]] = {}
    for row in rows:
        name = row["what"].removesuffix(", memory")
        line = lines.setdefault(name, [f"`{name}`", f"{row['parameter_mb']:.0f} MB", *"–––"])
        place = ("float32", "int8", "bfloat16").index(row["weights"])
        line[2 + place] = f"{row['after_mb'] - row['before_mb']:.0f} MB"
    titles = ["work", "parameters", "own weights", "int8", "bfloat16"]
    return f"{table(titles, list(lines.values()))}\n\n*{origin(results, rows)}*"


def training(results: Results) -> str:
    """A training step of every family, and its share of what the processor multiplies."""
    rows = results.get("rows", [])
    if not rows:
        return NOTHING
    titles = ["model", "grid", "batch", "GFLOP", "float32, ms", "share", "bfloat16, ms", "share"]
    lines = []
    for row in rows:
        line = [f"`{row['work']}`", row["grid"], str(row["batch"]), short(row["gflop"])]
        for precision in ("float32", "bfloat16"):
            figures = row[precision]
            line.append(short(1000 * figures["seconds"]["least"]))
            line.append(percent(figures["share"]))
        lines.append(line)
    peaks = []
    for precision in ("float32", "bfloat16"):
        most = max(row[precision]["peak_gflops"] for row in rows)
        peaks.append(f"{most:.0f} GFLOP/s in {precision}")
    sentence = f"The product of two 2048x2048 matrices reaches {' and '.join(peaks)}."
    return f"{table(titles, lines)}\n\n{sentence}\n\n*{origin(results, rows)}*"


TABLES = {
    "machine": ("sampling", machine),
    "works": ("sampling", works),
    "sampling": ("sampling", sampling),
    "floor": ("sampling", bounds),
    "peers": ("sampling", peers),
    "growth": ("growth", growth),
    "big": ("growth", big),
    "weights": ("weights", weights),
    "memory": ("weights", memory),
    "parallel": ("parallel", parallel),
    "training": ("training_share", training),
}
"""By marker: the file under results/, and the function that makes the text."""


def read_results(name: str) -> Results:
    """A file under results/; empty if it does not exist."""
    path = ROOT / "results" / f"{name}.json"
    if not path.exists():
        return {}
    results: Results = json.loads(path.read_text(encoding="utf-8"))
    return results


def filled(text: str) -> str:
    """The document with its tables made anew."""
    for name, (file, make) in TABLES.items():
        block = f"<!-- {name} -->\n{make(read_results(file))}\n<!-- /{name} -->"
        # Two parts and no more: a repeated marker would be filled twice.
        parts = re.split(f"<!-- {name} -->.*?<!-- /{name} -->", text, flags=re.DOTALL)
        assert len(parts) == 2, f"docs/performance.md has {len(parts) - 1} places for {name}"
        text = block.join(parts)
    return text


def draw_picture(path: Path) -> str:
    """Draw growth and shares of the floor; returns what was done, in words."""
    growth_rows = []
    for row in read_results("growth").get("rows", []):
        if row["what"] == "growth" and row["batch"] == 1:
            growth_rows.append(row)
    shares = {}
    for row in model_rows(read_results("sampling")):
        if row["batch"] == 1:
            shares[row["work"]] = row["fraction"]
    if not growth_rows or not shares:
        return "no picture: results/growth.json and results/sampling.json are needed"
    if importlib.util.find_spec("matplotlib") is None:
        return 'no picture: matplotlib is missing, pip install "tessella[plots]"'

    # Not pyplot, which would look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _plot_growth(left, sorted(growth_rows, key=lambda row: row["side"]))
    _plot_shares(right, shares)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return str(path)


def _plot_growth(axes: Axes, rows: list[Results]) -> None:
    """Plot milliseconds a pixel against the side."""
    for way, title in WAYS.items():
        # Without a compiler the kernel was not timed.
        with_way = [row for row in rows if way in row["ms_a_pixel"]]
        if with_way:
            sides = [row["side"] for row in with_way]
            times = [row["ms_a_pixel"][way] for row in with_way]
            axes.loglog(sides, times, marker="o", color=COLOURS[way], label=title)
    every_side = [row["side"] for row in rows]
    axes.set_xticks(every_side, [str(side) for side in every_side])
    axes.minorticks_off()
    axes.set(xlabel="side of the image", ylabel="ms a pixel, batch 1", title="Gated PixelCNN")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _plot_shares(axes: Axes, shares: dict[str, dict[str, float]]) -> None:
    """Plot shares of the physical floor, a pair of bars for each work."""
    names = list(shares)
    # The bars of a pair lie to either side of the work's place.
    for way, offset in (("plain", -0.2), ("kernel", 0.2)):
        heights = []
        values = []
        for place, name in enumerate(names):
            if way in shares[name]:
                heights.append(place + offset)
                values.append(100 * shares[name][way])
        if values:
            bars = axes.barh(heights, values, 0.38, color=COLOURS[way], label=WAYS[way])
            axes.bar_label(bars, fmt="%.2g", padding=2, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    # Bars are drawn from below; the table begins above.
    axes.invert_yaxis()
    axes.set(xlabel="% of the physical floor, batch 1", title="How near the floor a step comes")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    print(draw_picture(PICTURE))

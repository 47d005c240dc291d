"""Write the tables of docs/models.md from the files under results/.

python scripts/model_tables.py            # rewrites the text between the markers
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import likelihood_tables
from performance_tables import MISSING, origin

ROOT = Path(__file__).resolve().parents[1]

Results = dict[str, Any]
"""A file under results/, or one of its rows."""


def families(results: Results) -> str:
    """A minute of every family on the digits."""
    lines = [
        "| model | parameters | s an epoch, all in | test bits/dim ± se | steps/s, 1 image | "
        "steps/s, 64 images |",
        "|---|---|---|---|---|---|",
    ]
    minutes = set()
    for row in results["rows"]:
        name = f"`{row['model']}`"
        bits = f"{row['bits_per_dim']:.3f} ± {row['standard_error']:.3f}"
        # The baseline counts frequencies and takes no steps.
        if "steps" not in row:
            lines.append(f"| {name} (counted) | {row['parameters']:,} | | {bits} | | |")
            continue
        minutes.add(row["minutes"])
        # Steps a second are of cached sampling, not of training.
        one = f"{row['steps_a_second_batch_1']:,.0f}"
        many = f"{row['steps_a_second_batch_64']:,.0f}"
        seconds = f"{row['seconds_an_epoch']:.2f}"
        lines.append(f"| {name} | {row['parameters']:,} | {seconds} | {bits} | {one} | {many} |")
    lines += ["", f"*{_minutes(minutes)} of training each; {_origin(results)}*"]
    return "\n".join(lines)


def cost(results: Results) -> str:
    """Seconds and memory of a training step."""
    rows = results["rows"]
    # In the order of the file.
    places = list(dict.fromkeys(row["grid"] for row in rows))
    titles = ["model"]
    for place in places:
        titles.append(f"{place}: parameters")
        titles.append(f"{place}: s a step (recomputed)")
        titles.append(f"{place}: MiB at the peak (recomputed)")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = [f"`{model}`"]
        for place in places:
            pair = [row for row in rows if row["model"] == model and row["grid"] == place]
            # False comes before True: first without checkpointing, then with it.
            plain, recomputed = sorted(pair, key=lambda row: row["checkpointing"])
            cells += _cost_cells(plain, recomputed)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"*{_origin(results)}*"])


def _cost_cells(plain: Results, recomputed: Results) -> list[str]:
    """Parameters, seconds and memory of a model on one grid."""
    if "parameters" in plain:
        parameters = f"{plain['parameters']:,}"
    else:
        parameters = _reason(plain["failed"])
    seconds = []
    memory = []
    for row in (plain, recomputed):
        if "seconds_a_step" not in row:
            seconds.append(MISSING)
            memory.append(MISSING)
            continue
        seconds.append(f"{row['seconds_a_step']:.2f}")
        # Measured for an image, shown for the batch.
        memory.append(f"{plain['batch'] * row['mebibytes_an_image']:,.0f}")
    return [parameters, f"{seconds[0]} ({seconds[1]})", f"{memory[0]} ({memory[1]})"]


def _reason(failed: str) -> str:
    """A failure in few words."""
    counted = re.search(r"refused: ([\d,]+ parameters)", failed)
    if counted:
        return f"{counted[1]}: not measured"
    if failed.startswith("refused"):
        return "too large"
    return failed


def training(results: Results) -> str:
    """Our training step against a peer's."""
    circumstances, *rows, last = results["rows"]
    lines = [
        f"| {circumstances['work']} | s a step: median (least to greatest) | parameters | "
        "GFLOP a step |",
        "|---|---|---|---|",
    ]
    for row in rows:
        times = row["seconds"]
        seconds = f"{times['median']:.2f} ({times['least']:.2f} to {times['greatest']:.2f})"
        # Only one of several ways to run a model has its counts.
        parameters = ""
        gflop = ""
        if "parameters" in row:
            parameters = f"{row['parameters']:,.0f}"
        if "gflop" in row:
            gflop = f"{row['gflop']:,.0f}"
        lines.append(f"| {row['name']} | {seconds} | {parameters} | {gflop} |")

    names = {"compiled": "the peer's time where both are compiled"}
    # Ratios below one say that ours is faster.
    ratios = []
    for name, ratio in last["ratio_of_medians"].items():
        if name != "tessella":
            ratios.append(f"{ratio:.2f} of {names.get(name, name)}")
    power = f"{circumstances['machine_gflops']:.0f} GFLOP/s in a product of 2048x2048 matrices"
    note = f"Ours takes {', '.join(ratios)}. The machine gives {power}; {_origin(results)}"
    return "\n".join([*lines, "", f"*{note}*"])


def _minutes(minutes: set[float]) -> str:
    """Numbers of minutes in words."""
    parts = []
    for number in sorted(minutes):
        if number == 1:
            parts.append("1 minute")
        else:
            parts.append(f"{number:g} minutes")
    return ", ".join(parts)


def _origin(results: Results) -> str:
    """Machine and commits of a file: those of its rows, and of the file itself."""
    rows = [row for row in results["rows"] if "commit" in row]
    return origin(results, [*rows, results])


TABLES = {"families": families, "cost": cost, "training": training}
"""By marker, which is also the name of the file: the function that makes the table."""


def filled(text: str) -> str:
    """The document with its tables made anew."""
    blocks = {}
    for name, make in TABLES.items():
        path = ROOT / "results" / f"{name}.json"
        blocks[name] = make(json.loads(path.read_text(encoding="utf-8")))
    for name, make_from_cells in likelihood_tables.TABLES.items():
        blocks[name] = make_from_cells()

    for name, block in blocks.items():
        parts = re.split(f"<!-- {name} -->.*?<!-- /{name} -->", text, flags=re.DOTALL)
        assert len(parts) == 2, f"docs/models.md has {len(parts) - 1} places for {name}"
        text = f"<!-- {name} -->\n{block}\n<!-- /{name} -->".join(parts)
    return text


if __name__ == "__main__":
    document = ROOT / "docs" / "models.md"
    document.write_text(filled(document.read_text(encoding="utf-8")), encoding="utf-8")
    print(likelihood_tables.draw_pictures())

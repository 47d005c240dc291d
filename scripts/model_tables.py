"""Write the tables of docs/models.md from the files under results/.

python scripts/model_tables.py            # rewrites what stands between the markers
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import likelihood_tables

ROOT = Path(__file__).resolve().parents[1]


def families(found: dict[str, Any]) -> str:
    """A minute of every family on the digits."""
    lines = [
        "| model | parameters | s an epoch, all in | test bits/dim ± se | steps/s, 1 image | "
        "steps/s, 64 images |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for row in found["rows"]:
        bits = f"{row['bits_per_dim']:.3f} ± {row['standard_error']:.3f}"
        if "steps" not in row:
            lines.append(f"| `{row['model']}` (counted) | {row['parameters']:,} | | {bits} | | |")
            continue
        speed = " | ".join(f"{row[f'steps_a_second_batch_{n}']:,.0f}" for n in (1, 64))
        seconds = f"{row['seconds_an_epoch']:.2f}"
        lines.append(f"| `{row['model']}` | {row['parameters']:,} | {seconds} | {bits} | {speed} |")
    minutes = {row["minutes"] for row in found["rows"] if "minutes" in row}
    return "\n".join([*lines, "", f"*{_minutes(minutes)} of training each; {_origin(found)}*"])


def cost(found: dict[str, Any]) -> str:
    """Seconds and memory of a training step."""
    places = list(dict.fromkeys(row["grid"] for row in found["rows"]))
    titles = [
        f"{place}: {what}"
        for place in places
        for what in ("parameters", "s a step (recomputed)", "MiB at the peak (recomputed)")
    ]
    lines = ["| model | " + " | ".join(titles) + " |", "|---" * (1 + len(titles)) + "|"]
    for model in dict.fromkeys(row["model"] for row in found["rows"]):
        cells = []
        for place in places:
            pair = [row for row in found["rows"] if (row["model"], row["grid"]) == (model, place)]
            plain, again = sorted(pair, key=lambda row: row["checkpointing"])
            cells.append(
                f"{plain['parameters']:,}" if "parameters" in plain else _why(plain["failed"])
            )
            for key, times, form in (
                ("seconds_a_step", 1, ".2f"),
                ("mebibytes_an_image", plain["batch"], ",.0f"),
            ):
                values = [
                    format(times * row[key], form) if key in row else "–" for row in (plain, again)
                ]
                cells.append(f"{values[0]} ({values[1]})")
        lines.append(f"| `{model}` | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"*{_origin(found)}*"])


def _why(failed: str) -> str:
    """A failure in few words."""
    if counted := re.search(r"refused: ([\d,]+ parameters)", failed):
        return f"{counted[1]}: not measured"
    return "too large" if failed.startswith("refused") else failed


def training(found: dict[str, Any]) -> str:
    """Our training step against a peer's."""
    facts, *rows, last = found["rows"]
    lines = [
        "| "
        + facts["work"]
        + " | s a step: median (least to greatest) | parameters | GFLOP a step |",
        "|---|---|---|---|",
    ]
    for row in rows:
        t = row["seconds"]
        counts = [f"{row[key]:,.0f}" if key in row else "" for key in ("parameters", "gflop")]
        lines.append(
            f"| {row['name']} | {t['median']:.2f} ({t['least']:.2f} to {t['greatest']:.2f}) | "
            f"{' | '.join(counts)} |"
        )
    names = {"compiled": "the peer's time where both are compiled"}
    against = ", ".join(
        f"{ratio:.2f} of {names.get(name, name)}"
        for name, ratio in last["ratio_of_medians"].items()
        if name != "tessella"
    )
    power = f"{facts['machine_gflops']:.0f} GFLOP/s in a product of 2048x2048 matrices"
    return "\n".join(
        [*lines, "", f"*Ours takes {against}. The machine gives {power}; {_origin(found)}*"]
    )


def _minutes(minutes: set[float]) -> str:
    return ", ".join(f"{m:g} minute{'s' if m != 1 else ''}" for m in sorted(minutes))


def _origin(found: dict[str, Any]) -> str:
    hardware = found["hardware"]
    commits = dict.fromkeys(
        [*(row["commit"] for row in found["rows"] if "commit" in row), found["commit"]]
    )
    return (
        f"{hardware['threads']} threads of {hardware['cpu']}, torch {hardware['torch']}, commit "
        f"{', '.join(commits)}"
    )


TABLES = {"families": families, "cost": cost, "training": training}


def filled(text: str) -> str:
    """The document with its tables made anew."""
    made = {name: make(json.loads(_file(name))) for name, make in TABLES.items()}
    for name, block in {
        **made,
        **{name: make() for name, make in likelihood_tables.TABLES.items()},
    }.items():
        parts = re.split(f"<!-- {name} -->.*?<!-- /{name} -->", text, flags=re.DOTALL)
        assert len(parts) == 2, f"docs/models.md has {len(parts) - 1} places for {name}"
        text = f"<!-- {name} -->\n{block}\n<!-- /{name} -->".join(parts)
    return text


def _file(name: str) -> str:
    return (ROOT / "results" / f"{name}.json").read_text(encoding="utf-8")


if __name__ == "__main__":
    path = ROOT / "docs" / "models.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    print(likelihood_tables.pictures())

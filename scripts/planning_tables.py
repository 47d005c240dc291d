"""Write the tables of docs/scale.md from results/planning.json.

python scripts/planning_tables.py            # rewrites the text between the markers
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from performance_tables import MISSING, NOTHING, origin, short, table

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "scale.md"
MIB = 2**20

Results = dict[str, Any]
"""The file, or one of its rows."""


def read_results() -> Results:
    """results/planning.json; without rows if it does not exist."""
    path = ROOT / "results" / "planning.json"
    if not path.exists():
        return {"rows": []}
    return dict(json.loads(path.read_text(encoding="utf-8")))


def rows_of(results: Results, kind: str) -> list[Results]:
    """The rows of a kind, in the order of the file."""
    return [row for row in results["rows"] if row["kind"] == kind]


def memory(results: Results) -> str:
    """Peaks of memory, planned and measured."""
    rows = rows_of(results, "memory")
    if not rows:
        return NOTHING
    titles = ["model", "batch", "a step, planned", "measured", "ratio", "process, planned"]
    titles += ["measured", "ratio"]
    lines = []
    for row in rows:
        line = [f"`{row['family']}`", str(row["batch"])]
        for part in ("step", "peak"):
            planned = row["forecast"][part]
            # Of a step the tensors count, of the process what the system had to give.
            found = "measured_without_gaps" if part == "step" else "measured"
            measured = row[found][part]
            line += [mebibytes(planned), mebibytes(measured), f"{planned / measured:.2f}"]
        lines.append(line)
    program = [row["measured"]["program"] for row in rows]
    slopes = _slopes(rows)
    note = (
        f"*MiB; a process without a model took {mebibytes(min(program))} to"
        f" {mebibytes(max(program))}. {origin(results, rows)};"
        " `benchmarks/planning.py memory`*"
    )
    return f"{table(titles, lines)}\n\n{slopes}\n\n{note}"


def _slopes(rows: Sequence[Results]) -> str:
    """What each further image of a pass takes: what stays the same for any batch drops out."""
    by_family: dict[str, list[Results]] = {}
    for row in rows:
        by_family.setdefault(row["family"], []).append(row)
    lines = []
    for family, of_family in by_family.items():
        if len(of_family) < 2:
            continue
        few, many = sorted(of_family, key=lambda row: row["batch"])[:2]
        images = many["batch"] - few["batch"]
        planned = (many["forecast"]["step"] - few["forecast"]["step"]) / images
        found_many = many["measured_without_gaps"]["step"]
        found_few = few["measured_without_gaps"]["step"]
        measured = (found_many - found_few) / images
        ratio = f"{planned / measured:.2f}" if measured > 0 else MISSING
        lines.append([f"`{family}`", mebibytes(planned), mebibytes(measured), ratio])
    if not lines:
        return NOTHING
    titles = ["each image more, MiB", "planned", "measured", "ratio"]
    return table(titles, lines)


def times(results: Results) -> str:
    """Seconds of a step, planned and measured."""
    rows = rows_of(results, "time")
    if not rows:
        return NOTHING
    titles = ["model", "batch", "GFLOP a step", "share of the peak", "planned with", "s a step"]
    titles += ["planned", "ratio"]
    lines = []
    for row in rows:
        least = row["seconds"]["least"]
        planned = row["forecast_seconds"]
        line = [f"`{row['family']}`", str(row["batch"]), f"{row['gflop']:.3g}"]
        line += [f"{row['share']:.0%}", f"{row['planned_share']:.0%}"]
        line += [f"{least:.3g}", f"{planned:.3g}", f"{planned / least:.2f}"]
        lines.append(line)
    note = f"*{origin(results, rows)}; `benchmarks/planning.py time`*"
    return f"{table(titles, lines)}\n\n{note}"


def exchange(results: Results) -> str:
    """Sums over two processes."""
    rows = rows_of(results, "exchange")
    if not rows:
        return NOTHING
    row = rows[-1]
    titles = ["MiB", "measured, ms"]
    lines = []
    for size, seconds in row["seconds"].items():
        lines.append([f"{int(size) / MIB:.0f}", f"{1000 * seconds:.3g}"])
    sentence = (
        f"The line through the least and the most is {row['bytes_a_second'] / 1e9:.2g} GB/s and"
        f" {1e6 * row['latency_seconds']:.0f} µs; it gives the one between"
        f" {1000 * row['middle_forecast_seconds']:.3g} ms, {row['ratio']:.2f} of what was measured."
    )
    note = f"*{origin(results, rows)}; `benchmarks/planning.py exchange`*"
    return f"{table(titles, lines)}\n\n{sentence}\n\n{note}"


def examples(results: Results) -> str:
    """The plans of the worked examples, one below the other."""
    rows = rows_of(results, "example")
    if not rows:
        return NOTHING
    parts = [f"*Computed, not measured; `benchmarks/planning.py examples`; {_commits(rows)}.*"]
    for row in rows:
        parts.append(example(row))
    return "\n\n".join(parts)


def example(row: Results) -> str:
    """A plan in a sentence for each of memory, computing, traffic."""
    plan = row["plan"]
    memory = plan["memory"]
    largest = sorted((name for name in memory if name != "total"), key=memory.__getitem__)
    named = []
    for name in reversed(largest[-3:]):
        named.append(f"{name.replace('_', ' ')} {gigabytes(memory[name])}")
    passes = "one pass" if plan["accumulate"] == 1 else f"{plan['accumulate']} passes"
    checkpointing = "on" if plan["checkpointing"] else "off"
    title = row["name"][0].upper() + row["name"][1:]
    lines = [
        f"**{title}.** {plan['parameters']:,} parameters:",
        "",
        f"```bash\n{row['command_line']}\n```",
        "",
        f"- Choice: {plan['batch_a_device']} images a device in {passes}, sharding"
        f" `{plan['sharding']}`, checkpointing {checkpointing}, precision `{plan['precision']}`.",
        f"- Memory of a device: {gigabytes(memory['total'])} of"
        f" {gigabytes(plan['device_memory'])}, most of it {', '.join(named)}.",
        f"- Computing: {short(plan['flops_an_image'] / 1e9)} GFLOP an image,"
        f" {milliseconds(plan['compute_seconds'])} a step.",
        _traffic_line(plan),
        f"- Together {milliseconds(plan['step_seconds'])} a step,"
        f" {plan['images_a_second']:,.0f} images a second,"
        f" {plan['run_seconds'] / 3600:.3g} hours for {plan['run_images']:,} images.",
    ]
    return "\n".join(lines)


def _traffic_line(plan: Results) -> str:
    if not plan["sent_bytes_a_step"]:
        return "- Traffic: none, there is one device."
    return (
        f"- Traffic: each device sends {gigabytes(plan['sent_bytes_a_step'])} a step, in"
        f" {milliseconds(plan['sending_seconds'])}, of which"
        f" {milliseconds(plan['waiting_seconds'])} are not hidden behind computing."
    )


def _commits(rows: Sequence[Results]) -> str:
    return "commit " + ", ".join(dict.fromkeys(str(row["commit"]) for row in rows))


def mebibytes(count: float) -> str:
    """Bytes in MiB."""
    value = count / MIB
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def gigabytes(count: float) -> str:
    """Bytes in powers of ten."""
    if count >= 1e9:
        return f"{count / 1e9:.3g} GB"
    return f"{count / 1e6:.3g} MB"


def milliseconds(seconds: float) -> str:
    """Seconds, or thousandths where there are fewer."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def filled(text: str) -> str:
    """The document with its tables made anew."""
    results = read_results()
    blocks = {
        "memory": memory(results),
        "times": times(results),
        "exchange": exchange(results),
        "examples": examples(results),
    }
    for name, block in blocks.items():
        parts = re.split(f"<!-- {name} -->.*?<!-- /{name} -->", text, flags=re.DOTALL)
        assert len(parts) == 2, f"docs/scale.md has {len(parts) - 1} places for {name}"
        text = f"<!-- {name} -->\n{block}\n<!-- /{name} -->".join(parts)
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")

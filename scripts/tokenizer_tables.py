"""Write the tables of docs/tokenizers.md from the files under results/.

python scripts/tokenizer_tables.py            # rewrites the text between the markers
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from performance_tables import MISSING, NOTHING, origin, short, table

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "tokenizers.md"

Results = dict[str, Any]
"""A file under results/, or one of its rows."""


def read_results(name: str) -> Results:
    """A file under results/; one without rows if it does not exist."""
    path = ROOT / "results" / f"{name}.json"
    if not path.exists():
        return {"rows": []}
    return dict(json.loads(path.read_text(encoding="utf-8")))


def quantizers() -> str:
    """Seconds and memory of the search with its statistics."""
    results = read_results("quantizers")
    # The last row is the speed of the machine and has no case.
    rows = [row for row in results["rows"] if "case" in row]
    if not rows:
        return NOTHING
    # Not a set: the order of the file is that of the table.
    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    measured = {(row["name"], row["case"]): row for row in rows}

    titles = ["65,536 vectors, forward and averages"]
    for case in cases:
        dim, codes = case.split("x")
        titles.append(f"D {dim}, K {codes}")
    lines = []
    for name in names:
        cells = [name]
        for case in cases:
            cells.append(_time_and_memory(measured.get((name, case))))
        lines.append(cells)

    # Only our own quantizers are compared with a search in float64.
    compared = [row for row in rows if "differ" in row]
    differ = sum(row["differ"] for row in compared)
    checked = sum(row["checked"] for row in compared)
    note = f"Of {checked:,} codes checked against a search in float64, {differ} differ (near-ties)."
    source = (
        f"*{origin(results, rows)}; `benchmarks/quantizers.py`; memory is beyond what the vectors "
        "take.*"
    )
    return f"{table(titles, lines)}\n\n{note}\n\n{source}"


def _time_and_memory(row: Results | None) -> str:
    """Seconds and memory of a quantizer in one case."""
    if row is None:
        return MISSING
    # A process gets a limited address space, which some ways exceed.
    if "error" in row:
        return "does not fit"
    return f"{short(row['seconds'])} s, {row['mib']:,} MiB"


def codebooks() -> str:
    """All quantizers in one VQ-VAE."""
    results = read_results("codebooks")
    # Rows that failed have no figures.
    rows = [row for row in results["rows"] if "psnr_db" in row]
    if not rows:
        return NOTHING
    titles = [
        "quantizer",
        "PSNR, dB",
        "codes used",
        "perplexity / K",
        "s a step",
        "steps",
        "minutes",
    ]
    lines = []
    for row in rows:
        lines.append(
            [
                row["name"],
                f"{row['psnr_db']:.2f} ± {row['psnr_db_se']:.2f}",
                f"{100 * row['usage']:.1f} %",
                f"{_mean(row['code_perplexity_share']):.2f}",
                short(row["seconds_a_step"]),
                f"{row['steps']:,}",
                short(row["limit"].get("minutes")),
            ]
        )
    images = f"{rows[0]['images']:,} test images"
    note = f"CIFAR-10, JPEG-recompressed, {images}, one seed. *{origin(results, rows)}*"
    return f"{table(titles, lines)}\n\n{note}"


def bounds() -> str:
    """Tables that compare models of pixels and of codes in bits of the pixels."""
    texts = []
    for name, title in (
        ("bounds-mnist", "MNIST, test"),
        ("bounds-cifar10-part", "CIFAR-10, a *part*, original pixels"),
    ):
        # One file for each data set.
        results = read_results(name)
        if results["rows"]:
            texts.append(_bounds_table(title, results))
    if not texts:
        return NOTHING
    return "\n\n".join(texts)


def _bounds_table(title: str, results: Results) -> str:
    """The table of one data set, under its heading."""
    rows = results["rows"]
    titles = [
        "model",
        "minutes",
        "symbols",
        "bits/dim",
        "of codes",
        "of pixels",
        "PSNR, dB",
        "ms an image",
    ]
    lines = []
    for row in rows:
        if row.get("bits_per_dim") is None:
            continue
        bits = f"{row['bits_per_dim']:.3f} ± {row['bits_per_dim_se']:.3f}"
        if not row["exact"]:
            bits = f"≤ {bits}"
        lines.append(
            [
                row["model"],
                short(row.get("minutes")),
                # A VAE draws all pixels at once.
                str(row.get("symbols") or MISSING),
                bits,
                short(row["code_bits"]),
                short(row["pixel_bits"]),
                short(row["psnr_db"]),
                short(1000 * row["seconds_an_image"]),
            ]
        )
    heading = f"**{title}, {rows[0]['images']:,} images.** *{origin(results, rows)}*"
    return f"{heading}\n\n{table(titles, lines)}"


def speed() -> str:
    """Training steps and VQGAN against peers."""
    results = read_results("tokenizers")
    rows = results["rows"]
    if not rows:
        return NOTHING
    titles = ["work", "by", "seconds", "GFLOP/s", "images/s"]
    lines = []
    for row in rows:
        lines.append(
            [
                row["work"],
                row["name"],
                short(row["seconds"]["median"]),
                short(row.get("gflop_s")),
                short(row.get("images_s")),
            ]
        )
    product = (
        f"A product of 2048x2048 matrices gave {rows[0]['product_gflop_s']:.0f} GFLOP/s in the "
        "same run."
    )
    source = f"*{origin(results, rows)}; `benchmarks/tokenizers.py`*"
    return f"{table(titles, lines)}\n\n{product} {source}"


def encoding() -> str:
    """A run of tokenize that was killed again and again."""
    rows = read_results("encoding")["rows"]
    if not rows:
        return NOTHING
    row = rows[0]
    shape = "x".join(str(side) for side in row["shape"])
    peaks = ", ".join(f"{mib} MiB ({name})" for name, mib in row["peak_mib"].items())
    return (
        f"{row['images']:,} pictures of {shape}: peak memory {peaks}; "
        f"killed {row['kills']} times, {len(row['differs'])} files differ from those of an "
        "undisturbed run; another tokenizer is refused (`benchmarks/encoding.py`)."
    )


PARTS: dict[str, Callable[[], str]] = {
    "quantizers": quantizers,
    "codebooks": codebooks,
    "bounds": bounds,
    "speed": speed,
    "encoding": encoding,
}
"""By marker: the function that makes the text."""


def _mean(values: float | list[float]) -> float:
    """The mean over the levels of a tokenizer that has several; a single value as it is."""
    if isinstance(values, list):
        return sum(values) / len(values)
    return float(values)


def filled(text: str) -> str:
    """The document with the tables in their places."""
    for name, part in PARTS.items():
        block = f"<!-- {name} -->\n{part()}\n<!-- end -->"
        # Split and joined, since a replacement by re.sub would read backslashes in the text.
        text = block.join(re.split(rf"<!-- {name} -->\n.*?<!-- end -->", text, flags=re.DOTALL))
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")

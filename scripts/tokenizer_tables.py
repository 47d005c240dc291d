"""Write the tables of docs/tokenizers.md from the files under results/.

python scripts/tokenizer_tables.py            # rewrites what stands between the markers
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from performance_tables import NOTHING, origin, short, table

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "tokenizers.md"

Found = dict[str, Any]


def found(name: str) -> Found:
    """A file of results; empty where there is none."""
    path = ROOT / "results" / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {"rows": []}


def quantizers() -> str:
    """Seconds and memory of the search with its statistics."""
    results = found("quantizers")
    rows = [row for row in results["rows"] if "case" in row]
    if not rows:
        return NOTHING
    cases, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("case", "name"))
    by = {(row["name"], row["case"]): row for row in rows}

    def cell(row: Found | None) -> str:
        if row is None:
            return "–"
        return (
            "does not fit" if "error" in row else f"{short(row['seconds'])} s, {row['mib']:,} MiB"
        )

    titles = [
        "65,536 vectors, forward and averages",
        *(f"D {c.split('x')[0]}, K {c.split('x')[1]}" for c in cases),
    ]
    body = table(
        titles, [[name, *(cell(by.get((name, case))) for case in cases)] for name in names]
    )
    ours = [row for row in rows if "differ" in row]
    differ, checked = sum(row["differ"] for row in ours), sum(row["checked"] for row in ours)
    note = f"Of {checked:,} codes checked against a search in float64, {differ} differ (near-ties)."
    made = (
        f"*{origin(results, rows)}; `benchmarks/quantizers.py`; memory is beyond what the vectors "
        "take.*"
    )
    return f"{body}\n\n{note}\n\n{made}"


def codebooks() -> str:
    """All quantizers in one VQ-VAE."""
    results = found("codebooks")
    rows = [row for row in results["rows"] if "psnr_db" in row]
    if not rows:
        return NOTHING
    cells = [
        [
            row["name"],
            f"{row['psnr_db']:.2f} ± {row['psnr_db_se']:.2f}",
            f"{100 * row['usage']:.1f} %",
            f"{_mean(row['code_perplexity_share']):.2f}",
            short(row["seconds_a_step"]),
            f"{row['steps']:,}",
            short(row["limit"].get("minutes")),
        ]
        for row in rows
    ]
    titles = [
        "quantizer",
        "PSNR, dB",
        "codes used",
        "perplexity / K",
        "s a step",
        "steps",
        "minutes",
    ]
    images = rows[0]["images"]
    note = (
        f"CIFAR-10, JPEG-recompressed, {images:,} test images, one seed. *{origin(results, rows)}*"
    )
    return f"{table(titles, cells)}\n\n{note}"


def bounds() -> str:
    """The one-currency tables."""
    texts = []
    for name, title in (
        ("bounds-mnist", "MNIST, test"),
        ("bounds-cifar10-part", "CIFAR-10, a *part*, original pixels"),
    ):
        results = found(name)
        rows = results["rows"]
        if not rows:
            continue
        cells = [
            [
                row["model"],
                short(row.get("minutes")),
                str(row.get("symbols") or "–"),
                f"{'' if row['exact'] else '≤ '}{row['bits_per_dim']:.3f} ± "
                f"{row['bits_per_dim_se']:.3f}",
                short(row["code_bits"]),
                short(row["pixel_bits"]),
                short(row["psnr_db"]),
                short(1000 * row["seconds_an_image"]),
            ]
            for row in rows
            if row.get("bits_per_dim") is not None
        ]
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
        texts.append(
            f"**{title}, {rows[0]['images']:,} images.** "
            f"*{origin(results, rows)}*\n\n{table(titles, cells)}"
        )
    return "\n\n".join(texts) or NOTHING


def speed() -> str:
    """Training steps and VQGAN against peers."""
    results = found("tokenizers")
    rows = results["rows"]
    if not rows:
        return NOTHING
    cells = [
        [
            row["work"],
            row["name"],
            short(row["seconds"]["median"]),
            short(row.get("gflop_s")),
            short(row.get("images_s")),
        ]
        for row in rows
    ]
    titles = ["work", "by", "seconds", "GFLOP/s", "images/s"]
    product = (
        f"A product of 2048x2048 matrices gave {rows[0]['product_gflop_s']:.0f} GFLOP/s in the "
        "same run."
    )
    return (
        f"{table(titles, cells)}\n\n{product} *{origin(results, rows)}; `benchmarks/tokenizers.py`*"
    )


def encoding() -> str:
    """A run of tokenize."""
    rows = found("encoding")["rows"]
    if not rows:
        return NOTHING
    row = rows[0]
    peaks = ", ".join(f"{mib} MiB ({name})" for name, mib in row["peak_mib"].items())
    return (
        f"{row['images']:,} pictures of {'x'.join(map(str, row['shape']))}: peak memory {peaks}; "
        f"killed {row['kills']} "
        f"times, {len(row['differs'])} files differ from those of an undisturbed run; another "
        "tokenizer is refused "
        "(`benchmarks/encoding.py`)."
    )


PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part for part in (quantizers, codebooks, bounds, speed, encoding)
}


def _mean(values: Any) -> float:
    return sum(values) / len(values) if isinstance(values, list) else float(values)


def filled(text: str) -> str:
    """The document with the tables in their places."""
    for name, part in PARTS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda match: f"{match[1]}{part()}\n{match[2]}", text)  # noqa: B023
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")

"""Write the tables of docs/compression.md from the files under results/.

python scripts/compression_tables.py            # rewrites the text between the markers
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from performance_tables import MISSING, origin, table

ROOT = Path(__file__).resolve().parents[1]

Results = dict[str, Any]
"""A file under results/, or one of its rows."""

TITLES = {
    "binarized-mnist": "binarized MNIST, fixed, 28x28 of 2 levels",
    "mnist": "MNIST, 28x28 of 256 levels",
    "natural-crops": "natural crops, 32x32x3 of 256 levels",
}


def compression(results: Results) -> str:
    """Bits and seconds of every codec, a table for each set."""
    blocks = []
    for name, title in TITLES.items():
        rows = [row for row in results["rows"] if row["set"] == name]
        blocks.append(codec_table(title, rows))
    return "\n\n".join([*blocks, f"*{_origin(results)}*"])


def codec_table(title: str, rows: list[Results]) -> str:
    """One line for every codec: all images together, and a file for each image."""
    together = []
    alone = {}
    for row in rows:
        if row["way"] == "files":
            alone[row["codec"]] = row
        else:
            together.append(row)
    best = min(row["bytes"] for row in together if row["codec"] != "tessella")
    titles = [
        title,
        f"{_counts(together)} images together, bytes",
        "bits/sub-pixel",
        "against the best of others",
        "s to encode",
        "s to decode",
        f"{_counts(list(alone.values()))} files, bits/sub-pixel",
    ]
    lines = []
    for row in sorted(together, key=lambda row: int(row["bytes"])):
        name = row["codec"]
        if name == "tessella":
            name = f"**Tessella**, `{row['model']}`, a twin of {row['model_bytes']:,} bytes"
        single = MISSING
        if row["codec"] in alone:
            single = f"{alone[row['codec']]['bits_per_sub_pixel']:.4f}"
        lines.append(
            [
                name,
                f"{row['bytes']:,}",
                f"{row['bits_per_sub_pixel']:.4f}",
                f"{100 * (row['bytes'] / best - 1):+.1f} %",
                f"{row['encode_seconds']:.1f}",
                f"{row['decode_seconds']:.1f}",
                single,
            ]
        )
    return table(titles, lines)


def twin_cost(results: Results) -> str:
    """What twins cost, for every family and head."""
    titles = [
        "images",
        "model",
        "head",
        "model, bits/dim",
        "twin costs, bits/dim ± se",
        "most of an image",
    ]
    lines = []
    for row in results["rows"]:
        lines.append(
            [
                row["set"],
                f"`{row['family']}`",
                row["head"],
                f"{row['model_bits_per_dim']:.4f}",
                f"{row['cost']:+.6f} ± {row['cost_se']:.6f}",
                f"{row['largest_cost_of_an_image']:+.5f}",
            ]
        )
    largest = max(row["cost"] for row in results["rows"])
    note = f"The most that a twin costs is {largest:.6f} bits/dim; {_origin(results)}"
    return "\n".join([table(titles, lines), "", f"*{note}*"])


def _counts(rows: list[Results]) -> str:
    """Distinct numbers of images, in words."""
    counts = sorted({row["images"] for row in rows})
    return " or ".join(f"{count:,}" for count in counts)


def _origin(results: Results) -> str:
    """Machine and commits of a file: those of its rows, and of the file itself."""
    rows = [row for row in results["rows"] if "commit" in row]
    return origin(results, [*rows, results])


TABLES = {"compression": compression, "twin_cost": twin_cost}
"""By marker, which is also the name of the file: the function that makes the table."""


def filled(text: str) -> str:
    """The document with its tables made anew."""
    for name, make in TABLES.items():
        path = ROOT / "results" / f"{name}.json"
        block = make(json.loads(path.read_text(encoding="utf-8")))
        parts = re.split(f"<!-- {name} -->.*?<!-- /{name} -->", text, flags=re.DOTALL)
        assert len(parts) == 2, f"docs/compression.md has {len(parts) - 1} places for {name}"
        text = f"<!-- {name} -->\n{block}\n<!-- /{name} -->".join(parts)
    return text


if __name__ == "__main__":
    document = ROOT / "docs" / "compression.md"
    document.write_text(filled(document.read_text(encoding="utf-8")), encoding="utf-8")

"""The table of scores, and what stands out in it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tessella import files
from tessella.cli.terminal import answer
from tessella.codec.scoring import ImageBits

RANKED = 5
"""Images that are named at either end."""


@dataclass(frozen=True)
class ScoreLine:
    """A line of the table.

    Args:
        name: of the image.
        height, width: in pixels.
        bits: of the whole image.
        bits_per_dim: bits of a symbol, on average.
    """

    name: str
    height: int
    width: int
    bits: float
    bits_per_dim: float


def line_of(score: ImageBits) -> ScoreLine:
    """An image's bits as a line."""
    height, width = score.places.shape
    return ScoreLine(score.name, height, width, score.bits, score.bits_per_dim)


def lines_in(paths: Iterable[Path]) -> list[ScoreLine]:
    """The lines that units of work wrote, one object of JSON for each image.

    Raises:
        ArtifactError: when a file is damaged.
    """
    lines = []
    for path in paths:
        for text in path.read_text(encoding="utf-8").splitlines():
            values = files.parse_json(text, f"a line of {path}")
            assert isinstance(values, dict)
            line = ScoreLine(
                name=str(values["key"]),
                height=int(values["height"]),
                width=int(values["width"]),
                bits=float(values["bits"]),
                bits_per_dim=float(values["bits_per_dim"]),
            )
            lines.append(line)
    return lines


def write_table(path: Path | str, lines: list[ScoreLine]) -> None:
    """Write the table as CSV.

    Raises:
        ArtifactError: when it cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["name", "height", "width", "bits", "bits/dim"])
    for line in lines:
        numbers = [f"{line.bits:.3f}", f"{line.bits_per_dim:.6f}"]
        table.writerow([line.name, line.height, line.width, *numbers])
    files.write_text(path, text.getvalue())


def summarize(lines: list[ScoreLine]) -> None:
    """Print the mean, and the images at either end."""
    rates = np.array([line.bits_per_dim for line in lines])
    total = sum(line.bits for line in lines)
    error = ""
    if len(rates) > 1:
        error = f" ± {rates.std(ddof=1) / math.sqrt(len(rates)):.4f}"
    answer(f"{len(lines)} images, {rates.mean():.4f}{error} bits/dim, {total / 8:,.0f} bytes")
    ranked = sorted(lines, key=lambda line: line.bits_per_dim)
    for title, chosen in (("most", ranked), ("least", ranked[::-1])):
        answer(f"{title} expected:")
        for line in chosen[:RANKED]:
            answer(f"  {line.bits_per_dim:.4f} bits/dim  {line.name}")

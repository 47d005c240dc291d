"""``tessella score``."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np

from tessella import files
from tessella.cli.run_twin import set_threads, tokenizer_of_run, twin_of_run
from tessella.cli.terminal import answer, say
from tessella.cli.verb_options import Score
from tessella.codec.picture_files import find_pictures, read_picture
from tessella.codec.scoring import ImageBits, heat_map, score_images
from tessella.errors import InputError
from tessella.files import pictures
from tessella.storage import image_writer

RANKED = 5
"""Images that are named at either end."""

WHITE = 0.995
"""Share of the pixels of all images that are not white in a heat map."""


def run(command: Score) -> int:
    """Score images, write the table, and say what stands out."""
    set_threads(command.threads)
    if tokenizer_of_run(command.run) is not None:
        raise InputError(f"{command.run} models codes, and scores are of pixels: name another run")
    found, _ = find_pictures(command.paths)
    twin = twin_of_run(command.run)
    scores = []
    with image_writer.progress(len(found)) as watch:
        images = (read_picture(picture, twin.grid.levels) for picture in found)
        for score in score_images(twin, images, command.batch):
            scores.append(score)
            watch(len(scores))
    files.write_text(command.out, _table(scores))
    _summarize(scores)
    say(f"table: {command.out}")
    if command.heat_maps:
        _draw(scores, Path(command.heat_maps))
        say(f"heat maps: {command.heat_maps}")
    return 0


def _table(scores: list[ImageBits]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["name", "height", "width", "bits", "bits/dim"])
    for score in scores:
        height, width = score.places.shape
        numbers = [f"{score.bits:.3f}", f"{score.bits_per_dim:.6f}"]
        table.writerow([score.name, height, width, *numbers])
    return text.getvalue()


def _summarize(scores: list[ImageBits]) -> None:
    rates = np.array([score.bits_per_dim for score in scores])
    total = sum(score.bits for score in scores)
    error = ""
    if len(rates) > 1:
        error = f" ± {rates.std(ddof=1) / math.sqrt(len(rates)):.4f}"
    answer(f"{len(scores)} images, {rates.mean():.4f}{error} bits/dim, {total / 8:,.0f} bytes")
    ranked = sorted(scores, key=lambda score: score.bits_per_dim)
    for title, chosen in (("most", ranked), ("least", ranked[::-1])):
        answer(f"{title} expected:")
        for score in chosen[:RANKED]:
            answer(f"  {score.bits_per_dim:.4f} bits/dim  {score.name}")


def _draw(scores: list[ImageBits], out: Path) -> None:
    """A map of each image, all on the same scale."""
    most = max(float(np.quantile(score.places, WHITE)) for score in scores)
    made: dict[str, object] = {"bits of white": round(most, 4)}
    with files.atomic_directory(out) as folder:
        for score in scores:
            path = folder / f"{score.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures.save_png(path, heat_map(score.places, most), made)

"""``tessella score``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tessella import files
from tessella.bulk.coding_stages import ScoreStage
from tessella.bulk.items import items_of
from tessella.bulk.packing import TablePacking
from tessella.bulk.units import StageUnits
from tessella.cli.bulk_work import check_is_file, make_units, unit_images, uses_units
from tessella.cli.run_twin import set_threads, tokenizer_of_run, twin_of_run
from tessella.cli.score_table import line_of, lines_in, summarize, write_table
from tessella.cli.terminal import say
from tessella.cli.verb_options import Score
from tessella.codec.picture_files import find_pictures, read_picture
from tessella.codec.scoring import ImageBits, heat_map, score_images
from tessella.errors import InputError
from tessella.files import pictures
from tessella.storage import image_writer

WHITE = 0.995
"""Share of the pixels of all images that are not white in a heat map."""


def run(command: Score) -> int:
    """Score images, write the table, and say what stands out."""
    set_threads(command.threads)
    if tokenizer_of_run(command.run) is not None:
        raise InputError(f"{command.run} models codes, and scores are of pixels: name another run")
    if uses_units(command.work, command.out):
        return _run_in_units(command)
    check_is_file(command.out)
    found, _ = find_pictures(command.paths)
    twin = twin_of_run(command.run)
    scores = []
    with image_writer.progress(len(found)) as watch:
        images = (read_picture(picture, twin.grid.levels) for picture in found)
        for score in score_images(twin, images, command.batch):
            scores.append(score)
            watch(len(scores))
    lines = [line_of(score) for score in scores]
    write_table(command.out, lines)
    summarize(lines)
    say(f"table: {command.out}")
    if command.heat_maps:
        _draw(scores, Path(command.heat_maps))
        say(f"heat maps: {command.heat_maps}")
    return 0


def _run_in_units(command: Score) -> int:
    """Score the images unit by unit, and put the lines of all units into one table."""
    if command.heat_maps:
        raise InputError("heat maps are drawn without units: leave out --heat-maps, or --units")
    items = items_of(command.paths)
    # Made here, where there is none: each process would make its own.
    twin = twin_of_run(command.run)
    made: dict[str, object] = {"model": twin.id, **items.identity()}
    stage = ScoreStage(command.run, plugins=command.plugin)
    units = StageUnits(stage, items, TablePacking("scores"), unit_images(command.work))
    out = Path(command.out)
    found = make_units(command.out, "scores", made, units, command.work)
    lines = lines_in(out / file.name for file in found)
    write_table(out / "scores.csv", lines)
    summarize(lines)
    say(f"table: {out / 'scores.csv'}")
    return 0


def _draw(scores: list[ImageBits], out: Path) -> None:
    """A map of each image, all on the same scale."""
    most = max(float(np.quantile(score.places, WHITE)) for score in scores)
    made: dict[str, object] = {"bits of white": round(most, 4)}
    with files.atomic_directory(out) as folder:
        for score in scores:
            path = folder / f"{score.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures.save_png(path, heat_map(score.places, most), made)

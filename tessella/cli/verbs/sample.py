"""``tessella sample``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tessella.bulk.items import SeedItems
from tessella.bulk.packing import DrawnPacking
from tessella.bulk.sample_stage import SampleStage
from tessella.bulk.units import StageUnits
from tessella.cli import preview
from tessella.cli.bulk_work import make_units, unit_images, uses_units
from tessella.cli.drawing import check_drawing, draw, sampling_keywords
from tessella.cli.drawing_options import Drawing
from tessella.cli.picture_output import provenance, write_images
from tessella.cli.rounding import load_rounded
from tessella.cli.terminal import say
from tessella.cli.verb_options import Sample
from tessella.errors import InputError
from tessella.noise import check_seed
from tessella.pipeline import CompletesImages, DrawsImages, SavedModel, pick_device, require
from tessella.sampling import SamplingKeywords


def run(command: Sample) -> int:
    """Draw images and write them."""
    drawing = command.drawing
    model = load_rounded(command.run, pick_device(command.device), drawing.weights)
    require(model, DrawsImages, command.run)
    check_drawing(model, drawing)
    if uses_units(command.work, command.out):
        return _run_in_units(command, model)
    # The record decides whether a series that lies there already is this one.
    made = provenance(model, command.run, drawing) | {"n": command.n}
    height, width, channels = model.image_grid.shape

    def batches(first: int) -> Iterator[np.ndarray]:
        return draw(model, drawing, command.n, first)

    force = bool(command.force)
    shape = (height, width, channels)
    wrote = write_images(command.out, made, shape, batches, drawing.batch, force)
    if command.out.endswith(".png") and not command.no_preview:
        preview.show_file(command.out)
    done = ""
    if not wrote:
        done = "nothing to do, there are "
    say(f"{done}{command.n} images of {height}x{width}, seed {drawing.seed}: {command.out}")
    return 0


def _run_in_units(command: Sample, model: SavedModel) -> int:
    """Draw the images as PNG files, in tar files of a unit each."""
    drawing = command.drawing
    if drawing.weights != "own":
        raise InputError("--weights is for drawing without units: leave it out, or --units")
    check_seed(drawing.seed, command.n)
    made = provenance(model, command.run, drawing)
    stage = SampleStage(
        command.run,
        device=command.device,
        plugins=command.plugin,
        class_label=drawing.class_label,
        **_symbol_options(model, drawing),
    )
    items = SeedItems(command.n, drawing.seed)
    units = StageUnits(stage, items, DrawnPacking(made), unit_images(command.work))
    found = make_units(command.out, "drawn images", made, units, command.work)
    height, width, _ = model.image_grid.shape
    said = f"{command.n} images of {height}x{width}, seed {drawing.seed}"
    say(f"{said}, in {len(found)} tar files: {command.out}")
    return 0


def _symbol_options(model: SavedModel, drawing: Drawing) -> SamplingKeywords:
    """Method and rule, for a model that draws symbol by symbol; nothing for others."""
    if isinstance(model, CompletesImages):
        return sampling_keywords(drawing)
    return {}

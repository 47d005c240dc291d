"""``tessella sample``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tessella.cli import preview
from tessella.cli.drawing import check_drawing, draw
from tessella.cli.picture_output import provenance, write_images
from tessella.cli.rounding import load_rounded
from tessella.cli.terminal import say
from tessella.cli.verb_options import Sample
from tessella.pipeline import DrawsImages, pick_device, require


def run(command: Sample) -> int:
    """Draw images and write them."""
    drawing = command.drawing
    model = load_rounded(command.run, pick_device(command.device), drawing.weights)
    require(model, DrawsImages, command.run)
    check_drawing(model, drawing)
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

"""Images that a verb writes: a sheet, or a series that continues where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

import tessella
from tessella.cli.drawing_options import Drawing
from tessella.cli.terminal import say
from tessella.errors import InputError
from tessella.files import pictures
from tessella.pipeline import SavedModel, fingerprint
from tessella.pipeline.saved_model import states_bound
from tessella.storage import image_writer

SHEET_PIXELS = 1 << 27
"""Most pixels of a sheet. Programs that show pictures refuse larger ones."""


def write_images(
    out: str,
    made: Mapping[str, object],
    shape: tuple[int, int, int],
    batches: Callable[[int], Iterator[np.ndarray]],
    batch: int,
    force: bool,
) -> bool:
    """Write images to a ``.png`` sheet, a ``.npz`` or a directory.

    Args:
        out: the output as it was given.
        made: how the images are made, ``n`` of them; kept with them.
        shape: ``(height, width, channels)`` of each.
        batches: gives the images from a number on.
        batch: images that it gives at a time.
        force: replace what is there.

    Returns:
        Whether anything was left to do.
    """
    path = Path(out)
    n = made["n"]
    assert isinstance(n, int)
    # A sheet is one picture and is drawn at once; a series is written batch by batch.
    if path.suffix == ".png" and not out.endswith("/"):
        check_sheet(n, shape)
        images = np.concatenate(list(batches(0)))
        pictures.save_png(path, pictures.sheet(images), made)
        return True
    with image_writer.opened(path, made, shape, force) as series:
        # From the start of the batch that was interrupted: batches are then as if it had not been.
        first = series.resume(batch)
        if series.finished:
            return False
        if first:
            say(f"resuming at image {first} of {n}")
        # All images may be there without the record that says so.
        if first < n:
            for images in batches(first):
                series.append(images)
        series.finish()
    return True


def check_sheet(n: int, shape: tuple[int, int, int]) -> None:
    """Refuse a sheet that no program would show, before its images are drawn.

    Raises:
        InputError: when it would have more than ``SHEET_PIXELS`` pixels.
    """
    height, width, _ = shape
    if n * height * width > SHEET_PIXELS:
        raise InputError(
            f"a sheet of {n:,} images of {height}x{width} has more than {SHEET_PIXELS:,} pixels:"
            f" draw at most {SHEET_PIXELS // (height * width):,}, or write a .npz or a directory"
        )


def provenance(model: SavedModel, run: str, drawing: Drawing) -> dict[str, object]:
    """Say how drawn images were made, as plain values that are kept with them."""
    rule = drawing.rule
    # The name of the run, not its path: pictures travel to other people.
    made: dict[str, object] = {
        "tessella": tessella.__version__,
        "model": fingerprint(model),
        "run": Path(run).name,
        "seed": drawing.seed,
        "class": drawing.class_label,
        "method": drawing.method,
        "temperature": rule.temperature,
        "top_k": rule.top_k,
        "top_p": rule.top_p,
        "guidance": rule.guidance,
    }
    # Only masked models draw by steps.
    if states_bound(model):
        unmasking = drawing.unmasking
        made |= {"steps": unmasking.steps, "schedule": unmasking.schedule}
        # As text, because JSON has no infinity.
        made["choice_temperature"] = f"{unmasking.choice_temperature:g}"
    # Left out otherwise, as in series of versions that knew no rounded weights.
    if drawing.weights != "own":
        made["weights"] = drawing.weights
    return made

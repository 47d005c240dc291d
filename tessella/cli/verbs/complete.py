"""``tessella complete``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tessella.cli import preview
from tessella.cli.drawing import check_drawing, class_of_each, sampling_keywords
from tessella.cli.known_pixels import kept_after_missing, read_mask, upper_rows
from tessella.cli.picture_output import check_sheet, provenance
from tessella.cli.rounding import load_rounded
from tessella.cli.run_images import load_images
from tessella.cli.terminal import is_quiet, say
from tessella.cli.verb_options import Complete
from tessella.files import pictures
from tessella.pipeline import CompletesImages, pick_device, require
from tessella.pipeline.saved_model import learned_tokenizer, states_bound
from tessella.storage import image_writer

MASKED = 128
"""Grey value that stands for pixels that were not kept."""


def run(command: Complete) -> int:
    """Complete images and write a sheet: each image, what was kept of it, its completions."""
    drawing = command.drawing
    model = load_rounded(command.run, pick_device(command.device), drawing.weights)
    completer = require(model, CompletesImages, command.run)
    check_drawing(model, drawing)
    images = np.asarray(load_images(command, model, command.split).images[: command.n])
    n = len(images)
    height, width, channels = images.shape[1:]
    check_sheet(n * (2 + command.variants), (height, width, channels))

    # What is kept is alike for all images.
    if command.mask:
        known = read_mask(command.mask, height, width)
    else:
        known = upper_rows(command.keep, height, width)
    # Masked models see all that is kept in any case.
    goes_by_raster = command.order == "raster" and not states_bound(model)
    if goes_by_raster and kept_after_missing(known):
        say(
            "in raster order, pixels kept below a missing one do not count for it; with a model of"
            " the family any-order, --order known-first draws it given all that is kept"
        )
    options = sampling_keywords(drawing)
    options["order"] = command.order
    repeated = np.repeat(images, command.variants, axis=0)  # [n * variants, h, w, c]
    with image_writer.progress(len(repeated)) as watch:
        completed = completer.complete(
            repeated,
            known,
            drawing.seed,
            batch=drawing.batch,
            cond=class_of_each(drawing, len(repeated)),
            watch=None if is_quiet() else watch,
            **options,
        )

    # A row of the sheet: the image, the part that was kept, and the completions.
    masked = np.where(known.numpy()[None, :, :, None], images, MASKED).astype(np.uint8)
    variants = completed.cpu().numpy().reshape(n, command.variants, *images.shape[1:])
    rows = np.concatenate([images[:, None], masked[:, None], variants], axis=1)
    sheet = pictures.sheet(rows.reshape(-1, *images.shape[1:]), columns=2 + command.variants)
    made = provenance(model, command.run, drawing)
    if command.mask:
        # The name of the file, not its path: pictures travel to other people.
        made["mask"] = Path(command.mask).name
    else:
        made["keep"] = command.keep
    made |= {"order": command.order, "split": command.split}
    pictures.save_png(Path(command.out), sheet, made)
    if not command.no_preview:
        preview.show(sheet)

    # A prior keeps codes, whose pixels are those of the decoder.
    kept = "what was kept"
    if learned_tokenizer(model) is not None:
        kept = "what was kept, by its codes: its pixels come back as reconstructions"
    say(
        f"{n} images, {command.variants} completions each (image, {kept}, completions):"
        f" {command.out}"
    )
    return 0

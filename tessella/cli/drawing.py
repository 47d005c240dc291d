"""Drawing of images as the options of a verb ask for it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from tessella.cli.drawing_options import Drawing
from tessella.cli.terminal import is_quiet
from tessella.errors import InputError
from tessella.pipeline import CompletesImages, DrawsImages, SavedModel, require
from tessella.sampling import Rule, SamplingKeywords, Unmasking
from tessella.storage import image_writer


def draw(model: SavedModel, drawing: Drawing, n: int, first: int) -> Iterator[np.ndarray]:
    """Draw ``n`` images from number ``first`` on, with a line of progress.

    Yields:
        ``uint8 [batch, height, width, channels]``.
    """
    with image_writer.progress(n, first) as show:
        # Images that nobody watches are drawn in fewer calls.
        watch = None if is_quiet() else show
        # Symbols are drawn one after another, under rules; a VAE draws its latents at once.
        if isinstance(model, CompletesImages):
            batches = model.batches(
                n,
                drawing.seed,
                drawing.batch,
                first,
                cond=class_of_each(drawing, n),
                watch=watch,
                **sampling_keywords(drawing),
            )
        else:
            drawer = require(model, DrawsImages, "this run")
            batches = drawer.batches(n, drawing.seed, drawing.batch, first, watch=watch)
        # One batch at a time: however many images there are, memory stays the same.
        for images in batches:
            yield images.cpu().numpy()


def check_drawing(model: SavedModel, drawing: Drawing) -> None:
    """Refuse options that mean nothing to a model, before anything is drawn.

    Raises:
        InputError: for a class that the model does not know, and for rules of symbols where all
            pixels are drawn at once.
    """
    if isinstance(model, CompletesImages):
        model.check_condition(class_of_each(drawing, 1), 1)
        return
    # An option that has its default value cannot be told from one that was not given.
    default = Drawing()
    given = []
    for name in ("temperature", "top_k", "top_p", "guidance"):
        if getattr(drawing.rule, name) != getattr(Rule(), name):
            given.append("--" + name.replace("_", "-"))
    if drawing.unmasking != default.unmasking:
        given.append("--steps, --schedule, --choice-temperature")
    if drawing.method != default.method:
        given.append("--method")
    if drawing.class_label is not None:
        given.append("--class-label")
    if given:
        raise InputError(f"a VAE draws all pixels at once: leave out {', '.join(given)}")


def class_of_each(drawing: Drawing, n: int) -> torch.Tensor | None:
    """The class to draw, int64 ``[n]``, or None for a model without classes."""
    if drawing.class_label is None:
        return None
    return torch.full((1,), drawing.class_label).expand(n)  # takes no memory, however large n is


def sampling_keywords(drawing: Drawing) -> SamplingKeywords:
    """Method, unmasking and rule, as the methods of a model take them."""
    rule = drawing.rule
    # Options that have their default values cannot be told from those that were not given, and
    # models that are not masked take none.
    unmasking = None
    if drawing.unmasking != Unmasking():
        unmasking = drawing.unmasking
    return {
        "unmasking": unmasking,
        "method": drawing.method,
        "temperature": rule.temperature,
        "top_k": rule.top_k,
        "top_p": rule.top_p,
        "guidance": rule.guidance,
    }

"""Numbers one can quote: exact bits/dim, reconstruction quality, codebook use; each with what it
was measured on.

Everything is first measured of each image (:class:`Measured`), by any number of processes, each
image exactly once; the figures, the table of images and the comparison of two models are all made
of that. Standard errors are the standard deviation over images (n - 1) divided by the square root
of their number.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tessella.errors import InputError
from tessella.evaluation.bounds import bound_figures
from tessella.evaluation.comparison import check_comparable, compare
from tessella.evaluation.figures import bit_figures, reconstruction_figures
from tessella.evaluation.image_source import (
    as_scored,
    data_config,
    images_of,
    overlap_with,
    save_seen,
    steps_of,
    trained_on,
    with_classes_of,
)
from tessella.evaluation.measurement import Evaluation, Measured, measure, per_image
from tessella.models import DensityModel
from tessella.pipeline import Generator, fingerprint, load, locate, pixel_generator
from tessella.tokenizers import Tokenizer, codebook_health
from tessella.vae import VAE

__all__ = [
    "Evaluation",
    "Measured",
    "as_scored",
    "assess",
    "check_comparable",
    "compare",
    "data_config",
    "evaluate",
    "measure",
    "per_image",
    "save_seen",
    "trained_on",
]

BATCH = 64
"""Images scored at a time unless told otherwise."""


def evaluate(
    run: Path | str | Generator | DensityModel | Tokenizer | VAE,
    images: Any = None,
    labels: Any = None,
    batch: int = BATCH,
    split: str = "test",
) -> dict[str, Any]:
    """Measure a model on images.

    Where several processes run (``torch.distributed``), they share the images, each image is
    measured once, and all return the figures of all images.

    Args:
        run: a run directory, the name of a bundled model, or a model.
        images: ``uint8 [n, height, width, channels]``, or an :class:`~tessella.data.ImageSet`;
            without them, ``split`` of the data the run was trained on.
        labels: class of each image ``[n]``, for a model with classes (an image set brings its own);
            without them it is scored with the null class.
        batch: images at a time.
        split: which split to read where ``images`` are not given.

    Returns:
        Plain values. Of a density model on pixels: ``bits_per_dim`` (exact, over the symbols of the
        image at the model's levels), ``bits_per_dim_se``, ``nats_per_image``,
        ``nats_per_image_se``, ``images``, and ``baseline_bits_per_dim`` of independent pixels where
        the run keeps them. Of a tokenizer: ``psnr_db``, ``ssim``, ``mse`` (0..255 squared), their
        standard errors, ``codebook_used``, ``code_perplexity``, what
        :func:`tessella.tokenizers.codebook_health.summarize` tells of the codes, ``diagnosis`` among
        it. Of a two-stage model both, where ``bits_per_dim`` is per code, and ``bits_per_image``
        and ``bits_per_image_dim`` tell the same cost by image. Of a VAE, and of a two-stage model
        whose tokenizer has a likelihood, ``bound_bits_per_dim``, see
        :mod:`tessella.evaluation.bounds`. ``weights`` says which model, ``data`` which images, and
        ``overlap`` how many of them are, pixel for pixel or mirrored, among the images the run was
        trained on (None where that is unknown).

    Raises:
        InputError, DataError, ArtifactError: for images, data or a run that do not fit.
    """
    return assess(run, images, labels, batch, split).figures


def assess(
    run: Path | str | Generator | DensityModel | Tokenizer | VAE,
    images: Any = None,
    labels: Any = None,
    batch: int = BATCH,
    split: str = "test",
    model: Generator | Tokenizer | VAE | None = None,
) -> Evaluation:
    """:func:`evaluate`, with the values of each image. ``model`` is that of the run, where it is
    loaded already."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch must be a positive integer, got {batch!r}")
    path = locate(run) if isinstance(run, (str, Path)) else None
    if model is None:
        given = load(run) if isinstance(run, (str, Path)) else run
        model = pixel_generator(given) if isinstance(given, DensityModel) else given
    chosen, identity = images_of(path, images, labels, split)
    if not len(chosen):
        raise InputError("there are no images to evaluate")
    if isinstance(model, Generator) and model.classes and labels is None:
        chosen = with_classes_of(path, chosen)
    conditional = isinstance(model, Generator) and model.classes > 0 and chosen.labels is not None
    measured = measure(model, chosen.images, chosen.labels if conditional else None, batch, path)
    figures: dict[str, Any] = {"images": len(chosen)}
    if isinstance(model, Generator):
        figures |= bit_figures(model, measured, conditional)
    if measured.counts:
        figures |= reconstruction_figures(measured)
        assert not isinstance(model, VAE)
        tokenizer = model.tokenizer if isinstance(model, Generator) else model
        # The record of a two-stage run tells the steps of its prior, not of its tokenizer.
        steps = steps_of(path) if model is tokenizer else None
        facts = codebook_health.examine(tokenizer, measured.counts, steps)
        figures |= codebook_health.summarize(facts)
    figures |= bound_figures(model, measured, math.prod(chosen.images.shape[1:]))
    seen, overlap = overlap_with(path, measured.hashes, measured.mirrored)
    figures |= {"weights": fingerprint(model), "overlap": overlap, "data": identity}
    return Evaluation(model, chosen, measured, seen, figures)

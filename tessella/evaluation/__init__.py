"""Numbers one can quote: exact bits/dim, reconstruction quality, codebook use.

Each comes with the images that it was measured on. Everything is first measured of each image
(:class:`Measured`), by any number of processes, each image exactly once. The figures, the table of
images and the comparison of two models are all made of these numbers. Standard errors are the
standard deviation over images (n - 1) divided by the square root of their number.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tessella.data.array_checks import check_scale
from tessella.errors import InputError, check_integer
from tessella.evaluation.aspect import Measured
from tessella.evaluation.bounds import pixel_bounds
from tessella.evaluation.comparison import check_comparable, compare
from tessella.evaluation.image_source import (
    as_scored,
    check_fit,
    data_config,
    images_of,
    overlap_with,
    save_seen,
    tokenizer_steps_of,
    trained_on,
    with_classes_of,
)
from tessella.evaluation.measurement import Evaluation, aspects_of, measure, per_image
from tessella.files import JSONValue
from tessella.models import DensityModel
from tessella.pipeline import (
    SavedModel,
    ScoresImages,
    class_count,
    fingerprint,
    load_saved,
    locate,
    pixel_generator,
    pixel_levels,
)

__all__ = [
    "Evaluation",
    "Measured",
    "as_scored",
    "assess",
    "check_comparable",
    "check_fit",
    "compare",
    "data_config",
    "evaluate",
    "measure",
    "per_image",
    "save_seen",
    "tokenizer_steps_of",
    "trained_on",
]

BATCH = 64
"""Images scored at a time unless another number is given."""


def evaluate(
    run: Path | str | SavedModel | DensityModel,
    images: object = None,
    labels: object = None,
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
        labels: class of each image ``[n]``, for a model with classes (an image set has them
            already); without them it is scored with the null class.
        batch: images at a time.
        split: which split to read where ``images`` are not given.

    Returns:
        Plain values. Of a density model on pixels: ``bits_per_dim`` (exact, over the symbols of the
        image at the model's levels), ``bits_per_dim_se``, ``nats_per_image``,
        ``nats_per_image_se``, ``images``, and ``baseline_bits_per_dim`` of independent pixels where
        the run keeps them. Of a tokenizer: ``psnr_db``, ``ssim``, ``mse`` (0..255 squared), their
        standard errors, ``codebook_used``, ``code_perplexity``, and the report on its codes that
        :func:`tessella.tokenizers.codebook_health.summarize` makes, with a ``diagnosis``. Of a
        two-stage model both, where ``bits_per_dim`` is per code, and ``bits_per_image`` and
        ``bits_per_image_dim`` are the same cost by image. Of a VAE, and of a two-stage model whose
        tokenizer has a likelihood, ``bound_bits_per_dim``, see :mod:`tessella.evaluation.bounds`.
        Of a masked model that instead of ``bits_per_dim``, or ``bound_bits_per_code`` on codes, see
        :mod:`tessella.evaluation.symbol_bound`.
        ``weights`` says which model, ``data`` which images, and ``overlap`` how many of them are,
        pixel for pixel or mirrored, among the images the run was trained on (None where that is
        unknown). ``condition`` says, of a model with classes, whether images were scored given
        their class.

    Raises:
        InputError, DataError, ArtifactError: for images, data or a run that do not fit.
    """
    return assess(run, images, labels, batch, split).figures


def assess(
    run: Path | str | SavedModel | DensityModel,
    images: object = None,
    labels: object = None,
    batch: int = BATCH,
    split: str = "test",
    model: SavedModel | None = None,
) -> Evaluation:
    """:func:`evaluate`, with the values of each image.

    Args:
        run, images, labels, batch, split: see :func:`evaluate`.
        model: of the run, where it is loaded already.
    """
    check_integer("batch", batch, least=1)
    path = None
    described: object = "the model"
    if isinstance(run, (str, Path)):
        path = locate(run)
        described = run
    if model is None:
        model = _model_of(run)
    chosen, identity = images_of(path, images, labels, split)
    # A mean of nothing would be no number.
    if not len(chosen):
        raise InputError("there are no images to evaluate")
    # Arrays do not say how they were scaled; sets were checked as they were read.
    check_scale(images, pixel_levels(model) or 0)
    # Before anything is measured, so that the refusal comes at once.
    check_fit(model, described, chosen)
    # Labels that a model cannot use are left alone: tokenizers and VAEs take none.
    scores_classes = isinstance(model, ScoresImages) and class_count(model) > 0
    if scores_classes and labels is None:
        chosen = with_classes_of(path, chosen)
    classes = None
    if scores_classes:
        classes = chosen.labels
    measured = measure(model, chosen.images, classes, batch, path)
    figures: dict[str, JSONValue] = {"images": len(chosen)}
    steps = tokenizer_steps_of(path, model.kind)
    # Figures of all processes' images; every process computes them from the same numbers.
    for aspect in aspects_of(model, tokenizer_steps=steps):
        figures |= aspect.figures(measured)
    figures |= pixel_bounds(measured, math.prod(chosen.images.shape[1:]))
    seen, overlap = overlap_with(path, measured.hashes, measured.mirrored)
    figures |= {"weights": fingerprint(model), "overlap": overlap, "data": identity}
    return Evaluation(model, chosen, measured, seen, figures)


def _model_of(run: Path | str | SavedModel | DensityModel) -> SavedModel:
    """The model of an argument: a run, a model, or a density model on pixels."""
    if isinstance(run, (str, Path)):
        return load_saved(run)
    if isinstance(run, DensityModel):
        return pixel_generator(run)
    # Whoever passes something else has not read the annotation.
    if not isinstance(run, SavedModel):
        raise InputError(
            "evaluate takes a run directory, the name of a bundled model, or a model; got "
            f"{type(run).__name__}"
        )
    return run

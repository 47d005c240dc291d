"""Two models on the same images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tessella.errors import InputError
from tessella.evaluation.measurement import Evaluation, per_image
from tessella.evaluation.metrics import standard_error
from tessella.pipeline import (
    NOUNS,
    BoundsImages,
    SavedModel,
    ScoresImages,
    fingerprint,
    learned_tokenizer,
    pixel_levels,
)
from tessella.pipeline.generator import grids_text
from tessella.pipeline.saved_model import states_bound

CONDITIONS = {
    "labels": "p(image given its class)",
    "null class": "p(image) with the null class",
    None: "p(image), as it has no classes",
}
"""Meaning of the figure ``condition``."""


def compare(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    """The mean difference of two models over the same images, with its standard error.

    The part of a value that the image makes is shared by both models and cancels, so the error of
    the difference is much smaller than that of either figure.

    Returns:
        Of ``bits_per_dim`` (per code, of two-stage models), ``psnr_db``, ``ssim``, ``mse``, those
        that both have: ``first``, ``second``, ``difference`` (first minus second) and
        ``difference_se``. ``bits`` says why bits are left out, where they are. ``conditions`` says
        which probabilities were compared, where the one is given the class and the other is not.

    Raises:
        InputError: when the images are not the same, or the models have nothing in common that can
            be compared.
    """
    # Hashes of pixels, so that arrays and files of the same images compare.
    if not np.array_equal(first.measured.hashes, second.measured.hashes):
        raise InputError(
            "a comparison needs the same images in the same order, and these two evaluations "
            "have different ones"
        )
    refusal = check_comparable(first.model, second.model)
    # They are bits per dimension in other units.
    left_out = {"nats", "bits"}
    if refusal:
        left_out.add("bits_per_dim")
    # Bounds are of the symbols, so models of other levels have other bits.
    if pixel_levels(first.model) != pixel_levels(second.model):
        left_out.add("bound_bits_per_dim")
    # Codes of different tokenizers have different bits, exact or bounded.
    if not _same_codes(first.model, second.model):
        left_out.add("bound_bits_per_code")
    ones = per_image(first.model, first.measured)
    others = per_image(second.model, second.measured)
    result: dict[str, object] = {"images": len(first.measured)}
    for name, values in ones.items():
        if name not in others or name in left_out:
            continue
        difference = values - others[name]
        # The PSNR of a perfect reconstruction is infinite.
        if not bool(torch.isfinite(difference).all()):
            continue
        result[name] = {
            "first": float(values.mean()),
            "second": float(others[name].mean()),
            "difference": float(difference.mean()),
            "difference_se": standard_error(difference),
        }
    if refusal:
        result["bits"] = refusal
    conditions = _conditions(first, second)
    of_symbols = {"bits_per_dim", "bound_bits_per_dim", "bound_bits_per_code"}
    if conditions and of_symbols & result.keys():
        result["conditions"] = conditions
    return result


def check_comparable(first: SavedModel, second: SavedModel) -> str | None:
    """Why the bits of two models do not compare, so that only distortion is compared.

    Returns:
        The reason; None where bits compare.

    Raises:
        InputError: when nothing of them can be compared.
    """
    # Sizes first: it saves measuring the first model in vain.
    channels_differ = first.image_grid.channels != second.image_grid.channels
    if channels_differ or _fixed_sizes_differ(first, second):
        raise InputError(
            f"these models cannot be compared: one takes images of {_size(first)}, the other of "
            f"{_size(second)}, and a comparison needs the same images"
        )
    refusal = _bits_refusal(first, second)
    # Distortion needs reconstructions on both sides.
    shared = _names(first) & _names(second)
    if refusal and not shared:
        raise InputError(f"these models cannot be compared: {refusal}")
    return refusal


def _size(model: SavedModel) -> str:
    grid = model.image_grid
    return f"{grid.height}x{grid.width}x{grid.channels}"


def _names(model: SavedModel) -> set[str]:
    """The kinds of numbers that a model gives of an image, beside exact bits."""
    if learned_tokenizer(model) is not None:
        return {"distortion"}
    if isinstance(model, BoundsImages):
        return {"distortion", "bound"}
    if states_bound(model):
        return {"bound"}
    return set()


def _fixed_sizes_differ(first: SavedModel, second: SavedModel) -> bool:
    """Whether both take images of one size only, and not of the same."""
    if first.kind == "tokenizer" or second.kind == "tokenizer":
        return False
    return first.image_grid != second.image_grid


def _bits_refusal(first: SavedModel, second: SavedModel) -> str | None:
    """Why the bits of two models do not measure the same thing; None where they do."""
    for model in (first, second):
        if not isinstance(model, ScoresImages):
            return f"{NOUNS[model.kind]} gives no exact bits"
        if states_bound(model):
            return "a masked model gives a bound on its bits instead of exact ones"
    ours = learned_tokenizer(first)
    theirs = learned_tokenizer(second)
    if (ours is None) != (theirs is None):
        return "one gives the bits of pixels, the other those of codes"
    if ours is not None and theirs is not None and fingerprint(ours) != fingerprint(theirs):
        return "their tokenizers differ, and bits of different codes do not compare"
    # Both describe pixels, or codes of one tokenizer: what is left to differ are the grids.
    assert isinstance(first, ScoresImages)
    assert isinstance(second, ScoresImages)
    if first.grids != second.grids:
        return f"one models {grids_text(first.grids)}, the other {grids_text(second.grids)}"
    return None


def _conditions(first: Evaluation, second: Evaluation) -> str:
    """Which probabilities are compared, where they are not the same; else nothing."""
    one = first.figures.get("condition")
    other = second.figures.get("condition")
    # Scored with the null class is as good as without classes: both are p(image).
    if (one == "labels") == (other == "labels"):
        return ""
    return (
        f"the first is {CONDITIONS[one]}, the second {CONDITIONS[other]}; a class says something "
        "about its image, so part of the difference is the class and not the model"
    )


def _same_codes(first: SavedModel, second: SavedModel) -> bool:
    """Whether both describe the codes of one tokenizer."""
    ours = learned_tokenizer(first)
    theirs = learned_tokenizer(second)
    if ours is None or theirs is None:
        return False
    return fingerprint(ours) == fingerprint(theirs)

"""Two models on the same images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tessella.errors import InputError
from tessella.evaluation.measurement import Evaluation, per_image
from tessella.evaluation.metrics import standard_error
from tessella.pipeline import Generator, fingerprint
from tessella.tokenizers import Tokenizer
from tessella.vae import VAE


def compare(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    """Two models on the same images: the mean of the difference of each image, and its standard
    error.

    What varies from image to image is shared by both models and cancels, so the error of the
    difference is much smaller than that of either figure.

    Returns:
        Of ``bits_per_dim`` (per code, of two-stage models), ``psnr_db``, ``ssim``, ``mse``, those
        that both have: ``first``, ``second``, ``difference`` (first minus second) and
        ``difference_se``. ``bits`` says why bits are left out, where they are.

    Raises:
        InputError: when the images are not the same, or the models have nothing in common that can
            be compared.
    """
    if not np.array_equal(first.measured.hashes, second.measured.hashes):
        raise InputError(
            "a comparison needs the same images in the same order: these two evaluations have others"
        )
    refusal = check_comparable(first.model, second.model)
    one, two = (per_image(part.model, part.measured) for part in (first, second))
    left_out = {"nats", "bits"} | ({"bits_per_dim"} if refusal else set())
    result: dict[str, Any] = {"images": len(first.measured)}
    for name in [name for name in one if name in two and name not in left_out]:
        difference = one[name] - two[name]
        if not bool(torch.isfinite(difference).all()):  # the PSNR of a perfect reconstruction
            continue
        result[name] = {
            "first": float(one[name].mean()),
            "second": float(two[name].mean()),
            "difference": float(difference.mean()),
            "difference_se": standard_error(difference),
        }
    return result | ({"bits": refusal} if refusal else {})


def check_comparable(
    first: Generator | Tokenizer | VAE, second: Generator | Tokenizer | VAE
) -> str | None:
    """Why the bits of two models do not compare, so that only distortion is compared; None where
    they do.

    Raises:
        InputError: when nothing of them can be compared.
    """
    refusal = _incomparable(first, second)
    pixels = [(m.tokenizer if isinstance(m, Generator) else m).of_pixels for m in (first, second)]
    if refusal and any(pixels):
        raise InputError(f"these models cannot be compared: {refusal}")
    return refusal


def _incomparable(
    first: Generator | Tokenizer | VAE, second: Generator | Tokenizer | VAE
) -> str | None:
    """Why the bits of two models do not measure the same thing; None where they do."""
    if not isinstance(first, Generator) or not isinstance(second, Generator):
        return "a tokenizer alone gives no bits"
    if first.two_stage != second.two_stage:
        return "one gives the bits of pixels, the other those of codes"
    if first.two_stage and fingerprint(first.tokenizer) != fingerprint(second.tokenizer):
        return "their tokenizers differ, and bits of different codes do not compare"
    one, other = (
        " and ".join(str(prior.grid) for prior in part.priors) for part in (first, second)
    )
    if one != other:
        return f"one models {one}, the other {other}"
    return None

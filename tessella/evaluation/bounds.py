"""One currency: bits per sub-pixel of images, exact or at most, whatever the model.

Of a two-stage model whose tokenizer states the likelihood of pixels, and of a VAE, the bits of an
image are bounded from above: by ``-log2 p(codes) - log2 p(x | codes)`` at the codes of the encoder,
and by the importance-weighted bound.
"""

from __future__ import annotations

from typing import Any

import torch

from tessella.evaluation.measurement import Measured
from tessella.evaluation.metrics import psnr, standard_error
from tessella.grid import LN2
from tessella.pipeline import Generator
from tessella.tokenizers import Tokenizer
from tessella.vae import SAMPLES, VAE


def bound_figures(
    model: Generator | Tokenizer | VAE, measured: Measured, symbols: int
) -> dict[str, Any]:
    """``bound_bits_per_dim`` and its parts, of the models that have a bound; of a VAE also what its
    reconstructions are worth.

    ``pixel_bits_per_dim`` are the bits of the pixels given their codes, ``code_bits_per_dim`` those
    of the codes; all per sub-pixel of the image. ``bound_samples`` is the number of samples of the
    latents of each image.

    Args:
        symbols: sub-pixels of an image.
    """
    figures: dict[str, Any] = {}
    if isinstance(model, VAE):
        figures |= _told("bound", measured.values["nats"] / symbols)
        figures |= {"bound_samples": SAMPLES, "scored_grid": str(model.grid)}
        decibels = psnr(measured.values["mse"])
        if bool(torch.isfinite(decibels).all()):
            figures |= {"psnr_db": float(decibels.mean()), "psnr_db_se": standard_error(decibels)}
        figures |= {
            "ssim": float(measured.values["ssim"].mean()),
            "mse": float(measured.values["mse"].mean()),
        }
        if "baseline_nats" in measured.values:
            figures["baseline_bits_per_dim"] = model.grid.bits_per_dim(
                float(measured.values["baseline_nats"].mean())
            )
    elif "pixel_nats" in measured.values:
        pixels = measured.values["pixel_nats"] / symbols
        figures |= _told("pixel", pixels)
        if isinstance(model, Generator):
            codes = measured.values["nats"] / symbols
            figures |= _told("code", codes) | _told("bound", pixels + codes)
    return figures


def _told(name: str, nats: torch.Tensor) -> dict[str, float]:
    """Mean and standard error of nats per sub-pixel, in bits."""
    bits = f"{name}_bits_per_dim"
    return {bits: float(nats.mean()) / LN2, f"{bits}_se": standard_error(nats) / LN2}

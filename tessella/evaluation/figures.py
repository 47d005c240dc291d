"""Figures of all images, made of what was measured of each."""

from __future__ import annotations

from typing import Any

import torch

from tessella.evaluation.measurement import Measured
from tessella.evaluation.metrics import psnr, standard_error
from tessella.grid import LN2
from tessella.pipeline import Generator
from tessella.tokenizers.quantizers import CodeUsage


def bit_figures(generator: Generator, measured: Measured, conditional: bool) -> dict[str, Any]:
    """What the symbols cost."""
    nats = measured.values["nats"]
    mean, error = float(nats.mean()), standard_error(nats)
    to_bits, image = 1 / (LN2 * generator.symbols), generator.image_grid
    figures: dict[str, Any] = {
        "bits_per_dim": mean * to_bits,
        "bits_per_dim_se": error * to_bits,
        "nats_per_image": mean,
        "nats_per_image_se": error,
        "scored_grid": " and ".join(str(prior.grid) for prior in generator.priors),
    }
    if generator.classes:
        figures["condition"] = "labels" if conditional else "null class"
    if generator.two_stage:
        figures |= {
            "bits_per_code": figures["bits_per_dim"],
            "bits_per_code_se": figures["bits_per_dim_se"],
            "bits_per_image": mean / LN2,
            "bits_per_image_se": error / LN2,
            "bits_per_image_dim": image.bits_per_dim(mean),
            "bits_per_image_dim_se": image.bits_per_dim(error),
        }
    if len(generator.priors) > 1:
        of_grids = [
            float(measured.values[f"nats_{level}"].mean()) for level in range(len(generator.priors))
        ]
        pairs = zip(generator.priors, of_grids, strict=True)
        figures["bits_per_code_of_grids"] = [prior.grid.bits_per_dim(nats) for prior, nats in pairs]
    if "baseline_nats" in measured.values:
        figures["baseline_bits_per_dim"] = float(measured.values["baseline_nats"].mean()) * to_bits
    return figures


def reconstruction_figures(measured: Measured) -> dict[str, Any]:
    """How good reconstructions are, and how the codes are used: of several codebooks, a list
    each."""
    mse, structure = measured.values["mse"], measured.values["ssim"]
    decibels = psnr(mse)
    finite = bool(torch.isfinite(decibels).all())
    books = [_usage(counts) for counts in measured.counts]
    figures: dict[str, Any] = {
        "mse": float(mse.mean()),
        "mse_se": standard_error(mse),
        "psnr_db": float(decibels.mean()) if finite else None,
        "psnr_db_se": standard_error(decibels) if finite else None,
        "ssim": float(structure.mean()),
        "ssim_se": standard_error(structure),
        "codebook_size": _one([len(book.counts) for book in books]),
        "codebook_used": _one([book.used for book in books]),
        "code_perplexity": _one([book.perplexity for book in books]),
        "code_entropy_bits": _one([book.entropy_bits for book in books]),
    }
    if "mean_image_mse" in measured.values:
        figures["mean_image_psnr_db"] = float(psnr(measured.values["mean_image_mse"]).mean())
    return figures


def _usage(counts: torch.Tensor) -> CodeUsage:
    usage = CodeUsage(len(counts))
    usage.counts = counts
    return usage


def _one(values: list[Any]) -> Any:
    """The value of the one codebook there is, or those of all."""
    return values[0] if len(values) == 1 else values

"""One currency: bits per sub-pixel of images, exact or at most, whatever the model.

Of a two-stage model whose tokenizer states the likelihood of pixels, the bits of an image are
bounded from above by ``-log2 p(codes) - log2 p(x | codes)`` at the codes of the encoder; of a VAE
by the importance-weighted bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tessella.data.hashes import image_hashes
from tessella.evaluation.aspect import Aspect, ImageBatch, Measured, Values
from tessella.evaluation.code_length import baseline_nats
from tessella.evaluation.metrics import mean_squared_error, psnr, ssim, standard_error
from tessella.evaluation.reconstruction import reconstruction_columns
from tessella.files import JSONValue
from tessella.grid import LN2, Grid
from tessella.models import DensityModel
from tessella.pipeline import BoundsImages, SavedModel
from tessella.vae import SAMPLES


class LatentBound(Aspect):
    """The bound of a VAE, and what its reconstructions are worth.

    Args:
        model: states the bound.
        grid: the pixels that the bound is about.
        baseline: independent pixels, to compare with; empty where there are none.
    """

    def __init__(
        self, model: BoundsImages, grid: Grid, baseline: Sequence[DensityModel] = ()
    ) -> None:
        # The reconstruction is measured here too: a VAE has no codes to measure it with.
        self.model = model
        self.grid = grid
        self.baseline = baseline

    def values(self, batch: ImageBatch) -> dict[str, torch.Tensor]:
        images = batch.images
        # The noise of an image is seeded by its pixels, so that it is the same in any batch.
        seeds = image_hashes(images.numpy()) >> np.uint64(1)
        bounds = []
        for place, seed in enumerate(seeds):
            bounds.append(self.model.bound(images[place : place + 1], seed=int(seed)))
        # Through the means, without noise.
        back = self.model.reconstruct(images).cpu()
        values = {
            "nats": -torch.cat(bounds),
            "mse": mean_squared_error(images, back),
            "ssim": ssim(images, back),
        }
        if self.baseline:
            values["baseline_nats"] = baseline_nats(self.baseline[:1], batch)
        return values

    def columns(self, values: Values) -> dict[str, torch.Tensor]:
        # Minus a lower bound of log p is an upper bound of the bits.
        bound = values["nats"] / LN2 / self.grid.symbols
        return {"bound_bits_per_dim": bound, **reconstruction_columns(values)}

    def figures(self, measured: Measured) -> dict[str, JSONValue]:
        values = measured.values
        figures = _bits_with_error("bound", values["nats"] / self.grid.symbols)
        figures["bound_samples"] = SAMPLES
        figures["scored_grid"] = str(self.grid)
        decibels = psnr(values["mse"])
        # One perfect reconstruction makes the mean infinite.
        if bool(torch.isfinite(decibels).all()):
            figures["psnr_db"] = float(decibels.mean())
            figures["psnr_db_se"] = standard_error(decibels)
        figures["ssim"] = float(values["ssim"].mean())
        figures["mse"] = float(values["mse"].mean())
        if "baseline_nats" in values:
            baseline = float(values["baseline_nats"].mean())
            figures["baseline_bits_per_dim"] = self.grid.bits_per_dim(baseline)
        return figures


def latent_bound_of(model: SavedModel, baseline: Sequence[DensityModel] = ()) -> LatentBound | None:
    """The bound of a model that has one by itself, which is a VAE; None of others."""
    if not isinstance(model, BoundsImages):
        return None
    return LatentBound(model, model.tokenizer.grid(), baseline)


def pixel_bounds(measured: Measured, sub_pixels: int) -> dict[str, JSONValue]:
    """Bits of the pixels around their codes, where a tokenizer states their likelihood.

    Args:
        measured: of each image; ``pixel_nats`` given the codes, and ``nats`` of the codes.
        sub_pixels: of an image.

    Returns:
        ``pixel_bits_per_dim``, the bits of the pixels given their codes; where a prior gives
        ``code_bits_per_dim``, those of the codes, also ``bound_bits_per_dim``, their sum. All are
        per sub-pixel of the image, with standard errors.
    """
    # Only tokenizers that were trained with a likelihood state one.
    if "pixel_nats" not in measured.values:
        return {}
    pixels = measured.values["pixel_nats"] / sub_pixels
    figures = _bits_with_error("pixel", pixels)
    if "nats" in measured.values:
        # -log p(x) <= -log p(codes) - log p(x | codes), at any codes.
        codes = measured.values["nats"] / sub_pixels
        figures |= _bits_with_error("code", codes)
        figures |= _bits_with_error("bound", pixels + codes)
    return figures


def _bits_with_error(name: str, nats: torch.Tensor) -> dict[str, JSONValue]:
    """Mean and standard error of nats per sub-pixel, in bits."""
    bits = f"{name}_bits_per_dim"
    return {bits: float(nats.mean()) / LN2, f"{bits}_se": standard_error(nats) / LN2}

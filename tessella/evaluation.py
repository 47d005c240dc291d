"""Numbers one can quote: exact bits/dim, reconstruction quality, codebook use; each with what it was measured on.

Standard errors are the standard deviation over images (n - 1) divided by the square root of their number.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tessella import data, files
from tessella.config import DataConfig, from_dict
from tessella.errors import DataError, InputError
from tessella.grid import LN2
from tessella.models import DensityModel
from tessella.pipeline import Generator, load, load_model, locate, pixel_generator, read_config
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.base import check_images
from tessella.tokenizers.quantizers import CodeUsage

BATCH = 64
"""Images scored at a time unless told otherwise."""


def evaluate(
    run: Path | str | Generator | DensityModel | Tokenizer,
    images: Any = None,
    labels: Any = None,
    batch: int = BATCH,
    split: str = "test",
    model: Any = None,
) -> dict[str, Any]:
    """Measure a model on images.

    Args:
        run: a run directory, the name of a bundled model, or a model.
        images: ``uint8 [n, height, width, channels]``; without them, ``split`` of the data the run was trained on.
        labels: class of each image ``[n]``, for a model with classes; without them it is scored with the null class.
        batch: images at a time.
        split: which split to read where ``images`` are not given.
        model: the model of the run, where it is loaded already.

    Returns:
        Plain values. Of a density model on pixels: ``bits_per_dim`` (exact, over the symbols of the image at the
        model's levels), ``bits_per_dim_se``, ``nats_per_image``, ``nats_per_image_se``, ``images``, and
        ``baseline_bits_per_dim`` of independent pixels where the run keeps them. Of a tokenizer: ``psnr_db``,
        ``ssim``, ``mse`` (0..255 squared), their standard errors, ``codebook_used``, ``code_perplexity``. Of a
        two-stage model both, where ``bits_per_dim`` is per code, and ``bits_per_image`` and ``bits_per_image_dim``
        tell the same cost by image. ``data`` says which images.

    Raises:
        InputError, DataError, ArtifactError: for images, data or a run that do not fit.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch must be a positive integer, got {batch!r}")
    path = locate(run) if isinstance(run, (str, Path)) else None
    if model is None:
        model = load(path) if path is not None else run
    if isinstance(model, DensityModel):
        model = pixel_generator(model)
    if images is None:
        images, labels, identity = _own_data(path, split)
    else:
        identity = {"count": len(images), "sha256": _hash(images)}
    figures: dict[str, Any] = {"images": len(images)}
    if isinstance(model, Generator):
        figures |= bits(model, images, labels, batch, path)
    tokenizer = model.tokenizer if isinstance(model, Generator) else model
    if not tokenizer.of_pixels:
        figures |= reconstruction(tokenizer, images, batch, path)
    return figures | {"data": identity}


def bits(
    generator: Generator, images: Any, labels: Any = None, batch: int = BATCH, run: Path | None = None
) -> dict[str, Any]:
    """Exact code length of images under a generator; see :func:`evaluate`."""
    cond = None if labels is None or not generator.prior.classes else torch.as_tensor(labels)
    nats = score(generator, images, cond, batch)
    grid, image = generator.prior.grid, generator.image_grid
    figures = {
        "bits_per_dim": float(grid.bits_per_dim(nats.mean())),
        "bits_per_dim_se": grid.bits_per_dim(standard_error(nats)),
        "nats_per_image": float(nats.mean()),
        "nats_per_image_se": standard_error(nats),
        "scored_grid": str(grid),
    }
    if generator.prior.classes:
        figures["condition"] = "null class" if cond is None else "labels"
    if generator.two_stage:
        figures["bits_per_code"] = figures["bits_per_dim"]
        figures["bits_per_image"] = float(nats.mean() / LN2)
        figures["bits_per_image_dim"] = float(image.bits_per_dim(nats.mean()))
    baseline = _baseline(run)
    if baseline is not None:
        independent = score(Generator(generator.tokenizer, baseline), images, None, batch)
        figures["baseline_bits_per_dim"] = float(grid.bits_per_dim(independent.mean()))
    return figures


def _baseline(run: Path | None) -> DensityModel | None:
    """The independent pixels or codes kept with a run, if it keeps them."""
    if run is not None and (run / "baseline" / "config.json").exists():
        baseline = load_model(run / "baseline")
        assert isinstance(baseline, DensityModel)
        return baseline
    return None


@torch.no_grad()
def score(generator: Generator, images: Any, cond: torch.Tensor | None = None, batch: int = BATCH) -> torch.Tensor:
    """Minus the log-probability of each image's symbols, in nats: float64 ``[n]`` on the CPU."""
    if not len(images):
        raise InputError("there are no images to score")
    parts = []
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        parts.append(-generator.log_prob(images[part], None if cond is None else cond[part]).cpu().double())
    return torch.cat(parts)


def reconstruction(tokenizer: Tokenizer, images: Any, batch: int = BATCH, run: Path | None = None) -> dict[str, Any]:
    """How well images survive a tokenizer, and how much of its codebook they use; see :func:`evaluate`."""
    images = check_images(images, tokenizer.channels)
    if not len(images):
        raise InputError("there are no images to reconstruct")
    usage = CodeUsage(tokenizer.grid().levels)
    errors, similar = [], []
    for part in images.split(batch):
        symbols = tokenizer.encode(part)
        usage.update(symbols)
        back = tokenizer.decode(symbols, (part.shape[1], part.shape[2])).cpu()
        errors.append(mean_squared_error(part, back))
        similar.append(ssim(part, back))
    mse, structure = torch.cat(errors), torch.cat(similar)
    figures = _reconstruction_figures(mse, structure) | {
        "codebook_size": tokenizer.grid().levels,
        "codebook_used": usage.used,
        "code_perplexity": usage.perplexity,
        "code_entropy_bits": usage.entropy_bits,
    }
    if run is not None and (run / "baseline" / "mean.safetensors").exists():
        mean = files.read_tensors(run / "baseline" / "mean.safetensors")["mean"]
        if mean.shape == images.shape[1:]:
            flat = mean.round().to(torch.uint8).expand(images.shape)
            figures["mean_image_psnr_db"] = float(psnr(mean_squared_error(images, flat)).mean())
    return figures


def _reconstruction_figures(mse: torch.Tensor, structure: torch.Tensor) -> dict[str, Any]:
    decibels = psnr(mse)
    finite = bool(torch.isfinite(decibels).all())
    return {
        "mse": float(mse.mean()),
        "mse_se": standard_error(mse),
        "psnr_db": float(decibels.mean()) if finite else None,
        "psnr_db_se": standard_error(decibels) if finite else None,
        "ssim": float(structure.mean()),
        "ssim_se": standard_error(structure),
    }


def standard_error(values: torch.Tensor) -> float:
    """Standard error of the mean of ``values [n]``; NaN for a single one."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def mean_squared_error(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image on the scale 0..255: uint8 ``[n, h, w, c]`` twice to float64 ``[n]``."""
    return (images.double() - others.double()).square().flatten(1).mean(1)


def psnr(mse: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of errors on the scale 0..255; infinite at 0."""
    return 10 * torch.log10(255.0**2 / mse)


def ssim(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image (Wang et al. 2004): uint8 ``[n, h, w, c]`` twice to float64 ``[n]``.

    Gaussian window of standard deviation 1.5 and side min(11, largest odd number the image holds), constants 0.01 and
    0.03 of the range 255, over the places where the window fits, averaged over places and channels.
    """
    n, height, width, channels = images.shape
    side = min(11, min(height, width) - (min(height, width) + 1) % 2)
    at = torch.arange(side, dtype=torch.float64) - side // 2
    window = torch.exp(-(at**2) / (2 * 1.5**2))
    kernel = torch.outer(window, window).div(window.sum() ** 2)[None, None]
    x, y = (part.double().movedim(-1, 1).reshape(n * channels, 1, height, width) for part in (images, others))
    mean_x, mean_y, xx, yy, xy = (F.conv2d(part, kernel) for part in (x, y, x * x, y * y, x * y))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return (luminance * structure).view(n, -1).mean(1)


def _own_data(path: Path | None, split: str) -> tuple[np.ndarray, np.ndarray | None, Mapping[str, Any]]:
    if path is None:
        raise InputError("give the images to evaluate on: evaluate(model, images)")
    loaded = data.load(as_scored(data_config(path)), split)
    return loaded.images, loaded.labels, loaded.identity()


def as_scored(config: DataConfig) -> DataConfig:
    """The data as it is scored: what training draws anew each epoch is drawn once."""
    return replace(config, binarize="fixed") if config.binarize == "dynamic" else config


def data_config(path: Path) -> DataConfig:
    """The data source that a run was trained on.

    Raises:
        DataError: when the directory does not say.
    """
    read_config(path)
    if not (path / "run.json").exists():
        raise DataError(f"{path} does not say what data it was trained on: name some with --data")
    recipe = files.read_json(path / "run.json").get("recipe")
    if not recipe or not recipe.get("data"):
        raise DataError(f"{path} was trained on arrays: name data to evaluate on with --data")
    config: DataConfig = from_dict(DataConfig, recipe["data"], "data")
    return config


def _hash(images: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(np.asarray(images)).tobytes()).hexdigest()

"""What is measured of each image, by any number of processes, each image exactly once."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm  # type: ignore[import-untyped]

from tessella import files
from tessella.data.hashes import image_hashes
from tessella.data.image_set import ImageSet
from tessella.data.paths import printable
from tessella.evaluation.metrics import mean_squared_error, psnr, ssim
from tessella.grid import LN2
from tessella.models import DensityModel, Hierarchy
from tessella.pipeline import Generator, load_model
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.quantizers import CodeUsage
from tessella.tokenizers.reconstruction import ReconstructingTokenizer
from tessella.tokenizers.tokenizer import channels, check_images, parts
from tessella.vae import VAE


@dataclass(frozen=True)
class Measured:
    """What was measured of each image, in the order of the images.

    Args:
        hashes, mirrored: of the pixels of each image, and of its mirror image: uint64 ``[n]``.
        values: float64 ``[n]`` each: ``nats`` (minus the log-probability of the symbols; of several
            grids also ``nats_0``, ``nats_1``, coarse to fine), ``baseline_nats`` (under independent
            symbols), ``mse`` (0..255 squared), ``ssim``, ``mean_image_mse``, ``pixel_nats`` (minus
            the log-likelihood of the pixels given their codes); those the model has. ``nats`` of a
            VAE are minus its bound.
        counts: how often each code was used, int64 ``[levels]``, for each channel of each grid,
            coarse to fine; none for pixel models.
    """

    hashes: np.ndarray
    mirrored: np.ndarray
    values: Mapping[str, torch.Tensor]
    counts: tuple[torch.Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True)
class Evaluation:
    """A model measured on images.

    Args:
        model: a generator, a tokenizer or a VAE.
        images: what it was measured on.
        measured: of each image.
        seen: whether the run was trained on the very same pixels, bool ``[n]``; None where that is
            unknown.
        figures: of all, as :func:`evaluate` returns them.
    """

    model: Generator | Tokenizer | VAE
    images: ImageSet
    measured: Measured
    seen: np.ndarray | None
    figures: dict[str, Any]

    def table(self) -> str:
        """The values of each image, as comma-separated text.

        The columns are ``index``; ``name`` (of a file) and ``label`` where there are some; ``hash``
        (of the pixels); ``in_training`` (1 where the run's training images hold the same pixels,
        empty where that is unknown); ``nats``, ``bits`` and ``bits_per_dim`` of the symbols;
        ``mse``, ``psnr_db`` and ``ssim`` of the reconstruction.
        """
        columns: dict[str, Sequence[Any]] = {"index": range(len(self.measured))}
        if self.images.names is not None:
            columns["name"] = [printable(name) for name in self.images.names]
        if self.images.labels is not None:
            columns["label"] = [int(label) for label in self.images.labels]
        columns["hash"] = [f"{int(value):016x}" for value in self.measured.hashes]
        columns["in_training"] = (
            [""] * len(self.measured) if self.seen is None else [int(seen) for seen in self.seen]
        )
        columns |= {
            name: values.tolist() for name, values in per_image(self.model, self.measured).items()
        }
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()


@torch.no_grad()
def measure(
    model: Generator | Tokenizer | VAE,
    images: Any,
    labels: Any = None,
    batch: int = 64,
    run: Path | None = None,
) -> Measured:
    """Measure a model on each image; see :class:`Measured`.

    Args:
        images: ``uint8 [n, h, w, c]``: an array, a tensor, or anything that takes an index array.
        labels: class of each image, or None.
        batch: images at a time.
        run: the run directory, for what its figures are compared to.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)
    baseline, mean = _baseline(run), _mean_image(run)
    own = np.arange(rank, len(images), world)
    # Made at once: small results between large passing ones would keep the memory of those from
    # being given back.
    values: dict[str, torch.Tensor] = {}
    hashes, mirrored = np.empty(len(own), np.uint64), np.empty(len(own), np.uint64)
    tokenizer = _tokenizer(model)
    usage = (
        None
        if tokenizer.of_pixels
        else [CodeUsage(g.levels) for g in tokenizer.grids() for _ in range(g.channels)]
    )
    for start in _shown(range(0, len(own), batch)):
        here, places = slice(start, start + batch), own[start : start + batch]
        part = check_images(images[places], tokenizer.channels)
        cond = None if labels is None else torch.as_tensor(np.asarray(labels)[places])
        hashes[here], mirrored[here] = (
            image_hashes(part.numpy()),
            image_hashes(part.flip(2).numpy()),
        )
        for name, found in _of_batch(model, part, cond, baseline, mean, usage).items():
            values.setdefault(name, torch.empty(len(own), dtype=torch.float64))[here] = (
                found.cpu().double()
            )
    measured = Measured(hashes, mirrored, values, tuple(used.counts for used in usage or ()))
    return measured if world == 1 else _gathered(measured, len(images), world)


def per_image(model: Generator | Tokenizer | VAE, measured: Measured) -> dict[str, torch.Tensor]:
    """The values of each image that people quote, float64 ``[n]`` each, named with their unit."""
    values: dict[str, torch.Tensor] = {}
    if isinstance(model, Generator):
        nats = measured.values["nats"]
        values |= {"nats": nats, "bits": nats / LN2, "bits_per_dim": nats / LN2 / model.symbols}
    if isinstance(model, VAE):
        values["bound_bits_per_dim"] = measured.values["nats"] / LN2 / model.grid.symbols
    if "mse" in measured.values:
        mse = measured.values["mse"]
        values |= {"mse": mse, "psnr_db": psnr(mse), "ssim": measured.values["ssim"]}
    return values


def _of_batch(
    model: Generator | Tokenizer | VAE,
    images: torch.Tensor,
    cond: torch.Tensor | None,
    baseline: list[DensityModel],
    mean: torch.Tensor | None,
    usage: list[CodeUsage] | None,
) -> dict[str, torch.Tensor]:
    """The values of a batch of images."""
    values: dict[str, torch.Tensor] = {}
    tokenizer = _tokenizer(model)
    symbols = tokenizer.encode(images) if isinstance(model, VAE) else model.encode(images)
    if isinstance(model, VAE):
        values |= _of_vae(model, images, baseline, symbols)
    if isinstance(model, Generator):
        if isinstance(model.prior, Hierarchy):
            of_grids = [-nats for nats in model.prior.log_probs(symbols, cond)]
            values |= {f"nats_{level}": nats for level, nats in enumerate(of_grids)}
            values["nats"] = torch.stack(of_grids).sum(0)
        else:
            values["nats"] = -model.prior.log_prob(symbols.to(model.device), cond)
        if baseline:
            pairs = zip(baseline, parts(symbols), strict=True)
            values["baseline_nats"] = -torch.stack(
                [part.log_prob(codes.cpu()) for part, codes in pairs]
            ).sum(0)
    if usage is not None:
        for used, codes in zip(usage, channels(symbols), strict=True):
            used.update(codes)
        back = tokenizer.decode(symbols, (images.shape[1], images.shape[2])).cpu()
        values |= {"mse": mean_squared_error(images, back), "ssim": ssim(images, back)}
        if isinstance(tokenizer, ReconstructingTokenizer) and tokenizer.likelihood is not None:
            values["pixel_nats"] = -tokenizer.log_likelihood(images, symbols)
        if mean is not None and mean.shape == images.shape[1:]:
            values["mean_image_mse"] = mean_squared_error(
                images, mean.round().to(torch.uint8).expand(images.shape)
            )
    return values


def _of_vae(
    model: VAE, images: torch.Tensor, baseline: list[DensityModel], symbols: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The values of a batch under a VAE. Noise is that of the pixels' hash, whatever the batch."""
    seeds = image_hashes(images.numpy()) >> np.uint64(1)
    bounds = [model.bound(images[i : i + 1], seed=int(seed)) for i, seed in enumerate(seeds)]
    back = model.reconstruct(images).cpu()
    values = {
        "nats": -torch.cat(bounds),
        "mse": mean_squared_error(images, back),
        "ssim": ssim(images, back),
    }
    return values | ({"baseline_nats": -baseline[0].log_prob(symbols.cpu())} if baseline else {})


def _tokenizer(model: Generator | Tokenizer | VAE) -> Tokenizer:
    """What makes symbols of images."""
    if isinstance(model, VAE):
        return model.pixels
    return model.tokenizer if isinstance(model, Generator) else model


def _gathered(measured: Measured, n: int, world: int) -> Measured:
    """What all processes measured: process r had the images r, r + world, and so on."""
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, measured)
    gathered = [part for part in gathered if len(part)]
    hashes, mirrored = np.empty(n, np.uint64), np.empty(n, np.uint64)
    values = {name: torch.empty(n, dtype=torch.float64) for name in gathered[0].values}
    for rank, part in enumerate(gathered):
        hashes[rank::world], mirrored[rank::world] = part.hashes, part.mirrored
        for name, whole in values.items():
            whole[rank::world] = part.values[name]
    counts = tuple(
        torch.stack(books).sum(0) for books in zip(*(part.counts for part in gathered), strict=True)
    )
    return Measured(hashes, mirrored, values, counts)


def _baseline(run: Path | None) -> list[DensityModel]:
    """The independent pixels or codes of each grid kept with a run, if it keeps them."""
    folder = None if run is None else run / "baseline"
    if folder is None:
        return []
    places = [folder] if (folder / "config.json").exists() else sorted(folder.glob("grid-*"))
    baselines = [load_model(place) for place in places]
    return [baseline for baseline in baselines if isinstance(baseline, DensityModel)]


def _mean_image(run: Path | None) -> torch.Tensor | None:
    path = None if run is None else run / "baseline" / "mean.safetensors"
    return files.read_tensors(path)["mean"] if path is not None and path.exists() else None


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _shown(starts: range) -> Iterator[int]:
    """Where the batches start, with a progress bar for people."""
    hidden = not sys.stderr.isatty() or (_distributed() and dist.get_rank() > 0)
    yield from tqdm(starts, desc="measuring", unit="batch", leave=False, disable=hidden)

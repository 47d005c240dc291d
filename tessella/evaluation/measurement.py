"""Numbers of each image, taken by any number of processes, each image exactly once."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist

from tessella import files, progress_bars
from tessella.data.hashes import image_hashes
from tessella.data.image_set import ImageSet
from tessella.data.paths import printable
from tessella.errors import ArtifactError
from tessella.evaluation.aspect import Aspect, ImageBatch, Measured
from tessella.evaluation.bounds import latent_bound_of
from tessella.evaluation.code_length import code_length_of
from tessella.evaluation.reconstruction import reconstruction_of
from tessella.evaluation.symbol_bound import symbol_bound_of
from tessella.models import DensityModel
from tessella.pipeline import SavedModel, load_model
from tessella.tokenizers.tokenizer import check_images


@runtime_checkable
class IndexedImages(Protocol):
    """Images ``uint8 [n, h, w, c]``: an array, a tensor, or a file that is read piece by piece."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: np.ndarray, /) -> np.ndarray | torch.Tensor: ...


@dataclass(frozen=True)
class Evaluation:
    """A model measured on images.

    Args:
        model: any model that a run can hold.
        images: the images that it was measured on.
        measured: numbers of each image.
        seen: whether the run was trained on the very same pixels, bool ``[n]``; None where that is
            unknown.
        figures: of all images, as :func:`evaluate` returns them.
    """

    model: SavedModel
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
        columns: dict[str, Iterable[object]] = {"index": range(len(self.measured))}
        if self.images.names is not None:
            columns["name"] = map(printable, self.images.names)
        if self.images.labels is not None:
            columns["label"] = np.asarray(self.images.labels).tolist()
        # Hexadecimal: no program that reads tables takes it for a number to round.
        columns["hash"] = [f"{int(value):016x}" for value in self.measured.hashes]
        if self.seen is None:
            columns["in_training"] = [""] * len(self.measured)
        else:
            columns["in_training"] = self.seen.astype(int).tolist()
        for name, values in per_image(self.model, self.measured).items():
            columns[name] = values.tolist()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()


def aspects_of(
    model: SavedModel, run: Path | None = None, tokenizer_steps: int | None = None
) -> list[Aspect]:
    """The aspects of a model that can be measured, which follow from its capabilities.

    Args:
        model: any model that a run can hold.
        run: the run directory, for what its figures are compared to.
        tokenizer_steps: training steps of the tokenizer; None where they are unknown.
    """
    baseline = _baseline(run)
    # Order decides the order of columns and figures.
    candidates = (
        code_length_of(model, baseline),
        reconstruction_of(model, _mean_image(run), tokenizer_steps),
        latent_bound_of(model, baseline),
        symbol_bound_of(model, baseline),
    )
    return [aspect for aspect in candidates if aspect is not None]


@torch.no_grad()
def measure(
    model: SavedModel,
    images: IndexedImages,
    labels: object = None,
    batch: int = 64,
    run: Path | None = None,
) -> Measured:
    """Measure a model on each image; see :class:`Measured`.

    Args:
        model: any model that a run can hold.
        images: ``uint8 [n, h, w, c]``: an array, a tensor, or anything that takes an index array.
        labels: class of each image, or None.
        batch: images at a time.
        run: the run directory, for what its figures are compared to.
    """
    rank, world = _process()
    aspects = aspects_of(model, run)
    # Every process takes each world-th image, so that all are busy whatever the order.
    places = np.arange(rank, len(images), world)
    # Memory for all results at once: small tensors between the large passing ones of batches would
    # keep the memory of those from being given back.
    hashes = np.empty(len(places), np.uint64)
    mirrored = np.empty(len(places), np.uint64)
    values: dict[str, torch.Tensor] = {}
    for start in _with_progress(range(0, len(places), batch)):
        rows = slice(start, start + batch)
        here = places[rows]
        part = check_images(images[here], model.tokenizer.channels)
        # Of the pixels as given, before any tokenizer.
        hashes[rows] = image_hashes(part.numpy())
        mirrored[rows] = image_hashes(part.flip(2).numpy())
        cond = None
        if labels is not None:
            cond = torch.as_tensor(np.asarray(labels)[here])
        together = ImageBatch(part, model.tokenizer.encode(part), cond)
        for aspect in aspects:
            for name, found in aspect.values(together).items():
                if name not in values:
                    values[name] = torch.empty(len(places), dtype=torch.float64)
                values[name][rows] = found.cpu().double()
    # Codes are counted over all batches, not for each image.
    counts: tuple[torch.Tensor, ...] = ()
    for aspect in aspects:
        counts += aspect.counts()
    measured = Measured(hashes, mirrored, values, counts, labels is not None)
    if world == 1:
        return measured
    return _gathered(measured, len(images), world)


def per_image(model: SavedModel, measured: Measured) -> dict[str, torch.Tensor]:
    """The values of each image that people quote, float64 ``[n]`` each, named with their unit."""
    columns: dict[str, torch.Tensor] = {}
    for aspect in aspects_of(model):
        columns |= aspect.columns(measured.values)
    return columns


def _gathered(measured: Measured, n: int, world: int) -> Measured:
    """The measurements of all processes; process r had the images r, r + world, and so on."""
    # Each process fills its place.
    gathered = [measured] * world
    dist.all_gather_object(gathered, measured)
    # A process may have had no image at all.
    parts = [part for part in gathered if len(part)]
    hashes = np.empty(n, np.uint64)
    mirrored = np.empty(n, np.uint64)
    values: dict[str, torch.Tensor] = {}
    for name in parts[0].values:
        values[name] = torch.empty(n, dtype=torch.float64)
    # Interleave again: process r had every world-th image from r on.
    for rank, part in enumerate(parts):
        hashes[rank::world] = part.hashes
        mirrored[rank::world] = part.mirrored
        for name, whole in values.items():
            whole[rank::world] = part.values[name]
    # Counts of the processes add up, codebook by codebook: int64 [levels] each.
    counts = list(parts[0].counts)
    for part in parts[1:]:
        for book, more in enumerate(part.counts):
            counts[book] = counts[book] + more
    return Measured(hashes, mirrored, values, tuple(counts), measured.conditional)


def _baseline(run: Path | None) -> Sequence[DensityModel]:
    """The independent pixels or codes of each grid that a run keeps; empty where it keeps none."""
    if run is None:
        return []
    folder = run / "baseline"
    # One grid has its baseline in the folder itself, several have a folder each.
    places = sorted(folder.glob("grid-*"))
    if (folder / "config.json").exists():
        places = [folder]
    baselines = []
    for place in places:
        model = load_model(place)
        if not isinstance(model, DensityModel):
            raise ArtifactError(f"{place} must hold a density model, and holds another model")
        baselines.append(model)
    return baselines


def _mean_image(run: Path | None) -> torch.Tensor | None:
    """The mean of the training images that a run keeps, float ``[h, w, c]``."""
    if run is None or not (run / "baseline" / "mean.safetensors").exists():
        return None
    path = run / "baseline" / "mean.safetensors"
    tensors = files.read_tensors(path)
    mean = tensors.get("mean")
    if mean is None or mean.dim() != 3 or not mean.is_floating_point():
        raise ArtifactError(
            f"{path} must hold the mean image as a tensor of height, width, channels"
        )
    return mean


def _process() -> tuple[int, int]:
    """Rank of this process, and the number of processes that share the work."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _with_progress(starts: range) -> Iterator[int]:
    """Where the batches start, with a progress bar where a person watches."""
    rank, _ = _process()
    yield from progress_bars.create(
        iterable=starts, desc="measuring", unit="batch", leave=False, disable=rank > 0
    )

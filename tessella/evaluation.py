"""Numbers one can quote: exact bits/dim, reconstruction quality, codebook use; each with what it was measured on.

Everything is first measured of each image (:class:`Measured`), by any number of processes, each image exactly once; the
figures, the table of images and the comparison of two models are all made of that. Standard errors are the standard
deviation over images (n - 1) divided by the square root of their number.
"""

from __future__ import annotations

import csv
import hashlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm  # type: ignore[import-untyped]

from tessella import data, files
from tessella.config import DataConfig, from_dict
from tessella.data.files import printable
from tessella.data.hashes import image_hashes
from tessella.data.image_set import ImageSet
from tessella.data.store import StoredImages
from tessella.errors import DataError, InputError
from tessella.grid import LN2
from tessella.metrics import mean_squared_error, psnr, ssim, standard_error
from tessella.models import DensityModel
from tessella.pipeline import Generator, fingerprint, load, load_model, locate, pixel_generator, read_config
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.base import check_images
from tessella.tokenizers.quantizers import CodeUsage

BATCH = 64
"""Images scored at a time unless told otherwise."""

SHOWN = 20
"""Places of images that were trained on, which are told with the figures; the table of images has them all."""

SEEN = "images.safetensors"
"""In ``baseline/`` of a run: a 64-bit hash of every training image."""


@dataclass(frozen=True)
class Measured:
    """What was measured of each image, in the order of the images.

    Args:
        hashes, mirrored: of the pixels of each image, and of its mirror image: uint64 ``[n]``.
        values: float64 ``[n]`` each: ``nats`` (minus the log-probability of the symbols), ``baseline_nats`` (under
            independent symbols), ``mse`` (0..255 squared), ``ssim``, ``mean_image_mse``; those the model has.
        counts: how often each code was used, int64 ``[levels]``; None for pixel models.
    """

    hashes: np.ndarray
    mirrored: np.ndarray
    values: Mapping[str, torch.Tensor]
    counts: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True)
class Evaluation:
    """A model measured on images.

    Args:
        model: a generator or a tokenizer.
        images: what it was measured on.
        measured: of each image.
        seen: whether the run was trained on the very same pixels, bool ``[n]``; None where that is unknown.
        figures: of all, as :func:`evaluate` returns them.
    """

    model: Generator | Tokenizer
    images: ImageSet
    measured: Measured
    seen: np.ndarray | None
    figures: dict[str, Any]

    def table(self) -> str:
        """The values of each image, as comma-separated text.

        The columns are ``index``; ``name`` (of a file) and ``label`` where there are some; ``hash`` (of the pixels);
        ``in_training`` (1 where the run's training images hold the same pixels, empty where that is unknown);
        ``nats``, ``bits`` and ``bits_per_dim`` of the symbols; ``mse``, ``psnr_db`` and ``ssim`` of the
        reconstruction.
        """
        columns: dict[str, Sequence[Any]] = {"index": range(len(self.measured))}
        if self.images.names is not None:
            columns["name"] = [printable(name) for name in self.images.names]
        if self.images.labels is not None:
            columns["label"] = [int(label) for label in self.images.labels]
        columns["hash"] = [f"{int(value):016x}" for value in self.measured.hashes]
        columns["in_training"] = [""] * len(self.measured) if self.seen is None else [int(seen) for seen in self.seen]
        columns |= {name: values.tolist() for name, values in per_image(self.model, self.measured).items()}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()


def evaluate(
    run: Path | str | Generator | DensityModel | Tokenizer,
    images: Any = None,
    labels: Any = None,
    batch: int = BATCH,
    split: str = "test",
) -> dict[str, Any]:
    """Measure a model on images.

    Where several processes run (``torch.distributed``), they share the images, each image is measured once, and all
    return the figures of all images.

    Args:
        run: a run directory, the name of a bundled model, or a model.
        images: ``uint8 [n, height, width, channels]``, or an :class:`~tessella.data.ImageSet`; without them, ``split``
            of the data the run was trained on.
        labels: class of each image ``[n]``, for a model with classes (an image set brings its own); without them it is
            scored with the null class.
        batch: images at a time.
        split: which split to read where ``images`` are not given.

    Returns:
        Plain values. Of a density model on pixels: ``bits_per_dim`` (exact, over the symbols of the image at the
        model's levels), ``bits_per_dim_se``, ``nats_per_image``, ``nats_per_image_se``, ``images``, and
        ``baseline_bits_per_dim`` of independent pixels where the run keeps them. Of a tokenizer: ``psnr_db``,
        ``ssim``, ``mse`` (0..255 squared), their standard errors, ``codebook_used``, ``code_perplexity``. Of a
        two-stage model both, where ``bits_per_dim`` is per code, and ``bits_per_image`` and ``bits_per_image_dim``
        tell the same cost by image. ``weights`` says which model, ``data`` which images, and ``overlap`` how many of
        them are, pixel for pixel or mirrored, among the images the run was trained on (None where that is unknown).

    Raises:
        InputError, DataError, ArtifactError: for images, data or a run that do not fit.
    """
    return assess(run, images, labels, batch, split).figures


def assess(
    run: Path | str | Generator | DensityModel | Tokenizer,
    images: Any = None,
    labels: Any = None,
    batch: int = BATCH,
    split: str = "test",
    model: Generator | Tokenizer | None = None,
) -> Evaluation:
    """:func:`evaluate`, with the values of each image. ``model`` is that of the run, where it is loaded already."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch must be a positive integer, got {batch!r}")
    path = locate(run) if isinstance(run, (str, Path)) else None
    if model is None:
        given = load(run) if isinstance(run, (str, Path)) else run
        model = pixel_generator(given) if isinstance(given, DensityModel) else given
    chosen, identity = _images(path, images, labels, split)
    if not len(chosen):
        raise InputError("there are no images to evaluate")
    if isinstance(model, Generator) and model.prior.classes and labels is None:
        chosen = _with_classes_of(path, chosen)
    conditional = isinstance(model, Generator) and model.prior.classes > 0 and chosen.labels is not None
    measured = measure(model, chosen.images, chosen.labels if conditional else None, batch, path)
    figures: dict[str, Any] = {"images": len(chosen)}
    if isinstance(model, Generator):
        figures |= _bit_figures(model, measured, conditional)
    if measured.counts is not None:
        figures |= _reconstruction_figures(measured)
    seen, overlap = _overlap(path, measured)
    figures |= {"weights": fingerprint(model), "overlap": overlap, "data": identity}
    return Evaluation(model, chosen, measured, seen, figures)


@torch.no_grad()
def measure(
    model: Generator | Tokenizer, images: Any, labels: Any = None, batch: int = BATCH, run: Path | None = None
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
    # Made at once: small results between large passing ones would keep the memory of those from being given back.
    values: dict[str, torch.Tensor] = {}
    hashes, mirrored = np.empty(len(own), np.uint64), np.empty(len(own), np.uint64)
    tokenizer = model.tokenizer if isinstance(model, Generator) else model
    usage = None if tokenizer.of_pixels else CodeUsage(tokenizer.grid().levels)
    for start in _shown(range(0, len(own), batch)):
        here, places = slice(start, start + batch), own[start : start + batch]
        part = check_images(images[places], tokenizer.channels)
        cond = None if labels is None else torch.as_tensor(np.asarray(labels)[places])
        hashes[here], mirrored[here] = image_hashes(part.numpy()), image_hashes(part.flip(2).numpy())
        for name, found in _of_batch(model, part, cond, baseline, mean, usage).items():
            values.setdefault(name, torch.empty(len(own), dtype=torch.float64))[here] = found.cpu().double()
    measured = Measured(hashes, mirrored, values, None if usage is None else usage.counts)
    return measured if world == 1 else _gathered(measured, len(images), world)


def per_image(model: Generator | Tokenizer, measured: Measured) -> dict[str, torch.Tensor]:
    """The values of each image that people quote, float64 ``[n]`` each, named with their unit."""
    values: dict[str, torch.Tensor] = {}
    if isinstance(model, Generator):
        nats = measured.values["nats"]
        values |= {"nats": nats, "bits": nats / LN2, "bits_per_dim": nats / LN2 / model.prior.grid.symbols}
    if "mse" in measured.values:
        mse = measured.values["mse"]
        values |= {"mse": mse, "psnr_db": psnr(mse), "ssim": measured.values["ssim"]}
    return values


def compare(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    """Two models on the same images: the mean of the difference of each image, and its standard error.

    What varies from image to image is shared by both models and cancels, so the error of the difference is much smaller
    than that of either figure.

    Returns:
        Of ``bits_per_dim`` (per code, of two-stage models), ``psnr_db``, ``ssim``, ``mse``, those that both have:
        ``first``, ``second``, ``difference`` (first minus second) and ``difference_se``. ``bits`` says why bits are
        left out, where they are.

    Raises:
        InputError: when the images are not the same, or the models have nothing in common that can be compared.
    """
    if not np.array_equal(first.measured.hashes, second.measured.hashes):
        raise InputError("a comparison needs the same images in the same order: these two evaluations have others")
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


def check_comparable(first: Generator | Tokenizer, second: Generator | Tokenizer) -> str | None:
    """Why the bits of two models do not compare, so that only distortion is compared; None where they do.

    Raises:
        InputError: when nothing of them can be compared.
    """
    refusal = _incomparable(first, second)
    pixels = [(m.tokenizer if isinstance(m, Generator) else m).of_pixels for m in (first, second)]
    if refusal and any(pixels):
        raise InputError(f"these models cannot be compared: {refusal}")
    return refusal


def _incomparable(first: Generator | Tokenizer, second: Generator | Tokenizer) -> str | None:
    """Why the bits of two models do not measure the same thing; None where they do."""
    if not isinstance(first, Generator) or not isinstance(second, Generator):
        return "a tokenizer alone gives no bits"
    if first.two_stage != second.two_stage:
        return "one gives the bits of pixels, the other those of codes"
    if first.two_stage and fingerprint(first.tokenizer) != fingerprint(second.tokenizer):
        return "their tokenizers differ, and bits of different codes do not compare"
    if first.prior.grid != second.prior.grid:
        return f"one models {first.prior.grid}, the other {second.prior.grid}"
    return None


def _of_batch(
    model: Generator | Tokenizer,
    images: torch.Tensor,
    cond: torch.Tensor | None,
    baseline: DensityModel | None,
    mean: torch.Tensor | None,
    usage: CodeUsage | None,
) -> dict[str, torch.Tensor]:
    """The values of a batch of images."""
    values: dict[str, torch.Tensor] = {}
    tokenizer = model.tokenizer if isinstance(model, Generator) else model
    symbols = model.encode(images)
    if isinstance(model, Generator):
        values["nats"] = -model.prior.log_prob(symbols.to(model.prior.device), cond)
        if baseline is not None:
            values["baseline_nats"] = -baseline.log_prob(symbols.cpu())
    if usage is not None:
        usage.update(symbols)
        back = tokenizer.decode(symbols, (images.shape[1], images.shape[2])).cpu()
        values |= {"mse": mean_squared_error(images, back), "ssim": ssim(images, back)}
        if mean is not None and mean.shape == images.shape[1:]:
            values["mean_image_mse"] = mean_squared_error(images, mean.round().to(torch.uint8).expand(images.shape))
    return values


def _gathered(measured: Measured, n: int, world: int) -> Measured:
    """What all processes measured: process r had the images r, r + world, and so on."""
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, measured)
    parts = [part for part in parts if len(part)]
    hashes, mirrored = np.empty(n, np.uint64), np.empty(n, np.uint64)
    values = {name: torch.empty(n, dtype=torch.float64) for name in parts[0].values}
    for rank, part in enumerate(parts):
        hashes[rank::world], mirrored[rank::world] = part.hashes, part.mirrored
        for name, whole in values.items():
            whole[rank::world] = part.values[name]
    counts = None if measured.counts is None else torch.stack([part.counts for part in parts]).sum(0)
    return Measured(hashes, mirrored, values, counts)


def _bit_figures(generator: Generator, measured: Measured, conditional: bool) -> dict[str, Any]:
    nats = measured.values["nats"]
    mean, error = float(nats.mean()), standard_error(nats)
    grid, image = generator.prior.grid, generator.image_grid
    figures: dict[str, Any] = {
        "bits_per_dim": grid.bits_per_dim(mean),
        "bits_per_dim_se": grid.bits_per_dim(error),
        "nats_per_image": mean,
        "nats_per_image_se": error,
        "scored_grid": str(grid),
    }
    if generator.prior.classes:
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
    if "baseline_nats" in measured.values:
        figures["baseline_bits_per_dim"] = grid.bits_per_dim(float(measured.values["baseline_nats"].mean()))
    return figures


def _reconstruction_figures(measured: Measured) -> dict[str, Any]:
    assert measured.counts is not None
    mse, structure = measured.values["mse"], measured.values["ssim"]
    decibels = psnr(mse)
    finite = bool(torch.isfinite(decibels).all())
    usage = CodeUsage(len(measured.counts))
    usage.counts = measured.counts
    figures = {
        "mse": float(mse.mean()),
        "mse_se": standard_error(mse),
        "psnr_db": float(decibels.mean()) if finite else None,
        "psnr_db_se": standard_error(decibels) if finite else None,
        "ssim": float(structure.mean()),
        "ssim_se": standard_error(structure),
        "codebook_size": len(measured.counts),
        "codebook_used": usage.used,
        "code_perplexity": usage.perplexity,
        "code_entropy_bits": usage.entropy_bits,
    }
    if "mean_image_mse" in measured.values:
        figures["mean_image_psnr_db"] = float(psnr(measured.values["mean_image_mse"]).mean())
    return figures


def _baseline(run: Path | None) -> DensityModel | None:
    """The independent pixels or codes kept with a run, if it keeps them."""
    if run is not None and (run / "baseline" / "config.json").exists():
        baseline = load_model(run / "baseline")
        assert isinstance(baseline, DensityModel)
        return baseline
    return None


def _mean_image(run: Path | None) -> torch.Tensor | None:
    path = None if run is None else run / "baseline" / "mean.safetensors"
    return files.read_tensors(path)["mean"] if path is not None and path.exists() else None


def save_seen(out: Path, hashes: np.ndarray) -> None:
    """Keep with a run which images it is trained on, for :func:`evaluate` to find them again.

    Args:
        out: the run directory.
        hashes: of the training images, uint64 ``[n]``.
    """
    files.write_tensors(out / "baseline" / SEEN, {"hashes": torch.from_numpy(np.sort(hashes).view(np.int64))})


def trained_on(run: Path | str) -> np.ndarray | None:
    """The hashes of the images that a run was trained on, uint64 ``[n]``; None where it does not say."""
    path = locate(run) / "baseline" / SEEN
    return files.read_tensors(path)["hashes"].numpy().view(np.uint64) if path.exists() else None


def _overlap(run: Path | None, measured: Measured) -> tuple[np.ndarray | None, dict[str, Any] | None]:
    """Which of the images are among those that the run was trained on, bool ``[n]``, and the figures of it."""
    trained = None if run is None else trained_on(run)
    if trained is None:
        return None, None
    identical = np.isin(measured.hashes, trained)
    mirrored = np.isin(measured.mirrored, trained) & ~identical
    first = np.flatnonzero(identical)[:SHOWN].tolist()
    return identical, {"identical": int(identical.sum()), "mirrored": int(mirrored.sum()), "first": first}


def _images(path: Path | None, images: Any, labels: Any, split: str) -> tuple[ImageSet, Mapping[str, Any]]:
    """The images to measure on, and what they are."""
    if images is None:
        if path is None:
            raise InputError("give the images to evaluate on: evaluate(model, images)")
        images = data.load(as_scored(data_config(path)), split)
    if isinstance(images, ImageSet):
        return (images if labels is None else replace(images, labels=np.asarray(labels))), images.identity()
    if isinstance(images, StoredImages):
        shape = {"count": len(images), "shape": list(images.shape[1:])}
        return ImageSet(images, None if labels is None else np.asarray(labels)), {**shape, "sha256": images.sha256}
    array = images.cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    check_images(array)
    tags = None if labels is None else np.asarray(labels)
    if tags is not None and tags.shape != (len(array),):
        raise InputError(f"labels must have shape [{len(array)}], got {list(tags.shape)}")
    digest = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    return ImageSet(array, tags), {"count": len(array), "shape": list(array.shape[1:]), "sha256": digest}


def _with_classes_of(path: Path | None, images: ImageSet) -> ImageSet:
    """The images with their classes numbered as in the run, which are the same classes by name.

    Raises:
        InputError: when there is a class that the run does not know.
    """
    facts = files.read_json(path / "run.json") if path is not None and (path / "run.json").exists() else {}
    known = facts.get("data", {}).get("train", {}).get("classes") or []
    if images.labels is None or not known or not images.label_names or list(images.label_names) == known:
        return images
    if unknown := sorted(set(images.label_names) - set(known)):
        raise InputError(
            f"the run knows the classes {', '.join(known)}, not {', '.join(unknown)}: "
            "name the sub-folders as those it was trained on, or put all images into one folder"
        )
    number = np.array([known.index(name) for name in images.label_names])
    return replace(images, labels=number[images.labels], label_names=tuple(known))


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


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _shown(starts: range) -> Iterator[int]:
    """Where the batches start, with a progress bar for people."""
    hidden = not sys.stderr.isatty() or (_distributed() and dist.get_rank() > 0)
    yield from tqdm(starts, desc="measuring", unit="batch", leave=False, disable=hidden)

"""Which images a model is measured on, and which its run has seen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tessella import data, files
from tessella.config import DataConfig, from_dict
from tessella.data.image_set import ImageSet
from tessella.data.lazy_images import LazyImages
from tessella.errors import ArtifactError, DataError, InputError, TessellaError
from tessella.files import JSONValue
from tessella.pipeline import (
    NOUNS,
    SavedModel,
    learned_tokenizer,
    locate,
    pixel_levels,
    read_config,
    read_run_record,
)
from tessella.pipeline.run_record import RecipeRecord, train_split
from tessella.tokenizers.tokenizer import check_images

SHOWN = 20
"""Places of images that were trained on that stand with the figures; the table has them all."""

SEEN = "images.safetensors"
"""In ``baseline/`` of a run: a 64-bit hash of every training image."""


def save_seen(out: Path, hashes: np.ndarray) -> None:
    """Keep with a run which images it is trained on, for :func:`evaluate` to find them again.

    Args:
        out: the run directory.
        hashes: of the training images, uint64 ``[n]``.
    """
    # Sorted, so that the file says nothing about the order of the images.
    # The format has no unsigned 64-bit integers everywhere, so the bits travel as signed ones.
    hashes_as_signed = torch.from_numpy(np.sort(hashes).view(np.int64))
    files.write_tensors(out / "baseline" / SEEN, {"hashes": hashes_as_signed})


def trained_on(run: Path | str) -> np.ndarray | None:
    """The hashes of the images that a run was trained on, uint64 ``[n]``.

    None where the run does not say.
    """
    path = locate(run) / "baseline" / SEEN
    if not path.exists():
        return None
    hashes = files.read_tensors(path).get("hashes")
    if hashes is None or hashes.dtype != torch.int64 or hashes.dim() != 1:
        raise ArtifactError(f"{path} must hold one tensor of 64-bit integers, hashes")
    return hashes.numpy().view(np.uint64)


def overlap_with(
    run: Path | None, hashes: np.ndarray, mirrored: np.ndarray
) -> tuple[np.ndarray | None, dict[str, JSONValue] | None]:
    """Which of the images are among those that the run was trained on.

    Args:
        run: the run directory; None of a model that is not saved.
        hashes, mirrored: of the pixels of each image, and of its mirror image: uint64 ``[n]``.

    Returns:
        Whether each image is, bool ``[n]``, and the figures of it; None twice where the run does
        not say.
    """
    trained = None if run is None else trained_on(run)
    if trained is None:
        return None, None
    # 64-bit hashes of a million images meet by chance with probability below 1e-7.
    identical = np.isin(hashes, trained)
    # Many trainings mirror images, so a mirrored copy was seen as well.
    flipped = np.isin(mirrored, trained) & ~identical
    figures: dict[str, JSONValue] = {
        "identical": int(identical.sum()),
        "mirrored": int(flipped.sum()),
        "first": np.flatnonzero(identical)[:SHOWN].tolist(),
    }
    return identical, figures


def images_of(
    path: Path | None, images: object, labels: object, split: str
) -> tuple[ImageSet, Mapping[str, JSONValue]]:
    """The images to measure on, and their identity: what is recorded of them.

    Args:
        path: the run, whose images are read where none are given.
        images: an array, a tensor, an image set, or None.
        labels: class of each image, or None.
        split: which of the run's images.
    """
    if images is None:
        if path is None:
            raise InputError("give the images to evaluate on: evaluate(model, images)")
        images = data.load(as_scored(data_config(path)), split)
    classes = None
    if labels is not None:
        classes = np.asarray(labels)
    # Sets know their identity; for arrays it is made here.
    if isinstance(images, ImageSet):
        identity = images.identity()
        if classes is not None:
            images = replace(images, labels=classes)
        return images, identity
    if isinstance(images, LazyImages):
        return ImageSet(images, classes), _identity(images.shape, images.sha256)
    check_images(images)  # a tensor as such, so that the message is about tensors
    if isinstance(images, torch.Tensor):
        images = images.cpu().numpy()
    array = np.asarray(images)
    if classes is not None and classes.shape != (len(array),):
        raise InputError(f"labels must have shape [{len(array)}], got {list(classes.shape)}")
    digest = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    return ImageSet(array, classes), _identity(array.shape, digest)


def _identity(shape: Sequence[int], sha256: str) -> dict[str, JSONValue]:
    """The record of images ``[n, h, w, c]`` that come without a name."""
    return {"count": shape[0], "shape": list(shape[1:]), "sha256": sha256}


def check_fit(model: SavedModel, run: object, images: ImageSet, check_levels: bool = False) -> None:
    """Check that images have the size and the channels of a model, before any work.

    Args:
        model: any model that a run can hold; a tokenizer takes images of any size.
        run: its name, for the message.
        images: to be measured, or completed.
        check_levels: also refuse images that were read with another number of levels. Arrays of
            values 0..255 are taken to the model's levels as they are encoded.

    Raises:
        InputError: naming what the model takes, what the images are, and what converts them.
    """
    # One image is read: the set may be a folder on disk.
    height, width, channels = np.asarray(images.images[:1]).shape[1:]
    wanted = model.image_grid
    levels = pixel_levels(model)
    # A tokenizer's run holds the tokenizer itself, whose convolutions pass over any size.
    takes_any_size = learned_tokenizer(model) is model
    conversions = []
    if not takes_any_size and (height, width) != (wanted.height, wanted.width):
        conversions.append(f"data.size={wanted.height}x{wanted.width}")
    if channels != wanted.channels:
        conversions.append(f"data.channels={wanted.channels}")
    levels_differ = levels is not None and images.levels != levels
    if not conversions and not (levels_differ and check_levels):
        return
    # One message names all conversions, so that the next attempt succeeds.
    if levels_differ:
        conversions.append(f"data.levels={levels}")
    accepted = f"{wanted.height}x{wanted.width}x{wanted.channels}"
    if levels is not None:
        accepted += f" with {levels} levels"
    raise InputError(
        f"{run} is {NOUNS[model.kind]} of images of {accepted}, and these are "
        f"{height}x{width}x{channels} with {images.levels} levels: add {' '.join(conversions)} "
        "to convert them as they are read"
    )


def with_classes_of(path: Path | None, images: ImageSet) -> ImageSet:
    """The images with their classes numbered as in the run: classes of one name are the same.

    Raises:
        InputError: when there is a class that the run does not know.
    """
    if path is None:
        return images
    record = read_run_record(path)
    known = train_split(record).get("classes") or []
    if record and not known:
        # The run numbers its classes as its data does, so ids that were renumbered are taken back.
        return images.numbered_by_ids()
    if known and not images.label_names and images.labels is not None and _are_ids(known):
        # Few of the ids that the run was trained on can look like plain numbers of classes.
        ids, ranks = np.unique(images.labels, return_inverse=True)
        images = replace(images, labels=ranks, label_names=tuple(map(str, ids.tolist())))
    if images.labels is None or not images.label_names:
        return images
    if not known or list(images.label_names) == known:
        return images
    unknown = sorted(set(images.label_names) - set(known))
    if unknown:
        raise InputError(
            f"the run knows the classes {', '.join(known)}, not {', '.join(unknown)}: "
            "name the sub-folders as those it was trained on, or put all images into one folder"
        )
    # From the numbers of these images to those of the run.
    number = np.array([known.index(name) for name in images.label_names])
    return replace(images, labels=number[images.labels], label_names=tuple(known))


def _are_ids(names: list[str]) -> bool:
    """Whether names of classes are whole numbers, and not simply 0, 1, 2, ..."""
    if not all(name.isdecimal() for name in names):
        return False
    return names != list(map(str, range(len(names))))


def as_scored(config: DataConfig) -> DataConfig:
    """The data as it is scored: random preprocessing is drawn once, not in every epoch."""
    if config.binarize != "dynamic":
        return config
    return replace(config, binarize="fixed")


def data_config(path: Path) -> DataConfig:
    """The data source that a run was trained on.

    Of a prior that was trained on stored codes it is the source of the images that the codes were
    made of.

    Raises:
        DataError: when the directory does not say.
    """
    read_config(path)
    recipe = read_run_record(path).get("recipe")
    if recipe is None:
        raise DataError(
            f"{path} does not say what data it was trained on: name images with --data SOURCE"
        )
    if not recipe.get("data"):
        raise DataError(
            f"{path} was trained on arrays: name images to measure it on with --data SOURCE"
        )
    config = from_dict(DataConfig, recipe["data"], "data")
    if _holds_codes(config.source):
        return _images_of_codes(path, recipe, config.source)
    return config


def _holds_codes(source: str) -> bool:
    """Whether a source holds the codes of a tokenizer."""
    try:
        kind, _ = data.find_source(source)
    except DataError:
        # A source of a plugin that is not installed here; reading it says so.
        return False
    return kind.holds_codes


def _images_of_codes(path: Path, recipe: RecipeRecord, source: str) -> DataConfig:
    """The images behind the stored codes that a prior was trained on: those of its tokenizer's run.

    Args:
        path: the run of the prior.
        recipe: of that run, which names the run of the tokenizer.
        source: the stored codes, for the message.

    Raises:
        DataError: when that run is gone, or the codes are of other images.
    """
    images = train_split(read_run_record(path))
    advice = (
        f"{path} was trained on stored codes ({source}) of the images "
        f"{images.get('source', '')!r}: name these images with --data SOURCE"
    )
    try:
        tokenizer_run = locate(recipe.get("prior_of") or "")
        config = data_config(tokenizer_run)
        trained = train_split(read_run_record(tokenizer_run))
    except TessellaError as error:
        raise DataError(advice) from error
    # The codes may have been made of other images than the tokenizer was trained on.
    if not images.get("sha256") or images.get("sha256") != trained.get("sha256"):
        raise DataError(advice)
    return config


def steps_of(run: Path | None) -> int | None:
    """Optimizer steps that a run took; None where there is no run, or it does not say."""
    if run is None:
        return None
    progress = read_run_record(run).get("progress") or {}
    return progress.get("step")


def tokenizer_steps_of(run: Path | None, kind: str) -> int | None:
    """Optimizer steps that the tokenizer of a run took; None where nobody says.

    Args:
        run: the directory of a tokenizer or of a two-stage model.
        kind: of the model in it.
    """
    if run is None or kind == "tokenizer":
        return steps_of(run)
    # The record of a two-stage run has the steps of its prior, and names the tokenizer's run.
    prior_of = (read_run_record(run).get("recipe") or {}).get("prior_of")
    if not prior_of:
        return None
    try:
        return steps_of(locate(prior_of))
    except TessellaError:
        return None  # that run is gone, or damaged

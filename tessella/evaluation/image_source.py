"""Which images a model is measured on, and which its run has seen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessella import data, files
from tessella.config import DataConfig, from_dict
from tessella.data.decoded_cache import StoredImages
from tessella.data.image_set import ImageSet
from tessella.errors import DataError, InputError
from tessella.pipeline import locate, read_config
from tessella.tokenizers.tokenizer import check_images

SHOWN = 20
"""Places of images that were trained on, which are told with the figures; the table of images has
them all."""

SEEN = "images.safetensors"
"""In ``baseline/`` of a run: a 64-bit hash of every training image."""


def save_seen(out: Path, hashes: np.ndarray) -> None:
    """Keep with a run which images it is trained on, for :func:`evaluate` to find them again.

    Args:
        out: the run directory.
        hashes: of the training images, uint64 ``[n]``.
    """
    files.write_tensors(
        out / "baseline" / SEEN, {"hashes": torch.from_numpy(np.sort(hashes).view(np.int64))}
    )


def trained_on(run: Path | str) -> np.ndarray | None:
    """The hashes of the images that a run was trained on, uint64 ``[n]``; None where it does not
    say."""
    path = locate(run) / "baseline" / SEEN
    return files.read_tensors(path)["hashes"].numpy().view(np.uint64) if path.exists() else None


def overlap_with(
    run: Path | None, hashes: np.ndarray, mirrored: np.ndarray
) -> tuple[np.ndarray | None, dict[str, Any] | None]:
    """Which of the images are among those that the run was trained on, bool ``[n]``, and the
    figures of it.

    Args:
        hashes, mirrored: of the pixels of each image, and of its mirror image: uint64 ``[n]``.
    """
    trained = None if run is None else trained_on(run)
    if trained is None:
        return None, None
    identical = np.isin(hashes, trained)
    flipped = np.isin(mirrored, trained) & ~identical
    first = np.flatnonzero(identical)[:SHOWN].tolist()
    return identical, {
        "identical": int(identical.sum()),
        "mirrored": int(flipped.sum()),
        "first": first,
    }


def images_of(
    path: Path | None, images: Any, labels: Any, split: str
) -> tuple[ImageSet, Mapping[str, Any]]:
    """The images to measure on, and what they are."""
    if images is None:
        if path is None:
            raise InputError("give the images to evaluate on: evaluate(model, images)")
        images = data.load(as_scored(data_config(path)), split)
    if isinstance(images, ImageSet):
        return (
            images if labels is None else replace(images, labels=np.asarray(labels))
        ), images.identity()
    if isinstance(images, StoredImages):
        shape = {"count": len(images), "shape": list(images.shape[1:])}
        return ImageSet(images, None if labels is None else np.asarray(labels)), {
            **shape,
            "sha256": images.sha256,
        }
    array = images.cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    check_images(array)
    tags = None if labels is None else np.asarray(labels)
    if tags is not None and tags.shape != (len(array),):
        raise InputError(f"labels must have shape [{len(array)}], got {list(tags.shape)}")
    digest = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    return ImageSet(array, tags), {
        "count": len(array),
        "shape": list(array.shape[1:]),
        "sha256": digest,
    }


def with_classes_of(path: Path | None, images: ImageSet) -> ImageSet:
    """The images with their classes numbered as in the run, which are the same classes by name.

    Raises:
        InputError: when there is a class that the run does not know.
    """
    facts = (
        files.read_json(path / "run.json")
        if path is not None and (path / "run.json").exists()
        else {}
    )
    known = facts.get("data", {}).get("train", {}).get("classes") or []
    if facts and not known:
        # The run numbers its classes as its data does, so ids that were renumbered are taken back.
        return images.numbered_by_ids()
    if known and not images.label_names and images.labels is not None and _are_ids(known):
        # Few of the ids that the run was trained on can look like plain numbers of classes.
        ids, ranks = np.unique(images.labels, return_inverse=True)
        images = replace(images, labels=ranks, label_names=tuple(str(i) for i in ids.tolist()))
    if (
        images.labels is None
        or not known
        or not images.label_names
        or list(images.label_names) == known
    ):
        return images
    if unknown := sorted(set(images.label_names) - set(known)):
        raise InputError(
            f"the run knows the classes {', '.join(known)}, not {', '.join(unknown)}: "
            "name the sub-folders as those it was trained on, or put all images into one folder"
        )
    number = np.array([known.index(name) for name in images.label_names])
    return replace(images, labels=number[images.labels], label_names=tuple(known))


def _are_ids(names: list[str]) -> bool:
    """Whether names of classes are whole numbers, and not simply 0, 1, 2, ..."""
    return all(name.isdecimal() for name in names) and names != [str(i) for i in range(len(names))]


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
    if config.source.startswith("codes:"):
        raise DataError(
            f"{path} was trained on stored codes ({config.source}): name images with --data"
        )
    return config

"""The table of data sources, and :func:`load`, which turns a :class:`~tessella.config.DataConfig`
into images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from tessella.config import DataConfig
from tessella.data.cifar import read_cifar10
from tessella.data.digits import read_digits
from tessella.data.folder import RULE, read_folder
from tessella.data.idx import read_mnist
from tessella.data.image_set import ImageSet
from tessella.data.npz import read_npz
from tessella.data.paths import find, last_name
from tessella.data.splits import ALL, EVERY_SPLIT_FROM, check_split
from tessella.data.transform import FILTER_NAME, Part, binarize_fixed, parse_size
from tessella.errors import ConfigError, DataError, unknown


@dataclass(frozen=True)
class Source:
    """A kind of data source.

    Args:
        form: how it is written.
        about: what it reads, in a few words.
        read: one split, from the path (empty when none is given), the split and the configuration.
    """

    form: str
    about: str
    read: Callable[[str, str, DataConfig], Part]


SOURCES: dict[str, Source] = {
    "digits": Source("digits", "the bundled 8x8 handwritten digits", read_digits),
    "mnist": Source("mnist:PATH", "a folder of idx files, gzipped or not", read_mnist),
    "cifar10": Source(
        "cifar10:PATH", "the python batches of CIFAR-10, a folder or the .tar.gz", read_cifar10
    ),
    "npz": Source("npz:PATH", "arrays of images in an .npz file", read_npz),
    "folder": Source("folder:PATH", "a folder or a .zip file of images", read_folder),
}


def load(config: DataConfig, split: str) -> ImageSet:
    """Read one split of a data source and prepare its pixels.

    Args:
        config: the source and what is done to its images.
        split: ``train``, ``valid`` or ``test``; of a folder also ``all``.

    Returns:
        the images as ``uint8 [n, height, width, channels]`` with at least one image. Those of a
        folder are decoded into a file once and read from there
        (:mod:`tessella.data.decoded_cache`), except where they are binarized, which takes the whole
        array. With ``binarize="dynamic"`` the training images stay grey, for
        :func:`tessella.data.augment` to draw; valid and test get the fixed draw.

    Raises:
        ConfigError: when an option has a value that is not allowed.
        DataError: when the source is unknown, missing, damaged, or has no images for this split.
        InputError: when its images do not fit what is asked.
    """
    _check(config)
    check_split(split)
    kind, _, path = config.source.partition(":")
    if kind not in SOURCES:
        raise DataError(_unknown_source(config.source))
    if split == ALL and kind != "folder":
        raise DataError(
            f"{kind} comes divided: take --split train, valid or test (all is for folders)"
        )
    if config.bits and kind != "npz":
        raise ConfigError(
            f"data.bits is for npz:PATH only, got {config.bits!r} with the source {kind}"
        )
    part = SOURCES[kind].read(path, split, config)
    name = f"{kind}:{last_name(Path(path))}" if path else kind
    if not len(part.images):
        raise DataError(_nothing(name, split, part))
    images = part.images
    if config.binarize and not (config.binarize == "dynamic" and split == "train"):
        # The draw is defined on the whole array, so images of a folder are read into memory for it.
        images = binarize_fixed(np.asarray(images), config.binarize_seed, split)
    return ImageSet(
        images=images,
        labels=part.labels,
        label_names=part.label_names,
        levels=config.levels or (2 if config.binarize else part.levels),
        name=name,
        split=split,
        names=part.names,
        skipped=part.skipped,
        recipe=_recipe(config, part),
    )


def _recipe(config: DataConfig, part: Part) -> dict[str, Any]:
    """How the split was taken and its pixels prepared, as JSON values."""
    return {
        "split_rule": part.split_rule,
        "size": config.size,
        "crop": config.crop if config.size else "",
        "resampling": FILTER_NAME if part.resampled else "",
        "channels": part.images.shape[-1],
        "bits": config.bits,
        "binarize": config.binarize,
        "binarize_seed": config.binarize_seed if config.binarize else None,
        "limit": config.limit,
    }


def _check(config: DataConfig) -> None:
    """Raise :class:`ConfigError` for a value that no source can honour."""
    hints = get_type_hints(DataConfig)
    allowed: dict[str, tuple[object, ...]] = {
        "crop": get_args(hints["crop"]),
        "binarize": get_args(hints["binarize"]),
        "channels": (0, 1, 3, 4),
    }
    for key, values in allowed.items():
        if getattr(config, key) not in values:
            raise ConfigError(
                f"data.{key} must be one of {', '.join(map(repr, values))}, got {getattr(config, key)!r}"
            )
    if config.levels != 0 and not 2 <= config.levels <= 256:
        raise ConfigError(
            f"data.levels must be 0 (the source's own) or a number of 2..256, got {config.levels}"
        )
    if config.limit < 0 or config.binarize_seed < 0:
        raise ConfigError("data.limit and data.binarize_seed must not be negative")
    parse_size(config.bits, "bits")
    if parse_size(config.size, "size") is None and config.crop == "tiles":
        raise ConfigError(
            "data.crop=tiles needs data.size, the size of a tile, for example data.size=64"
        )


def _unknown_source(source: str) -> str:
    forms = ", ".join(f"{source.form} ({source.about})" for source in SOURCES.values())
    hint = ""
    if place := find(source):
        kind = "npz" if place.suffix == ".npz" else "folder"
        hint = f"; to read the path {source}, write {kind}:{source}"
    return f"{unknown('data source', source.partition(':')[0], SOURCES)}{hint}. Written as: {forms}"


def _nothing(name: str, split: str, part: Part) -> str:
    text = f"{name} has no images for split {split!r} ({part.split_rule or 'the source has none'})"
    if part.split_rule == RULE:
        text += f"; folders of at least {EVERY_SPLIT_FROM} images have some for every split"
    return f"{text}; skipped: {part.skipped[0]}" if part.skipped else text

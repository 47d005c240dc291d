""":func:`load`, which turns a :class:`~tessella.config.DataConfig` into images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tessella.config import DataConfig
from tessella.data.array_checks import as_uint8
from tessella.data.class_labels import check_labels, names_of_ids, renumbered, sparse_ids
from tessella.data.folder_layouts import HASH_RULE
from tessella.data.image_set import ImageSet
from tessella.data.limits import check_image_size
from tessella.data.other_formats import describe
from tessella.data.paths import find, last_name
from tessella.data.source_kinds import SOURCES, Source, SourceImages, source_recognizing
from tessella.data.splits import ALL, EVERY_SPLIT_FROM, check_split
from tessella.data.transform import FILTER_NAME, Part, binarize_fixed, fit_arrays, parse_size
from tessella.errors import ConfigError, DataError, unknown


def load(config: DataConfig, split: str) -> ImageSet:
    """Read one split of a data source and prepare its pixels.

    Args:
        config: the source, and how its images are prepared.
        split: ``train``, ``valid`` or ``test``; of a folder also ``all``.

    Returns:
        the images as ``uint8 [n, height, width, channels]`` with at least one image. Those of a
        folder are decoded into a file once and read from there
        (:mod:`tessella.data.decoded_cache`), except if they are binarized, which takes the whole
        array. With ``binarize="dynamic"`` the training images stay grey, for
        :func:`tessella.data.augment` to draw; valid and test get the fixed draw.

    Raises:
        ConfigError: when an option has a value that is not allowed.
        DataError: when the source is unknown, missing, damaged, or has no images for this split.
        InputError: when its images do not fit what is asked.
    """
    # Everything that can be checked without images is checked first.
    check_config(config)
    check_split(split)
    source, path = find_source(config.source)
    _check_fits(config, source, split)
    part = _as_part(source().read(path, split, config), config, source)
    # Only the last part of the path is recorded, since run records are shared with others.
    name = source.name
    if path:
        name += f":{last_name(Path(path))}"
    if not len(part.images):
        raise DataError(_no_images_message(name, split, part))
    images = part.images
    if config.binarize and not (config.binarize == "dynamic" and split == "train"):
        # The draw is defined on the whole array, so the images of a folder are read into memory.
        images = binarize_fixed(np.asarray(images), config.binarize_seed, split)
    levels = config.levels or part.levels
    if config.binarize and not config.levels:
        levels = 2
    return ImageSet(
        images=images,
        labels=part.labels,
        label_names=part.label_names,
        levels=levels,
        name=name,
        split=split,
        names=part.names,
        skipped=part.skipped,
        recipe=_recipe(config, part),
    )


def find_source(source: str) -> tuple[type[Source], str]:
    """The class of a source, and its path, which is empty if none is given.

    If the name is unknown, installed plugins are searched for it.

    >>> kind, path = find_source("npz:mnist.npz")
    >>> kind.name, path
    ('npz', 'mnist.npz')

    Args:
        source: as it is written, ``NAME`` or ``NAME:PATH``.

    Raises:
        DataError: when no source has this name.
    """
    name, _, path = source.partition(":")
    # Only the first colon counts: a path can hold others.
    try:
        return SOURCES[name], path
    except KeyError:
        raise DataError(_unknown_source(source)) from None


def check_config(config: DataConfig) -> None:
    """Check the options that can be checked without the data.

    Raises:
        ConfigError: for a value that no source can honour.
    """
    # The configuration checked itself when it was created, but may have been changed since.
    config.check()
    for key in ("size", "bits"):
        size = parse_size(getattr(config, key), key)
        if size is not None:
            check_image_size(size, key)


def _check_fits(config: DataConfig, source: type[Source], split: str) -> None:
    """Refuse options that this source does not support, though others do."""
    if source.holds_codes:
        raise DataError(
            f"{config.source} holds the codes of a tokenizer and no images: train a prior on them, "
            "with --tokenizer RUN; elsewhere name the images that they were made of"
        )
    if split == ALL and not source.allows_all:
        able = [name for name, kind in SOURCES.items() if kind.allows_all]
        raise DataError(
            f"{source.name} comes divided: take --split train, valid or test (all is for "
            f"{', '.join(able)})"
        )
    if config.stream and not source.streams:
        able = [kind.form for kind in SOURCES.values() if kind.streams]
        raise ConfigError(
            f"data.stream=true is for {' and '.join(able)}; {source.name} is read as it is, so"
            " leave it out"
        )
    if config.columns and not source.takes_columns:
        able = [kind.form for kind in SOURCES.values() if kind.takes_columns]
        raise ConfigError(
            f"data.columns is for {' and '.join(able)} only, got {config.columns!r} with the source"
            f" {source.name}"
        )
    if config.bits and not source.takes_bits:
        able = [kind.form for kind in SOURCES.values() if kind.takes_bits]
        raise ConfigError(
            f"data.bits is for {' and '.join(able)} only, got {config.bits!r} with the source "
            f"{source.name}"
        )


def _as_part(result: SourceImages, config: DataConfig, source: type[Source]) -> Part:
    """The result of a reader as a part; bare arrays are checked and resized first."""
    if isinstance(result, Part):
        return result
    if isinstance(result, tuple):
        images, labels = result
    else:
        images = result
        labels = None
    pixels, levels = as_uint8(np.asarray(images), f"the array of {source.name}", config.levels)
    names: tuple[str, ...] = ()
    if labels is not None:
        # Only the ids of this split are known here. A source whose splits have different labels has
        # to return a Part with its class names.
        title = f"the labels of {source.name}"
        labels = check_labels(np.asarray(labels), len(pixels), title)
        ids = sparse_ids([labels], title)
        if ids is not None:
            labels = renumbered(labels, ids)
            names = names_of_ids(ids)
    return fit_arrays(Part(pixels, labels, names, levels, f"by {source.name}"), config)


def _recipe(config: DataConfig, part: Part) -> dict[str, str | int | None]:
    """How the split was defined and its pixels prepared, as JSON values."""
    # Every key is always present, so that two records can be compared key by key.
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


def _unknown_source(source: str) -> str:
    forms = ", ".join(f"{kind.form} ({kind.about})" for kind in SOURCES.values())
    return (
        f"{unknown('data source', source.partition(':')[0], SOURCES)}{_hint_for_path(source)}. "
        f"Written as: {forms}"
    )


def _hint_for_path(source: str) -> str:
    """How to write a path that was given without the name of a source; else empty."""
    location = find(source)
    if not source or location is None:
        return ""
    kind = source_recognizing(location)
    if kind is not None:
        return f"; to read the path {source}, write {kind.name}:{source}"
    described = describe(location)
    if described:
        return f"; {described}"
    # Nothing recognizes it, so its name is all there is to go by.
    kind_name = "npz" if location.suffix == ".npz" else "folder"
    return f"; to read the path {source}, write {kind_name}:{source}"


def _no_images_message(name: str, split: str, part: Part) -> str:
    rule = part.split_rule or "the source has none"
    text = f"{name} has no images for split {split!r} ({rule})"
    if part.split_rule == HASH_RULE:
        text += f"; folders of at least {EVERY_SPLIT_FROM} images have some for every split"
    if part.skipped:
        text += f"; skipped: {part.skipped[0]}"
    return text

"""What shards are made of: image files as they are, or the arrays of a data source."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tessella import data, files
from tessella.config import DataConfig
from tessella.data.decode import decode
from tessella.data.folder import FolderFiles, folder_files
from tessella.data.paths import READ_ERRORS, is_transient, last_name, printable, reason
from tessella.data.sources import find_source
from tessella.data.splits import SPLITS
from tessella.data.unusable_image import UnusableImage
from tessella.errors import DataError
from tessella.files.pictures import png

_KEPT = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png"}
"""Beginnings of the files that are kept as they are, and their extensions."""


@dataclass(frozen=True)
class ShardSplit:
    """The images of one split.

    Args:
        sizes: bytes of each image, or at most; they decide where a shard ends.
        encoded: content and extension (``jpg``, ``png``) of the file of an image; it raises
            :class:`UnusableImage` when there is none. May be called from any thread.
        facts: what is noted of an image.
        labels: the class of each, or None.
        identity: a hash of the images.
    """

    sizes: Sequence[int]
    encoded: Callable[[int], tuple[bytes, str]]
    facts: Callable[[int], dict[str, object]]
    labels: Sequence[int] | None
    identity: str


@dataclass(frozen=True)
class ShardInput:
    """Everything that shards are made of: the splits by name, in their order."""

    source: str
    classes: tuple[str, ...]
    splits: dict[str, ShardSplit]

    @property
    def identity(self) -> str:
        """A hash of all images."""
        parts = [[name, split.identity] for name, split in self.splits.items()]
        return _hash(parts)


@contextlib.contextmanager
def shard_input(config: DataConfig) -> Iterator[ShardInput]:
    """The images that a configuration names.

    Those of a folder are the files themselves, unless the configuration changes their pixels.

    Raises:
        DataError: when there are none, or they cannot be read.
    """
    source, path = find_source(config.source)
    if source.name == "folder" and replace(config, source="digits") == DataConfig():
        root = source.locate(path)
        with folder_files(root) as found:
            yield _of_files(found, f"folder:{last_name(root)}")
    else:
        yield _of_arrays(config)


def _of_files(found: FolderFiles, source: str) -> ShardInput:
    splits = {}
    for split in SPLITS:
        chosen = [index for index, part in enumerate(found.splits) if part == split]
        if chosen:
            splits[split] = _file_split(found, split, chosen)
    return ShardInput(source, found.label_names, splits)


def _file_split(found: FolderFiles, split: str, chosen: list[int]) -> ShardSplit:
    all_labels = found.labels[split]
    labels = None if all_labels is None else [all_labels[index] for index in chosen]
    names = [printable(found.names[index]) for index in chosen]
    sizes = [found.sizes[index] for index in chosen]

    def encoded(place: int) -> tuple[bytes, str]:
        return _kept_or_png(found, chosen[place])

    def facts(place: int) -> dict[str, object]:
        noted: dict[str, object] = {"name": names[place]}
        if labels is not None and found.label_names:
            noted["class"] = found.label_names[labels[place]]
        return noted

    return ShardSplit(sizes, encoded, facts, labels, _hash([names, sizes, labels]))


def _kept_or_png(found: FolderFiles, index: int) -> tuple[bytes, str]:
    """The file itself where it is JPEG or PNG, else a PNG of its pixels."""
    try:
        with found.open(index) as file:
            content = file.read()
        # Decoded in any case: a shard must not hold what no reader can use.
        picture = decode(io.BytesIO(content), 0)
    except READ_ERRORS as error:
        if is_transient(error):
            name = printable(found.names[index])
            raise DataError(f"{name} cannot be read at present: {reason(error)}") from error
        raise UnusableImage(reason(error)) from error
    for beginning, extension in _KEPT.items():
        if content.startswith(beginning):
            return content, extension
    pixels = np.asarray(picture)
    return png(pixels.reshape(*pixels.shape[:2], -1)), "png"


def _of_arrays(config: DataConfig) -> ShardInput:
    splits = {}
    classes: tuple[str, ...] = ()
    name = config.source
    failure: DataError | None = None
    for split in SPLITS:
        try:
            images = data.load(config, split)
        except DataError as error:
            # Small sources lack a split; without any image the first error tells why.
            failure = failure or error
            continue
        name = images.name
        classes = images.label_names
        splits[split] = _array_split(images)
    if failure is not None and "train" not in splits:
        raise failure
    return ShardInput(name, classes, splits)


def _array_split(images: data.ImageSet) -> ShardSplit:
    size = int(np.prod(images.images.shape[1:]))
    labels = None if images.labels is None else images.labels.tolist()

    def encoded(place: int) -> tuple[bytes, str]:
        return png(images.images[place]), "png"

    def facts(place: int) -> dict[str, object]:
        noted: dict[str, object] = {"number": place}
        if images.names is not None:
            noted["name"] = printable(images.names[place])
        if labels is not None and images.label_names:
            noted["class"] = images.label_names[labels[place]]
        return noted

    identity = _hash([images.identity(), labels])
    return ShardSplit([size] * len(images), encoded, facts, labels, identity)


def _hash(values: object) -> str:
    return hashlib.sha256(files.json_text(values, indent=None).encode()).hexdigest()

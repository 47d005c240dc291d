"""``shards:PATTERN``: images in tar files of the WebDataset convention."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tessella.config import DataConfig
from tessella.data.class_labels import check_held_out, names_of_ids, sparse_ids
from tessella.data.decoded_cache import digest
from tessella.data.encoded_split import EncodedSplit
from tessella.data.paths import printable
from tessella.data.shards.kept_arrays import kept_array
from tessella.data.shards.shard_index import NO_LABEL
from tessella.data.shards.shard_manifest import class_names
from tessella.data.shards.shard_set import ShardSet, open_shards
from tessella.data.source_kinds import Source, register_source
from tessella.data.splits import (
    ALL,
    FOLDERS,
    SPLITS,
    by_position,
    fill_missing_at,
    split_of_folder,
)
from tessella.data.transform import Part
from tessella.errors import DataError

BY_KEY = "by SHA-256 of 'tessella split:' and the key: 5 % test, 5 % valid"


@register_source("shards")
class ShardsSource(Source):
    """Images in tar files, decoded once into a file of pixels, or each time they are needed."""

    about = "tar files of images (WebDataset)"
    argument = "PATTERN"
    allows_all = True
    sizes_may_differ = True
    streams = True

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether it is a tar file, or a folder that has some."""
        if path.is_dir():
            return any(path.glob("*.tar"))
        return path.suffix == ".tar"

    def read(self, path: str, split: str, config: DataConfig) -> Part:
        """One split of the images, in the order of the shards.

        Shards whose names carry train, valid or test are of that split; valid, or else test, is
        taken from train where it is missing. Without such names the hash of each key decides, as
        for the files of a folder.

        Raises:
            DataError: when a shard is missing or damaged, only some names carry a split, labels are
                incomplete, or too many images are unusable.
            InputError: when images differ in size and ``config.size`` is empty.
        """
        shards = open_shards(path)
        title = f"shards:{Path(path).name}"
        splits, rule = divide_shards(shards)
        classes, names = _classes(shards, splits, title)
        rule = "every image" if split == ALL else rule
        identity = [[shard.name, shard.sha256] for shard in shards.shards]
        # Both arrays lie on the disk, so that memory does not grow with the number of images.
        chosen = _Chosen(shards, splits, split, digest(identity, split, rule))
        numbers = chosen.numbers()[: config.limit or None]
        labels = None
        if classes is not None:
            labels = chosen.labels(classes)[: config.limit or None]
        part = EncodedSplit(
            files=_ShardFiles(shards),
            split=split,
            numbers=numbers,
            labels=labels,
            label_names=names,
            rule=rule,
            title=title,
            places=[printable(str(shard.path.resolve())) for shard in shards.shards],
            identity=identity,
            stamps=[[shard.sha256, shard.path.stat().st_mtime_ns] for shard in shards.shards],
            groups=_groups(shards, numbers),
            left_out=left_out_of(shards),
        )
        return part.part(config)


@dataclass(frozen=True)
class _Chosen:
    """The images of a split, shard by shard.

    Args:
        shards: those of all splits.
        splits: the split of each image, as its number in ``SPLITS``, ``uint8 [n]``.
        split: which is chosen; ``all`` for every image.
        key: of the arrays in the cache.
    """

    shards: ShardSet
    splits: np.ndarray
    split: str
    key: str

    def numbers(self) -> np.ndarray:
        """The numbers of its images in the set, ``uint32 [k]``."""

        def pieces() -> Iterator[np.ndarray]:
            for shard in range(len(self.shards.shards)):
                yield self._within(shard) + self.shards.first(shard)

        return kept_array(f"{self.key}-numbers", np.dtype("<u4"), pieces)

    def labels(self, classes: np.ndarray) -> np.ndarray:
        """The class of each, ``int64 [k]``: the place of its label in ``classes``."""

        def pieces() -> Iterator[np.ndarray]:
            for shard in range(len(self.shards.shards)):
                labels = self.shards.column_of(shard, "label")[self._within(shard)]
                yield np.searchsorted(classes, labels)

        return kept_array(f"{self.key}-{digest(classes.tolist())}", np.dtype("<i8"), pieces)

    def _within(self, shard: int) -> np.ndarray:
        """The places of its images in a shard."""
        splits = self.splits[self.shards.places(shard)]
        if self.split == ALL:
            return np.arange(len(splits))
        return np.flatnonzero(splits == SPLITS.index(self.split))


class _ShardFiles:
    """The images of a set of shards as files."""

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards

    def encoded(self, number: int) -> bytes:
        """The content of the file of an image."""
        return self._shards.item(number).data

    def name(self, number: int) -> str:
        """Its name."""
        return self._shards.name(number)


def _groups(shards: ShardSet, numbers: np.ndarray) -> list[int]:
    """The place of the first image of each shard among those of a split, and their number."""
    edges = [shards.first(number) for number in range(len(shards.shards) + 1)]
    # Edges of another type would make numpy copy all the numbers.
    places = np.searchsorted(numbers, np.array(edges, numbers.dtype))
    # A shard can have no image of the split.
    return sorted(set(places.tolist()))


def divide_shards(shards: ShardSet) -> tuple[np.ndarray, str]:
    """The split of each image, as its number in ``SPLITS`` (``uint8 [n]``), and the rule.

    Raises:
        DataError: when the names of some shards carry a split, and those of others do not.
    """
    named = [split_of_shard(shard.name) for shard in shards.shards]
    if not any(named):
        return by_position(shards.column("position")), BY_KEY
    if not all(named):
        without = shards.shards[named.index("")].path
        raise DataError(
            f"the names of some shards carry train, valid or test, that of {without} does not:"
            " rename it, or name the others with a pattern of their own"
        )
    splits = np.empty(len(shards), np.uint8)
    for number, name in enumerate(named):
        splits[shards.places(number)] = SPLITS.index(name)
    rule = f"the names of the shards ({', '.join(sorted(set(named)))})"
    if {"valid", "test"} <= set(named):
        return splits, rule
    filled = fill_missing_at(shards.column("position"), splits)
    return splits, rule + (filled and f"{filled} and the key")


def split_of_shard(name: str) -> str:
    """The split that the name of a shard carries; empty if there is none.

    >>> split_of_shard("photos-train-000000"), split_of_shard("val_0001"), split_of_shard("a-7")
    ('train', 'valid', '')
    """
    found = ""
    # The last one counts: what comes first is the name of the data set.
    for word in re.split(r"[-_.]", name):
        if word.lower() in FOLDERS or re.fullmatch(r"\D+\d{4}", word):
            found = split_of_folder(word) or found
    return found


def _classes(
    shards: ShardSet, splits: np.ndarray, title: str
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The labels that stand for the classes 0, 1, ..., sorted, and the names of the classes.

    The first is None where the images have no labels.
    """
    in_splits = _label_sets(shards, splits)
    if not in_splits:
        return None, ()
    check_held_out(in_splits, {split: f"{split} of {title}" for split in in_splits})
    ids = sparse_ids(list(in_splits.values()), f"the labels of {title}")
    if ids is not None:
        return ids, names_of_ids(ids)
    most = max(int(labels.max()) for labels in in_splits.values())
    names = class_names(shards.shards[0].path.parent)
    if names and most >= len(names):
        raise DataError(
            f"{title} has the label {most}, and its shards.json names {len(names)} classes:"
            " correct the one or the other"
        )
    return np.arange(most + 1), names


def _label_sets(shards: ShardSet, splits: np.ndarray) -> dict[str, np.ndarray]:
    """The different labels of each split; empty where no image has one.

    Raises:
        DataError: when only some images have labels.
    """
    found: dict[str, np.ndarray] = {}
    for shard in range(len(shards.shards)):
        labels = shards.column_of(shard, "label")
        in_shard = splits[shards.places(shard)]
        for number in np.unique(in_shard).tolist():
            split = SPLITS[number]
            different = np.unique(labels[in_shard == number])
            found[split] = np.union1d(found.get(split, different), different)
    every = np.unique(np.concatenate([np.empty(0, np.int64), *found.values()]))
    if NO_LABEL not in every:
        return found
    if len(every) > 1:
        shards.labels()  # which says how many and which have none
    return {}


def left_out_of(shards: ShardSet) -> tuple[str, ...]:
    """What the shards hold beside images, each as ``SHARD: MEMBER: reason``."""
    lines = []
    for shard in shards.shards:
        for line in shard.left_out:
            lines.append(f"{shard.path.name}: {line}")
        more = shard.left_out_count - len(shard.left_out)
        if more:
            lines.append(f"{shard.path.name}: {more} further members are not read")
    return tuple(lines)

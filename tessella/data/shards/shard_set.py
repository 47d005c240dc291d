""":func:`open_shards`, and the images of a set of shards by their number."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tessella import files
from tessella.data.shards.open_files import OpenFiles
from tessella.data.shards.shard_index import NO_LABEL, RECORD, index_of, split_name
from tessella.data.shards.shard_patterns import shard_paths
from tessella.data.shards.tar_members import read_member
from tessella.errors import ArtifactError, DataError, check_integer

AT_ONCE = 1024
"""Records of an index that are read together."""


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Args:
        path: the file.
        count: images in it.
        sha256: hexadecimal SHA-256 of its keys, of the place, size and label of each image, and of
            the length of the file. It is known once the headers are read, which takes a moment; it
            does not cover the pixels (``shards.json``, where ``tessella shards`` wrote one, has the
            SHA-256 of the whole files).
        left_out: members that are not read, each as ``name: reason``; the first 100.
        left_out_count: how many there are.
        records: the file of its index.
    """

    path: Path
    count: int
    sha256: str
    left_out: tuple[str, ...] = field(repr=False, default=())
    left_out_count: int = 0
    records: Path = field(repr=False, default=Path())

    @property
    def name(self) -> str:
        """The name of the file, without its extension."""
        return self.path.name.removesuffix(".tar")


@dataclass(frozen=True)
class ShardItem:
    """One image as it lies in a shard, with what is said of it.

    Args:
        key: what its members share; unique in its shard.
        data: the image file, not decoded.
        extension: of the image file, lower case, without a dot.
        label: the number in its ``.cls`` member; None without one.
        facts: the object in its ``.json`` member; empty where there is none, or no object.
    """

    key: str
    data: bytes = field(repr=False)
    extension: str
    label: int | None
    facts: dict[str, Any]


def open_shards(pattern: str) -> ShardSet:
    """The images in a folder of tar files, or in those that a pattern names.

    The first call walks the headers of each tar file and keeps an index in the cache folder
    (:mod:`tessella.data.shards.shard_index`); later ones find it there. Memory does not grow with
    the number of images.

    Args:
        pattern: a folder, a ``.tar`` file, a glob, or a brace pattern such as
            ``photos-train-{000000..000009}.tar``.

    Raises:
        DataError: when there is no shard, one is missing, cut short, damaged or unreadable, or the
            index cannot be written.
    """
    return ShardSet(shard_paths(pattern))


class ShardSet:
    """Images in tar files, each read when it is asked for; threads may do so at once.

    It can be pickled (with the paths of the shards).

    Args:
        paths: the tar files, in order.

    Raises:
        DataError: see :func:`open_shards`.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._opened = OpenFiles()
        shards = []
        for path in paths:
            index = index_of(path, self._opened)
            shard = Shard(
                path=path,
                count=index.count,
                sha256=index.sha256,
                left_out=index.left_out,
                left_out_count=index.left_out_count,
                records=index.records,
            )
            shards.append(shard)
        self.shards: tuple[Shard, ...] = tuple(shards)
        # The number of the first image of each shard, and of all at the end.
        self._firsts = [0]
        for shard in self.shards:
            self._firsts.append(self._firsts[-1] + shard.count)

    def __len__(self) -> int:
        return self._firsts[-1]

    def __reduce__(self) -> tuple[type[ShardSet], tuple[list[Path]]]:
        return ShardSet, ([shard.path for shard in self.shards],)

    def first(self, shard_number: int) -> int:
        """The number of the first image of a shard, among those of the set."""
        return self._firsts[shard_number]

    def items(self, shard_number: int) -> Iterator[ShardItem]:
        """The images of one shard, in order.

        Raises:
            DataError: when the file was changed or cannot be read.
        """
        shard = self.shards[check_integer("shard_number", shard_number, most=self._last_shard)]
        for first in range(0, shard.count, AT_ONCE):
            for row in self._records(shard, first, min(AT_ONCE, shard.count - first)):
                yield self._item(shard, row)

    def item(self, number: int) -> ShardItem:
        """The image of a number in 0..n-1.

        Raises:
            InputError: when there is no such number.
            DataError: when the file was changed or cannot be read.
        """
        number = check_integer("number", number, most=len(self) - 1)
        shard, place = self._located(number)
        return self._item(shard, self._records(shard, place, 1)[0])

    def name(self, number: int) -> str:
        """``SHARD/KEY.EXTENSION`` of an image, unique in the set."""
        shard, place = self._located(number)
        row = self._records(shard, place, 1)[0]
        start = int(row["start"])
        headers = self._opened.read(shard.path, start, int(row["offset"]) - start)
        key, extension = self._name(shard, row, headers)
        return f"{shard.name}/{key}.{extension}"

    def column(self, name: str) -> np.ndarray:
        """One field of :data:`~tessella.data.shards.shard_index.RECORD` of all images, ``[n]``."""
        values = np.empty(len(self), RECORD[name])
        for number in range(len(self.shards)):
            values[self.places(number)] = self.column_of(number, name)
        return values

    def column_of(self, shard_number: int, name: str) -> np.ndarray:
        """The same of the images of one shard."""
        shard = self.shards[shard_number]
        found: np.ndarray = self._records(shard, 0, shard.count)[name]
        return found

    def places(self, shard_number: int) -> slice:
        """Where the images of a shard are among those of the set."""
        return slice(self._firsts[shard_number], self._firsts[shard_number + 1])

    def labels(self) -> np.ndarray | None:
        """The label of each image, ``int64 [n]``; None where no image has one.

        Raises:
            DataError: when only some images have labels.
        """
        labels = self.column("label").astype(np.int64)
        without = np.flatnonzero(labels == NO_LABEL)
        if len(without) == len(labels):
            return None
        if len(without):
            raise DataError(
                f"{len(without)} of {len(labels)} images have no label, the first is"
                f" {self.name(int(without[0]))}: give each image a .cls member, or none"
            )
        return labels

    @property
    def _last_shard(self) -> int:
        return len(self.shards) - 1

    def _located(self, number: int) -> tuple[Shard, int]:
        """The shard of an image, and its place there."""
        shard_number = bisect.bisect_right(self._firsts, number) - 1
        return self.shards[shard_number], number - self._firsts[shard_number]

    def _records(self, shard: Shard, first: int, count: int) -> np.ndarray:
        """Some records of the index of a shard, ``RECORD [count]``."""
        size = RECORD.itemsize
        content = self._opened.read(shard.records, first * size, count * size)
        if len(content) != count * size:
            raise DataError(f"the index {shard.records} was cut short: open the shards again")
        return np.frombuffer(content, RECORD)

    def _item(self, shard: Shard, row: np.void) -> ShardItem:
        # Header and content are neighbours, so one read gives both.
        start = int(row["start"])
        before = int(row["offset"]) - start
        content = self._opened.read(shard.path, start, before + int(row["size"]))
        key, extension = self._name(shard, row, content)
        label = int(row["label"])
        return ShardItem(
            key=key,
            data=content[before:],
            extension=extension,
            label=None if label == NO_LABEL else label,
            facts=self._facts(shard, row),
        )

    def _name(self, shard: Shard, row: np.void, content: bytes) -> tuple[str, str]:
        """Key and extension of an image, from its headers with which ``content`` begins."""
        start = int(row["start"])
        changed = DataError(f"{shard.path} was changed while it was open: load it again")

        def read(offset: int, size: int) -> bytes:
            return content[offset - start : offset - start + size]

        try:
            member = read_member(read, start, str(shard.path))
        except DataError as error:
            raise changed from error
        same = member is not None and member.offset == row["offset"] and member.size == row["size"]
        if member is None or not same:
            raise changed
        return split_name(member.name)

    def _facts(self, shard: Shard, row: np.void) -> dict[str, Any]:
        size = int(row["facts_size"])
        if not size:
            return {}
        text = self._opened.read(shard.path, int(row["facts_offset"]), size)
        # Facts are notes of whoever made the shard: a broken one costs no image.
        try:
            facts = files.parse_json(text, f"{shard.path}: the facts of an image")
        except ArtifactError:
            return {}
        return facts if isinstance(facts, dict) else {}

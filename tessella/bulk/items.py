"""What bulk work is done to, by number: image files, images in shards, or seeds.

Items travel to other processes as names and paths, and are opened there. So the files must lie
where every process finds them; what was found first is compared there.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tessella import files
from tessella.bulk.batches import BYTES, KEY, SEED, Batch, column
from tessella.codec.file_names import names_problem
from tessella.codec.picture_files import PictureFile, find_pictures
from tessella.data.decode import MAX_BYTES
from tessella.data.shards import ShardSet, open_shards
from tessella.errors import DataError, InputError
from tessella.files import JSONValue


class Items(ABC):
    """Items by number, from 0 on."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @abstractmethod
    def batch(self, places: range) -> Batch:
        """Some items as the columns of a batch.

        Raises:
            DataError: when they cannot be read.
        """

    @abstractmethod
    def identity(self) -> dict[str, JSONValue]:
        """Say as JSON values which items these are."""


class SeedItems(Items):
    """Seeds that follow each other, to draw images from.

    Args:
        n: how many.
        first: the first one.
    """

    def __init__(self, n: int, first: int) -> None:
        self.n = n
        self.first = first

    def __len__(self) -> int:
        return self.n

    def batch(self, places: range) -> Batch:
        seeds = [self.first + place for place in places]
        return {
            KEY: np.array([f"{seed:08d}" for seed in seeds]),
            SEED: np.array(seeds, np.uint64),
        }

    def identity(self) -> dict[str, JSONValue]:
        return {"seed": self.first}


class PictureItems(Items):
    """Image files, and those in folders; each has its name as key.

    Args:
        paths: files and folders.

    Raises:
        DataError: when a path does not exist, or there is no image.
        InputError: when two files have one name.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = [str(Path(path).absolute()) for path in paths]
        self._found: list[PictureFile] | None = None
        self._listed = self._digest()
        problem = names_problem([picture.name for picture in self.found()])
        if problem:
            raise InputError(f"these files cannot be kept beside each other: {problem}")

    def __len__(self) -> int:
        return len(self.found())

    def __getstate__(self) -> dict[str, object]:
        # A list of millions of files is made again faster than it travels.
        return {**vars(self), "_found": None}

    def found(self) -> list[PictureFile]:
        """The files, sorted by name in each folder."""
        if self._found is None:
            self._found, _ = find_pictures(self.paths)
        return self._found

    def batch(self, places: range) -> Batch:
        # In another process the list was made anew.
        if self._found is None and self._digest() != self._listed:
            # Forgotten, so that the next unit is refused as well.
            self._found = None
            raise DataError(
                f"the files in {', '.join(self.paths)} are not those that the job began with:"
                " every process must find the same files"
            )
        pictures = self.found()[places.start : places.stop]
        contents = [files.read_bytes(picture.path, MAX_BYTES) for picture in pictures]
        keys = [picture.name for picture in pictures]
        return {KEY: np.array(keys), BYTES: column(contents)}

    def identity(self) -> dict[str, JSONValue]:
        return {"files": len(self), "sha256": self._listed}

    def _digest(self) -> str:
        """A hash of the names and the sizes of the files."""
        digest = hashlib.sha256()
        for picture in self.found():
            size = picture.path.stat().st_size
            digest.update(f"{picture.name}\0{size}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


class ShardedItems(Items):
    """Images in tar files of the WebDataset convention; keys are ``SHARD/KEY.EXTENSION``.

    Args:
        pattern: a folder, a file, or a pattern, see :func:`tessella.data.shards.open_shards`.

    Raises:
        DataError: when there is no shard, or one is damaged.
    """

    def __init__(self, pattern: str) -> None:
        # Empty stays empty, which open_shards refuses.
        self.pattern = str(Path(pattern).expanduser().absolute()) if pattern else ""
        self._shards: ShardSet | None = None
        self._listed = self._digest()

    def __len__(self) -> int:
        return len(self.shards())

    def __getstate__(self) -> dict[str, object]:
        # Opened anew in another process: its indexes are in the cache of that machine.
        return {**vars(self), "_shards": None}

    def shards(self) -> ShardSet:
        """The tar files, opened when they are first asked for."""
        if self._shards is None:
            self._shards = open_shards(self.pattern)
        return self._shards

    def batch(self, places: range) -> Batch:
        # In another process the shards were opened anew.
        if self._shards is None and self._digest() != self._listed:
            # Forgotten, so that the next unit is refused as well.
            self._shards = None
            raise DataError(
                f"the shards {self.pattern} are not those that the job began with: every process"
                " must find the same files"
            )
        shards = self.shards()
        keys = [shards.name(place) for place in places]
        contents = [shards.item(place).data for place in places]
        return {KEY: np.array(keys), BYTES: column(contents)}

    def identity(self) -> dict[str, JSONValue]:
        return {"files": len(self), "sha256": self._listed}

    def _digest(self) -> str:
        """A hash of what the indexes of the shards say."""
        digest = hashlib.sha256()
        for shard in self.shards().shards:
            digest.update(f"{shard.name}\0{shard.sha256}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


SHARDS = "shards:"
"""What a path begins with that names tar files."""


def items_of(paths: Sequence[str]) -> Items:
    """The images that the words of a command name: files and folders, or one pattern of shards.

    Raises:
        InputError: when shards stand beside other paths.
        DataError: when there are no images.
    """
    patterns = [path for path in paths if path.startswith(SHARDS)]
    if not patterns:
        return PictureItems(paths)
    if len(paths) > 1:
        raise InputError(
            f"name one pattern of shards, or files and folders, got {', '.join(paths)}"
        )
    return ShardedItems(patterns[0].removeprefix(SHARDS))

"""A cache of decoded images on disk: written once, read in pieces.

So memory does not grow with the size of the data set.

The files are in the sub-folder ``images/`` of ``$TESSELLA_CACHE``, or else of
``$XDG_CACHE_HOME/tessella``, or else of ``~/.cache/tessella``. An entry consists of two files,
``REQUEST-CONTENTS.u8`` (the pixels in row-major order, then one 64-bit hash for each image) and
``REQUEST-CONTENTS.json`` (everything else). REQUEST is a hash of what was asked for, CONTENTS a
hash of the source files. The JSON file is written last: an entry without it, or with a file whose
size differs from what it says, is rebuilt. Everything here can be deleted at any time; a program
that has an entry open can still read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import weakref
from collections.abc import Callable, Mapping
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from tessella import files
from tessella.data.hashes import image_hashes
from tessella.data.lazy_images import LazyImages
from tessella.data.paths import one_line, reason
from tessella.errors import ArtifactError, DataError

VERSION = 3
"""Version of the format of an entry, and of how its pixels are computed."""
CHUNK = 1 << 27
"""Most bytes that one system call reads."""
MAX_FACTS = 1 << 30
"""Largest JSON file of an entry, in bytes; it holds the name of each image."""
_HASH_BYTES = 8  # per image, stored after all the pixels

CacheFacts = dict[str, Any]
"""JSON values that are stored with the images of an entry."""


class StoredImages(LazyImages):
    """Images ``uint8 [n, height, width, channels]`` in a file, read into fresh numpy arrays.

    They are indexed as :class:`~tessella.data.lazy_images.LazyImages` says. They can be used
    after a fork, and can be pickled (with the path, not the pixels).

    Args:
        path: the ``.u8`` file of an entry.
        shape: ``(n, height, width, channels)``.
        sha256: hexadecimal SHA-256 of the pixels in row-major order.

    Raises:
        DataError: when the file is missing or shorter than the images and their hashes.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int], sha256: str) -> None:
        super().__init__(shape, sha256)
        self.path = path
        self._image_bytes = math.prod(shape[1:])
        try:
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise DataError(
                f"the decoded images {path} cannot be read: {one_line(error)}; load them again"
            ) from error
        # The file stays open, so the images can be read even if another process replaces the entry.
        weakref.finalize(self, os.close, self._file)
        if os.fstat(self._file).st_size != len(self) * (self._image_bytes + _HASH_BYTES):
            raise DataError(self._wrong_length())

    def __reduce__(self) -> tuple[type[StoredImages], tuple[Path, tuple[int, int, int, int], str]]:
        return StoredImages, (self.path, self.shape, self.sha256)

    def __repr__(self) -> str:
        return f"StoredImages({str(self.path)!r}, shape={self.shape})"

    @property
    def hashes(self) -> np.ndarray:
        """:func:`~tessella.data.hashes.image_hashes` of all images, ``uint64 [n]``, from the file.

        They were computed when the images were stored.
        """
        values = np.empty(len(self), "<u8")
        self._fill(values.view(np.uint8), len(self) * self._image_bytes)
        return values.astype(np.uint64)

    def _read(self, indices: np.ndarray) -> np.ndarray:
        """The images at ``indices`` (``[k]``, each in 0..n-1); neighbours share one read."""
        found = np.empty((len(indices), *self.shape[1:]), np.uint8)
        flat = found.reshape(-1)
        # A run of neighbours ends where the next index does not follow.
        breaks = np.flatnonzero(np.diff(indices) != 1) + 1
        starts = [0, *breaks.tolist()]
        ends = [*breaks.tolist(), len(indices)]
        for start, end in zip(starts, ends, strict=True):
            if end > start:
                target = flat[start * self._image_bytes : end * self._image_bytes]
                self._fill(target, int(indices[start]) * self._image_bytes)
        return found

    def _fill(self, target: np.ndarray, offset: int) -> None:
        """Fill ``target``, ``uint8 [length]``, from an offset in the file, in bytes."""
        view = target.data
        done = 0
        while done < len(view):
            # preadv does not move the file's position, so threads do not disturb each other.
            count = os.preadv(self._file, [view[done : done + CHUNK]], offset + done)
            if not count:
                raise DataError(self._wrong_length())
            done += count

    def _wrong_length(self) -> str:
        return (
            f"{self.path} does not have the length it was written with;"
            " delete it and load the images again"
        )


class Writer:
    """Appends images to the file of an entry, and computes their SHA-256 and hashes.

    Args:
        file: open for writing, empty.
    """

    def __init__(self, file: BufferedWriter) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._hashes: list[bytes] = []
        self._image: tuple[int, ...] = (0, 0, 0)

    def append(self, image: np.ndarray) -> None:
        """Add ``uint8 [height, width, channels]``, of the same shape as those before."""
        assert image.ndim == 3
        assert image.dtype == np.uint8
        assert not self._hashes or image.shape == self._image
        image = np.ascontiguousarray(image)
        self._image = image.shape
        self._file.write(image.data)
        self._sha256.update(image.data)
        # Hashed now, while the image is in memory: later this would read all pixels again.
        self._hashes.append(image_hashes(image[None]).astype("<u8").tobytes())

    def finish(self) -> CacheFacts:
        """Write the hashes; return shape and SHA-256."""
        self._file.write(b"".join(self._hashes))
        return {"shape": [len(self._hashes), *self._image], "sha256": self._sha256.hexdigest()}


def cache_folder() -> Path:
    """Return the folder of decoded images; see the docstring of the module."""
    return files.cache_folder() / "images"


def digest(*facts: object) -> str:
    """A short hash of JSON values, 24 hexadecimal digits, for the names of entries."""
    return hashlib.sha256(json.dumps([VERSION, *facts]).encode()).hexdigest()[:24]


def cached_images(
    request: str,
    contents: str,
    make: Callable[[Writer], Mapping[str, object]],
    title: str = "the same images",
) -> tuple[StoredImages, CacheFacts]:
    """The images of an entry, which is created first if it does not exist.

    It replaces the other entries for the same request.

    Args:
        request: :func:`digest` of the source and of how its images are prepared.
        contents: :func:`digest` of the source files as they are now.
        make: appends all images to the writer and returns the facts to store with them, as JSON
            values. If several processes need the entry, one calls this, and the others wait and say
            so on stderr.
        title: the source, for that message.

    Raises:
        DataError: when the cache cannot be written; nothing half-written stays.
        TessellaError: whatever ``make`` raises.
    """
    folder = cache_folder()
    found = _find(folder, request, contents)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _acquired(FileLock(folder / f"{request}.lock"), title):
            # Another process may have created it while this one waited.
            found = _find(folder, request, contents)
            if found is None:
                _make(folder, request, contents, make)
                found = _find(folder, request, contents)
    except (OSError, NotImplementedError) as error:
        raise DataError(_cannot_keep(folder, error)) from error
    assert found is not None
    return found


def _cannot_keep(folder: Path, error: BaseException) -> str:
    return (
        f"cannot store decoded images in {folder}: {reason(error)};"
        " set TESSELLA_CACHE to a writable folder on a disk with enough space"
    )


def _acquired(lock: FileLock, title: str) -> contextlib.AbstractContextManager[object]:
    """Acquire a lock; it is released at the end of a ``with`` block."""
    try:
        return lock.acquire(timeout=1)
    except Timeout:
        print(f"waiting for another process that decodes {title}", file=sys.stderr, flush=True)
        return lock.acquire()


def _find(folder: Path, request: str, contents: str) -> tuple[StoredImages, CacheFacts] | None:
    """An entry, or None if it is missing or incomplete."""
    name = f"{request}-{contents}"
    try:
        facts = files.read_json_object(folder / f"{name}.json", MAX_FACTS)
        count, height, width, channels = facts["shape"]
        shape = (count, height, width, channels)
        return StoredImages(folder / f"{name}.u8", shape, facts["sha256"]), facts
    except (OSError, ValueError, KeyError, TypeError, ArtifactError, DataError):
        # Missing, damaged, or left half-written by an older version: it is rebuilt.
        return None


def _make(
    folder: Path, request: str, contents: str, make: Callable[[Writer], Mapping[str, object]]
) -> None:
    """Write an entry and delete the others for its request; the caller holds the lock."""
    # The JSON file is removed first and written last: an entry without it does not count.
    name = f"{request}-{contents}"
    files.sweep(folder, f"{request}-*")  # what a killed process left
    (folder / f"{name}.json").unlink(missing_ok=True)
    failure: Exception | None = None
    try:
        with files.atomic_file(folder / f"{name}.u8") as temporary, temporary.open("wb") as file:
            writer = Writer(file)
            try:
                made = make(writer)
            except Exception as error:
                failure = error
                raise
            facts: CacheFacts = {**made, "version": VERSION, **writer.finish()}
        files.write_json(folder / f"{name}.json", facts)
    except ArtifactError as error:
        # Errors of make() are raised unchanged; all others come from writing the cache.
        if failure is not None:
            raise failure from None
        raise DataError(_cannot_keep(folder, error.__cause__ or error)) from error
    for old in folder.glob(f"{request}-*"):
        if old.stem != name:
            old.unlink(missing_ok=True)

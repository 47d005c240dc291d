"""Decoded images in a file: written once, read piece by piece.

Memory does not grow with the data set.

The files lie in ``images/`` of the folder that ``TESSELLA_CACHE`` names, else of
``$XDG_CACHE_HOME/tessella``, else of ``~/.cache/tessella``. An entry is two files,
``PLACE-LISTING.u8`` (the pixels, row-major, then one 64-bit hash for each image) and
``PLACE-LISTING.json`` (everything else), where PLACE is a hash of what was asked for and LISTING
one of what lay there. The JSON file is written last: an entry without it, or with a file of another
size than it says, is made anew. Everything here can be deleted at any time; a program that has an
entry open keeps reading it.
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
import numpy.typing as npt
from filelock import FileLock, Timeout

from tessella import files
from tessella.data.hashes import image_hashes
from tessella.data.paths import one_line, reason
from tessella.errors import ArtifactError, DataError

VERSION = 3
"""Of the format of an entry, and of how the pixels in it are made."""
CHUNK = 1 << 27
"""Most bytes that one call to the system reads."""
MAX_FACTS = 1 << 30
"""Largest JSON file of an entry, in bytes; it holds the name of each image."""
_HASH_BYTES = 8  # of each image, behind all pixels

Facts = dict[str, Any]
"""JSON values that are kept beside the images of an entry."""


class StoredImages:
    """Images ``uint8 [n, height, width, channels]`` in a file, read into fresh numpy arrays.

    ``images[3]`` is ``[height, width, channels]``; ``images[2:9]``, ``images[[5, 0]]`` and
    ``images[mask]`` are ``[k, height, width, channels]``; ``numpy.asarray(images)`` is everything.
    Safe to use from several threads, after a fork, and through pickling (which keeps the path, not
    the pixels).

    Args:
        path: the file, which begins with the pixels.
        shape: ``(n, height, width, channels)``.
        sha256: hexadecimal SHA-256 of the pixels in row-major order.

    Raises:
        DataError: when the file is missing or shorter than the images and their hashes.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, path: Path, shape: tuple[int, int, int, int], sha256: str) -> None:
        self.path = path
        self.shape = shape
        self.sha256 = sha256
        self._image_bytes = math.prod(shape[1:])
        try:
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise DataError(
                f"the decoded images {path} cannot be read: {one_line(error)}; load them again"
            ) from error
        # Open from now on: the images can be read even if another process replaces the entry.
        weakref.finalize(self, os.close, self._file)
        if os.fstat(self._file).st_size != len(self) * (self._image_bytes + _HASH_BYTES):
            raise DataError(self._wrong_length())

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: object) -> np.ndarray:
        """Images by a number, a slice, a list or array of numbers, or a mask ``bool [n]``.

        Raises:
            IndexError: for a number out of range, or an index of another kind.
            DataError: when the file was cut short.
        """
        if isinstance(index, slice):
            return self._read(np.arange(*index.indices(len(self))))
        places = self._places(index)
        # [*index shape, height, width, channels], as numpy has it
        return self._read(places.ravel()).reshape(*places.shape, *self.shape[1:])

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(
                "images in a file become an array only by reading them, which is a copy"
            )
        return self[:].astype(dtype or self.dtype, copy=False)

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

    def _places(self, index: object) -> np.ndarray:
        """Numbers of 0..n-1 for any index but a slice; of no dimension for a single number."""
        # numpy would take these for masks, new axes or several axes.
        if isinstance(index, (bool, np.bool_, tuple)) or index is None or index is Ellipsis:
            raise IndexError(
                f"images in a file are indexed by their number alone, got {index!r};"
                " index the array that comes back"
            )
        places = np.asarray(index)
        if places.dtype == np.bool_:
            if places.shape != (len(self),):
                raise IndexError(
                    f"a mask of {len(self)} images must be bool [{len(self)}],"
                    f" got {list(places.shape)}"
                )
            return np.flatnonzero(places)
        if not places.size:
            return places.astype(np.int64)
        if places.dtype.kind not in "iu":
            raise IndexError(f"images are numbered by integers, got {places.dtype}")
        outside = (places < -len(self)) | (places >= len(self))
        if outside.any():
            wrong = places[outside].ravel()[0]
            raise IndexError(f"index {wrong} is out of range for {len(self)} images")
        return np.where(places < 0, places + len(self), places).astype(np.int64)

    def _read(self, places: np.ndarray) -> np.ndarray:
        """The images at ``places`` (``[k]``, each in 0..n-1), neighbours in one read."""
        found = np.empty((len(places), *self.shape[1:]), np.uint8)
        flat = found.reshape(-1)
        # A run of neighbours ends where the next place is not the next number.
        breaks = np.flatnonzero(np.diff(places) != 1) + 1
        starts = [0, *breaks.tolist()]
        ends = [*breaks.tolist(), len(places)]
        for start, end in zip(starts, ends, strict=True):
            if end > start:
                target = flat[start * self._image_bytes : end * self._image_bytes]
                self._fill(target, int(places[start]) * self._image_bytes)
        return found

    def _fill(self, target: np.ndarray, offset: int) -> None:
        """Read ``uint8 [length]`` from a place of the file."""
        view = target.data
        done = 0
        while done < len(view):
            # preadv has no position of its own to share, so threads do not disturb each other.
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
    """Images appended one by one to a file, with their SHA-256 and their hashes.

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
        # Hashed while it is at hand: finding copies later would read all pixels again.
        self._hashes.append(image_hashes(image[None]).astype("<u8").tobytes())

    def finish(self) -> Facts:
        """Write the hashes; returns shape and SHA-256."""
        self._file.write(b"".join(self._hashes))
        return {"shape": [len(self._hashes), *self._image], "sha256": self._sha256.hexdigest()}


def cache_folder() -> Path:
    """Return the folder of decoded images; see the module's text."""
    return files.cache_folder() / "images"


def digest(*facts: object) -> str:
    """A short hash of JSON values, for names of entries."""
    return hashlib.sha256(json.dumps([VERSION, *facts]).encode()).hexdigest()[:24]


def stored(
    place: str,
    listing: str,
    make: Callable[[Writer], Mapping[str, object]],
    title: str = "the same images",
) -> tuple[StoredImages, Facts]:
    """The images of an entry, made first where there are none.

    Other entries of the same place are replaced.

    Args:
        place: :func:`digest` of what is asked for.
        listing: :func:`digest` of what it is made from.
        make: appends all images to the writer and returns the facts to keep beside them, as JSON
            values. Of several processes one calls it, and the others wait and say so on stderr.
        title: the source, for that message.

    Raises:
        DataError: when the cache cannot be written; nothing half-written stays.
        TessellaError: whatever ``make`` raises.
    """
    folder = cache_folder()
    found = _find(folder, place, listing)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _acquired(FileLock(folder / f"{place}.lock"), title):
            # By now another process may have made it.
            found = _find(folder, place, listing)
            if found is None:
                _make(folder, place, listing, make)
                found = _find(folder, place, listing)
    except (OSError, NotImplementedError) as error:
        raise DataError(_cannot_keep(folder, error)) from error
    assert found is not None
    return found


def _cannot_keep(folder: Path, error: BaseException) -> str:
    return (
        f"cannot keep decoded images in {folder}: {reason(error)};"
        " set TESSELLA_CACHE to a folder that can be written and has space"
    )


def _acquired(lock: FileLock, title: str) -> contextlib.AbstractContextManager[object]:
    """The lock, held; released at the end of a ``with`` block."""
    try:
        return lock.acquire(timeout=1)
    except Timeout:
        print(f"waiting for another process that decodes {title}", file=sys.stderr, flush=True)
        return lock.acquire()


def _find(folder: Path, place: str, listing: str) -> tuple[StoredImages, Facts] | None:
    """An entry that is whole, or None."""
    name = f"{place}-{listing}"
    try:
        facts = files.read_json_object(folder / f"{name}.json", MAX_FACTS)
        count, height, width, channels = facts["shape"]
        shape = (count, height, width, channels)
        return StoredImages(folder / f"{name}.u8", shape, facts["sha256"]), facts
    except (OSError, ValueError, KeyError, TypeError, ArtifactError, DataError):
        # Missing, half written by an older version, or damaged: all are made anew.
        return None


def _make(
    folder: Path, place: str, listing: str, make: Callable[[Writer], Mapping[str, object]]
) -> None:
    """Write an entry and delete the others of its place; the caller holds the lock."""
    # The JSON file goes first and comes last: an entry without it does not count.
    name = f"{place}-{listing}"
    files.sweep(folder, f"{place}-*")  # what a killed process left
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
            facts: Facts = {**made, "version": VERSION, **writer.finish()}
        files.write_json(folder / f"{name}.json", facts)
    except ArtifactError as error:
        # The maker's own errors come back as they were; others are of the cache.
        if failure is not None:
            raise failure from None
        raise DataError(_cannot_keep(folder, error.__cause__ or error)) from error
    for old in folder.glob(f"{place}-*"):
        if old.stem != name:
            old.unlink(missing_ok=True)

"""Images on their way to disk: each batch is written as soon as it is drawn, and a run that was
killed goes on.

A run of images is a directory of PNG files, each named by its seed, or one ``.npz`` file. While a
``.npz`` file is drawn, its pixels grow in a directory ``NAME.npz.part`` beside it, which is packed
into the file, and goes, at the end. A file ``made.json`` in the directory (of a finished ``.npz``
file the comment of the archive) says how the images were made. A run goes on at the start of the
batch that it was killed in: its batches are then those of a run that was not killed, and so is
every byte.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm  # type: ignore[import-untyped]

from tessella import files
from tessella.errors import ArtifactError, InputError
from tessella.storage import pictures

RECORD = "made.json"
PIXELS = "images.u8"
"""Of a ``.npz`` file that is being drawn: the images so far, row-major, one after another."""

FREE = {"tessella", "run", "method", "n"}
"""What may differ from the run that is gone on with: none of it changes an image."""

CHUNK = 1 << 20
"""Bytes copied at a time."""

WRITERS = 16
"""Threads that write pictures: each waits until its file is on disk, and a disk serves many at
once."""

EVERY = 10.0
"""Seconds between two lines of progress where there is no terminal."""

TOLD = "{n:,.0f} of {total:,} images, {rate_noinv_fmt}, {remaining} left"


class Run(ABC):
    """A run of images on disk; :func:`opened` makes one.

    Args:
        path: the directory, or the ``.npz`` file.
        folder: where the record lies while the run is drawn.
        made: how the images are made, as plain values; ``n`` of them, from ``seed`` on.
        shape: ``(height, width, channels)`` of each.

    Raises:
        InputError: when the place holds something else, or more images than ``n``.
    """

    def __init__(
        self, path: Path, folder: Path, made: Mapping[str, Any], shape: tuple[int, int, int]
    ) -> None:
        self.path, self.folder, self.made, self.shape = path, folder, dict(made), shape
        self.n, self.seed = int(made["n"]), int(made["seed"])
        self.next = 0
        """Number of the image that :meth:`append` takes next."""
        self._begun = False

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether nothing is left to do."""

    def resume(self, batch: int) -> int:
        """Where drawing goes on: the first image of the batch that is not whole; ``n`` when all are
        there."""
        there = self._count()
        self.next = there if there == self.n else there - there % max(1, batch)
        return self.next

    def append(self, images: np.ndarray) -> None:
        """Write the next images, ``uint8 [batch, height, width, channels]``. They are on disk when
        it returns."""
        if not self._begun:
            self._begin()
        self._write(images)
        self.next += len(images)

    def finish(self) -> None:
        """Bring the run into its last form, when all images are written."""
        if not self._begun and not self.finished:
            self._begin()
        self._close()

    @abstractmethod
    def _count(self) -> int:
        """Images that are there, from the first one on without a gap."""

    def _begin(self) -> None:
        """Write the record, and put away what the images to come replace."""
        self._begun = True

    @abstractmethod
    def _write(self, images: np.ndarray) -> None:
        """Put the next images on disk."""

    @abstractmethod
    def _close(self) -> None:
        """Bring what is on disk into its last form."""

    def _recorded(self) -> int:
        """Images that the record asks for; 0 where there is none."""
        path = self.folder / RECORD
        return self._checked(self.folder, files.read_json(path)) if path.exists() else 0

    def _checked(self, place: Path, found: Any) -> int:
        """Images that were asked for with a record; refuses one of images made in another way."""
        way_out = f"name another --out, or delete {place} to begin anew"
        if not isinstance(found, dict) or not {"model", "seed", "n"} <= found.keys():
            raise InputError(f"{place} holds something else than a run of images: {way_out}")
        differs = [
            f"{name} {found.get(name)} (now {self.made.get(name)})"
            for name in {**self.made, **found}
            if name not in FREE and found.get(name) != self.made.get(name)
        ]
        if differs:
            raise InputError(
                f"{place} holds another run of images, of {', '.join(differs)}: {way_out}"
            )
        n = int(found["n"])
        if n > self.n:
            raise InputError(
                f"{place} holds a run of {n} images, and --n is {self.n}: give --n {n}, {way_out}"
            )
        return n


class Pictures(Run):
    """A directory of single PNG files, each named by its seed and saying how it was made."""

    @property
    def finished(self) -> bool:
        return self._recorded() == self._count() == self.n

    def _count(self) -> int:
        if not self._recorded():
            with os.scandir(self.path) as entries:
                if any(entry.name.endswith(".png") for entry in entries):
                    self._checked(self.path, None)
            return 0
        return next((i for i in range(self.n) if not (self.path / self._name(i)).exists()), self.n)

    def _begin(self) -> None:
        super()._begin()
        with self._all_or_none() as partial:
            files.write_json(partial / RECORD, self.made)

    def _write(self, images: np.ndarray) -> None:
        def save(number: int, image: np.ndarray) -> None:
            made = self.made | {"seed": self.seed + number, "n": 1}
            pictures.save_png(partial / self._name(number), image, made)

        with self._all_or_none() as partial, ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(save, range(self.next, self.next + len(images)), images))

    def _close(self) -> None:
        pass

    def _name(self, number: int) -> str:
        return f"{self.seed + number:08d}.png"

    @contextlib.contextmanager
    def _all_or_none(self) -> Iterator[Path]:
        """A directory for whole files; they get their names, in order, when all of them are on
        disk."""
        partial = self.path / ".batch.partial"
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        try:
            partial.mkdir()
            yield partial
            for file in sorted(partial.iterdir(), key=lambda file: (len(file.name), file.name)):
                file.replace(self.path / file.name)
            files.flush(self.path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


class Archive(Run):
    """A ``.npz`` file with the images ``uint8 [n, height, width, channels]`` under ``arr_0``."""

    @property
    def finished(self) -> bool:
        return self._packed() == self.n

    def _count(self) -> int:
        return max(self._loose(), self._packed())

    def _begin(self) -> None:
        super()._begin()
        loose = self._loose()
        files.write_json(self.folder / RECORD, self.made)
        with (self.folder / PIXELS).open("ab") as pixels:
            pixels.truncate(min(loose, self.next) * self._bytes)
            if loose < self.next:
                with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as packed:
                    np.lib.format.read_magic(packed)
                    np.lib.format.read_array_header_1_0(packed)
                    packed.seek(loose * self._bytes, os.SEEK_CUR)
                    for _ in range(loose, self.next):
                        pixels.write(packed.read(self._bytes))

    def _write(self, images: np.ndarray) -> None:
        assert images.dtype == np.uint8
        assert images.shape[1:] == self.shape
        with (self.folder / PIXELS).open("ab") as pixels:
            pixels.write(np.ascontiguousarray(images).data)
            pixels.flush()
            os.fsync(pixels.fileno())

    def _close(self) -> None:
        if not self.finished:
            self._pack()
        for name in (PIXELS, RECORD):
            (self.folder / name).unlink(missing_ok=True)
        files.sweep(self.folder)

    def _pack(self) -> None:
        partial = self.folder / f".{self.path.name}.partial"
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.n, *self.shape)}
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.comment = json.dumps(self.made).encode("ascii")
            with (
                archive.open("arr_0.npy", "w", force_zip64=True) as packed,
                (self.folder / PIXELS).open("rb") as pixels,
            ):
                np.lib.format.write_array_header_1_0(packed, header)
                shutil.copyfileobj(pixels, packed, CHUNK)
        files.flush(partial)
        partial.replace(self.path)
        files.flush(self.path.parent)

    def _loose(self) -> int:
        """Whole images among the pixels that are not packed yet."""
        pixels = self.folder / PIXELS
        return pixels.stat().st_size // self._bytes if self._recorded() and pixels.exists() else 0

    def _packed(self) -> int:
        """Images in the ``.npz`` file; 0 where there is none."""
        if not self.path.exists():
            return 0
        try:
            with zipfile.ZipFile(self.path) as archive:
                found = json.loads(archive.comment)
        except (zipfile.BadZipFile, ValueError):
            found = None
        return self._checked(self.path, found)

    @property
    def _bytes(self) -> int:
        return math.prod(self.shape)


@contextlib.contextmanager
def opened(path: Path, made: Mapping[str, Any], shape: tuple[int, int, int]) -> Iterator[Run]:
    """The run of images at a place, new or to be gone on with; a single process at a time draws
    there.

    Args:
        path: a name that ends in ``.npz``, or a directory.
        made, shape: see :class:`Run`.

    Raises:
        InputError: when the place holds something else, or more images than are asked for.
        ArtifactError: when it cannot be written, or another process draws there.
    """
    packed = path.suffix == ".npz" and not path.is_dir()
    folder = path.with_name(f"{path.name}.part") if packed else path
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(exist_ok=True)
        with lock.acquire(timeout=0):
            try:
                yield (Archive if packed else Pictures)(path, folder, made, shape)
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
                if packed:
                    with contextlib.suppress(OSError):  # it holds what was drawn
                        folder.rmdir()
    except Timeout as error:
        raise ArtifactError(
            f"another process draws images to {path}: wait for it, or name another --out"
        ) from error
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}: {error.strerror or error}; the same command goes on from there"
        ) from error


@contextlib.contextmanager
def progress(total: int, start: int = 0) -> Iterator[Callable[[float], None]]:
    """How many images there are, told on standard error: a bar on a terminal, elsewhere a line
    every ten seconds.

    Yields:
        What to call with the images so far, a part of one counting too.
    """
    format = "{percentage:3.0f}% |{bar}| " + TOLD
    bar = tqdm(
        total=total, initial=start, unit=" images", leave=False, disable=None, bar_format=format
    )
    began = told = time.monotonic()

    def tell(done: float) -> None:
        nonlocal told
        now = time.monotonic()
        if not bar.disable:
            bar.update(done - bar.n)
        elif now - told >= EVERY:
            told = now
            line = tqdm.format_meter(
                done, total, now - began, unit=" images", initial=start, bar_format=TOLD
            )
            print(line, file=sys.stderr, flush=True)

    with bar:
        yield tell

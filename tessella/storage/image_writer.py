"""Images on their way to disk: each batch is written as soon as it is drawn.

A series of images is a directory of PNG files, each named by its seed, or one ``.npz`` file. It
follows the protocol of :mod:`tessella.storage.resumable`: stopped anywhere, the same command goes
on at the start of the batch that was not whole, and ends in the same bytes.

While a ``.npz`` file is drawn, its pixels grow in a directory ``NAME.npz.part`` beside it, which is
packed into the file, and removed, at the end. How the images were made is said by ``made.json`` in
the directory, and by the comment of a finished archive.
"""

from __future__ import annotations

import contextlib
import glob
import math
import os
import re
import shutil
import sys
import time
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np

from tessella import files, progress_bars
from tessella.errors import ArtifactError, InputError, check_integer
from tessella.files import pictures
from tessella.storage import resumable
from tessella.storage.resumable import RECORD

PIXELS = "images.u8"
"""File of the pixels of an archive that is being drawn: row-major, one image after another."""

FREE = {"tessella", "run", "method", "n"}
"""What may differ from the series that is continued: none of it changes an image."""

CHUNK = 1 << 20
"""Bytes copied at a time."""

WRITERS = 16
"""Threads that write pictures: each waits for the disk, and a disk serves many at once."""

EVERY = 10.0
"""Seconds between two lines of progress where there is no terminal."""

PROGRESS = "{n:,.0f} of {total:,} images, {rate_noinv_fmt}, {remaining} left"


class ImageSeries(ABC):
    """A series of images on disk; :func:`opened` makes one.

    Args:
        path: the directory, or the ``.npz`` file.
        folder: holds the record while images are drawn.
        made: how the images are made, as plain values; ``n`` of them, from ``seed`` on.
        shape: ``(height, width, channels)`` of each.
    """

    def __init__(
        self, path: Path, folder: Path, made: Mapping[str, object], shape: tuple[int, int, int]
    ) -> None:
        self.path = path
        self.folder = folder
        self.made = dict(made)
        self.shape = shape
        self.n = check_integer("n", made["n"], least=1)
        self.seed = check_integer("seed", made["seed"])
        self.next = 0
        """Number of the image that :meth:`append` takes next."""
        # Nothing is created before the first image is there: what is refused leaves no trace.
        self._begun = False
        self._discarded = False

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether all images are there, in their last form."""

    def resume(self, batch: int) -> int:
        """Return the first image that is to be drawn; ``n`` when all are there.

        Drawing goes on at the start of a batch, so that its batches are those of a run that was
        never stopped.

        Raises:
            InputError: for a batch below 1.
        """
        batch = check_integer("batch", batch, least=1)
        there = self._count()
        # The batch that was being written when the run stopped is drawn again from its start.
        if there < self.n:
            there -= there % batch
        self.next = there
        return self.next

    def append(self, images: np.ndarray) -> None:
        """Write the next images, ``uint8 [batch, height, width, channels]``, to disk.

        Raises:
            InputError: for images of another shape or type, or more than are missing.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.shape:
            raise InputError(
                f"the images must be uint8 [batch, {', '.join(map(str, self.shape))}], "
                f"got {images.dtype} {list(images.shape)}"
            )
        if self.next + len(images) > self.n:
            raise InputError(f"{self.next + len(images)} images were given, n is {self.n}")
        if not self._begun:
            self._begin()
        self._write(images)
        self.next += len(images)

    def finish(self) -> None:
        """Bring the series into its last form; what was written is counted first.

        Raises:
            ArtifactError: when images are missing.
        """
        # Images of an earlier run may all be there, only not packed yet.
        if not self._begun and not self.finished:
            self._begin()
        if self._count() != self.n:
            raise ArtifactError(
                f"{self.path} is not finished: {self._count()} of {self.n} images were written"
            )
        self._close()

    def discard(self) -> None:
        """Remove the images and the record, to start over; other files stay."""
        self._discarded = True

    @abstractmethod
    def _count(self) -> int:
        """Count the images that are there, from the first one on without a gap."""

    def _begin(self) -> None:
        """Write the record, before the first image is written."""
        self._begun = True

    @abstractmethod
    def _write(self, images: np.ndarray) -> None:
        """Put the next images on disk."""

    @abstractmethod
    def _close(self) -> None:
        """Bring what is on disk into its last form."""

    def check(self) -> None:
        """Refuse a place that holds another series, more images than ``n``, or something else.

        Raises:
            InputError: saying what is there.
        """
        self._count()

    def _recorded(self) -> int:
        """Images that the record asks for; 0 where there is none."""
        record = resumable.read_record(self.folder)
        if record is None:
            return 0
        return self._same_series(self.folder, record)

    def _same_series(self, place: Path, found: object) -> int:
        """Return ``n`` of a record, after refusing one of images that are made in another way."""
        way_out = f"name another --out, or delete {place} to start over"
        if not isinstance(found, dict) or not {"model", "seed", "n"} <= found.keys():
            raise InputError(f"{place} holds something else than a run of images: {way_out}")
        differences = []
        for name in resumable.differing(found, self.made, FREE):
            differences.append(f"{name} {found.get(name)} (now {self.made.get(name)})")
        if differences:
            raise InputError(
                f"{place} holds another run of images, of {', '.join(differences)}: {way_out}"
            )
        # More images can follow, but those that are there are not deleted for a smaller n.
        n = check_integer(f"n in the record of {place}", found["n"])
        if n > self.n:
            raise InputError(
                f"{place} holds a run of {n} images, and --n is {self.n}: give --n {n}, {way_out}"
            )
        return n


class PictureFolder(ImageSeries):
    """A directory of single PNG files, each named by its seed and saying how it was made."""

    @property
    def finished(self) -> bool:
        # The record of a longer series has a larger n, although the first n images are there.
        return self._recorded() == self._count() == self.n

    def discard(self) -> None:
        super().discard()
        for file in self.folder.iterdir():
            # The user may keep other pictures here.
            if re.fullmatch(r"\d{8,}\.png", file.name) and files.made_here(file):
                file.unlink()
        resumable.remove_record(self.folder)

    def _count(self) -> int:
        if not self.path.is_dir():
            return 0
        if not self._recorded():
            foreign = any(self.path.glob("*.png"))
            if foreign and not self._discarded:
                self._same_series(self.path, None)  # which refuses
            return 0
        # Up to the first gap: batches are drawn in order, so a later file would be drawn again.
        for number in range(self.n):
            if not (self.path / self._name(number)).exists():
                return number
        return self.n

    def _begin(self) -> None:
        super()._begin()
        with files.atomic_batch(self.path) as partial:
            resumable.write_record(partial, self.made)

    def _write(self, images: np.ndarray) -> None:
        def save(number: int, image: np.ndarray) -> None:
            made = self.made | {"seed": self.seed + number, "n": 1}
            pictures.save_png(partial / self._name(number), image, made)

        numbers = range(self.next, self.next + len(images))
        # The pictures of a batch appear together, or a stopped run would leave gaps.
        with files.atomic_batch(self.path) as partial, ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(save, numbers, images))

    def _close(self) -> None:
        pass  # the record stays: it says how the pictures were made

    def _name(self, number: int) -> str:
        return f"{self.seed + number:08d}.png"


class PictureArchive(ImageSeries):
    """A ``.npz`` file with the images ``uint8 [n, height, width, channels]`` under ``arr_0``."""

    @property
    def finished(self) -> bool:
        return self._packed() == self.n

    def discard(self) -> None:
        super().discard()
        self.path.unlink(missing_ok=True)
        for name in (PIXELS, RECORD):
            (self.folder / name).unlink(missing_ok=True)

    def _count(self) -> int:
        return max(self._loose(), self._packed())

    def _begin(self) -> None:
        super()._begin()
        loose = self._loose()
        resumable.write_record(self.folder, self.made)
        with (self.folder / PIXELS).open("ab") as pixels:
            # A kill can leave a part of an image at the end.
            pixels.truncate(min(loose, self.next) * self._bytes)
            if loose < self.next:
                self._unpack(pixels, loose, self.next)

    def _unpack(self, pixels: IO[bytes], start: int, stop: int) -> None:
        """Append images ``start`` to ``stop`` of the finished archive, which is being added to."""
        with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as packed:
            np.lib.format.read_magic(packed)
            np.lib.format.read_array_header_1_0(packed)
            packed.seek(start * self._bytes, os.SEEK_CUR)
            for _ in range(start, stop):
                pixels.write(packed.read(self._bytes))

    def _write(self, images: np.ndarray) -> None:
        with (self.folder / PIXELS).open("ab") as pixels:
            # Only what is on disk counts, so that a run goes on from it after a power failure.
            pixels.write(np.ascontiguousarray(images).data)
            pixels.flush()
            os.fsync(pixels.fileno())

    def _close(self) -> None:
        if not self.finished:
            self._pack()
        # The archive is whole by now, and says itself how it was made.
        for name in (PIXELS, RECORD):
            (self.folder / name).unlink(missing_ok=True)
        files.sweep(self.folder)
        files.sweep(self.path.parent, glob.escape(self.path.name))

    def _pack(self) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.n, *self.shape)}
        # Straight from the disk: the archive may be larger than the memory.
        with (
            files.atomic_file(self.path) as partial,
            zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            archive.comment = files.json_text(self.made, indent=None).encode()
            with (
                archive.open("arr_0.npy", "w", force_zip64=True) as packed,
                (self.folder / PIXELS).open("rb") as pixels,
            ):
                np.lib.format.write_array_header_1_0(packed, header)
                shutil.copyfileobj(pixels, packed, CHUNK)

    def _loose(self) -> int:
        """Whole images among the pixels that are not packed yet."""
        pixels = self.folder / PIXELS
        if not self._recorded() or not pixels.exists():
            return 0
        return min(self.n, pixels.stat().st_size // self._bytes)

    def _packed(self) -> int:
        """Images that the finished archive really holds; 0 where there is none."""
        if not self.path.exists():
            return 0
        record: object = None
        count = 0
        unreadable = (zipfile.BadZipFile, ArtifactError, KeyError, ValueError, OSError)
        with contextlib.suppress(*unreadable), zipfile.ZipFile(self.path) as archive:
            record = files.parse_json(archive.comment, f"the comment of {self.path}")
            count = self._images_in(archive)
        recorded = self._same_series(self.path, record)
        # The record alone does not make it finished: an archive with fewer images is drawn again.
        return recorded if count == recorded else 0

    def _images_in(self, archive: zipfile.ZipFile) -> int:
        """Images under ``arr_0``, by its header and its length."""
        member = archive.getinfo("arr_0.npy")
        with archive.open(member) as packed:
            np.lib.format.read_magic(packed)
            shape, _, dtype = np.lib.format.read_array_header_1_0(packed)
            is_whole = member.file_size == packed.tell() + math.prod(shape)
        fits = dtype == np.uint8 and shape[1:] == self.shape
        if not is_whole or not fits:
            return 0
        return shape[0]

    @property
    def _bytes(self) -> int:
        """Size of an image."""
        return math.prod(self.shape)


@contextlib.contextmanager
def opened(
    path: Path, made: Mapping[str, object], shape: tuple[int, int, int], force: bool = False
) -> Iterator[ImageSeries]:
    """Open the series of images at a place, new or to be continued, for this process alone.

    Args:
        path: a name that ends in ``.npz``, or a directory.
        made, shape: see :class:`ImageSeries`.
        force: start over where the place holds another series or a foreign archive.

    Raises:
        InputError: when the place holds something else, or more images than are asked for.
        ArtifactError: when it cannot be written, has not enough space, or another process draws
            there.
    """
    is_archive = path.suffix == ".npz" and not path.is_dir()
    series: ImageSeries
    if is_archive:
        folder = path.with_name(f"{path.name}.part")
        series = PictureArchive(path, folder, made, shape)
    else:
        folder = path
        series = PictureFolder(path, folder, made, shape)
    _check_place(series, force)
    with resumable.exclusive(folder, path, "draws images", temporary=is_archive):
        try:
            series.check()  # again: another process may have been faster
        except InputError:
            if not force:
                raise
            series.discard()
        yield series


def _check_place(series: ImageSeries, force: bool) -> None:
    """Refuse a place before anything is created there."""
    path = series.path
    if path.is_symlink():
        files.check_replaceable(path)  # which refuses links
    files.check_writable(path)
    there = 0
    # With force all images are drawn again, so all of them need space.
    if not force:
        series.check()
        there = series.resume(batch=1)
    height, width, _ = series.shape
    files.check_free_space(
        path, (series.n - there) * math.prod(series.shape), f"{series.n:,} images {height}x{width}"
    )


@contextlib.contextmanager
def progress(total: int, start: int = 0) -> Iterator[Callable[[float], None]]:
    """Show on standard error how many images are done.

    On a terminal it is a bar, elsewhere a line every ten seconds.

    Yields:
        A function to call with the images so far; a part of one counts too.
    """
    bar_format = "{percentage:3.0f}% |{bar}| " + PROGRESS
    bar = progress_bars.create(
        total=total, initial=start, unit=" images", leave=False, bar_format=bar_format
    )
    began = time.monotonic()
    last_line = began

    def show(done: float) -> None:
        nonlocal last_line
        now = time.monotonic()
        if not bar.disable:
            bar.update(done - bar.n)
        elif not progress_bars.are_hidden() and now - last_line >= EVERY:
            last_line = now
            line = bar.format_meter(
                done, total, now - began, unit=" images", initial=start, bar_format=PROGRESS
            )
            print(line, file=sys.stderr, flush=True)

    with bar:
        yield show

"""``cifar10:PATH``: the official python batches of CIFAR-10, read without running any pickle.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. A batch is a pickled
dict of ``data`` (uint8 [10000, 3072]: 1,024 red, then green, then blue values, row by row) and
``labels`` (a list of 0..9).
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np

from tessella.config import DataConfig
from tessella.data.cifar_pickle import PickledArray, unpickle
from tessella.data.limits import PIECE, BinaryReader
from tessella.data.other_formats import describe, with_advice
from tessella.data.paths import READ_ERRORS, name_list, one_line
from tessella.data.source_kinds import Source, refuse_other_kind, register_source
from tessella.data.splits import tail_split
from tessella.data.transform import Part, fit_arrays
from tessella.errors import DataError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
FOLDER = "cifar-10-batches-py"
MAX_BATCH_BYTES = 1 << 26
"""Largest batch file that is read, in bytes; the official ones have 31 million."""
MAX_ARCHIVE_BYTES = 1 << 29
"""Most bytes that are decompressed from an archive; the official one has 186 million."""


@register_source("cifar10")
class Cifar10Source(Source):
    """The python version of CIFAR-10."""

    about = "the python batches of CIFAR-10, a folder or the .tar.gz"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether a path is the official archive, or its folder, or holds that folder."""
        if path.name == "cifar-10-python.tar.gz":
            return True
        for folder in (path, path / FOLDER):
            if (folder / TRAIN_FILES[0]).is_file() or (folder / "test_batch").is_file():
                return True
        return False

    def read(self, path: str, split: str, config: DataConfig) -> Part:
        """One split of CIFAR-10, as ``uint8 [n, 32, 32, 3]`` with labels.

        ``path`` is the folder ``cifar-10-batches-py``, the folder that holds it, or
        ``cifar-10-python.tar.gz``. The last 5,000 images of the five training batches are the split
        ``valid`` (the last tenth if there are fewer than 50,000).

        Raises:
            DataError: when a batch is missing, damaged, or holds anything but arrays, lists, text
                and numbers.
        """
        location = self.locate(path)
        wanted = ("test_batch",) if split == "test" else TRAIN_FILES
        # The contents of the batch files, by name; only those of this split are read.
        if location.is_dir():
            contents = _from_folder(location, wanted)
        else:
            contents = _from_archive(location, wanted)
        all_images = []
        all_labels = []
        for name in wanted:
            batch_images, batch_labels = read_batch(contents[name], name)
            all_images.append(batch_images)
            all_labels.append(batch_labels)
        images = np.concatenate(all_images)
        labels = np.concatenate(all_labels)
        # The order of the training images carries no information, so the last ones can be the
        # validation set.
        index = slice(None)
        rule = "test_batch"
        if split != "test":
            index = tail_split(len(images), split)
            rule = "the last 5,000 (or tenth) of data_batch_1 to 5 are valid"
        part = Part(images[index], labels[index], NAMES, levels=256, split_rule=rule)
        return fit_arrays(part, config)


def read_batch(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``uint8 [n, 32, 32, 3]`` and labels ``int64 [n]`` of one batch file.

    Args:
        content: the bytes of the file.
        name: its name, for messages.

    Raises:
        DataError: when the file is not such a batch.
    """
    batch = unpickle(content, name)
    if not isinstance(batch, dict):
        raise DataError(
            f"{name} is not a CIFAR-10 batch: it holds a {type(batch).__name__}, not a dict"
        )
    fields: dict[str, object] = {}
    for key, value in batch.items():
        # Python 2 wrote the keys as bytes.
        text = key.decode("latin-1") if isinstance(key, bytes) else str(key)
        fields[text] = value
    stored = fields.get("data")
    labels = fields.get("labels")
    if stored is None or labels is None:
        raise DataError(
            f"{name} is not a CIFAR-10 batch: it needs the keys data and labels, and has "
            f"{name_list(list(fields))}"
        )
    if not isinstance(stored, PickledArray):
        raise DataError(f"{name}: data must be a uint8 array of shape [n, 3072]")
    pixels = stored.as_bytes(name)
    if pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise DataError(f"{name}: data must be a uint8 array of shape [n, 3072]")
    numbers = _labels(labels, len(pixels), name)
    # [n, channel, row, column] to [n, row, column, channel]. These are views of the pickle's bytes;
    # only the concatenation of batches copies them.
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), numbers


def _labels(labels: object, count: int, name: str) -> np.ndarray:
    message = f"{name}: labels must be a list of {count} integers in 0..9"
    if not isinstance(labels, list) or len(labels) != count:
        raise DataError(message)
    for label in labels:
        # bool is a subclass of int, but not a label.
        if type(label) is not int or not 0 <= label < len(NAMES):
            raise DataError(message)
    return np.array(labels, np.int64)


def _from_folder(folder: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    inside = folder / FOLDER
    if not inside.is_dir():
        inside = folder
    there = [file.name for file in inside.iterdir() if file.is_file()]
    missing = _without(wanted, there)
    if missing:
        refuse_other_kind(inside, Cifar10Source)
        raise DataError(f"cifar10:PATH: {inside} has no {missing}; it holds {name_list(there)}")
    contents: dict[str, bytes] = {}
    try:
        for name in wanted:
            # Checked first, since a file of any length can have the name of a batch.
            _check_length((inside / name).stat().st_size, name)
            contents[name] = (inside / name).read_bytes()
    except OSError as error:
        raise DataError(f"cifar10:PATH: {inside} cannot be read: {one_line(error)}") from error
    return contents


def _from_archive(file: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    # Otherwise an .npz file or a zip of images would just be called damaged below.
    refuse_other_kind(file, Cifar10Source)
    try:
        with _tar_stream(file) as archive:
            # The stream cannot seek back, so each member is read when it is reached.
            for member in archive:
                name = Path(member.name).name
                if name in wanted and member.isfile():
                    _check_length(member.size, name)
                    opened = archive.extractfile(member)
                    assert opened is not None  # it is a regular file
                    contents[name] = opened.read()
    except READ_ERRORS as error:
        message = f"cifar10:PATH: {file} is not an intact .tar.gz archive: {one_line(error)}"
        # For a damaged .tar.gz there is nothing to add.
        described = "" if file.suffix == ".gz" else describe(file)
        raise DataError(with_advice(message, described)) from error
    missing = _without(wanted, contents)
    if missing:
        raise DataError(f"cifar10:PATH: {file} holds no {missing}; is it cifar-10-python.tar.gz?")
    return contents


def _without(wanted: tuple[str, ...], found: Iterable[str]) -> str:
    """The wanted names that were not found, separated by commas."""
    there = set(found)
    return ", ".join(name for name in wanted if name not in there)


class _LimitedReader:
    """The decompressed bytes of an archive, up to :data:`MAX_ARCHIVE_BYTES`.

    A tar header can ask for a file name of gigabytes, which a few megabytes of gzip can supply.
    """

    def __init__(self, file: BinaryReader) -> None:
        self._file = file
        self._total = 0

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes; ValueError once the total is over the limit."""
        if not 0 <= size <= PIECE:
            size = PIECE
        piece = self._file.read(size)
        self._total += len(piece)
        if self._total > MAX_ARCHIVE_BYTES:
            raise ValueError(
                f"it holds more than {MAX_ARCHIVE_BYTES:,} bytes, too many for CIFAR-10"
            )
        return piece


@contextmanager
def _tar_stream(file: Path) -> Iterator[tarfile.TarFile]:
    """Open an archive, gzipped or uncompressed, to be read once from front to back."""
    with file.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    with gzip.open(file, "rb") if zipped else file.open("rb") as opened:
        # tarfile calls nothing but read() on a stream.
        stream = cast(IO[bytes], _LimitedReader(opened))
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            yield archive


def _check_length(size: int, name: str) -> None:
    if size > MAX_BATCH_BYTES:
        raise DataError(f"{name} has {size:,} bytes, too many for a CIFAR-10 batch")

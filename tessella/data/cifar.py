"""``cifar10:PATH``: the official python batches of CIFAR-10, read without running what a pickle may
hold.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. A batch is a pickled
dict of ``data`` (uint8 [10000, 3072]: 1,024 red, then green, then blue values, row by row) and
``labels`` (a list of 0..9).
"""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tessella.config import DataConfig
from tessella.data.paths import READ_ERRORS, existing, listing, one_line
from tessella.data.splits import with_tail
from tessella.data.transform import Part, fit_arrays
from tessella.errors import DataError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
FOLDER = "cifar-10-batches-py"
MAX_BATCH_BYTES = 1 << 28


def read_cifar10(path: str, split: str, config: DataConfig) -> Part:
    """One split of CIFAR-10, as ``uint8 [n, 32, 32, 3]`` with labels.

    ``path`` is the folder ``cifar-10-batches-py``, the folder that holds it, or
    ``cifar-10-python.tar.gz``. The last 5,000 images of the five training batches are valid (of
    fewer than 50,000: the last tenth).

    Raises:
        DataError: when a batch is missing, damaged, or holds anything but arrays, lists, text and
            numbers.
    """
    place = existing(path, "cifar10:PATH")
    wanted = ("test_batch",) if split == "test" else TRAIN_FILES
    contents = _from_folder(place, wanted) if place.is_dir() else _from_archive(place, wanted)
    batches = [read_batch(contents[name], name) for name in wanted]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    part = slice(None) if split == "test" else with_tail(len(images), split)
    rule = (
        "test_batch"
        if split == "test"
        else "the last 5,000 (or tenth) of data_batch_1 to 5 are valid"
    )
    return fit_arrays(Part(images[part], labels[part], NAMES, levels=256, split_rule=rule), config)


def read_batch(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``uint8 [n, 32, 32, 3]`` and labels ``int64 [n]`` of one batch file.

    Args:
        content: the bytes of the file.
        name: its name, for messages.

    Raises:
        DataError: when it is not such a batch.
    """
    batch = _unpickle(content, name)
    if not isinstance(batch, dict):
        raise DataError(
            f"{name} is no CIFAR-10 batch: it holds a {type(batch).__name__}, not a dict"
        )
    fields = {
        key.decode("latin-1") if isinstance(key, bytes) else str(key): value
        for key, value in batch.items()
    }
    data, labels = fields.get("data"), fields.get("labels")
    if data is None or labels is None:
        raise DataError(
            f"{name} is no CIFAR-10 batch: it needs the keys data and labels, and has {listing(list(fields))}"
        )
    pixels = data.array(name) if isinstance(data, _Array) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise DataError(f"{name}: data must be a uint8 array of shape [n, 3072]")
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(_is_label(label) for label in labels)
    ):
        raise DataError(f"{name}: labels must be a list of {len(pixels)} whole numbers of 0..9")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, np.int64)


def _is_label(value: Any) -> bool:
    return type(value) is int and 0 <= value < len(NAMES)


class _Dtype:
    """Stands in for ``numpy.dtype``: remembers the name of the type and ignores the rest."""

    def __init__(self, name: str | bytes = "", *flags: Any) -> None:
        self.name = name.decode("latin-1") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands in for ``numpy.ndarray``, so that no state out of a file ever reaches numpy's own
    unpickling."""

    def __init__(self, *arguments: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self, name: str) -> np.ndarray:
        """The array, when it is one of unsigned bytes in row-major order."""
        try:
            _, shape, dtype, fortran, raw = self.state
            if dtype.name not in ("u1", "|u1", "uint8") or fortran or not isinstance(raw, bytes):
                raise ValueError
            return np.frombuffer(raw, np.uint8).reshape(shape)
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{name}: data is not a row-major array of unsigned bytes") from error


def _encode(text: str, encoding: str | bytes) -> bytes:
    """Stands in for ``_codecs.encode``, by which Python 3 writes bytes in the old protocols:
    latin-1 only."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not allowed")
    return text.encode("latin-1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists, text, numbers and the stand-ins above; refuses every other name before
    anything runs."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which a CIFAR-10 batch does not need"
            ) from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def _unpickle(content: bytes, name: str) -> Any:
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can fail with an error of any class
        raise DataError(f"{name} is refused or damaged: {one_line(error)}") from error


def _from_folder(folder: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    inside = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    missing = [name for name in wanted if not (inside / name).is_file()]
    if missing:
        there = listing([file.name for file in inside.iterdir()])
        raise DataError(f"cifar10:PATH: {inside} has no {', '.join(missing)}; it holds {there}")
    contents: dict[str, bytes] = {}
    try:
        for name in wanted:
            _check_length((inside / name).stat().st_size, name)
            contents[name] = (inside / name).read_bytes()
    except OSError as error:
        raise DataError(f"cifar10:PATH: {inside} cannot be read: {one_line(error)}") from error
    return contents


def _from_archive(file: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(file, "r:*") as archive:
            for member in archive:
                name = Path(member.name).name
                if name in wanted and member.isfile():
                    _check_length(member.size, name)
                    opened = archive.extractfile(member)
                    assert opened is not None  # it is a regular file
                    contents[name] = opened.read()
    except READ_ERRORS as error:
        raise DataError(
            f"cifar10:PATH: {file} is no intact .tar.gz archive: {one_line(error)}"
        ) from error
    missing = [name for name in wanted if name not in contents]
    if missing:
        raise DataError(
            f"cifar10:PATH: {file} holds no {', '.join(missing)}; is it cifar-10-python.tar.gz?"
        )
    return contents


def _check_length(size: int, name: str) -> None:
    if size > MAX_BATCH_BYTES:
        raise DataError(f"{name} has {size:,} bytes, too many for a CIFAR-10 batch")

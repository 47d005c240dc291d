"""``mnist:PATH``: a folder with the four idx files of MNIST, or of a data set in the same format.

The idx format (Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits): a
big-endian magic number whose third byte is the type (8: unsigned byte) and whose fourth is the
number of dimensions, one 32-bit size for each dimension, then the values in row-major order.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path

import numpy as np

from tessella.config import DataConfig
from tessella.data.array_checks import check_values
from tessella.data.class_labels import check_held_out
from tessella.data.limits import check_content, read_up_to
from tessella.data.other_formats import describe, with_advice
from tessella.data.paths import READ_ERRORS, name_list, one_line
from tessella.data.source_kinds import Source, refuse_other_kind, register_source
from tessella.data.splits import tail_split
from tessella.data.transform import Part, fit_arrays
from tessella.errors import DataError

_PREFIX = {"train": "train", "valid": "train", "test": "t10k"}
_GZIP = b"\x1f\x8b"


@register_source("mnist")
class MnistSource(Source):
    """The four idx files of MNIST, EMNIST, Fashion-MNIST and others."""

    about = "a folder of idx files, gzipped or not"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether a folder contains a file named like one of the four."""
        if not path.is_dir():
            return False
        return any(re.search(r"[.-]idx[13]-ubyte(\.gz)?$", file.name) for file in path.iterdir())

    def read(self, path: str, split: str, config: DataConfig) -> Part:
        """One split of a folder of idx files, as ``uint8 [n, height, width, 1]`` with labels.

        The files are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with
        ``t10k``; ``.idx3-ubyte`` for ``-idx3-ubyte`` and a further ``.gz`` are accepted. The last
        5,000 training images are the split ``valid`` (the last tenth if there are fewer than
        50,000), the files ``t10k`` are ``test``.

        Raises:
            DataError: when the folder or a file is missing, is not in the idx format, is cut short
                or too long, or when images and labels differ in number.
            InputError: when the values do not span 0..255, but only 0 and 1, for example, or when
                the test images have labels that the training images lack.
        """
        folder = self.locate(path)
        # The four files belong together, so the path must be that of their folder.
        if not folder.is_dir():
            refuse_other_kind(folder, MnistSource)
            message = f"mnist:PATH takes the folder of the four idx files, got the file {path}"
            raise DataError(with_advice(message, describe(folder)))
        prefix = _PREFIX[split]
        images_file = _find(folder, f"{prefix}-images", 3)
        images = read_idx(images_file, 3)  # [n, height, width]
        labels = read_idx(_find(folder, f"{prefix}-labels", 1), 1)  # [n]
        if len(images) != len(labels):
            raise DataError(f"{path}: {len(images)} {prefix} images have {len(labels)} labels")
        _check_held_out(folder, prefix, labels)
        # Binarized data sets are published in this format too, some of them with values 0 and 1.
        check_values(images, images_file.name, config.levels)
        # Every label of the file counts, so that train and valid have the same classes.
        classes = max(10, int(labels.max(initial=0)) + 1)
        index = slice(None)
        rule = "the files t10k"
        if split != "test":
            index = tail_split(len(images), split)
            rule = "the last 5,000 (or tenth) of the files train are valid"
        part = Part(
            images=images[index][..., None],
            labels=labels[index].astype(np.int64),
            label_names=tuple(map(str, range(classes))),
            levels=256,
            split_rule=rule,
        )
        return fit_arrays(part, config)


def read_idx(file: Path, dimensions: int) -> np.ndarray:
    """Read an idx file of unsigned bytes, gzipped or not.

    Memory is allocated for values that are in the file, never for those that only the header
    declares.

    Args:
        file: the file.
        dimensions: how many dimensions the array must have.

    Raises:
        DataError: when the magic number or the length is wrong, when the content is far too large
            for its file, or when the file cannot be read.
    """
    header_bytes = 4 + 4 * dimensions
    # The header alone allocates nothing: anybody can write four numbers.
    try:
        on_disk = file.stat().st_size
        with _opened(file) as opened:
            shape = _shape(opened.read(header_bytes), dimensions, file)
            count = math.prod(shape)
            if isinstance(opened, gzip.GzipFile):
                check_content(count, on_disk, f"the content of {file.name}")
                # One byte more than declared shows whether the file is too long.
                values = read_up_to(opened, count + 1)
                found = len(values)
            else:
                # The size on disk shows immediately whether the header is right.
                found = on_disk - header_bytes
                values = read_up_to(opened, count) if found == count else bytearray()
    except READ_ERRORS as error:
        raise DataError(f"{file.name} is damaged or cannot be read: {one_line(error)}") from error
    if found != count or len(values) != count:
        more = "more" if found > count else f"only {min(found, len(values) or found):,}"
        raise DataError(
            f"{file.name} should hold {count:,} values ({_in_words(shape)}) after its header, but "
            f"has {more}"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def _opened(file: Path) -> gzip.GzipFile | BufferedReader:
    """Open a file, decompressing it if it starts like a gzip file, whatever its name."""
    with file.open("rb") as raw:
        zipped = raw.read(2) == _GZIP
    if zipped:
        return gzip.open(file, "rb")
    return file.open("rb")


def _shape(header: bytes, dimensions: int, file: Path) -> tuple[int, ...]:
    """The sizes in a header, one for each dimension."""
    expected = 0x0800 + dimensions
    if len(header) != 4 + 4 * dimensions:
        raise DataError(f"{file.name} is cut short: {len(header)} bytes do not hold an idx header")
    # Big-endian: 0, 0, type (8: unsigned byte), number of dimensions; then one size for each.
    magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
    if magic != expected:
        kind = {0x0801: "labels", 0x0803: "images"}.get(magic, "not an idx file of bytes")
        raise DataError(
            f"{file.name} has the magic number {magic:#010x} ({kind}), expected {expected:#010x}"
        )
    if dimensions > 1 and 0 in shape[1:]:
        raise DataError(f"{file.name} declares images without pixels ({_in_words(shape)})")
    return tuple(shape)


def _in_words(shape: Sequence[int]) -> str:
    """A shape as text, such as ``60000x28x28``."""
    return "x".join(str(size) for size in shape)


def _check_held_out(folder: Path, prefix: str, labels: np.ndarray) -> None:
    """Refuse test images of classes that no training image has; ``labels`` are read already."""
    every = {}
    titles = {}
    for split in ("train", "test"):
        file = _file_of(folder, f"{_PREFIX[split]}-labels", 1)
        # Often only two of the four files are there.
        if file is not None:
            every[split] = labels if _PREFIX[split] == prefix else read_idx(file, 1)
            titles[split] = file.name
    check_held_out(every, titles)


def _file_of(folder: Path, name: str, dimensions: int) -> Path | None:
    # The published files have a hyphen, which some old unpacking programs turn into a dot.
    for separator in "-.":
        for end in ("", ".gz"):
            file = folder / f"{name}{separator}idx{dimensions}-ubyte{end}"
            if file.is_file():
                return file
    return None


def _find(folder: Path, name: str, dimensions: int) -> Path:
    file = _file_of(folder, name, dimensions)
    if file is not None:
        return file
    refuse_other_kind(folder, MnistSource)
    there = name_list([file.name for file in folder.iterdir()])
    message = f"{folder} has no file {name}-idx{dimensions}-ubyte (or .gz); it holds {there}"
    raise DataError(with_advice(message, describe(folder)))

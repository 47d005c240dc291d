"""``mnist:PATH``: a folder with the four idx files of MNIST, or of a data set published in its
form.

The idx format (Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits): a
big-endian magic number whose third byte is the type (8: unsigned byte) and whose fourth is the
number of dimensions, one 32-bit size for each dimension, then the values in row-major order.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np

from tessella.config import DataConfig
from tessella.data.paths import READ_ERRORS, existing, listing, one_line
from tessella.data.splits import with_tail
from tessella.data.transform import Part, fit_arrays
from tessella.errors import DataError

_PREFIX = {"train": "train", "valid": "train", "test": "t10k"}


def read_mnist(path: str, split: str, config: DataConfig) -> Part:
    """One split of a folder of idx files, as ``uint8 [n, height, width, 1]`` with labels.

    The files are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with
    ``t10k``; ``.idx3-ubyte`` for ``-idx3-ubyte`` and a further ``.gz`` are accepted. The last 5,000
    training images are valid (of fewer than 50,000: the last tenth), the files ``t10k`` are test.

    Raises:
        DataError: when the folder or a file is missing, is not in the idx format, is cut short or
            too long, or when images and labels differ in number.
    """
    folder = existing(path, "mnist:PATH")
    if not folder.is_dir():
        raise DataError(f"mnist:PATH takes the folder of the four idx files, got the file {path}")
    images = read_idx(_find(folder, f"{_PREFIX[split]}-images", 3), 3)
    labels = read_idx(_find(folder, f"{_PREFIX[split]}-labels", 1), 1)
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} {_PREFIX[split]} images have {len(labels)} labels")
    part = slice(None) if split == "test" else with_tail(len(images), split)
    classes = max(10, int(labels.max(initial=0)) + 1)
    return fit_arrays(
        Part(
            images=images[part][..., None],
            labels=labels[part].astype(np.int64),
            label_names=tuple(str(label) for label in range(classes)),
            levels=256,
            split_rule="the files t10k"
            if split == "test"
            else "the last 5,000 (or tenth) of the files train are valid",
        ),
        config,
    )


def read_idx(file: Path, dimensions: int) -> np.ndarray:
    """An idx file of unsigned bytes, gzipped or not.

    Args:
        file: the file.
        dimensions: how many dimensions the array must have.

    Raises:
        DataError: when the magic number or the length is wrong, or the file cannot be read.
    """
    try:
        with file.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(file, "rb") if zipped else file.open("rb") as opened:
            header = opened.read(4 + 4 * dimensions)
            shape = _shape(header, dimensions, file)
            count = math.prod(shape)
            values = opened.read(count + 1)
    except READ_ERRORS as error:
        raise DataError(f"{file.name} is damaged or cannot be read: {one_line(error)}") from error
    if len(values) != count:
        more = "more" if len(values) > count else f"only {len(values):,}"
        sizes = "x".join(map(str, shape))
        raise DataError(
            f"{file.name} should hold {count:,} values ({sizes}) after its header, but has {more}"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def _shape(header: bytes, dimensions: int, file: Path) -> tuple[int, ...]:
    expected = 0x0800 + dimensions
    if len(header) != 4 + 4 * dimensions:
        raise DataError(f"{file.name} is cut short: {len(header)} bytes do not hold an idx header")
    magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
    if magic != expected:
        kind = {0x0801: "labels", 0x0803: "images"}.get(magic, "no idx file of bytes")
        raise DataError(
            f"{file.name} has the magic number {magic:#010x} ({kind}), expected {expected:#010x}"
        )
    if dimensions > 1 and 0 in shape[1:]:
        raise DataError(f"{file.name} declares images without pixels ({'x'.join(map(str, shape))})")
    return tuple(shape)


def _find(folder: Path, name: str, dimensions: int) -> Path:
    for join in "-.":
        for end in ("", ".gz"):
            file = folder / f"{name}{join}idx{dimensions}-ubyte{end}"
            if file.is_file():
                return file
    there = listing([file.name for file in folder.iterdir()])
    raise DataError(f"{folder} has no file {name}-idx{dimensions}-ubyte (or .gz); it holds {there}")

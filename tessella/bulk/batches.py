"""Rows of a batch, as ``map_batches`` of Ray Data gives them, and as stages give them back.

A batch is a dictionary of columns, numpy arrays of equal length. Images are in one of two columns:
``image``, arrays ``uint8 [height, width, channels]``, or ``bytes``, the contents of image files.
Other columns, such as ``key`` and ``label``, are carried along.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tessella import files
from tessella.codec.archive_writer import CodedImage
from tessella.codec.image_modes import MODES_OF_ARRAYS, as_symbols
from tessella.codec.picture_files import MODE_NUMBERS, PictureFile, read_for_tokenizer, read_picture
from tessella.data.decode import decode
from tessella.data.transform import cut
from tessella.data.unusable_image import UnusableImage
from tessella.errors import DataError, InputError

Batch = dict[str, np.ndarray]

KEY = "key"
IMAGE = "image"
BYTES = "bytes"
SEED = "seed"

CARRIED = (KEY, "label", SEED)
"""Columns that a stage gives back as they came."""


def rows_of(batch: Mapping[str, np.ndarray]) -> int:
    """Number of rows of a batch that holds images.

    Raises:
        InputError: when it has no column of images, or both.
    """
    there = [name for name in (IMAGE, BYTES) if name in batch]
    if len(there) != 1:
        raise InputError(
            f"a batch needs one column of images, {IMAGE} (uint8 arrays) or {BYTES} (contents of"
            f" image files); its columns are {', '.join(batch) or 'none'}"
        )
    return len(batch[there[0]])


def carried(batch: Mapping[str, np.ndarray]) -> Batch:
    """The columns that a stage gives back as they came."""
    return {name: batch[name] for name in CARRIED if name in batch}


def name_of(batch: Mapping[str, np.ndarray], row: int) -> str:
    """The key of a row, for messages and for files."""
    if KEY in batch:
        return str(batch[KEY][row])
    return f"image {row}"


def prepared_image(
    batch: Mapping[str, np.ndarray], row: int, size: tuple[int, int] | None, channels: int
) -> np.ndarray:
    """An image of a row as a network takes it: ``uint8 [height, width, channels]``.

    Files are decoded as the data sources decode them, and scaled and cropped to the size. Arrays
    are taken as they are.

    Args:
        size: height and width in pixels; None keeps those of the image.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).

    Raises:
        DataError: when a file cannot be decoded.
    """
    if IMAGE in batch:
        return np.asarray(batch[IMAGE][row])
    try:
        picture = decode(io.BytesIO(bytes(batch[BYTES][row])), channels)
    except UnusableImage as error:
        raise DataError(f"{name_of(batch, row)} cannot be used: {error}") from error
    except OSError as error:
        raise DataError(f"{name_of(batch, row)}: {files.reason(error)}") from error
    # One piece: neither of these ways of cropping makes several.
    [(_, pixels)] = cut(picture, size, "center")
    return pixels


def picture_of(batch: Mapping[str, np.ndarray], row: int) -> PictureFile:
    """The image file of a row."""
    name = name_of(batch, row)
    return PictureFile(Path(name), name, bytes(batch[BYTES][row]))


def symbols_of(batch: Mapping[str, np.ndarray], row: int, levels: int) -> CodedImage:
    """An image of a row as symbols of a model of pixels, without loss.

    Raises:
        InputError: when the model has too few levels for its values.
        DataError: when a file cannot be decoded.
    """
    if BYTES in batch:
        return read_picture(picture_of(batch, row), levels)
    pixels = np.asarray(batch[IMAGE][row])
    symbols, scaled = as_symbols(pixels, levels, prefer_scaled=True)
    mode = MODE_NUMBERS[MODES_OF_ARRAYS[pixels.shape[-1]]]
    return CodedImage(symbols, scaled, mode, name=name_of(batch, row))


def whole_picture(batch: Mapping[str, np.ndarray], row: int, channels: int) -> np.ndarray:
    """An image of a row in its own size, as ``tessella compress`` gives it to a tokenizer.

    Raises:
        DataError: when a file cannot be decoded.
    """
    if IMAGE in batch:
        return np.asarray(batch[IMAGE][row])
    return read_for_tokenizer(picture_of(batch, row), channels)


def column(values: Sequence[object]) -> np.ndarray:
    """Values of any kind as a column: one object a row, even where all are arrays of one shape."""
    objects = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        objects[row] = value
    return objects

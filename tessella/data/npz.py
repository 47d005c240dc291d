"""``npz:PATH``: arrays of images in a numpy ``.npz`` file, in the layouts that are in use.

For each of the splits train, valid (or val) and test:

- ``{split}_images`` or ``{split}``, with ``{split}_labels`` where there are labels;

or for the file as a whole, with ``labels`` where there are labels:

- ``jpeg`` and ``offsets``: image files end to end, file i at ``jpeg[offsets[i]:offsets[i + 1]]``;
- ``images``;
- ``arr_0``, as sample archives have it.

A file as a whole is training data, or test data when the last word of its name is ``test``
(``photos_test.npz``). A split that the file lacks is cut from its training data by a permutation of
seed 0: 5 % for each, and at most 5,000 where the file does hold another split.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tessella.config import DataConfig
from tessella.data.image_files import Files, fit_files
from tessella.data.paths import READ_ERRORS, existing, listing, one_line
from tessella.data.splits import LARGEST_TAIL, SPLITS, permuted, share
from tessella.data.transform import Part, fit_arrays, parse_size
from tessella.errors import ConfigError, DataError, InputError

_WORDS = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}
_WHOLE = ("jpeg", "images", "arr_0")
_LAYOUTS = "{split}_images, {split}, images, arr_0, or jpeg with offsets"


def read_npz(path: str, split: str, config: DataConfig) -> Part:
    """One split of an ``.npz`` file, as ``uint8 [n, height, width, channels]``.

    Boolean arrays become 0 and 255, integers of other types must lie in 0..255,
    ``[n, height, width]`` gets one channel, and two-dimensional uint8 is unpacked by
    ``config.bits``. Nothing pickled is read.

    Raises:
        DataError: when the file is missing, damaged, or has no array for this split; its keys are
            listed.
        InputError: when an array has another type, shape or range.
    """
    place = existing(path, "npz:PATH")
    if not zipfile.is_zipfile(place):
        raise DataError(
            f"{path} is not an .npz file (a zip archive of arrays, as numpy.savez_compressed writes)"
        )
    try:
        arrays = np.load(place, allow_pickle=False)
    except READ_ERRORS as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error
    with arrays:
        return _read_split(_Arrays(arrays, place), split, config)


class _Arrays:
    """The arrays of an open file, with errors that name the file and the key."""

    def __init__(self, arrays: Any, place: Path) -> None:
        self._arrays = arrays
        self.place = place
        self.keys: list[str] = list(arrays.files)

    def __getitem__(self, key: str) -> np.ndarray:
        try:
            array = self._arrays[key]
        except (*READ_ERRORS, KeyError, MemoryError) as error:
            raise DataError(
                f"{self.place.name}: the array {key!r} cannot be read: {one_line(error)}"
            ) from error
        if not isinstance(array, np.ndarray):
            raise DataError(f"{self.place.name}: {key!r} is not a numpy array")
        return array

    def title(self, key: str) -> str:
        return f"{key!r} of {self.place.name}"


def _read_split(arrays: _Arrays, split: str, config: DataConfig) -> Part:
    found = _splits_in(arrays.keys, arrays.place)
    if split not in found and "train" not in found:
        by_name = (
            "" if "test" not in found or found["test"][0] not in _WHOLE else ", as its name says"
        )
        raise DataError(
            f"{arrays.place.name} holds {' and '.join(found)} images only{by_name} (keys: {listing(arrays.keys)});"
            f" split {split!r} needs a file with training images"
        )
    image_key, label_key = found[split if split in found else "train"]
    pixels = arrays[image_key]
    bounds = _bounds(arrays, pixels) if image_key == "jpeg" else None
    count = len(bounds) if bounds is not None else len(pixels) if pixels.ndim else 0
    index, rule = _places(found, split, count, image_key)
    labels = _labels(arrays, label_key, count)[index] if label_key in arrays.keys else None
    if bounds is not None:
        part = _decoded(arrays, pixels, bounds[index], labels, config)
        return replace(part, split_rule=rule)
    images, levels = _as_images(pixels, index, arrays.title(image_key), config)
    return fit_arrays(Part(images, labels, (), levels, rule), config)


def _splits_in(keys: Collection[str], place: Path) -> dict[str, tuple[str, str]]:
    """The splits a file holds, each with the keys of its images and of its labels (which may not be
    there)."""
    found: dict[str, tuple[str, str]] = {}
    for split in SPLITS:
        for word in _WORDS[split]:
            for key in (f"{word}_images", word):
                if key in keys:
                    found.setdefault(split, (key, f"{word}_labels"))
    if found:
        return found
    whole = "test" if re.split(r"[\W_]+", place.stem.lower())[-1] == "test" else "train"
    for key in _WHOLE:
        if key in keys and (key != "jpeg" or "offsets" in keys):
            return {whole: (key, "labels")}
    raise DataError(
        f"{place.name} has no images under a key we know ({_LAYOUTS}); its keys: {listing(list(keys))}"
    )


def _places(
    found: Collection[str], split: str, count: int, key: str
) -> tuple[np.ndarray | slice, str]:
    """Which images of the array a split takes, and the rule in words."""
    missing = [name for name in ("valid", "test") if name not in found]
    if split in found and (split != "train" or not missing):
        return slice(None), f"all of {key!r}"
    size = share(count, LARGEST_TAIL if len(found) > 1 else None)
    sizes = {name: size if name in missing else 0 for name in ("valid", "test")}
    parts = " and ".join(f"{sizes[name]} {name}" for name in missing)
    rule = f"{key!r} by numpy default_rng(0).permutation({count}), its last {parts}"
    return permuted(count, split, **sizes), rule


def _as_images(
    array: np.ndarray, index: np.ndarray | slice, title: str, config: DataConfig
) -> tuple[np.ndarray, int]:
    """The images of a split as ``uint8 [n, height, width, channels]``, with the number of values
    their pixels take."""
    bits = parse_size(config.bits, "bits")
    if bits:
        _check_packed(array, bits, title)
        return _unpack(array[index], bits), 2
    _check_type(array, title)
    _check_shape(array, title)
    images = array[index] if array.ndim == 4 else array[index][..., None]
    if array.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255), 2
    return np.ascontiguousarray(images, dtype=np.uint8), 256


def _check_shape(array: np.ndarray, title: str) -> None:
    shape = list(array.shape)
    if array.ndim == 2:
        raise InputError(
            f"{title} has the shape {shape}, not [n, height, width, channels]{_rows_hint(shape[1])}"
        )
    if array.ndim not in (3, 4) or (array.ndim == 4 and shape[3] not in (1, 3, 4)) or 0 in shape:
        planes = array.ndim == 4 and shape[1] in (1, 3, 4)
        hint = "; np.moveaxis(x, 1, -1) puts the channels last" if planes else ""
        raise InputError(
            f"{title} has the shape {shape}; images are [n, height, width] or [n, height, width, channels]"
            f" with 1, 3 or 4 channels{hint}"
        )


def _check_type(array: np.ndarray, title: str) -> None:
    if array.dtype in (np.bool_, np.uint8):
        return
    low, high = (array.min(), array.max()) if array.size and array.dtype.kind in "iuf" else (0, 0)
    if array.dtype.kind == "f":
        scaled = "x" if high > 1 else "255 * x" if low >= 0 else "127.5 * (x + 1)"
        raise InputError(
            f"{title} is {array.dtype} with values {low:g}..{high:g}; images are uint8 of 0..255. Convert them with"
            f' np.savez_compressed("new.npz", images=np.round({scaled}).astype(np.uint8))'
        )
    if array.dtype.kind not in "iu":
        raise InputError(f"{title} is of type {array.dtype}; images are uint8 of 0..255")
    if low < 0 or high > 255:
        raise InputError(f"{title} has values {low}..{high}; images are uint8 of 0..255")


def _check_packed(array: np.ndarray, size: tuple[int, int], title: str) -> None:
    packed = math.ceil(size[0] * size[1] / 8)
    if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != packed:
        raise InputError(
            f"{title} is {array.dtype} {list(array.shape)};"
            f" with data.bits={size[0]}x{size[1]} it must be uint8 [n, {packed}]"
        )


def _unpack(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bits, eight to a byte with the highest first, row by row, to 0 and 255."""
    return np.unpackbits(array, axis=1, count=size[0] * size[1]).reshape(-1, *size, 1) * np.uint8(
        255
    )


def _rows_hint(length: int) -> str:
    """What two-dimensional data may be, judged by the length of its rows."""
    packed, flat = math.isqrt(8 * length), math.isqrt(length)
    if packed and math.ceil(packed**2 / 8) == length:
        return f"; if a row is an image of packed bits, set data.bits={packed}x{packed}"
    if flat and flat**2 == length:
        return (
            f"; if a row is an image of {flat}x{flat} pixels, store x.reshape(-1, {flat}, {flat})"
        )
    return "; if a row is an image of packed bits, set data.bits=HEIGHTxWIDTH"


def _labels(arrays: _Arrays, key: str, count: int) -> np.ndarray:
    labels = arrays[key]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"{arrays.title(key)} is {labels.dtype} {list(labels.shape)}; labels are whole numbers [n]"
        )
    if len(labels) != count:
        raise InputError(f"{arrays.title(key)} holds {len(labels)} labels for {count} images")
    if count and int(labels.min()) < 0:
        raise InputError(
            f"{arrays.title(key)} has negative labels (down to {labels.min()}); classes count from 0"
        )
    return labels.astype(np.int64)


def _bounds(arrays: _Arrays, data: np.ndarray) -> np.ndarray:
    """Number, start and end of each file in ``jpeg``: ``int64 [n, 3]``."""
    offsets = arrays["offsets"]
    if data.dtype != np.uint8 or data.ndim != 1:
        raise InputError(
            f"{arrays.title('jpeg')} must be uint8 bytes [length], got {data.dtype} {list(data.shape)}"
        )
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or not len(offsets):
        given = f"{offsets.dtype} {list(offsets.shape)}"
        raise InputError(f"{arrays.title('offsets')} must be whole numbers [n + 1], got {given}")
    offsets = offsets.astype(np.int64)
    if offsets[0] < 0 or offsets[-1] > len(data) or (np.diff(offsets) <= 0).any():
        raise InputError(
            f"{arrays.title('offsets')} must rise within the {len(data)} bytes of 'jpeg'"
        )
    return np.stack([np.arange(len(offsets) - 1), offsets[:-1], offsets[1:]], axis=1)


def _decoded(
    arrays: _Arrays,
    data: np.ndarray,
    bounds: np.ndarray,
    labels: np.ndarray | None,
    config: DataConfig,
) -> Part:
    """Decode image files that lie end to end; all of them must be intact."""
    if config.bits:
        raise ConfigError(
            f"data.bits is for packed bits, and {arrays.place.name} holds JPEG files; leave it empty"
        )
    files = Files(
        [f"image {i}" for i in bounds[:, 0].tolist()],
        lambda index: io.BytesIO(data[bounds[index, 1] : bounds[index, 2]].tobytes()),
        None if labels is None else labels.tolist(),
    )
    part = fit_files(files, config, channels=config.channels, place=arrays.place.name, strict=True)
    return replace(part, names=None)

"""``npz:PATH``: arrays of images in a numpy ``.npz`` file, in the usual layouts.

Either for each of the splits train, valid (or val) and test:

- ``{split}_images`` or ``{split}``, with optional ``{split}_labels``;

or for the file as a whole, with optional ``labels``:

- ``jpeg`` and ``offsets``: concatenated image files, file i at ``jpeg[offsets[i]:offsets[i + 1]]``;
- ``images``;
- ``arr_0``, as sample archives have it;
- ``data`` with ``labels``, the batches of downsampled ImageNet: ``uint8 [n, 3 side side]``, a plane
  of red, of green and of blue, and labels from 1.

In the second case the file is training data, unless the last word of its name is ``test``
(``photos_test.npz``), or its name is ``val_data.npz``. A split that the file lacks is taken from
its training data, by a permutation with seed 0: 5 % for each, and at most 5,000 if the file has
another split.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tessella.config import DataConfig
from tessella.data.archive import open_archive
from tessella.data.array_checks import as_uint8, warn_if_constant
from tessella.data.class_labels import (
    check_held_out,
    check_labels,
    names_of_ids,
    renumbered,
    sparse_ids,
)
from tessella.data.image_files import ImageFiles, fit_files
from tessella.data.limits import BinaryReader, check_content
from tessella.data.other_formats import describe, with_advice
from tessella.data.paths import READ_ERRORS, name_list, one_line
from tessella.data.source_kinds import Source, refuse_other_kind, register_source
from tessella.data.splits import LARGEST_TAIL, SPLITS, permuted, split_size
from tessella.data.transform import Part, fit_arrays, parse_size
from tessella.errors import ConfigError, DataError, InputError

_SPLIT_WORDS = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}
_WHOLE_FILE_KEYS = ("jpeg", "images", "arr_0", "data")
_LAYOUTS = "{split}_images, {split}, images, arr_0, data with labels, or jpeg with offsets"
_IMAGENET_IDS = np.arange(1, 1001)
"""Labels of downsampled ImageNet: its 1,000 classes, counted from 1."""


@register_source("npz")
class NpzSource(Source):
    """Arrays of images in an ``.npz`` file."""

    about = "arrays of images in an .npz file"
    takes_bits = True

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether a path is a zip archive that holds arrays."""
        if not path.is_file() or not zipfile.is_zipfile(path):
            return False
        try:
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith(".npy") for name in archive.namelist())
        except READ_ERRORS:
            return False

    def read(self, path: str, split: str, config: DataConfig) -> Part:
        """One split of an ``.npz`` file, as ``uint8 [n, height, width, channels]``.

        Boolean arrays become 0 and 255, integers of other types must be in 0..255, ``[n, height,
        width]`` gets a channel axis, and two-dimensional uint8 is unpacked according to
        ``config.bits``. Labels that are sparse ids are renumbered, and the ids become their names.
        Pickled data are never read.

        Raises:
            DataError: when the file is missing, damaged, or expands to an implausible size, or when
                it has no array for this split; the message lists its keys.
            InputError: when an array has another type, shape or range, or when a held-out split
                has labels that train lacks.
        """
        location = self.locate(path)
        if not zipfile.is_zipfile(location):
            refuse_other_kind(location, NpzSource)
            message = (
                f"{path} is not an .npz file (a zip archive of arrays, as "
                "numpy.savez_compressed writes)"
            )
            raise DataError(with_advice(message, describe(location)))
        try:
            archive = open_archive(location)
        except READ_ERRORS as error:
            raise DataError(f"{path} cannot be read: {one_line(error)}") from error
        with archive:
            arrays = _Arrays(archive, location)
            if not arrays.keys:
                # It may be an archive of image files.
                refuse_other_kind(location, NpzSource)
            return _read_split(arrays, split, config)


class _Arrays:
    """The arrays of an open archive, with errors that name the file and the key.

    ``numpy.load`` allocates whatever a header declares. Here the header is first checked against
    the archive, and the archive against the size of its file.
    """

    def __init__(self, archive: zipfile.ZipFile, location: Path) -> None:
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                self._members[member.filename.removesuffix(".npy")] = member
        self._archive = archive
        self._bytes_on_disk = location.stat().st_size
        self.location = location
        self.keys = list(self._members)

    def __getitem__(self, key: str) -> np.ndarray:
        try:
            return self._read(key)
        except (*READ_ERRORS, NotImplementedError, KeyError, MemoryError) as error:
            raise DataError(
                f"{self.location.name}: the array {key!r} cannot be read: {one_line(error)}"
            ) from error

    def _read(self, key: str) -> np.ndarray:
        member = self._members[key]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # numpy does not write other methods, which allocate whatever their header declares.
            raise DataError(
                f"{self.title(key)} is compressed in a way that numpy does not write; save it "
                "again with np.savez_compressed"
            )
        check_content(member.file_size, self._bytes_on_disk, self.title(key))
        with self._archive.open(member) as file:
            # numpy would trust the header of the array.
            declared = _declared_bytes(file)
            if declared > member.file_size:
                raise DataError(
                    f"{self.title(key)} is cut short: its header declares {declared:,} bytes, and "
                    f"{member.file_size:,} are there"
                )
        # Opened again, to read from the beginning. zipfile checks the checksum at the end.
        with self._archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def title(self, key: str) -> str:
        """The key and the file, for messages."""
        return f"{key!r} of {self.location.name}"


def _declared_bytes(file: BinaryReader) -> int:
    """Bytes that a header declares; 0 for an array of Python objects, which is not read."""
    version = np.lib.format.read_magic(file)
    # Version 3 is for record arrays whose field names are not latin-1.
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"an array of version {version}, which images do not need")
    if dtype.hasobject:
        return 0
    return math.prod(shape) * dtype.itemsize


@dataclass(frozen=True)
class _SplitKeys:
    """The keys of a split's images and of its labels; the latter need not exist."""

    images: str
    labels: str


def _read_split(arrays: _Arrays, split: str, config: DataConfig) -> Part:
    found = _splits_in(arrays.keys, arrays.location)
    if split not in found and "train" not in found:
        raise DataError(_missing_split(arrays, found, split))
    keys = found.get(split) or found["train"]
    pixels = arrays[keys.images]
    planes = keys.images == "data" and pixels.ndim == 2
    if planes:
        pixels = _from_planes(pixels, arrays.title("data"))
    bounds = None
    count = 0
    if keys.images == "jpeg":
        bounds = _file_bounds(arrays, pixels)
        count = len(bounds)
    elif pixels.ndim:
        count = len(pixels)
    # Indices of the split's images in the array.
    index, rule = _split_indices(found, split, count, keys.images)
    labels = None
    label_names: tuple[str, ...] = ()
    if keys.labels in arrays.keys:
        labels = check_labels(arrays[keys.labels], count, arrays.title(keys.labels))
        every = _labels_of_all(arrays, found, keys, labels)
        titles = {name: arrays.title(other.labels) for name, other in found.items()}
        check_held_out(every, titles)
        if planes and len(labels) and labels.min() >= 1 and labels.max() <= len(_IMAGENET_IDS):
            ids: np.ndarray | None = _IMAGENET_IDS
        else:
            # Of all splits, so that a label means the same in each.
            ids = sparse_ids(list(every.values()), arrays.title(keys.labels))
        if ids is not None:
            labels = renumbered(labels, ids)
            label_names = names_of_ids(ids)
        labels = labels[index]
    if bounds is not None:
        part = _decode_files(arrays, pixels, bounds[index], labels, config)
        return replace(part, split_rule=rule, label_names=label_names)
    images, levels = _as_images(pixels, index, arrays.title(keys.images), config)
    return fit_arrays(Part(images, labels, label_names, levels, rule), config)


def _missing_split(arrays: _Arrays, found: dict[str, _SplitKeys], split: str) -> str:
    """The message for a split that can neither be read nor taken from training images."""
    by_name = ""
    for keys in found.values():
        if keys.images in _WHOLE_FILE_KEYS:
            by_name = ", as its name says"
    return (
        f"{arrays.location.name} holds {' and '.join(found)} images only{by_name} "
        f"(keys: {name_list(arrays.keys)}); split {split!r} needs a file with training images"
    )


def _splits_in(keys: Collection[str], location: Path) -> dict[str, _SplitKeys]:
    """The splits that a file contains, each with its keys."""
    found: dict[str, _SplitKeys] = {}
    for split in SPLITS:
        for word in _SPLIT_WORDS[split]:
            for key in (f"{word}_images", word):
                if key in keys and split not in found:
                    found[split] = _SplitKeys(key, f"{word}_labels")
    if found:
        return found
    # A second key must confirm that the array holds images: "data" alone could be anything.
    companions = {"jpeg": "offsets", "data": "labels"}
    for key in _WHOLE_FILE_KEYS:
        if key in keys and companions.get(key, key) in keys:
            return {_split_by_name(location): _SplitKeys(key, "labels")}
    raise DataError(
        f"{location.name} has no images under a known key ({_LAYOUTS}); its keys: "
        f"{name_list(list(keys))}"
    )


def _split_by_name(location: Path) -> str:
    """The split that a file without named splits contains, according to its name."""
    words = re.split(r"[\W_]+", location.stem.lower())
    if words[-1] == "test":
        return "test"
    return "valid" if words == ["val", "data"] else "train"


def _split_indices(
    found: Collection[str], split: str, count: int, key: str
) -> tuple[np.ndarray | slice, str]:
    """The indices of the images of a split in the array, and the rule as text."""
    missing = [name for name in ("valid", "test") if name not in found]
    # Training images are divided only if another split is missing; existing splits are taken whole.
    if split in found and (split != "train" or not missing):
        return slice(None), f"all of {key!r}"
    # If the data set has its own test set, 5,000 images are enough for validation.
    largest = LARGEST_TAIL if len(found) > 1 else None
    size = split_size(count, largest)
    sizes = {"valid": 0, "test": 0}
    for name in missing:
        sizes[name] = size
    parts = f"{size} " + f" and {size} ".join(missing)
    rule = f"{key!r} by numpy default_rng(0).permutation({count}), its last {parts}"
    return permuted(count, split, **sizes), rule


def _as_images(
    array: np.ndarray, index: np.ndarray | slice, title: str, config: DataConfig
) -> tuple[np.ndarray, int]:
    """The images of a split, ``uint8 [n, height, width, channels]``, and their levels.

    The whole array is checked, not only the split, so that all splits of a file agree.
    """
    bits = parse_size(config.bits, "bits")
    if bits:
        _check_packed(array, bits, title)
        warn_if_constant(array, title)
        return _unpack(array[index], bits), 2
    images, levels = as_uint8(array, title, config.levels)
    return images[index], levels


def _from_planes(array: np.ndarray, title: str) -> np.ndarray:
    """``[n, 3 side side]``, one colour plane after another, to ``[n, side, side, 3]``."""
    side = math.isqrt(array.shape[1] // 3)
    if not side or 3 * side**2 != array.shape[1]:
        raise InputError(
            f"{title} has the shape {list(array.shape)}; rows of downsampled ImageNet have "
            "3 x side x side values, such as 3072 for 32x32"
        )
    return array.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)


def _check_packed(array: np.ndarray, size: tuple[int, int], title: str) -> None:
    packed = math.ceil(size[0] * size[1] / 8)
    if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] != packed:
        raise InputError(
            f"{title} is {array.dtype} {list(array.shape)};"
            f" with data.bits={size[0]}x{size[1]} it must be uint8 [n, {packed}]"
        )


def _unpack(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Unpack bits, highest first and row by row, to ``uint8 [n, height, width, 1]``, 0 or 255."""
    bits = np.unpackbits(array, axis=1, count=size[0] * size[1])  # [n, height * width]
    return bits.reshape(-1, *size, 1) * np.uint8(255)


def _labels_of_all(
    arrays: _Arrays, found: dict[str, _SplitKeys], keys: _SplitKeys, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """The labels of every split that has some; those under ``keys`` are read already."""
    gathered = {}
    for split, other in found.items():
        if other.labels == keys.labels:
            gathered[split] = labels
        elif other.labels in arrays.keys:
            values = np.atleast_1d(arrays[other.labels])
            # Their number is checked when that split is read.
            gathered[split] = check_labels(values, values.shape[0], arrays.title(other.labels))
    return gathered


def _file_bounds(arrays: _Arrays, content: np.ndarray) -> np.ndarray:
    """Index, start and end of each file in ``jpeg``: ``int64 [n, 3]``."""
    offsets = arrays["offsets"]
    if content.dtype != np.uint8 or content.ndim != 1:
        raise InputError(
            f"{arrays.title('jpeg')} must be uint8 bytes [length], got {content.dtype} "
            f"{list(content.shape)}"
        )
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or not len(offsets):
        given = f"{offsets.dtype} {list(offsets.shape)}"
        raise InputError(f"{arrays.title('offsets')} must be integers [n + 1], got {given}")
    # Checked before the cast, which would make a large uint64 negative.
    within = offsets.min().item() >= 0 and offsets.max().item() <= len(content)
    offsets = offsets.astype(np.int64)
    if not within or (np.diff(offsets) <= 0).any():
        raise InputError(
            f"{arrays.title('offsets')} must increase, and stay within the {len(content)} bytes "
            "of 'jpeg'"
        )
    return np.stack([np.arange(len(offsets) - 1), offsets[:-1], offsets[1:]], axis=1)


def _decode_files(
    arrays: _Arrays,
    content: np.ndarray,
    bounds: np.ndarray,
    labels: np.ndarray | None,
    config: DataConfig,
) -> Part:
    """Decode concatenated image files; all of them must be intact."""
    if config.bits:
        raise ConfigError(
            f"data.bits is for packed bits, and {arrays.location.name} holds JPEG files; leave it "
            "empty"
        )

    # Called from several threads. Each file is copied out of the array only when it is decoded.
    def open_file(index: int) -> io.BytesIO:
        _, start, end = bounds[index]
        return io.BytesIO(content[start:end].tobytes())

    names = [f"image {number}" for number in bounds[:, 0].tolist()]
    numbers = None if labels is None else labels.tolist()
    files = ImageFiles(names, open_file, numbers)
    title = arrays.location.name
    part = fit_files(files, config, channels=config.channels, title=title, strict=True)
    return replace(part, names=None)

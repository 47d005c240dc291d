"""``archive:FILE``: images that ``tessella compress`` or ``ts.compress`` wrote.

They are decoded by :mod:`tessella.codec`, which needs torch and the model of the file. The source
is registered here so that it is listed and explained like any other.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from tessella.config import DataConfig
from tessella.data.pixel_conversion import with_channels
from tessella.data.source_kinds import Source, register_source
from tessella.data.splits import ALL, by_hash, permuted, split_size
from tessella.data.transform import Part, cut, parse_size
from tessella.errors import BitstreamError, DataError, InputError
from tessella.files import COMPRESSED_MARK, read_beginning


@runtime_checkable
class DecodedImages(Protocol):
    """What this source needs of an archive."""

    names: Sequence[str]
    levels: int
    sizes: Sequence[tuple[int, int]]

    def pictures(self, numbers: Sequence[int]) -> Iterator[Image.Image]:
        """The images of these numbers, which rise."""


@register_source("archive")
class CompressedSource(Source):
    """Images in a compressed file."""

    about = "images that tessella compress wrote"
    argument = "FILE"
    allows_all = True
    sizes_may_differ = True

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether a file begins like a compressed one."""
        return path.is_file() and read_beginning(path, 4) == COMPRESSED_MARK

    def read(self, path: str, split: str, config: DataConfig) -> Part:
        """One split of an archive; only the groups that hold an image of it are decoded.

        Files are divided by their names, as those of a folder without folders for the splits; what
        came from arrays is divided by a permutation, 5 % each for valid and test.

        Raises:
            DataError: when the file is damaged, or its model is missing.
            InputError: when its images differ in size and no size is asked for.
        """
        location = self.locate(path)
        # This room knows only the vocabulary, so its reader is named, not imported.
        codec = importlib.import_module("tessella.codec.archive_images")
        try:
            archive: DecodedImages = codec.open_images(location)
            numbers, rule = _numbers_of(archive, split)
            return _prepared(archive, numbers, rule, config)
        except BitstreamError as error:
            raise DataError(f"archive:{path}: {error}") from error


def _numbers_of(archive: DecodedImages, split: str) -> tuple[list[int], str]:
    """The images of a split, and the rule."""
    count = len(archive.sizes)
    if split == ALL:
        return list(range(count)), "every image"
    if archive.names:
        splits = by_hash(archive.names)
        return [place for place in range(count) if splits[place] == split], "by hash of the name"
    size = split_size(count)
    numbers = permuted(count, split, valid=size, test=size)
    rule = f"by numpy default_rng(0).permutation({count}), its last {size} valid and {size} test"
    return sorted(numbers.tolist()), rule


def _prepared(archive: DecodedImages, numbers: list[int], rule: str, config: DataConfig) -> Part:
    """Decode images, and cut or scale them as the configuration asks."""
    if config.limit:
        numbers = numbers[: config.limit]
    size = parse_size(config.size, "size")
    sizes = {archive.sizes[number] for number in numbers}
    if size is None and len(sizes) > 1:
        low = min(sizes)
        high = max(sizes)
        raise InputError(
            f"the images of the archive differ in size, from {low[0]}x{low[1]} to"
            f" {high[0]}x{high[1]}: give data.size, such as data.size=64"
        )
    pieces: list[np.ndarray] = []
    names: list[str] = []
    for number, picture in zip(numbers, archive.pictures(numbers), strict=True):
        name = archive.names[number] if archive.names else str(number)
        for suffix, piece in cut(with_channels(picture, config.channels), size, config.crop):
            pieces.append(piece)
            names.append(name + suffix)
    most = config.limit or len(pieces)
    images = np.empty((0, 1, 1, 1), np.uint8)
    if pieces:
        images = np.stack(_alike(pieces[:most]))
    resampled = size is not None and config.crop != "tiles" and sizes != {size}
    levels = 256 if resampled else archive.levels
    return Part(images, None, (), levels, rule, tuple(names[:most]), resampled=resampled)


def _alike(pieces: list[np.ndarray]) -> list[np.ndarray]:
    """Grey images among colours become colours, as in a folder."""
    channels = max(piece.shape[2] for piece in pieces)
    same = []
    for piece in pieces:
        same.append(piece if piece.shape[2] == channels else np.repeat(piece, channels, axis=2))
    return same

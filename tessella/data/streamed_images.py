"""Images that are decoded each time they are asked for, so that nothing is stored."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from tessella import files
from tessella.config import DataConfig
from tessella.data.caller_warning import warn_caller
from tessella.data.decode import libraries
from tessella.data.hashes import image_hashes
from tessella.data.image_files import MAX_FAILURES, TOLERATED_FAILURES, decode_alone
from tessella.data.lazy_images import LazyImages
from tessella.data.paths import printable
from tessella.data.transform import parse_size
from tessella.data.unusable_image import UnusableImage
from tessella.errors import ConfigError, DataError, InputError

_AT_ONCE = 256  # images that are hashed together


@runtime_checkable
class EncodedImages(Protocol):
    """Image files by number; called from several threads at once."""

    def encoded(self, number: int) -> bytes:
        """The content of an image file.

        Raises:
            UnusableImage: when there is none.
        """

    def name(self, number: int) -> str:
        """Its name, for messages."""


@dataclass(frozen=True)
class StreamPart:
    """The images of a split, before they are decoded.

    Args:
        files: the images of all splits.
        numbers: which of them belong to the split, ``[n]``.
        identity: what tells them from others: equal texts mean equal files.
        labels: the label of each image of the split, ``int64 [n]``, or None.
        groups: see :attr:`~tessella.data.lazy_images.LazyImages.groups`.
        title: the source, for messages.
    """

    files: EncodedImages
    numbers: np.ndarray
    identity: str
    labels: np.ndarray | None
    groups: Sequence[int] | None
    title: str


class StreamedImages(LazyImages):
    """Images of one size, decoded from their files each time.

    An image that cannot be decoded is replaced by the next one that can, counted from its place to
    the end and on from the beginning; with labels, by the next one of the same label. So the same
    number always gives the same pixels, whoever asks and in whatever order. The first one is
    reported by a warning, and :attr:`damaged` lists all that were met.

    Args:
        part: the images.
        config: its size, crop and channels are applied.

    Raises:
        ConfigError: for tiles, whose number is not known before all images are decoded.
        DataError: when none of the first images can be decoded.
    """

    hashed = False

    def __init__(self, part: StreamPart, config: DataConfig) -> None:
        if config.crop == "tiles":
            raise ConfigError(
                "data.crop=tiles does not go with data.stream=true: the number of tiles is known"
                " once all images are decoded; leave out data.stream"
            )
        self.groups = part.groups
        self.damaged: dict[str, str] = {}
        """Name and reason of each image that was replaced, as far as they were met."""
        self._part = part
        self._config = config
        self._size = parse_size(config.size, "size")
        self._replaced: dict[int, int] = {}
        self._lock = threading.Lock()
        # Equal identities mean equal pixels: the same files, prepared alike by the same libraries.
        prepared = [part.identity, self._size, config.crop, config.channels, libraries()]
        text = files.json_text(prepared, indent=None)
        super().__init__((len(part.numbers), 0, 0, 0), hashlib.sha256(text.encode()).hexdigest())
        first = self._pixels(self._usable(0))
        self.shape = (len(part.numbers), *first.shape)

    def __reduce__(self) -> tuple[type[StreamedImages], tuple[StreamPart, DataConfig]]:
        return StreamedImages, (self._part, self._config)

    @property
    def hashes(self) -> np.ndarray:
        """See :class:`~tessella.data.lazy_images.LazyImages`; this decodes every image."""
        hashes = np.empty(len(self), np.uint64)
        for start in range(0, len(self), _AT_ONCE):
            hashes[start : start + _AT_ONCE] = image_hashes(self[start : start + _AT_ONCE])
        return hashes

    def _read(self, indices: np.ndarray) -> np.ndarray:
        found = np.empty((len(indices), *self.shape[1:]), np.uint8)
        for place, index in enumerate(indices.tolist()):
            index = self._replaced.get(index, index)
            try:
                pixels = self._pixels(index)
            except UnusableImage as error:
                self._count(index, error)
                pixels = self._pixels(self._usable(index))
            if pixels.shape != self.shape[1:]:
                raise InputError(self._differs(index, pixels))
            found[place] = pixels
        return found

    def _pixels(self, index: int) -> np.ndarray:
        """Decode one image, ``uint8 [height, width, channels]``."""
        content = self._part.files.encoded(int(self._part.numbers[index]))
        return decode_alone(content, self._config.channels or 3, self._size, self._config.crop)

    def _usable(self, index: int) -> int:
        """The number of an image, or of the one that replaces it."""
        n = len(self)
        labels = self._part.labels
        for step in range(n):
            other = (index + step) % n
            if labels is not None and labels[other] != labels[index]:
                continue
            try:
                self._pixels(other)
            except UnusableImage as error:
                self._count(other, error)
                continue
            self._replaced[index] = other
            return other
        raise DataError(
            f"{self._part.title}: no image can take the place of {self._name(index)}, which is"
            f" damaged: {self.damaged[self._name(index)]}"
        )

    def _count(self, index: int, why: UnusableImage) -> None:
        """Note a damaged image; stop when there are too many, as in a folder."""
        name = self._name(index)
        with self._lock:
            known = name in self.damaged
            self.damaged[name] = str(why)
            count = len(self.damaged)
        if known:
            return
        if count > max(TOLERATED_FAILURES, MAX_FAILURES * len(self)):
            raise DataError(
                f"at least {count} of {len(self)} images of {self._part.title} are unusable (more"
                f" than 20 %); repair or remove them; the last: {name}: {why}"
            )
        if count == 1:
            warn_caller(
                f"{self._part.title}: {name}: {why}; another image takes its place, and so for"
                " each that is damaged"
            )

    def _name(self, index: int) -> str:
        return printable(self._part.files.name(int(self._part.numbers[index])))

    def _differs(self, index: int, pixels: np.ndarray) -> str:
        height, width, _ = self.shape[1:]
        return (
            f"images differ in size: the first one of {self._part.title} is {width} pixels wide and"
            f" {height} high, {self._name(index)} {pixels.shape[1]} wide and {pixels.shape[0]}"
            " high; set data.size, for example data.size=64"
        )

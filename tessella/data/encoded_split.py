"""One split of encoded images, decoded once into the cache, or each time they are needed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedIOBase

import numpy as np

from tessella.config import DataConfig
from tessella.data.decode import libraries
from tessella.data.decoded_cache import CacheFacts, Writer, cached_images, digest
from tessella.data.image_files import ImageFiles, decode_files
from tessella.data.paths import printable
from tessella.data.streamed_images import EncodedImages, StreamedImages, StreamPart
from tessella.data.transform import Part, parse_size


@dataclass(frozen=True)
class EncodedSplit:
    """The images of a split, by their numbers among those of a source.

    Args:
        files: the images of all splits.
        split: which it is.
        numbers: of its images, ``uint32 [n]``.
        labels: the class of each, ``int64 [n]``, or None.
        label_names: names of the classes.
        rule: how the images were divided.
        title: the source, for messages.
        places: where the files lie, as JSON values.
        identity: what tells them from others wherever they lie, as JSON values.
        stamps: what changes when a file does, as JSON values.
        groups: see :attr:`~tessella.data.lazy_images.LazyImages.groups`.
        left_out: what is there and is no image, each as ``name: reason``.
    """

    files: EncodedImages
    split: str
    numbers: np.ndarray
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    rule: str
    title: str
    places: object
    identity: object
    stamps: object
    groups: Sequence[int] | None = None
    left_out: tuple[str, ...] = ()

    def part(self, config: DataConfig) -> Part:
        """The images as the configuration asks: from the cache, or with ``stream`` without it."""
        return self._streamed(config) if config.stream else self._cached(config)

    def _streamed(self, config: DataConfig) -> Part:
        if not len(self.numbers):
            return Part(np.empty((0, 0, 0, 0), np.uint8), None, (), 256, self.rule)
        part = StreamPart(
            files=self.files,
            numbers=self.numbers,
            identity=digest(self.identity, self.split, self.rule, len(self.numbers)),
            labels=self.labels,
            groups=self.groups,
            title=self.title,
        )
        return Part(
            images=StreamedImages(part, config),
            labels=self.labels,
            label_names=self.label_names,
            levels=256,
            split_rule=self.rule,
            skipped=self.left_out,
            resampled=bool(config.size),
        )

    def _cached(self, config: DataConfig) -> Part:
        def make(writer: Writer) -> CacheFacts:
            return self._decode(config, writer)

        size = parse_size(config.size, "size")
        crop = config.crop if size else ""  # without a size nothing is cropped
        channels = config.channels or 3
        request = digest(self.places, self.split, size, crop, channels, config.limit)
        contents = digest(libraries(), self.stamps, self.rule, list(self.label_names))
        images, facts = cached_images(request, contents, make, self.title)
        labels = None
        if facts["labels"] is not None:
            labels = np.array(facts["labels"], np.int64)
        return Part(
            images=images,
            labels=labels,
            label_names=self.label_names,
            levels=256,
            split_rule=self.rule,
            names=tuple(facts["names"]),
            skipped=(*facts["skipped"], *self.left_out),
            resampled=facts["resampled"],
        )

    def _decode(self, config: DataConfig, writer: Writer) -> CacheFacts:
        """Decode all images into the cache, and return what is kept with them."""
        labels = None if self.labels is None else self.labels.tolist()
        decoded = decode_files(
            ImageFiles(_Names(self), self._open, labels),
            config,
            writer.append,
            channels=config.channels or 3,
            title=f"{self.title}, {self.split}",
        )
        return {
            "names": [printable(name) for name in decoded.names],
            "labels": None if labels is None else decoded.labels,
            "skipped": decoded.skipped,
            "resampled": decoded.resampled,
            "source": self.title,
            "split": self.split,
            "size": config.size,
        }

    def _open(self, place: int) -> BufferedIOBase:
        return io.BytesIO(self.files.encoded(int(self.numbers[place])))


class _Names(Sequence[str]):
    """The names of the images of a split, read when they are asked for."""

    def __init__(self, split: EncodedSplit) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split.numbers)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        return self._split.files.name(int(self._split.numbers[place]))

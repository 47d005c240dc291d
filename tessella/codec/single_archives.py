"""Files of one image each, whose symbols are predicted together.

A twin predicts the same for every batch, so a file has the bytes that it would have if its image
were compressed alone. It only takes less time, since many images step at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tessella.codec.archive_writer import GROUP, ArchiveWriter, CodedImage
from tessella.codec.group_walk import Twin, intervals
from tessella.codec.tiles import (
    Coded,
    ImageShape,
    coded_symbols,
    piece_of_shape,
    pieces_of_shape,
    place_in_grid,
)

TOGETHER = 256
"""Pieces (images or tiles) that are predicted together, if one image has no more."""


def compress_each(
    twin: Twin,
    images: Sequence[CodedImage],
    flags: int,
    tokenizer: bytes = b"",
    batch: int = GROUP,
) -> list[bytes]:
    """Each image as the bytes of a ``.tsl`` file of its own.

    Args:
        twin: the exact twin of a model.
        images: the images.
        flags, tokenizer: see :meth:`~tessella.codec.archive_writer.ArchiveWriter.finish`.
        batch: pieces that step at a time; changes speed and memory only.

    Raises:
        InputError: see :class:`~tessella.codec.archive_writer.ArchiveWriter`.
    """
    written: list[bytes] = []
    for some in _portions(twin, images):
        starts, frequencies = _intervals_of(twin, some, batch)
        first = 0
        for image in some:
            writer = _PredictedWriter(twin, starts[first:], frequencies[first:])
            writer.add(image)
            written.append(writer.finish(flags, tokenizer))
            first += pieces_of_shape(twin.grid, ImageShape(*image.symbols.shape))
    return written


class _PredictedWriter(ArchiveWriter):
    """An archive of symbols whose intervals are known: those of its pieces, from the first on."""

    def __init__(self, twin: Twin, starts: np.ndarray, frequencies: np.ndarray) -> None:
        super().__init__(twin)
        self._starts = starts
        self._frequencies = frequencies
        self._next = 0

    def _intervals(self, x: np.ndarray, coded: Coded) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(self._next, self._next + len(x))
        self._next = rows.stop
        # Other images may go on behind the last symbol of this group.
        return self._starts[rows, : coded.stop], self._frequencies[rows, : coded.stop]


def _portions(twin: Twin, images: Sequence[CodedImage]) -> Iterator[list[CodedImage]]:
    """The images, so many at a time that memory stays bounded; one image is never divided."""
    some: list[CodedImage] = []
    pieces = 0
    for image in images:
        count = pieces_of_shape(twin.grid, ImageShape(*image.symbols.shape))
        if some and pieces + count > TOGETHER:
            yield some
            some = []
            pieces = 0
        some.append(image)
        pieces += count
    if some:
        yield some


def _intervals_of(
    twin: Twin, images: Sequence[CodedImage], batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The intervals of all pieces of some images, ``int64 [pieces, symbols]`` each."""
    pieces = []
    parts = []
    for image in images:
        shape = ImageShape(*image.symbols.shape)
        for number in range(pieces_of_shape(twin.grid, shape)):
            piece = piece_of_shape(twin.grid, shape, 0, number)
            pieces.append(piece)
            parts.append(piece.cut(image.symbols))
    coded = coded_symbols(twin.grid, pieces)
    return intervals(twin, place_in_grid(twin.grid, parts, coded), coded, batch)

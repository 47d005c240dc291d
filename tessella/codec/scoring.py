"""Bits of images, where they are spent, from the frequencies that a compressed file uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from tessella.codec.archive_writer import CodedImage
from tessella.codec.group_walk import Twin, intervals
from tessella.codec.tiles import (
    ImageShape,
    Piece,
    coded_symbols,
    piece_of_shape,
    pieces_of_shape,
    place_in_grid,
)


@dataclass(frozen=True)
class ImageBits:
    """What an image costs, without headers.

    Args:
        name: its name.
        places: bits of each pixel, ``float64 [height, width]``.
        channels: symbols of a pixel.
    """

    name: str
    places: np.ndarray = field(repr=False)
    channels: int

    @property
    def bits(self) -> float:
        """Bits of the whole image."""
        return float(self.places.sum())

    @property
    def bits_per_dim(self) -> float:
        """Bits of a symbol, on average."""
        return self.bits / (self.places.size * self.channels)


def score_images(twin: Twin, images: Iterable[CodedImage], batch: int) -> Iterator[ImageBits]:
    """The bits of images, one after another.

    Args:
        twin: the exact twin of a model.
        images: the images.
        batch: pieces that step at a time.
    """
    unfinished: list[ImageBits] = []
    waiting: list[tuple[ImageBits, Piece, np.ndarray]] = []
    for image in images:
        height, width, channels = image.symbols.shape
        score = ImageBits(image.name, np.zeros((height, width)), channels)
        unfinished.append(score)
        shape = ImageShape(height, width, channels)
        for number in range(pieces_of_shape(twin.grid, shape)):
            piece = piece_of_shape(twin.grid, shape, 0, number)
            waiting.append((score, piece, piece.cut(image.symbols)))
            if len(waiting) == batch:
                _add_bits(twin, waiting)
                waiting = []
        if not waiting:
            yield from unfinished
            unfinished = []
    if waiting:
        _add_bits(twin, waiting)
    yield from unfinished


def _add_bits(twin: Twin, waiting: list[tuple[ImageBits, Piece, np.ndarray]]) -> None:
    """Add the bits of some pieces to their images."""
    grid = twin.grid
    pieces = [piece for _, piece, _ in waiting]
    coded = coded_symbols(grid, pieces)
    x = place_in_grid(grid, [part for _, _, part in waiting], coded)
    _, frequencies = intervals(twin, x, coded, len(pieces))
    # What is not predicted, or known, costs nothing.
    bits = np.zeros(x.shape)
    bits[:, : coded.stop] = 24 - np.log2(frequencies)
    by_pixel = bits.reshape(len(pieces), *grid.shape).sum(axis=3)
    for (score, piece, _), spent in zip(waiting, by_pixel, strict=True):
        rows = slice(piece.top, piece.top + piece.rows)
        columns = slice(piece.left, piece.left + piece.columns)
        score.places[rows, columns] += spent[: piece.rows, : piece.columns]


def heat_map(places: np.ndarray, most: float) -> np.ndarray:
    """Bits of pixels as colours, from black over red and yellow to white.

    Args:
        places: bits, ``[height, width]``.
        most: bits that are white.

    Returns:
        ``uint8 [height, width, 3]``.
    """
    heat = np.clip(places / max(most, 1e-9), 0, 1)
    channels = [np.clip(3 * heat - first, 0, 1) for first in range(3)]
    return np.rint(255 * np.stack(channels, axis=2)).astype(np.uint8)

"""Images of any size and number of channels as pieces of the grid of a model.

An image is cut into tiles of the grid's size, from the upper left. Tiles at the right and lower
edge can be smaller: symbols outside of the image are known, and are not coded. Of a pixel's
channels, as many groups as possible have those of the grid; each channel left over is a grey image
of its own, whose copies in the other channels of the grid are known as well. So a grey model keeps
colours (each band for itself), and a colour model keeps grey and alpha.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tessella.grid import Grid


@dataclass(frozen=True)
class ImageShape:
    """Height and width in pixels, and the number of channels."""

    height: int
    width: int
    channels: int


@dataclass(frozen=True)
class Piece:
    """A part of an image that one grid holds.

    Args:
        image: index of the image.
        top, left: its first row and column in the image.
        rows, columns: its size, at most that of the grid.
        first_channel: its first channel in the image.
        channels: those of the grid, or 1.
    """

    image: int
    top: int
    left: int
    rows: int
    columns: int
    first_channel: int
    channels: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The part of ``image [height, width, channels]``, as a view."""
        return image[
            self.top : self.top + self.rows,
            self.left : self.left + self.columns,
            self.first_channel : self.first_channel + self.channels,
        ]


def pieces_of_shape(grid: Grid, shape: ImageShape) -> int:
    """Number of pieces of an image."""
    rows = -(-shape.height // grid.height)
    columns = -(-shape.width // grid.width)
    whole, single = divmod(shape.channels, grid.channels)
    return rows * columns * (whole + single)


def piece_of_shape(grid: Grid, shape: ImageShape, image: int, number: int) -> Piece:
    """Piece ``number`` of an image; planes come one after another, tiles row by row."""
    columns = -(-shape.width // grid.width)
    rows = -(-shape.height // grid.height)
    plane, tile = divmod(number, rows * columns)
    row, column = divmod(tile, columns)
    whole = shape.channels // grid.channels
    if plane < whole:
        first_channel = plane * grid.channels
        channels = grid.channels
    else:
        first_channel = whole * grid.channels + plane - whole
        channels = 1
    top = row * grid.height
    left = column * grid.width
    return Piece(
        image=image,
        top=top,
        left=left,
        rows=min(grid.height, shape.height - top),
        columns=min(grid.width, shape.width - left),
        first_channel=first_channel,
        channels=channels,
    )


class Layout:
    """Where the pieces of many images are, without a list of them.

    Args:
        grid: the grid of the model.
        runs: numbers of images that have the same shape, in order.
    """

    def __init__(self, grid: Grid, runs: Sequence[tuple[int, ImageShape]]) -> None:
        self.grid = grid
        self.images = 0
        self.pieces = 0
        self._shapes: list[ImageShape] = []
        self._first_images: list[int] = []
        self._first_pieces: list[int] = []
        for count, shape in runs:
            self._shapes.append(shape)
            self._first_images.append(self.images)
            self._first_pieces.append(self.pieces)
            self.images += count
            self.pieces += count * pieces_of_shape(grid, shape)

    def shape(self, image: int) -> ImageShape:
        """The shape of an image."""
        return self._shapes[bisect.bisect_right(self._first_images, image) - 1]

    def piece(self, number: int) -> Piece:
        """Piece ``number`` of all images."""
        run = bisect.bisect_right(self._first_pieces, number) - 1
        shape = self._shapes[run]
        image, rest = divmod(number - self._first_pieces[run], pieces_of_shape(self.grid, shape))
        return piece_of_shape(self.grid, shape, self._first_images[run] + image, rest)

    def pieces_of(self, image: int) -> range:
        """The numbers of the pieces of an image."""
        run = bisect.bisect_right(self._first_images, image) - 1
        count = pieces_of_shape(self.grid, self._shapes[run])
        first = self._first_pieces[run] + (image - self._first_images[run]) * count
        return range(first, first + count)

    def group(self, number: int, size: int) -> list[Piece]:
        """The pieces of group ``number``, of ``size`` pieces but for the last."""
        first = number * size
        return [self.piece(place) for place in range(first, min(first + size, self.pieces))]

    def groups(self, size: int) -> int:
        """Number of groups of ``size`` pieces."""
        return math.ceil(self.pieces / size)


@dataclass(frozen=True)
class Coded:
    """Which symbols of a group of pieces are coded, and what the others are.

    Args:
        mask: whether a symbol is coded, ``bool [n, symbols]``.
        sources: the symbol that has the same value, ``int64 [n, symbols]``: of a coded symbol
            itself, of a known one an earlier one.
        stop: the number of symbols up to the last coded one.
    """

    mask: np.ndarray
    sources: np.ndarray
    stop: int


def coded_symbols(grid: Grid, pieces: Sequence[Piece]) -> Coded:
    """What is coded of a group of pieces.

    Beside an edge tile, the last pixel of each row is repeated; below it nothing is predicted any
    more. The channels beside a single one are copies of it.
    """
    sizes = np.array([(piece.rows, piece.columns, piece.channels) for piece in pieces])
    # Rows, columns and channels of each piece, beside those of the grid: [n, height, width, c].
    rows, columns, channels = sizes.reshape(-1, 3, 1, 1, 1).swapaxes(0, 1)
    row = np.arange(grid.height)[:, None, None]
    column = np.arange(grid.width)[:, None]
    channel = np.arange(grid.channels)
    mask = (row < rows) & (column < columns) & (channel < channels)
    source_column = np.minimum(column, columns - 1)
    source_channel = np.where(channel < channels, channel, 0)
    sources = (row * grid.width + source_column) * grid.channels + source_channel
    flat_mask = mask.reshape(len(pieces), -1)
    stop = int(np.flatnonzero(flat_mask.any(axis=0))[-1]) + 1
    return Coded(flat_mask, sources.reshape(len(pieces), -1), stop)


def place_in_grid(grid: Grid, parts: Sequence[np.ndarray], coded: Coded) -> np.ndarray:
    """Symbols of pieces on the grid of the model, known ones filled in.

    Args:
        grid: the grid.
        parts: ``[rows, columns, channels]`` of each piece.
        coded: what is coded of them.

    Returns:
        ``int64 [n, symbols]``.
    """
    x = np.zeros((len(parts), *grid.shape), dtype=np.int64)
    for place, part in enumerate(parts):
        rows, columns, channels = part.shape
        x[place, :rows, :columns, :channels] = part
    return np.take_along_axis(x.reshape(len(parts), -1), coded.sources, axis=1)

"""Decode the streams of an archive, and put images together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tessella.codec.container import (
    IS_WIDE,
    Container,
    check_model,
    stream_hash,
    symbols_digest,
)
from tessella.codec.entropy_coder import SymbolDecoder, unpack
from tessella.codec.group_walk import Twin, decoded, from_order, in_order
from tessella.codec.image_modes import scaled_values
from tessella.codec.tiles import Piece, coded_symbols
from tessella.errors import BitstreamError


class StreamReader:
    """Decodes images of an archive.

    Args:
        container: the archive.
        twin: the exact twin with which it was made.
        batch: pieces that step at a time.

    Raises:
        BitstreamError: when it was made with another model.
    """

    def __init__(self, container: Container, twin: Twin, batch: int) -> None:
        check_model(container.contents, twin.id, twin.grid, twin.arithmetic_version)
        self.container = container
        self.contents = container.contents
        self.layout = container.layout
        self.twin = twin
        self.batch = batch

    def group(self, number: int) -> list[tuple[Piece, np.ndarray]]:
        """Decode a group: its pieces, and the symbols ``[rows, columns, channels]`` of each.

        Raises:
            BitstreamError: when its stream is damaged.
        """
        grid = self.contents.grid
        pieces = self.layout.group(number, self.contents.group)
        stream = self.container.streams[number]
        if stream.raw:
            # Before anything is made for as many pieces as the header claims.
            count = sum(piece.rows * piece.columns * piece.channels for piece in pieces)
            symbols = unpack(stream.data, count, grid.levels)
            coded = coded_symbols(grid, pieces)
            x = from_order(symbols, coded)
        else:
            decoder = SymbolDecoder(stream.data)
            coded = coded_symbols(grid, pieces)
            x = decoded(self.twin, decoder, coded, self.batch)
            decoder.finish()
        digest = symbols_digest(in_order(x, coded), grid.levels)
        # The header is part of the hash: it says how the symbols are arranged, and in what file.
        if stream_hash(digest, self.container.header) != stream.check:
            raise BitstreamError(
                "the file is damaged, or the model is not the one that made it: the hash of"
                f" stream {number} differs"
            )
        parts = x.reshape(len(pieces), *grid.shape)
        found = []
        for piece, part in zip(pieces, parts, strict=True):
            found.append((piece, part[: piece.rows, : piece.columns, : piece.channels]))
        return found

    def images(self) -> Iterator[np.ndarray]:
        """All images, ``[height, width, channels]``, one after another.

        Raises:
            BitstreamError: at the first stream that is damaged.
        """
        number = -1
        image = np.empty(0)
        for group in range(len(self.container.streams)):
            for piece, part in self.group(group):
                if piece.image != number:
                    if number >= 0:
                        yield image
                    number = piece.image
                    image = self._empty(number)
                piece.cut(image)[:] = self._values(number, part)
        yield image

    def chosen(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Some images; each group that holds a part of one is decoded once.

        Args:
            numbers: of the images, rising.

        Raises:
            BitstreamError: at the first stream that is damaged.
        """
        size = self.contents.group
        decoded_group = -1
        parts: list[tuple[Piece, np.ndarray]] = []
        for number in numbers:
            image = self._empty(number)
            pieces = self.layout.pieces_of(number)
            for group in range(pieces.start // size, (pieces.stop - 1) // size + 1):
                if group != decoded_group:
                    parts = self.group(group)
                    decoded_group = group
                for piece, part in parts:
                    if piece.image == number:
                        piece.cut(image)[:] = self._values(number, part)
            yield image

    def _empty(self, number: int) -> np.ndarray:
        shape = self.layout.shape(number)
        is_wide = self.contents.flags & IS_WIDE
        return np.empty(
            (shape.height, shape.width, shape.channels), dtype=np.int64 if is_wide else np.uint8
        )

    def _values(self, number: int, symbols: np.ndarray) -> np.ndarray:
        """The values of an image that symbols stand for."""
        levels = self.contents.grid.levels
        if self.contents.run_of(number).scaled:
            return scaled_values(levels)[symbols]
        is_wide = self.contents.flags & IS_WIDE
        if not is_wide and levels > 256 and symbols.max() > 255:
            raise BitstreamError("the file is damaged: its values are not those of 8 bits")
        return symbols

"""Write archives: images are cut into pieces, and each full group becomes a stream."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tessella.codec.container import (
    FORMAT_ARITHMETICS,
    HAS_FILES,
    LARGEST_GROUP,
    MODEL_BYTES,
    MOST_CHANNELS,
    CodedStream,
    Contents,
    ImageRun,
    stream_hash,
    symbols_digest,
    write_container,
)
from tessella.codec.entropy_coder import coder_library, encode_intervals, pack, packed_length
from tessella.codec.file_names import names_problem
from tessella.codec.group_walk import Twin, in_order, intervals
from tessella.codec.image_modes import PALETTE
from tessella.codec.tiles import (
    Coded,
    ImageShape,
    Piece,
    coded_symbols,
    piece_of_shape,
    pieces_of_shape,
    place_in_grid,
)
from tessella.errors import InputError, check_integer

GROUP = 64
"""Pieces that share a stream, unless the caller chooses."""


@dataclass(frozen=True)
class CodedImage:
    """An image to be written.

    Args:
        symbols: ``[height, width, channels]``, below the levels of the model.
        scaled: whether they stand for values from 0 to 255.
        mode: index in :data:`~tessella.codec.image_modes.MODES`.
        palette: of an image that has one.
        name: of a file, with ``/`` between its parts.
        picture: of codes, height and width of the picture that they stand for.
    """

    symbols: np.ndarray
    scaled: bool = False
    mode: int = 0
    palette: bytes = b""
    name: str = ""
    picture: tuple[int, int] = (0, 0)


class ArchiveWriter:
    """Encodes images one after another, so that they need not be in memory together.

    Args:
        twin: the exact twin of a model.
        group: pieces that share a stream.
        batch: pieces that step at a time.

    Raises:
        InputError: for a group or a twin that the format does not allow, or without the library of
            the entropy coder.
    """

    def __init__(self, twin: Twin, group: int = GROUP, batch: int = GROUP) -> None:
        coder_library()
        self.group = check_integer("group", group, least=1, most=LARGEST_GROUP)
        self.batch = check_integer("batch", batch, least=1)
        if twin.arithmetic_version not in FORMAT_ARITHMETICS:
            raise InputError(
                f"version {twin.arithmetic_version} of the arithmetic cannot be stored"
            )
        if twin.classes and not twin.null_class:
            raise InputError(
                "this model was trained with a class for every image, and files hold no classes:"
                " train it with train.condition_dropout above 0"
            )
        if twin.grid.levels > 1 << 20:
            raise InputError(f"a model of {twin.grid.levels:,} levels has too many for a file")
        self.twin = twin
        self._waiting: list[tuple[Piece, np.ndarray]] = []
        self._streams: list[tuple[bytes, bool, bytes]] = []
        self._runs: list[ImageRun] = []
        self._names: list[str] = []
        self._palettes: list[bytes] = []

    def add(self, image: CodedImage) -> None:
        """Encode an image, as far as it fills groups.

        Raises:
            InputError: when it has too many channels.
        """
        height, width, channels = image.symbols.shape
        if channels > MOST_CHANNELS:
            raise InputError(f"an image of {channels} channels has more than {MOST_CHANNELS}")
        shape = ImageShape(height, width, channels)
        run = ImageRun(1, shape, image.mode, image.scaled, image.picture)
        if self._runs and replace(self._runs[-1], count=1) == run:
            run = replace(run, count=self._runs.pop().count + 1)
        self._runs.append(run)
        self._names.append(image.name)
        if image.mode == PALETTE:
            self._palettes.append(image.palette)
        for number in range(pieces_of_shape(self.twin.grid, shape)):
            piece = piece_of_shape(self.twin.grid, shape, 0, number)
            self._waiting.append((piece, piece.cut(image.symbols)))
            if len(self._waiting) == self.group:
                self._encode_group()

    def finish(self, flags: int = 0, tokenizer: bytes = b"") -> bytes:
        """The whole file.

        Args:
            flags: what the images were, see :mod:`tessella.codec.container`.
            tokenizer: first bytes of the fingerprint of the tokenizer, if they are codes.

        Raises:
            InputError: when the names of files cannot be kept.
        """
        if self._waiting:
            self._encode_group()
        names = self._names
        if not flags & HAS_FILES:
            names = []
        problem = names_problem(names)
        if problem:
            raise InputError(f"these files cannot be kept in one archive: {problem}")
        contents = Contents(
            model=bytes.fromhex(self.twin.id)[:MODEL_BYTES],
            arithmetic=self.twin.arithmetic_version,
            grid=self.twin.grid,
            group=self.group,
            flags=flags,
            runs=self._runs,
            names=names,
            palettes=self._palettes,
            tokenizer=tokenizer,
        )
        header = contents.written()
        streams = []
        for data, raw, digest in self._streams:
            streams.append(CodedStream(data, raw, stream_hash(digest, header)))
        return write_container(header, streams)

    def _encode_group(self) -> None:
        grid = self.twin.grid
        coded = coded_symbols(grid, [piece for piece, _ in self._waiting])
        x = place_in_grid(grid, [part for _, part in self._waiting], coded)
        self._waiting = []
        starts, frequencies = self._intervals(x, coded)
        data = encode_intervals(in_order(starts, coded), in_order(frequencies, coded), grid.levels)
        symbols = in_order(x, coded)
        # Noise, and images unlike those of the model, are no longer than they were.
        raw = packed_length(len(symbols), grid.levels) < len(data)
        if raw:
            data = pack(symbols, grid.levels)
        self._streams.append((data, raw, symbols_digest(symbols, grid.levels)))

    def _intervals(self, x: np.ndarray, coded: Coded) -> tuple[np.ndarray, np.ndarray]:
        """The intervals of the symbols of a group, see :func:`intervals`."""
        return intervals(self.twin, x, coded, self.batch)

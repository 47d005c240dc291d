"""A decoder of compressed images in plain NumPy, written from the documentation alone.

    python tests/golden/decode_reference.py FILE.tsl FOLDER_OF_THE_TWIN

It follows docs/format.md from top to bottom, and ``reference_arithmetic.py`` beside it
docs/arithmetic.md. They need nothing but NumPy and the standard library, and are written to be read
rather than to be fast. Of the models they know the one that docs/arithmetic.md works out in full:
``lstm``, with the head ``categorical`` on a grid of one channel, or with the head
``logistic-mixture``, with or without a predictor. Packed streams, which need no model, are decoded
for any grid.

All arithmetic is done with Python integers or with int64 arrays, of the shapes in square brackets.
"""

from __future__ import annotations

import hashlib
import math
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from reference_arithmetic import DecodingError, Lstm, Twin, read_twin, require, tables

MAGIC = b"\x89TSL"
HAS_NAMES = 1
IS_LIST = 2
IS_WIDE = 4
ARE_CODES = 8
PALETTE = 3
SCALED = 16
CHANNELS_OF_MODE = {1: 1, 2: 1, 3: 1, 4: 2, 5: 3, 6: 4, 7: 4}  # an array, mode 0, may have any


# --- format.md: The file --------------------------------------------------------------------------


class Reader:
    """Takes parts from the front of the bytes of a file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        part = self.data[self.position : self.position + count]
        require(len(part) == count, "the file ends too early")
        self.position += count
        return part

    def varint(self, lowest: int = 0, highest: int = 2**63 - 1) -> int:
        """The next integer, which must lie within the given bounds and have its shortest form."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                require(byte > 0 or shift == 0, "a number is not in its shortest form")
                require(lowest <= value <= highest, f"{value} is not in {lowest} .. {highest}")
                return value
        raise DecodingError("a number is too long")


@dataclass(frozen=True)
class Shape:
    """Height, width and channels of an image, and its mode."""

    height: int
    width: int
    channels: int
    mode: int


@dataclass
class Header:
    """All that stands in a file before the streams, except for their table."""

    identity: bytes = b""  # the first half of the id of the twin
    flags: int = 0
    grid: tuple[int, int, int, int] = (1, 1, 1, 2)  # height, width, channels, levels
    group: int = 1  # pieces for each stream
    images: list[Shape] = field(default_factory=list)
    palettes: dict[int, bytes] = field(default_factory=dict)  # by the number of the image
    names: list[bytes] = field(default_factory=list)
    raw: bytes = b""  # the header itself


def read_header(reader: Reader, most_pixels: int) -> Header:
    """Read everything up to the end of the header."""
    header = Header()
    require(reader.take(4) == MAGIC, "this is not a file of compressed images")
    require(reader.take(1)[0] == 1, "the file has another version of the format")
    require(reader.take(1)[0] == 1, "the file has another version of the arithmetic")
    header.identity = reader.take(16)
    header.flags = reader.take(1)[0]
    require(header.flags < 16, "unknown flags are set")
    are_codes = bool(header.flags & ARE_CODES)
    height = reader.varint(lowest=1)
    width = reader.varint(lowest=1)
    channels = reader.varint(lowest=1)
    levels = reader.varint(lowest=2)
    header.grid = (height, width, channels, levels)
    header.group = reader.varint(1, 1024)
    pixels = 0
    runs = reader.varint(lowest=1)
    for _ in range(runs):
        count = reader.varint(lowest=1)
        shape = Shape(
            height=reader.varint(lowest=1),
            width=reader.varint(lowest=1),
            channels=reader.varint(1, 255),
            mode=reader.varint(),
        )
        if not are_codes:
            check_mode(shape, levels)
        pixels += count * shape.height * shape.width
        require(pixels <= most_pixels, f"the images have more than {most_pixels} pixels")
        # Each image has a piece or more, and each group of pieces a stream of 9 bytes or more.
        most_images = header.group * (len(reader.data) // 9)
        require(len(header.images) + count <= most_images, "streams are missing for some images")
        header.images += [shape] * count
    if are_codes:
        # The tokenizer turns codes into pictures of these sizes; here, the codes are what is read.
        reader.take(8)
        for _ in range(runs):
            reader.varint(lowest=1)
            reader.varint(lowest=1)
    if not header.flags & IS_LIST:
        sizes = {(shape.height, shape.width, shape.channels) for shape in header.images}
        require(len(sizes) == 1, "the images of one array differ in shape")
    for number, shape in enumerate(header.images):
        if shape.mode % SCALED == PALETTE:
            header.palettes[number] = reader.take(reader.varint(highest=1024))
    if header.flags & HAS_NAMES:
        header.names = read_names(reader, len(header.images))
    header.raw = reader.data[: reader.position]
    return header


def check_mode(shape: Shape, levels: int) -> None:
    """Refuse a mode that is not in the table, or whose channels are others than those there."""
    mode = shape.mode
    if mode >= SCALED:
        require(levels < 256, "symbols are scaled, although they have the range of bytes")
        mode -= SCALED
    expected = CHANNELS_OF_MODE.get(mode, shape.channels)
    require(mode <= 7 and shape.channels == expected, "a mode is not one of those of images")


def read_names(reader: Reader, count: int) -> list[bytes]:
    """The names of ``count`` images, each stored as its difference from the one before."""
    names: list[bytes] = []
    folders = set()
    previous = b""
    for _ in range(count):
        start = reader.varint(highest=len(previous))
        end = reader.varint(highest=len(previous) - start)
        between = reader.take(reader.varint(highest=4096))
        name = previous[:start] + between + previous[len(previous) - end :]
        # Both numbers in common are as large as possible.
        rest = name[start:]
        of_previous = previous[start:]
        longer = rest[:1] == of_previous[:1] != b""
        if end < min(len(rest), len(of_previous)):
            longer = longer or rest[-1 - end] == of_previous[-1 - end]
        require(not longer, "a name is not in its shortest form")
        parts = name.split(b"/")
        bad = b"" in parts or b"." in parts or b".." in parts or b"\\" in name or b"\0" in name
        require(not bad and name[1:2] != b":" and len(name) <= 4096, f"the name {name!r}")
        names.append(name)
        for length in range(1, len(parts)):
            folders.add(b"/".join(parts[:length]))
        previous = name
    require(len(set(names)) == count, "a name is there twice")
    require(folders.isdisjoint(names), "a name is also a folder")
    return names


# --- format.md: Pieces ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A part of an image that fits into the grid of the model."""

    image: int  # its number
    first_channel: int
    top: int
    left: int
    rows: int
    columns: int
    channels: int

    def codes(self, row: int, column: int, channel: int) -> bool:
        """Whether the symbol at this place of the grid is in the stream."""
        return row < self.rows and column < self.columns and channel < self.channels


def pieces_of(image: int, shape: Shape, grid: tuple[int, int, int, int]) -> Iterator[Piece]:
    """The pieces of an image in their order: plane by plane, and tile by tile."""
    height, width, channels, _ = grid
    first_channel = 0
    while first_channel < shape.channels:
        whole = first_channel + channels <= shape.channels
        plane_channels = channels if whole else 1
        for top in range(0, shape.height, height):
            for left in range(0, shape.width, width):
                yield Piece(
                    image=image,
                    first_channel=first_channel,
                    top=top,
                    left=left,
                    rows=min(height, shape.height - top),
                    columns=min(width, shape.width - left),
                    channels=plane_channels,
                )
        first_channel += plane_channels


def number_of_pieces(shape: Shape, grid: tuple[int, int, int, int]) -> int:
    """How many pieces :func:`pieces_of` gives."""
    height, width, channels, _ = grid
    planes = shape.channels // channels + shape.channels % channels
    return planes * math.ceil(shape.height / height) * math.ceil(shape.width / width)


# --- format.md: Streams ---------------------------------------------------------------------------


class PackedStream:
    """Symbols of ``b`` bits each, the highest bit first."""

    needs_model = False

    def __init__(self, data: bytes, levels: int, count: int) -> None:
        self.levels = levels
        self.bits = (levels - 1).bit_length()
        require(len(data) == math.ceil(count * self.bits / 8), "a packed stream has a wrong length")
        self.number = int.from_bytes(data, "big")
        self.left = 8 * len(data)  # bits

    def next(self, frequencies: np.ndarray | None) -> int:
        """The next symbol."""
        self.left -= self.bits
        symbol = (self.number >> self.left) & ((1 << self.bits) - 1)
        require(symbol < self.levels, "a packed symbol is beyond the levels")
        return symbol

    def finish(self) -> None:
        """Check what fills the last byte."""
        require(self.number & ((1 << self.left) - 1) == 0, "a packed stream does not end in zeros")


class CodedStream:
    """A stack of 32-bit words, from which symbols are taken by their frequencies."""

    needs_model = True

    def __init__(self, data: bytes) -> None:
        require(data[-1:] not in (b"", b"\0"), "a stream is empty or ends in a zero byte")
        padded = data + b"\0" * (-len(data) % 4)
        self.words = list(struct.unpack(f"<{len(padded) // 4}I", padded))
        self.state = self.words.pop()
        if self.words:
            self.state = self.state * 2**32 + self.words.pop()

    def next(self, frequencies: np.ndarray | None) -> int:
        """The next symbol, of those with the given frequencies ``[levels]``."""
        assert frequencies is not None
        require(self.state >= 2**24, "a stream ends too early")
        slot = self.state % 2**24
        ends = np.cumsum(frequencies)
        symbol = int(np.searchsorted(ends, slot, side="right"))
        frequency = int(frequencies[symbol])
        begin = int(ends[symbol]) - frequency
        self.state = frequency * (self.state >> 24) + slot - begin
        if self.state < 2**32 and self.words:
            self.state = self.state * 2**32 + self.words.pop()
        return symbol

    def finish(self) -> None:
        """Check that the state is the one with which the encoder began."""
        require(not self.words and self.state == 2**24, "a stream does not end where it should")


def decode_group(
    pieces: list[Piece],
    stream: PackedStream | CodedStream,
    twin: Twin,
) -> tuple[np.ndarray, bytes]:
    """Decode the stream of a group.

    Returns the symbols ``[pieces, height, width, channels]`` on the grid of the model, and those
    that were in the stream, in order, as the bytes that the check is made of. Rows that no symbol
    in the stream depends on are zero or meaningless.
    """
    height, width, channels, levels = twin.grid
    symbols = np.zeros([len(pieces), height, width, channels], np.int64)
    model = Lstm(twin, len(pieces)) if stream.needs_model else None
    bytes_of_symbol = 1 if levels <= 256 else 4
    coded = bytearray()
    last_row = max(piece.rows for piece in pieces)
    for index in range(last_row * width * channels):
        place, channel = divmod(index, channels)
        row, column = divmod(place, width)
        frequencies = None
        if model is not None:
            frequencies = model.frequencies(index, symbols)
        for number, piece in enumerate(pieces):
            if piece.codes(row, column, channel):
                symbol = stream.next(None if frequencies is None else frequencies[number])
                coded += symbol.to_bytes(bytes_of_symbol, "little")
            elif channel >= piece.channels:
                symbol = symbols[number, row, column, 0]
            else:
                symbol = symbols[number, row, min(column, piece.columns - 1), channel]
            symbols[number, row, column, channel] = symbol
    stream.finish()
    return symbols, bytes(coded)


# --- The whole file -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoded:
    """What was in a file: its header, and the images ``[height, width, channels]``."""

    header: Header
    images: list[np.ndarray]
    packed: list[bool]  # for each stream, whether it was packed and not coded


def decode(data: bytes, twin: Twin, most_pixels: int = 10**8) -> Decoded:
    """Decode the bytes of a ``.tsl`` file.

    Raises:
        DecodingError: If the file is damaged or made with another twin, if it has more than
            ``most_pixels`` pixels, or if it has a coded stream and the twin is no ``lstm``.
    """
    require(len(data) > 4, "the file ends too early")
    require(zlib.crc32(data[:-4]) == struct.unpack("<I", data[-4:])[0], "the checksum is wrong")
    reader = Reader(data[:-4])
    header = read_header(reader, most_pixels)
    require(header.identity == twin.identity[:16], "the file was made with another twin")
    require(header.grid == twin.grid, "the grid of the file is not that of the twin")

    total = 0
    for shape in header.images:
        total += number_of_pieces(shape, header.grid)
    groups = math.ceil(total / header.group)
    table = []
    for _ in range(groups):
        length_and_kind = reader.varint()
        check = reader.take(8)
        table.append((length_and_kind >> 1, length_and_kind & 1 == 1, check))
    lengths = sum(length for length, _, _ in table)
    require(reader.position + lengths == len(reader.data), "streams do not fill the file")

    pieces: list[Piece] = []
    images = []
    for number, shape in enumerate(header.images):
        pieces += pieces_of(number, shape, header.grid)
        images.append(np.zeros([shape.height, shape.width, shape.channels], np.int64))
    for number, (length, packed, check) in enumerate(table):
        group = pieces[number * header.group : (number + 1) * header.group]
        count = sum(piece.rows * piece.columns * piece.channels for piece in group)
        stream = open_stream(reader.take(length), packed, header.grid[3], count)
        symbols, coded = decode_group(group, stream, twin)
        expected = hashlib.sha256(hashlib.sha256(coded).digest() + header.raw).digest()[:8]
        require(check == expected, f"the check of stream {number} is wrong")
        paste(symbols, group, images)
    finished = []
    for shape, image in zip(header.images, images, strict=True):
        finished.append(to_values(image, shape, header))
    return Decoded(header, finished, [packed for _, packed, _ in table])


def open_stream(data: bytes, packed: bool, levels: int, count: int) -> PackedStream | CodedStream:
    """The stream in ``data``, with ``count`` symbols."""
    if packed:
        return PackedStream(data, levels, count)
    return CodedStream(data)


def paste(symbols: np.ndarray, pieces: list[Piece], images: list[np.ndarray]) -> None:
    """Put symbols ``[pieces, height, width, channels]`` where they belong in the images."""
    for number, piece in enumerate(pieces):
        part = symbols[number, : piece.rows, : piece.columns, : piece.channels]
        rows = slice(piece.top, piece.top + piece.rows)
        columns = slice(piece.left, piece.left + piece.columns)
        channels = slice(piece.first_channel, piece.first_channel + piece.channels)
        images[piece.image][rows, columns, channels] = part


def to_values(image: np.ndarray, shape: Shape, header: Header) -> np.ndarray:
    """The values that the symbols of an image stand for, in the type of the images."""
    levels = header.grid[3]
    if shape.mode >= SCALED:
        image = (510 * image + levels - 1) // (2 * (levels - 1))
    if header.flags & IS_WIDE:
        return image
    require(int(image.max()) < 256, "a value does not fit into a byte")
    return image.astype(np.uint8)


def main(path: str, folder: str) -> None:
    """Decode a file and print what was in it."""
    twin = read_twin(Path(folder))
    print(f"tables of functions: {tables().digest()}")
    print(f"twin:                {twin.identity.hex()}")
    decoded = decode(Path(path).read_bytes(), twin)
    for number, packed in enumerate(decoded.packed):
        print(f"stream {number}: {'packed' if packed else 'coded'}")
    for number, image in enumerate(decoded.images):
        name = ""
        if decoded.header.names:
            name = " " + decoded.header.names[number].decode("utf-8", "replace")
        print(f"image {number}{name}: {image.dtype} {list(image.shape)}")
        if image.size <= 256:
            print(image[:, :, 0] if image.shape[2] == 1 else image)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

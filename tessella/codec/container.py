"""The bytes of a ``.tsl`` file around its streams, as ``docs/format.md`` specifies them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tessella.codec.file_names import read_names, written_names
from tessella.codec.image_modes import MODES, PALETTE, SCALED
from tessella.codec.tiles import ImageShape, Layout
from tessella.codec.varints import ByteReader, varint
from tessella.errors import BitstreamError, InputError
from tessella.files import COMPRESSED_MARK
from tessella.grid import Grid

FORMAT = 1
FORMAT_ARITHMETICS = (1,)
"""Versions of the arithmetic that this version of the format can hold."""

MODEL_BYTES = 16
"""Bytes of the model's id that are stored."""

HASH_BYTES = 8
"""Bytes of the hash of a stream's symbols that are stored."""

LARGEST_GROUP = 1024
"""Most pieces that step together: it bounds the memory that decoding takes."""

MOST_CHANNELS = 255

MAX_PIXELS = 1 << 28
"""Pixels, over all images, that are decoded unless the caller allows more."""

HAS_FILES = 1
IS_LIST = 2
IS_WIDE = 4
IS_LOSSY = 8
"""Flags: the images are files with names; they came as a list; their values are int64; they are the
codes of a tokenizer, and stand for pictures."""

TOKENIZER_BYTES = 8
"""Bytes of the fingerprint of a tokenizer that are stored."""

MAX_PALETTE = 4 * 256


@dataclass(frozen=True)
class ImageRun:
    """Images in a row that have the same shape and mode.

    Args:
        count: how many.
        shape: shape of each.
        mode: index in :data:`~tessella.codec.image_modes.MODES`.
        scaled: whether symbols stand for values from 0 to 255 (see ``docs/format.md``).
        picture: of codes, height and width of the picture that they stand for; else zeros.
    """

    count: int
    shape: ImageShape
    mode: int = 0
    scaled: bool = False
    picture: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Contents:
    """What an archive holds, apart from its streams.

    Args:
        model: first bytes of the id of the model.
        arithmetic: version of the arithmetic.
        grid: the grid of the model.
        group: pieces that step together.
        flags: sum of :data:`HAS_FILES`, :data:`IS_LIST`, :data:`IS_WIDE` and :data:`IS_LOSSY`.
        runs: the images.
        names: of the files, if they are files.
        palettes: of those images that have one, in order.
        tokenizer: first bytes of the fingerprint of the tokenizer, where the images are codes.
    """

    model: bytes
    arithmetic: int
    grid: Grid
    group: int
    flags: int
    runs: Sequence[ImageRun]
    names: Sequence[str] = ()
    palettes: Sequence[bytes] = ()
    tokenizer: bytes = b""

    def layout(self) -> Layout:
        """Where the pieces are."""
        return Layout(self.grid, [(run.count, run.shape) for run in self.runs])

    def run_of(self, image: int) -> ImageRun:
        """The run of an image."""
        for run in self.runs:
            if image < run.count:
                return run
            image -= run.count
        raise IndexError(image)

    def written(self) -> bytes:
        """The header up to the table of streams."""
        parts = [COMPRESSED_MARK, bytes([FORMAT, self.arithmetic]), self.model, bytes([self.flags])]
        grid = self.grid
        numbers = [grid.height, grid.width, grid.channels, grid.levels, self.group, len(self.runs)]
        for run in self.runs:
            numbers += [run.count, run.shape.height, run.shape.width, run.shape.channels]
            numbers.append(run.mode + (SCALED if run.scaled else 0))
        parts.extend(varint(number) for number in numbers)
        if self.flags & IS_LOSSY:
            parts.append(self.tokenizer)
            for run in self.runs:
                parts += [varint(side) for side in run.picture]
        for palette in self.palettes:
            parts += [varint(len(palette)), palette]
        if self.flags & HAS_FILES:
            parts.append(written_names(self.names))
        return b"".join(parts)


@dataclass(frozen=True)
class CodedStream:
    """A stream of an archive.

    Args:
        data: its bytes.
        raw: whether they are packed symbols, without a model.
        check: hash of its symbols and of the header.
    """

    data: bytes
    raw: bool
    check: bytes


def symbols_digest(symbols: np.ndarray, levels: int) -> bytes:
    """SHA-256 of symbols, one byte for each, or four (little-endian) from 257 levels.

    Args:
        symbols: coded symbols in the order of their stream, ``int64 [n]``.
        levels: values that a symbol can take.
    """
    return hashlib.sha256(symbols.astype("u1" if levels <= 256 else "<u4").tobytes()).digest()


def stream_hash(digest: bytes, header: bytes) -> bytes:
    """The hash of a stream: of its symbols, and of the header, which says how they are arranged."""
    return hashlib.sha256(digest + header).digest()[:HASH_BYTES]


def write_container(header: bytes, streams: Sequence[CodedStream]) -> bytes:
    """The whole file."""
    parts = [header]
    for stream in streams:
        parts += [varint(2 * len(stream.data) + stream.raw), stream.check]
    parts += [stream.data for stream in streams]
    body = b"".join(parts)
    return body + zlib.crc32(body).to_bytes(4, "little")


@dataclass(frozen=True)
class Container:
    """An archive whose header was read and checked; its streams are decoded later.

    Args:
        contents: the header.
        header: its bytes up to the table of streams.
        streams: the streams.
        layout: where the pieces are.
    """

    contents: Contents
    header: bytes
    streams: Sequence[CodedStream]
    layout: Layout = field(repr=False)


def read_container(data: bytes, max_pixels: int = MAX_PIXELS) -> Container:
    """Read a file and check everything that can be checked without the model.

    Args:
        data: the whole file.
        max_pixels: pixels that all images may have together.

    Raises:
        BitstreamError: when it is not a whole and valid file, or has more pixels.
    """
    check_beginning(data)
    body = len(data) - 4
    if body < 0 or zlib.crc32(data[:body]) != int.from_bytes(data[body:], "little"):
        raise BitstreamError("the file is damaged or cut short: its checksum differs; get it again")
    reader = ByteReader(data, body)
    reader.take(len(COMPRESSED_MARK) + 1, "the beginning")
    contents = _read_contents(reader, max_pixels)
    header = data[: reader.place]
    if contents.written() != header:
        raise BitstreamError("the file is damaged: its header is not written as it should be")
    layout = contents.layout()
    streams = _read_streams(reader, contents, layout)
    return Container(contents, header, streams, layout)


def check_beginning(data: bytes) -> None:
    """Check the mark and the version of the format.

    Raises:
        BitstreamError: when the file is of another kind, or of another version.
    """
    if not data.startswith(COMPRESSED_MARK):
        raise BitstreamError("this is no compressed file of tessella (.tsl)")
    if len(data) <= len(COMPRESSED_MARK) or data[len(COMPRESSED_MARK)] != FORMAT:
        found = data[len(COMPRESSED_MARK) : len(COMPRESSED_MARK) + 1].hex() or "no version"
        raise BitstreamError(
            f"the file has format {found}, and this version of tessella reads format {FORMAT}:"
            " use the version of tessella that wrote it, or a newer one"
        )


def _read_contents(reader: ByteReader, max_pixels: int) -> Contents:
    arithmetic = reader.take(1, "the version of the arithmetic")[0]
    if arithmetic not in FORMAT_ARITHMETICS:
        raise BitstreamError(
            f"the file needs version {arithmetic} of the arithmetic, and this version of tessella"
            f" has {', '.join(map(str, FORMAT_ARITHMETICS))}: use a newer one"
        )
    model = reader.take(MODEL_BYTES, "the id of the model")
    flags = reader.take(1, "the flags")[0]
    if flags & ~(HAS_FILES | IS_LIST | IS_WIDE | IS_LOSSY):
        raise BitstreamError(f"the file is damaged: its flags are {flags}")
    sizes = [
        reader.number(f"the grid's {name}", least)
        for name, least in (("height", 1), ("width", 1), ("channels", 1), ("levels", 2))
    ]
    grid = Grid(*sizes)
    group = reader.number("the size of a group", 1, LARGEST_GROUP)
    runs = _read_runs(reader, grid.levels, bool(flags & IS_LOSSY))
    tokenizer = b""
    if flags & IS_LOSSY:
        tokenizer = reader.take(TOKENIZER_BYTES, "the fingerprint of the tokenizer")
        runs = _read_picture_sizes(reader, runs)
    _check_pixels(runs, max_pixels)
    count = sum(run.count for run in runs)
    palettes = []
    for run in runs:
        if run.mode == PALETTE:
            # A run of images with palettes takes two bytes for each of them, or more.
            if run.count > reader.left:
                raise BitstreamError("the file is damaged: palettes are missing")
            for _ in range(run.count):
                length = reader.number("the length of a palette", 0, MAX_PALETTE)
                palettes.append(reader.take(length, "a palette"))
    names: list[str] = []
    if flags & HAS_FILES:
        names = read_names(reader, count)
    return Contents(model, arithmetic, grid, group, flags, runs, names, palettes, tokenizer)


def _read_runs(reader: ByteReader, levels: int, are_codes: bool) -> list[ImageRun]:
    runs = []
    # Each run takes five bytes or more, so the loop ends with the file.
    for _ in range(reader.number("the number of runs", 1)):
        count = reader.number("a number of images", 1)
        height = reader.number("a height", 1)
        width = reader.number("a width", 1)
        channels = reader.number("a number of channels", 1, MOST_CHANNELS)
        kind = reader.number("a mode")
        mode = kind & ~SCALED
        if kind & SCALED and levels >= 256:
            raise BitstreamError(f"the file is damaged: {levels} levels that are scaled")
        if mode >= len(MODES) or (mode and not are_codes and MODES[mode].channels != channels):
            raise BitstreamError(f"the file is damaged: {channels} channels of mode {mode}")
        runs.append(ImageRun(count, ImageShape(height, width, channels), mode, bool(kind & SCALED)))
    return runs


def _read_picture_sizes(reader: ByteReader, runs: list[ImageRun]) -> list[ImageRun]:
    """Runs of codes with the sizes of their pictures."""
    found = []
    for run in runs:
        height = reader.number("the height of a picture", 1)
        width = reader.number("the width of a picture", 1)
        found.append(replace(run, picture=(height, width)))
    return found


def _check_pixels(runs: list[ImageRun], max_pixels: int) -> None:
    """Refuse more pixels than the caller allows."""
    pixels = 0
    for run in runs:
        of_picture = run.picture[0] * run.picture[1]
        pixels += run.count * max(of_picture, run.shape.height * run.shape.width)
    if pixels > max_pixels:
        raise BitstreamError(
            f"the file says that its images have {pixels:,} pixels, and at most {max_pixels:,} are"
            " decoded; if it is genuine, allow more with max_pixels= (--max-pixels)"
        )


def _read_streams(reader: ByteReader, contents: Contents, layout: Layout) -> list[CodedStream]:
    """The table of streams, and the streams, which must fill the file exactly."""
    groups = layout.groups(contents.group)
    if groups * (1 + HASH_BYTES) > reader.left:
        raise BitstreamError("the file is damaged: it is too short for the images that it names")
    table = []
    for _ in range(groups):
        length, raw = divmod(reader.number("the length of a stream"), 2)
        table.append((length, bool(raw), reader.take(HASH_BYTES, "the hash of a stream")))
    if sum(length for length, _, _ in table) != reader.left:
        raise BitstreamError("the file is damaged: its streams do not fill it")
    streams = []
    for length, raw, check in table:
        streams.append(CodedStream(reader.take(length, "a stream"), raw, check))
    return streams


def check_model(contents: Contents, model_id: str, grid: Grid, arithmetic: int) -> None:
    """Check that an archive is of a model.

    Raises:
        InputError: when the model's arithmetic is none that can be stored.
        BitstreamError: when the archive is of another model.
    """
    if arithmetic not in FORMAT_ARITHMETICS:
        raise InputError(f"version {arithmetic} of the arithmetic cannot be stored")
    wanted = contents.model.hex()
    if model_id[: 2 * MODEL_BYTES] != wanted:
        raise BitstreamError(
            f"the file was made with the model {wanted}, and this is {model_id[: 2 * MODEL_BYTES]}"
        )
    if contents.grid != grid or contents.arithmetic != arithmetic:
        raise BitstreamError(
            f"the file is damaged: it names a grid of {contents.grid}, and the model has {grid}"
        )

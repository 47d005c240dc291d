"""Check TIFF files: strips, planes and tiles are complete, and Pillow can read the kind.

TIFF refers to each piece of an image by offset and length, so pieces can be missing, short or
shared without the file looking truncated. libtiff and Pillow fill in some of what is missing.
Pillow also silently misreads a few kinds. Section numbers are those of the TIFF 6.0 specification.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from PIL import TiffImagePlugin

from tessella.data.formats.jpeg import check_jpeg, frame_size
from tessella.data.unusable_image import UnusableImage

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of TIFF and BigTIFF files, in both byte orders."""


class TiffTag(IntEnum):
    """Numbers of the tags that are read here (section 8 and those behind it)."""

    WIDTH = 256
    HEIGHT = 257
    BITS_PER_SAMPLE = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    FILL_ORDER = 266
    STRIP_OFFSETS = 273
    SAMPLES = 277
    ROWS_PER_STRIP = 278
    STRIP_LENGTHS = 279
    MAX_SAMPLE = 281
    PLANAR = 284
    COLOUR_MAP = 320
    TILE_WIDTH = 322
    TILE_HEIGHT = 323
    TILE_OFFSETS = 324
    TILE_LENGTHS = 325
    SAMPLE_FORMAT = 339
    JPEG_TABLES = 347
    CHROMA_SUBSAMPLING = 530


_RAW = 1
_LZW = 5
_JPEG = 7
_ADOBE_DEFLATE = 8
_PACKBITS = 32773
_DEFLATE = 32946
_LZMA = 34925
_ZSTD = 50000
_COMPRESSIONS = (_RAW, _LZW, _JPEG, _ADOBE_DEFLATE, _PACKBITS, _DEFLATE, _LZMA, _ZSTD)
"""Compressions in which missing data are noticed, by libtiff or here; not so fax codes."""
_CHUNKY = 1  # values of PLANAR: the samples of a pixel are together, or in separate planes
_SEPARATE = 2
_WHITE_IS_ZERO = 0  # values of PHOTOMETRIC
_YCBCR = 6
_UNSIGNED = 1  # the value of SAMPLE_FORMAT for whole numbers without a sign
_BYTE_TYPES = (1, 2, 6, 7)  # types of tags that Pillow keeps as bytes (section 2)
_PIECE = 1 << 18  # number of bytes that are unpacked at a time
MAX_UNPACKED = 1 << 30
"""Most bytes of all unpacked pieces, which no image of an allowed size exceeds."""
MAX_SAMPLES = 64
"""Most samples per pixel; Pillow reads at most 6."""
MAX_TAGS = 4096
"""Most tags of an image; about a hundred are defined."""
MAX_NUMBERS = 1 << 19
"""Most numbers in a tag: 100 megapixels in tiles of 16x16 need 390,625 offsets."""
_ADVICE = "save it again as TIFF with LZW or deflate, or as PNG"


@dataclass(frozen=True)
class _Piece:
    """A strip or tile: offset and length in the file, and unpacked size in pixels and bytes."""

    start: int
    length: int
    width: int
    height: int
    bytes: int


class TiffDirectory:
    """The tags of an image file directory, with the defaults of the specification.

    Args:
        directory: the directory as Pillow reads it; its values are numbers or tuples of them.
    """

    def __init__(self, directory: TiffImagePlugin.ImageFileDirectory_v2) -> None:
        self._directory = directory

    def __contains__(self, tag: int) -> bool:
        return tag in self._directory

    def numbers(self, tag: int, default: Sequence[int] = ()) -> tuple[int, ...]:
        """All values of a tag, as whole numbers."""
        value = self._directory.get(tag, default)
        if isinstance(value, (int, float)):
            return (int(value),)
        return tuple(map(int, value))

    def number(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        return (self.numbers(tag) or (default,))[0]

    def raw(self, tag: int) -> bytes:
        """The bytes of a tag of unspecified type; empty if it is missing."""
        value = self._directory.get(tag, b"")
        if isinstance(value, bytes):
            return value
        return b""

    @property
    def bits(self) -> tuple[int, ...]:
        """Bits of each sample of a pixel. A single number stands for all samples.

        Raises:
            ValueError: for more samples than any image has.
        """
        bits = self.numbers(TiffTag.BITS_PER_SAMPLE, (1,))
        samples = self.number(TiffTag.SAMPLES, len(bits))
        if samples > MAX_SAMPLES:
            raise ValueError(f"{samples:,} samples per pixel, at most {MAX_SAMPLES} are read")
        if len(bits) == 1:
            return bits * samples
        return bits[:samples]

    @property
    def white_is_zero(self) -> bool:
        """Whether 0 means white, in grey images."""
        return self.number(TiffTag.PHOTOMETRIC, _WHITE_IS_ZERO) == _WHITE_IS_ZERO


def check_counts(data: bytes) -> None:
    """Refuse a first directory with more numbers in a tag than any image needs (section 2).

    Pillow creates a Python object for each number, which may take many times the size of the file.

    Raises:
        UnusableImage: when a tag has more than :data:`MAX_NUMBERS`, or the directory is truncated.
    """
    order = "<" if data[:2] == b"II" else ">"
    start = struct.Struct(order + "4xI")  # offset of the first directory
    number = struct.Struct(order + "H")  # number of its entries
    entry = struct.Struct(order + "HHI4x")  # tag, type, count; then the values or their offset
    if _is_big(data):
        start = struct.Struct(order + "8xQ")
        number = struct.Struct(order + "Q")
        entry = struct.Struct(order + "HHQ8x")
    try:
        (offset,) = start.unpack_from(data)
        (entries,) = number.unpack_from(data, offset)
        offset += number.size
        if entries > MAX_TAGS:
            raise UnusableImage(f"its directory has {entries:,} tags; save it again")
        for _ in range(entries):
            tag, kind, count = entry.unpack_from(data, offset)
            offset += entry.size
            if kind not in _BYTE_TYPES and count > MAX_NUMBERS:
                raise UnusableImage(f"its tag {tag} has {count:,} values; save it again")
    except (struct.error, OverflowError) as error:
        raise UnusableImage("damaged: its directory is cut") from error


def read_tags(data: bytes) -> TiffDirectory:
    """The tags of the first image of a TIFF file."""
    header = data[:16] if _is_big(data) else data[:8]
    directory = TiffImagePlugin.ImageFileDirectory_v2(header)
    file = io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    return TiffDirectory(directory)


def _is_big(data: bytes) -> bool:
    """Whether a file is a BigTIFF, with offsets of 64 bits."""
    return data[2:4] in (b"+\0", b"\0+")


def why_not_read(data: bytes) -> str:
    """The reason why Pillow cannot read a TIFF file."""
    try:
        tags = read_tags(data)
        bits = tags.bits
        photometric = tags.number(TiffTag.PHOTOMETRIC, _WHITE_IS_ZERO)
        samples = "grey"
        if len(bits) > 1:
            samples = f"{len(bits)} samples"
    except Exception:  # noqa: BLE001 - damaged directories end in errors of every class
        return "damaged: its directory cannot be read"
    return (
        f"a TIFF of {samples} of {'+'.join(map(str, sorted(set(bits))))} bits"
        f" (photometric interpretation {photometric}), which is not read;"
        " scale its values to 8 or 16 bits, black at 0, and save it as PNG"
    )


def check_kind(tags: TiffDirectory) -> None:
    """Refuse kinds of TIFF that would be decoded wrongly, or whose gaps go unnoticed.

    Raises:
        UnusableImage: with the reason and what to do.
    """
    compression = tags.number(TiffTag.COMPRESSION, _RAW)
    if compression not in _COMPRESSIONS:
        raise UnusableImage(
            f"packed in a way (number {compression}) in which missing data go unnoticed; {_ADVICE}"
        )
    if set(tags.numbers(TiffTag.SAMPLE_FORMAT, (_UNSIGNED,))) != {_UNSIGNED}:
        raise UnusableImage(
            "floating-point, 32-bit or signed integer pixels; scale them to 8 bits first"
        )
    planes_apart = tags.number(TiffTag.PLANAR, _CHUNKY) == _SEPARATE and len(tags.bits) > 1
    if planes_apart and compression == _RAW and max(tags.bits) > 8:
        raise UnusableImage(f"colour planes of more than 8 bits, stored apart; {_ADVICE}")
    subsampling = tags.numbers(TiffTag.CHROMA_SUBSAMPLING, (2, 2))
    if (
        tags.number(TiffTag.PHOTOMETRIC, 1) == _YCBCR
        and compression != _JPEG
        and subsampling != (1, 1)
    ):
        raise UnusableImage(f"YCbCr with colours at a lower resolution; {_ADVICE}")
    _check_maximum(tags)
    _check_colour_map(tags)


def check_pieces(tags: TiffDirectory, data: bytes) -> None:
    """Check that all strips or tiles of all planes are in the file and long enough.

    Raises:
        UnusableImage: when one is missing or short, or when two are the same.
    """
    compression = tags.number(TiffTag.COMPRESSION, _RAW)
    spans = []
    for piece in _pieces(tags):
        # A raw piece may declare more than it needs, even past the end of the file: some writers
        # round up.
        last = piece.start + (piece.bytes if compression == _RAW else piece.length)
        too_short = compression == _RAW and piece.length < piece.bytes
        if piece.start < 8 or piece.length <= 0 or too_short or last > len(data):
            raise UnusableImage(
                "damaged: its strips are shorter than its pixels, or lie outside of the file"
            )
        # The length of a packed piece may be rounded up too, so only its first byte is claimed.
        spans.append((piece.start, last if compression == _RAW else piece.start + 1))
    reached = 0
    for start, end in sorted(spans):
        if start < reached:
            raise UnusableImage("damaged: its strips share the same data")
        reached = end


def check_packed_data(tags: TiffDirectory, data: bytes) -> None:
    """Check what libtiff does not: checksums and lengths in deflate data, and JPEG data.

    Raises:
        UnusableImage: when a strip or tile is damaged or has too few rows.
    """
    compression = tags.number(TiffTag.COMPRESSION, _RAW)
    # Deflate with reversed bit order is possible in theory; then libtiff only checks lengths.
    if compression in (_ADOBE_DEFLATE, _DEFLATE) and tags.number(TiffTag.FILL_ORDER, 1) == 1:
        _check_deflate(_pieces(tags), data)
    elif compression == _JPEG:
        tables = tags.raw(TiffTag.JPEG_TABLES)
        for piece in _pieces(tags):
            _check_jpeg_piece(piece, tables, data)


def piece_bytes(tags: TiffDirectory) -> int:
    """Bytes of the largest unpacked strip or tile, which libtiff holds while decoding."""
    width, height = _piece_size(tags)
    return width * height * max(4, sum(tags.bits) // 8)


def _piece_size(tags: TiffDirectory) -> tuple[int, int]:
    """(width, height) of a strip or tile, in pixels (sections 8 and 15)."""
    if TiffTag.TILE_WIDTH in tags:
        return tags.number(TiffTag.TILE_WIDTH, 0), tags.number(TiffTag.TILE_HEIGHT, 0)
    height = tags.number(TiffTag.HEIGHT, 0)
    return tags.number(TiffTag.WIDTH, 0), min(height, tags.number(TiffTag.ROWS_PER_STRIP, height))


def _pieces(tags: TiffDirectory) -> Iterator[_Piece]:
    """All strips or tiles that the image needs, plane by plane, row by row.

    Raises:
        UnusableImage: when the file names fewer.
    """
    tiled = TiffTag.TILE_WIDTH in tags
    if tiled:
        offsets = tags.numbers(TiffTag.TILE_OFFSETS)
        lengths = tags.numbers(TiffTag.TILE_LENGTHS)
    else:
        offsets = tags.numbers(TiffTag.STRIP_OFFSETS)
        lengths = tags.numbers(TiffTag.STRIP_LENGTHS)
    image_width = tags.number(TiffTag.WIDTH, 0)
    image_height = tags.number(TiffTag.HEIGHT, 0)
    width, height = _piece_size(tags)
    if width <= 0 or height <= 0:
        raise UnusableImage("damaged: strips or tiles without pixels")
    across = math.ceil(image_width / width)
    down = math.ceil(image_height / height)
    # Bits per pixel in each plane: all samples together, or one sample per plane.
    pixel_bits = [sum(tags.bits)]
    if tags.number(TiffTag.PLANAR, _CHUNKY) == _SEPARATE:
        pixel_bits = list(tags.bits)
    if min(len(offsets), len(lengths)) < across * down * len(pixel_bits):
        raise UnusableImage("damaged: its strips do not cover the image")
    index = 0
    for bits in pixel_bits:
        row_bytes = (width * bits + 7) // 8
        for row in range(down):
            # The last strip holds what is left of the image; tiles are always whole.
            rows = height
            if not tiled:
                rows = min(height, image_height - row * height)
            for _ in range(across):
                yield _Piece(offsets[index], lengths[index], width, rows, rows * row_bytes)
                index += 1


def _check_maximum(tags: TiffDirectory) -> None:
    """Refuse 16-bit samples with unscaled values of fewer bits, as some cameras write them.

    MaxSampleValue is only a statistic (section 8). But if it is the largest value of 9 to 15 bits,
    the high bytes would be nearly black.
    """
    maximum = tags.number(TiffTag.MAX_SAMPLE, 0xFFFF)
    bits = maximum.bit_length()
    if max(tags.bits) == 16 and 8 < bits < 16 and maximum == (1 << bits) - 1:
        raise UnusableImage(
            f"values of {bits} bits in samples of 16 (its MaxSampleValue is {maximum});"
            f" multiply them by {1 << (16 - bits)}, or save 8 bits"
        )


def _check_colour_map(tags: TiffDirectory) -> None:
    """Check the palette: 2^bits reds, greens and blues, each of 16 bits (section 5)."""
    if TiffTag.COLOUR_MAP not in tags:
        return
    colours = tags.numbers(TiffTag.COLOUR_MAP)
    if len(colours) < 3 << tags.bits[0]:
        raise UnusableImage("damaged: its palette is too short")
    if 0 < max(colours) < 256:
        raise UnusableImage("a palette of 8 bits, where TIFF asks for 16; save it as PNG")


def _check_deflate(pieces: Iterator[_Piece], data: bytes) -> None:
    """Unpack each piece to check its length, and its checksum, which libtiff ignores."""
    budget = MAX_UNPACKED
    for piece in pieces:
        unpacker = zlib.decompressobj()
        rest = data[piece.start : piece.start + piece.length]
        unpacked = 0
        while not unpacker.eof:
            count = len(unpacker.decompress(rest, _PIECE))
            rest = unpacker.unconsumed_tail
            unpacked += count
            budget -= count
            if budget < 0 or not (count or unpacker.eof):
                raise UnusableImage("damaged: its strips do not end where they should")
        if unpacked < piece.bytes:
            raise UnusableImage("damaged: its strips have too few rows")


def _check_jpeg_piece(piece: _Piece, tables: bytes, data: bytes) -> None:
    """Check a strip or tile that is a JPEG stream, after prepending its tables.

    The tables are stored once for all pieces, as a separate stream (TIFF Technical Note 2).
    """
    stream = data[piece.start : piece.start + piece.length]
    size = frame_size(stream)
    # The last strip may be padded to whole blocks, so it may be larger than needed.
    if size is None or size[0] < piece.height or size[1] < piece.width:
        raise UnusableImage("damaged: JPEG data of fewer pixels than its strips have")
    if tables:
        stream = (
            tables[:-2] + stream[2:]
        )  # without the end marker of one and the start of the other
    check_jpeg(stream)

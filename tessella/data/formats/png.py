"""Check PNG files, chunk by chunk, before Pillow sees them.

Pillow fills missing rows with zeros, compares a transparent colour with values that it has already
scaled to 8 bits, and unpacks metadata that nobody asked for. So the chunks are read here first.
Section numbers are those of the PNG specification, third edition (https://www.w3.org/TR/png-3/).
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tessella.data.unusable_image import UnusableImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_METADATA = 1 << 20
"""Most bytes that one packed text or colour profile may unpack to, as in Pillow."""
MAX_ALL_METADATA = 8 << 20
"""Most bytes that all packed texts and profiles of a file may unpack to."""
MAX_CHUNKS = 100_000
"""Most chunks in a file; encoders write image data in chunks of 8 KiB or more."""

_PIECE = 1 << 20  # bytes that are unpacked at a time
_INPUT = 1 << 16  # bytes that are given to zlib at a time
_MARGIN = 1 << 20  # bytes that are unpacked beyond the image, to reach the checksum behind it

# Table 8 (section 11.2.1): channels and allowed bit depths of each colour type.
_GREY = 0
_RGB = 2
_PALETTE = 3
_GREY_ALPHA = 4
_RGBA = 6
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}
_DEPTHS = {
    _GREY: (1, 2, 4, 8, 16),
    _RGB: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _GREY_ALPHA: (8, 16),
    _RGBA: (8, 16),
}
# The seven passes of Adam7 (section 8.1): first column, first row, step of columns, step of rows.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


@dataclass(frozen=True)
class PngFacts:
    """Facts in the chunks of a PNG file.

    Args:
        width: width in pixels.
        height: height in pixels.
        depth: bits per sample, 1 to 16.
        colour: the colour type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA.
        interlaced: whether the rows come in the seven passes of Adam7.
        palette: number of colours in the palette, 0 if there is none.
        key: the single transparent grey (1 value) or RGB colour (3 values), at the bit depth of the
            file; empty if there is none. Transparent palette entries are left to Pillow.
        significant: significant bits of a grey value (chunk sBIT); ``depth`` unless the file says
            fewer.
        image_data: offsets of the packed image data in the file, as (start, end) of each chunk.
    """

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool
    palette: int
    key: tuple[int, ...]
    significant: int
    image_data: tuple[tuple[int, int], ...]

    @property
    def unpacked(self) -> int:
        """Bytes of the unpacked image data, in which each row starts with a filter type (9.2)."""
        bits = self.depth * _CHANNELS[self.colour]
        if not self.interlaced:
            return self.height * (1 + (self.width * bits + 7) // 8)
        total = 0
        for left, top, across, down in _ADAM7:
            columns = math.ceil((self.width - left) / across)
            rows = math.ceil((self.height - top) / down)
            # A pass without columns has no rows either, and no filter types.
            if columns > 0 and rows > 0:
                total += rows * (1 + (columns * bits + 7) // 8)
        return total


@dataclass(frozen=True)
class _Chunk:
    """A chunk: its type, the offset of its data in the file, and its data."""

    kind: bytes
    start: int
    data: memoryview


def read_png(data: bytes) -> PngFacts:
    """Check all chunks of a PNG file except its image data, and return their facts.

    Raises:
        UnusableImage: when a chunk is cut or has a wrong checksum, when chunks that matter for
            pixels are missing, doubled or out of order, or when a packed text or colour profile
            unpacks to more than :data:`MAX_METADATA`.
    """
    chunks = list(_chunks(data))
    _check_order([chunk.kind for chunk in chunks])
    _check_metadata(chunks)
    found = {chunk.kind: chunk.data for chunk in chunks}
    header = found[b"IHDR"]
    if len(header) != 13:
        raise UnusableImage("damaged: its header has a wrong length")
    width, height, depth, colour, packing, filtering, interlace = struct.unpack(">IIBBBBB", header)
    if depth not in _DEPTHS.get(colour, ()) or packing or filtering or interlace > 1:
        raise UnusableImage("damaged: its header says what PNG does not allow")
    if not width or not height:
        raise UnusableImage("damaged: its header says that it has no pixels")
    palette = len(found.get(b"PLTE", b""))
    if palette % 3 or palette > 3 * 256 or (colour == _PALETTE and not palette):
        raise UnusableImage("damaged: its palette is missing or has a wrong length")
    image_data = []
    for chunk in chunks:
        if chunk.kind == b"IDAT":
            image_data.append((chunk.start, chunk.start + len(chunk.data)))
    return PngFacts(
        width,
        height,
        depth,
        colour,
        bool(interlace),
        palette // 3,
        _key(found.get(b"tRNS"), colour, depth, palette // 3),
        _significant(found.get(b"sBIT"), colour, depth),
        tuple(image_data),
    )


def check_image_data(facts: PngFacts, data: bytes) -> None:
    """Unpack the image data, without keeping them, to check that every row is there.

    More data than the image needs is allowed (section 13.2 calls it recoverable).

    Raises:
        UnusableImage: when rows are missing or the data are damaged.
    """
    view = memoryview(data)
    unpacker = zlib.decompressobj()
    needed = facts.unpacked
    unpacked = 0
    for start, end in facts.image_data:
        # In small pieces, because zlib copies the rest of its input every time.
        for offset in range(start, end, _INPUT):
            packed: bytes | memoryview = view[offset : min(offset + _INPUT, end)]
            while len(packed) and not unpacker.eof and unpacked < needed + _MARGIN:
                try:
                    unpacked += len(unpacker.decompress(packed, _PIECE))
                except zlib.error as error:
                    raise UnusableImage(f"damaged: {error}") from error
                packed = unpacker.unconsumed_tail
    if unpacked < needed:
        raise UnusableImage(
            f"damaged: rows are missing, its image data unpack to {unpacked:,} of {needed:,} bytes"
        )


def opacity(facts: PngFacts, image: Image.Image, data: bytes, rows: int) -> Image.Image | None:
    """The alpha channel that follows from a single transparent colour (section 11.3.1.1).

    Colours are compared at the bit depth of the file: of two 16-bit colours with equal high bytes,
    only one may be transparent.

    Args:
        facts: facts about the file.
        image: the decoded image, of mode 1, L, I;16 or RGB.
        data: the content of the file.
        rows: number of rows that are compared at a time, to save memory.

    Returns:
        An image of mode L, 0 if transparent and 255 elsewhere; None if no colour is.
    """
    if not facts.key:
        return None
    alpha = Image.new("L", image.size, 255)
    low_bytes = None
    if facts.colour == _RGB and facts.depth == 16:
        low_bytes = _low_bytes(data)
    key = np.array(facts.key)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        values = np.asarray(image.crop(box))  # [rows, width] or [rows, width, 3]
        if low_bytes is not None:
            high_match = (values == key >> 8).all(axis=-1)
            low_match = (np.asarray(low_bytes.crop(box)) == key & 255).all(axis=-1)
            transparent = high_match & low_match
        elif facts.colour == _RGB:
            transparent = (values == key).all(axis=-1)
        elif facts.depth == 1:
            transparent = values == bool(key[0])  # numpy sees mode 1 as bool
        elif facts.depth < 8:
            # Pillow scales 2 and 4 bits to 0..255, which keeps different values different.
            transparent = values == key[0] * 255 // ((1 << facts.depth) - 1)
        else:
            transparent = values == key[0]
        alpha.paste(Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8)), (0, top))
    return alpha


def check_significant_bits(facts: PngFacts, largest: int) -> None:
    """Refuse 16-bit grey whose values are in the low bits only.

    Samples with fewer significant bits must be scaled up to the full depth (section 12.4). Some
    writers store the values of a 12-bit camera unscaled and say 12 in sBIT; taken literally, such
    an image is nearly black.

    Args:
        facts: facts about the file.
        largest: the largest value in the image.
    """
    if facts.depth == 16 and facts.significant < 16 and 0 < largest < 1 << facts.significant:
        raise UnusableImage(
            f"says that {facts.significant} of 16 bits are significant, and no value is above"
            f" {largest}: values were not scaled to 16 bits; multiply them by"
            f" {1 << (16 - facts.significant)}, or save 8 bits"
        )


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """The chunks up to IEND (section 5.3), each with its checksum checked."""
    view = memoryview(data)
    offset = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if offset + 12 > len(data):
            raise UnusableImage("damaged: the file ends before its last chunk")
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 8 + length
        if end + 4 > len(data):
            raise UnusableImage("damaged: the file ends within a chunk")
        (checksum,) = struct.unpack_from(">I", data, end)
        if zlib.crc32(view[offset + 4 : end]) != checksum:
            raise UnusableImage(f"damaged: wrong checksum of chunk {kind.decode('latin-1')!r}")
        yield _Chunk(kind, offset + 8, view[offset + 8 : end])
        if kind == b"IEND":
            return
        offset = end + 4
    raise UnusableImage(f"more than {MAX_CHUNKS:,} chunks; save it again")


def _check_order(kinds: list[bytes]) -> None:
    """Check the order of the chunks that affect pixels (section 5.6)."""
    if kinds[0] != b"IHDR":
        raise UnusableImage("damaged: it does not begin with its header")
    if b"IDAT" not in kinds:
        raise UnusableImage("damaged: it has no image data")
    first = kinds.index(b"IDAT")
    count = kinds.count(b"IDAT")
    # A decoder stops at the first chunk without image data, and would miss the rest.
    if kinds[first : first + count] != [b"IDAT"] * count:
        raise UnusableImage("damaged: its image data are interrupted by another chunk")
    for kind in (b"IHDR", b"PLTE", b"tRNS", b"sBIT"):
        if kinds.count(kind) > 1 or kind in kinds[first:]:
            raise UnusableImage(f"damaged: its chunk {kind.decode()} is doubled or out of place")


def _check_metadata(chunks: list[_Chunk]) -> None:
    """Refuse packed texts and profiles that exceed the limits, without unpacking more."""
    total = 0
    for chunk in chunks:
        packed = _packed_part(chunk)
        if packed is None:
            continue
        unpacker = zlib.decompressobj()
        try:
            size = len(unpacker.decompress(packed, MAX_METADATA + 1))
        except zlib.error:
            continue  # damaged text is harmless, since pixels do not depend on it
        total += size
        if size > MAX_METADATA or total > MAX_ALL_METADATA:
            raise UnusableImage(
                f"its chunk {chunk.kind.decode()} unpacks to more than"
                f" {MAX_METADATA >> 20} MiB (all such chunks: {MAX_ALL_METADATA >> 20} MiB);"
                " save it without metadata"
            )


def _packed_part(chunk: _Chunk) -> bytes | None:
    """The packed part of a text or profile, if it has one (11.3.2.3, 11.3.3.3, 11.3.3.4)."""
    if chunk.kind not in (b"zTXt", b"iCCP", b"iTXt"):
        return None
    _, _, rest = bytes(chunk.data).partition(b"\0")  # the keyword ends with a zero
    if chunk.kind != b"iTXt":
        return rest[1:]  # after the compression method
    if rest[:1] != b"\1":  # the compression flag
        return None
    _, _, rest = rest[2:].partition(b"\0")  # the language tag
    _, _, rest = rest.partition(b"\0")  # the keyword, translated
    return rest


def _key(chunk: memoryview | None, colour: int, depth: int, palette: int) -> tuple[int, ...]:
    """The transparent colour in tRNS; below 16 bits, only its low bits count (11.3.1.1)."""
    if chunk is None:
        return ()
    if colour == _PALETTE:
        if len(chunk) > palette:
            raise UnusableImage("damaged: more transparent colours than colours")
        return ()
    if colour not in (_GREY, _RGB):
        return ()  # these have an alpha channel; decoders ignore the chunk
    channels = _CHANNELS[colour]
    if len(chunk) != 2 * channels:
        raise UnusableImage("damaged: its transparent colour has a wrong length")
    values = np.array(struct.unpack(f">{channels}H", chunk)) & ((1 << depth) - 1)
    return tuple(values.tolist())


def _significant(chunk: memoryview | None, colour: int, depth: int) -> int:
    """The significant bits of a grey value according to sBIT, or else all of them."""
    if chunk is None or colour not in (_GREY, _GREY_ALPHA) or not len(chunk):
        return depth
    if 0 < chunk[0] <= depth:
        return chunk[0]
    return depth  # an impossible value is ignored


def _low_bytes(data: bytes) -> Image.Image:
    """The low bytes of 16-bit RGB, which takes a second decoding.

    Samples are big-endian, and Pillow keeps the high byte of each. If it is made to believe that
    they are little-endian, it keeps the low byte instead.
    """
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    image.load()
    return image

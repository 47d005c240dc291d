"""Check GIF files: the first frame covers the image, and its codes yield all pixels.

If a frame is smaller than the canvas, or its codes end early, Pillow fills the other pixels with
colour 0. References are to the GIF89a specification.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tessella.data.unusable_image import UnusableImage

_EXTENSION = 0x21  # this and the next two: the first byte of a block
_IMAGE = 0x2C
_TRAILER = 0x3B
_MAX_CODE_BITS = 12  # of the longest code (appendix F)


def check_gif(data: bytes) -> None:
    """Check the first frame of a GIF file.

    Raises:
        UnusableImage: when it does not cover the canvas (which is legal, but decoders disagree on
            whether the rest is transparent or has the background colour), or when its compressed
            codes end before its last pixel.
    """
    canvas_width, canvas_height, flags = struct.unpack_from("<HHB", data, 6)  # section 18
    offset = _skip_blocks(data, 13 + _table_length(flags))
    left, top, width, height, flags = struct.unpack_from("<HHHHB", data, offset + 1)  # section 20
    # A frame larger than the canvas enlarges the canvas, so nothing is left empty.
    if left or top or width < canvas_width or height < canvas_height:
        raise UnusableImage(
            f"its first frame of {width}x{height} pixels at {left},{top} does not cover the canvas"
            f" of {canvas_width}x{canvas_height}, and decoders disagree on the rest; save it as PNG"
        )
    if not palette_length(data):
        raise UnusableImage("damaged: it has no colours, only their numbers")
    offset += 10 + _table_length(flags)
    decoded = _count_pixels(_sub_blocks(data, offset + 1), data[offset], width * height)
    if decoded < width * height:
        raise UnusableImage(
            f"damaged: its image data end after {decoded:,} of {width * height:,} pixels"
        )


def palette_length(data: bytes) -> int:
    """Number of colours in the table of the first frame, or in the global one (19, 21)."""
    offset = _skip_blocks(data, 13 + _table_length(data[10]))
    return (_table_length(data[offset + 9]) or _table_length(data[10])) // 3


def _table_length(flags: int) -> int:
    """Bytes of the colour table that the flags of a descriptor declare (sections 18, 20)."""
    if not flags & 0x80:
        return 0
    colours = 2 << (flags & 7)
    return 3 * colours


def _skip_blocks(data: bytes, offset: int) -> int:
    """Offset of the first image descriptor, after any extensions (sections 23 to 26)."""
    while offset < len(data):
        if data[offset] == _IMAGE:
            return offset
        if data[offset] == _TRAILER:
            break
        if data[offset] != _EXTENSION:
            raise UnusableImage("damaged: a block of an unknown kind")
        offset += 2
        while offset < len(data) and data[offset]:
            offset += 1 + data[offset]
        offset += 1
    raise UnusableImage("damaged: it has no image")


def _sub_blocks(data: bytes, offset: int) -> Iterator[bytes]:
    """Sub-blocks of image data: a length of 1 to 255 and as many bytes; 0 ends them (15, 16)."""
    while offset < len(data) and data[offset]:
        yield data[offset + 1 : offset + 1 + data[offset]]
        offset += 1 + data[offset]


def _count_pixels(blocks: Iterator[bytes], size: int, needed: int) -> int:
    """Number of pixels that LZW codes stand for, without decoding them (appendix F).

    Args:
        blocks: the packed codes, least significant bit first.
        size: bits of a colour index.
        needed: stop counting at this number of pixels.

    Raises:
        UnusableImage: for a code that is not in the table.
    """
    if not 2 <= size <= 8:
        raise UnusableImage("damaged: an impossible length of codes")
    clear = 1 << size
    end = clear + 1
    # The table of strings, of which only the lengths matter. Codes up to ``end`` exist from the
    # start. Each further code adds a string: that of the previous code plus one pixel.
    lengths = [1] * (end + 1)
    width = size + 1
    previous = 0  # length of the string before, 0 after a clear code
    pixels = 0
    buffer = 0
    bits = 0
    for block in blocks:
        buffer |= int.from_bytes(block, "little") << bits
        bits += 8 * len(block)
        while bits >= width:
            code = buffer & ((1 << width) - 1)
            buffer >>= width
            bits -= width
            if code == clear:
                del lengths[end + 1 :]
                width = size + 1
                previous = 0
                continue
            if code == end:
                return pixels
            if previous and len(lengths) < 1 << _MAX_CODE_BITS:
                lengths.append(previous + 1)
            if code >= len(lengths):
                raise UnusableImage("damaged: its image data have an impossible code")
            previous = lengths[code]
            pixels += previous
            if pixels >= needed:
                return pixels
            if len(lengths) == 1 << width and width < _MAX_CODE_BITS:
                width += 1
    return pixels

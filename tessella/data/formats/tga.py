"""Check TGA files: the pixels must end before whatever follows them.

If there are too few pixels, Pillow reads the footer, or anything else that follows, as pixels.
References are to Truevision's "TGA File Format Specification", version 2.0.
"""

from __future__ import annotations

import struct

from PIL import ImageFile

from tessella.data.unusable_image import UnusableImage

_FOOTER = b"TRUEVISION-XFILE.\0"  # the last 18 of the 26 bytes of the footer
_FOOTER_LENGTH = 26
_RUN = 0x80  # the bit that marks a packet of equal pixels


def check_tga(image: ImageFile.ImageFile, data: bytes) -> None:
    """Check that a TGA file holds all its pixels.

    Raises:
        UnusableImage: when they run into the footer, the areas that it names, or the end.
    """
    tile = image.tile[0]
    bits = data[16]  # per pixel (field 5.5)
    pixel = (bits + 7) // 8
    row = image.width * pixel
    if bits < 8:
        row = (
            image.width * bits + 7
        ) // 8  # 1 bit: eight pixels per byte, rows padded to whole bytes
    length = row * image.height
    end = _end_of_pixels(data, tile.offset)
    if tile.codec_name == "tga_rle":
        whole = _runs_reach(data, tile.offset, end, pixel, image.width * image.height)
    else:
        whole = tile.offset + length <= end
    if not whole:
        raise UnusableImage("damaged: its pixels end before its header says")


def palette_length(data: bytes) -> int:
    """Largest index in the colour map plus one (fields 4.1 and 4.2); 0 without a map."""
    first, count = struct.unpack_from("<HH", data, 3)
    return int(first + count) if data[1] else 0


def _end_of_pixels(data: bytes, start: int) -> int:
    """Offset at which the pixels must end: the footer, or an area that it refers to."""
    if not data.endswith(_FOOTER):
        return len(data)
    end = len(data) - _FOOTER_LENGTH
    # Offsets of the extension area and the developer area, 0 if there is none.
    for area in struct.unpack_from("<II", data, end):
        if start < area < end:
            end = area
    return end


def _runs_reach(data: bytes, offset: int, end: int, pixel: int, needed: int) -> bool:
    """Whether run-length packets yield ``needed`` pixels of ``pixel`` bytes before ``end``."""
    made = 0
    while made < needed:
        if offset >= end:
            return False
        count = (data[offset] & 0x7F) + 1
        # A run stores its colour once; any other packet stores each pixel.
        stored = 1 if data[offset] & _RUN else count
        offset += 1 + stored * pixel
        made += count
    return offset <= end

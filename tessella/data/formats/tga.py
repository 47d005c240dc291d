"""TGA files, which begin with no mark: that their pixels end before what follows them.

Pillow reads the footer, or anything else behind the pixels, as pixels where these are too few.
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
    pixel = (data[16] + 7) // 8  # field 5.5, bits a pixel, in whole bytes but for 1 bit
    if data[16] < 8:
        length = (image.width * data[16] + 7) // 8 * image.height
    else:
        length = image.width * image.height * pixel
    end = _end_of_pixels(data, tile.offset)
    if tile.codec_name == "tga_rle":
        whole = _runs_reach(data, tile.offset, end, pixel, image.width * image.height)
    else:
        whole = tile.offset + length <= end
    if not whole:
        raise UnusableImage("damaged: its pixels end before its header says")


def palette_length(data: bytes) -> int:
    """Numbers of colours that the colour map reaches to (fields 4.1 and 4.2); 0 without a map."""
    first, count = struct.unpack_from("<HH", data, 3)
    return int(first + count) if data[1] else 0


def _end_of_pixels(data: bytes, start: int) -> int:
    """Where the pixels end at the latest: at the footer or at an area that it names."""
    if not data.endswith(_FOOTER):
        return len(data)
    footer = len(data) - _FOOTER_LENGTH
    areas = struct.unpack_from("<II", data, footer)  # extension and developer area, 0 where absent
    return min([footer, *(area for area in areas if start < area < footer)])


def _runs_reach(data: bytes, place: int, end: int, pixel: int, needed: int) -> bool:
    """Whether run-length packets make ``needed`` pixels of ``pixel`` bytes before ``end``."""
    made = 0
    while made < needed:
        if place >= end:
            return False
        count = (data[place] & 0x7F) + 1
        place += 1 + (pixel if data[place] & _RUN else pixel * count)
        made += count
    return place <= end

"""Check BMP files: pixels are where the header says, and run-length codes yield all of them.

If there are too few pixels, Pillow reads what follows them (a colour profile, for example) as
pixels. It fills pixels that run-length codes leave out with colour 0. References are to Microsoft's
"Bitmap Storage" and "Bitmap Compression".
"""

from __future__ import annotations

import struct

from PIL import ImageFile

from tessella.data.unusable_image import UnusableImage

_FILE_HEADER = 14
_V5_HEADER = 124
_LINE_END = 0  # this and the next two: the byte after a zero in run-length codes
_BITMAP_END = 1
_DELTA = 2
_PIXEL_BITS = {
    "1": 1,
    "P;1": 1,
    "P;2": 2,
    "P;4": 4,
    "L": 8,
    "P": 8,
    "BGR;15": 16,
    "BGR;16": 16,
    "BGR": 24,
    "BGRX": 32,
    "XBGR": 32,
    "BGXR": 32,
    "ABGR": 32,
    "RGBA": 32,
    "BGRA": 32,
    "BGAR": 32,
}
"""Bits per pixel of the raw modes in which Pillow reads BMP."""


def check_bmp(image: ImageFile.ImageFile, data: bytes) -> None:
    """Check a BMP file against its headers.

    Raises:
        UnusableImage: when it holds fewer pixels than its header says.
    """
    header, bits = _header(data)
    tile = image.tile[0]
    if tile.offset < _FILE_HEADER + header:
        raise UnusableImage("damaged: its pixels begin within its header")
    assert isinstance(tile.args, tuple)
    if tile.codec_name == "bmp_rle":
        # Pillow pads literals to even offsets in the file, the format to even lengths.
        if tile.offset % 2 or not _all_coded(data, tile.offset, image.size, four_bits=bits == 4):
            raise UnusableImage(
                "its run-length codes leave pixels out, and BMP does not say what these are;"
                " save it without compression"
            )
        return
    # Pillow assumes one bit per pixel if the palette has two colours, whatever the header says.
    if _PIXEL_BITS.get(str(tile.args[0])) != bits:
        raise UnusableImage("its palette has fewer colours than its bits; save it as PNG")
    row = (image.width * bits + 31) // 32 * 4  # rows are padded to four bytes
    if tile.offset + row * image.height > _end_of_pixels(data, header, tile.offset):
        raise UnusableImage("damaged: it is shorter than its pixels")


def palette_length(data: bytes) -> int:
    """Number of colours in the palette; 0 if the pixels are colours themselves."""
    header, bits = _header(data)
    if bits > 8:
        return 0
    used = 0
    if header >= 40:
        (used,) = struct.unpack_from("<I", data, 46)  # biClrUsed
    return used or 1 << bits  # 0 means as many as the bits can index


def _header(data: bytes) -> tuple[int, int]:
    """Length of the information header in bytes, and bits per pixel."""
    (header,) = struct.unpack_from("<I", data, _FILE_HEADER)
    # The header of OS/2 1.x has sizes of 16 bits, all later ones of 32.
    offset = 24 if header == 12 else 28
    (bits,) = struct.unpack_from("<H", data, offset)
    return header, bits


def _end_of_pixels(data: bytes, header: int, start: int) -> int:
    """Offset at which the pixels must end: a colour profile after them, or the end of the file."""
    if header < _V5_HEADER:
        return len(data)
    offset, size = struct.unpack_from("<II", data, _FILE_HEADER + 112)  # bV5ProfileData, -Size
    profile = _FILE_HEADER + int(offset)
    if size and start < profile < len(data):
        return profile
    return len(data)


def _all_coded(data: bytes, offset: int, size: tuple[int, int], *, four_bits: bool) -> bool:
    """Whether run-length codes (RLE8, RLE4) define the colour of every pixel.

    A line may end early, and a delta may jump; both leave pixels undefined.
    """
    width, height = size
    column = 0
    row = 0
    while offset + 1 < len(data):
        count, code = data[offset], data[offset + 1]
        offset += 2
        if count:
            column += count  # ``count`` pixels of the colour ``code``
        elif code in (_LINE_END, _BITMAP_END):
            if column < width:
                # After the last line, an empty one may have been started.
                return column == 0 and row == height
            column = 0
            row += 1
            if code == _BITMAP_END:
                return row == height
        elif code == _DELTA:
            return False
        else:
            column += code  # ``code`` pixels follow, padded to two bytes
            length = code
            if four_bits:
                length = (code + 1) // 2
            offset += length + length % 2
            if offset > len(data) or column > width:
                return False  # Pillow would continue in the next line
        if row == height - 1 and column >= width:
            return True  # the end markers are often missing
    return False

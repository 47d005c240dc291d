"""Check WebP files: their length, and that the first frame of an animation covers the image.

libwebp itself refuses image data that end early. References are to the "WebP Container
Specification".
"""

from __future__ import annotations

import struct

from tessella.data.unusable_image import UnusableImage


def check_webp(data: bytes) -> None:
    """Check the container of a WebP file.

    Raises:
        UnusableImage: when the file is not as long as it says, or when the first frame of an
            animation is smaller than its canvas.
    """
    # The length of RIFF does not count its first 8 bytes; some writers forget the padding byte.
    (length,) = struct.unpack_from("<I", data, 4)
    if abs(length + 8 - len(data)) > 1:
        raise UnusableImage("damaged: its length is not what its header says")
    canvas: tuple[int, int] | None = None
    offset = 12
    while offset + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, offset)
        if kind == b"VP8X":
            canvas = (1 + _three_bytes(data, offset + 12), 1 + _three_bytes(data, offset + 15))
        if kind == b"ANMF":
            # Frame X and Y (halved), width and height (less one), 3 bytes each.
            left = _three_bytes(data, offset + 8)
            top = _three_bytes(data, offset + 11)
            width = 1 + _three_bytes(data, offset + 14)
            height = 1 + _three_bytes(data, offset + 17)
            if canvas and (left or top or (width, height) != canvas):
                raise UnusableImage(
                    f"its first frame covers {width}x{height} pixels of"
                    f" {canvas[0]}x{canvas[1]}; save it as PNG"
                )
            return  # later frames are not decoded
        offset += 8 + size + size % 2


def _three_bytes(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 3], "little")

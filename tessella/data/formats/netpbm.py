"""Check PBM, PGM and PPM files: magic number and largest value; keep 16-bit colour exact.

References are to the manual pages pgm(5) and ppm(5) of Netpbm. Pillow itself refuses files with too
few pixels, plain or binary.
"""

from __future__ import annotations

import numpy as np
from PIL import ImageFile

from tessella.data.unusable_image import UnusableImage

_MAGIC = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")
_PIECE = 1 << 22  # number of values that are checked at a time


def check_netpbm(image: ImageFile.ImageFile, data: bytes) -> None:
    """Check that no value is above the largest one that the header allows.

    Pillow clips such values in binary files; in plain ones it refuses them.

    Raises:
        UnusableImage: when one is, or for variants of the format that only Pillow knows.
    """
    separator = data[2:3]
    if data[:2] not in _MAGIC or not (separator.isspace() or separator == b"#"):
        raise UnusableImage("a variant of PPM that only Pillow knows; save it as PNG")
    tile = image.tile[0]
    if tile.codec_name != "ppm":
        return  # no value can exceed 255 or 65535, and Pillow checks plain files
    assert isinstance(tile.args, tuple)
    maximum = int(tile.args[1])
    # One byte per value, or two, high byte first.
    kind = np.dtype("u1" if maximum < 256 else ">u2")
    channels = 3 if data[:2] == b"P6" else 1
    # Pillow itself refuses a file with missing values later.
    count = min(image.width * image.height * channels, (len(data) - tile.offset) // kind.itemsize)
    values = np.frombuffer(data, kind, count, tile.offset)
    for start in range(0, count, _PIECE):
        largest = int(values[start : start + _PIECE].max())
        if largest > maximum:
            raise UnusableImage(
                f"damaged: it holds {largest}, and {maximum} is the largest value its header allows"
            )


def keep_high_bytes(image: ImageFile.ImageFile) -> None:
    """Make Pillow decode 16-bit colour to its high bytes, as in all other formats.

    By default it would round each value, slowly, in Python.
    """
    tile = image.tile[0]
    if tile.codec_name == "ppm" and tile.args == ("RGB", 65535):
        image.tile = [tile._replace(codec_name="raw", args="RGB;16B")]

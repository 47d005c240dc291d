"""Convert decoded pixels of any mode to upright 8-bit images with the wanted channels.

Steps that depend on values at the bit depth of the file (a transparent value, grey in which 0 is
white) come before the reduction to 8 bits.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from PIL import Image

BAND = 1 << 18
"""Number of pixels that are converted at a time."""

_GREY16 = ("I;16", "I;16L", "I;16B", "I;16N")
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_FROM_THE_END = (3, 4, 6, 7)  # EXIF orientations whose first row becomes the last row or column
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that makes an image upright, by EXIF orientation."""
_READY = {0: ("L", "RGB"), 1: ("L",), 3: ("RGB",), 4: ("RGBA",)}
"""Modes that need no conversion, by the number of channels asked for."""


@dataclass(frozen=True)
class Conversion:
    """How to convert the pixels of one image.

    Args:
        channels: 1 (grey), 3 (RGB) or 4 (RGBA); 0 keeps grey and converts everything else to RGB.
        orientation: EXIF orientation, 1 to 8; any other number means upright.
        grey_bits: bits per grey value if there are more than 8, else 0.
        inverted: whether 0 is white, for grey of more than 8 bits; Pillow inverts the rest itself.
        alpha: an alpha channel (mode L, 255 is opaque) that Pillow does not know about, or None.
    """

    channels: int
    orientation: int
    grey_bits: int = 0
    inverted: bool = False
    alpha: Image.Image | None = None


def bytes_per_pixel(mode: str) -> int:
    """Bytes per pixel that Pillow needs for an image mode."""
    if mode in ("1", "L", "P"):
        return 1
    return 2 if mode in _GREY16 else 4


def is_wide_grey(image: Image.Image) -> bool:
    """Whether an image is grey with more than 8 bits; its mode is "I" for PGM files."""
    return image.mode in (*_GREY16, "I")


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """An 8-bit image as grey (1), RGB (3) or RGBA (4); 0 keeps grey, and makes others RGB.

    Grey is Rec. 601 luma as Pillow computes it; transparency is composited onto white if the result
    has no alpha channel.
    """
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        # RGBA has an alpha channel, also for an image with a transparent palette entry.
        alpha = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", alpha.size, "white"), alpha)
    grey = channels == 1 or (channels == 0 and image.mode in ("1", "L"))
    if image.mode in ("1", "L"):
        return image.convert("L" if grey else "RGB")
    # Via RGB, because Pillow converts only some modes to grey directly.
    return image.convert("RGB").convert("L" if grey else "RGB")


def convert(image: Image.Image, conversion: Conversion, memory: int) -> Image.Image:
    """Reduce a decoded image to 8 bits and the channels asked for, and turn it upright.

    The image may be closed; use only the result.

    Args:
        image: decoded, of any mode.
        conversion: what to do.
        memory: most bytes that the image and its copy may take together; if they would take more,
            the copy is kept in a temporary file until the image is freed.
    """
    transparent = image.has_transparency_data and conversion.channels != 4
    if conversion.alpha is not None:
        transparent = True
    is_upright = conversion.orientation not in _TURNS
    if image.mode in _READY[conversion.channels] and is_upright and not transparent:
        return image
    return _rebuilt(image, conversion, memory)


def _rebuilt(image: Image.Image, conversion: Conversion, memory: int) -> Image.Image:
    """Convert an image band by band, to avoid further complete copies, and close it."""
    width, height = image.size
    rows = max(1, BAND // width)
    # Converting a single pixel shows the mode of the result.
    mode = _convert_band(image, conversion, (0, 0, 1, 1)).mode
    edges = []
    for top in range(0, height, rows):
        edges.append((top, min(top + rows, height)))
    bands = _convert_bands(image, conversion, edges)
    with contextlib.ExitStack() as stack:
        if width * height * (bytes_per_pixel(image.mode) + bytes_per_pixel(mode)) > memory:
            waiting = stack.enter_context(tempfile.TemporaryFile())
            for band in bands:
                waiting.write(band.tobytes())
            image.close()  # makes room for the result
            waiting.seek(0)
            bands = _from_file(waiting, mode, width, edges)
        result = _assemble(bands, edges, mode, image.size, conversion.orientation)
    image.close()
    return result


def _convert_bands(
    image: Image.Image, conversion: Conversion, edges: Sequence[tuple[int, int]]
) -> Iterator[Image.Image]:
    """The bands between ``edges``, converted one at a time."""
    for top, bottom in edges:
        yield _convert_band(image, conversion, (0, top, image.width, bottom))


def _convert_band(
    image: Image.Image, conversion: Conversion, box: tuple[int, int, int, int]
) -> Image.Image:
    """Part of an image in 8 bits and the wanted channels, not turned upright yet."""
    band = image.crop(box)
    if conversion.grey_bits:
        band = _reduce_grey(band, conversion.grey_bits, conversion.inverted)
    if conversion.alpha is not None:
        if band.mode == "1":
            band = band.convert("L")  # mode 1 cannot have an alpha channel
        band.putalpha(conversion.alpha.crop(box))
    return with_channels(band, conversion.channels)


def _reduce_grey(image: Image.Image, bits: int, inverted: bool) -> Image.Image:
    """The 8 highest bits of grey values of 9 to 16 bits."""
    values = np.asarray(image)  # [rows, width]
    if inverted:
        # At the bit depth of the file, where the largest value is known.
        values = (1 << bits) - 1 - values
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def _assemble(
    bands: Iterator[Image.Image],
    edges: Sequence[tuple[int, int]],
    mode: str,
    size: tuple[int, int],
    orientation: int,
) -> Image.Image:
    """Paste bands of rows where they belong in the upright image.

    Args:
        bands: the converted bands, from the first row of the file to the last.
        edges: (first row, row after the last) of each band.
        mode: mode of the bands.
        size: (width, height) of the image as stored in the file.
        orientation: EXIF orientation.
    """
    width, height = size
    sideways = orientation in _SIDEWAYS
    result = Image.new(mode, (height, width) if sideways else (width, height))
    for (top, bottom), piece in zip(edges, bands, strict=True):
        # Rows of the file become rows or columns of the result, from its start or from its end.
        start = top
        if orientation in _FROM_THE_END:
            start = height - bottom
        turned = piece
        if orientation in _TURNS:
            turned = piece.transpose(_TURNS[orientation])
        result.paste(turned, (start, 0) if sideways else (0, start))
    return result


def _from_file(
    file: IO[bytes], mode: str, width: int, edges: Sequence[tuple[int, int]]
) -> Iterator[Image.Image]:
    """The bands that were written to a file, one after another."""
    for top, bottom in edges:
        rows = bottom - top
        content = file.read(width * rows * Image.getmodebands(mode))
        yield Image.frombytes(mode, (width, rows), content)

"""One image file to one 8-bit Pillow image, with everything checked that can be checked before its pixels are read."""

from __future__ import annotations

import io
import warnings
from typing import IO, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tessella.data.files import one_line

MAX_BYTES = 1 << 30
"""Largest image file that is read."""
MAX_PIXELS = 100_000_000
"""Largest image, in pixels, that is decoded."""

_GREY16 = ("I;16", "I;16L", "I;16B", "I;16N")
_BITS_PER_SAMPLE = 258  # TIFF tag


class UnusableImage(Exception):
    """A file that is not an image we can use; its text is the reason."""


def decode(file: io.BufferedIOBase, channels: int) -> Image.Image:
    """Read an image of any kind Pillow knows by its content, upright, as 8 bits a channel.

    Palettes are expanded, CMYK and other colour spaces become RGB, animations give their first frame, grey values of
    16 bits are shifted (``v >> 8``), transparency is laid on white unless four channels are asked for, and the EXIF
    orientation is applied. Colour profiles are not.

    Args:
        file: the file, open for reading.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA); 0 keeps grey images grey and makes the others RGB.

    Raises:
        UnusableImage: with the reason, when the file is too large, is no image, has pixels of a kind without a clear
            8-bit meaning (floating point, 32-bit integers), or is damaged.
    """
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UnusableImage(f"the file is larger than {MAX_BYTES >> 20} MiB")
    image = _open(io.BytesIO(data))
    _check_header(image)
    try:
        return with_channels(_upright8(image), channels)
    except Exception as error:  # decoders meet damaged bytes with errors of every class
        raise UnusableImage(f"damaged: {one_line(error)}") from error


def is_image(file: io.BufferedIOBase) -> bool:
    """Whether Pillow recognizes the content of a file as an image."""
    try:
        _open(file)
    except UnusableImage:
        return False
    return True


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """An 8-bit image as grey (1), RGB (3) or RGBA (4); 0 keeps grey and makes RGB of the rest.

    Grey is Rec. 601 luma as Pillow computes it; transparency is laid on white where the result has no alpha.
    """
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        alpha = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", alpha.size, "white"), alpha)
    grey = channels == 1 or (channels == 0 and image.mode in ("1", "L"))
    if image.mode in ("1", "L"):
        return image.convert("L" if grey else "RGB")
    # By way of RGB, because Pillow turns only some modes into grey directly.
    return image.convert("RGB").convert("L" if grey else "RGB")


def _open(file: io.BufferedIOBase) -> Image.Image:
    """Read the header of an image file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is checked instead
            return Image.open(cast(IO[bytes], file))
    except UnidentifiedImageError as error:
        raise UnusableImage("not an image") from error
    except Exception as error:  # plugins meet damaged headers with errors of every class
        raise UnusableImage(f"damaged: {one_line(error)}") from error


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnusableImage(f"{width}x{height} pixels are more than {MAX_PIXELS:,}")
    if image.format == "EPS":
        raise UnusableImage("a PostScript program, not pixels")
    if image.mode == "F":
        raise UnusableImage("floating-point pixels; scale them to 8 bits first")
    # Pillow spells grey of 16 bits "I" in PNM files; elsewhere "I" is 32 bits, or 16 with a sign.
    if image.mode == "I" and image.format != "PPM":
        raise UnusableImage("32-bit or signed integer pixels; scale them to 8 bits first")


def _upright8(image: Image.Image) -> Image.Image:
    """Decode, turn upright, and reduce grey of 9 to 16 bits to 8 (Pillow itself takes the high byte of colours)."""
    bits, transparent = _grey_bits(image), image.info.get("transparency")
    image = ImageOps.exif_transpose(image)
    if not bits:
        return image
    values = np.asarray(image)
    grey = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    if isinstance(transparent, int):
        grey = Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))
    return grey


def _grey_bits(image: Image.Image) -> int:
    """Bits of a grey value where there are more than 8 (16, or 12 in some TIFF files); 0 for all other images."""
    if image.mode not in (*_GREY16, "I"):
        return 0
    tags = getattr(image, "tag_v2", None)
    return int(tags.get(_BITS_PER_SAMPLE, (16,))[0]) if tags else 16

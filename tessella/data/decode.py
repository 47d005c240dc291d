"""One image file to one 8-bit Pillow image, with everything checked that can be checked before its
pixels are read.

A file whose damage can be told is refused, not filled in. Besides all that Pillow reports, the
checks of :mod:`tessella.data.formats` refuse every file that holds fewer pixels than its header
says, PNG chunks and packed TIFF strips with wrong checksums, JPEG data of which libjpeg says that
it is missing or corrupt (Pillow hides that; it takes the package ``simplejpeg``, without which such
files decode to partly invented pixels), and WebP files of another length than they say. Formats in
which missing data go unnoticed are not read: JPEG 2000, and TIFF packed as a fax.

What cannot be told is a change that makes another valid file: of pixels or codes in formats without
checksums (BMP, PPM, GIF, TGA, QOI, WebP, AVIF, TIFF that is not packed by deflate), and of
coefficients in a JPEG whose codes stay valid.

Memory: an image is decoded if the file and all that decoding holds at once stay within
:data:`MAX_MEMORY`; with the interpreter and the libraries that is under 300 MB. Pillow takes 4
bytes for a pixel in colour, so 50-megapixel photographs of cameras fit, also lying on their side:
an image for which there is no room twice is turned upright by way of a temporary file. The
estimates are worst cases, measured with Pillow 13, and trust the size in the header. An array of
the whole image, where no size is asked for, comes on top with a byte for each value.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, cast

import numpy as np
import PIL
from PIL import Image, ImageFile, UnidentifiedImageError

from tessella.data.formats import (
    FormatFacts,
    check_before_opening,
    check_data,
    check_decoded,
    check_opened,
    why_not_opened,
)
from tessella.data.formats.jpeg import simplejpeg_version
from tessella.data.formats.png import PngFacts, check_significant_bits, opacity
from tessella.data.formats.tiff import TiffDirectory, piece_bytes
from tessella.data.paths import one_line, passing
from tessella.data.pixel_conversion import BAND, Conversion, convert, is_wide_grey, stride
from tessella.data.unusable_image import UnusableImage
from tessella.errors import DataError

__all__ = [
    "KINDS",
    "MAX_BYTES",
    "MAX_MEMORY",
    "MAX_PIXELS",
    "Opened",
    "UnusableImage",
    "begin",
    "decode",
    "finish",
    "is_image",
    "known_kinds",
    "libraries",
    "quiet",
]

MAX_BYTES = 128 << 20
"""Largest image file that is read."""
MAX_PIXELS = 100_000_000
"""Largest image, in pixels, that is decoded."""
MAX_MEMORY = 250 << 20
"""Bytes that a file and its image may take while it is decoded."""

KINDS = (
    "PNG",
    "JPEG",
    "MPO",
    "WEBP",
    "GIF",
    "TIFF",
    "BMP",
    "PPM",
    "JPEG2000",
    "AVIF",
    "QOI",
    "TGA",
    "EPS",
)
"""Formats that are opened, as Pillow names them. Containers of other files (icons, for one) are not
among them, because what lies inside has another size than they say. EPS and JPEG 2000 are
recognized to be refused with their reasons."""
_DECODER = {"PNG": 0, "JPEG": 0, "MPO": 0, "BMP": 0, "PPM": 0, "TGA": 0, "GIF": 4, "TIFF": 0}
"""Bytes a pixel that a decoder holds besides the image; 16 for the others, which hold several whole
copies."""
LARGEST_OF_16_BITS = "tessella:largest"
"""Key in the ``info`` of a decoded image whose file has 16 bits a value: the largest value. Of
colours it is known to a multiple of 256."""
_ORIENTATION = 274  # the EXIF tag
_HEADER_ERRORS = (TypeError, ValueError, LookupError, ArithmeticError, struct.error, zlib.error)
"""Errors that headers which say the impossible end in."""


def decode(file: io.BufferedIOBase, channels: int) -> Image.Image:
    """Read an image of a known kind (by its content, not its name), upright, as 8 bits a channel.

    Palettes are expanded, CMYK and other colour spaces become RGB, animations give their first
    frame, values of 16 bits are shifted (``v >> 8``), transparency is laid on white unless four
    channels are asked for, and the EXIF orientation is applied. Colour profiles are not.

    Args:
        file: the file, open for reading.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA); 0 keeps grey images grey and makes the others RGB.

    Raises:
        UnusableImage: with the reason, when the file is too large, is no image, has pixels of a
            kind without a clear 8-bit meaning (floating point, 32-bit integers), or is damaged.
        OSError, MemoryError: for a reason outside of the file
            (:func:`tessella.data.paths.passing`).
        DataError: when Pillow is set to load truncated files.
    """
    return finish(begin(file), channels)


@dataclass(frozen=True)
class Opened:
    """An image whose header passed all checks and whose pixels are not decoded yet.

    Args:
        image: the image.
        data: its file.
        facts: what its format says that Pillow does not pass on.
        memory: bytes that the file, decoding it, and one copy of its pixels may take together.
    """

    image: ImageFile.ImageFile
    data: bytes
    facts: FormatFacts
    memory: int


def begin(file: io.BufferedIOBase) -> Opened:
    """The first half of :func:`decode`: read the file and check all that its header says."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so that Pillow makes up what damaged files"
            " lack; set it to False, and damaged files are skipped and named"
        )
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UnusableImage(f"the file is larger than {MAX_BYTES >> 20} MiB")
    if not data:
        raise UnusableImage("the file is empty")
    try:
        png = check_before_opening(data)
        image = _open(io.BytesIO(data), data)
        _check_header(image)
        facts = check_opened(image, data, png)
        need = _memory(image, len(data), facts)
        _check_memory(image, need)
    except _HEADER_ERRORS as error:
        raise UnusableImage(f"damaged: {one_line(error)}") from error
    return Opened(image, data, facts, need + 4 * image.width * image.height)


def finish(opened: Opened, channels: int) -> Image.Image:
    """The second half of :func:`decode`: its pixels."""
    try:
        return _pixels(opened, channels)
    except UnusableImage:
        raise
    except Exception as error:  # decoders meet damaged bytes with errors of every class
        if passing(error):
            raise
        raise UnusableImage(f"damaged: {one_line(error)}") from error


def is_image(file: io.BufferedIOBase) -> bool:
    """Whether the content of a file begins like an image.

    TGA does not count, for it has no mark to be known by.
    """
    try:
        return _open(file, b"").format != "TGA"
    except UnusableImage:
        return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow's warnings back (bombs, odd EXIF data): the checks here take their place.

    Filters of warnings belong to the whole process: enter before threads start, leave after they
    end.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def libraries() -> list[str]:
    """The libraries that pixels depend on besides the files, with their versions."""
    return [f"Pillow {PIL.__version__}", f"simplejpeg {simplejpeg_version()}"]


@functools.cache
def known_kinds() -> tuple[str, ...]:
    """Those of :data:`KINDS` that this build of Pillow can open."""
    Image.init()
    return tuple(kind for kind in KINDS if kind in Image.OPEN)


def _open(file: io.BufferedIOBase, data: bytes) -> ImageFile.ImageFile:
    """Read the header of an image file; ``data`` is its content where it is at hand."""
    try:
        image = Image.open(cast(IO[bytes], file), formats=known_kinds())
    except UnidentifiedImageError as error:
        raise UnusableImage(why_not_opened(data)) from error
    except Image.DecompressionBombError as error:
        raise UnusableImage(f"its header asks for more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # plugins meet damaged headers with errors of every class
        if passing(error):
            raise
        raise UnusableImage(f"damaged: {one_line(error)}") from error
    return image


def _check_header(image: Image.Image) -> None:
    """Refuse images that are too large, or whose pixels have no agreed 8-bit meaning."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnusableImage(f"{width}x{height} pixels are more than {MAX_PIXELS:,}")
    if image.mode == "LAB":
        raise UnusableImage("L*a*b* colours, which need a colour profile; save it as RGB first")
    if image.mode == "F":
        raise UnusableImage("floating-point pixels; scale them to 8 bits first")
    # Pillow spells grey of 16 bits "I" in PNM files; elsewhere "I" is 32 bits, or 16 with a sign.
    if image.mode == "I" and image.format != "PPM":
        raise UnusableImage("32-bit or signed integer pixels; scale them to 8 bits first")


def _check_memory(image: Image.Image, need: int) -> None:
    """Refuse an image whose decoding would take more than :data:`MAX_MEMORY`."""
    if need > MAX_MEMORY:
        raise UnusableImage(
            f"{image.width}x{image.height} pixels of this {image.format} take up to"
            f" {need / 1e6:,.0f} MB to decode, more than {MAX_MEMORY / 1e6:,.0f};"
            " scale it down, or save it as a JPEG that is not progressive"
        )


def _memory(image: ImageFile.ImageFile, size: int, facts: FormatFacts) -> int:
    """Most bytes that decoding an image takes, its file of ``size`` bytes included."""
    pixels = image.width * image.height
    held = _DECODER.get(image.format or "", 16)
    if image.info.get("progressive") and image.format in ("JPEG", "MPO"):
        # All coefficients, two bytes each, without counting on smaller colour planes.
        held += 2 * len(image.getbands())
    if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
        held += 8
    if isinstance(facts, PngFacts) and facts.key:
        # The alpha channel, and of 16-bit colour the low bytes as a second image.
        held += 1 + (4 if facts.depth == 16 and len(facts.key) == 3 else 0)
    total = size + pixels * (stride(image.mode) + held)
    # libtiff decodes a strip or tile at a time: up to the whole image, of a tile even more.
    if isinstance(facts, TiffDirectory) and image.tile and image.tile[0].codec_name == "libtiff":
        total += piece_bytes(facts)
    return total


def _pixels(opened: Opened, channels: int) -> Image.Image:
    """Decode, turn upright, reduce to 8 bits, convert."""
    image = opened.image
    data = opened.data
    facts = opened.facts
    # Before anything is allocated: a header may announce millions of pixels that are not there.
    check_data(image, data, facts)
    stream = image.fp
    # Values of PGM and PPM files are scaled by the largest that the header allows.
    scaled = image.format == "PPM" and image.tile[0].codec_name != "raw"
    image.load()
    check_decoded(image, data, facts, stream.tell() if stream else 0)
    orientation = int(image.getexif().get(_ORIENTATION, 1))
    alpha = None
    largest = None if scaled else _largest_of_16_bits(image, facts)
    if isinstance(facts, PngFacts):
        if largest is not None and is_wide_grey(image):
            check_significant_bits(facts, largest)
        if facts.key:
            # Pillow would compare the key with values that it has already scaled.
            image.info.pop("transparency", None)
            alpha = opacity(facts, image, data, rows=max(1, BAND // image.width))
    grey_bits = 0
    inverted = False
    if is_wide_grey(image):
        grey_bits = 16
        if isinstance(facts, TiffDirectory):
            grey_bits = facts.bits[0]
            inverted = facts.white_is_zero
    how = Conversion(channels, orientation, grey_bits, inverted, alpha)
    result = convert(image, how, MAX_MEMORY // 2)
    if largest is not None:
        result.info[LARGEST_OF_16_BITS] = largest
    return result


def _largest_of_16_bits(image: Image.Image, facts: FormatFacts) -> int | None:
    """The largest value of a decoded image whose file has 16 bits a value; None for others."""
    depth = 16 if is_wide_grey(image) else 8
    if isinstance(facts, PngFacts):
        depth = facts.depth
    elif isinstance(facts, TiffDirectory):
        depth = max(facts.bits)
        if facts.white_is_zero:
            return None  # in which few bits are bright
    if depth != 16:
        return None
    if not is_wide_grey(image):
        # Pillow keeps the high bytes of colours; of their low bytes the worst is assumed.
        colours = [band not in ("A", "a") for band in image.getbands()]
        high_bytes = np.array(image.getextrema()).reshape(-1, 2)[colours, 1]  # [bands]
        return int(high_bytes.max()) << 8 | 255
    largest = 0
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        largest = max(largest, int(np.asarray(band).max()))
    return largest

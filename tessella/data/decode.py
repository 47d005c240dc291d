"""Decode one image file to an 8-bit Pillow image, or say why it is damaged or unusable.

A file that is recognizably damaged is refused, not filled in. In addition to what Pillow reports,
the checks of :mod:`tessella.data.formats` refuse every file that holds fewer pixels than its header
says, PNG chunks and compressed TIFF strips with wrong checksums, JPEG data that libjpeg finds
missing or corrupt, and WebP files whose length differs from their header. (Pillow hides the
complaints of libjpeg. The package ``simplejpeg`` passes them on; without it, such files decode to
partly invented pixels.) Formats in which missing data would go unnoticed are not read: JPEG 2000,
and TIFF with fax compression.

A change that leaves a valid file cannot be detected: changed pixels or codes in formats without
checksums (BMP, PPM, GIF, TGA, QOI, WebP, AVIF, TIFF without deflate compression), and changed
coefficients in a JPEG whose codes stay valid.

Memory: an image is decoded if the file and everything that decoding holds at once fit into
:data:`MAX_MEMORY`; with the interpreter and the libraries that is less than 300 MB. Pillow needs 4
bytes per colour pixel, so 50-megapixel photographs fit. They also fit if they have to be rotated,
because an image that does not fit twice is rotated through a temporary file. The estimates are
worst cases, measured with Pillow 13, and trust the size in the header. If no size is asked for, an
array of the whole image comes on top, one byte per value.
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
from tessella.data.paths import is_transient, one_line
from tessella.data.pixel_conversion import BAND, Conversion, bytes_per_pixel, convert, is_wide_grey
from tessella.data.unusable_image import UnusableImage
from tessella.errors import DataError

__all__ = [
    "KINDS",
    "MAX_BYTES",
    "MAX_MEMORY",
    "MAX_PIXELS",
    "Opened",
    "UnusableImage",
    "decode",
    "decode_pixels",
    "is_image",
    "known_kinds",
    "libraries",
    "open_image",
    "without_pillow_warnings",
]

MAX_BYTES = 128 << 20
"""Largest image file that is read, in bytes."""
MAX_PIXELS = 100_000_000
"""Largest image that is decoded, in pixels."""
MAX_MEMORY = 250 << 20
"""Most bytes that a file and its image may take while it is decoded."""

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
"""Formats that are opened, as Pillow names them. Containers of other files, such as icons, are not
among them, because the image inside has another size than the container says. EPS and JPEG 2000 are
opened only to say why they are refused."""
_DECODER = {"PNG": 0, "JPEG": 0, "MPO": 0, "BMP": 0, "PPM": 0, "TGA": 0, "GIF": 4, "TIFF": 0}
"""Bytes per pixel that a decoder holds in addition to the image; other decoders hold several whole
copies, which counts as 16."""
LARGEST_OF_16_BITS = "tessella:largest"
"""Key in the ``info`` of a decoded image whose file has 16 bits per value: its largest value. For
colour images it is only an upper bound, up to 255 too large."""
_ORIENTATION = 274  # the EXIF tag
_HEADER_ERRORS = (TypeError, ValueError, LookupError, ArithmeticError, struct.error, zlib.error)
"""Errors that impossible values in a header can cause."""


def decode(file: io.BufferedIOBase, channels: int) -> Image.Image:
    """Decode an image file, upright, to 8 bits per channel. Its content decides the format.

    Palettes are expanded, CMYK and other colour spaces become RGB, animations give their first
    frame, 16-bit values are shifted (``v >> 8``), transparency is composited onto white unless four
    channels are asked for, and the EXIF orientation is applied. Colour profiles are not applied.

    Args:
        file: the file, open for reading.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA); 0 keeps grey images grey and makes the others RGB.

    Raises:
        UnusableImage: with the reason, when the file is too large, not an image, or damaged, or
            when its pixels have no clear 8-bit meaning (floating point, 32-bit integers).
        OSError, MemoryError: for a reason that has nothing to do with the file
            (:func:`tessella.data.paths.is_transient`).
        DataError: when Pillow is set to load truncated files.
    """
    return decode_pixels(open_image(file), channels)


@dataclass(frozen=True)
class Opened:
    """An image whose header passed all checks and whose pixels are not decoded yet.

    Args:
        image: the image, as Pillow opened it.
        data: the content of its file.
        facts: facts in the file that Pillow does not pass on.
        memory: most bytes that the file, decoding it, and one copy of its pixels take together.
    """

    image: ImageFile.ImageFile
    data: bytes
    facts: FormatFacts
    memory: int


def open_image(file: io.BufferedIOBase) -> Opened:
    """The first half of :func:`decode`: read the file and check its header.

    Raises:
        UnusableImage: with the reason.
        DataError: when Pillow is set to load truncated files.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, which makes Pillow invent missing parts"
            " of damaged files; set it to False, and damaged files are skipped and named instead"
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
        needed = _memory(image, len(data), facts)
        _check_memory(image, needed)
    except _HEADER_ERRORS as error:
        raise UnusableImage(f"damaged: {one_line(error)}") from error
    return Opened(image, data, facts, needed + 4 * image.width * image.height)


def decode_pixels(opened: Opened, channels: int) -> Image.Image:
    """The second half of :func:`decode`: decode the pixels.

    Raises:
        UnusableImage: with the reason.
        OSError, MemoryError: for a reason that has nothing to do with the file.
    """
    try:
        return _pixels(opened, channels)
    except UnusableImage:
        raise
    except Exception as error:  # decoders meet damaged bytes with errors of every class
        if is_transient(error):
            raise
        raise UnusableImage(f"damaged: {one_line(error)}") from error


def is_image(file: io.BufferedIOBase) -> bool:
    """Whether the content of a file begins like an image.

    TGA does not count, because it has no signature.
    """
    try:
        return _open(file, b"").format != "TGA"
    except UnusableImage:
        return False


@contextlib.contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Suppress Pillow's warnings (bombs, odd EXIF data), which the checks here replace.

    Warning filters apply to the whole process: enter before threads start, leave after they end.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def libraries() -> list[str]:
    """The libraries, with versions, on which the decoded pixels depend."""
    return [f"Pillow {PIL.__version__}", f"simplejpeg {simplejpeg_version()}"]


@functools.cache
def known_kinds() -> tuple[str, ...]:
    """Those of :data:`KINDS` that this build of Pillow can open."""
    Image.init()
    return tuple(kind for kind in KINDS if kind in Image.OPEN)


def _open(file: io.BufferedIOBase, data: bytes) -> ImageFile.ImageFile:
    """Read the header of an image file; ``data`` is its content, or empty if not at hand."""
    try:
        image = Image.open(cast(IO[bytes], file), formats=known_kinds())
    except UnidentifiedImageError as error:
        raise UnusableImage(why_not_opened(data)) from error
    except Image.DecompressionBombError as error:
        raise UnusableImage(f"its header asks for more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # plugins meet damaged headers with errors of every class
        if is_transient(error):
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
    # Pillow has no conversion from it, which would look like damage.
    if image.mode == "La":
        raise UnusableImage(
            "grey multiplied by its alpha channel (associated alpha), which is not read; save it "
            "as PNG"
        )
    if image.mode == "F":
        raise UnusableImage("floating-point pixels; scale them to 8 bits first")
    # Mode "I" means 16-bit grey in PNM files; elsewhere it is 32 bits, or 16 signed bits.
    if image.mode == "I" and image.format != "PPM":
        raise UnusableImage("32-bit or signed integer pixels; scale them to 8 bits first")


def _check_memory(image: Image.Image, needed: int) -> None:
    """Refuse an image whose decoding would take more than :data:`MAX_MEMORY`."""
    if needed > MAX_MEMORY:
        raise UnusableImage(
            f"{image.width}x{image.height} pixels of this {image.format} take up to"
            f" {needed / 1e6:,.0f} MB to decode, more than {MAX_MEMORY / 1e6:,.0f};"
            " scale it down, or save it as a JPEG that is not progressive"
        )


def _memory(image: ImageFile.ImageFile, size: int, facts: FormatFacts) -> int:
    """Most bytes that decoding takes, including those of the file, which has ``size`` bytes."""
    pixels = image.width * image.height
    held = _DECODER.get(image.format or "", 16)
    if image.info.get("progressive") and image.format in ("JPEG", "MPO"):
        # All coefficients at two bytes each, as if no colour plane were subsampled.
        held += 2 * len(image.getbands())
    if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
        held += 8
    if isinstance(facts, PngFacts) and facts.key:
        # The alpha channel; for 16-bit colour, the low bytes as a second image too.
        held += 1
        if facts.depth == 16 and len(facts.key) == 3:
            held += 4
    total = size + pixels * (bytes_per_pixel(image.mode) + held)
    # libtiff decodes one strip or tile at a time, which can be as large as the image or larger.
    if isinstance(facts, TiffDirectory) and image.tile and image.tile[0].codec_name == "libtiff":
        total += piece_bytes(facts)
    return total


def _pixels(opened: Opened, channels: int) -> Image.Image:
    """Decode an opened image to the channels asked for, upright and in 8 bits."""
    image = opened.image
    data = opened.data
    facts = opened.facts
    # Before anything is allocated: a header may announce millions of pixels that are not there.
    check_data(image, data, facts)
    stream = image.fp
    # Pillow already scales values of PGM and PPM files by the maximum in their header.
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
    conversion = Conversion(channels, orientation, grey_bits, inverted, alpha)
    result = convert(image, conversion, MAX_MEMORY // 2)
    if largest is not None:
        result.info[LARGEST_OF_16_BITS] = largest
    return result


def _largest_of_16_bits(image: Image.Image, facts: FormatFacts) -> int | None:
    """The largest value of a decoded image whose file has 16 bits per value; else None."""
    depth = 16 if is_wide_grey(image) else 8
    if isinstance(facts, PngFacts):
        depth = facts.depth
    elif isinstance(facts, TiffDirectory):
        depth = max(facts.bits)
        if facts.white_is_zero:
            return None  # unused high bits make such an image bright, not dark
    if depth != 16:
        return None
    if not is_wide_grey(image):
        # Pillow keeps the high bytes of colours only; their low bytes are taken as 255.
        colours = [band not in ("A", "a") for band in image.getbands()]
        high_bytes = np.array(image.getextrema()).reshape(-1, 2)[colours, 1]  # [bands]
        return int(high_bytes.max()) << 8 | 255
    largest = 0
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        largest = max(largest, int(np.asarray(band).max()))
    return largest

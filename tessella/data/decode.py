"""One image file to one 8-bit Pillow image, with everything checked that can be checked before its
pixels are read.

A file whose damage can be told is refused, not filled in. Refused, besides all that Pillow reports,
are: a PNG with a wrong checksum in any chunk, a JPEG of which libjpeg says that data is missing or
corrupt (Pillow hides that; it takes the package ``simplejpeg``, without which such files decode to
partly invented pixels), a TIFF whose strips do not cover the image or, packed by deflate, do not
match their checksums, a WebP of another length than it says.

What cannot be told is a change that makes another valid file: of pixels or codes in formats without
checksums (BMP, PPM, GIF, TGA, QOI, WebP, AVIF, JPEG 2000, TIFF that is not packed by deflate), and
of coefficients in a JPEG whose codes stay valid. JPEG data inside TIFF is checked by libtiff alone,
and a GIF whose stream of codes says too early that it ends is taken at its word.

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
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from tessella.data.paths import one_line, passing

try:
    import simplejpeg
except ImportError:  # not on every machine; Pillow's own checks remain
    simplejpeg = None

MAX_BYTES = 128 << 20
"""Largest image file that is read."""
MAX_PIXELS = 100_000_000
"""Largest image, in pixels, that is decoded."""
MAX_MEMORY = 250 << 20
"""Bytes that a file and its image may take while it is decoded."""
MAX_SCANS = 100
"""Scans of a progressive JPEG; encoders write about ten, and each costs a pass over the whole
image."""

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
among them, because what lies inside has another size than they say. EPS is recognized to be refused
with its reason."""
_DECODER = {"PNG": 0, "JPEG": 0, "MPO": 0, "BMP": 0, "PPM": 0, "TGA": 0, "GIF": 4, "TIFF": 0}
"""Bytes a pixel that a decoder holds besides the image; 16 for the others, which hold several whole
copies."""
_GREY16 = ("I;16", "I;16L", "I;16B", "I;16N")
_BITS_PER_SAMPLE, _COMPRESSION, _FILL_ORDER, _ORIENTATION = 258, 259, 266, 274  # TIFF tags
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_DEFLATE = (8, 32946)  # values of _COMPRESSION
_MOST_UNPACKED = (
    1 << 30
)  # bytes of all strips of a TIFF: more than any image that passes _check_memory has
_BAND = 1 << 18  # pixels that are converted at a time

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""


class UnusableImage(Exception):
    """A file that is not an image we can use; its text is the reason."""


def decode(file: io.BufferedIOBase, channels: int) -> Image.Image:
    """Read an image of a known kind (by its content, not its name), upright, as 8 bits a channel.

    Palettes are expanded, CMYK and other colour spaces become RGB, animations give their first
    frame, grey values of 16 bits are shifted (``v >> 8``), transparency is laid on white unless
    four channels are asked for, and the EXIF orientation is applied. Colour profiles are not.

    Args:
        file: the file, open for reading.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA); 0 keeps grey images grey and makes the others RGB.

    Raises:
        UnusableImage: with the reason, when the file is too large, is no image, has pixels of a
            kind without a clear 8-bit meaning (floating point, 32-bit integers), or is damaged.
        OSError, MemoryError: for a reason outside of the file
            (:func:`tessella.data.paths.passing`).
    """
    return finish(begin(file), channels)


@dataclass(frozen=True)
class Opened:
    """An image whose header passed all checks and whose pixels are not decoded yet.

    Args:
        image: the image.
        data: its file.
        memory: bytes that the file, decoding it, and one copy of its pixels may take together.
    """

    image: Image.Image
    data: bytes
    memory: int


def begin(file: io.BufferedIOBase) -> Opened:
    """The first half of :func:`decode`: read the file and check all that its header says."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UnusableImage(f"the file is larger than {MAX_BYTES >> 20} MiB")
    if not data:
        raise UnusableImage("the file is empty")
    image = _open(io.BytesIO(data))
    try:
        _check_header(image)
        _check_memory(image, len(data))
        memory = _memory(image, len(data)) + 4 * image.width * image.height
    except (TypeError, ValueError, LookupError) as error:  # headers that say the impossible
        raise UnusableImage(f"damaged: {one_line(error)}") from error
    return Opened(image, data, memory)


def finish(opened: Opened, channels: int) -> Image.Image:
    """The second half of :func:`decode`: its pixels."""
    try:
        _check_data(opened.image, opened.data)
        return _upright8(opened.image, channels)
    except UnusableImage:
        raise
    except Exception as error:  # decoders meet damaged bytes with errors of every class
        if passing(error):
            raise
        raise UnusableImage(f"damaged: {one_line(error)}") from error


def is_image(file: io.BufferedIOBase) -> bool:
    """Whether the content of a file begins like an image; TGA, which has no mark to be known by,
    does not count."""
    try:
        return _open(file).format != "TGA"
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


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """An 8-bit image as grey (1), RGB (3) or RGBA (4); 0 keeps grey and makes RGB of the rest.

    Grey is Rec. 601 luma as Pillow computes it; transparency is laid on white where the result has
    no alpha.
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


def libraries() -> list[str]:
    """What pixels depend on besides the files: the versions of the libraries that decode them."""
    return [
        f"Pillow {PIL.__version__}",
        f"simplejpeg {getattr(simplejpeg, '__version__', simplejpeg and 'here')}",
    ]


@functools.cache
def known_kinds() -> tuple[str, ...]:
    """Those of :data:`KINDS` that this build of Pillow can open."""
    Image.init()
    return tuple(kind for kind in KINDS if kind in Image.OPEN)


def _open(file: io.BufferedIOBase) -> Image.Image:
    """Read the header of an image file."""
    try:
        return Image.open(cast(IO[bytes], file), formats=known_kinds())
    except UnidentifiedImageError as error:
        raise UnusableImage("not an image") from error
    except Image.DecompressionBombError as error:
        raise UnusableImage(f"its header asks for more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # plugins meet damaged headers with errors of every class
        if passing(error):
            raise
        raise UnusableImage(f"damaged: {one_line(error)}") from error


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnusableImage(f"{width}x{height} pixels are more than {MAX_PIXELS:,}")
    if image.format == "EPS":
        raise UnusableImage("a PostScript program, not pixels; convert it to JPEG or PNG")
    if image.mode == "LAB":
        raise UnusableImage("L*a*b* colours, which need a colour profile; save it as RGB first")
    if image.mode == "F":
        raise UnusableImage("floating-point pixels; scale them to 8 bits first")
    # Pillow spells grey of 16 bits "I" in PNM files; elsewhere "I" is 32 bits, or 16 with a sign.
    if image.mode == "I" and image.format != "PPM":
        raise UnusableImage("32-bit or signed integer pixels; scale them to 8 bits first")


def _check_memory(image: Image.Image, size: int) -> None:
    """Refuse an image whose decoding would take more than :data:`MAX_MEMORY`, its file of ``size``
    bytes included."""
    need = _memory(image, size)
    if need > MAX_MEMORY:
        raise UnusableImage(
            f"{image.width}x{image.height} pixels of this {image.format} take up to {need / 1e6:,.0f} MB to decode,"
            f" more than {MAX_MEMORY / 1e6:,.0f}; scale it down, or save it as a JPEG that is not progressive"
        )


def _memory(image: Image.Image, size: int) -> int:
    """Most bytes that decoding an image takes, its file of ``size`` bytes included."""
    held = _DECODER.get(image.format or "", 16)
    if image.info.get("progressive") and image.format in ("JPEG", "MPO"):
        held += 2 * len(
            image.getbands()
        )  # all coefficients, without counting on smaller colour planes
    if getattr(image, "n_frames", 1) > 1:
        held += 8 if image.format == "PNG" else 0
    return size + image.width * image.height * (_stride(image.mode) + held) + _strip(image)


def _strip(image: Image.Image) -> int:
    """Bytes of the strip or tile that libtiff decodes at a time: up to the whole image, of a tile
    even more."""
    tags, tile = getattr(image, "tag_v2", {}), getattr(image, "tile", ())
    if not tile or tile[0][0] != "libtiff":
        return 0
    if _TILE_WIDTH in tags:
        area = int(tags[_TILE_WIDTH]) * int(tags[_TILE_HEIGHT])
    else:
        area = image.width * min(image.height, int(tags.get(_ROWS_PER_STRIP, image.height)))
    return area * max(4, sum(tags.get(_BITS_PER_SAMPLE, (1,))) // 8)


def _check_data(image: Image.Image, data: bytes) -> None:
    """What Pillow does not check while it decodes."""
    if image.format == "PNG":
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()  # the checksums of all chunks
    elif image.format in ("JPEG", "MPO"):
        _check_jpeg(data)
    elif image.format == "WEBP":
        if abs(int.from_bytes(data[4:8], "little") + 8 - len(data)) > 1:
            raise UnusableImage("damaged: its length is not what its header says")
    elif image.format == "TIFF":
        _check_strips(cast(Any, image))
        _check_deflate(cast(Any, image).tag_v2, data)


def _check_strips(image: Any) -> None:
    """That the strips of a TIFF cover it, and that they are as long as its pixels where they are
    not compressed."""
    pixels = image.width * image.height
    boxes = {tile[1] for tile in image.tile}
    if sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) < pixels:
        raise UnusableImage("damaged: its strips do not cover the image")
    lengths = image.tag_v2.get(_STRIP_BYTES, ())
    needed = pixels * sum(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) // 8
    # A single length is often wrong, and is not needed.
    if image.tile[0][0] == "raw" and len(lengths) > 1 and sum(lengths) < needed:
        raise UnusableImage("damaged: its strips are shorter than its pixels")


def _check_deflate(tags: Mapping[int, Any], data: bytes) -> None:
    """That each strip or tile of a TIFF packed by deflate ends as it should, with its checksum:
    libtiff ignores it."""
    if tags.get(_COMPRESSION) not in _DEFLATE or tags.get(_FILL_ORDER, 1) != 1:
        return
    tiled = _TILE_WIDTH in tags
    starts = tags[_TILE_OFFSETS if tiled else _STRIP_OFFSETS]
    lengths = tags.get(_TILE_BYTES if tiled else _STRIP_BYTES) or (len(data),)
    room = _MOST_UNPACKED
    for start, length in zip(starts, lengths, strict=True):
        unpacker, rest = zlib.decompressobj(), data[start : start + length]
        while not unpacker.eof:
            unpacked = len(unpacker.decompress(rest, _BAND))
            rest, room = unpacker.unconsumed_tail, room - unpacked
            if room < 0 or not (unpacked or unpacker.eof):
                raise UnusableImage("damaged: its strips do not end where they should")


def _check_jpeg(data: bytes) -> None:
    """Decode an eighth of the size with a library that passes on what libjpeg warns of; a tenth of
    a decoding's time.

    Other complaints (a kind that it does not read, an odd header) are left to Pillow.
    """
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise UnusableImage(f"more than {MAX_SCANS} scans")
    if simplejpeg is None:
        return
    try:
        simplejpeg.decode_jpeg(
            data, colorspace="GRAY", min_height=1, min_width=1, fastdct=True, strict=True
        )
    except ValueError as error:
        if str(error).startswith(("Corrupt JPEG data", "Premature end")):
            raise UnusableImage(f"damaged: {one_line(error)}") from error


def _upright8(image: Image.Image, channels: int) -> Image.Image:
    """Decode, turn upright, reduce grey of 9 to 16 bits to 8 (Pillow takes the high byte of
    colours), convert."""
    bits = _grey_bits(image)
    image.load()
    orientation = image.getexif().get(_ORIENTATION, 1)
    plain = {0: ("L", "RGB"), 1: ("L",), 3: ("RGB",), 4: ("RGBA",)}[channels]
    transparent = image.has_transparency_data and channels != 4
    if image.mode in plain and not transparent and orientation not in _TURNS:
        return image
    return _rebuilt(
        image,
        lambda band: with_channels(_grey8(band, bits) if bits else band, channels),
        orientation,
    )


def _rebuilt(
    image: Image.Image, convert: Callable[[Image.Image], Image.Image], orientation: int
) -> Image.Image:
    """Convert an image band by band and turn it upright, so that copies of it are never whole.

    The image is closed. Where there is no room for it and for its copy, the bands wait in a
    temporary file.
    """
    width, height = image.size
    rows = max(1, _BAND // width)
    mode = convert(image.crop((0, 0, 1, 1))).mode
    edges = [(top, min(top + rows, height)) for top in range(0, height, rows)]
    bands: Iterator[Image.Image] = (
        convert(image.crop((0, top, width, bottom))) for top, bottom in edges
    )
    with contextlib.ExitStack() as stack:
        if width * height * (_stride(image.mode) + _stride(mode)) > MAX_MEMORY // 2:
            waiting = stack.enter_context(tempfile.TemporaryFile())
            for band in bands:
                waiting.write(band.tobytes())
            image.close()
            waiting.seek(0)
            bands = _from_file(waiting, mode, width, edges)
        sideways = orientation in (5, 6, 7, 8)
        result = Image.new(mode, (height, width) if sideways else (width, height))
        for (top, bottom), band in zip(edges, bands, strict=True):
            start = height - bottom if orientation in (3, 4, 6, 7) else top
            turned = band.transpose(_TURNS[orientation]) if orientation in _TURNS else band
            result.paste(turned, (start, 0) if sideways else (0, start))
    image.close()
    return result


def _from_file(
    file: IO[bytes], mode: str, width: int, edges: list[tuple[int, int]]
) -> Iterator[Image.Image]:
    for top, bottom in edges:
        size = (width, bottom - top)
        yield Image.frombytes(mode, size, file.read(size[0] * size[1] * Image.getmodebands(mode)))


def _grey8(image: Image.Image, bits: int) -> Image.Image:
    """Grey of 9 to 16 bits as 8, with an alpha channel where one value is transparent."""
    values, transparent = np.asarray(image), image.info.get("transparency")
    grey = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    if isinstance(transparent, int):
        grey = Image.merge(
            "LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
        )
    return grey


def _grey_bits(image: Image.Image) -> int:
    """Bits of a grey value where there are more than 8 (16, or 12 in some TIFF files); 0 for all
    other images."""
    if image.mode not in (*_GREY16, "I"):
        return 0
    tags = getattr(image, "tag_v2", None)
    return int(tags.get(_BITS_PER_SAMPLE, (16,))[0]) if tags else 16


def _stride(mode: str) -> int:
    """Bytes that Pillow keeps for a pixel."""
    return 1 if mode in ("1", "L", "P") else 2 if mode in _GREY16 else 4

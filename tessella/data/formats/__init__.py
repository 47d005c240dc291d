"""Check image files, format by format, for damage that Pillow does not notice.

A file that holds fewer pixels than its header says is refused as damaged. There are three stages of
checks: before Pillow sees the file, after it has read the header, and around decoding.
"""

from __future__ import annotations

from PIL import ImageFile

from tessella.data.formats import bmp, gif, tga
from tessella.data.formats.bmp import check_bmp
from tessella.data.formats.gif import check_gif
from tessella.data.formats.jpeg import check_jpeg
from tessella.data.formats.netpbm import check_netpbm, keep_high_bytes
from tessella.data.formats.png import SIGNATURE, PngFacts, check_image_data, read_png
from tessella.data.formats.qoi import check_qoi_end
from tessella.data.formats.tga import check_tga
from tessella.data.formats.tiff import (
    MAGIC,
    TiffDirectory,
    check_counts,
    check_kind,
    check_packed_data,
    check_pieces,
    read_tags,
    why_not_read,
)
from tessella.data.formats.webp import check_webp
from tessella.data.unusable_image import UnusableImage

FormatFacts = PngFacts | TiffDirectory | None
"""Facts about a file that Pillow does not pass on; None for formats that have none."""

_REFUSED = {
    "EPS": "a PostScript program, not pixels; convert it to JPEG or PNG",
    "JPEG2000": "JPEG 2000, in which missing data are not noticed; convert it to PNG",
}
"""Formats that are only recognized to say why they are not read."""


def check_before_opening(data: bytes) -> PngFacts | None:
    """Check what Pillow would already trust when it opens a file.

    Args:
        data: the content of the file.

    Returns:
        the facts of a PNG file; None for all other formats.

    Raises:
        UnusableImage: when chunks or tags are damaged or ask for more memory than any image needs.
    """
    # Other formats need no check at this stage.
    if data.startswith(SIGNATURE):
        return read_png(data)
    if data.startswith(MAGIC):
        check_counts(data)
    return None


def why_not_opened(data: bytes) -> str:
    """The reason why Pillow finds no image in a file."""
    if data.startswith(MAGIC):
        return why_not_read(data)
    if data.startswith(SIGNATURE):
        return "damaged: a chunk of this PNG cannot be read"
    return "not an image"


def check_opened(image: ImageFile.ImageFile, data: bytes, png: PngFacts | None) -> FormatFacts:
    """Check the header of a file, without unpacking anything.

    Args:
        image: the image, as Pillow opened it.
        data: the content of the file.
        png: the result of :func:`check_before_opening`.

    Returns:
        facts about the file that decoding needs.

    Raises:
        UnusableImage: when the file cannot hold what its header says, or is of a kind that Pillow
            decodes to wrong pixels.
    """
    if image.format in _REFUSED:
        raise UnusableImage(_REFUSED[image.format])
    if image.format == "PNG":
        return png
    if image.format == "TIFF":
        tags = read_tags(data)
        check_kind(tags)
        return tags
    if image.format == "PPM":
        keep_high_bytes(image)
    return None


def check_data(image: ImageFile.ImageFile, data: bytes, facts: FormatFacts) -> None:
    """Check that a file holds all its pixels, before they are decoded.

    Raises:
        UnusableImage: when some are missing or damaged.
    """
    if isinstance(facts, PngFacts):
        check_image_data(facts, data)
    elif isinstance(facts, TiffDirectory):
        check_pieces(facts, data)
        check_packed_data(facts, data)
    elif image.format in ("JPEG", "MPO"):
        check_jpeg(data)
    elif image.format == "WEBP":
        check_webp(data)
    elif image.format == "GIF":
        check_gif(data)
    elif image.format == "BMP":
        check_bmp(image, data)
    elif image.format == "PPM":
        check_netpbm(image, data)
    elif image.format == "TGA":
        check_tga(image, data)


def check_decoded(image: ImageFile.ImageFile, data: bytes, facts: FormatFacts, end: int) -> None:
    """Check that no pixel of a decoded image has an index beyond the palette.

    Args:
        image: the decoded image.
        data: the content of the file.
        facts: the result of :func:`check_opened`.
        end: offset at which the decoder stopped reading.

    Raises:
        UnusableImage: when a pixel does, or when the decoder stopped in the wrong place.
    """
    # In a QOI file only the decoder knows where the pixels end; other formats state it.
    if image.format == "QOI":
        check_qoi_end(data, end)
    colours = _palette_length(image, data, facts)
    # Pillow converts a palette of greys to mode L, in which the values are the palette indices.
    if colours and image.mode in ("P", "L"):
        largest = image.getextrema()[1]
        assert isinstance(largest, (int, float))
        if largest >= colours:
            raise UnusableImage(
                f"damaged: it uses colour number {largest:.0f},"
                f" and its palette has {colours} colours"
            )


def _palette_length(image: ImageFile.ImageFile, data: bytes, facts: FormatFacts) -> int:
    """Number of colours of a palette that can be too short; 0 if there is none.

    The palette of a TIFF file has already been checked to have a colour for every index.
    """
    if isinstance(facts, PngFacts):
        # In an RGB image, a palette is only a suggestion (section 11.2.2).
        return facts.palette if image.mode == "P" else 0
    if image.format == "BMP":
        return bmp.palette_length(data)
    if image.format == "GIF":
        return gif.palette_length(data)
    if image.format == "TGA" and image.mode == "P":
        return tga.palette_length(data)
    return 0

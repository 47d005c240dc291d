"""JPEG streams: whether libjpeg finds data missing, and whether all scans are there.

libjpeg fills missing data with grey and only warns, which Pillow does not pass on; a progressive
file whose last scans are missing decodes to a blurred image without even a warning. References are
to ITU-T T.81.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from tessella.data.paths import one_line
from tessella.data.unusable_image import UnusableImage

try:
    import simplejpeg
except ImportError:  # not on every machine; the checks of scans and Pillow's own remain
    simplejpeg = None

MAX_SCANS = 100
"""Scans of a progressive JPEG; encoders write about ten, and each costs a pass over the whole
image."""

MAX_SEGMENTS = 10_000
"""Segments between the scans, such as tables and metadata; a file has a few hundred at most."""

_EOI = 0xD9  # markers: end of image, start of scan
_SOS = 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOFn, without DHT, JPG and DAC
_PROGRESSIVE = (0xC2, 0xCA)  # with Huffman and with arithmetic codes
_ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a length: TEM, RSTn, SOI
# A marker within coded data: 0xFF but for a stuffed zero, a restart, or a fill byte (B.1.1.2).
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def check_jpeg(data: bytes) -> None:
    """Check the first image of a JPEG stream.

    Decodes an eighth of the size with a library that passes on what libjpeg warns of, which takes
    a tenth of a whole decoding's time. Other complaints (a kind that it does not read, an odd
    header) are left to Pillow.

    Raises:
        UnusableImage: when libjpeg says that data is missing or corrupt, when scans are missing,
            or when there are more than :data:`MAX_SCANS`.
    """
    _check_scans(data)
    if simplejpeg is None:
        return
    try:
        simplejpeg.decode_jpeg(
            data, colorspace="GRAY", min_height=1, min_width=1, fastdct=True, strict=True
        )
    except ValueError as error:
        if str(error).startswith(("Corrupt JPEG data", "Premature end")):
            raise UnusableImage(f"damaged: {one_line(error)}") from error


def simplejpeg_version() -> str | None:
    """The version of the package ``simplejpeg``; None if it is not installed."""
    if simplejpeg is None:
        return None
    return getattr(simplejpeg, "__version__", "here")


def frame_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) that the frame header of a JPEG stream says; None if there is none."""
    for marker, segment in _segments(data):
        if marker in _FRAMES:
            _, height, width = struct.unpack_from(">BHH", segment)
            return height, width
    return None


def _check_scans(data: bytes) -> None:
    """Check that the scans send all 64 coefficients of each component at full precision.

    A sequential scan sends a component whole. A progressive scan sends coefficients Ss to Se but
    for their Al lowest bits, and later scans send these (G.1.1.1).
    """
    # Counted in the plain bytes first: a stream of nothing but scan headers has no coded data.
    if data.count(bytes([0xFF, _SOS])) > MAX_SCANS:
        raise UnusableImage(f"more than {MAX_SCANS} scans")
    missing_bits: dict[int, list[int | None]] = {}  # component -> of each coefficient; None: unsent
    progressive = False
    scans = 0
    for marker, segment in _segments(data):
        if marker in _FRAMES and not missing_bits:
            if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
                raise UnusableImage("damaged: its frame header is cut")
            progressive = marker in _PROGRESSIVE
            for i in range(segment[5]):  # identifier, sampling factors and table of each
                missing_bits[segment[6 + 3 * i]] = [None] * 64
        elif marker == _SOS:
            scans += 1
            components = segment[0] if segment else 0
            if len(segment) < 4 + 2 * components:
                raise UnusableImage("damaged: the header of a scan is cut")
            first, last, precision = segment[1 + 2 * components : 4 + 2 * components]
            low_bits = precision & 15  # Al; the high half is Ah, of the scan before
            if not progressive:
                # The fields say other things here, or nothing: a scan sends all there is.
                first = 0
                last = 63
                low_bits = 0
            for i in range(components):
                coefficients = missing_bits.get(segment[1 + 2 * i])
                if coefficients is None:
                    raise UnusableImage("damaged: a scan of a component that it does not have")
                for k in range(first, min(last, 63) + 1):
                    coefficients[k] = low_bits
    if not scans:
        return  # nothing to decode, which Pillow reports
    for coefficients in missing_bits.values():
        if set(coefficients) != {0}:
            raise UnusableImage("damaged: scans are missing, so that the image is not complete")


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The marker segments up to the end of the first image; coded data are passed over (B.1.1)."""
    offset = 2  # after SOI
    for _ in range(MAX_SEGMENTS):
        if offset + 4 > len(data):
            return
        if data[offset] != 0xFF:
            found = _NEXT_MARKER.search(data, offset)
            if found is None:
                return
            offset = found.start()
        marker = data[offset + 1]
        if marker == 0xFF:  # a fill byte
            offset += 1
        elif marker in _ALONE:
            offset += 2
        elif marker == _EOI:
            return
        else:
            (length,) = struct.unpack_from(">H", data, offset + 2)
            yield marker, data[offset + 4 : offset + 2 + length]
            offset += 2 + length
            if marker == _SOS:
                found = _NEXT_MARKER.search(data, offset)
                if found is None:
                    return
                offset = found.start()
    raise UnusableImage(f"more than {MAX_SEGMENTS:,} segments; save it again")

"""Check JPEG streams: libjpeg finds no data missing, and all scans are there.

libjpeg fills missing data with grey and only warns, and Pillow suppresses the warning. A
progressive file whose last scans are missing decodes to a blurred image without any warning.
References are to ITU-T T.81.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from tessella.data.paths import one_line
from tessella.data.unusable_image import UnusableImage

try:
    import simplejpeg
except ImportError:  # optional; the checks of scans, and those of Pillow, still work
    simplejpeg = None

MAX_SCANS = 100
"""Scans of a progressive JPEG; encoders write about ten, and each costs a pass over the whole
image."""

MAX_SEGMENTS = 10_000
"""Most segments, such as tables and metadata; real files have a few hundred at most."""

_EOI = 0xD9  # markers: end of image, and start of scan
_SOS = 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOFn, without DHT, JPG and DAC
_PROGRESSIVE = (0xC2, 0xCA)  # with Huffman and with arithmetic codes
_ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a length: TEM, RSTn, SOI
# A marker within coded data: 0xFF but for a stuffed zero, a restart, or a fill byte (B.1.1.2).
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def check_jpeg(data: bytes) -> None:
    """Check the first image of a JPEG stream.

    It decodes at an eighth of the size, with a library that passes on the warnings of libjpeg. That
    takes a tenth of the time of full decoding. Other complaints (an unsupported kind, an odd
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
    """(height, width) in the frame header of a JPEG stream; None if it has none."""
    for marker, segment in _segments(data):
        if marker in _FRAMES:
            _, height, width = struct.unpack_from(">BHH", segment)
            return height, width
    return None


def _check_scans(data: bytes) -> None:
    """Check that the scans send all 64 coefficients of each component at full precision.

    A sequential scan sends complete components. A progressive scan sends coefficients Ss to Se
    without their Al lowest bits, which later scans send (G.1.1.1).
    """
    # First a count in the raw bytes, which is fast even for a stream of nothing but scan headers.
    if data.count(bytes([0xFF, _SOS])) > MAX_SCANS:
        raise UnusableImage(f"more than {MAX_SCANS} scans")
    # For each component, the missing low bits of its 64 coefficients; None if not sent yet.
    missing_bits: dict[int, list[int | None]] = {}
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
                # These fields have no such meaning here: a sequential scan sends everything.
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
    """The marker segments up to the end of the first image; coded data are skipped (B.1.1)."""
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

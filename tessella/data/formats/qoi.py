"""Check QOI files: only the end mark must be left after the last pixel.

Seven of the eight bytes of the end mark are also valid pixel codes, so a file that lacks a few
pixels decodes to wrong ones. See https://qoiformat.org/qoi-specification.pdf.
"""

from __future__ import annotations

from tessella.data.unusable_image import UnusableImage

_END = bytes(7) + b"\1"


def check_qoi_end(data: bytes, offset: int) -> None:
    """Check what follows the last pixel of a QOI file, at ``offset``.

    Raises:
        UnusableImage: when it does not begin with the end mark.
    """
    # Seven zeros and a one, the last eight bytes of the file.
    if data[offset : offset + len(_END)] != _END:
        raise UnusableImage("damaged: its pixels do not end where its end mark begins")

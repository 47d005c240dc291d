"""Limits on the memory that a file or a request can claim.

Headers and archives state how much data they hold, and can state anything. Every size is checked
against the bytes that are really there, or against a limit below, before memory is allocated for
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from tessella.errors import ConfigError, DataError, InputError

FREE_BYTES = 512 << 20
"""Decompressed data up to this many bytes are read, whatever the size of the file."""
MAX_RATIO = 200
"""Beyond :data:`FREE_BYTES`, decompressed data may be this many times as large as the file. Images
compress by a factor of about 20 at best; a file that claims far more is built to exhaust memory."""
MAX_IMAGE_PIXELS = 1 << 26
"""Most pixels per image that ``data.size`` or ``data.bits`` may ask for: 8192x8192."""
MAX_RESIZED_BYTES = 8 << 30
"""Most bytes of the resized images of a split, for sources that are held in memory."""
PIECE = 1 << 24
"""Bytes that are decompressed at a time."""
FEW_FILES = 1000
"""Number of files that are examined to guess what a folder holds."""


@runtime_checkable
class BinaryReader(Protocol):
    """A file of bytes, decompressed or not."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        ...


def largest_content(bytes_on_disk: int) -> int:
    """Most bytes that a compressed file of this size may hold."""
    # Images of one colour compress far better than photographs; while small, they do no harm.
    return max(FREE_BYTES, MAX_RATIO * bytes_on_disk)


def check_content(size: int, bytes_on_disk: int, title: str) -> None:
    """Refuse content whose declared size is implausibly large for its file.

    Args:
        size: bytes of the decompressed content, according to the file.
        bytes_on_disk: bytes of the file.
        title: what the content is, for the message.

    Raises:
        DataError: when the size is above :func:`largest_content`.
    """
    # The declared size is only bounded here, not verified: readers notice if less or more comes.
    most = largest_content(bytes_on_disk)
    if size > most:
        raise DataError(
            f"{title} would take {size:,} bytes of memory, out of a file of {bytes_on_disk:,}; "
            f"at most {most:,} are read from it. If it is genuine, store it uncompressed, or in "
            "several files"
        )


def read_up_to(file: BinaryReader, count: int) -> bytearray:
    """Read up to ``count`` bytes, allocating memory only for those that are there.

    ``file.read(count)`` would allocate ``count`` bytes first.
    """
    # It grows as pieces arrive; while it is moved, it takes twice its size.
    content = bytearray()
    while len(content) < count:
        piece = file.read(min(PIECE, count - len(content)))
        if not piece:
            break
        content += piece
    return content


def check_image_size(size: tuple[int, int], key: str) -> None:
    """Raise :class:`ConfigError` if an image of (height, width) would have too many pixels."""
    # As Python integers, which cannot overflow.
    if math.prod(size) > MAX_IMAGE_PIXELS:
        raise ConfigError(
            f"data.{key}={size[0]}x{size[1]} asks for {math.prod(size):,} pixels an image; "
            f"at most {MAX_IMAGE_PIXELS:,} (8192x8192) are made"
        )


def check_resized(shape: Sequence[int]) -> None:
    """Refuse images ``[n, height, width, channels]`` that would take too much memory.

    Raises:
        InputError: when they would take more than :data:`MAX_RESIZED_BYTES`.
    """
    size = math.prod(shape)  # one byte per value
    if size > MAX_RESIZED_BYTES:
        count, height, width, channels = shape
        raise InputError(
            f"{count:,} images of {height}x{width}x{channels} would take {size:,} bytes of memory; "
            f"at most {MAX_RESIZED_BYTES:,} are allowed. Ask for a smaller data.size or a "
            "data.limit, or keep the images in a folder (folder:PATH), which is decoded to disk"
        )

"""Limits on memory that a file or a request could otherwise claim at will.

Headers and archives say how much will come out of them, and can say anything. Every size is
compared with the bytes that are really there, or with a limit below, before memory is taken for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from tessella.errors import ConfigError, DataError, InputError

FREE_BYTES = 512 << 20
"""Decompressed data of up to so many bytes are read, whatever the size of the file."""
MAX_RATIO = 200
"""Beyond :data:`FREE_BYTES`, decompressed data may be so many times as large as the file. Images
shrink to a twentieth at best; a file that promises more is built to exhaust memory."""
MAX_IMAGE_PIXELS = 1 << 26
"""Pixels of one image that ``data.size`` or ``data.bits`` may ask for: 8192x8192."""
MAX_RESIZED_BYTES = 8 << 30
"""Bytes of all images of a split after resizing, for sources that are held in memory."""
PIECE = 1 << 24
"""Bytes that are decompressed at a time."""


@runtime_checkable
class BinaryReader(Protocol):
    """A file of bytes, decompressed or not."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        ...


def largest_content(bytes_on_disk: int) -> int:
    """Most bytes that a compressed file of this size may hold."""
    return max(FREE_BYTES, MAX_RATIO * bytes_on_disk)


def check_content(size: int, bytes_on_disk: int, title: str) -> None:
    """Refuse content whose declared size is out of proportion to its file.

    Args:
        size: bytes that the content takes when it is decompressed, as the file says.
        bytes_on_disk: bytes of the file.
        title: what the content is, for the message.

    Raises:
        DataError: when the size is above :func:`largest_content`.
    """
    # The declared size is not trusted here, only bounded: readers stop when less or more comes.
    most = largest_content(bytes_on_disk)
    if size > most:
        raise DataError(
            f"{title} would take {size:,} bytes of memory, out of a file of {bytes_on_disk:,}; "
            f"at most {most:,} are read from it. If it is genuine, store it uncompressed, or in "
            "several files"
        )


def read_up_to(file: BinaryReader, count: int) -> bytearray:
    """Up to ``count`` bytes of a file, taking memory only for those that are there.

    ``file.read(count)`` would reserve ``count`` bytes before it looks.
    """
    # Grows as pieces arrive, to at most twice what is there while it is moved.
    content = bytearray()
    while len(content) < count:
        piece = file.read(min(PIECE, count - len(content)))
        if not piece:
            break
        content += piece
    return content


def check_image_size(size: tuple[int, int], key: str) -> None:
    """Raise :class:`ConfigError` where one image of (height, width) exceeds the limit of pixels."""
    if math.prod(size) > MAX_IMAGE_PIXELS:
        raise ConfigError(
            f"data.{key}={size[0]}x{size[1]} asks for {math.prod(size):,} pixels an image; "
            f"at most {MAX_IMAGE_PIXELS:,} (8192x8192) are made"
        )


def check_resized(shape: Sequence[int]) -> None:
    """Refuse images ``[n, height, width, channels]`` that memory is not made for.

    Raises:
        InputError: above :data:`MAX_RESIZED_BYTES`.
    """
    size = math.prod(shape)  # one byte a value
    if size > MAX_RESIZED_BYTES:
        count, height, width, channels = shape
        raise InputError(
            f"{count:,} images of {height}x{width}x{channels} would take {size:,} bytes of memory; "
            f"at most {MAX_RESIZED_BYTES:,} are taken. Ask for a smaller data.size or a "
            "data.limit, or keep the images in a folder (folder:PATH), which is decoded to disk"
        )

"""Compressed images: files as long as an exact twin says, and the same on every machine.

:func:`compress` and :func:`decompress` are for images in memory, :class:`Archive` for single images
of a large file. The format is specified in ``docs/format.md``.
"""

from __future__ import annotations

from tessella.codec.compression import compress, decompress
from tessella.codec.random_access import Archive

__all__ = ["Archive", "compress", "decompress"]

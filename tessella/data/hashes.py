"""A hash of each image, equal for equal pixels, by which exact copies are found."""

from __future__ import annotations

import hashlib

import numpy as np


def image_hashes(images: np.ndarray) -> np.ndarray:
    """A hash of each image: BLAKE2b of its bytes in row-major order.

    The digest has 8 bytes, which are read as a little-endian number.

    Args:
        images: ``uint8 [n, height, width, channels]``.

    Returns:
        ``uint64 [n]``.

    >>> image_hashes(np.zeros((2, 4, 4, 1), np.uint8)).tolist()
    [1041621211125469266, 1041621211125469266]
    """
    digests = bytearray()
    for image in images:
        digests += hashlib.blake2b(image.tobytes(), digest_size=8).digest()
    # Little-endian on every machine, then converted to the native byte order.
    return np.frombuffer(digests, "<u8").astype(np.uint64)

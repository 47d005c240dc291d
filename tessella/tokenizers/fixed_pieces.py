"""Encode images so that the codes of one do not depend on the images beside it.

The libraries under torch choose their arithmetic by the size of a batch: one image alone can get
other last bits than in a batch of 64, and then, rarely, another code. In batches of one size they
compute every image alike, so images are encoded in pieces of a fixed size, the last one filled up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from tessella.tokenizers.tokenizer import Tokenizer, as_tuple, images_at_once

PIECE = 64
"""Images of a piece, where that many are encoded together at all."""


def encode_in_pieces(tokenizer: Tokenizer, images: np.ndarray) -> tuple[torch.Tensor, ...]:
    """The symbols of images, of each grid a tensor, whatever images are encoded together.

    Args:
        tokenizer: in eval mode.
        images: ``uint8 [n, height, width, channels]`` with at least one image.

    Returns:
        ``int64 [n, h, w, depth]`` for each grid, coarse to fine, on the tokenizer's device.

    Raises:
        InputError: when the images are of another type or shape.
    """
    size = piece_size(images.shape[1], images.shape[2])
    pieces: list[tuple[torch.Tensor, ...]] = []
    for start in range(0, len(images), size):
        piece = images[start : start + size]
        codes = as_tuple(tokenizer.encode(filled_up(piece, size)))
        pieces.append(tuple(part[: len(piece)] for part in codes))
    # From one tuple of grids a piece to one tensor a grid.
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


def piece_size(height: int, width: int) -> int:
    """Images of a piece, which depends on nothing but their size in pixels."""
    return min(PIECE, images_at_once(height * width))


def filled_up(images: np.ndarray, size: int) -> np.ndarray:
    """Images with black ones behind them, ``size`` in all."""
    missing = size - len(images)
    if not missing:
        return np.ascontiguousarray(images)
    black = np.zeros((missing, *images.shape[1:]), images.dtype)
    return np.concatenate([images, black])


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread an operation inside of the block: rounding can depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

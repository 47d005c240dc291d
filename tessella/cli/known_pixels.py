"""Which pixels ``tessella complete`` keeps: rows from the top, or what a mask shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tessella.data.decode import UnusableImage, decode
from tessella.errors import DataError, InputError

WHITE = 128
"""Grey values from which on a pixel of a mask is to be drawn."""


def upper_rows(share: float, height: int, width: int) -> torch.Tensor:
    """A share of the rows from the top: ``bool [height, width]``."""
    known = torch.zeros(height, width, dtype=torch.bool)
    known[: round(share * height)] = True
    return known


def kept_after_missing(known: torch.Tensor) -> bool:
    """Whether a pixel is kept after a missing one in raster order, so that the order matters."""
    sequence = known.flatten()
    first_missing = int((~sequence).to(torch.uint8).argmax())
    return bool(sequence[first_missing:].any()) and not bool(sequence.all())


def read_mask(path: str, height: int, width: int) -> torch.Tensor:
    """The pixels that an image file shows in black: ``bool [height, width]``.

    Args:
        path: an image; what is white in it is to be drawn.
        height, width: size of the model's images.

    Raises:
        DataError: when it cannot be read.
        InputError: when it has another size.
    """
    try:
        with Path(path).open("rb") as file:
            grey = np.asarray(decode(file, channels=1))
    except (OSError, UnusableImage) as error:
        raise DataError(f"the mask {path} cannot be read: {error}") from error
    if grey.shape != (height, width):
        raise InputError(
            f"the mask {path} is {grey.shape[0]}x{grey.shape[1]}, and the model's images are "
            f"{height}x{width}: give a mask of their size, white where pixels are to be drawn"
        )
    return torch.from_numpy(grey < WHITE)

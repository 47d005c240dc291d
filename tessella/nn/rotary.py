"""Rotary position embeddings in two dimensions, and the root-mean-square norm, as functions.

The query or key of a head is read as pairs of numbers, and each pair is rotated (Su et al. 2021,
"RoFormer", eq. 13). The first half of the pairs turns by angles that grow with the row, the second
half by angles that grow with the column. The product of a query and a key then depends on their
contents and on the offset between their pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tessella.errors import ConfigError

BASE = 10_000.0
"""Pair ``j`` of the ``n`` pairs of an axis turns by ``BASE^(-j / n)`` radians per row or column."""


def rms_norm(x: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
    """``x / sqrt(mean(x^2) + epsilon) * scale``, computed in float32 or wider.

    Args:
        x: ``[..., width]``.
        scale: ``[width]``.
        epsilon: added to the mean square.

    Returns:
        The shape and type of ``x``.
    """
    wide = _widened(x)
    return F.rms_norm(wide, x.shape[-1:], scale.to(wide.dtype), epsilon).to(x.dtype)


def rotations(height: int, width: int, size: int) -> torch.Tensor:
    """Cosines and sines that rotate each pixel of a grid, for :func:`rotate`.

    There are ``n = size / 4`` pairs for the row and as many for the column. Pair ``j`` of the row
    turns by ``row * BASE^(-j / n)``. A pair is two neighbouring numbers, ``2 j`` and ``2 j + 1``.

    Args:
        height, width: size of the grid.
        size: width of a head, divisible by 4.

    Returns:
        ``[pixels, 2, size]``: for each pixel in raster order, the cosines and then the sines.

    Raises:
        ConfigError: when ``size`` does not divide by 4.
    """
    if size < 4 or size % 4:
        raise ConfigError(
            f"rotary positions need heads whose size divides by 4, got {size}: "
            "change width or heads"
        )
    pairs = size // 4
    # In float64, because the angles of distant places would lose digits.
    speeds = BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    rows = torch.arange(height, dtype=torch.float64)[:, None, None] * speeds
    columns = torch.arange(width, dtype=torch.float64)[:, None] * speeds
    shape = (height, width, pairs)
    # [pixels, 2 * pairs]: the row's angles, then the column's.
    angles = torch.cat([rows.expand(shape), columns.expand(shape)], dim=-1).flatten(0, 1)
    # A pair (a, b) turns to (a cos - b sin, b cos + a sin). The sines carry the sign.
    cosines = torch.stack([angles.cos(), angles.cos()], dim=-1).flatten(-2)
    sines = torch.stack([-angles.sin(), angles.sin()], dim=-1).flatten(-2)
    return torch.stack([cosines, sines], dim=1)


def rotate(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair of ``x``, computed in float32 or wider.

    Args:
        x: ``[..., size]``.
        cos_sin: rows of :func:`rotations`, ``[..., 2, size]``; a row of zeros gives zeros.

    Returns:
        The shape and type of ``x``.
    """
    wide = _widened(x)
    # Swap each pair (a, b) to (b, a), because the sines multiply the partner.
    swapped = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(wide * cos_sin[..., 0, :], swapped, cos_sin[..., 1, :]).to(x.dtype)


def _widened(x: torch.Tensor) -> torch.Tensor:
    if x.dtype in (torch.float32, torch.float64):
        return x
    return x.float()

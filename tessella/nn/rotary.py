"""Rotations that mark positions, and the root-mean-square norm, as functions of tensors.

Positions are marked by rotations (Su et al. 2021, "RoFormer", eq. 13) in two dimensions: of the
pairs of numbers that make a head's query or key, the first half turns by angles that grow with the
row, the second half by angles that grow with the column, so that a product of query and key depends
on the content of both and on the offset between their pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tessella.errors import ConfigError

BASE = 10_000.0
"""Of ``n`` pairs of a row or column, pair ``j`` turns by ``BASE^(-j / n)`` radians a place."""


def rms_norm(x: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
    """``x / sqrt(mean(x^2) + epsilon) * scale``, with ``x [..., width]`` and ``scale [width]``; in
    float32 or wider."""
    wide = _widened(x)
    return F.rms_norm(wide, x.shape[-1:], scale.to(wide.dtype), epsilon).to(x.dtype)


def rotations(height: int, width: int, size: int) -> torch.Tensor:
    """Cosines and sines for the positions of a grid, pixel after pixel: ``[pixels, 2, size]``, as
    :func:`rotate` takes them.

    With ``n = size / 4`` pairs for the row and as many for the column, pair ``j`` of the row turns
    by ``row * BASE^(-j / n)``. Pairs are neighbours: numbers ``2 j`` and ``2 j + 1``.

    Args:
        height, width: of the grid.
        size: numbers in a head, divisible by 4.

    Raises:
        ConfigError: when it is not.
    """
    if size < 4 or size % 4:
        raise ConfigError(
            f"rotary positions need heads whose size divides by 4, got {size}: "
            "change width or heads"
        )
    pairs = size // 4
    # In float64: angles of far places lose digits otherwise.
    speeds = BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    rows = torch.arange(height, dtype=torch.float64)[:, None, None] * speeds
    columns = torch.arange(width, dtype=torch.float64)[:, None] * speeds
    shape = (height, width, pairs)
    # [pixels, 2 * pairs]: the row's angles, then the column's.
    angles = torch.cat([rows.expand(shape), columns.expand(shape)], dim=-1).flatten(0, 1)
    # A pair (a, b) turns to (a cos - b sin, b cos + a sin): the sign goes with the sine.
    cosines = torch.stack([angles.cos(), angles.cos()], dim=-1).flatten(-2)
    sines = torch.stack([-angles.sin(), angles.sin()], dim=-1).flatten(-2)
    return torch.stack([cosines, sines], dim=1)


def rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn each pair of ``x [..., size]`` by ``turns [..., 2, size]``, rows of :func:`rotations`;
    in float32 or wider.

    A row of zeros for the turns gives zeros.
    """
    wide = _widened(x)
    # (a, b) to (b, a) in every pair: the sines multiply the partner.
    swapped = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(wide * turns[..., 0, :], swapped, turns[..., 1, :]).to(x.dtype)


def _widened(x: torch.Tensor) -> torch.Tensor:
    if x.dtype in (torch.float32, torch.float64):
        return x
    return x.float()

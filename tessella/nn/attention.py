"""Causal self-attention over a sequence of pixels.

Positions are told by rotations (Su et al. 2021, "RoFormer", eq. 13) in two dimensions: of the pairs
of numbers that make a head's query or key, the first half turns by angles that grow with the row,
the second half by angles that grow with the column, so that a product of query and key depends on
the content of both and on the offset between their pixels. Several query heads may share one head
of keys and values (Ainslie et al. 2023, "GQA", section 2.2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError

BASE = 10_000.0
"""Of ``n`` pairs of a row or column, pair ``j`` turns by this to the power of ``-j / n`` radians a
place."""
EPSILON = 1e-5
"""Added to a mean square before its root."""


class RMSNorm(nn.Module):
    """Each vector divided by the root of its mean square, times a learned scale (Zhang and Sennrich
    2019, eq. 4).

    Args:
        width: length of the vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., width]`` to the same."""
        return rms_norm(x, self.weight, EPSILON)


def rms_norm(x: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
    """``x [..., width]`` divided by the root of its mean square plus ``epsilon``, times
    ``scale [width]``; in float32 or wider."""
    wide = _wide(x)
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
            f"rotary positions need heads whose size divides by 4, got {size}: change width or heads"
        )
    speeds = BASE ** (-torch.arange(size // 4, dtype=torch.float64) / (size // 4))
    rows = torch.arange(height, dtype=torch.float64)[:, None, None] * speeds
    columns = torch.arange(width, dtype=torch.float64)[:, None] * speeds
    shape = (height, width, size // 4)
    angles = torch.cat([rows.expand(shape), columns.expand(shape)], dim=-1).flatten(0, 1)
    cosines = torch.stack([angles.cos(), angles.cos()], dim=-1).flatten(-2)
    sines = torch.stack([-angles.sin(), angles.sin()], dim=-1).flatten(-2)
    return torch.stack([cosines, sines], dim=1)


def rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn each pair of ``x [..., size]`` by ``turns [..., 2, size]``, rows of :func:`rotations`;
    in float32 or wider.

    A row of zeros for the turns gives zeros.
    """
    wide = _wide(x)
    swapped = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(wide * turns[..., 0, :], swapped, turns[..., 1, :]).to(x.dtype)


class CausalAttention(nn.Module):
    """Every position looks at itself and the positions before it.

    Args:
        width: length of the vectors.
        heads: query heads; they share the width.
        kv_heads: heads of keys and values; a divisor of ``heads``.

    Raises:
        ConfigError: when heads and widths do not divide.
    """

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        if heads < 1 or kv_heads < 1 or width % heads or heads % kv_heads:
            raise ConfigError(
                f"attention needs heads that divide the width and kv_heads that divide the heads, got width={width}, "
                f"heads={heads}, kv_heads={kv_heads}"
            )
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        self.project = nn.Linear(width, (heads + 2 * kv_heads) * self.size, bias=False)
        self.merge = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """``x [batch, positions, width]`` to the same; ``turns [positions, 2, size]`` see
        :func:`rotations`."""
        vectors = self.project(x).unflatten(-1, (-1, self.size)).transpose(1, 2)
        turned, values = vectors.tensor_split([self.heads + self.kv_heads], dim=1)
        queries, keys = rotate(turned, turns).tensor_split([self.heads], dim=1)
        seen = F.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, enable_gqa=self.kv_heads < self.heads
        )
        return self.merge(seen.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """``W2 (silu(W1 x) * W3 x)`` (Shazeer 2020, eq. 6).

    Args:
        width: length of the vectors.
        hidden: length of the gated vectors between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.widen = nn.Linear(width, 2 * hidden, bias=False)
        self.narrow = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., width]`` to the same."""
        gate, value = self.widen(x).chunk(2, dim=-1)
        return self.narrow(F.silu(gate) * value)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()

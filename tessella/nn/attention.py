"""The parts of a transformer over pixels: norm, causal self-attention, feed-forward.

Positions are marked by rotations in two dimensions (``tessella.nn.rotary``). Several query heads
may share one head of keys and values (Ainslie et al. 2023, "GQA", section 2.2).

Beside ``forward`` over a whole sequence each part has ``write``, which appends its work on one
position to the programs of a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.nn.rotary import rms_norm, rotate
from tessella.nn.stepping.program import Operand, Places
from tessella.nn.stepping.step import PixelStep

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
        """``[..., width]`` to the same shape."""
        return rms_norm(x, self.weight, EPSILON)

    def write(self, step: PixelStep, x: Operand) -> torch.Tensor:
        """Append the norm of ``x [batch, width]``, and return where it goes."""
        out = step.pixel.zeros(len(self.weight))
        step.pixel.norm(x, self.weight.detach(), out, EPSILON)
        return out


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
                "attention needs heads that divide the width and kv_heads that divide the heads, "
                f"got width={width}, heads={heads}, kv_heads={kv_heads}"
            )
        self.heads = heads
        self.kv_heads = kv_heads
        self.size = width // heads
        # Queries, keys and values of a position, side by side.
        self.project = nn.Linear(width, (heads + 2 * kv_heads) * self.size, bias=False)
        self.merge = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """``x [batch, positions, width]`` to the same shape; ``turns [positions, 2, size]`` see
        :func:`tessella.nn.rotary.rotations`."""
        # [batch, heads + 2 * kv_heads, positions, size]
        vectors = self.project(x).unflatten(-1, (-1, self.size)).transpose(1, 2)
        turned, values = vectors.tensor_split([self.heads + self.kv_heads], dim=1)
        queries, keys = rotate(turned, turns).tensor_split([self.heads], dim=1)
        seen = F.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, enable_gqa=self.kv_heads < self.heads
        )
        return self.merge(seen.transpose(1, 2).flatten(2))

    def write(
        self, step: PixelStep, normed: Operand, turns: Operand, length: int, out: Operand
    ) -> None:
        """Append one position's look at itself and those before it; keys and values stay in the
        state.

        Args:
            step: where it is written, with the variables ``position`` and ``known``.
            normed: what comes in, ``[batch, width]``.
            turns: the position's rotation, ``[2 * size]``.
            length: positions of the sequence.
            out: what is seen is added to it, ``[batch, width]``.
        """
        pixel = step.pixel
        width = self.heads * self.size
        shared = self.kv_heads * self.size
        # [batch, length, kv_heads * size]; a position is filled in when it comes.
        keys = Places(step.memory.zeros(length, shared))
        values = Places(step.memory.zeros(length, shared))
        # Values are not turned: they have a product of their own, straight into the cache.
        turned_weight, value_weight = self.project.weight.tensor_split([width + shared])
        # Queries and keys come from one product, and are then turned.
        vectors = pixel.zeros(width + shared)
        pixel.linear(normed, step.memory.matrix(turned_weight.T), vectors)
        pixel.linear(normed, step.memory.matrix(value_weight.T), values.at("position"))
        query = pixel.zeros(width)
        pixel.rotate(vectors[:, :width], turns, query, self.heads)
        pixel.rotate(vectors[:, width:], turns, keys.at("position"), self.kv_heads)
        seen = pixel.zeros(width)
        pixel.attend(query, keys.memory, values.memory, seen, "known", self.heads, self.kv_heads)
        pixel.linear(seen, step.memory.matrix(self.merge.weight.T), out, add=out)


class SwiGLU(nn.Module):
    """``W2 (silu(W1 x) * W3 x)`` (Shazeer 2020, eq. 6).

    Args:
        width: length of the vectors.
        hidden: length of the gated vectors between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        # W1 and W3 as one product.
        self.widen = nn.Linear(width, 2 * hidden, bias=False)
        self.narrow = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., width]`` to the same shape."""
        gate, value = self.widen(x).chunk(2, dim=-1)
        return self.narrow(F.silu(gate) * value)

    def write(self, step: PixelStep, normed: Operand, out: Operand) -> None:
        """Append the part for ``normed [batch, width]``; the result is added to ``out``."""
        hidden = step.pixel.zeros(self.narrow.in_features)
        widen = step.memory.matrix(self.widen.weight.T)
        narrow = step.memory.matrix(self.narrow.weight.T)
        step.pixel.linear(normed, widen, hidden, activation="swiglu")
        step.pixel.linear(hidden, narrow, out, add=out)

"""The parts of a transformer over pixels: norm, causal self-attention, feed-forward.

Positions are encoded by two-dimensional rotations (``tessella.nn.rotary``). Several query heads may
share one head of keys and values (Ainslie et al. 2023, "GQA", section 2.2).

Besides ``forward`` over a whole sequence, each part has ``write``, which appends its work on one
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
"""Added to the mean square before taking its root."""


LONG = 512
"""Positions from which on a CPU attends faster in bfloat16 than in float32."""


def attend_causally(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Attention of every position to itself and the positions before it.

    Several consecutive heads of queries may share one head of keys and values.

    Args:
        queries: ``[batch, heads, positions, size]``.
        keys, values: ``[batch, kv_heads, positions, size]``.

    Returns:
        ``[batch, heads, positions, size]``.
    """
    kind = queries.dtype
    if queries.device.type == "cpu" and kind == torch.bfloat16 and queries.shape[2] < LONG:
        # On short sequences torch's kernel for bfloat16 takes up to five times as long. Autocast
        # would turn its inputs back.
        with torch.autocast("cpu", enabled=False):
            return attend_causally(queries.float(), keys.float(), values.float()).to(kind)
    shared = keys.shape[1] < queries.shape[1]
    return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=shared)


class RMSNorm(nn.Module):
    """Each vector divided by the root of its mean square, times a learned scale.

    Zhang and Sennrich 2019, eq. 4.

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
        """Append the norm of ``x [batch, width]``, and return the memory it is written to."""
        out = step.pixel.zeros(len(self.weight))
        step.pixel.norm(x, step.memory.table(self.weight), out, EPSILON)
        return out


class CausalAttention(nn.Module):
    """Multi-head attention of every position to itself and the positions before it.

    Args:
        width: length of the vectors.
        heads: query heads; a divisor of ``width``.
        kv_heads: heads of keys and values; a divisor of ``heads``.

    Raises:
        ConfigError: when ``heads`` does not divide ``width``, or ``kv_heads`` does not divide
            ``heads``.
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
        # One product makes queries, keys and values, concatenated in this order.
        self.project = nn.Linear(width, (heads + 2 * kv_heads) * self.size, bias=False)
        self.merge = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
        """Attend over a whole sequence; the result has the shape of ``x``.

        Args:
            x: ``[batch, positions, width]``.
            cos_sin: rotation of each position, ``[positions, 2, size]``, see
                :func:`tessella.nn.rotary.rotations`.
        """
        # [batch, heads + 2 * kv_heads, positions, size]
        vectors = self.project(x).unflatten(-1, (-1, self.size)).transpose(1, 2)
        turned, values = vectors.tensor_split([self.heads + self.kv_heads], dim=1)
        queries, keys = rotate(turned, cos_sin).tensor_split([self.heads], dim=1)
        seen = attend_causally(queries, keys, values)
        return self.merge(seen.transpose(1, 2).flatten(2))

    def write(
        self, step: PixelStep, normed: Operand, cos_sin: Operand, length: int, out: Operand
    ) -> None:
        """Append attention from one position to itself and the positions before it.

        Its keys and values are cached in the state.

        Args:
            step: the step to append to, with the variables ``position`` and ``known``. One that
                works on several positions has operands ``[batch, positions, width]``.
            normed: input, ``[batch, width]``.
            cos_sin: the position's rotation, ``[2 * size]``.
            length: positions of the sequence.
            out: ``[batch, width]``; the result is added to it.
        """
        pixel = step.pixel
        width = self.heads * self.size
        shared = self.kv_heads * self.size
        # [batch, length, kv_heads * size]; each position is filled in by its own step.
        keys = Places(step.memory.zeros(length, shared))
        values = Places(step.memory.zeros(length, shared))
        # Values are not rotated, so a separate product writes them straight to the cache.
        turned_weight, value_weight = self.project.weight.tensor_split([width + shared])
        # Queries and keys come from one product and are then rotated.
        vectors = pixel.zeros(width + shared)
        pixel.linear(normed, step.memory.matrix(turned_weight.T), vectors)
        pixel.linear(normed, step.memory.matrix(value_weight.T), step.here(values))
        query = pixel.zeros(width)
        pixel.rotate(vectors[..., :width], cos_sin, query, self.heads)
        pixel.rotate(vectors[..., width:], cos_sin, step.here(keys), self.kv_heads)
        seen = pixel.zeros(width)
        pixel.attend(query, keys.memory, values.memory, seen, "known", self.heads, self.kv_heads)
        pixel.linear(seen, step.memory.matrix(self.merge.weight.T), out, add=out)


class SwiGLU(nn.Module):
    """``W2 (silu(W1 x) * W3 x)`` (Shazeer 2020, eq. 6).

    Args:
        width: length of the vectors.
        hidden: length of the gated vectors in between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        # W1 and W3, concatenated, so that one product computes both.
        self.widen = nn.Linear(width, 2 * hidden, bias=False)
        self.narrow = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., width]`` to the same shape."""
        gate, value = self.widen(x).chunk(2, dim=-1)
        return self.narrow(F.silu(gate) * value)

    def write(self, step: PixelStep, normed: Operand, out: Operand) -> None:
        """Append the layer for ``normed [batch, width]``, and add the result to ``out``.

        ``out`` is ``[batch, width]``.
        """
        hidden = step.pixel.zeros(self.narrow.in_features)
        widen = step.memory.matrix(self.widen.weight.T)
        narrow = step.memory.matrix(self.narrow.weight.T)
        step.pixel.linear(normed, widen, hidden, activation="swiglu")
        step.pixel.linear(hidden, narrow, out, add=out)

"""A codebook whose gradients are rotated on their way back to the vectors."""

from __future__ import annotations

import torch
from torch.autograd.function import BackwardCFunction, FunctionCtx

from tessella.tokenizers.quantizers.ema import EMAVectorQuantizer

FARTHEST = 1000.0
"""Ratio of the norms of a vector and its code beyond which gradients pass straight through."""


class RotationQuantizer(EMAVectorQuantizer):
    """``vq-ema`` with the gradient of the rotation trick (Fifty et al. 2024).

    The code e of a vector z is written as ``e = s R z``, where R rotates z to the direction of e in
    the plane of both, and ``s = |e| / |z|``. Both are treated as constants, so the gradient of z is
    ``s R^T`` times that of e: vectors of the same code are pushed apart or together depending on
    where they are around it, whereas straight-through moves them all alike.

    Values, codebook, losses and arguments are those of :class:`EMAVectorQuantizer`; only the
    gradient differs. It passes straight through if R or s have no useful value: if the norms of z
    and e differ by more than a factor of 1000 (one of them is near 0), or if they point in opposite
    directions.

    >>> quantizer = RotationQuantizer(dim=4, codebook_size=16).eval()
    >>> out = quantizer(torch.ones(2, 8, 8, 4))
    >>> torch.equal(out.z, quantizer.decode(out.symbols))
    True
    """

    name = "rotation"

    def _with_gradient(self, z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return rotated(z, codes)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(z, codes)
        return codes.clone()

    @staticmethod
    def backward(ctx: BackwardCFunction, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradients[0]
        # torch declares a tuple of one tensor; it holds as many as were saved.
        saved: tuple[torch.Tensor, ...] = ctx.saved_tensors
        z, codes = saved
        length = z.norm(dim=-1, keepdim=True)
        code_length = codes.norm(dim=-1, keepdim=True)
        unit = z / length
        code_unit = codes / code_length
        # m, the unit vector halfway between the directions of z and e.
        middle = unit + code_unit
        breadth = middle.norm(dim=-1, keepdim=True)
        middle = middle / breadth
        # R = I - 2 m m^T + 2 e^ z^^T, of which the transpose is wanted.
        turned = (
            gradient - 2 * middle * _dot(middle, gradient) + 2 * unit * _dot(code_unit, gradient)
        )
        ratio = code_length / length
        # Comparisons with NaN are false, so 0/0 passes straight through too.
        usable = (ratio <= FARTHEST) & (ratio >= 1 / FARTHEST) & (breadth >= 1 / FARTHEST)
        return torch.where(usable, ratio * turned, gradient), None


def rotated(z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The exact codes, with a gradient that is rotated before it reaches ``z``.

    It is the transpose of the rotation and scaling that take ``z [..., dim]`` to its code.
    """
    return _Rotation.apply(z, codes)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(dim=-1, keepdim=True)

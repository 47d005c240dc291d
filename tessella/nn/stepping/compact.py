"""Compact storage of weights that are few bits wide, for the compiled kernel.

At a small batch a large model spends its step on reading weights from memory. Where all weights of
an output are small integers times one scale, or where all weights are bfloat16 numbers, the kernel
reads them as ``int8`` or as ``bfloat16`` and makes them ``float32`` in registers. Results are those
of the same weights in ``float32``, to rounding. So nobody has to say how a model's weights are to
be stored: it follows from their values, which :func:`tessella.quantize_weights` makes so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

STORAGES = ("whole", "bfloat16", "int8")
"""Ways to store weights, in the order of the kernel's numbers."""

LARGEST = 127
"""The largest absolute value of an integer weight."""

COMPACT_WEIGHTS = 1 << 14
"""Weights from which on a compact form pays: fewer stay in the nearest caches whatever they are."""

TOLERANCE = 2.0**-22
"""Relative difference between a weight and an integer times a scale that is but their rounding."""

SAMPLED_WEIGHTS = 64
"""Weights that are looked at first; they tell ordinary ones apart."""


@dataclass(frozen=True)
class CompactWeights:
    """Weights ``[inputs, outputs]`` in a compact form."""

    storage: str
    """A name in :data:`STORAGES`."""
    values: torch.Tensor
    """``int8``, or the upper halves of float32 numbers as ``int16``: ``[inputs, outputs]``."""
    scales: torch.Tensor | None
    """What the values of each output are multiplied by: ``float32 [1, outputs]``."""


def compacted(weight: torch.Tensor) -> CompactWeights | None:
    """The compact form of weights, if they have one and if it pays.

    Args:
        weight: ``[inputs, outputs]``.
    """
    if weight.dtype != torch.float32 or weight.numel() < COMPACT_WEIGHTS:
        return None
    if weight.device.type != "cpu":
        return None
    return _as_int8(weight) or _as_bfloat16(weight)


def _as_int8(weight: torch.Tensor) -> CompactWeights | None:
    largest = weight.abs().amax(dim=0)
    # The search below takes long where there is nothing to find, which is so for most models.
    output = int(largest.argmax())
    if not _are_multiples(weight[:SAMPLED_WEIGHTS, output], largest[output]):
        return None
    scales = _scales(weight, largest)
    if scales is None:
        return None
    integers = (weight / scales).round_().to(torch.int8)
    return CompactWeights("int8", integers, scales[None])


def _are_multiples(weights: torch.Tensor, largest: torch.Tensor) -> bool:
    """Whether all ``weights [n]`` are multiples of ``largest / i`` for some integer ``i``."""
    if not bool(largest > 0):
        return True
    candidates = largest / torch.arange(1, LARGEST + 1)[:, None]
    return bool(_fit(weights, candidates).all(dim=1).any())


def _fit(weights: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Whether weights are multiples of scales to within rounding, of their common shape."""
    error = ((weights / scales).round_() * scales).sub_(weights).abs_()
    return error <= TOLERANCE * weights.abs()


def _scales(weight: torch.Tensor, largest: torch.Tensor) -> torch.Tensor | None:
    """A scale for each output of which its weights are multiples, ``[outputs]``; None without.

    Args:
        weight: ``[inputs, outputs]``.
        largest: the largest absolute weight of each output, ``[outputs]``.
    """
    # An output without weights has any scale.
    whole = torch.where(largest > 0, largest, 1)
    scales = torch.empty_like(whole)
    left = torch.arange(len(largest), device=weight.device)
    # Which integer stands for the largest weight is not known, but it is mostly the largest there
    # is. Part of an output's weights may lack that one.
    for integer in range(LARGEST, 0, -1):
        candidates = whole[left] / integer
        fits = _fit(weight[:, left], candidates).all(dim=0)
        scales[left[fits]] = candidates[fits]
        left = left[~fits]
        if not len(left):
            return scales
    return None


def _as_bfloat16(weight: torch.Tensor) -> CompactWeights | None:
    weight = weight.contiguous()
    if bool((weight.view(torch.int32) & 0xFFFF).any()):
        return None
    # The upper half of a float32 number is the bfloat16 number.
    return CompactWeights("bfloat16", weight.bfloat16().view(torch.int16), None)

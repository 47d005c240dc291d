"""What quantizers share: vectors in one matrix, first codes, fresh codes for dead ones, and
gradients that pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tessella.distributed import joined, joined_rows, processes
from tessella.errors import ConfigError, InputError
from tessella.tokenizers.quantizers.search import kmeans


def check_sizes(dim: int, codebook_size: int, beta: float = 0.0) -> None:
    """Refuse sizes and weights out of range.

    Raises:
        ConfigError: when ``dim`` is below 1, ``codebook_size`` below 2, or ``beta`` below 0.
    """
    if dim < 1 or codebook_size < 2:
        raise ConfigError(
            f"dim must be at least 1 and codebook_size at least 2, got {dim} and {codebook_size}"
        )
    if not beta >= 0:
        raise ConfigError(f"beta must be at least 0, got {beta}")


def check_averages(decay: float, revive: float) -> None:
    """Refuse a decay or a share that revives out of range.

    Raises:
        ConfigError: when one is outside [0, 1).
    """
    if not (0 <= decay < 1 and 0 <= revive < 1):
        raise ConfigError(f"decay and revive must be in [0, 1), got {decay} and {revive}")


def flat(z: torch.Tensor, dim: int) -> torch.Tensor:
    """Vectors ``[..., dim]`` as a matrix ``[n, dim]``.

    Raises:
        InputError: when vectors have another length.
    """
    if z.dim() == 0 or z.shape[-1] != dim:
        raise InputError(f"vectors must have shape [..., {dim}], got {list(z.shape)}")
    return z.reshape(-1, dim)


def plain(z: torch.Tensor) -> torch.autocast:
    """A context in which operations keep their types, also under autocast."""
    return torch.autocast(z.device.type, enabled=False)


def projections(dim: int, inner: int) -> tuple[nn.Module, nn.Module]:
    """Linear maps from ``dim`` to ``inner`` and back; nothing where the two are equal."""
    if dim == inner:
        return nn.Identity(), nn.Identity()
    return nn.Linear(dim, inner), nn.Linear(inner, dim)


def generator_at(seed: torch.Tensor, step: int) -> torch.Generator:
    """The generator of a quantizer's draws in one step: training repeats, and resumes, whatever
    else is drawn."""
    return torch.Generator().manual_seed((int(seed) * 1_000_003 + step) % 2**63)


def first_codes(
    vectors: torch.Tensor, codes: int, generator: torch.Generator
) -> torch.Tensor | None:
    """Codes ``[codes, dim]`` where the joined batch has its clusters; none where it is empty or not
    finite."""
    start, total = joined(vectors)
    rows = joined_rows(vectors, torch.randperm(total, generator=generator)[: 16 * codes], start)
    if not len(rows) or not bool(rows.isfinite().all()):
        return None
    codebook = kmeans(rows, codes, generator)
    if processes() > 1:
        dist.broadcast(codebook, 0)
    return codebook


def fresh_codes(vectors: torch.Tensor, codes: int, generator: torch.Generator) -> torch.Tensor:
    """Random vectors of the joined batch, as new places for dead codes: ``[codes, dim]``."""
    start, total = joined(vectors)
    return joined_rows(vectors, torch.randint(total, (codes,), generator=generator), start)


def count(running: torch.Tensor, symbols: torch.Tensor, decay: float = 0.98) -> None:
    """Move running counts ``[codes]`` towards those of the joined batch, in place; the first batch
    counts in full."""
    counts = torch.bincount(symbols.flatten(), minlength=len(running)).to(running.dtype)
    if processes() > 1:
        dist.all_reduce(counts)
    running.lerp_(counts, torch.where(running.any(), running.new_tensor(1 - decay), 1.0))


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return codes.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def straight_through(z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The codes exactly, in the type of ``z``; their gradient is that of ``z`` (Bengio et al.
    2013)."""
    return _StraightThrough.apply(z, codes)


class _MeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(z, codes)
        size = 1 << 17 if z.device.type == "cpu" else max(1, z.numel())
        total, room = z.new_zeros(()), z.new_empty(min(size, z.numel()))
        for a, b in zip(z.flatten().split(size), codes.flatten().split(size), strict=True):
            difference = torch.sub(a, b, out=room[: len(a)])
            total += difference.dot(difference)
        return total / z.numel()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        z, codes = ctx.saved_tensors
        return (z - codes).mul_(gradients[0] * (2 / max(1, z.numel()))), None


def mean_square(z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of vectors and codes, which get no gradient; on a CPU nothing of
    their size is made."""
    return _MeanSquare.apply(z, codes)

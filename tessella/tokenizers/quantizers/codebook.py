"""Functions that quantizers share: checks, placing and reviving codes, gradients that pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from tessella.distributed import JoinedBatch, joined_rows, process_count, sum_over_processes
from tessella.errors import ConfigError, InputError
from tessella.tokenizers.construction import check_count
from tessella.tokenizers.quantizers.search import kmeans

MAX_CODES = 2**24
"""Codes of the largest codebook that is built."""

MAX_DIMENSIONS = 2**16
"""Length of the longest code that is built."""

MAX_VALUES = 2**28
"""Numbers in the largest codebook that is built: 1 GiB in float32."""

VECTORS_PER_CODE = 16
"""Vectors for each code from which k-means places the codes."""

MAX_SEEDED = 2**24
"""Vectors that k-means can choose among: the limit of ``torch.multinomial``."""

PIECE = 2**17
"""Numbers whose squared differences are summed at a time on a CPU."""


def check_sizes(dim: int, codebook_size: int, beta: float = 0.0) -> None:
    """Refuse sizes and weights that are out of range, before memory is taken.

    Raises:
        ConfigError: when ``dim`` is not in 1..65536, ``codebook_size`` not in 2..2^24, the two
            together need more than 1 GiB, or ``beta`` is below 0.
    """
    check_count("dim", dim, 1, MAX_DIMENSIONS)
    check_count("codebook_size", codebook_size, 2, MAX_CODES)
    if dim * codebook_size > MAX_VALUES:
        raise ConfigError(
            f"codebook_size times dim must be at most {MAX_VALUES:,}, got {codebook_size:,} codes "
            f"of {dim:,} numbers; take fewer or shorter codes"
        )
    # Written so that NaN is refused too.
    if not beta >= 0:
        raise ConfigError(f"beta must be at least 0, got {beta}")


def check_averages(decay: float, revive: float) -> None:
    """Refuse a decay or a revival threshold that is out of range.

    Raises:
        ConfigError: when one is outside [0, 1).
    """
    if not (0 <= decay < 1 and 0 <= revive < 1):
        raise ConfigError(f"decay and revive must be in [0, 1), got {decay} and {revive}")


def as_matrix(z: torch.Tensor, dim: int) -> torch.Tensor:
    """Vectors ``[..., dim]`` as a matrix ``[n, dim]``.

    Raises:
        InputError: when vectors have another length.
    """
    if z.dim() == 0 or z.shape[-1] != dim:
        raise InputError(f"vectors must have shape [..., {dim}], got {list(z.shape)}")
    return z.reshape(-1, dim)


def without_autocast(z: torch.Tensor) -> torch.autocast:
    """A context in which operations on the device of ``z`` keep their types, whatever surrounds
    it."""
    return torch.autocast(z.device.type, enabled=False)


def projections(dim: int, inner: int) -> tuple[nn.Module, nn.Module]:
    """Linear maps from ``dim`` to ``inner`` and back; nothing where the two are equal."""
    if dim == inner:
        return nn.Identity(), nn.Identity()
    return nn.Linear(dim, inner), nn.Linear(inner, dim)


def generator_at(seed: torch.Tensor, step: int) -> torch.Generator:
    """The generator of a quantizer's random choices in one step.

    It depends on the seed and the step alone, so training repeats and resumes whatever else is
    drawn.
    """
    return torch.Generator().manual_seed((int(seed) * 1_000_003 + step) % 2**63)


def codes_at_clusters(
    vectors: torch.Tensor, batch: JoinedBatch, codes: int, generator: torch.Generator
) -> torch.Tensor:
    """Codes at the clusters of the joined batch, which must have something to teach.

    Returns:
        ``[codes, dim]``, equal in all processes.
    """
    # A sample is enough to find clusters, and bounds the time that a large first batch takes.
    most = min(VECTORS_PER_CODE * codes, MAX_SEEDED)
    # All processes draw the same places, and fetch the vectors from those that have them.
    chosen = torch.randperm(batch.total, generator=generator)[:most]
    codebook = kmeans(joined_rows(vectors, chosen, batch.start), codes, generator)
    if process_count() > 1:
        # Sums are rounded differently on different machines; the first process's codes count.
        dist.broadcast(codebook, 0)
    return codebook


def random_vectors(
    vectors: torch.Tensor, batch: JoinedBatch, number: int, generator: torch.Generator
) -> torch.Tensor:
    """Random vectors of the joined batch, as new places for dead codes: ``[number, dim]``."""
    chosen = torch.randint(batch.total, (number,), generator=generator)
    return joined_rows(vectors, chosen, batch.start)


def update_counts(
    running: torch.Tensor, symbols: torch.Tensor, batch: JoinedBatch, decay: float = 0.98
) -> None:
    """Move running counts ``[codes]`` towards those of the joined batch, in place.

    The first batch counts in full; one that teaches nothing does not count.
    """
    # Every process must take part in the sum, whatever it will do with it.
    counts = torch.bincount(symbols.flatten(), minlength=len(running)).to(running.dtype)
    sum_over_processes(counts)
    if not batch.usable:
        return
    weight = torch.where(running.any(), running.new_tensor(1 - decay), 1.0)
    running.lerp_(counts, weight)


def flag_not_finite(losses: dict[str, torch.Tensor], batch: JoinedBatch) -> dict[str, torch.Tensor]:
    """Losses that are not a number where the joined batch is not finite.

    The part of this process may be fine. All processes must notice, or some would go on alone.
    """
    if batch.finite:
        return losses
    return {name: loss * torch.nan for name, loss in losses.items()}


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return codes.to(z.dtype)  # [..., dim]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def straight_through(z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The codes exactly, in the type of ``z``; their gradient goes to ``z`` unchanged.

    Bengio et al. (2013). Written as ``z + (codes - z).detach()`` the sum would round the codes.
    """
    return _StraightThrough.apply(z, codes)


class _MeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(z, codes)
        size = max(1, z.numel())
        if z.device.type == "cpu":
            # Differences of a piece stay in the cache, and none of the size of z is made.
            size = min(size, PIECE)
        buffer = z.new_empty(min(size, z.numel()))
        total = z.new_zeros(())
        for a, b in zip(z.flatten().split(size), codes.flatten().split(size), strict=True):
            difference = torch.sub(a, b, out=buffer[: len(a)])
            total += difference.dot(difference)  # |a - b|^2
        return total / max(1, z.numel())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        z, codes = ctx.saved_tensors
        # d mean((z - e)^2) / dz = 2 (z - e) / n
        return (z - codes).mul_(gradients[0] * (2 / max(1, z.numel()))), None


def mean_square(z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of vectors and codes; only the vectors get a gradient.

    It is 0 if there are no vectors. On a CPU no tensor of their size is made.
    """
    return _MeanSquare.apply(z, codes)


def mean_square_of_both(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared difference with gradients to both; 0 if there are no values."""
    if a.numel() == 0:
        return (a - b).sum()
    return F.mse_loss(a, b)

"""Functions that quantizers share: checks, initial and revived codes, gradient estimators."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import BackwardCFunction, FunctionCtx

from tessella.distributed import JoinedBatch, joined_rows, process_count, sum_over_processes
from tessella.errors import ConfigError, InputError
from tessella.tokenizers.construction import check_count
from tessella.tokenizers.quantizers.search import kmeans

MAX_CODES = 2**24
"""Most codes that a codebook may have."""

MAX_DIMENSIONS = 2**16
"""Most components that a code may have."""

MAX_VALUES = 2**28
"""Most numbers that a codebook may hold: 1 GiB in float32."""

VECTORS_PER_CODE = 16
"""Vectors per code that k-means uses to find initial codes."""

MAX_SEEDED = 2**24
"""Most vectors that k-means can choose from: the limit of ``torch.multinomial``."""

PIECE = 2**17
"""Number of squared differences that are summed at a time on a CPU."""


def check_sizes(dim: int, codebook_size: int, beta: float = 0.0) -> None:
    """Refuse sizes and weights that are out of range, before memory is allocated.

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
    """A context without autocast on the device of ``z``."""
    return torch.autocast(z.device.type, enabled=False)


def projections(dim: int, inner: int) -> tuple[nn.Module, nn.Module]:
    """Linear maps from ``dim`` to ``inner`` and back; identities if the two are equal."""
    if dim == inner:
        return nn.Identity(), nn.Identity()
    return nn.Linear(dim, inner), nn.Linear(inner, dim)


def generator_at(seed: torch.Tensor, step: int) -> torch.Generator:
    """The random generator of a quantizer for one training step.

    It only depends on the seed and the step, so that training is reproducible and can be resumed,
    whatever else draws random numbers.
    """
    return torch.Generator().manual_seed((int(seed) * 1_000_003 + step) % 2**63)


def codes_at_clusters(
    vectors: torch.Tensor, batch: JoinedBatch, codes: int, generator: torch.Generator
) -> torch.Tensor:
    """Initial codes at the clusters of the joined batch, which must be usable.

    Returns:
        ``[codes, dim]``, equal in all processes.
    """
    # A sample is enough to find clusters, and bounds the time for a large first batch.
    most = min(VECTORS_PER_CODE * codes, MAX_SEEDED)
    # All processes draw the same indices, and fetch the vectors from those that hold them.
    chosen = torch.randperm(batch.total, generator=generator)[:most]
    codebook = kmeans(joined_rows(vectors, chosen, batch.start), codes, generator)
    if process_count() > 1:
        # Sums are rounded differently on different machines, so all take the first process's codes.
        dist.broadcast(codebook, 0)
    return codebook


def random_vectors(
    vectors: torch.Tensor, batch: JoinedBatch, number: int, generator: torch.Generator
) -> torch.Tensor:
    """Random vectors of the joined batch, as new values for dead codes: ``[number, dim]``."""
    chosen = torch.randint(batch.total, (number,), generator=generator)
    return joined_rows(vectors, chosen, batch.start)


def update_counts(
    running: torch.Tensor, symbols: torch.Tensor, batch: JoinedBatch, decay: float = 0.98
) -> None:
    """Move running counts ``[codes]`` towards those of the joined batch, in place.

    The first batch has weight 1; a batch that is not usable has weight 0.
    """
    # Every process must take part in the sum, even if it does not use the result.
    counts = torch.bincount(symbols.flatten(), minlength=len(running)).to(running.dtype)
    sum_over_processes(counts)
    if not batch.usable:
        return
    weight = torch.where(running.any(), running.new_tensor(1 - decay), 1.0)
    running.lerp_(counts, weight)


def flag_not_finite(losses: dict[str, torch.Tensor], batch: JoinedBatch) -> dict[str, torch.Tensor]:
    """Make the losses NaN if the joined batch is not finite.

    The part of this process may be fine, but all processes must notice: otherwise some would
    continue alone.
    """
    if batch.finite:
        return losses
    return {name: loss * torch.nan for name, loss in losses.items()}


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return codes.to(z.dtype)  # [..., dim]

    @staticmethod
    def backward(ctx: object, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def straight_through(z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The exact codes, in the type of ``z``; their gradient goes to ``z`` unchanged.

    This is the straight-through estimator of Bengio et al. (2013). The usual formula ``z + (codes -
    z).detach()`` would round the codes.
    """
    return _StraightThrough.apply(z, codes)


class _MeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(z, codes)
        size = max(1, z.numel())
        if z.device.type == "cpu":
            # The differences of a piece stay in the cache, and no tensor of the size of z is
            # allocated.
            size = min(size, PIECE)
        buffer = z.new_empty(min(size, z.numel()))
        total = z.new_zeros(())
        for a, b in zip(z.flatten().split(size), codes.flatten().split(size), strict=True):
            difference = torch.sub(a, b, out=buffer[: len(a)])
            total += difference.dot(difference)  # |a - b|^2
        return total / max(1, z.numel())

    @staticmethod
    def backward(ctx: BackwardCFunction, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        # torch declares a tuple of one tensor; it holds as many as were saved.
        saved: tuple[torch.Tensor, ...] = ctx.saved_tensors
        z, codes = saved
        # d mean((z - e)^2) / dz = 2 (z - e) / n
        return (z - codes).mul_(gradients[0] * (2 / max(1, z.numel()))), None


def mean_square(z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of vectors and codes; only the vectors get a gradient.

    It is 0 if there are no vectors. On a CPU, no tensor of their size is allocated.
    """
    return _MeanSquare.apply(z, codes)


def mean_square_of_both(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared difference with gradients to both; 0 if there are no values."""
    if a.numel() == 0:
        return (a - b).sum()
    return F.mse_loss(a, b)

"""Lookup-free quantization: signs instead of a codebook."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from tessella.distributed import JoinedBatch, join_batch, process_count, sum_over_processes
from tessella.errors import ConfigError
from tessella.tokenizers.construction import check_count
from tessella.tokenizers.quantizers.codebook import (
    MAX_CODES,
    MAX_DIMENSIONS,
    as_matrix,
    flag_not_finite,
    mean_square_of_both,
    projections,
    straight_through,
    update_counts,
    without_autocast,
)
from tessella.tokenizers.quantizers.quantizer import Quantizer, QuantizerOutput, Remedies
from tessella.tokenizers.quantizers.usage import perplexity, used_share

GROUP = 12
"""Most bits whose joint distribution is computed."""


class LFQ(Quantizer):
    """Lookup-free quantization: the signs of ``log2(codebook_size)`` numbers.

    Yu et al. (2023), section 3.1. The code of z is ``sign(z)``, with -1 for 0, and its symbol has
    bit i set where ``z_i > 0``. A vector gets the gradient of its code (straight-through) and is
    pulled towards it by ``beta * mean((z - e)^2)``. The loss

        ``entropy * (mean over vectors of H(q(z)) - H(mean over vectors of q(z)))``

    in nats makes the choice of codes clear and their usage even. ``q(z)`` is the distribution over
    codes proportional to ``exp(-|z - e|^2 / temperature)``. It is a product over bits, with
    probability ``sigmoid(4 z_i / temperature)`` of a set bit, so its entropy is the exact sum over
    bits. The mean over vectors is not a product: its entropy is exact up to 12 bits; beyond that it
    is the sum over groups of at most 12 bits, which is an upper bound. No matrix of vectors by
    codes is formed. Under ``torch.distributed``, the mean is over all processes.

    If ``dim`` is not the number of bits, a linear layer maps vectors to it, and another maps codes
    back; encoding a decoded symbol need not return it then.

    Args:
        dim: number of components of a vector.
        codebook_size: number of codes, a power of two up to 2^24.
        beta: weight of the commitment loss. Distances between codes are fixed here, so a weight
            that suits a learned codebook would keep vectors at their initial signs.
        entropy: weight of the entropy terms, which are several nats, where squared errors are a few
            hundredths.
        temperature: temperature of ``q``: the squared distance that changes the odds of a code by a
            factor of e. Near 0, only vectors close to a change of sign get a gradient from the
            entropy terms, and codes stay unused.

    Raises:
        ConfigError: when an argument is out of range.

    >>> quantizer = LFQ(dim=3, codebook_size=8)
    >>> quantizer.encode(torch.tensor([[0.5, -2.0, 0.1]])), quantizer.decode(torch.tensor([[5]]))
    (tensor([[5]]), tensor([[ 1., -1.,  1.]]))
    """

    name = "lfq"
    depth = 1
    learns_codes = False
    remedies = Remedies(
        collapse="train at a lower learning rate and a larger entropy",
        dead_codes="raise entropy, or {fewer}",
    )

    def __init__(
        self,
        dim: int = 64,
        codebook_size: int = 512,
        beta: float = 0.02,
        entropy: float = 0.02,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_count("dim", dim, 1, MAX_DIMENSIONS)
        check_count("codebook_size", codebook_size, 2, MAX_CODES)
        if not beta >= 0:
            raise ConfigError(f"beta must be at least 0, got {beta}")
        self.bits = codebook_size.bit_length() - 1
        if codebook_size != 2**self.bits:
            raise ConfigError(
                f"codebook_size of lfq must be a power of two up to {MAX_CODES}, "
                f"got {codebook_size}; take {2**self.bits} or {2 ** (self.bits + 1)}"
            )
        if not (entropy >= 0 and temperature > 0):
            raise ConfigError(
                "entropy must be at least 0 and temperature above 0, "
                f"got {entropy} and {temperature}"
            )
        self.dim = dim
        self.levels = codebook_size
        self.beta = beta
        self.entropy = entropy
        self.temperature = temperature
        self.narrow, self.widen = projections(dim, self.bits)
        self.counts: torch.Tensor
        self.place_values: torch.Tensor
        self.register_buffer("counts", torch.zeros(codebook_size))
        # Value of each bit in a symbol.
        self.register_buffer("place_values", 2 ** torch.arange(self.bits), persistent=False)

    @classmethod
    def examples(cls) -> Mapping[str, Mapping[str, object]]:
        return {"": {"codebook_size": 64}, "short": {"codebook_size": 16}}

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        with without_autocast(z):
            inner = self._inner(z)  # [..., bits]
            vectors = inner.view(-1, self.bits)  # [n, bits]
            batch: JoinedBatch | None = None
            if self.training:
                given = as_matrix(z.detach().to(self.counts.dtype), self.dim)
                batch = join_batch(vectors.detach(), given)
            bits = (inner.detach() > 0).long()  # [..., bits], 0 or 1
            signs = self._signs(bits)
            symbols = (bits * self.place_values).sum(dim=-1, keepdim=True)
            # |z + 1|^2 - |z - 1|^2 = 4 z is the difference of squared distances of a bit.
            logits = 4 / self.temperature * vectors
            spread = mean_entropy(logits) - entropy_of_mean(logits, batch)
            losses = {
                "commitment": self.beta * mean_square_of_both(inner, signs),
                "entropy": self.entropy * spread,
            }
            quantized = self.widen(straight_through(inner, signs)).to(z.dtype)
            if batch is not None:
                losses = flag_not_finite(losses, batch)
                with torch.no_grad():
                    update_counts(self.counts, symbols, batch)
        stats = {"perplexity": perplexity(self.counts), "usage": used_share(self.counts)}
        return QuantizerOutput(symbols, quantized, losses, stats)

    @torch.no_grad()
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        with without_autocast(z):
            return ((self._inner(z) > 0) * self.place_values).sum(dim=-1, keepdim=True)

    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        with without_autocast(symbols):
            return self.widen(self._signs(symbols // self.place_values % 2))

    def _inner(self, z: torch.Tensor) -> torch.Tensor:
        """Vectors ``[..., dim]`` projected to ``[..., bits]``."""
        vectors = as_matrix(z.to(self.counts.dtype), self.dim)
        return self.narrow(vectors).view(*z.shape[:-1], self.bits)

    def _signs(self, bits: torch.Tensor) -> torch.Tensor:
        """-1 for a bit of 0, and 1 for a bit of 1."""
        return (2 * bits - 1).to(self.counts.dtype)


def mean_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of independent bits, in nats: summed over bits, mean over vectors.

    Args:
        logits: log-odds that a bit is set, ``[n, bits]``. If there are no vectors, the mean is 0.
    """
    # H = softplus(l) - l sigmoid(l), which is stable for logits of any size.
    entropies = (F.softplus(logits) - logits * logits.sigmoid()).sum(dim=1)
    return entropies.sum() if len(entropies) == 0 else entropies.mean()


def entropy_of_mean(logits: torch.Tensor, batch: JoinedBatch | None = None) -> torch.Tensor:
    """Entropy of the distribution over bits, averaged over vectors first, in nats.

    It is summed over groups of at most ``GROUP`` bits. The mean joint distribution of a group is
    the product of two matrices, for the first and for the second half of its bits.

    Args:
        logits: log-odds that a bit is set, ``[n, bits]``.
        batch: the joined batch to average over; None for these vectors only.
    """
    vectors = len(logits) if batch is None else batch.total
    total = logits.new_zeros(())
    if vectors == 0:
        return total + logits.sum()  # 0, with a gradient of 0
    for group in logits.tensor_split(-(-logits.shape[1] // GROUP), dim=1):
        first_half, second_half = group.tensor_split(2, dim=1)
        first = _joint(first_half)  # [n, 2^a]
        second = _joint(second_half)  # [n, 2^b]
        mean = first.t() @ second / vectors  # [2^a, 2^b]
        if batch is not None and process_count() > 1:
            mean = _over_processes(mean)
        # The gradient of the entropy is infinite at 0, to which small products may underflow.
        total = total + torch.special.entr(mean.clamp_min(torch.finfo(mean.dtype).tiny)).sum()
    return total


def _joint(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities ``[n, 2^bits]`` of all combinations of independent bits."""
    joint = logits.new_ones(len(logits), 1)
    for bit in logits.unbind(dim=1):
        unset = joint * (-bit).sigmoid().unsqueeze(1)
        is_set = joint * bit.sigmoid().unsqueeze(1)
        joint = torch.cat([unset, is_set], dim=1)
    return joint


def _over_processes(part: torch.Tensor) -> torch.Tensor:
    """The sum over processes; only the part of this process gets a gradient.

    The trainer averages gradients over processes. The factor of their number turns that average
    into the gradient of the sum.
    """
    everywhere = sum_over_processes(part.detach().clone())
    scaled = process_count() * part
    return everywhere + (scaled - scaled.detach())

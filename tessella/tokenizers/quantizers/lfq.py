"""Signs instead of a codebook."""

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
"""Most bits whose joint distribution over the batch is computed."""


class LFQ(Quantizer):
    """Lookup-free quantization: the signs of ``log2(codebook_size)`` numbers.

    Yu et al. (2023), section 3.1. The code of z is ``sign(z)``, with -1 for 0, and its symbol has
    bit i set where ``z_i > 0``. Vectors get the gradient of their code (straight-through), are
    pulled towards it by ``beta * mean((z - e)^2)``, and by

        ``entropy * (mean over vectors of H(q(z)) - H(mean over vectors of q(z)))``

    in nats choose their code clearly while all codes are used alike. ``q(z)`` is the distribution
    over codes that is proportional to ``exp(-|z - e|^2 / temperature)``. It is a product over bits,
    with probability ``sigmoid(4 z_i / temperature)`` of a set bit, so its entropy is the exact sum
    over bits. The mean over vectors is no product: its entropy is exact up to 12 bits; of more it
    is taken as the sum over groups of at most 12, which bounds it from above. No matrix of vectors
    by codes is formed. Under ``torch.distributed`` the mean is that over all processes.

    A linear layer maps vectors of another length than the number of bits to it, and another maps
    codes back; then encoding a decoded symbol need not give it again.

    Args:
        dim: length of a vector.
        codebook_size: number of codes, a power of two up to 2^24.
        beta: weight of the commitment loss. Codes lie at fixed distances here: a weight that suits
            a learned codebook would hold vectors at the signs they began with.
        entropy: weight of the entropy terms, which count in nats beside errors of some hundredths.
        temperature: of ``q``: the squared distance that changes the odds of a code e-fold. Near 0
            only vectors close to a change of sign get a gradient from the entropy terms, and codes
            stay unused.

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
        vectors = as_matrix(z.to(self.counts.dtype), self.dim)
        return self.narrow(vectors).view(*z.shape[:-1], self.bits)

    def _signs(self, bits: torch.Tensor) -> torch.Tensor:
        return (2 * bits - 1).to(self.counts.dtype)


def mean_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of independent bits, in nats: summed over bits, mean over vectors.

    Args:
        logits: of a set bit, ``[n, bits]``. The mean over no vectors is 0.
    """
    # H = softplus(l) - l sigmoid(l), which is stable for logits of any size.
    entropies = (F.softplus(logits) - logits * logits.sigmoid()).sum(dim=1)
    return entropies.sum() if len(entropies) == 0 else entropies.mean()


def entropy_of_mean(logits: torch.Tensor, batch: JoinedBatch | None = None) -> torch.Tensor:
    """Entropy of the mean over vectors of the distributions of their bits, in nats.

    It is summed over groups of ``GROUP`` bits at most. The mean of the joint distribution of a
    group is a product of matrices, of its first and its second half of bits.

    Args:
        logits: of a set bit, ``[n, bits]``.
        batch: the joined batch whose mean is meant; None for these vectors alone.
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
        # The entropy's gradient is infinite at 0, which a product of small numbers may reach.
        total = total + torch.special.entr(mean.clamp_min(torch.finfo(mean.dtype).tiny)).sum()
    return total


def _joint(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities ``[n, 2^bits]`` of all values of independent bits."""
    joint = logits.new_ones(len(logits), 1)
    for bit in logits.unbind(dim=1):
        unset = joint * (-bit).sigmoid().unsqueeze(1)
        is_set = joint * bit.sigmoid().unsqueeze(1)
        joint = torch.cat([unset, is_set], dim=1)
    return joint


def _over_processes(part: torch.Tensor) -> torch.Tensor:
    """The sum over processes, with a gradient to this process's part alone.

    The trainer averages gradients over processes. Multiplied by their number, the average is the
    gradient of the sum.
    """
    everywhere = sum_over_processes(part.detach().clone())
    scaled = process_count() * part
    return everywhere + (scaled - scaled.detach())

"""Signs instead of a codebook."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F

from tessella.distributed import processes
from tessella.errors import ConfigError
from tessella.tokenizers.quantizers.codebook import (
    check_sizes,
    count,
    flat,
    plain,
    projections,
    straight_through,
)
from tessella.tokenizers.quantizers.quantizer import Quantizer, QuantizerOutput
from tessella.tokenizers.quantizers.usage import perplexity, used_share

GROUP = 12
"""Most bits whose joint distribution over the batch is computed."""


class LFQ(Quantizer):
    """Lookup-free quantization: the signs of ``log2(codebook_size)`` numbers (Yu et al. 2023,
    section 3.1).

    The code of z is ``sign(z)``, with -1 for 0, and its symbol has bit i set where ``z_i > 0``.
    Vectors get the gradient of their code (straight-through), are pulled towards it by
    ``beta * mean((z - e)^2)``, and by

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
        beta: weight of the commitment loss. Codes lie at fixed distances here: a weight as of a
            learnt codebook would hold vectors at the signs they began with.
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

    def __init__(
        self,
        dim: int = 64,
        codebook_size: int = 512,
        beta: float = 0.02,
        entropy: float = 0.02,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_sizes(dim, codebook_size, beta)
        self.bits = codebook_size.bit_length() - 1
        if codebook_size != 2**self.bits or self.bits > 24:
            nearest = f"{2**self.bits} or {2 ** (self.bits + 1)}" if self.bits < 24 else f"{2**24}"
            raise ConfigError(
                f"codebook_size of lfq must be a power of two up to {2**24}, got {codebook_size}; take {nearest}"
            )
        if not (entropy >= 0 and temperature > 0):
            raise ConfigError(
                f"entropy must be at least 0 and temperature above 0, got {entropy} and {temperature}"
            )
        self.dim, self.levels = dim, codebook_size
        self.beta, self.entropy, self.temperature = beta, entropy, temperature
        self.narrow, self.widen = projections(dim, self.bits)
        self.counts: torch.Tensor
        self.places: torch.Tensor
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer("places", 2 ** torch.arange(self.bits), persistent=False)

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        with plain(z):
            inner = self._inner(z)
            digits = (inner.detach() > 0).long()
            signs = self._signs(digits)
            symbols = (digits * self.places).sum(dim=-1, keepdim=True)
            odds = 4 / self.temperature * inner.view(-1, self.bits)
            spread = mean_entropy(odds) - entropy_of_mean(odds, everywhere=self.training)
            losses = {
                "commitment": self.beta * F.mse_loss(inner, signs),
                "entropy": self.entropy * spread,
            }
            passed = self.widen(straight_through(inner, signs)).to(z.dtype)
            if self.training:
                with torch.no_grad():
                    count(self.counts, symbols)
        stats = {"perplexity": perplexity(self.counts), "usage": used_share(self.counts)}
        return QuantizerOutput(symbols, passed, losses, stats)

    @torch.no_grad()
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        with plain(z):
            return ((self._inner(z) > 0) * self.places).sum(dim=-1, keepdim=True)

    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        with plain(symbols):
            return self.widen(self._signs(symbols // self.places % 2))

    def _inner(self, z: torch.Tensor) -> torch.Tensor:
        return self.narrow(flat(z.to(self.counts.dtype), self.dim)).view(*z.shape[:-1], self.bits)

    def _signs(self, digits: torch.Tensor) -> torch.Tensor:
        return (2 * digits - 1).to(self.counts.dtype)


def mean_entropy(odds: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of independent bits with logits ``odds [n, bits]``, summed over bits, mean
    over vectors."""
    return (F.softplus(odds) - odds * odds.sigmoid()).sum(dim=1).mean()


def entropy_of_mean(odds: torch.Tensor, everywhere: bool = True) -> torch.Tensor:
    """Entropy in nats of the mean over vectors of such distributions, summed over groups of
    ``GROUP`` bits at most.

    The mean of the joint distribution of a group is a product of matrices, of its first and its
    second half of bits; with ``everywhere`` it is that over all processes.
    """
    total = odds.new_zeros(())
    for group in odds.tensor_split(-(-odds.shape[1] // GROUP), dim=1):
        first, second = (_joint(half) for half in group.tensor_split(2, dim=1))
        mean = first.t() @ second / len(odds)
        mean = _over_processes(mean) if everywhere else mean
        total = total + torch.special.entr(mean.clamp_min(torch.finfo(mean.dtype).tiny)).sum()
    return total


def _joint(odds: torch.Tensor) -> torch.Tensor:
    """Probabilities ``[n, 2^bits]`` of all values of independent bits."""
    joint = odds.new_ones(len(odds), 1)
    for bit in odds.unbind(dim=1):
        joint = torch.cat(
            [joint * (-bit).sigmoid().unsqueeze(1), joint * bit.sigmoid().unsqueeze(1)], dim=1
        )
    return joint


def _over_processes(mean: torch.Tensor) -> torch.Tensor:
    """The mean over processes, with the gradient of this one: averaged gradients are then those of
    the joined mean."""
    if processes() == 1:
        return mean
    everywhere = mean.detach().clone()
    dist.all_reduce(everywhere)
    return everywhere / processes() + (mean - mean.detach())

"""A codebook that follows its vectors by moving averages."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F

from tessella.errors import ConfigError, InputError
from tessella.tokenizers.quantizers.base import Quantizer, QuantizerOutput
from tessella.tokenizers.quantizers.processes import joined, joined_rows, processes
from tessella.tokenizers.quantizers.search import cluster, kmeans, nearest
from tessella.tokenizers.quantizers.usage import perplexity


class EMAVectorQuantizer(Quantizer):
    """The nearest of K vectors, each a moving average of what was assigned to it (van den Oord et al. 2017, appendix
    A.1).

    With ``n_k`` vectors of summed value ``m_k`` assigned to code k in a batch::

        N_k <- decay N_k + (1 - decay) n_k        M_k <- decay M_k + (1 - decay) m_k        e_k <- M_k / N_k

    where ``N_k`` is Laplace-smoothed in the quotient, so that a code without vectors stays finite. Vectors get the
    gradient of their code (straight-through) and are pulled towards it by ``beta * mean((z - e)^2)``.

    The first training batch places the codes by k-means. Afterwards a code whose ``N_k`` falls below ``revive`` times
    the mean is dead, and starts anew at a random vector of the batch. Both draw from generators of their own, made from
    ``seed`` and the number of steps taken, so that training repeats and resumes; all that is learnt is in buffers.
    Under ``torch.distributed`` statistics, first placement and revival are those of the joined batch, and every process
    holds the same codes. The search is exact in the type of the codebook (float32, or float64 after ``double()``), also
    under autocast; of equally near codes the lowest wins.

    Args:
        dim: length of a vector.
        codebook_size: number of codes K.
        beta: weight of the commitment loss.
        decay: of the moving averages, a step.
        revive: share of the mean count under which a code is dead; 0 switches revival off.
        seed: of first placement and revival.

    Raises:
        ConfigError: when an argument is out of range.

    >>> quantizer = EMAVectorQuantizer(dim=4, codebook_size=16).eval()
    >>> out = quantizer(torch.zeros(2, 8, 8, 4))
    >>> out.symbols.shape, torch.equal(out.z, quantizer.decode(out.symbols))
    (torch.Size([2, 8, 8, 1]), True)
    """

    name = "vq-ema"
    depth = 1

    def __init__(
        self,
        dim: int = 64,
        codebook_size: int = 512,
        beta: float = 0.25,
        decay: float = 0.98,
        revive: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if dim < 1 or codebook_size < 2:
            raise ConfigError(f"dim must be at least 1 and codebook_size at least 2, got {dim} and {codebook_size}")
        if not (beta >= 0 and 0 <= decay < 1 and 0 <= revive < 1):
            raise ConfigError(f"beta must be at least 0, decay and revive in [0, 1); got {beta}, {decay} and {revive}")
        self.dim, self.levels = dim, codebook_size
        self.beta, self.decay, self.revive = beta, decay, revive
        self.codebook: torch.Tensor
        self.counts: torch.Tensor
        self.sums: torch.Tensor
        self.steps: torch.Tensor
        self.seed: torch.Tensor
        self.register_buffer("codebook", torch.randn(codebook_size, dim))
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer("sums", torch.zeros(codebook_size, dim))
        self.register_buffer("steps", torch.tensor(0))  # the codes have been placed once this is above 0
        self.register_buffer("seed", torch.tensor(seed))

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        with torch.autocast(z.device.type, enabled=False):
            wide = z.to(self.codebook.dtype)
            vectors = self._flat(wide.detach())
            step = int(self.steps) if self.training else -1
            if step == 0:
                self._place(vectors)
            symbols, _ = nearest(vectors, self.codebook)
            codes = self.codebook[symbols].view_as(wide)
            losses = {"commitment": self.beta * F.mse_loss(wide, codes)}
            revived = self._learn(vectors, symbols, step) if self.training else self.counts.new_zeros(())
        straight = codes.to(z.dtype) + (z - z.detach())  # the code exactly, with the gradient of z
        stats = {"perplexity": perplexity(self.counts), "revived": revived}
        return QuantizerOutput(symbols.view(*z.shape[:-1], 1), straight, losses, stats)

    @torch.no_grad()
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        with torch.autocast(z.device.type, enabled=False):
            symbols, _ = nearest(self._flat(z.to(self.codebook.dtype)), self.codebook)
        return symbols.view(*z.shape[:-1], 1)

    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        return self.codebook[symbols.squeeze(-1)]

    def _flat(self, z: torch.Tensor) -> torch.Tensor:
        if z.shape[-1] != self.dim:
            raise InputError(f"vectors must have shape [..., {self.dim}], got {list(z.shape)}")
        return z.reshape(-1, self.dim)

    @torch.no_grad()
    def _place(self, vectors: torch.Tensor) -> None:
        """Put the codes where the first batch has its clusters."""
        generator = self._generator(0)
        start, total = joined(vectors)
        chosen = torch.randperm(total, generator=generator)[: 16 * self.levels]
        codebook = kmeans(joined_rows(vectors, chosen, start), self.levels, generator)
        if processes() > 1:
            dist.broadcast(codebook, 0)
        self.codebook.copy_(codebook)

    @torch.no_grad()
    def _learn(self, vectors: torch.Tensor, symbols: torch.Tensor, step: int) -> torch.Tensor:
        """Move the averages and the codes; the number of codes revived."""
        counts, sums = cluster(vectors, symbols, self.levels)
        if processes() > 1:
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        weight = 1 - self.decay if step else 1.0
        self.counts.lerp_(counts, weight)
        self.sums.lerp_(sums, weight)
        dead = self.counts < self.revive * self.counts.mean()
        if bool(dead.any()):
            self._revive(vectors, dead, step)
        self.codebook.copy_(self.sums / _smoothed(self.counts).unsqueeze(1))
        self.steps += 1
        return dead.sum().to(self.counts.dtype)

    def _revive(self, vectors: torch.Tensor, dead: torch.Tensor, step: int) -> None:
        """Start dead codes anew at random vectors of the (joined) batch, with the count of an average code."""
        start, total = joined(vectors)
        chosen = torch.randint(total, (self.levels,), generator=self._generator(step + 1))
        rows, count = joined_rows(vectors, chosen, start), self.counts.mean()
        self.counts.copy_(torch.where(dead, count, self.counts))
        self.sums.copy_(torch.where(dead.unsqueeze(1), rows * count, self.sums))

    def _generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed((int(self.seed) * 1_000_003 + step) % 2**63)


def _smoothed(counts: torch.Tensor, epsilon: float = 1e-5) -> torch.Tensor:
    """Laplace-smoothed counts of the same sum."""
    total = counts.sum()
    return (counts + epsilon) / (total + len(counts) * epsilon) * total

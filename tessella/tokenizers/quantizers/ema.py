"""A codebook that follows its vectors by moving averages."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F

from tessella.distributed import processes
from tessella.tokenizers.quantizers.codebook import (
    check_averages,
    check_sizes,
    first_codes,
    flat,
    fresh_codes,
    generator_at,
    mean_square,
    plain,
    straight_through,
)
from tessella.tokenizers.quantizers.quantizer import Quantizer, QuantizerOutput
from tessella.tokenizers.quantizers.search import cluster, nearest
from tessella.tokenizers.quantizers.usage import perplexity, used_share


class EMAVectorQuantizer(Quantizer):
    """The nearest of K vectors, each a moving average of what was assigned to it (van den Oord et
    al. 2017, appendix A.1).

    With ``n_k`` vectors of summed value ``m_k`` assigned to code k in a batch::

        N_k <- decay N_k + (1 - decay) n_k        M_k <- decay M_k + (1 - decay) m_k        e_k <- M_k / N_k

    where ``N_k`` is Laplace-smoothed in the quotient, so that a code without vectors stays finite.
    Vectors get the gradient of their code (straight-through) and are pulled towards it by
    ``beta * mean((z - e)^2)``.

    The first training batch places the codes by k-means. Afterwards a code whose ``N_k`` falls
    below ``revive`` times the mean is dead, and starts anew at a random vector of the batch. Both
    draw from generators of their own, made from ``seed`` and the number of steps taken, so that
    training repeats and resumes; all that is learnt is in buffers. A batch with a value that is not
    finite teaches nothing, and has a loss that is not finite. Under ``torch.distributed``
    statistics, first placement and revival are those of the joined batch, and every process holds
    the same codes. The search is exact in the type of the codebook (float32, or float64 after
    ``double()``), also under autocast; of equally near codes the lowest wins.

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
        check_sizes(dim, codebook_size, beta)
        check_averages(decay, revive)
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
        self.register_buffer(
            "steps", torch.tensor(0)
        )  # the codes have been placed once this is above 0
        self.register_buffer("seed", torch.tensor(seed))

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        with plain(z):
            wide = z.to(self.codebook.dtype)
            vectors = flat(wide.detach(), self.dim)
            step = int(self.steps) if self.training else -1
            if step == 0:
                self._place(vectors)
            symbols, _ = nearest(vectors, self.codebook)
            codes = F.embedding(symbols, self.codebook).view_as(wide)
            losses = {"commitment": self.beta * mean_square(wide, codes)}
            passed = self._passed(wide, codes).to(z.dtype)
            revived = (
                self._learn(vectors, symbols, step) if self.training else self.counts.new_zeros(())
            )
        stats = {
            "perplexity": perplexity(self.counts),
            "usage": used_share(self.counts),
            "revived": revived,
        }
        return QuantizerOutput(symbols.view(*z.shape[:-1], 1), passed, losses, stats)

    @torch.no_grad()
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        with plain(z):
            symbols, _ = nearest(flat(z.to(self.codebook.dtype), self.dim), self.codebook)
        return symbols.view(*z.shape[:-1], 1)

    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        return F.embedding(symbols.squeeze(-1), self.codebook)

    def _passed(self, z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The codes, with the gradient that vectors get from them."""
        return straight_through(z, codes)

    @torch.no_grad()
    def _place(self, vectors: torch.Tensor) -> None:
        """Put the codes where the first batch has its clusters."""
        codes = first_codes(vectors, self.levels, generator_at(self.seed, 0))
        if codes is not None:
            self.codebook.copy_(codes)

    @torch.no_grad()
    def _learn(self, vectors: torch.Tensor, symbols: torch.Tensor, step: int) -> torch.Tensor:
        """Move the averages and the codes; the number of codes revived."""
        counts, sums = cluster(vectors, symbols, self.levels)
        if processes() > 1:
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        if not bool(sums.isfinite().all()):
            return counts.new_zeros(())
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
        """Start dead codes anew at random vectors of the batch, with the count of an average
        code."""
        rows, mean = (
            fresh_codes(vectors, self.levels, generator_at(self.seed, step + 1)),
            self.counts.mean(),
        )
        self.counts.copy_(torch.where(dead, mean, self.counts))
        self.sums.copy_(torch.where(dead.unsqueeze(1), rows * mean, self.sums))


def _smoothed(counts: torch.Tensor, epsilon: float = 1e-5) -> torch.Tensor:
    """Laplace-smoothed counts of the same sum."""
    total = counts.sum()
    return (counts + epsilon) / (total + len(counts) * epsilon) * total

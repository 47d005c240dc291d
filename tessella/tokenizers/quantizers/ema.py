"""A codebook that follows its vectors by moving averages."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tessella.distributed import JoinedBatch, join_batch, sum_over_processes
from tessella.tokenizers.quantizers.codebook import (
    as_matrix,
    check_averages,
    check_sizes,
    codes_at_clusters,
    flag_not_finite,
    generator_at,
    mean_square,
    random_vectors,
    straight_through,
    without_autocast,
)
from tessella.tokenizers.quantizers.quantizer import Quantizer, QuantizerOutput, Remedies
from tessella.tokenizers.quantizers.search import cluster, nearest
from tessella.tokenizers.quantizers.usage import perplexity, used_share


class EMAVectorQuantizer(Quantizer):
    """The nearest of K vectors, each a moving average of the vectors assigned to it.

    Van den Oord et al. (2017), appendix A.1. With ``n_k`` vectors of summed value ``m_k`` assigned
    to code k in a batch::

        N_k <- decay N_k + (1 - decay) n_k
        M_k <- decay M_k + (1 - decay) m_k
        e_k <- M_k / N_k

    where ``N_k`` is Laplace-smoothed in the quotient, so that a code without vectors stays finite.
    A vector gets the gradient of its code (straight-through) and is pulled towards it by ``beta *
    mean((z - e)^2)``.

    The first training batch initializes the codes by k-means. After that, a code whose ``N_k``
    falls below ``revive`` times the mean is dead, and is revived: it restarts at a random vector of
    the batch. Both use random numbers that only depend on ``seed`` and the number of steps, so that
    training is reproducible and can be resumed. Everything that is learned is in buffers.

    A batch without vectors changes nothing. Neither does one with a value that is not finite, or so
    large that its square overflows; its loss is then not finite. Under ``torch.distributed``,
    statistics, initialization and revival use the joined batch, and every process holds the same
    codes.

    The search is exact in the type of the codebook (float32, or float64 after ``double()``), even
    under autocast; among equally near codes the lowest index wins.

    Args:
        dim: number of components of a vector.
        codebook_size: number of codes K.
        beta: weight of the commitment loss.
        decay: decay of the moving averages per step.
        revive: share of the mean count below which a code is dead; 0 disables revival.
        seed: seed of initialization and revival.

    Raises:
        ConfigError: when an argument is out of range.

    >>> quantizer = EMAVectorQuantizer(dim=4, codebook_size=16).eval()
    >>> out = quantizer(torch.zeros(2, 8, 8, 4))
    >>> out.symbols.shape, torch.equal(out.z, quantizer.decode(out.symbols))
    (torch.Size([2, 8, 8, 1]), True)
    """

    name = "vq-ema"
    depth = 1
    remedies = Remedies(
        dead_codes="take a lower decay (0.95), a code_dim of 8 to 16, a larger batch, or {fewer}"
    )

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
        self.dim = dim
        self.levels = codebook_size
        self.beta = beta
        self.decay = decay
        self.revive = revive
        self.codebook: torch.Tensor
        self.counts: torch.Tensor
        self.sums: torch.Tensor
        self.steps: torch.Tensor
        self.seed: torch.Tensor
        self.register_buffer("codebook", torch.randn(codebook_size, dim))
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer("sums", torch.zeros(codebook_size, dim))
        # Number of batches learned from. The codes are initialized once this is above 0.
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("seed", torch.tensor(seed))

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        with without_autocast(z):
            wide = z.to(self.codebook.dtype)
            vectors = as_matrix(wide.detach(), self.dim)  # [n, dim]
            batch = join_batch(vectors) if self.training else None
            # Random codes far from all vectors would divide the batch unevenly, so they are
            # initialized before the first search.
            if batch is not None and batch.usable and int(self.steps) == 0:
                self._place(vectors, batch)
            symbols, _ = nearest(vectors, self.codebook)  # [n]
            codes = F.embedding(symbols, self.codebook).view_as(wide)
            losses = {"commitment": self.beta * mean_square(wide, codes)}
            quantized = self._with_gradient(wide, codes).to(z.dtype)
            revived = self.counts.new_zeros(())
            # Codes move after the search: this batch is quantized with the codes from before.
            if batch is not None:
                losses = flag_not_finite(losses, batch)
                revived = self._learn(vectors, symbols, batch)
        stats = {
            "perplexity": perplexity(self.counts),
            "usage": used_share(self.counts),
            "revived": revived,
        }
        return QuantizerOutput(symbols.view(*z.shape[:-1], 1), quantized, losses, stats)

    @torch.no_grad()
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        with without_autocast(z):
            vectors = as_matrix(z.to(self.codebook.dtype), self.dim)
            symbols, _ = nearest(vectors, self.codebook)
        return symbols.view(*z.shape[:-1], 1)

    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        return F.embedding(symbols.squeeze(-1), self.codebook)

    def _with_gradient(self, z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The codes, with the gradient estimator that passes their gradient to ``z``."""
        return straight_through(z, codes)

    @torch.no_grad()
    def _place(self, vectors: torch.Tensor, batch: JoinedBatch) -> None:
        """Move the codes to the clusters of the first batch."""
        generator = generator_at(self.seed, 0)
        self.codebook.copy_(codes_at_clusters(vectors, batch, self.levels, generator))

    @torch.no_grad()
    def _learn(
        self, vectors: torch.Tensor, symbols: torch.Tensor, batch: JoinedBatch
    ) -> torch.Tensor:
        """Move the averages and the codes.

        Returns:
            The number of codes revived.
        """
        counts, sums = cluster(vectors, symbols, self.levels)  # n_k [codes], m_k [codes, dim]
        sum_over_processes(counts)
        sum_over_processes(sums)
        if not batch.usable:
            return counts.new_zeros(())
        step = int(self.steps)
        # The first batch has weight 1, since there is no average yet.
        weight = 1 - self.decay if step else 1.0
        self.counts.lerp_(counts, weight)
        self.sums.lerp_(sums, weight)
        dead = self.counts < self.revive * self.counts.mean()
        if bool(dead.any()):
            self._revive(vectors, dead, batch)
        self.codebook.copy_(self.sums / _smoothed(self.counts).unsqueeze(1))
        self.steps += 1
        return dead.sum().to(self.counts.dtype)

    def _revive(self, vectors: torch.Tensor, dead: torch.Tensor, batch: JoinedBatch) -> None:
        """Restart dead codes at random vectors of the batch, with the count of an average code."""
        generator = generator_at(self.seed, int(self.steps) + 1)
        rows = random_vectors(vectors, batch, self.levels, generator)
        # With a smaller count, a code would be dead again before it could attract vectors.
        mean = self.counts.mean()
        self.counts.copy_(torch.where(dead, mean, self.counts))
        self.sums.copy_(torch.where(dead.unsqueeze(1), rows * mean, self.sums))


def _smoothed(counts: torch.Tensor, epsilon: float = 1e-5) -> torch.Tensor:
    """Laplace-smoothed counts with the same sum, so that no code is divided by 0."""
    total = counts.sum()
    return (counts + epsilon) / (total + len(counts) * epsilon) * total

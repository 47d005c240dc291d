"""A fixed random codebook, seen through a learned linear map."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from tessella.distributed import JoinedBatch, join_batch, process_count, sum_over_processes
from tessella.tokenizers.quantizers.codebook import (
    as_matrix,
    check_sizes,
    flag_not_finite,
    mean_square_of_both,
    straight_through,
    update_counts,
    without_autocast,
)
from tessella.tokenizers.quantizers.quantizer import Quantizer, QuantizerOutput, Remedies
from tessella.tokenizers.quantizers.search import nearest
from tessella.tokenizers.quantizers.usage import perplexity, used_share


class SimVQ(Quantizer):
    """The nearest of K vectors ``e = C W + b``; only W and b are learned (Zhu et al. 2024).

    C is drawn once from a normal distribution and fixed. The optimizer moves all codes together,
    even those that no vector chooses, so none is left behind. Losses and gradients are those of
    ``vq``.

    The first training batch (joined over processes) sets b to the mean of the vectors and W to the
    square root of their covariance, so that the codes start as a normal distribution with that mean
    and covariance. The paper starts from a random W and has no b. Random numbers, distribution over
    processes, precision and unusable batches are handled as in ``vq``.

    Args:
        dim: number of components of a vector.
        codebook_size: number of codes K.
        beta: weight of the commitment loss.
        seed: seed of C.

    Raises:
        ConfigError: when an argument is out of range.

    >>> quantizer = SimVQ(dim=4, codebook_size=16)
    >>> out = quantizer(torch.randn(2, 8, 8, 4))
    >>> out.symbols.shape, sorted(name for name, _ in quantizer.named_parameters())
    (torch.Size([2, 8, 8, 1]), ['bias', 'weight'])
    """

    name = "simvq"
    depth = 1
    remedies = Remedies(dead_codes="train longer or at a higher learning rate, or {fewer}")

    def __init__(
        self, dim: int = 64, codebook_size: int = 512, beta: float = 0.25, seed: int = 0
    ) -> None:
        super().__init__()
        check_sizes(dim, codebook_size, beta)
        self.dim = dim
        self.levels = codebook_size
        self.beta = beta
        self.weight = nn.Parameter(torch.eye(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.fixed: torch.Tensor
        self.counts: torch.Tensor
        self.steps: torch.Tensor
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("fixed", torch.randn(codebook_size, dim, generator=generator))
        self.register_buffer("counts", torch.zeros(codebook_size))
        # Number of batches learned from. The map is initialized once this is above 0.
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        with without_autocast(z):
            wide = z.to(self.counts.dtype)
            vectors = as_matrix(wide.detach(), self.dim)  # [n, dim]
            batch = join_batch(vectors) if self.training else None
            if batch is not None and batch.usable:
                if int(self.steps) == 0:
                    self._place(vectors, batch)
                self.steps += 1
            table = self.codes()
            symbols, _ = nearest(vectors, table.detach())  # [n]
            codes = F.embedding(symbols, table).view_as(wide)
            losses = {
                "codebook": mean_square_of_both(codes, wide.detach()),
                "commitment": self.beta * mean_square_of_both(wide, codes.detach()),
            }
            quantized = straight_through(wide, codes.detach()).to(z.dtype)
            if batch is not None:
                losses = flag_not_finite(losses, batch)
                update_counts(self.counts, symbols, batch)
        stats = {"perplexity": perplexity(self.counts), "usage": used_share(self.counts)}
        return QuantizerOutput(symbols.view(*z.shape[:-1], 1), quantized, losses, stats)

    @torch.no_grad()
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        with without_autocast(z):
            vectors = as_matrix(z.to(self.counts.dtype), self.dim)
            symbols, _ = nearest(vectors, self.codes())
        return symbols.view(*z.shape[:-1], 1)

    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        with without_autocast(symbols):
            return F.embedding(symbols.squeeze(-1), self.codes())

    def codes(self) -> torch.Tensor:
        """The codes ``C W + b``: ``[codebook_size, dim]``."""
        return torch.addmm(self.bias, self.fixed, self.weight)

    @torch.no_grad()
    def _place(self, vectors: torch.Tensor, batch: JoinedBatch) -> None:
        """Give the codes the mean and the covariance of the joined batch."""
        mean = sum_over_processes(vectors.sum(dim=0)) / batch.total
        centred = vectors - mean
        covariance = sum_over_processes(centred.t() @ centred) / batch.total  # [dim, dim]
        # The symmetric root V sqrt(D) V^T of the covariance V D V^T, on the CPU in float64, since
        # covariances of few vectors are singular.
        values, axes = torch.linalg.eigh(covariance.cpu().double())
        root = ((axes * values.clamp_min(0).sqrt()) @ axes.t()).to(self.weight)
        if process_count() > 1:
            # Eigenvectors are rounded differently on different machines.
            dist.broadcast(root, 0)
        self.weight.copy_(root)
        self.bias.copy_(mean)

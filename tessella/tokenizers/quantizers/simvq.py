"""A fixed random codebook, seen through a learned linear map."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from tessella.distributed import joined, processes
from tessella.tokenizers.quantizers.codebook import (
    check_sizes,
    count,
    flat,
    plain,
    straight_through,
)
from tessella.tokenizers.quantizers.quantizer import Quantizer, QuantizerOutput
from tessella.tokenizers.quantizers.search import nearest
from tessella.tokenizers.quantizers.usage import perplexity, used_share


class SimVQ(Quantizer):
    """The nearest of K vectors ``e = C W + b``, of which only W and b learn (Zhu et al. 2024).

    C is drawn once from a normal distribution and stays. The optimizer moves all codes together,
    also those that no vector chooses, so none is left behind. Losses and gradients are those of
    ``vq``.

    The first training batch (joined over processes) sets b to the mean of the vectors and W to the
    root of their covariance, so that the codes start as a normal distribution of the vectors' mean
    and covariance. The paper starts from a random W and has no b. Draws, distribution over
    processes and precision are as in ``vq``.

    Args:
        dim: length of a vector.
        codebook_size: number of codes K.
        beta: weight of the commitment loss.
        seed: of C.

    Raises:
        ConfigError: when an argument is out of range.

    >>> quantizer = SimVQ(dim=4, codebook_size=16)
    >>> out = quantizer(torch.randn(2, 8, 8, 4))
    >>> out.symbols.shape, sorted(name for name, _ in quantizer.named_parameters())
    (torch.Size([2, 8, 8, 1]), ['bias', 'weight'])
    """

    name = "simvq"
    depth = 1

    def __init__(
        self, dim: int = 64, codebook_size: int = 512, beta: float = 0.25, seed: int = 0
    ) -> None:
        super().__init__()
        check_sizes(dim, codebook_size, beta)
        self.dim, self.levels, self.beta = dim, codebook_size, beta
        self.weight, self.bias = nn.Parameter(torch.eye(dim)), nn.Parameter(torch.zeros(dim))
        self.fixed: torch.Tensor
        self.counts: torch.Tensor
        self.steps: torch.Tensor
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("fixed", torch.randn(codebook_size, dim, generator=generator))
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer(
            "steps", torch.tensor(0)
        )  # the map has been placed once this is above 0

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        with plain(z):
            wide = z.to(self.counts.dtype)
            vectors = flat(wide.detach(), self.dim)
            if self.training and not int(self.steps):
                self._place(vectors)
            table = self.codes()
            symbols, _ = nearest(vectors, table.detach())
            codes = F.embedding(symbols, table).view_as(wide)
            losses = {
                "codebook": F.mse_loss(codes, wide.detach()),
                "commitment": self.beta * F.mse_loss(wide, codes.detach()),
            }
            passed = straight_through(wide, codes.detach()).to(z.dtype)
            if self.training:
                count(self.counts, symbols)
        stats = {"perplexity": perplexity(self.counts), "usage": used_share(self.counts)}
        return QuantizerOutput(symbols.view(*z.shape[:-1], 1), passed, losses, stats)

    @torch.no_grad()
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        with plain(z):
            symbols, _ = nearest(flat(z.to(self.counts.dtype), self.dim), self.codes())
        return symbols.view(*z.shape[:-1], 1)

    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        with plain(symbols):
            return F.embedding(symbols.squeeze(-1), self.codes())

    def codes(self) -> torch.Tensor:
        """The codes: ``[codebook_size, dim]``."""
        return torch.addmm(self.bias, self.fixed, self.weight)

    @torch.no_grad()
    def _place(self, vectors: torch.Tensor) -> None:
        """Give the codes the mean and the covariance of the joined batch, where that is finite."""
        _, total = joined(vectors)
        mean = _joined_sum(vectors.sum(dim=0)) / total
        centred = vectors - mean
        covariance = _joined_sum(centred.t() @ centred) / total
        if not bool(covariance.isfinite().all()):
            return
        values, axes = torch.linalg.eigh(covariance.cpu().double())
        root = ((axes * values.clamp_min(0).sqrt()) @ axes.t()).to(self.weight)
        if processes() > 1:
            dist.broadcast(root, 0)
        self.weight.copy_(root)
        self.bias.copy_(mean)
        self.steps += 1


def _joined_sum(values: torch.Tensor) -> torch.Tensor:
    if processes() > 1:
        dist.all_reduce(values)
    return values

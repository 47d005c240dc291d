"""A codebook that learns by gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.tokenizers.quantizers.codebook import (
    check_averages,
    check_sizes,
    count,
    first_codes,
    flat,
    fresh_codes,
    generator_at,
    plain,
    projections,
    straight_through,
)
from tessella.tokenizers.quantizers.quantizer import Quantizer, QuantizerOutput
from tessella.tokenizers.quantizers.search import nearest
from tessella.tokenizers.quantizers.usage import perplexity, used_share


class GradientVectorQuantizer(Quantizer):
    """The nearest of K vectors, which the optimizer moves towards theirs (van den Oord et al. 2017,
    eq. 3).

    Codes learn from ``mean((sg[z] - e)^2)``, vectors from ``beta * mean((z - sg[e])^2)`` and,
    straight through, from the gradient of their code.

    With ``code_dim`` vectors are mapped to fewer dimensions by a linear layer, quantized there, and
    mapped back by another (as in ViT-VQGAN, Yu et al. 2021, section 3.2); then encoding a decoded
    symbol need not give it again. With ``cosine`` vectors and codes are scaled to length 1 for
    search, losses and result, so that the nearest code is the one at the smallest angle (ibid.).

    The first training batch places the codes by k-means. Afterwards a code whose running count
    falls below ``revive`` times the mean is dead, and starts the next step at a random vector of
    its batch; the optimizer's momenta of that code stay. Draws, distribution over processes and
    precision are as in ``vq-ema``; gradients of the codebook are those of the process, and left to
    the trainer to average.

    Args:
        dim: length of a vector.
        codebook_size: number of codes K.
        code_dim: length of a code; 0 for ``dim``, without linear layers.
        cosine: whether vectors and codes have length 1.
        beta: weight of the commitment loss.
        decay: of the running counts, a step.
        revive: share of the mean count under which a code is dead; 0 switches revival off.
        seed: of first placement and revival.

    Raises:
        ConfigError: when an argument is out of range.

    >>> quantizer = GradientVectorQuantizer(dim=16, codebook_size=32, code_dim=4, cosine=True)
    >>> out = quantizer(torch.randn(100, 16))
    >>> sorted(out.losses), out.z.shape
    (['codebook', 'commitment'], torch.Size([100, 16]))
    """

    name = "vq"
    depth = 1

    def __init__(
        self,
        dim: int = 64,
        codebook_size: int = 512,
        code_dim: int = 0,
        cosine: bool = False,
        beta: float = 0.25,
        decay: float = 0.98,
        revive: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_sizes(dim, codebook_size, beta)
        check_averages(decay, revive)
        if code_dim < 0:
            raise ConfigError(
                f"code_dim must be at least 1, or 0 for the {dim} of dim, got {code_dim}"
            )
        self.dim, self.levels, self.code_dim, self.cosine = (
            dim,
            codebook_size,
            code_dim or dim,
            cosine,
        )
        self.beta, self.decay, self.revive = beta, decay, revive
        self.narrow, self.widen = projections(dim, self.code_dim)
        self.codebook = nn.Parameter(torch.randn(codebook_size, self.code_dim))
        self.counts: torch.Tensor
        self.steps: torch.Tensor
        self.seed: torch.Tensor
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer(
            "steps", torch.tensor(0)
        )  # the codes have been placed once this is above 0
        self.register_buffer("seed", torch.tensor(seed))

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        with plain(z):
            inner = self._inner(z)
            vectors, revived = inner.detach().view(-1, self.code_dim), self.counts.new_zeros(())
            if self.training:
                revived = self._place(vectors)
            table = self.codes()
            symbols, _ = nearest(vectors, table.detach())
            codes = F.embedding(symbols, table).view_as(inner)
            losses = {
                "codebook": F.mse_loss(codes, inner.detach()),
                "commitment": self.beta * F.mse_loss(inner, codes.detach()),
            }
            passed = self.widen(straight_through(inner, codes.detach())).to(z.dtype)
            if self.training:
                count(self.counts, symbols, self.decay)
        stats = {
            "perplexity": perplexity(self.counts),
            "usage": used_share(self.counts),
            "revived": revived,
        }
        return QuantizerOutput(symbols.view(*z.shape[:-1], 1), passed, losses, stats)

    @torch.no_grad()
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        with plain(z):
            symbols, _ = nearest(self._inner(z).view(-1, self.code_dim), self.codes())
        return symbols.view(*z.shape[:-1], 1)

    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        with plain(symbols):
            return self.widen(F.embedding(symbols.squeeze(-1), self.codes()))

    def codes(self) -> torch.Tensor:
        """The codes as vectors are compared with them: ``[codebook_size, code_dim]``."""
        return F.normalize(self.codebook, dim=-1) if self.cosine else self.codebook

    def _inner(self, z: torch.Tensor) -> torch.Tensor:
        """Vectors as they are compared with codes: ``[..., code_dim]``, contiguous."""
        inner = self.narrow(flat(z.to(self.counts.dtype), self.dim)).view(
            *z.shape[:-1], self.code_dim
        )
        return F.normalize(inner, dim=-1) if self.cosine else inner

    @torch.no_grad()
    def _place(self, vectors: torch.Tensor) -> torch.Tensor:
        """Give codes their place in the first step, dead ones a new place later; the number of
        codes revived.

        This comes before the search, since the graph of a step keeps the codes it began with.
        """
        step = int(self.steps)
        generator = generator_at(self.seed, step)
        dead = self.counts < self.revive * self.counts.mean()
        if step == 0:
            codes = first_codes(vectors, self.levels, generator)
            if codes is None:
                return self.counts.new_zeros(())
            self.codebook.copy_(codes)
        elif bool(dead.any()):
            rows = fresh_codes(vectors, self.levels, generator)
            dead &= rows.isfinite().all(dim=1)
            self.codebook.copy_(torch.where(dead.unsqueeze(1), rows, self.codebook))
            self.counts.copy_(torch.where(dead, self.counts.mean(), self.counts))
        self.steps += 1
        return dead.sum().to(self.counts.dtype)

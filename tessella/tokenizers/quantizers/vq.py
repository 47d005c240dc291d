"""A codebook that learns by gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from tessella.distributed import JoinedBatch, join_batch
from tessella.tokenizers.construction import check_count
from tessella.tokenizers.quantizers.codebook import (
    MAX_DIMENSIONS,
    as_matrix,
    check_averages,
    check_sizes,
    codes_at_clusters,
    flag_not_finite,
    generator_at,
    mean_square_of_both,
    projections,
    random_vectors,
    straight_through,
    update_counts,
    without_autocast,
)
from tessella.tokenizers.quantizers.quantizer import Quantizer, QuantizerOutput, Remedies
from tessella.tokenizers.quantizers.search import nearest
from tessella.tokenizers.quantizers.usage import perplexity, used_share


class GradientVectorQuantizer(Quantizer):
    """The nearest of K vectors, which the optimizer moves towards the vectors that chose them.

    Van den Oord et al. (2017), eq. 3: codes learn from ``mean((sg[z] - e)^2)``, vectors from
    ``beta * mean((z - sg[e])^2)`` and, straight through, from the gradient of their code.

    With ``code_dim``, a linear layer maps vectors to fewer dimensions, where they are quantized,
    and another one maps codes back (as in ViT-VQGAN, Yu et al. 2021, section 3.2); encoding a
    decoded symbol need not return it then. With ``cosine``, vectors and codes are normalized for
    search, losses and result, so that the nearest code is the one at the smallest angle (ibid.).

    The first training batch initializes the codes by k-means. After that, a code whose running
    count falls below ``revive`` times the mean is dead, and starts the next step at a random vector
    of that batch; the optimizer's state for the code is kept. Random numbers, distribution over
    processes, precision and unusable batches are handled as in ``vq-ema``; gradients of the
    codebook are those of one process, and the trainer averages them.

    Args:
        dim: number of components of a vector.
        codebook_size: number of codes K.
        code_dim: number of components of a code; 0 for ``dim``, without linear layers.
        cosine: whether vectors and codes are normalized to unit length.
        beta: weight of the commitment loss.
        decay: decay of the running counts per step.
        revive: share of the mean count below which a code is dead; 0 disables revival.
        seed: seed of initialization and revival.

    Raises:
        ConfigError: when an argument is out of range.

    >>> quantizer = GradientVectorQuantizer(dim=16, codebook_size=32, code_dim=4, cosine=True)
    >>> out = quantizer(torch.randn(100, 16))
    >>> sorted(out.losses), out.z.shape
    (['codebook', 'commitment'], torch.Size([100, 16]))
    """

    name = "vq"
    depth = 1
    remedies = Remedies(
        dead_codes=(
            "take a lower decay (0.95), cosine = true with a code_dim of 8 to 16, "
            "a larger batch, or {fewer}"
        )
    )

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
        check_count("code_dim (0 for dim)", code_dim, 0, MAX_DIMENSIONS)
        check_sizes(dim, codebook_size, beta)
        # Codes may be longer than vectors, so their size is checked separately.
        check_sizes(code_dim or dim, codebook_size)
        check_averages(decay, revive)
        self.dim = dim
        self.levels = codebook_size
        self.code_dim = code_dim or dim
        self.cosine = cosine
        self.beta = beta
        self.decay = decay
        self.revive = revive
        self.narrow, self.widen = projections(dim, self.code_dim)
        self.codebook = nn.Parameter(torch.randn(codebook_size, self.code_dim))
        self.counts: torch.Tensor
        self.steps: torch.Tensor
        self.seed: torch.Tensor
        self.register_buffer("counts", torch.zeros(codebook_size))
        # Number of batches learned from. The codes are initialized once this is above 0.
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("seed", torch.tensor(seed))

    @classmethod
    def examples(cls) -> Mapping[str, Mapping[str, object]]:
        return {
            "": {"codebook_size": 32},
            "cosine": {"codebook_size": 32, "cosine": True},
            "short": {"codebook_size": 32, "code_dim": 3},
            "short cosine": {"codebook_size": 32, "code_dim": 3, "cosine": True},
        }

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        with without_autocast(z):
            inner = self._inner(z)  # [..., code_dim]
            vectors = inner.detach().view(-1, self.code_dim)  # [n, code_dim]
            batch: JoinedBatch | None = None
            revived = self.counts.new_zeros(())
            if self.training:
                # Normalization hides huge values, so the vectors are also checked before it.
                given = as_matrix(z.detach().to(self.counts.dtype), self.dim)
                batch = join_batch(vectors, given)
                revived = self._place(vectors, batch)
            table = self.codes()
            symbols, _ = nearest(vectors, table.detach())  # [n]
            codes = F.embedding(symbols, table).view_as(inner)
            losses = {
                "codebook": mean_square_of_both(codes, inner.detach()),
                "commitment": self.beta * mean_square_of_both(inner, codes.detach()),
            }
            # The codebook only learns from its loss; the layer that maps back learns from this.
            quantized = self.widen(straight_through(inner, codes.detach())).to(z.dtype)
            if batch is not None:
                losses = flag_not_finite(losses, batch)
                update_counts(self.counts, symbols, batch, self.decay)
        stats = {
            "perplexity": perplexity(self.counts),
            "usage": used_share(self.counts),
            "revived": revived,
        }
        return QuantizerOutput(symbols.view(*z.shape[:-1], 1), quantized, losses, stats)

    @torch.no_grad()
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        with without_autocast(z):
            symbols, _ = nearest(self._inner(z).view(-1, self.code_dim), self.codes())
        return symbols.view(*z.shape[:-1], 1)

    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        with without_autocast(symbols):
            return self.widen(F.embedding(symbols.squeeze(-1), self.codes()))

    def codes(self) -> torch.Tensor:
        """The codes, as they are compared with vectors: ``[codebook_size, code_dim]``."""
        return self._scaled(self.codebook)

    def _inner(self, z: torch.Tensor) -> torch.Tensor:
        """Vectors as they are compared with codes: ``[..., code_dim]``, contiguous."""
        narrow = self.narrow(as_matrix(z.to(self.counts.dtype), self.dim))
        return self._scaled(narrow.view(*z.shape[:-1], self.code_dim))

    def _scaled(self, vectors: torch.Tensor) -> torch.Tensor:
        return F.normalize(vectors, dim=-1) if self.cosine else vectors

    @torch.no_grad()
    def _place(self, vectors: torch.Tensor, batch: JoinedBatch) -> torch.Tensor:
        """Initialize the codes in the first step, and revive dead ones in later steps.

        This comes before the search, since codes must not change while the graph of a step refers
        to them.

        Returns:
            The number of codes revived.
        """
        if not batch.usable:
            return self.counts.new_zeros(())
        step = int(self.steps)
        generator = generator_at(self.seed, step)
        dead = self.counts < self.revive * self.counts.mean()
        if step == 0:
            self.codebook.copy_(codes_at_clusters(vectors, batch, self.levels, generator))
        elif bool(dead.any()):
            rows = random_vectors(vectors, batch, self.levels, generator)
            self.codebook.copy_(torch.where(dead.unsqueeze(1), rows, self.codebook))
            # With an average count, a code is not revived again before it could attract vectors.
            self.counts.copy_(torch.where(dead, self.counts.mean(), self.counts))
        self.steps += 1
        return dead.sum().to(self.counts.dtype)

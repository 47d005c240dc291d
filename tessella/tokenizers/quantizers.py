"""Quantizers: vectors to discrete codes, and back.

All share one interface: :meth:`Quantizer.encode` gives the codes of vectors, :meth:`Quantizer.decode` the vectors of
codes, and a call gives both, with the gradient that passes through and the terms to add to the loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError, InputError
from tessella.tokenizers.base import construct

ROWS_AT_ONCE = 2048
"""Vectors that are compared with the codebook at once, so that no matrix of all vectors by all codes is formed."""


@dataclass(frozen=True)
class QuantizerOutput:
    """What a quantizer makes of a batch of vectors.

    Args:
        symbols: ``int64 [..., depth]``.
        z: the quantized vectors ``[..., dim]``, in the type of the input, through which gradients pass.
        losses: scalars to add to the loss, already weighted.
        stats: scalars without gradient, to log.
    """

    symbols: torch.Tensor
    z: torch.Tensor
    losses: dict[str, torch.Tensor]
    stats: dict[str, torch.Tensor]


class Quantizer(nn.Module, ABC):
    """Vectors ``[..., dim]`` to ``depth`` symbols of ``levels`` values each, and back."""

    name: ClassVar[str]
    dim: int
    levels: int
    depth: int

    @abstractmethod
    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        """Quantize vectors ``[..., dim]``; in training mode also learn from them."""

    @abstractmethod
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        """Vectors ``[..., dim]`` to symbols ``int64 [..., depth]``. Learns nothing."""

    @abstractmethod
    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        """Symbols ``int64 [..., depth]`` to vectors ``[..., dim]``."""


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
        start, total = _joined(vectors)
        chosen = torch.randperm(total, generator=generator)[: 16 * self.levels]
        codebook = kmeans(_joined_rows(vectors, chosen, start), self.levels, generator)
        if _processes() > 1:
            dist.broadcast(codebook, 0)
        self.codebook.copy_(codebook)

    @torch.no_grad()
    def _learn(self, vectors: torch.Tensor, symbols: torch.Tensor, step: int) -> torch.Tensor:
        """Move the averages and the codes; the number of codes revived."""
        counts, sums = cluster(vectors, symbols, self.levels)
        if _processes() > 1:
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
        start, total = _joined(vectors)
        chosen = torch.randint(total, (self.levels,), generator=self._generator(step + 1))
        rows, count = _joined_rows(vectors, chosen, start), self.counts.mean()
        self.counts.copy_(torch.where(dead, count, self.counts))
        self.sums.copy_(torch.where(dead.unsqueeze(1), rows * count, self.sums))

    def _generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed((int(self.seed) * 1_000_003 + step) % 2**63)


QUANTIZERS: dict[str, type[Quantizer]] = {EMAVectorQuantizer.name: EMAVectorQuantizer}
"""Every quantizer that :func:`create_quantizer` can build."""


def create_quantizer(name: str, **arguments: Any) -> Quantizer:
    """Build a registered quantizer.

    Args:
        name: one of :data:`QUANTIZERS`.
        arguments: of its class.

    Raises:
        ConfigError: for an unknown name or argument, or a value of the wrong type or range.
    """
    return construct("quantizer", QUANTIZERS, name, arguments)


def nearest(vectors: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest code of each vector, searched ``ROWS_AT_ONCE`` vectors at a time.

    Args:
        vectors: ``[n, dim]``.
        codebook: ``[codes, dim]``.

    Returns:
        ``int64 [n]``, the lowest of equally near codes, and the score ``e^2 - 2 z.e`` ``[n]``, which is the squared
        distance less ``z^2``.
    """
    squares, transposed = codebook.square().sum(dim=1), codebook.t()
    symbols = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    scores = torch.empty(len(vectors), dtype=codebook.dtype, device=vectors.device)
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        piece = slice(start, start + ROWS_AT_ONCE)
        block = torch.addmm(squares, vectors[piece], transposed, alpha=-2)
        scores[piece], symbols[piece] = block.min(dim=1)
    return symbols, scores


def cluster(vectors: torch.Tensor, symbols: torch.Tensor, codes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How many vectors each code got, ``[codes]``, and their sums ``[codes, dim]``."""
    counts = vectors.new_zeros(codes).index_add_(0, symbols, vectors.new_ones(len(vectors)))
    sums = vectors.new_zeros(codes, vectors.shape[1]).index_add_(0, symbols, vectors)
    return counts, sums


def kmeans(vectors: torch.Tensor, codes: int, generator: torch.Generator, rounds: int = 5) -> torch.Tensor:
    """Codes ``[codes, dim]`` at the clusters of vectors ``[n, dim]``, by Lloyd's algorithm.

    Codes are seeded at vectors drawn with probability proportional to the squared distance from the codes so far, as in
    k-means++ (Arthur and Vassilvitskii 2007), but twice as many a round (Bahmani et al. 2012).
    """
    codebook = vectors[torch.randint(len(vectors), (1,), generator=generator).to(vectors.device)]
    while len(codebook) < codes:
        more = min(len(codebook), codes - len(codebook))
        codebook = torch.cat([codebook, vectors[_far(vectors, codebook, more, generator)]])
    for _ in range(rounds):
        symbols, _ = nearest(vectors, codebook)
        counts, sums = cluster(vectors, symbols, codes)
        filled = counts.unsqueeze(1) > 0
        codebook = torch.where(filled, sums / counts.clamp_min(1).unsqueeze(1), codebook)
    return codebook


def _far(vectors: torch.Tensor, codebook: torch.Tensor, number: int, generator: torch.Generator) -> torch.Tensor:
    """Rows of vectors, drawn by their squared distance from the codes."""
    _, scores = nearest(vectors, codebook)
    weights = (scores + vectors.square().sum(dim=1)).clamp_min(0).cpu().double()
    weights += 1e-9 * weights.mean() + 1e-30  # where all vectors are codes already, any will do
    return torch.multinomial(weights, number, replacement=len(vectors) < number, generator=generator).to(vectors.device)


def _smoothed(counts: torch.Tensor, epsilon: float = 1e-5) -> torch.Tensor:
    """Laplace-smoothed counts of the same sum."""
    total = counts.sum()
    return (counts + epsilon) / (total + len(counts) * epsilon) * total


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """``exp`` of the entropy of codes used in proportion to ``counts [codes]``; 1 where nothing was counted."""
    shares = counts / counts.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.special.entr(shares).sum().exp()


class CodeUsage:
    """How often each code was used, over as many batches as one likes.

    The perplexity of one batch says little: a batch of few images cannot use many codes. Count a whole epoch.

    Args:
        levels: number of codes.

    >>> usage = CodeUsage(4)
    >>> usage.update(torch.tensor([0, 0, 1, 1]))
    >>> usage.used, usage.used_fraction, usage.entropy_bits
    (2, 0.5, 1.0)
    """

    def __init__(self, levels: int) -> None:
        self.counts = torch.zeros(levels, dtype=torch.int64)

    def update(self, symbols: torch.Tensor) -> None:
        """Count symbols (integers of any shape).

        Raises:
            InputError: when a symbol is not a code.
        """
        flat = symbols.detach().flatten().long().cpu()
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < len(self.counts):
            raise InputError(f"symbols must lie in 0..{len(self.counts) - 1}, got {int(flat.min())}..{int(flat.max())}")
        self.counts += torch.bincount(flat, minlength=len(self.counts))

    @property
    def used(self) -> int:
        """Codes used at least once."""
        return int((self.counts > 0).sum())

    @property
    def used_fraction(self) -> float:
        """Share of the codes used at least once."""
        return self.used / len(self.counts)

    @property
    def entropy_bits(self) -> float:
        """Entropy of the codes' frequencies, in bits: what a code costs when all are coded alike."""
        return float(perplexity(self.counts.double()).log2())

    @property
    def perplexity(self) -> float:
        """``2 ** entropy_bits``: the number of equally frequent codes with the same entropy."""
        return float(perplexity(self.counts.double()))


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _joined(vectors: torch.Tensor) -> tuple[int, int]:
    """Where this process's vectors start in the batch joined over processes, and how many vectors that has."""
    if _processes() == 1:
        return 0, len(vectors)
    sizes = torch.zeros(_processes(), dtype=torch.int64, device=vectors.device)
    sizes[dist.get_rank()] = len(vectors)
    dist.all_reduce(sizes)
    return int(sizes[: dist.get_rank()].sum()), int(sizes.sum())


def _joined_rows(vectors: torch.Tensor, chosen: torch.Tensor, start: int) -> torch.Tensor:
    """Rows ``chosen [m]`` of the joined batch, in which this process's vectors begin at ``start``: ``[m, dim]``."""
    chosen = chosen.to(vectors.device)
    if _processes() == 1:
        return vectors[chosen]
    local = chosen - start
    here = (local >= 0) & (local < len(vectors))
    rows = vectors.new_zeros(len(chosen), vectors.shape[1])
    rows[here] = vectors[local[here]]
    dist.all_reduce(rows)
    return rows

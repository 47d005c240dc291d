"""Facts about the codebooks of a tokenizer: how codes are used, and how they were trained.

Each channel of each grid has its codebook: residual codes have one for each depth, and several
grids have at least one each. :mod:`tessella.tokenizers.codebook_health` judges the facts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch

from tessella.tokenizers.quantizers import QUANTIZERS, Quantizer, perplexity
from tessella.tokenizers.quantizers.ema import EMAVectorQuantizer
from tessella.tokenizers.tokenizer import Tokenizer

MIN_VECTORS_PER_CODE = 10
"""Vectors per code that are needed to judge a codebook: with fewer, even a healthy one leaves codes
unused. Training must have seen as many, too."""

MIN_STEPS = 200
"""Training batches before which codes and encoder are far from settled: a moving average with the
usual decay of 0.98 has a memory of 50 batches."""

COLLAPSED_SHARE = 0.8
"""A codebook has collapsed if one code takes at least this share of the vectors. A plain background
may well take half of them."""

MIN_VECTORS_FOR_COLLAPSE = 1000
"""Vectors from which a collapse is certain, even if there are few per code."""

TWIN_DISTANCE = 0.01
"""Two codes are twins if their distance is below this share of the distance between nearest
neighbours (the upper quartile over all codes), or below a hundredth of this share of the spread of
all codes."""

MAX_COMPARED = 2**14
"""Largest codebook whose codes are compared with each other."""

COMPARED_AT_ONCE = 256
"""Number of codes that are compared with all others at a time."""


@dataclass(frozen=True)
class Facts:
    """How one codebook is used.

    Args:
        grid, depth: which codebook: index of the grid (coarse to fine) and of its channel.
        grids, depths: numbers of grids, and of channels of this grid.
        codes: number of codes in the codebook.
        vectors: number of vectors whose codes were counted.
        used: number of codes used at least once.
        entropy_bits: entropy of the codes' frequencies, in bits.
        top_share: share of the vectors that the most frequent code takes.
        quantizer: name of the quantizer; empty if unknown.
        twins: number of codes that nearly coincide with another one (see :data:`TWIN_DISTANCE`);
            None if unknown.
        variance_share: share of the variance of the quantized vectors that is due to this depth, as
            if depths were uncorrelated; None if there is only one depth.
        usage_drift: half the sum of the absolute changes of the codes' frequencies since the last
            validation, 0 to 1; None if unknown.
        reviving: whether training revives dead codes; None if the quantizer cannot.
        steps: number of batches that the codebook has learned from; None if unknown.
        vectors_seen: approximate number of vectors in those batches; None if unknown.
    """

    grid: int
    depth: int
    grids: int
    depths: int
    codes: int
    vectors: int
    used: int
    entropy_bits: float
    top_share: float
    quantizer: str = ""
    twins: int | None = None
    variance_share: float | None = None
    usage_drift: float | None = None
    reviving: bool | None = None
    steps: int | None = None
    vectors_seen: float | None = None

    @property
    def used_share(self) -> float:
        """Share of the codes used at least once."""
        return self.used / self.codes

    @property
    def dead(self) -> int:
        """Codes never used."""
        return self.codes - self.used

    @property
    def perplexity(self) -> float:
        """``2 ** entropy_bits``, in codes."""
        return float(2**self.entropy_bits)

    @property
    def too_few_vectors(self) -> bool:
        """Whether there were too few vectors to judge the codebook."""
        return self.vectors < MIN_VECTORS_PER_CODE * self.codes

    @property
    def collapsed(self) -> bool:
        """Whether nearly all vectors get one code, and there are too many for coincidence."""
        return self.vectors >= MIN_VECTORS_FOR_COLLAPSE and self.top_share >= COLLAPSED_SHARE

    @property
    def undertrained(self) -> bool:
        """Whether training was too short to judge the codebook; False if that is unknown."""
        # Without a count of batches, training gets the benefit of the doubt.
        if self.steps is None:
            return False
        if self.steps < MIN_STEPS:
            return True
        return (
            self.vectors_seen is not None and self.vectors_seen < MIN_VECTORS_PER_CODE * self.codes
        )

    @property
    def name(self) -> str:
        """Which codebook this is, such as ``depth 1``; empty if there is only one.

        >>> Facts(0, 1, 2, 3, 512, 0, 0, 0.0, 0.0).name
        'grid 0, depth 1'
        """
        # Only what distinguishes this codebook from the others.
        words = []
        if self.grids > 1:
            words.append(f"grid {self.grid}")
        if self.depths > 1:
            words.append(f"depth {self.depth}")
        return ", ".join(words)

    @property
    def quantizer_class(self) -> type[Quantizer]:
        """The class that knows which usage is healthy, and what helps if it is not.

        It is the default quantizer if the quantizer is unknown.
        """
        known = QUANTIZERS.get(self.quantizer) if self.quantizer else None
        return EMAVectorQuantizer if known is None else known


class _Usage(TypedDict):
    """The fields of :class:`Facts` that follow from counts."""

    codes: int
    vectors: int
    used: int
    entropy_bits: float
    top_share: float


class _Training(TypedDict, total=False):
    """The fields of :class:`Facts` that a quantizer knows."""

    quantizer: str
    reviving: bool | None
    steps: int | None
    vectors_seen: float | None


def examine(
    tokenizer: Tokenizer, counts: Sequence[torch.Tensor], steps: int | None = None
) -> list[Facts]:
    """The facts of every codebook of a tokenizer.

    Args:
        counts: how often each code was used: ``[codes]`` for each channel of each grid, coarse to
            fine.
        steps: number of batches that the tokenizer was trained on, if known. Quantizers that count
            their batches override it.
    """
    grids = tokenizer.grids()
    # Codebooks are listed one after another: the depths of the first grid, then of the next.
    books = iter(counts)
    facts: list[Facts] = []
    for number, (grid, quantizer) in enumerate(zip(grids, quantizers_of(tokenizer), strict=True)):
        counts_of_grid = [count.double().cpu() for count in itertools.islice(books, grid.channels)]
        # The learned codes, [codes, dim] for each depth, to compare with each other.
        tables: list[torch.Tensor | None] = [None] * grid.channels
        if quantizer is not None:
            tables = [_codes_at_depth(quantizer, depth) for depth in range(grid.channels)]
        shares = _variance_shares(counts_of_grid, tables)
        for depth in range(grid.channels):
            facts.append(
                Facts(
                    grid=number,
                    depth=depth,
                    grids=len(grids),
                    depths=grid.channels,
                    **_usage_of(counts_of_grid[depth]),
                    **_training_of(quantizer, steps),
                    twins=_twins_if_known(tables[depth]),
                    variance_share=shares[depth],
                )
            )
    return facts


def _usage_of(count: torch.Tensor) -> _Usage:
    """The facts that follow from the counts ``[codes]`` of one codebook."""
    total = float(count.sum())
    # Without any vector, no code has a share.
    return {
        "codes": len(count),
        "vectors": int(total),
        "used": int((count > 0).sum()),
        "entropy_bits": float(perplexity(count).log2()),
        "top_share": float(count.max()) / total if total else 0.0,
    }


def _training_of(quantizer: Quantizer | None, steps: int | None) -> _Training:
    """The facts that a quantizer knows about its training."""
    if quantizer is None:
        return {"steps": steps}
    # A count that is saved with the codes is right even for a model without its run.
    counted = quantizer.batches_seen
    if counted is not None:
        steps = counted
    vectors = quantizer.vectors_a_batch
    vectors_seen: float | None = None
    if steps is not None and vectors:
        vectors_seen = steps * vectors
    return {
        "quantizer": quantizer.name,
        "reviving": _reviving(quantizer),
        "steps": steps,
        "vectors_seen": vectors_seen,
    }


def quantizers_of(tokenizer: Tokenizer) -> list[Quantizer | None]:
    """The quantizer of each grid, coarse to fine.

    They are all None if the tokenizer does not have exactly one for each. A tokenizer with several
    grids must hold their quantizers in the order of the grids.
    """
    inside: set[int] = set()
    outermost: list[Quantizer] = []
    # Quantizers inside another one come after it, and do not belong to a grid themselves.
    for module in tokenizer.modules():
        if isinstance(module, Quantizer) and id(module) not in inside:
            outermost.append(module)
            inside.update(id(part) for part in module.modules())
    grids = tokenizer.grids()
    found = [(quantizer.levels, quantizer.depth) for quantizer in outermost]
    # A mismatch means that the order of modules says nothing about the grids.
    wanted = [(grid.levels, grid.channels) for grid in grids]
    if found != wanted:
        return [None] * len(grids)
    return list(outermost)


def _reviving(quantizer: Quantizer) -> bool | None:
    """Whether a quantizer, or its first part that has the option, revives dead codes."""
    for module in quantizer.modules():
        share = getattr(module, "revive", None)
        if share is not None:
            return bool(share)
    return None


@torch.no_grad()
def _codes_at_depth(quantizer: Quantizer, depth: int) -> torch.Tensor | None:
    """The codes of one depth, float64 ``[codes, dim]``, up to a common offset.

    They are None if they are not to be compared.
    """
    if not quantizer.learns_codes or quantizer.levels > MAX_COMPARED:
        return None
    # A quantizer without any tensor works on the CPU.
    device = torch.device("cpu")
    for tensor in itertools.chain(quantizer.parameters(), quantizer.buffers()):
        device = tensor.device
        break
    # Every code of this depth, combined with code 0 of the other depths.
    symbols = torch.zeros(quantizer.levels, quantizer.depth, dtype=torch.int64, device=device)
    symbols[:, depth] = torch.arange(quantizer.levels, device=device)
    return quantizer.decode(symbols).double().cpu()


def _spread(codes: torch.Tensor) -> float:
    """Root mean square distance of codes ``[codes, dim]`` from their mean."""
    return float((codes - codes.mean(0)).square().sum(1).mean().sqrt())


def twins(codes: torch.Tensor) -> int:
    """How many of the codes ``[codes, dim]`` have a twin; see :data:`TWIN_DISTANCE`.

    >>> twins(torch.tensor([[0.0], [0.001], [1.0], [2.0], [3.0]]))
    2
    """
    centred = codes.double() - codes.double().mean(0)
    squares = centred.square().sum(1)
    distances = torch.empty(len(codes), dtype=torch.float64)
    # A block of rows at a time, so that no matrix of all pairs is formed.
    for rows in torch.arange(len(codes)).split(COMPARED_AT_ONCE):
        # |a - b|^2 = a^2 + b^2 - 2 a.b; the distance of a code to itself does not count.
        found = squares[rows, None] + squares - 2 * centred[rows] @ centred.t()
        found[torch.arange(len(rows)), rows] = torch.inf
        distances[rows] = found.min(1).values.clamp_min(0).sqrt()
    # The quartile is 0 if most codes have a twin; then the spread of all codes sets the scale.
    near = max(
        TWIN_DISTANCE * float(distances.quantile(0.75)), 0.01 * TWIN_DISTANCE * _spread(centred)
    )
    return int((distances <= near).sum())


def _twins_if_known(codes: torch.Tensor | None) -> int | None:
    return None if codes is None else twins(codes)


def _variance_shares(
    counts: Sequence[torch.Tensor], tables: Sequence[torch.Tensor | None]
) -> list[float | None]:
    """The share of each depth in the variance of the quantized vectors.

    The variance of a depth is that of its codes, weighted by how often they are used.
    """
    unknown: list[float | None] = [None] * len(counts)
    if len(counts) < 2:
        return unknown
    variances: list[float] = []
    for count, table in zip(counts, tables, strict=True):
        if table is None:
            return unknown
        # Codes that are used more often count for more; 0/0 is kept out.
        weights = (count / count.sum().clamp_min(1)).unsqueeze(1)  # [codes, 1]
        mean = (weights * table).sum(0)  # [dim]
        variances.append(float((weights * (table - mean).square()).sum()))
    total = sum(variances)
    return [part / total if total > 0 else 0.0 for part in variances]

"""The nearest code of every vector, in small memory; sums by code; k-means."""

from __future__ import annotations

import torch

ROWS_AT_ONCE = 2048
"""Vectors that are compared with the codebook at once, so that no matrix of all vectors by all codes is formed."""


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

"""The nearest code of every vector, in small memory; sums by code; k-means.

No matrix of all vectors by all codes is ever formed. On a CPU, in float32, a compiled search keeps
the scores in registers (``tessella/kernel/search.cpp``); everywhere else, and where there is no
compiler, torch compares a block of vectors with all codes at a time. Both compute the score
``e^2 - 2 z.e`` in the type of the codebook, and of equal scores the lowest index wins, so they
differ at near-ties alone.
"""

from __future__ import annotations

import torch

from tessella import kernel

ROWS, CODES = 2048, 2048
"""Vectors, and codes, that the search in torch compares at a time: 16 MiB of scores. Products of
such matrices run at the speed of large ones, which those of few vectors with all codes do not."""

GROUP = 128
"""Codes of which torch first finds the least score alone, which it does ten times as fast as least
score and place."""

PANEL = 32
"""Codes that the compiled search takes at a time; it packs them in so many."""


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch.compile must not trace what passes addresses
@torch.no_grad()
def nearest(vectors: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest code of each vector.

    Args:
        vectors: ``[n, dim]``, in the type of the codebook.
        codebook: ``[codes, dim]``.

    Returns:
        ``int64 [n]``, the lowest of equally near codes, and the score ``e^2 - 2 z.e`` ``[n]``,
        which is the squared distance less ``z^2``. A vector that is not finite gets any code.
    """
    if _compiled(vectors, codebook):
        return _nearest_compiled(vectors.contiguous(), codebook.contiguous())
    return _nearest(vectors, codebook)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def cluster(
    vectors: torch.Tensor, symbols: torch.Tensor, codes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many vectors each code got, ``[codes]``, and their sums ``[codes, dim]``."""
    counts, sums = vectors.new_zeros(codes), vectors.new_zeros(codes, vectors.shape[1])
    if _compiled(vectors, sums) and symbols.dtype == torch.int64:
        library = kernel.library()
        assert library is not None
        rows, own = vectors.contiguous(), symbols.contiguous()
        assert len(own) == len(rows)
        if len(own) and not 0 <= int(own.min()) <= int(own.max()) < codes:
            raise IndexError(
                f"symbols must lie in 0..{codes - 1}, got {int(own.min())}..{int(own.max())}"
            )
        at = [tensor.data_ptr() for tensor in (rows, own, counts, sums)]
        library.tessella_cluster(
            at[0], at[1], len(rows), rows.shape[1], at[2], at[3], torch.get_num_threads()
        )
        return counts, sums
    counts.index_add_(0, symbols, vectors.new_ones(len(vectors)))
    return counts, sums.index_add_(0, symbols, vectors)


def kmeans(
    vectors: torch.Tensor, codes: int, generator: torch.Generator, rounds: int = 5
) -> torch.Tensor:
    """Codes ``[codes, dim]`` at the clusters of vectors ``[n, dim]``, by Lloyd's algorithm.

    Codes are seeded at vectors drawn with probability proportional to the squared distance from the
    codes so far, as in k-means++ (Arthur and Vassilvitskii 2007), but twice as many a round
    (Bahmani et al. 2012).
    """
    codebook = new = vectors[
        torch.randint(len(vectors), (1,), generator=generator).to(vectors.device)
    ]
    squares, scores = vectors.square().sum(dim=1), vectors.new_full((len(vectors),), torch.inf)
    while len(codebook) < codes:
        more = min(len(codebook), codes - len(codebook))
        scores = torch.minimum(scores, nearest(vectors, new)[1])
        new = vectors[_far(scores + squares, more, generator)]
        codebook = torch.cat([codebook, new])
    for _ in range(rounds):
        symbols, _ = nearest(vectors, codebook)
        counts, sums = cluster(vectors, symbols, codes)
        filled = counts.unsqueeze(1) > 0
        codebook = torch.where(filled, sums / counts.clamp_min(1).unsqueeze(1), codebook)
    return codebook


def _compiled(vectors: torch.Tensor, codebook: torch.Tensor) -> bool:
    """Whether the compiled search takes these."""
    plain = vectors.device.type == "cpu" and vectors.dtype == codebook.dtype == torch.float32
    return plain and len(codebook) < 2**31 and kernel.available()


def _nearest_compiled(
    vectors: torch.Tensor, codebook: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    (n, dim), codes = vectors.shape, len(codebook)
    assert codebook.shape[1] == dim
    library = kernel.library()
    assert library is not None
    padded = -(-codes // PANEL) * PANEL
    packed, squares = vectors.new_empty(padded * dim), vectors.new_empty(padded)
    symbols, scores = torch.empty(n, dtype=torch.int64), vectors.new_empty(n)
    rooms = [tensor.data_ptr() for tensor in (packed, squares, symbols, scores)]
    threads = torch.get_num_threads()
    library.tessella_nearest(
        vectors.data_ptr(), codebook.data_ptr(), n, codes, dim, *rooms, threads
    )
    return symbols, scores


def _nearest(vectors: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`nearest` in torch."""
    squares, transposed = codebook.square().sum(dim=1), codebook.t()
    symbols = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    scores = torch.full((len(vectors),), torch.inf, dtype=codebook.dtype, device=vectors.device)
    most = ROWS if vectors.device.type == "cpu" else 8 * ROWS  # a GPU is not busy with fewer
    block = codebook.new_empty(min(most, len(vectors)) * min(CODES, len(codebook)))
    for start in range(0, len(vectors), most):
        rows = slice(start, start + most)
        part = vectors[rows]
        for first in range(0, len(codebook), CODES):
            some = slice(first, first + CODES)
            shape = (len(part), len(squares[some]))
            room = block[: shape[0] * shape[1]].view(shape)
            torch.addmm(squares[some], part, transposed[:, some], alpha=-2, out=room)
            least, place = _least(room)
            closer = least < scores[rows]
            symbols[rows] = torch.where(closer, place + first, symbols[rows])
            scores[rows] = torch.where(closer, least, scores[rows])
    return symbols, scores


def _least(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The least of each row ``[n, codes]``, and the first place that has it."""
    n, codes = scores.shape
    if codes % GROUP or codes == GROUP:
        least, place = scores.min(dim=1)
        return least, place
    grouped = scores.view(n, -1, GROUP)
    least, group = grouped.amin(dim=2).min(dim=1)
    within = grouped[torch.arange(n, device=scores.device), group].argmin(dim=1)
    return least, group * GROUP + within


def _far(distances: torch.Tensor, number: int, generator: torch.Generator) -> torch.Tensor:
    """Places of vectors, drawn by their squared distances from the nearest code ``[n]``."""
    weights = distances.clamp_min(0).cpu().double()
    weights += 1e-9 * weights.mean() + 1e-30  # where all vectors are codes already, any will do
    chosen = torch.multinomial(
        weights, number, replacement=len(weights) < number, generator=generator
    )
    return chosen.to(distances.device)

"""Find the nearest code of every vector, in little memory; sums by code; k-means.

No matrix of all vectors by all codes is ever formed. On a CPU, in float32, a compiled search keeps
the scores in registers (``tessella/kernel/search.cpp``); everywhere else, and without a compiler,
torch compares a block of vectors with all codes at a time. Both compute the score ``e^2 - 2 z.e``
in the type of the codebook, and of equal scores the lowest index wins, so they only differ at
near-ties.
"""

from __future__ import annotations

import torch

from tessella import kernel

ROWS = 2048
"""Number of vectors that the search in torch compares at a time."""

CODES = 2048
"""Number of codes that it compares at a time. The 16 MiB of scores are large enough for fast matrix
products, unlike those of few vectors with all codes."""

GPU_ROWS = 8
"""Factor for the number of vectors on a GPU, which would not be busy with fewer."""

GROUP = 128
"""Size of the groups of codes for which torch first finds the least score only. That is ten times
as fast as finding its index too."""

PANEL = 32
"""Number of codes in a panel, which the compiled search compares at a time."""


@torch.no_grad()
def nearest(vectors: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest code of each vector.

    Args:
        vectors: ``[n, dim]``, in the type of the codebook.
        codebook: ``[codes, dim]``.

    Returns:
        the symbols ``int64 [n]``, the lowest among equally near codes, and the scores ``e^2 - 2
        z.e`` ``[n]``, which are squared distances minus ``z^2``. A vector that is not finite gets
        an arbitrary code.
    """
    if torch.compiler.is_compiling():
        return torch.ops.tessella.nearest(vectors, codebook)
    return _nearest_fastest(vectors, codebook)


def cluster(
    vectors: torch.Tensor, symbols: torch.Tensor, codes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The number of vectors of each code, ``[codes]``, and their sums, ``[codes, dim]``.

    Args:
        vectors: ``[n, dim]``.
        symbols: the code of each vector, ``int64 [n]``.
        codes: number of codes.

    Raises:
        IndexError: for a symbol that is not in ``[0, codes)``.
    """
    if torch.compiler.is_compiling():
        return torch.ops.tessella.cluster(vectors, symbols, codes)
    return _cluster_fastest(vectors, symbols, codes)


def kmeans(
    vectors: torch.Tensor, codes: int, generator: torch.Generator, rounds: int = 5
) -> torch.Tensor:
    """Codes ``[codes, dim]`` at the clusters of vectors ``[n, dim]``, by Lloyd's algorithm.

    Initial codes are vectors drawn with probability proportional to their squared distance from the
    codes so far, as in k-means++ (Arthur and Vassilvitskii 2007), but the number of codes doubles
    in each round (Bahmani et al. 2012).

    Args:
        vectors: at least one; they and their squared distances must be finite.
        codes: number of codes.
        generator: source of random numbers.
        rounds: rounds of Lloyd's algorithm.
    """
    first = torch.randint(len(vectors), (1,), generator=generator).to(vectors.device)
    new = vectors[first]
    codebook = new
    squares = vectors.square().sum(dim=1)  # [n]
    scores = vectors.new_full((len(vectors),), torch.inf)
    while len(codebook) < codes:
        more = min(len(codebook), codes - len(codebook))
        # Only the new codes can be nearer than the nearest so far.
        scores = torch.minimum(scores, nearest(vectors, new)[1])
        new = vectors[_draw_far(scores + squares, more, generator)]
        codebook = torch.cat([codebook, new])
    for _ in range(rounds):
        symbols, _ = nearest(vectors, codebook)
        counts, sums = cluster(vectors, symbols, codes)
        # A code that no vector chose stays where it is.
        filled = counts.unsqueeze(1) > 0
        codebook = torch.where(filled, sums / counts.clamp_min(1).unsqueeze(1), codebook)
    return codebook


def nearest_at_once(
    vectors: torch.Tensor, codebook: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`nearest` by the matrix of all scores, in operations that every program knows.

    For exported graphs, in which nothing can be chosen by the machine.
    """
    scores = codebook.square().sum(1) - 2 * vectors @ codebook.T  # [n, codes]
    return scores.argmin(1), scores.amin(1)


def _nearest_fastest(
    vectors: torch.Tensor, codebook: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`nearest` by the fastest search that takes these tensors."""
    if _takes_kernel(vectors, codebook):
        return _nearest_compiled(vectors.contiguous(), codebook.contiguous())
    return _nearest_in_torch(vectors, codebook)


def _cluster_fastest(
    vectors: torch.Tensor, symbols: torch.Tensor, codes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`cluster` by the fastest way that takes these tensors."""
    counts = vectors.new_zeros(codes)
    sums = vectors.new_zeros(codes, vectors.shape[1])
    if _takes_kernel(vectors, sums) and symbols.dtype == torch.int64:
        _cluster_compiled(vectors.contiguous(), symbols.contiguous(), counts, sums)
    else:
        counts.index_add_(0, symbols, vectors.new_ones(len(vectors)))
        sums.index_add_(0, symbols, vectors)
    return counts, sums


def _takes_kernel(vectors: torch.Tensor, codebook: torch.Tensor) -> bool:
    """Whether the compiled search takes these tensors."""
    on_cpu = vectors.device.type == "cpu"
    is_float = vectors.dtype == codebook.dtype == torch.float32
    return on_cpu and is_float and len(codebook) < 2**31 and kernel.available()


def _nearest_compiled(
    vectors: torch.Tensor, codebook: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`nearest` by the compiled search, of contiguous float32 tensors on a CPU."""
    n, dim = vectors.shape
    codes = len(codebook)
    assert codebook.shape[1] == dim
    library = kernel.library()
    assert library is not None
    padded = -(-codes // PANEL) * PANEL
    # Memory for the codes in panels and for their squares, which the search fills itself.
    packed = vectors.new_empty(padded * dim)
    squares = vectors.new_empty(padded)
    symbols = torch.empty(n, dtype=torch.int64)
    scores = vectors.new_empty(n)
    library.tessella_nearest(
        vectors.data_ptr(),
        codebook.data_ptr(),
        n,
        codes,
        dim,
        packed.data_ptr(),
        squares.data_ptr(),
        symbols.data_ptr(),
        scores.data_ptr(),
        torch.get_num_threads(),
    )
    return symbols, scores


def _cluster_compiled(
    vectors: torch.Tensor, symbols: torch.Tensor, counts: torch.Tensor, sums: torch.Tensor
) -> None:
    """Add to counts ``[codes]`` and sums ``[codes, dim]`` by the compiled library."""
    library = kernel.library()
    assert library is not None
    assert len(symbols) == len(vectors)
    codes = len(counts)
    if len(symbols):
        # The library does not check bounds.
        least = int(symbols.min())
        most = int(symbols.max())
        if least < 0 or most >= codes:
            raise IndexError(f"symbols must lie in 0..{codes - 1}, got {least}..{most}")
    library.tessella_cluster(
        vectors.data_ptr(),
        symbols.data_ptr(),
        len(vectors),
        vectors.shape[1],
        counts.data_ptr(),
        sums.data_ptr(),
        torch.get_num_threads(),
    )


def _nearest_in_torch(
    vectors: torch.Tensor, codebook: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`nearest` in torch."""
    squares = codebook.square().sum(dim=1)
    transposed = codebook.t()
    symbols = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    scores = torch.full((len(vectors),), torch.inf, dtype=codebook.dtype, device=vectors.device)
    most = ROWS if vectors.device.type == "cpu" else GPU_ROWS * ROWS
    # One buffer for the scores of every block.
    buffer = codebook.new_empty(min(most, len(vectors)) * min(CODES, len(codebook)))
    for start in range(0, len(vectors), most):
        rows = slice(start, start + most)
        part = vectors[rows]
        for first in range(0, len(codebook), CODES):
            columns = slice(first, first + CODES)
            shape = (len(part), len(squares[columns]))
            block = buffer[: shape[0] * shape[1]].view(shape)
            # e^2 - 2 z.e in one product
            torch.addmm(squares[columns], part, transposed[:, columns], alpha=-2, out=block)
            least, index = _row_minimum(block)
            # Strictly less, so that an earlier block keeps equal scores.
            closer = least < scores[rows]
            symbols[rows] = torch.where(closer, index + first, symbols[rows])
            scores[rows] = torch.where(closer, least, scores[rows])
    return symbols, scores


def _row_minimum(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The minimum of each row of ``[n, codes]``, and the first index that has it."""
    n, codes = scores.shape
    if codes % GROUP or codes == GROUP:
        least, index = scores.min(dim=1)
        return least, index
    grouped = scores.view(n, -1, GROUP)
    least, group = grouped.amin(dim=2).min(dim=1)
    within = grouped[torch.arange(n, device=scores.device), group].argmin(dim=1)
    return least, group * GROUP + within


def _draw_far(distances: torch.Tensor, number: int, generator: torch.Generator) -> torch.Tensor:
    """Indices ``[number]`` of vectors, drawn by their squared distances ``[n]`` from all codes."""
    weights = distances.clamp_min(0).cpu().double()
    # If all vectors are codes already, any will do.
    weights += 1e-9 * weights.mean() + 1e-30
    chosen = torch.multinomial(
        weights, number, replacement=len(weights) < number, generator=generator
    )
    return chosen.to(distances.device)


def _nearest_shapes(
    vectors: torch.Tensor, codebook: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty results of :func:`nearest`, with the right shapes."""
    n = vectors.shape[0]
    return codebook.new_empty(n, dtype=torch.int64), codebook.new_empty(n)


def _cluster_shapes(
    vectors: torch.Tensor, symbols: torch.Tensor, codes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty results of :func:`cluster`, with the right shapes."""
    return vectors.new_empty(codes), vectors.new_empty(codes, vectors.shape[1])


# torch.compile must not trace functions that pass addresses to a library, so they are registered as
# torch operators of which it knows only the shapes. (The decorator torch.compiler.disable would
# work too, but it imports torch._dynamo, which takes longer than importing the rest of this
# package.)
_OPERATORS = torch.library.Library("tessella", "FRAGMENT")
_OPERATORS.define("nearest(Tensor vectors, Tensor codebook) -> (Tensor, Tensor)")
_OPERATORS.define("cluster(Tensor vectors, Tensor symbols, SymInt codes) -> (Tensor, Tensor)")
_OPERATORS.impl("nearest", _nearest_fastest, "CompositeExplicitAutograd")
_OPERATORS.impl("cluster", _cluster_fastest, "CompositeExplicitAutograd")
torch.library.register_fake("tessella::nearest", _nearest_shapes, lib=_OPERATORS)
torch.library.register_fake("tessella::cluster", _cluster_shapes, lib=_OPERATORS)

"""A batch of vectors that is spread over processes, each of which holds a part.

The joined batch is the parts of all processes, in the order of their ranks. Every function here
that communicates must be called by all processes at the same point, also by one whose part is
empty: otherwise the others wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

HEADROOM = 8.0
"""How much larger than the sum of squares of a batch a sum of squared distances may become.

A squared distance between two vectors is at most four times the larger square.
"""


@dataclass(frozen=True)
class JoinedBatch:
    """Facts about a joined batch, equal in all processes but for ``start``.

    Args:
        start: place of this process's first vector in the joined batch.
        total: number of vectors of the joined batch.
        finite: whether all values are finite, and small enough for squared distances to be.
    """

    start: int
    total: int
    finite: bool

    @property
    def usable(self) -> bool:
        """Whether there is something to learn from: vectors, all of them usable."""
        return self.total > 0 and self.finite


def process_count() -> int:
    """Number of processes; 1 where torch.distributed is not in use."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all processes, in place where there are several."""
    if process_count() > 1:
        dist.all_reduce(values)
    return values


def join_batch(vectors: torch.Tensor, *others: torch.Tensor) -> JoinedBatch:
    """Describe the batch that the processes' vectors make together.

    Args:
        vectors: this process's part ``[n, dim]``; ``n`` may be 0.
        others: further tensors made from them, whose values must be finite too.
    """
    # No part is too small to be checked, but an empty one is fine: its sum is 0.
    finite = all(squares_are_finite(values) for values in (vectors, *others))
    if process_count() == 1:
        return JoinedBatch(0, len(vectors), finite)
    rank = dist.get_rank()
    # One row a process: the size of its part, and whether that is spoilt.
    table = torch.zeros(process_count(), 2, dtype=torch.int64, device=vectors.device)
    table[rank, 0] = len(vectors)
    table[rank, 1] = int(not finite)
    dist.all_reduce(table)
    sizes = table[:, 0].tolist()
    return JoinedBatch(sum(sizes[:rank]), sum(sizes), not bool(table[:, 1].any()))


def squares_are_finite(values: torch.Tensor) -> bool:
    """Whether all values are finite and squared distances between them do not overflow."""
    flat = values.detach().reshape(-1)
    # A dot product with itself needs no memory, unlike a tensor of squares.
    return bool((HEADROOM * flat.dot(flat)).isfinite())


def joined_rows(vectors: torch.Tensor, chosen: torch.Tensor, start: int) -> torch.Tensor:
    """Rows of the joined batch.

    Args:
        vectors: this process's part ``[n, dim]``.
        chosen: places in the joined batch, ``[m]``, equal in all processes.
        start: place of this process's first vector in the joined batch.

    Returns:
        The rows ``[m, dim]``, in all processes.
    """
    chosen = chosen.to(vectors.device)
    if process_count() == 1:
        return vectors[chosen]
    # Places in this process's part; those of other parts fall outside of it.
    local = chosen - start
    here = (local >= 0) & (local < len(vectors))
    # Each row lies in one process, so a sum over processes collects them.
    rows = vectors.new_zeros(len(chosen), vectors.shape[1])
    rows[here] = vectors[local[here]]
    return sum_over_processes(rows)

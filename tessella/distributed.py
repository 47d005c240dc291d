"""Work on a batch of vectors of which each process holds a part.

The joined batch consists of the parts of all processes, in the order of their ranks. Functions that
communicate must be called by all processes at the same point, even by one whose part is empty:
otherwise the others wait for it forever.
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
    """Facts about a joined batch; all but ``start`` are equal in all processes.

    Args:
        start: index in the joined batch of the first vector of this process.
        total: number of vectors in the joined batch.
        finite: whether all values, and all squared distances between vectors, are finite.
    """

    start: int
    total: int
    finite: bool

    @property
    def usable(self) -> bool:
        """Whether a codebook can learn from the batch: it has vectors, and all are finite."""
        return self.total > 0 and self.finite


def process_count() -> int:
    """Number of processes; 1 where torch.distributed is not in use."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all processes; in place if there are several."""
    if process_count() > 1:
        dist.all_reduce(values)
    return values


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over all processes, whose parts of a batch are of one size; in place."""
    if process_count() > 1:
        dist.all_reduce(values)
        values /= process_count()
    return values


def least_over_processes(value: int, device: torch.device) -> int:
    """The least of the values that the processes have; ``device`` is what they communicate on."""
    if process_count() == 1:
        return value
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    return int(shared)


def value_of_first(value: float, device: torch.device) -> float:
    """The value that the first process has, in all processes.

    Args:
        value: of this process.
        device: that the processes communicate on.
    """
    if process_count() == 1:
        return value
    # A tensor of eight bytes: an object would be pickled, and its size sent before it.
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return float(shared)


def join_batch(vectors: torch.Tensor, *others: torch.Tensor) -> JoinedBatch:
    """Describe the batch that the vectors of all processes form together.

    Args:
        vectors: this process's part ``[n, dim]``; ``n`` may be 0.
        others: further tensors, computed from the same batch, whose values must be finite too.
    """
    # An empty part passes this check, since its sum of squares is 0.
    finite = all(squares_are_finite(values) for values in (vectors, *others))
    if process_count() == 1:
        return JoinedBatch(0, len(vectors), finite)
    rank = dist.get_rank()
    # One row per process: the size of its part, and whether a value is not finite.
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
    """Fetch rows of the joined batch from the processes that hold them.

    Args:
        vectors: this process's part ``[n, dim]``.
        chosen: indices into the joined batch, ``[m]``, equal in all processes.
        start: index in the joined batch of the first vector of this process.

    Returns:
        The rows ``[m, dim]``, in all processes.
    """
    chosen = chosen.to(vectors.device)
    if process_count() == 1:
        return vectors[chosen]
    # Indices into the part of this process; those of other processes are out of range.
    local = chosen - start
    here = (local >= 0) & (local < len(vectors))
    # Each row is in exactly one process, so the sum over processes collects them all.
    rows = vectors.new_zeros(len(chosen), vectors.shape[1])
    rows[here] = vectors[local[here]]
    return sum_over_processes(rows)

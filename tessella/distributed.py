"""A batch of vectors that several processes hold a part of each."""

from __future__ import annotations

import torch
import torch.distributed as dist


def processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def joined(vectors: torch.Tensor) -> tuple[int, int]:
    """Where this process's vectors start in the batch joined over processes, and how many vectors
    that has."""
    if processes() == 1:
        return 0, len(vectors)
    sizes = torch.zeros(processes(), dtype=torch.int64, device=vectors.device)
    sizes[dist.get_rank()] = len(vectors)
    dist.all_reduce(sizes)
    return int(sizes[: dist.get_rank()].sum()), int(sizes.sum())


def joined_rows(vectors: torch.Tensor, chosen: torch.Tensor, start: int) -> torch.Tensor:
    """Rows ``chosen [m]`` of the joined batch, in which this process's vectors begin at ``start``:
    ``[m, dim]``."""
    chosen = chosen.to(vectors.device)
    if processes() == 1:
        return vectors[chosen]
    local = chosen - start
    here = (local >= 0) & (local < len(vectors))
    rows = vectors.new_zeros(len(chosen), vectors.shape[1])
    rows[here] = vectors[local[here]]
    dist.all_reduce(rows)
    return rows

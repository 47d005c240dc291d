"""A small exact twin for tests: frequencies made of integers from the symbols before."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from tessella.grid import Grid

TOTAL = 1 << 24


@dataclass
class FakeDistribution:
    """Frequencies, ``int64 [batch, levels]``."""

    table: torch.Tensor

    def frequencies(self) -> torch.Tensor:
        return self.table

    def interval(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ends = self.table.cumsum(dim=1)
        frequency = self.table.gather(1, x[:, None])[:, 0]
        return ends.gather(1, x[:, None])[:, 0] - frequency, frequency


def frequencies_of(weights: torch.Tensor) -> FakeDistribution:
    """A distribution from weights of the levels, ``int64 [batch, levels]``, at least 1."""
    levels = weights.shape[1]
    table = 1 + weights * (TOTAL - levels) // weights.sum(dim=1, keepdim=True)
    missing = TOTAL - table.sum(dim=1)
    best = table.argmax(dim=1, keepdim=True)
    return FakeDistribution(table.scatter_add(1, best, missing[:, None]))


class FakeTwin:
    """Expects a symbol near the one before and the one above.

    The nearest level weighs ``2**sharp``, and ``2**steep`` times as much as the next.
    """

    classes = 0
    arithmetic_version = 1
    null_class = False

    def __init__(self, grid: Grid, sharp: int = 20, steep: int = 2, name: str = "fake") -> None:
        self.grid = grid
        self.sharp = sharp
        self.steep = steep
        self.id = hashlib.sha256(f"{name} {grid} {sharp} {steep}".encode()).hexdigest()

    def init_state(self, batch: int, cond: object = None) -> torch.Tensor:
        assert cond is None
        return torch.zeros(batch, self.grid.symbols, dtype=torch.int64)

    def next(
        self, previous: torch.Tensor, index: int, state: torch.Tensor
    ) -> tuple[FakeDistribution, torch.Tensor]:
        assert previous.dtype == torch.int64
        assert previous.shape == (len(state),)
        if index:
            state[:, index - 1] = previous
        back = min(index, self.grid.channels)
        up = min(index, self.grid.row_symbols)
        guess = torch.zeros_like(previous)
        if index:
            guess = (state[:, index - back] + state[:, index - up] + state.sum(dim=1) % 2) // 2
        far = (torch.arange(self.grid.levels) - guess[:, None]).abs()
        weights = 1 + ((1 << self.sharp) >> (self.steep * far).clamp(max=62))
        return frequencies_of(weights), state


def rows_of(count: int, shape: tuple[int, ...], levels: int, seed: int = 0) -> torch.Tensor:
    """Smooth images, ``int64 [count, *shape]``, below ``levels``."""
    dice = torch.Generator().manual_seed(seed)
    height, width, channels = shape
    start = torch.randint(0, levels, (count, 1, 1, channels), generator=dice)
    slope = torch.randint(-2, 3, (count, 1, 1, channels), generator=dice)
    across = torch.arange(width)[None, None, :, None]
    down = torch.arange(height)[None, :, None, None]
    noise = torch.randint(0, 2, (count, height, width, channels), generator=dice)
    return (start + slope * across + down + noise).remainder(levels)

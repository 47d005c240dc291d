"""The walk over a group of pieces that step together, for encoding and for decoding.

Symbols are coded in the order of the sequence, and of one index for all pieces, so that a decoder
can step the whole group as a batch. How many pieces step at a time changes speed and memory only:
an exact twin predicts the same for every batch.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from tessella.codec.entropy_coder import SymbolDecoder
from tessella.codec.tiles import Coded
from tessella.grid import Grid


@runtime_checkable
class SymbolFrequencies(Protocol):
    """Integer frequencies of a symbol, over ``[batch]``."""

    def frequencies(self) -> torch.Tensor:
        """``int64 [batch, levels]``, at least 1, in rows that sum to 2^24."""

    def interval(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Start and frequency of symbols ``int64 [batch]``, each ``int64 [batch]``."""


@runtime_checkable
class Twin(Protocol):
    """What the codec needs of an exact twin (:class:`tessella.exact.ExactModel`)."""

    grid: Grid
    id: str
    arithmetic_version: int
    null_class: bool

    @property
    def classes(self) -> int:
        """Classes that it knows; 0 for a model without."""

    def init_state(self, batch: int, cond: None = None) -> Any:
        """The state before the first symbol."""

    def next(self, previous: torch.Tensor, index: int, state: Any) -> tuple[SymbolFrequencies, Any]:
        """The frequencies of symbol ``index``, and the next state."""


class _Batch:
    """Some pieces of a group that step at the same time."""

    def __init__(self, twin: Twin, rows: slice, coded: Coded) -> None:
        self.twin = twin
        self.rows = rows
        self.mask = coded.mask[rows]
        self.known_in_all: np.ndarray = np.logical_not(self.mask.any(axis=0))
        # What follows the last coded symbol is not predicted.
        self.stop = int(np.flatnonzero(~self.known_in_all)[-1]) + 1
        self.state = twin.init_state(len(self.mask))

    def next(self, x: torch.Tensor, index: int) -> SymbolFrequencies:
        """Predict symbol ``index``, after the symbols ``x int64 [n, symbols]`` before it."""
        # What comes before the first symbol is ignored.
        previous = x[self.rows, max(0, index - 1)].contiguous()
        distribution, self.state = self.twin.next(previous, index, self.state)
        return distribution


def _batches(twin: Twin, coded: Coded, batch: int) -> list[_Batch]:
    """A group as batches of at most ``batch`` pieces."""
    found = []
    for start in range(0, len(coded.mask), batch):
        found.append(_Batch(twin, slice(start, start + batch), coded))
    return found


def intervals(twin: Twin, x: np.ndarray, coded: Coded, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The intervals of the symbols of a group.

    Args:
        twin: the model.
        x: the symbols, ``int64 [n, symbols]``.
        coded: what is coded of them.
        batch: pieces that step at a time.

    Returns:
        starts and frequencies, each ``int64 [n, stop]``; those of known symbols are 0 and 2^24.
    """
    symbols = torch.from_numpy(x)
    starts = np.zeros((len(x), coded.stop), dtype=np.int64)
    frequencies = np.full_like(starts, 1 << 24)
    with torch.no_grad():
        for part in _batches(twin, coded, batch):
            for index in range(part.stop):
                distribution = part.next(symbols, index)
                if part.known_in_all[index]:
                    continue
                start, frequency = distribution.interval(symbols[part.rows, index])
                starts[part.rows, index] = start.numpy()
                frequencies[part.rows, index] = frequency.numpy()
    # Of pieces of different shapes that step together, some know a symbol that others code.
    known = ~coded.mask[:, : coded.stop]
    starts[known] = 0
    frequencies[known] = 1 << 24
    return starts, frequencies


def in_order(values: np.ndarray, coded: Coded) -> np.ndarray:
    """Values of the coded symbols in the order of the stream.

    Args:
        values: ``[n, stop]`` or longer.
        coded: what is coded.

    Returns:
        ``[count]``: index by index, and for each index piece by piece.
    """
    mask = coded.mask[:, : coded.stop].T
    ordered: np.ndarray = values[:, : coded.stop].T[mask]
    return ordered


def from_order(values: np.ndarray, coded: Coded) -> np.ndarray:
    """The opposite of :func:`in_order`, with known symbols filled in: ``int64 [n, symbols]``."""
    x = np.zeros(coded.mask.shape, dtype=np.int64)
    by_index = np.zeros((coded.stop, len(x)), dtype=np.int64)
    by_index[coded.mask[:, : coded.stop].T] = values
    x[:, : coded.stop] = by_index.T
    return np.take_along_axis(x, coded.sources, axis=1)


def decoded(twin: Twin, decoder: SymbolDecoder, coded: Coded, batch: int) -> np.ndarray:
    """Decode the symbols of a group.

    Args:
        twin: the model.
        decoder: holds the stream.
        coded: what is coded.
        batch: pieces that step at a time.

    Returns:
        ``int64 [n, symbols]``, with known symbols filled in.

    Raises:
        BitstreamError: when the stream ends early.
    """
    parts = _batches(twin, coded, batch)
    x = np.zeros(coded.mask.shape, dtype=np.int64)
    symbols = torch.from_numpy(x)  # the same memory
    everyone = np.arange(len(x))
    with torch.no_grad():
        for index in range(coded.stop):
            for part in parts:
                if index >= part.stop:
                    continue
                distribution = part.next(symbols, index)
                if part.known_in_all[index]:
                    continue
                wanted = part.mask[:, index]
                table = distribution.frequencies().numpy()
                x[part.rows, index][wanted] = decoder.decode(table[wanted])
            # A known symbol is an earlier one; a coded one is itself.
            x[:, index] = x[everyone, coded.sources[:, index]]
    return x

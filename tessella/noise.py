"""The randomness of sampling, fixed before the first symbol is drawn.

Image ``i`` of a call has the seed ``seed + i``. Symbol ``t`` of an image is the argmax over levels
``k`` of ``log p(k) - log E[t, k]`` with ``E`` standard exponential, which draws exactly from ``p``
(the Gumbel-max trick, Maddison, Tarlow and Minka 2014). ``E[t, k]`` is a function of the image's
seed, of ``t`` and of ``k`` alone, so neither the batch nor the method nor symbols that are known
already shift it: every way of sampling can reproduce every other.

The numbers come from the counter-based generator Philox4x64 (Salmon et al. 2011) keyed by the seed:
symbol ``t`` of a grid with ``K`` levels owns the 64-bit words ``t * P .. t * P + K - 1``, where
``P`` is ``K`` rounded up to a multiple of four. Of several grids of one image, each has a key of
its own.

These are the seeds of *images*. The seed of :func:`tessella.create` is that of a model's first
weights, the seed of a recipe that of weights, data order and dropout; they have nothing to do with
each other.
"""

from __future__ import annotations

import numpy as np
import torch

from tessella.errors import check_integer
from tessella.grid import Grid

BLOCK_WORDS = 4
"""Words that Philox4x64 makes of one value of its counter."""

BUFFER_WORDS = 1 << 22
"""Words held at a time over all images; a row where it fits, fewer symbols where it does not."""

SEEDS = 1 << 64
"""How many seeds there are."""


class Noise:
    """``-log E`` for every symbol of ``n`` images, made as the walk reaches it.

    Args:
        grid: the grid that is sampled.
        n: images.
        seed: seed of the first image, ``0 .. 2^64 - n``; image ``i`` has ``seed + i``.
        device: where :meth:`at` puts its result.
        part: which grid of an image it is, where an image has several, coarse to fine.

    Raises:
        InputError: for a seed that is not an integer in that range.
    """

    def __init__(
        self, grid: Grid, n: int, seed: int = 0, device: torch.device | str = "cpu", part: int = 0
    ) -> None:
        self.grid = grid
        self.n = n
        self.seed = check_seed(seed, n)
        self.device = torch.device(device)
        # A key has 128 bits, and a seed takes the lower 64 of them.
        self._part = part << 64
        # Words of a symbol: its levels, rounded up to whole blocks of the generator.
        self._stride = -(-grid.levels // BLOCK_WORDS) * BLOCK_WORDS
        # Symbols that are held at a time.
        affordable = BUFFER_WORDS // max(1, self._stride * n)
        self._span = max(1, min(grid.row_symbols, affordable))
        self._start = -1
        self._buffer = torch.empty(0)

    def at(self, index: int) -> torch.Tensor:
        """``-log E`` of symbol ``index``: float64 ``[n, levels]``."""
        start = index - index % self._span
        if start != self._start:
            self._fill(start)
        return self._buffer[index - start]

    def _fill(self, start: int) -> None:
        """Make the numbers of ``span`` symbols, from symbol ``start`` on."""
        count = min(self._span, self.grid.symbols - start)
        drawn = np.empty((self.n, count * self._stride), dtype=np.uint64)
        counter = start * self._stride // BLOCK_WORDS
        for image in range(self.n):
            key = self._part + self.seed + image
            drawn[image] = np.random.Philox(key=key, counter=counter).random_raw(drawn.shape[1])
        # [n, words] -> [symbols, n, levels]; the words that round a symbol up are dropped.
        by_symbol = drawn.reshape(self.n, count, self._stride).swapaxes(0, 1)
        words = by_symbol[:, :, : self.grid.levels]
        # The middle of one of 2^52 equal cells of (0, 1), which float64 holds exactly: never 0,
        # never 1.
        cells = torch.from_numpy((words >> np.uint64(12)).view(np.int64))
        uniform = cells.double().add_(0.5).mul_(2.0**-52)
        # E = -log U, and the noise is -log E.
        noise = uniform.log_().neg_().log_().neg_()
        self._buffer = noise.to(self.device)
        self._start = start


def check_seed(seed: object, n: int = 1) -> int:
    """Return the seed of the first of ``n`` images, or refuse it.

    This is the one check of such a seed. Callers that draw in several batches make it for all their
    images before the first one.

    Raises:
        InputError: when it is not an integer with ``0 <= seed`` and ``seed + n <= 2^64``.
    """
    return check_integer("seed", seed, least=0, most=SEEDS - n)

"""The randomness of sampling, fixed before the first symbol is drawn.

Image ``i`` of a call has the seed ``seed + i``. Symbol ``t`` of an image is the argmax over levels
``k`` of ``log p(k) - log E[t, k]``, where ``E`` is standard exponential. This draws exactly from
``p`` (the Gumbel-max trick, Maddison, Tarlow and Minka 2014). ``E[t, k]`` depends only on the
image's seed, on ``t`` and on ``k``: not on the batch, the method, or which symbols are known. So
all ways of sampling reproduce one another.

The numbers come from the counter-based generator Philox4x64 (Salmon et al. 2011), keyed by the
seed. Symbol ``t`` of a grid with ``K`` levels uses the 64-bit words ``t * P .. t * P + K - 1``,
where ``P`` is ``K`` rounded up to a multiple of four. If an image has several grids, each grid has
a separate key.

These are seeds of *images*. They have nothing to do with the seed of :func:`tessella.create`, which
is for initial weights, or the seed of a recipe, which is for weights, data order and dropout.
"""

from __future__ import annotations

import numpy as np
import torch

from tessella.errors import check_integer
from tessella.grid import Grid

BLOCK_WORDS = 4
"""How many words Philox4x64 makes from one value of its counter."""

BUFFER_WORDS = 1 << 22
"""Upper limit on the words held at a time, over all images. The buffer holds a row, or fewer
symbols if a row does not fit."""

FEW_WORDS = 1 << 17
"""Words up to which the buffer holds more than a row: 1 MiB."""

SEEDS = 1 << 64
"""How many seeds there are."""


class Noise:
    """``-log E`` for every symbol of ``n`` images, generated on demand.

    Args:
        grid: the grid to sample.
        n: number of images.
        seed: seed of the first image, ``0 .. 2^64 - n``; image ``i`` has ``seed + i``.
        device: device of the result of :meth:`at`.
        part: index of the grid, coarse to fine, if an image has several.

    Raises:
        InputError: when the seed is not an integer in that range.
    """

    def __init__(
        self, grid: Grid, n: int, seed: int = 0, device: torch.device | str = "cpu", part: int = 0
    ) -> None:
        self.grid = grid
        self.n = n
        self.seed = check_seed(seed, n)
        self.device = torch.device(device)
        # A key has 128 bits: the seed takes the lower 64, and the part goes above them.
        self._part = part << 64
        # Words per symbol: one for each level, rounded up to whole blocks of the generator.
        self._stride = -(-grid.levels // BLOCK_WORDS) * BLOCK_WORDS
        # Number of symbols held at a time.
        words = max(1, self._stride * n)
        wanted = max(grid.row_symbols, FEW_WORDS // words)
        self._span = max(1, min(wanted, grid.symbols, BUFFER_WORDS // words))
        self._start = -1
        self._buffer = torch.empty(0)
        self._generators: list[np.random.Philox] = []
        # The symbol whose words the generators make next.
        self._position = -1

    def at(self, index: int) -> torch.Tensor:
        """``-log E`` of symbol ``index``: ``float64 [n, levels]``."""
        start = index - index % self._span
        if start != self._start:
            self._fill(start)
        return self._buffer[index - start]

    def held(self, index: int) -> torch.Tensor:
        """:meth:`at` of symbol ``index`` and some symbols after it: ``[symbols, n, levels]``.

        The noise of an image's symbol is contiguous.
        """
        self.at(index)
        held = self._buffer[index - self._start :]
        return held if held.stride(2) == 1 else held.contiguous()

    def _fill(self, start: int) -> None:
        """Generate the numbers of the symbols from ``start`` on, as many as the buffer holds."""
        count = min(self._span, self.grid.symbols - start)
        drawn = np.empty((self.n, count * self._stride), dtype=np.uint64)
        # Making generators takes longer than the numbers of a few symbols, so they are kept.
        if start != self._position:
            self._generators = self._generators_at(start)
        for image, generator in enumerate(self._generators):
            drawn[image] = generator.random_raw(drawn.shape[1])
        self._position = start + count
        # [n, words] to [symbols, n, levels]; this drops the words used for rounding up.
        by_symbol = drawn.reshape(self.n, count, self._stride).swapaxes(0, 1)
        words = by_symbol[:, :, : self.grid.levels]
        # The centre of one of 2^52 equal cells of (0, 1). float64 represents it exactly, and it is
        # never 0 or 1.
        cells = torch.from_numpy((words >> np.uint64(12)).view(np.int64))
        uniform = cells.double().add_(0.5).mul_(2.0**-52)
        # E = -log U, and the noise is -log E.
        noise = uniform.log_().neg_().log_().neg_()
        self._buffer = noise.to(self.device)
        self._start = start

    def _generators_at(self, start: int) -> list[np.random.Philox]:
        """The generator of each image, where the words of symbol ``start`` begin."""
        counter = start * self._stride // BLOCK_WORDS
        first = self._part + self.seed
        return [np.random.Philox(key=first + i, counter=counter) for i in range(self.n)]


def place_noise(grid: Grid, n: int, seed: int, part: int) -> torch.Tensor:
    """One number ``-log E`` for every place of ``n`` images: ``float64 [n, symbols]``.

    Args:
        grid: the grid of the places; its levels do not matter.
        n, seed: see :class:`Noise`.
        part: number of the noise; different ones are independent.
    """
    # Noise of the first of two levels. Any grid has at least two.
    noise = Noise(Grid(grid.height, grid.width, grid.channels, 2), n, seed, part=part)
    return torch.stack([noise.at(place)[:, 0] for place in range(grid.symbols)], dim=1)


def check_seed(seed: object, n: int = 1) -> int:
    """Check the seed of the first of ``n`` images, and return it as an int.

    Callers that draw in several batches check the seed for all images before the first batch.

    Raises:
        InputError: when it is not an integer with ``0 <= seed`` and ``seed + n <= 2^64``.
    """
    # Image n - 1 has the seed seed + n - 1, which must fit into 64 bits.
    return check_integer("seed", seed, least=0, most=SEEDS - n)

"""Distributions whose probabilities are integers (``docs/arithmetic.md``, "Frequencies").

Each level has a frequency of at least 1, and the frequencies of a symbol sum to
:data:`~tessella.nn.integer.functions.TOTAL`. No floating point is involved, so they are the same on
every machine and device, whatever the batch is.
"""

from __future__ import annotations

from abc import abstractmethod

import torch

from tessella.heads import Distribution
from tessella.nn.integer.functions import (
    FINE_BITS,
    FRACTION_BITS,
    TOTAL,
    fine_decay,
    fine_sigmoid,
    rounded,
)

WEIGHT_BITS = 20
"""Fraction bits of the weights of a mixture."""

_LOWEST_LOG_SCALE = -7 << FRACTION_BITS
_HIGHEST_LOG_SCALE = 15 << FRACTION_BITS

_LARGEST_INVERSE = 1_149_903_211
"""The inverse of the smallest scale: ``round(exp(7) * 2**20)``."""


class IntegerDistribution(Distribution):
    """Base of the distributions that give each level an integer frequency.

    A subclass defines :meth:`frequencies`. It overrides :meth:`interval` where one level can be had
    without the others.
    """

    @abstractmethod
    def frequencies(self) -> torch.Tensor:
        """The frequency of each level: ``int64 [..., levels]``, at least 1, of sum ``TOTAL``."""

    def interval(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What a coder needs to know of each symbol of ``x int64 [...]``.

        Returns:
            The sum of the frequencies of all lower levels, and the frequency: ``int64 [...]`` each.
        """
        frequencies = self.frequencies()
        level = x.unsqueeze(-1)
        frequency = frequencies.gather(-1, level).squeeze(-1)
        end = frequencies.cumsum(-1).gather(-1, level).squeeze(-1)
        return end - frequency, frequency

    def table(self, x: torch.Tensor | None = None) -> torch.Tensor:
        return torch.log(self.frequencies().double() / TOTAL)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        _, frequency = self.interval(x)
        return torch.log(frequency.double() / TOTAL)

    def mode(self) -> torch.Tensor:
        return self.frequencies().argmax(dim=-1)


class IntegerCategorical(IntegerDistribution):
    """A softmax over the levels.

    Args:
        logits: ``int32`` or ``int64 [..., levels]``, in units of ``2**-16``.
    """

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits.long()

    def frequencies(self) -> torch.Tensor:
        levels = self.logits.shape[-1]
        exponentials = exponentials_below_largest(self.logits)
        ratio = ((TOTAL - levels) << 32) // exponentials.sum(dim=-1, keepdim=True)
        return with_sum(1 + ((exponentials * ratio) >> 32), TOTAL)


class IntegerMixture(IntegerDistribution):
    """A mixture of logistics, each integrated over the bin of a level.

    Args:
        parameters: weights in units of ``2**-20`` and of sum ``2**20``; means and log-scales in
            units of ``2**-16``, on the axis where the levels span [-1, 1]:
            ``int64 [..., 3 * components]``.
        levels: number of levels.
    """

    def __init__(self, parameters: torch.Tensor, levels: int) -> None:
        self.levels = levels
        self.weights, self.means, log_scales = parameters.chunk(3, dim=-1)
        above_lowest = log_scales.clamp(_LOWEST_LOG_SCALE, _HIGHEST_LOG_SCALE) - _LOWEST_LOG_SCALE
        self.inverse_scales = rounded(_LARGEST_INVERSE * fine_decay(above_lowest), FINE_BITS)

    def frequencies(self) -> torch.Tensor:
        levels = torch.arange(-1, self.levels, device=self.means.device)
        return self.cumulative(levels).diff(dim=-1)

    def interval(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        start, end = self.cumulative(torch.stack([x - 1, x], dim=-1)).unbind(-1)
        return start, end - start

    def cumulative(self, levels: torch.Tensor) -> torch.Tensor:
        """The sum of the frequencies up to and including some levels: ``int64 [..., n]``.

        Args:
            levels: ``int64 [..., n]``, in ``-1 .. levels - 1``; leading dimensions broadcast.
        """
        each = self.component_cumulative(levels)
        mixed = (each * self.weights.unsqueeze(-2)).sum(dim=-1) >> WEIGHT_BITS
        # Each level has one count of its own; the others are divided by the mixture.
        return levels + 1 + ((mixed * (TOTAL - self.levels)) >> FINE_BITS)

    def component_cumulative(self, levels: torch.Tensor) -> torch.Tensor:
        """Cumulative probabilities under each component, in units of ``2**-24``.

        Args:
            levels: as for :meth:`cumulative`.

        Returns:
            ``int64 [..., n, components]``.
        """
        levels = levels.unsqueeze(-1)
        # The upper edge of each bin, in units of 2**-24.
        bins = self.levels - 1
        edges = (((2 * levels + 1) << 24) + bins // 2) // bins - (1 << 24)
        centred = (edges - (self.means.unsqueeze(-2) << 8)).clamp_(-(2**31) + 1, 2**31 - 1)
        # Beyond 2**21 a sigmoid is constant anyway.
        inside = fine_sigmoid(centred.mul_(self.inverse_scales.unsqueeze(-2)) >> 28)
        # The bin of the last level extends to infinity. There is nothing below the first level.
        inside.masked_fill_(levels >= bins, 1 << FINE_BITS)
        return inside.masked_fill_(levels < 0, 0)

    def joint_with(self, x: torch.Tensor) -> torch.Tensor:
        """Joint probability of each component and of ``x int64 [...]``, up to a constant.

        Returns:
            At least 0, and less than ``2**41``: ``int64 [..., components]``.
        """
        each = self.component_cumulative(torch.stack([x - 1, x], dim=-1))
        probability = (each[..., 1, :] - each[..., 0, :]).clamp(min=1)
        # Rounded up, so that no component is lost for good.
        return (self.weights * probability + 15) >> 4


def value_of(x: torch.Tensor, levels: int, bits: int) -> torch.Tensor:
    """Symbols on the axis where the levels span [-1, 1], in units of ``2**-bits``.

    Args:
        x: symbols, ``int64 [...]``.
        levels: number of levels.
        bits: fraction bits of the result.
    """
    bins = levels - 1
    # Never negative before the shift to the left end of the axis, so // rounds down.
    return ((x << (bits + 1)) + bins // 2) // bins - (1 << bits)


def mixture_weights(proportions: torch.Tensor) -> torch.Tensor:
    """Weights of sum ``2**20`` in given proportions: ``int64 [..., components]``.

    Args:
        proportions: at least 0 and below ``2**42``, not all 0, ``int64 [..., components]``.
    """
    total = proportions.sum(dim=-1, keepdim=True)
    return with_sum((proportions << WEIGHT_BITS) // total, 1 << WEIGHT_BITS)


def exponentials_below_largest(logits: torch.Tensor) -> torch.Tensor:
    """``exp`` of the differences to the largest logit, in units of ``2**-24``: ``int64 [..., n]``.

    Args:
        logits: in units of ``2**-16``, ``int64 [..., n]``.
    """
    return fine_decay(logits.amax(dim=-1, keepdim=True) - logits)


def with_sum(counts: torch.Tensor, total: int) -> torch.Tensor:
    """Add to the first of the largest counts what is missing to a total: ``int64 [..., n]``."""
    missing = total - counts.sum(dim=-1, keepdim=True)
    return counts.scatter_add(-1, counts.argmax(dim=-1, keepdim=True), missing)

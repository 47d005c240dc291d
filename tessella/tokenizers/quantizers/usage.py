"""Figures about how the codes of a codebook are used."""

from __future__ import annotations

import torch

from tessella.errors import InputError

RARE = 0.01
"""Share of the mean count up to which a code counts as unused."""


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """The exponential of the entropy of frequencies proportional to ``counts [codes]``.

    It is 1 if nothing was counted.
    """
    # The smallest float prevents 0/0; it changes no other quotient.
    shares = counts / counts.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.special.entr(shares).sum().exp()


def used_share(counts: torch.Tensor) -> torch.Tensor:
    """Share of the codes whose running count ``counts [codes]`` exceeds 1 % of the mean.

    A code that was just revived counts as used until its count has decayed.
    """
    return (counts > RARE * counts.mean()).to(counts.dtype).mean()


class CodeUsage:
    """Counts how often each code is used, over any number of batches.

    Count a whole epoch: the perplexity of a single batch says little, since a batch of few images
    cannot use many codes.

    Args:
        levels: number of codes.

    >>> usage = CodeUsage(4)
    >>> usage.update(torch.tensor([0, 0, 1, 1]))
    >>> usage.used, usage.used_fraction, usage.entropy_bits
    (2, 0.5, 1.0)
    """

    def __init__(self, levels: int) -> None:
        self.counts = torch.zeros(levels, dtype=torch.int64)

    def update(self, symbols: torch.Tensor) -> None:
        """Count symbols (integers of any shape).

        Raises:
            InputError: when a symbol is not a code.
        """
        # torch has no minimum for the uint16 symbols of stored codes, so all become int64.
        flat = symbols.detach().flatten().long().cpu()
        if flat.numel() == 0:
            return
        least = int(flat.min())
        most = int(flat.max())
        if least < 0 or most >= len(self.counts):
            raise InputError(f"symbols must lie in 0..{len(self.counts) - 1}, got {least}..{most}")
        self.counts += torch.bincount(flat, minlength=len(self.counts))

    @property
    def used(self) -> int:
        """Number of codes used at least once."""
        return int((self.counts > 0).sum())

    @property
    def used_fraction(self) -> float:
        """Share of the codes used at least once."""
        return self.used / len(self.counts)

    @property
    def entropy_bits(self) -> float:
        """Entropy of the codes' frequencies in bits: the mean cost of a code under them."""
        # In float64, since counts of a large data set can exceed the integers of float32.
        return float(perplexity(self.counts.double()).log2())

    @property
    def perplexity(self) -> float:
        """``2 ** entropy_bits``: the number of equally frequent codes with this entropy."""
        return float(perplexity(self.counts.double()))

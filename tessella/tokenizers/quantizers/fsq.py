"""Finite scalar quantization: fixed levels in a few dimensions, instead of a codebook."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from tessella.distributed import join_batch
from tessella.errors import ConfigError
from tessella.tokenizers.construction import check_count
from tessella.tokenizers.quantizers.codebook import (
    MAX_CODES,
    MAX_DIMENSIONS,
    as_matrix,
    projections,
    straight_through,
    update_counts,
    without_autocast,
)
from tessella.tokenizers.quantizers.quantizer import Quantizer, QuantizerOutput, Remedies
from tessella.tokenizers.quantizers.usage import perplexity, used_share

PUBLISHED: dict[int, tuple[int, ...]] = {
    256: (8, 6, 5),
    1024: (8, 5, 5, 5),
    4096: (7, 5, 5, 5, 5),
    16384: (8, 8, 8, 6, 5),
    65536: (8, 8, 8, 5, 5, 5),
}
"""Levels for approximately a number of codes (Mentzer et al. 2023, table 1)."""

MARGIN = 1e-3
"""How far a bounded value may exceed the outermost level, as a share of that level."""


class FSQ(Quantizer):
    """Finite scalar quantization: each of a few dimensions is bounded and rounded.

    Mentzer et al. (2023), section 3. Dimension i has ``L_i`` levels. Its value is bounded to an
    interval that rounds to that many integers, ``f(z) = h tanh(z + s) - o`` with ``h = (1 + 0.001)
    (L_i - 1) / 2``, ``o = 1/2`` for even ``L_i`` (0 for odd) and ``s = artanh(o / h)`` so that
    ``f(0) = 0``; the code is ``round(f(z)) / floor(L_i / 2)``, in -1..1. The gradient of the
    rounding is 1. The symbol is a number in mixed radix whose digits are the levels, least
    significant first.

    There is no codebook to learn and no loss. If ``dim`` is not the number of dimensions, a linear
    layer maps vectors to them, and another maps codes back. Codes are bounded, but vectors are not:
    :meth:`unbounded` returns vectors that :meth:`encode` maps to given symbols.

    Large values only saturate. In training, a vector with a value that is not finite is quantized
    to NaN, so that the loss becomes NaN as well.

    Args:
        dim: number of components of a vector.
        codebook_size: number of codes, for which the paper gives levels; unused if ``levels`` is
            given.
        levels: number of levels of each dimension, at least 3. The number of codes is their
            product.

    Raises:
        ConfigError: when an argument is out of range, or the paper has no levels for
            ``codebook_size``.

    >>> quantizer = FSQ(dim=4, levels=(8, 5, 5, 5))
    >>> vectors = torch.tensor([[0.0, 0.0, 0.0, 0.0], [-9.0, -9.0, -9.0, -9.0]])
    >>> quantizer.levels, quantizer.encode(vectors).tolist()
    (1000, [[500], [0]])
    """

    name = "fsq"
    depth = 1
    learns_codes = False
    reversible = False
    remedies = Remedies(
        collapse="train at a lower learning rate",
        dead_codes="{fewer} (fewer levels), or train longer",
    )

    def __init__(
        self, dim: int = 64, codebook_size: int = 1024, levels: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        check_count("dim", dim, 1, MAX_DIMENSIONS)
        check_count("codebook_size", codebook_size, 2, MAX_CODES)
        self.sizes = tuple(levels) or _published(codebook_size)
        # With two levels, the shift artanh(o / h) is so large that the tanh hardly responds.
        if min(self.sizes) < 3:
            raise ConfigError(
                f"levels must be at least 3 each, got {list(levels)}; for two levels use lfq"
            )
        self.dim = dim
        self.levels = math.prod(self.sizes)
        if self.levels > MAX_CODES:
            raise ConfigError(
                f"levels={list(levels)} make {self.levels:,} codes; at most {MAX_CODES:,} are "
                "allowed: take fewer levels or dimensions"
            )
        self.narrow, self.widen = projections(dim, len(self.sizes))
        self.counts: torch.Tensor
        self.sides: torch.Tensor
        self.place_values: torch.Tensor
        self.register_buffer("counts", torch.zeros(self.levels))
        sides = torch.tensor(self.sizes)
        self.register_buffer("sides", sides, persistent=False)
        # Value of a digit of each dimension: the product of the sides before it.
        self.register_buffer("place_values", sides.cumprod(0) // sides, persistent=False)

    @classmethod
    def examples(cls) -> Mapping[str, Mapping[str, object]]:
        return {"": {"levels": [3, 4, 3, 5, 4, 3]}, "short": {"levels": [8, 5, 5]}}

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        with without_autocast(z):
            bounded = self._bounded(z)  # [..., dimensions]
            digits = self._digits(bounded)  # integers in [0, L_i)
            middle = self.sides // 2
            inner = straight_through(bounded / middle, self._codes(digits))
            symbols = (digits * self.place_values).sum(dim=-1, keepdim=True)  # mixed radix
            if self.training:
                # Rounding hides a value that is not finite, and there is no loss that would show
                # it.
                finite = z.isfinite().all(dim=-1, keepdim=True) & bounded.isfinite()
                inner = torch.where(finite, inner, torch.nan)
                with torch.no_grad():
                    batch = join_batch(inner.detach().reshape(-1, len(self.sizes)))
                    update_counts(self.counts, symbols, batch)
                # Another process may have such a value, and all must notice.
                if not batch.finite:
                    inner = inner * torch.nan
            codes = self.widen(inner)
        stats = {"perplexity": perplexity(self.counts), "usage": used_share(self.counts)}
        return QuantizerOutput(symbols, codes.to(z.dtype), {}, stats)

    @torch.no_grad()
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        with without_autocast(z):
            return (self._digits(self._bounded(z)) * self.place_values).sum(dim=-1, keepdim=True)

    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        with without_autocast(symbols):
            # Digit i of the symbol is symbol // (L_0 ... L_{i-1}) mod L_i.
            return self.widen(self._codes(symbols // self.place_values % self.sides))

    def unbounded(self, symbols: torch.Tensor) -> torch.Tensor:
        """Vectors ``[..., len(levels)]`` in the middle of the range that is rounded to a symbol.

        The outermost levels are hardly reached, so vectors for them are a quarter of a step inside.
        """
        half, offset, shift = self._bound()
        # The inverse of f: z = artanh((v + o) / h) - s
        values = (symbols // self.place_values % self.sides - self.sides // 2 + offset).to(half)
        outermost = (self.sides - 1) / 2 - 0.25
        return torch.atanh(values.clamp(-outermost, outermost) / half) - shift

    def _bound(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``h``, ``o`` and ``s`` of each dimension."""
        half = (self.sides - 1).to(self.counts.dtype) * (1 + MARGIN) / 2
        offset = (self.sides % 2 == 0).to(half) / 2
        return half, offset, torch.atanh(offset / half)

    def _bounded(self, z: torch.Tensor) -> torch.Tensor:
        """``f`` of vectors ``[..., dim]``, before rounding: ``[..., dimensions]``."""
        half, offset, shift = self._bound()
        vectors = as_matrix(z.to(half.dtype), self.dim)
        inner = self.narrow(vectors).view(*z.shape[:-1], len(self.sizes))
        return torch.tanh(inner + shift) * half - offset

    def _digits(self, bounded: torch.Tensor) -> torch.Tensor:
        """The level of each dimension, from 0: ``int64``.

        NaN gets the middle level, so that symbols stay in range.
        """
        levels = bounded.detach().nan_to_num(nan=0.0).round().long() + self.sides // 2
        return levels.clamp_min(0).minimum(self.sides - 1)

    def _codes(self, digits: torch.Tensor) -> torch.Tensor:
        """The values of levels, from 0 each, on the scale -1..1."""
        middle = self.sides // 2
        return (digits - middle).to(self.counts.dtype) / middle


def _published(codebook_size: int) -> tuple[int, ...]:
    """The levels that the paper gives for a number of codes, or ConfigError."""
    for wanted, levels in PUBLISHED.items():
        if codebook_size in (wanted, math.prod(levels)):
            return levels
    known = ", ".join(map(str, PUBLISHED))
    raise ConfigError(
        f"fsq knows levels for codebook_size {known}, got {codebook_size}; "
        "for another size give the levels of each dimension, for example levels=[8, 5, 5, 5]"
    )

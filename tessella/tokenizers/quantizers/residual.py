"""Residual quantization: several codes per vector, each for what those before it left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.tokenizers.construction import check_count
from tessella.tokenizers.quantizers.codebook import (
    MAX_VALUES,
    check_sizes,
    straight_through,
    without_autocast,
)
from tessella.tokenizers.quantizers.ema import EMAVectorQuantizer
from tessella.tokenizers.quantizers.quantizer import Quantizer, QuantizerOutput

MAX_LEVELS = 256
"""Largest depth that is allowed."""


class ResidualVectorQuantizer(Quantizer):
    """``depth`` codes per vector: each is nearest to the residual of those before it.

    Lee et al. (2022). The result is the sum of the codes. Each level has a separate codebook, an
    :class:`EMAVectorQuantizer` that learns from the residuals at its level. The commitment loss is
    the mean over levels, so that ``beta`` means the same at any depth. Encoding is greedy, so
    encoding the sum of some codes need not find the same codes.

    Args:
        dim: number of components of a vector.
        codebook_size: number of codes of each level.
        depth: number of levels, which is the number of symbols per vector, and of channels of a
            grid.
        beta: weight of the commitment loss.
        decay: decay of the moving averages per step.
        revive: share of the mean count below which a code is dead; 0 disables revival.
        seed: seed of initialization and revival; level k uses ``seed + k``.

    Raises:
        ConfigError: when an argument is out of range.

    >>> quantizer = ResidualVectorQuantizer(dim=4, codebook_size=16, depth=3).eval()
    >>> out = quantizer(torch.zeros(2, 8, 8, 4))
    >>> out.symbols.shape, torch.equal(out.z, quantizer.decode(out.symbols))
    (torch.Size([2, 8, 8, 3]), True)
    """

    name = "residual-vq"
    remedies = EMAVectorQuantizer.remedies

    def __init__(
        self,
        dim: int = 64,
        codebook_size: int = 512,
        depth: int = 4,
        beta: float = 0.25,
        decay: float = 0.98,
        revive: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_count("depth", depth, 1, MAX_LEVELS)
        check_sizes(dim, codebook_size, beta)
        if depth * codebook_size * dim > MAX_VALUES:
            raise ConfigError(
                f"depth times codebook_size times dim must be at most {MAX_VALUES:,}, "
                f"got {depth} times {codebook_size:,} times {dim:,}; take fewer codes"
            )
        self.dim = dim
        self.levels = codebook_size
        self.depth = depth
        self.stages = nn.ModuleList()
        for level in range(depth):
            self.stages.append(
                EMAVectorQuantizer(dim, codebook_size, beta, decay, revive, seed + level)
            )

    @classmethod
    def examples(cls) -> Mapping[str, Mapping[str, object]]:
        return {"": {"codebook_size": 16, "depth": 3}}

    @property
    def batches_seen(self) -> int | None:
        """That of the first level; all levels learn from the same batches."""
        return self._quantizers[0].batches_seen

    @property
    def vectors_a_batch(self) -> float | None:
        """That of the first level."""
        return self._quantizers[0].vectors_a_batch

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        outputs: list[QuantizerOutput] = []
        with without_autocast(z):
            wide = z.to(self._quantizers[0].codebook.dtype)
            left = wide  # [..., dim], the residual of the codes so far
            total = torch.zeros_like(wide)
            for quantizer in self._quantizers:
                out = quantizer(left)
                # Each level takes its input as a constant: no gradient passes between levels.
                code = out.z.detach()
                left = left - code
                total = total + code
                outputs.append(out)
            # The encoder gets the gradient of the sum, as if it were one code.
            quantized = straight_through(wide, total.detach()).to(z.dtype)
        commitments = [out.losses["commitment"] for out in outputs]
        losses = {"commitment": torch.stack(commitments).mean()}
        symbols = torch.cat([out.symbols for out in outputs], dim=-1)  # [..., depth]
        return QuantizerOutput(symbols, quantized, losses, _by_level(outputs))

    @torch.no_grad()
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        symbols: list[torch.Tensor] = []
        with without_autocast(z):
            left = z.to(self._quantizers[0].codebook.dtype)
            for quantizer in self._quantizers:
                symbols.append(quantizer.encode(left))
                left = left - quantizer.decode(symbols[-1])
        return torch.cat(symbols, dim=-1)

    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        levels = symbols.split(1, dim=-1)  # [..., 1] each
        # Added in the same order as in forward: another order would round differently.
        total = self._quantizers[0].decode(levels[0])
        for quantizer, level in zip(self._quantizers[1:], levels[1:], strict=True):
            total = total + quantizer.decode(level)
        return total

    @property
    def _quantizers(self) -> list[EMAVectorQuantizer]:
        return cast(list[EMAVectorQuantizer], list(self.stages))


def _by_level(outputs: list[QuantizerOutput]) -> dict[str, torch.Tensor]:
    """Statistics over all levels, and those of each level as ``name/level``.

    Over all levels they are averaged, except for the revived codes, which are summed.
    """
    together: dict[str, torch.Tensor] = {}
    each: dict[str, torch.Tensor] = {}
    for name in outputs[0].stats:
        values = torch.stack([out.stats[name] for out in outputs])  # [depth]
        together[name] = values.sum() if name == "revived" else values.mean()
        for level, value in enumerate(values):
            each[f"{name}/{level}"] = value
    return together | each

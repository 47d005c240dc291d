"""Several codes a vector, each for what those before it left."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.tokenizers.quantizers.codebook import plain, straight_through
from tessella.tokenizers.quantizers.ema import EMAVectorQuantizer
from tessella.tokenizers.quantizers.quantizer import Quantizer, QuantizerOutput


class ResidualVectorQuantizer(Quantizer):
    """``depth`` codes a vector: the first is nearest to it, each further one to what is left (Lee
    et al. 2022).

    The result is the sum of the codes. Each level has a codebook of its own, a
    :class:`EMAVectorQuantizer` that learns from what is left at its level. The commitment loss is
    the mean of the levels', so that ``beta`` means the same at any depth. Encoding is greedy, so
    encoding the sum of some codes need not find the same codes again.

    Args:
        dim: length of a vector.
        codebook_size: number of codes of each level.
        depth: number of levels: symbols a vector, the channels of a grid.
        beta: weight of the commitment loss.
        decay: of the moving averages, a step.
        revive: share of the mean count under which a code is dead; 0 switches revival off.
        seed: of first placement and revival; level k takes ``seed + k``.

    Raises:
        ConfigError: when an argument is out of range.

    >>> quantizer = ResidualVectorQuantizer(dim=4, codebook_size=16, depth=3).eval()
    >>> out = quantizer(torch.zeros(2, 8, 8, 4))
    >>> out.symbols.shape, torch.equal(out.z, quantizer.decode(out.symbols))
    (torch.Size([2, 8, 8, 3]), True)
    """

    name = "residual-vq"

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
        if depth < 1:
            raise ConfigError(f"depth must be at least 1, got {depth}")
        self.dim, self.levels, self.depth = dim, codebook_size, depth
        self.stages = nn.ModuleList(
            EMAVectorQuantizer(dim, codebook_size, beta, decay, revive, seed + level)
            for level in range(depth)
        )

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        with plain(z):
            left = wide = z.to(self._stages[0].codebook.dtype)
            total, outputs = torch.zeros_like(wide), []
            for stage in self._stages:
                out = stage(left)
                code = out.z.detach()
                left, total = left - code, total + code
                outputs.append(out)
            passed = straight_through(wide, total.detach()).to(z.dtype)
        losses = {"commitment": torch.stack([out.losses["commitment"] for out in outputs]).mean()}
        symbols = torch.cat([out.symbols for out in outputs], dim=-1)
        return QuantizerOutput(symbols, passed, losses, _by_level([out.stats for out in outputs]))

    @torch.no_grad()
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        with plain(z):
            left, symbols = z.to(self._stages[0].codebook.dtype), []
            for stage in self._stages:
                symbols.append(stage.encode(left))
                left = left - stage.decode(symbols[-1])
        return torch.cat(symbols, dim=-1)

    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        codes = [
            stage.decode(level)
            for stage, level in zip(self._stages, symbols.split(1, dim=-1), strict=True)
        ]
        return sum(codes[1:], codes[0])

    @property
    def _stages(self) -> list[EMAVectorQuantizer]:
        return cast(list[EMAVectorQuantizer], list(self.stages))


def _by_level(stats: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The means over levels (of revived codes, the sum), and each level's own as ``name/level``."""
    joined = {name: torch.stack([level[name] for level in stats]) for name in stats[0]}
    whole = {
        name: values.sum() if name == "revived" else values.mean()
        for name, values in joined.items()
    }
    return whole | {
        f"{name}/{level}": value
        for name, values in joined.items()
        for level, value in enumerate(values)
    }

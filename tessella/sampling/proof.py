"""Proof, by a single pass, that a sample is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch

from tessella.errors import InputError
from tessella.models.condition import Cond
from tessella.models.density_model import DensityModel, check_finite
from tessella.noise import Noise
from tessella.sampling.rule import RuleKeywords
from tessella.sampling.sampler import check_model
from tessella.sampling.sampling_options import Sampling


@dataclass(frozen=True, repr=False)
class Replay:
    """The result of :func:`replay`. Both tensors are ``[n, height, width, channels]``."""

    differs: torch.Tensor
    """``bool``: whether the pass would have drawn a different symbol."""
    gap: torch.Tensor
    """By how many nats the symbol's score falls short of the best one; 0 where they agree."""

    def __repr__(self) -> str:
        n = len(self.differs)
        count = int(self.differs.sum())
        largest = float(self.gap.max()) if self.gap.numel() else 0.0
        return (
            f"Replay({n} images, {count} of {self.differs.numel()} symbols differ, "
            f"largest gap {largest:.3g} nats)"
        )


@torch.no_grad()
def replay(
    model: DensityModel,
    x: object,
    seed: int = 0,
    cond: Cond = None,
    **rule: Unpack[RuleKeywords],
) -> Replay:
    """Check that one forward pass over a sample, with the same noise, draws every symbol again.

    By induction over the symbols, this proves that the sample is exact. It costs a single pass,
    where the naive sampler costs one for each symbol, so it is feasible on large grids. In float64
    nothing differs; in float32 a difference is a near-tie, which ``gap`` shows.

    Args:
        model: the model from which the sample was drawn.
        x: symbols, ``[n, height, width, channels]``.
        seed, cond, rule: the arguments with which the sample was drawn, see
            :func:`tessella.stream`; guidance is not supported.

    Raises:
        InputError: for an argument that does not fit.
        NumericalError: when the model returns NaN or infinity.
    """
    check_model(model)
    sample_rule = Sampling.from_keywords(**rule).rule
    # Guidance would need a second pass, without the class.
    if sample_rule.guidance != 1:
        raise InputError("replay does not take guidance")
    x = model.grid.check(x).to(model.device)
    noise = Noise(model.grid, len(x), seed, model.device)
    distribution = model.distribution(x, model.condition(cond, len(x)))
    tables = sample_rule(distribution.table(x)).flatten(1, 3)  # [n, symbols, levels]
    symbols = x.flatten(1)
    best = torch.zeros(symbols.shape, dtype=torch.float64, device=x.device)
    drawn = torch.zeros_like(best)
    # Go symbol by symbol, because the noise of all symbols may not fit into memory.
    for index in range(model.grid.symbols):
        score = tables[:, index] + noise.at(index)  # [n, levels]
        best[:, index] = score.amax(dim=-1)
        drawn[:, index] = score.gather(-1, symbols[:, index, None])[:, 0]
    check_finite(best)
    gap = (best - drawn).view_as(x)
    return Replay(gap > 0, gap)

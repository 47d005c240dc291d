"""The proof of a sample by a single pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch

from tessella.errors import InputError
from tessella.models.condition import Cond
from tessella.models.density_model import DensityModel, check_finite
from tessella.noise import Noise
from tessella.sampling.options import Sampling
from tessella.sampling.rule import RuleKeywords
from tessella.sampling.sampler import check_model


@dataclass(frozen=True, repr=False)
class Replay:
    """How one parallel pass judges a sample. Both tensors are ``[n, height, width, channels]``."""

    differs: torch.Tensor
    """``bool``: the pass would have drawn another symbol."""
    gap: torch.Tensor
    """How far (nats) the symbol drawn stayed under the best one; 0 where they agree."""

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
    """Prove a sample by induction: one forward pass over it, plus its noise, must draw every symbol
    again.

    Costs one pass where the naive sampler costs one for each symbol, so it serves on large grids.
    In float64 nothing differs; in float32 a difference is a near-tie, which ``gap`` shows.

    Args:
        model: the model that the sample was drawn from.
        x: symbols ``[n, height, width, channels]``.
        seed, cond, rule: as the sample was drawn, see :func:`tessella.stream`; no guidance.

    Raises:
        InputError: for an argument that does not fit.
        NumericalError: where the model gives no probabilities.
    """
    check_model(model)
    changed = Sampling.from_keywords(**rule).rule
    # Guidance would need a second pass, without the class.
    if changed.guidance != 1:
        raise InputError("replay does not take guidance")
    x = model.grid.check(x).to(model.device)
    noise = Noise(model.grid, len(x), seed, model.device)
    distribution = model.distribution(x, model.condition(cond, len(x)))
    tables = changed(distribution.table(x)).flatten(1, 3)  # [n, symbols, levels]
    symbols = x.flatten(1)
    best = torch.zeros(symbols.shape, dtype=torch.float64, device=x.device)
    drawn = torch.zeros_like(best)
    # A symbol at a time: the noise of all symbols at once may not fit into memory.
    for index in range(model.grid.symbols):
        score = tables[:, index] + noise.at(index)  # [n, levels]
        best[:, index] = score.amax(dim=-1)
        drawn[:, index] = score.gather(-1, symbols[:, index, None])[:, 0]
    check_finite(best)
    gap = (best - drawn).view_as(x)
    return Replay(gap > 0, gap)

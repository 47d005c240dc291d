"""The proof of a sample by a single pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tessella.errors import InputError
from tessella.models.condition import Cond
from tessella.models.density_model import DensityModel
from tessella.noise import Noise
from tessella.sampling.rule import Rule


@dataclass(frozen=True)
class Replay:
    """What one parallel pass says of a sample. Both are ``[n, height, width, channels]``."""

    differs: torch.Tensor
    """``bool``: the pass would have drawn another symbol."""
    gap: torch.Tensor
    """How far (nats) the symbol drawn stayed under the best one; 0 where they agree."""


@torch.no_grad()
def replay(model: DensityModel, x: Any, seed: int = 0, cond: Cond = None, **rule: Any) -> Replay:
    """Prove a sample by induction: one forward pass over it, plus its noise, must draw every symbol
    again.

    Costs one pass where the naive sampler costs one for each symbol, so it serves on large grids.
    In float64 nothing differs; in float32 a difference is a near-tie, which ``gap`` shows.
    """
    model.refuse_dropout()
    rules = Rule(**rule)
    if rules.guidance != 1:
        raise InputError("replay does not take guidance")
    x = model.grid.check(x).to(model.device)
    noise = Noise(model.grid, len(x), seed, model.device)
    tables = rules(model.distribution(x, model.condition(cond, len(x))).table(x)).flatten(1, 3)
    flat, gap = (
        x.flatten(1),
        torch.zeros(len(x), model.grid.symbols, dtype=torch.float64, device=x.device),
    )
    for index in range(model.grid.symbols):
        score = tables[:, index] + noise.at(index)
        gap[:, index] = score.amax(dim=-1) - score.gather(-1, flat[:, index, None])[:, 0]
    return Replay((gap > 0).view_as(x), gap.view_as(x))

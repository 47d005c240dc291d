"""Samples of every model that ships: the kernel's are those of torch, and of the naive oracle."""

from __future__ import annotations

import pytest
import torch

import tessella as ts
from tessella import kernel
from tessella.models.density_model import DensityModel
from tessella.pipeline import bundled

SEEDS = 256

FEW_SYMBOLS = 100
"""Symbols up to which the naive sampler, with a pass for each, takes seconds."""

NEAR_TIE = 1e-4
"""Nats between the two best scores below which float32 may decide either way. Among the 786,432
symbols of `photos` there is such a tie."""


def prior(name: str) -> DensityModel:
    """The density model of a run that ships; skips where it has none."""
    model = getattr(ts.load(name), "prior", None)
    if not isinstance(model, DensityModel):
        pytest.skip("draws no images")
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", bundled())
def test_256_seeds_are_those_of_one_pass_and_of_the_naive_oracle(name: str) -> None:
    if not kernel.available():
        pytest.skip("no C++ compiler")
    model = prior(name)
    drawn = ts.sample(model, n=SEEDS, method="cached")
    for start in range(0, SEEDS, 16):
        replay = ts.replay(model, drawn[start : start + 16], seed=start)
        assert replay.gap.max() < NEAR_TIE, replay
    if model.grid.symbols <= FEW_SYMBOLS:
        assert torch.equal(drawn, ts.sample(model, n=SEEDS, method="naive"))

"""Conditions: what a model takes, what it refuses, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError, InputError
from tessella.models.condition import Condition, Conditioning

GRID = ts.Grid(2, 2, 1, 4)


def some(n: int = 2) -> torch.Tensor:
    return torch.randint(4, (n, 2, 2, 1), generator=torch.Generator().manual_seed(0))


def test_the_null_class_of_a_model_that_never_saw_it_is_refused_as_a_number_too() -> None:
    model = ts.create("independent", GRID, classes=3)
    model.log_prob(some(), torch.tensor([3, 3]))
    model.null_class = False
    with pytest.raises(InputError, match=r"must lie in 0\.\.2, got 3\.\.3"):
        model.log_prob(some(), torch.tensor([3, 3]))


def test_guidance_without_a_null_class_says_so() -> None:
    model = ts.create("independent", GRID, classes=3)
    model.null_class = False
    with pytest.raises(InputError, match="condition_dropout above 0"):
        ts.sample(model, n=2, cond=torch.tensor([0, 1]), guidance=2.0)


@pytest.mark.parametrize("codes", [3, (4, 4, 1, 8)])
def test_codes_must_be_a_grid(codes: Any) -> None:
    with pytest.raises(InputError, match=r"codes must be a Grid, for example codes=ts\.Grid"):
        Conditioning(0, codes)


def test_a_condition_of_another_model_is_refused() -> None:
    model, plain = ts.create("independent", GRID, classes=3), ts.create("independent", GRID)
    for one, condition in ((model, Condition()), (plain, Condition(torch.tensor([0, 0])))):
        with pytest.raises(InputError, match=r"model\.condition"):
            one.distribution(some(), condition)


def test_the_shape_of_missing_codes_is_told() -> None:
    model = ts.create("transformer", GRID, codes=ts.Grid(1, 2, 1, 8), layers=1, width=8, heads=2)
    with pytest.raises(InputError, match=r"int64 \[2, 1, 2, 1\] of 8 levels"):
        model.log_prob(some())


def test_training_on_codes_as_condition_is_refused_at_once(tmp_path: Path) -> None:
    model = ts.create("transformer", GRID, codes=ts.Grid(1, 2, 1, 8), layers=1, width=8, heads=2)
    with pytest.raises(ConfigError, match="give a ts.Hierarchy of both"):
        ts.train(model, np.zeros((8, 2, 2, 1), np.int64), out=tmp_path / "run", steps=1)


@pytest.mark.parametrize("name", ["gated-pixelcnn", "pixelsnail", "transformer"])
def test_codes_finer_than_the_grid_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no finer than the grid"):
        ts.create(name, GRID, codes=ts.Grid(4, 2, 1, 8))

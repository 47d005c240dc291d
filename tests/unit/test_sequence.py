"""What the models of the flattened image share: what is too large, what a state holds, which
conditions fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError
from tessella.models.sequence_model import SequenceModel


def test_the_matrix_of_32x32_codes_of_512_levels_is_the_order_of_what_is_allowed() -> None:
    model = ts.create("fvsbn", ts.Grid(2, 2, 1, 2))
    assert isinstance(model, SequenceModel)
    count = 32 * 32 * 512 * 32 * 32
    model.check_matrix(count, "")
    with pytest.raises(
        ConfigError, match=r"1,073,741,824 weights, more than 600,000,000 \(.* 30 GiB\): take less"
    ):
        model.check_matrix(2 * count, "take less", 30)


@pytest.mark.parametrize("name", ["fvsbn", "nade", "made"])
def test_biases_of_many_classes_are_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"614,461,440 weights.* 11 GiB.*10000 classes.*fewer classes"
    ):
        ts.create(name, ts.Grid(8, 8, 3, 320), classes=10_000)


@pytest.mark.parametrize("name", ["fvsbn", "nade", "made"])
@pytest.mark.parametrize("classes", [0, 2])
def test_a_state_holds_no_parameters_of_each_place(name: str, classes: int) -> None:
    grid = ts.Grid(12, 12, 1, 9)
    state = ts.create(name, grid, classes=classes).init_state(
        3, torch.tensor([0, 2, 1]) if classes else None
    )
    for f in dataclasses.fields(state):
        value = getattr(state, f.name)
        if f.name not in state.shared and isinstance(value, torch.Tensor):
            assert value.numel() < 3 * grid.symbols * grid.levels, f.name


@pytest.mark.parametrize("name", ["fvsbn", "nade", "made", "lstm"])
def test_no_class_does_not_stand_for_the_first(name: str) -> None:
    model = ts.create(name, ts.Grid(2, 2, 1, 3), classes=2)
    with pytest.raises(AssertionError, match="a condition that"):
        model(torch.zeros(2, 2, 2, 1, dtype=torch.int64))

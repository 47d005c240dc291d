"""What the models of the flattened image share: what is too large, what a state holds, which
conditions fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tessella as ts
from tessella import kernel
from tessella.errors import ConfigError
from tessella.models.program_model import ProgramState
from tessella.models.sequence_model import SequenceModel
from tessella.nn.made_layers import UnitLayer
from tessella.sampling.walk import Steps


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
    assert isinstance(state, ProgramState)
    assert state.memory.tensors
    for tensor in state.memory.tensors:
        assert tensor.numel() < 3 * grid.symbols * grid.levels


@pytest.mark.parametrize("name", ["fvsbn", "nade"])
def test_steps_read_the_weights_of_the_model_itself(name: str) -> None:
    model = ts.create(name, ts.Grid(3, 3, 1, 4))
    state = model.init_state(2)
    assert isinstance(state, ProgramState)
    largest = max(model.parameters(), key=torch.Tensor.numel)
    assert largest.data_ptr() in {table.data_ptr() for table in state.memory.tables}


def test_a_layer_sorts_its_units_and_knows_when_each_can_be_computed() -> None:
    layer = UnitLayer("a", torch.tensor([3, 1, 3, 2, 3]), places=5)
    assert layer.order.tolist() == [1, 3, 0, 2, 4]
    assert layer.variables == {
        "first-a": [0, 0, 1, 2, 5],
        "count-a": [0, 1, 1, 3, 0],
        "known-a": [0, 1, 2, 5, 5],
    }


@pytest.mark.parametrize("name", ["fvsbn", "nade", "made", "lstm"])
def test_no_class_does_not_stand_for_the_first(name: str) -> None:
    model = ts.create(name, ts.Grid(2, 2, 1, 3), classes=2)
    with pytest.raises(AssertionError, match="a condition that"):
        model(torch.zeros(2, 2, 2, 1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "head", "levels", "sizes"),
    [
        ("fvsbn", "categorical", 2, {}),
        ("fvsbn", "ordinal", 5, {}),
        ("nade", "categorical", 5, {"embedding": 3}),
        ("nade", "logistic-mixture", 5, {}),
        ("nade", "ordinal", 2, {}),
        ("made", "categorical", 2, {"layers": 3, "direct": True}),
        ("made", "ordinal", 40, {}),
        ("made", "categorical", 2, {"masks": 4, "direct": True}),
        ("made", "categorical", 5, {"masks": 2}),
        ("made", "ordinal", 5, {"masks": 3}),
        ("made", "logistic-mixture", 5, {"masks": 2}),
        ("made", "logistic-mixture", 40, {"masks": 3, "components": 3}),
        ("lstm", "ordinal", 5, {"layers": 2}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_draws_the_symbols_of_torch(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    head: str,
    levels: int,
    sizes: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    if not kernel.available():
        pytest.skip("no C++ compiler")
    model = ts.create(name, ts.Grid(4, 3, 2, levels), head=head, classes=2, **sizes).to(dtype)
    for parameter in model.parameters():
        parameter.data *= 3
    cond = torch.tensor([1, 0, 1])
    walk = Steps(model, 3, cond, cached=True, guidance=1).kernel_walk()
    assert walk is not None
    drawn = ts.sample(model, n=3, cond=cond, method="cached")
    guided = ts.sample(model, n=3, cond=cond, method="cached", guidance=2.0)
    # Half of the symbols are given, and change what is likely under which set of masks.
    known = torch.rand(3, 4, 3, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    kept = ts.complete(model, drawn.flip(0), known, cond=cond, method="cached")
    monkeypatch.setenv("TESSELLA_KERNEL", "0")
    assert torch.equal(drawn, ts.sample(model, n=3, cond=cond, method="cached"))
    assert torch.equal(guided, ts.sample(model, n=3, cond=cond, method="cached", guidance=2.0))
    again = ts.complete(model, drawn.flip(0), known, cond=cond, method="cached")
    assert torch.equal(kept, again)


@pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")
def test_an_average_of_sets_begins_anew_with_every_image() -> None:
    model = ts.create("made", ts.Grid(4, 3, 2, 5), masks=3, hidden=24)
    for parameter in model.parameters():
        parameter.data *= 3
    # The second batch is drawn in the memory of the first.
    assert torch.equal(ts.sample(model, n=8, batch=4), ts.sample(model, n=8, batch=8))

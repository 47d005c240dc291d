"""Weights of few bits: which have a compact form, products in the kernel, rounded models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tessella as ts
from tessella import kernel
from tessella.errors import ConfigError
from tessella.models.program_model import ProgramModel
from tessella.models.weight_storage import WeightKind
from tessella.nn.stepping import compact
from tessella.nn.stepping.compact import compacted
from tessella.nn.stepping.compiled import CompiledRunner
from tessella.nn.stepping.operation import Matrix
from tessella.nn.stepping.program import Program
from tessella.nn.stepping.runners import TorchRunner
from tessella.nn.stepping.step import StateMemory
from tessella.pipeline import load_model, save_model

GRID = ts.Grid(5, 4, 1, 6)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def of_integers(inputs: int, outputs: int) -> torch.Tensor:
    """Weights that are multiples of one scale for each output."""
    weight = normal(inputs, outputs, seed=1)
    scales = weight.abs().amax(0) / 127
    return (weight / scales).round() * scales


def rounded(kind: str, inputs: int, outputs: int) -> torch.Tensor:
    if kind == "int8":
        return of_integers(inputs, outputs)
    return normal(inputs, outputs, seed=1).bfloat16().float()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compact forms pay for small matrices, too."""
    monkeypatch.setattr(compact, "COMPACT_WEIGHTS", 100)


@pytest.mark.usefixtures("small")
def test_integers_are_found_in_a_part_without_the_largest_weight() -> None:
    weight = of_integers(300, 40)
    largest = weight.abs().argmax(0)
    weight[largest, torch.arange(40)] = 0
    weight[:, 7] = 0
    found = compacted(weight)
    assert found is not None
    assert found.storage == "int8"
    assert found.values.dtype == torch.int8
    assert found.scales is not None
    torch.testing.assert_close(found.values * found.scales, weight, rtol=3e-7, atol=0)


@pytest.mark.usefixtures("small")
def test_bfloat16_numbers_are_found() -> None:
    weight = normal(30, 40).bfloat16()
    found = compacted(weight.float())
    assert found is not None
    assert found.storage == "bfloat16"
    assert torch.equal(found.values.view(torch.bfloat16), weight)


@pytest.mark.usefixtures("small")
def test_ordinary_weights_have_no_compact_form() -> None:
    assert compacted(normal(30, 40)) is None
    # A single output whose weights are no multiples is enough.
    weight = of_integers(30, 40)
    weight[:, 3] = normal(30, seed=2)
    assert compacted(weight) is None
    assert compacted(of_integers(30, 40).double()) is None


def test_small_matrices_stay_as_they_are() -> None:
    assert compacted(of_integers(30, 40)) is None
    assert compacted(of_integers(300, 400)) is not None


@pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 2, 7, 70])
@pytest.mark.parametrize("activation", ["", "silu", "gate"])
@pytest.mark.parametrize("outputs", [6, 44, 90])
def test_the_kernel_multiplies_by_compact_weights(
    kind: str, batch: int, activation: str, outputs: int
) -> None:
    weight = rounded(kind, 37, outputs)
    x = normal(batch, 37, seed=2)
    added = normal(batch, outputs, seed=3)
    results = []
    for runner in (TorchRunner, CompiledRunner):
        listed = Program(batch, (), x)
        matrix = Matrix(weight)
        out = listed.zeros(outputs // 2 if activation == "gate" else outputs)
        listed.linear(x, matrix, out, added, activation)
        runner(listed).run(())
        results.append(out)
    assert matrix.panels(activation == "gate", 32).storage == kind
    torch.testing.assert_close(*results, rtol=0, atol=2e-5)


@pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["whole", "int8", "bfloat16"])
@pytest.mark.parametrize("activation", ["", "gate"])
def test_packed_weights_are_the_only_copy_and_can_be_unpacked(activation: str, kind: str) -> None:
    weight = normal(20, 44) if kind == "whole" else rounded(kind, 20, 44)
    matrix = Matrix(weight.clone())
    x = normal(3, 20, seed=1)
    listed = Program(3, (), x)
    listed.linear(x, matrix, listed.zeros(22 if activation else 44), activation=activation)
    CompiledRunner(listed).run(())
    assert matrix._weight is None
    torch.testing.assert_close(matrix.weight, weight, rtol=3e-7 if kind == "int8" else 0, atol=0)


SIZES: dict[str, dict[str, int]] = {
    "gated-pixelcnn": {"layers": 2, "hidden": 16},
    "pixelcnn": {"layers": 2, "hidden": 16, "last": 16},
    "pixelcnn++": {"filters": 16},
    "pixelsnail": {"channels": 16, "residual_channels": 16},
    "transformer": {"layers": 2, "width": 32},
    "lstm": {"hidden": 32},
}
"""Families most of whose matrices are rounded."""


def share_of(model: ts.DensityModel, kind: str) -> float:
    """Share of the weights of a step that have a compact form."""
    assert isinstance(model, ProgramModel)
    memory = StateMemory()
    model.state_in(memory, model.condition(None, 2), 2)
    count = 0
    total = 0
    for matrix in memory.matrices:
        found = compacted(matrix.weight)
        total += matrix.weight.numel()
        if found is not None and found.storage == kind:
            count += matrix.weight.numel()
    return count / total


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_a_rounded_model_is_exact_for_its_weights(
    name: str, kind: WeightKind, tmp_path: Path
) -> None:
    model = ts.create(name, GRID, **SIZES[name])  # type: ignore[arg-type]
    if kind == "bfloat16" and name in ("pixelcnn++", "pixelsnail"):
        with pytest.raises(ConfigError, match="normalized"):
            ts.quantize_weights(model, kind)
        return
    before = {key: value.clone() for key, value in model.state_dict().items()}
    smaller = ts.quantize_weights(model, kind)
    assert share_of(model, kind) < 0.05
    assert share_of(smaller, kind) > 0.6
    drawn = ts.sample(smaller, n=3, method="cached")
    assert torch.equal(drawn, ts.sample(smaller, n=3, method="naive"))
    assert not ts.replay(smaller, drawn).differs.any()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    # Another model, but not by much.
    apart = (model.log_prob(drawn) - smaller.log_prob(drawn)).abs().max()
    assert 0 < apart < 0.5
    save_model(smaller, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert isinstance(again, ts.DensityModel)
    assert torch.equal(again.log_prob(drawn), smaller.log_prob(drawn))
    assert share_of(again, kind) == share_of(smaller, kind)


def test_what_cannot_be_rounded_is_refused() -> None:
    with pytest.raises(ConfigError, match="no weights to keep as int8"):
        ts.quantize_weights(ts.create("nade", GRID))
    with pytest.raises(ConfigError, match="unknown kind of weights 'int4'"):
        ts.quantize_weights(ts.create("lstm", GRID), "int4")  # type: ignore[arg-type]

"""The contracts as a library: what ships keeps them, and what breaks one is found out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import tessella as ts
from tessella.contracts import Outcome, check, checking, kinds_of
from tessella.contracts.contract import Contract, require_close, run
from tessella.errors import ConfigError
from tessella.models.condition import UNCONDITIONAL, Condition, Conditioning
from tessella.models.density_model import DensityModel
from tessella.models.independent import Independent
from tessella.tokenizers.quantizers import FSQ

SMALL: dict[str, dict[str, Any]] = {
    "transformer": {"layers": 1, "width": 8, "heads": 2},
    "any-order": {"layers": 1, "width": 8, "heads": 2},
    "masked": {"layers": 1, "width": 8, "heads": 2},
    "made": {"hidden": 12, "layers": 1, "dropout": 0.0},
    "pixelsnail": {
        "blocks": 1,
        "residual_blocks": 1,
        "channels": 4,
        "residual_channels": 4,
        "heads": 2,
    },
    "pixelcnn++": {"blocks": 1, "filters": 4, "scales": 2},
    "vqvae": {"hidden": 8, "codebook_size": 16},
    "patch-vqvae": {"hidden": 8, "codebook_size": 16},
    "vqvae2": {"hidden": 8, "codebook_size": 16},
    "vqgan": {"hidden": 8, "multipliers": (1, 2), "latent": 8, "code_dim": 8, "codebook_size": 16},
    "fsq": {"levels": (3, 4, 3)},
    "lfq": {"codebook_size": 16},
    "vq-ema": {"codebook_size": 16},
    "rotation": {"codebook_size": 16},
    "vq": {"codebook_size": 16},
    "simvq": {"codebook_size": 16},
    "residual-vq": {"codebook_size": 16},
}
"""Sizes that keep the checks of the largest ones fast."""


def broken(outcomes: Iterator[Outcome]) -> list[str]:
    """The promises that do not hold."""
    return [outcome.promise for outcome in outcomes if not outcome.held]


@pytest.mark.parametrize("name", [*ts.MODELS, *ts.HEADS, *ts.TOKENIZERS, *ts.QUANTIZERS, "digits"])
def test_what_ships_keeps_its_contracts(name: str) -> None:
    outcomes = list(check(name, **SMALL.get(name, {})))
    assert len(outcomes) >= 4
    assert [str(outcome) for outcome in outcomes if not outcome.held] == []


class Leaking(Independent):
    """Sees the symbol that it predicts."""

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        parameters = super().forward(x, condition)
        if self.head.joint:
            return parameters + x.sum(dim=-1, keepdim=True)
        return parameters + x[..., None] * torch.arange(self.head.size)


class Forgetful(Independent):
    """Forgets its classes while it steps."""

    def init_state(self, batch: int, cond: Any = None) -> Any:
        state = super().init_state(batch, cond)
        return dataclasses.replace(state, labels=torch.zeros(batch, dtype=torch.int64))


class Random(Independent):
    """Has weights that no seed decides."""

    def __init__(self, grid: ts.Grid, head: Any, conditioning: Conditioning) -> None:
        super().__init__(grid, head, conditioning)
        drawn = torch.rand(1, generator=torch.Generator().manual_seed(id(self) % 2**31))
        self.table.data += drawn * torch.arange(self.table.shape[-1])


class Idle(Independent):
    """Has a parameter that does nothing."""

    def __init__(self, grid: ts.Grid, head: Any, conditioning: Conditioning) -> None:
        super().__init__(grid, head, conditioning)
        self.idle = torch.nn.Parameter(torch.ones(3))


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Registers a class for the time of a test."""

    def add(table: Any, name: str, cls: type) -> None:
        monkeypatch.setattr(table, "_entries", {**table, name: cls})
        monkeypatch.setattr(cls, "name", name)

    return add


@pytest.mark.parametrize(
    ("model", "promise"),
    [
        (Leaking, "a symbol depends on its declared receptive field"),
        (Leaking, "steps equal the parallel pass"),
        (Leaking, "the probabilities of all grids sum to one"),
        (Leaking, "fast sampling draws the symbols of the slow way"),
        (Forgetful, "steps equal the parallel pass"),
        (Random, "creation follows its seed alone"),
        (Idle, "every parameter has a gradient"),
    ],
)
def test_a_broken_model_is_found_out(
    model: type[DensityModel], promise: str, register: Any
) -> None:
    register(ts.MODELS, "broken", model)
    assert promise in broken(check("broken"))


class Learning(FSQ):
    """Counts codes in evaluation mode too."""

    def encode(self, z: torch.Tensor) -> torch.Tensor:
        self.counts += 1
        return super().encode(z)


def test_a_broken_quantizer_is_found_out(register: Any) -> None:
    register(ts.QUANTIZERS, "broken", Learning)
    assert broken(check("broken", levels=(3, 3))) == ["evaluation learns nothing"]


def test_an_exception_breaks_a_contract_and_stops_no_other() -> None:
    def fail(_: int) -> None:
        raise ZeroDivisionError("by chance")

    def hold(_: int) -> None:
        return None

    outcomes = list(run([Contract("fails", fail), Contract("holds", hold)], 0, "a number"))
    assert [outcome.held for outcome in outcomes] == [False, True]
    assert outcomes[0].problem == "raised ZeroDivisionError: by chance"
    assert str(outcomes[0]).startswith("BROKEN  a number: fails")


def test_what_is_not_a_number_agrees_with_nothing() -> None:
    nan = torch.tensor([float("nan")])
    with pytest.raises(AssertionError, match="differ by nan"):
        require_close(nan, nan, 1.0, "two values")


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("lstm", {"hiden": 4}, "unknown size of lstm: 'hiden'; did you mean 'hidden'"),
        ("lstm", {"hidden": 0}, "hidden >= 1"),
        ("logistic-mixture", {"component": 4}, "did you mean 'components'"),
        ("vqvae", {"hiden": 4}, "did you mean 'hidden'"),
        ("fsq", {"level": (3, 3)}, "did you mean 'levels'"),
        ("digits", {"limt": 4}, "unknown option of digits: 'limt'; did you mean 'limit'"),
        ("digits", {"source": "noise"}, "unknown option of digits: 'source'"),
    ],
)
def test_options_that_stand_for_nothing_are_refused(
    name: str, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        next(check(name, **option))


def test_an_option_reaches_those_that_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def record(_: object, case: Any, described: str) -> Iterator[Outcome]:
        sizes.append((case.head, case.sizes))
        return iter(())

    monkeypatch.setattr(checking, "run", record)
    assert list(check("nade", hidden=3, components=2)) == []
    assert dict(sizes) == {
        "categorical": {"hidden": 3},
        "ordinal": {"hidden": 3},
        "logistic-mixture": {"hidden": 3, "components": 2},
    }


def test_names_that_stand_for_nothing_are_refused() -> None:
    assert kinds_of("digits") == ["source"]
    with pytest.raises(ConfigError, match="did you mean 'gated-pixelcnn'"):
        list(check("gated-pixelcn"))
    with pytest.raises(ConfigError, match="unknown kind"):
        list(check("lstm", kind="modle"))
    with pytest.raises(ConfigError, match="unknown tokenizer 'lstm'"):
        list(check("lstm", kind="tokenizer"))

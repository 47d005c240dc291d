"""A density model and a head from outside the package: registered, built, sampled, saved."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError
from tessella.models import from_config

PLUGIN = '''
import torch
from torch import nn
import tessella as ts
from tessella.heads import CategoricalHead
from tessella.models.receptive_fields import symbol_field


@ts.register_head("sharp")
class Sharp(CategoricalHead):
    def __init__(self, grid, sharpness=2.0):
        super().__init__(grid)
        self.sharpness = sharpness

    def __call__(self, parameters):
        return super().__call__(self.sharpness * parameters)

    symbol = __call__

    def config(self):
        return {"name": self.name, "sharpness": self.sharpness}


@ts.register_model("left-neighbour")
class LeftNeighbour(ts.DensityModel):
    """Each symbol given the one before it."""

    def __init__(self, grid, head, conditioning, scale: float = 1.0):
        super().__init__(grid, head, conditioning)
        self.scale = scale
        self.table = nn.Parameter(torch.randn(grid.levels + 1, head.size) * scale)

    def forward(self, x, condition=None):
        first = x.new_full((len(x), 1), self.grid.levels)
        before = torch.cat([first, x.flatten(1)[:, :-1]], dim=1)
        return self.table[before].unflatten(1, self.grid.shape)

    def sizes(self):
        return {"scale": self.scale}

    def receptive_field(self):
        return torch.ones(self.grid.symbols - 1).diag(-1).bool()
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("plugin") / "mine.py"
    file.write_text(PLUGIN)
    ts.load_plugin(file)
    yield
    # Other tests are parametrized over the tables.
    del ts.MODELS._entries["left-neighbour"]
    del ts.HEADS._entries["sharp"]


@pytest.fixture
def model(plugin: None) -> ts.DensityModel:
    sizes: dict[str, Any] = {"scale": 0.7, "sharpness": 1.5}
    return ts.create("left-neighbour", ts.Grid(2, 2, 1, 3), head="sharp", **sizes).double()


def test_it_is_in_the_tables(model: ts.DensityModel) -> None:
    assert model.name == "left-neighbour"
    assert ts.MODELS["left-neighbour"] is type(model)
    assert list(ts.MODELS)[-1] == "left-neighbour"
    with pytest.raises(ConfigError, match="did you mean 'left-neighbour'"):
        ts.create("left-neigbour", ts.Grid(2, 2, 1, 3))
    with pytest.raises(ConfigError, match=r"size of left-neighbour.*did you mean 'scale'"):
        ts.create("left-neighbour", ts.Grid(2, 2, 1, 3), scal=3)  # type: ignore[call-arg]


def test_it_scores_and_samples_as_the_others(model: ts.DensityModel) -> None:
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2, 1)
    assert float(model.log_prob(every).exp().sum()) == pytest.approx(1)
    drawn = ts.sample(model, n=5, seed=3)
    for method in ("cached", "naive", "parallel"):
        assert torch.equal(ts.sample(model, n=5, seed=3, method=method), drawn)  # type: ignore[arg-type]
    assert not ts.replay(model, drawn, seed=3).differs.any()


def test_its_config_rebuilds_it(model: ts.DensityModel) -> None:
    again = from_config(model.config()).double()
    again.load_state_dict(model.state_dict())
    x = torch.zeros(2, 2, 2, 1, dtype=torch.int64)
    torch.testing.assert_close(again.log_prob(x), model.log_prob(x))


def test_it_is_saved_and_loaded(model: ts.DensityModel, tmp_path: Path) -> None:
    tokenizer = ts.create_tokenizer("identity", image_size=(2, 2), channels=1, levels=3)
    ts.Generator(tokenizer, model.float()).save(tmp_path / "run")
    loaded = ts.load(tmp_path / "run")
    assert torch.equal(loaded.prior.table, model.table)


def test_a_class_whose_constructor_does_not_fit_is_explained() -> None:
    class Odd(ts.MODELS["independent"]):  # type: ignore[misc]
        def __init__(self, grid: ts.Grid) -> None: ...

    ts.register_model("odd")(Odd)
    try:
        with pytest.raises(ConfigError, match="constructor of Odd must take grid, head, conditi"):
            ts.create("odd", ts.Grid(2, 2, 1, 3))
    finally:
        del ts.MODELS._entries["odd"]

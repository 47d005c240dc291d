"""Windows of the next pixels: the symbols of cached steps in fewer passes over the weights."""

from __future__ import annotations

import pytest
import torch

import tessella as ts
from tessella.heads import HEADS
from tessella.models.pixel_window import WholeGridWindow
from tessella.models.transformer import Transformer, TransformerWindow
from tessella.nn.stepping.runners import IndexedRunner
from tessella.noise import Noise
from tessella.sampling import KnownSymbols, Rule, Sampler, Sampling
from tessella.sampling.windows import PIXELS, Windows

GRIDS = [ts.Grid(4, 5, 1, 7), ts.Grid(3, 4, 3, 5), ts.Grid(1, 1, 1, 3)]


def model_of(grid: ts.Grid, name: str = "transformer", **options: object) -> ts.DensityModel:
    """A model far enough from a fresh one that symbols depend on each other."""
    model = ts.create(name, grid, **options).double()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(
            parameter.shape, dtype=torch.float64, generator=generator
        )
    return model


def windows(
    model: ts.DensityModel, n: int, pixels: int, seed: int = 0, kept: KnownSymbols | None = None
) -> Windows:
    """A finished walk."""
    noise = Noise(model.grid, n, seed)
    walk = Windows(model, model.window(n, pixels), model.condition(None, n), noise, Rule(), kept)
    for _ in walk.walk():
        pass
    return walk


@pytest.fixture(params=["torch", "kernel", "device"])
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ways to run programs; ``device`` is that of a GPU, whose places are in its memory."""
    if request.param == "torch":
        monkeypatch.setenv("TESSELLA_KERNEL", "0")
    if request.param == "device":
        monkeypatch.setattr("tessella.nn.stepping.program.create_runner", IndexedRunner)
    return str(request.param)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_windows_of_every_size_draw_what_cached_steps_draw(
    head: str, grid: ts.Grid, runner: str
) -> None:
    model = model_of(grid, head=head, kv_heads=2, layers=2)
    expected = ts.sample(model, n=3, seed=5, method="cached").flatten(1)
    for pixels in (1, 3, 7, grid.pixels + 9):
        assert torch.equal(windows(model, 3, pixels, seed=5).x, expected)


@pytest.mark.parametrize(
    "rule",
    [
        {"temperature": 0.7},
        {"top_k": 3, "top_p": 0.8},
        {"guidance": 1.7},
        {"guidance": 0.5, "temperature": 1.2, "top_k": 4},
    ],
)
def test_rules_bend_windows_as_they_bend_steps(rule: dict[str, float], runner: str) -> None:
    model = model_of(ts.Grid(3, 5, 2, 6), classes=2, layers=2)
    cond = torch.tensor([0, 1, 1])
    drawn = ts.sample(model, n=3, seed=2, method="windows", cond=cond, **rule)  # type: ignore[arg-type]
    expected = ts.sample(model, n=3, seed=2, method="cached", cond=cond, **rule)  # type: ignore[arg-type]
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("name", [name for name in ts.MODELS if not ts.MODELS[name].states_bound])
def test_every_family_draws_by_windows(name: str) -> None:
    model = model_of(ts.Grid(3, 4, 2, 4), name, classes=2)
    cond = torch.tensor([0, 1])
    expected = ts.sample(model, n=2, seed=1, method="cached", cond=cond)
    assert torch.equal(ts.sample(model, n=2, seed=1, method="windows", cond=cond), expected)


def test_a_completion_keeps_what_is_known() -> None:
    grid = ts.Grid(4, 4, 1, 7)
    model = model_of(grid)
    x = torch.randint(7, (3, 4, 4, 1), generator=torch.Generator().manual_seed(0))
    for known in (torch.eye(4, dtype=torch.bool), torch.arange(16).view(4, 4) < 9):
        drawn = ts.complete(model, x, known, seed=4, method="windows")
        assert torch.equal(drawn, ts.complete(model, x, known, seed=4, method="cached"))


def test_known_symbols_are_guessed_right() -> None:
    model = model_of(ts.Grid(4, 4, 1, 7))
    x = torch.full((2, 16), 3)
    known = torch.ones(2, 16, dtype=torch.bool)
    known[:, 15] = False
    walk = windows(model, 2, 4, kept=KnownSymbols(x, known))
    # Four windows of known symbols, one more where the unknown one was guessed wrong.
    assert int(walk.passes.max()) <= 5


def test_codes_are_seen_by_every_pixel_of_a_window() -> None:
    codes = ts.Grid(2, 2, 1, 5)
    model = model_of(ts.Grid(4, 4, 1, 6), codes=codes)
    cond = torch.randint(5, (3, 2, 2, 1), generator=torch.Generator().manual_seed(1))
    expected = ts.sample(model, n=3, method="cached", cond=cond)
    assert torch.equal(ts.sample(model, n=3, method="windows", cond=cond), expected)


def test_a_window_has_the_parameters_of_the_whole_grid(runner: str) -> None:
    grid = ts.Grid(4, 5, 2, 6)
    model = model_of(grid, classes=2)
    condition = model.condition(torch.tensor([0, 1, 1]), 3)
    x = torch.randint(6, (3, *grid.shape), generator=torch.Generator().manual_seed(0))
    window = model.window(3, 4)
    oracle = WholeGridWindow(model, 3, 4)
    window.begin(condition)
    oracle.begin(condition)
    for first in (0, 3, 3, 4, 8, 12, 16):
        torch.testing.assert_close(
            window.parameters(x, first), oracle.parameters(x, first), rtol=0, atol=1e-11
        )


def test_guesses_save_passes() -> None:
    model = model_of(ts.Grid(5, 5, 1, 4))
    walk = windows(model, 1, 8)
    assert int(walk.passes.max()) < 25
    # A window of a single pixel is a step.
    assert windows(model, 1, 1).passes.tolist() == [25]


def test_symbols_that_do_not_depend_on_each_other_are_final_at_the_second_pass() -> None:
    model = ts.create("independent", ts.Grid(4, 8, 1, 5)).double()
    # Of each of the four windows, the first pass draws what the second finds unchanged.
    assert int(windows(model, 1, 8).passes.max()) <= 8


def test_partial_grids_are_final_in_front_and_zero_behind() -> None:
    model = model_of(ts.Grid(5, 4, 1, 7))
    whole = ts.sample(model, n=3, seed=4, method="cached").flatten(1)
    marks = []
    for index, x in ts.stream(model, n=3, seed=4, method="windows", every=3):
        assert torch.equal(x.flatten(1)[:, :index], whole[:, :index])
        assert not x.flatten(1)[:, index:].any()
        marks.append(index)
    assert marks == sorted(set(marks))
    assert marks[-1] == 20


def test_one_sampler_draws_batch_after_batch_in_the_same_memory() -> None:
    model = model_of(ts.Grid(4, 4, 2, 5), classes=2)
    sampler = Sampler(model, Sampling("windows"))
    classes = torch.tensor([0, 1, 1])
    for seed, cond in ((0, None), (3, classes), (7, None)):
        drawn = [x.clone() for _, x in sampler.stream(3, seed, cond)][-1]
        assert torch.equal(drawn, ts.sample(model, n=3, seed=seed, cond=cond, method="cached"))
    window = sampler._window
    assert isinstance(window, TransformerWindow)
    assert window.pixels == PIXELS
    list(sampler.stream(3, 1))
    assert sampler._window is window
    list(sampler.stream(2, 1))
    assert sampler._window is not window


def test_what_a_window_cannot_know_is_computed_whole() -> None:
    class Derived(Transformer):
        """It might compute something else."""

    grid = ts.Grid(3, 3, 1, 5)
    model = model_of(grid)
    assert isinstance(model.window(1, 4), TransformerWindow)
    model.__class__ = Derived
    assert isinstance(model.window(1, 4), WholeGridWindow)
    predicted = ts.create("transformer", ts.Grid(3, 3, 1, 8), head="logistic-mixture")
    assert isinstance(predicted.window(1, 4), TransformerWindow)


def test_in_float32_a_difference_is_a_near_tie() -> None:
    model = model_of(ts.Grid(6, 6, 1, 9)).float()
    drawn = ts.sample(model, n=8, method="windows")
    assert float(ts.replay(model, drawn).gap.max()) < 1e-4

"""Parallel decoding: passes until nothing changes, and what is not computed again. That it draws
what the other methods draw is a contract test of every model."""

from __future__ import annotations

import pytest
import torch

import tessella as ts
from tessella import kernel
from tessella.errors import InputError
from tessella.noise import Noise
from tessella.sampling import KnownSymbols, Passes, Rule, Sampler, Sampling, choose, parallel


def model_of(grid: ts.Grid, name: str = "gated-pixelcnn", **sizes: int) -> ts.DensityModel:
    """A model far enough from a fresh one that symbols depend on each other."""
    model = ts.create(name, grid, **sizes).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn(
            parameter.shape, dtype=torch.float64, generator=generator
        )
    return model


def passes(model: ts.DensityModel, n: int, seed: int = 0) -> Passes:
    return Passes(model, model.condition(None, n), Noise(model.grid, n, seed), Rule())


def test_independent_symbols_need_one_pass_and_one_to_see_it() -> None:
    walk = passes(ts.create("independent", ts.Grid(3, 4, 2, 5)).double(), 3)
    assert [index for index, _ in walk.walk()] == [24]
    assert walk.passes.tolist() == [2, 2, 2]


def test_there_are_at_most_as_many_passes_as_symbols() -> None:
    walk = passes(model_of(ts.Grid(5, 4, 1, 7), layers=2, hidden=16), 6)
    list(walk.walk())
    assert bool((walk.passes <= 20).all())
    assert len(walk.passes.unique()) > 1, "images are finished at different times"


def test_finished_images_leave_the_batch_and_final_rows_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, seen = model_of(ts.Grid(6, 3, 1, 9), layers=2, hidden=16), []
    parameters = model.head_parameters
    monkeypatch.setattr(
        model,
        "head_parameters",
        lambda x, c, row: seen.append((len(x), row)) or parameters(x, c, row),
    )
    walk = passes(model, 5)
    list(walk.walk())
    images, rows = zip(*seen, strict=True)
    assert sum(images) == int(walk.passes.sum())
    assert list(images) == sorted(images, reverse=True)
    assert list(rows) == sorted(rows)
    assert rows[-1] > 0


def test_partial_grids_are_final_in_front_and_zero_behind() -> None:
    model = model_of(ts.Grid(5, 4, 1, 7), layers=2, hidden=16)
    whole = ts.sample(model, n=3, seed=4, method="cached").flatten(1)
    marks = []
    for index, x in ts.stream(model, n=3, seed=4, method="parallel", every=3):
        assert torch.equal(x.flatten(1)[:, :index], whole[:, :index])
        assert not x.flatten(1)[:, index:].any()
        marks.append(index)
    assert marks == sorted(set(marks))
    assert marks[-1] == 20
    assert all(mark % 3 == 0 for mark in marks[:-1])


def test_noise_that_is_not_kept_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(ts.Grid(4, 4, 1, 7), layers=2, hidden=16)
    expected = ts.sample(model, n=3, method="parallel")
    monkeypatch.setattr(parallel, "CACHED_NOISE", 2 * 4 * 3 * 7)  # two rows of four
    walk = passes(model, 3)
    list(walk.walk())
    assert len(walk._noise_of_rows) <= 2
    assert torch.equal(walk.x.view_as(expected), expected)


def test_a_completion_begins_with_what_is_known() -> None:
    model, x = model_of(ts.Grid(4, 4, 1, 7), layers=2, hidden=16), torch.full((2, 4, 4, 1), 3)
    known = torch.ones(2, 16, dtype=torch.bool)
    known[:, 15] = False
    kept = KnownSymbols(x.flatten(1), known)
    walk = Passes(model, model.condition(None, 2), Noise(model.grid, 2), Rule(), kept)
    list(walk.walk())
    assert int(walk.passes.max()) <= 3, "one symbol is unknown"


def test_auto_is_a_rule_and_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bits, grey = ts.Grid(3, 3, 1, 2), ts.Grid(3, 3, 1, 4)
    if kernel.available():
        assert choose(ts.create("made", bits)) == "cached"
        assert choose(ts.create("made", bits, masks=2)) == "cached"
    monkeypatch.setenv("TESSELLA_KERNEL", "0")
    assert [choose(ts.create("made", grid)) for grid in (bits, grey)] == ["parallel", "cached"]
    assert choose(ts.create("gated-pixelcnn", bits)) == "cached"
    model = model_of(bits, "made", hidden=20)
    assert torch.equal(ts.sample(model, n=4), ts.sample(model, n=4, method="cached"))


@pytest.mark.parametrize("name", [name for name in ts.MODELS if name != "masked"])
def test_one_sampler_draws_batch_after_batch_in_the_same_memory(name: str) -> None:
    model = ts.create(name, ts.Grid(4, 4, 2, 5), classes=2).double()
    sampler, classes = Sampler(model, Sampling("cached")), torch.tensor([0, 1, 1])
    for seed, cond in ((0, None), (3, None), (7, None), (3, classes), (5, None), (9, classes)):
        drawn = [x.clone() for _, x in sampler.stream(3, seed, cond)][-1]
        assert torch.equal(drawn, ts.sample(model, n=3, seed=seed, cond=cond, method="cached"))
    assert sampler._steps is not None
    state = sampler._steps.state
    list(sampler.stream(3, 1))
    assert sampler._steps.state is state


def test_a_stream_whose_sampler_began_another_cannot_go_on() -> None:
    sampler = Sampler(model_of(ts.Grid(3, 3, 1, 4), layers=2, hidden=8), Sampling("cached"))
    first = sampler.stream(2, 0)
    next(first)
    list(sampler.stream(2, 5))
    with pytest.raises(InputError, match="a Sampler for each"):
        next(first)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'parallel'"):
        ts.sample(ts.create("made", ts.Grid(2, 2, 1, 2)), n=1, method="paralel")

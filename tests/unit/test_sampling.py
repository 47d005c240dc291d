"""Noise, the rules that bend a table, streams and completion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tessella as ts
from tessella.errors import InputError
from tessella.noise import Noise
from tessella.sampling import Rule

GOLDEN_NOISE = [-0.9126086841001091, 1.0175023567953787, -0.19572176406886388]


def probabilities(*p: float) -> torch.Tensor:
    return torch.tensor([p], dtype=torch.float64).log()


def kept(table: torch.Tensor) -> list[int]:
    return torch.isfinite(table[0]).nonzero().flatten().tolist()


def test_noise_is_philox_addressed_by_seed_symbol_and_level() -> None:
    grid = ts.Grid(3, 5, 2, 6)
    noise = Noise(grid, n=3, seed=40)
    words = (
        np.random.Philox(key=42, counter=0)
        .random_raw(grid.symbols * 8)
        .reshape(grid.symbols, 8)[:, :6]
    )
    expected = -np.log(-np.log(((words >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52))
    for index in (0, 29, 7, 8, 28):  # any order
        np.testing.assert_allclose(noise.at(index)[2].numpy(), expected[index], rtol=1e-14)


def test_noise_stays_what_it_was() -> None:
    # Saved seeds depend on these numbers: they may never change.
    noise = Noise(ts.Grid(1, 2, 1, 3), n=1, seed=7).at(1)[0].tolist()
    assert noise == pytest.approx(GOLDEN_NOISE, rel=1e-14)


def test_noise_is_the_same_whatever_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = ts.Grid(2, 4, 1, 7)
    whole = [Noise(grid, 2, 1).at(t).clone() for t in range(8)]
    monkeypatch.setattr("tessella.noise.BUFFER_WORDS", 3 * 8 * 2)
    assert all(torch.equal(Noise(grid, 2, 1).at(t), whole[t]) for t in range(8))
    # The generators go on from where they are, but only there.
    noise = Noise(grid, 2, 1)
    assert all(torch.equal(noise.at(t), whole[t]) for t in (0, 3, 6, 1, 7, 4))


def test_noise_draws_from_the_distribution() -> None:
    table = probabilities(0.5, 0.3, 0.15, 0.05)
    noise = Noise(ts.Grid(1, 1, 1, 4), n=20_000, seed=3)
    seen = torch.bincount((table + noise.at(0)).argmax(-1), minlength=4) / 20_000
    torch.testing.assert_close(seen, table.exp()[0].float(), rtol=0, atol=0.012)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True])
def test_seeds_out_of_range_are_refused(seed: object) -> None:
    # Under the checked annotations of the tests a wrong type is refused before our own check sees
    # it.
    with pytest.raises((InputError, TypeError), match="seed"):
        Noise(ts.Grid(1, 1, 1, 2), n=1, seed=seed)  # type: ignore[arg-type]


def test_top_k_keeps_exactly_k_and_ties_go_to_the_lower_level() -> None:
    assert kept(Rule(top_k=2)(probabilities(0.1, 0.3, 0.3, 0.3))) == [1, 2]
    assert kept(Rule(top_k=9)(probabilities(0.1, 0.3, 0.3, 0.3))) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("p", "levels"),
    [(0.3, [1]), (0.41, [1, 3]), (0.7, [1, 3]), (0.71, [1, 2, 3]), (1.0, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(p: float, levels: list[int]) -> None:
    assert kept(Rule(top_p=p)(probabilities(0.1, 0.4, 0.2, 0.3))) == levels


def test_top_p_acts_after_temperature_and_top_k() -> None:
    # Squared and renormalized: 1/30, 16/30, 4/30, 9/30; of the two that top-k leaves the first has
    # 16/25 = 0.64.
    table = probabilities(0.1, 0.4, 0.2, 0.3)
    assert kept(Rule(temperature=0.5, top_k=2, top_p=0.63)(table)) == [1]
    assert kept(Rule(temperature=0.5, top_k=2, top_p=0.65)(table)) == [1, 3]
    torch.testing.assert_close(
        Rule(temperature=0.5)(table).exp(), torch.tensor([[1, 16, 4, 9]], dtype=torch.float64) / 30
    )


def test_guidance_moves_away_from_the_null_class() -> None:
    model = ts.create("independent", ts.Grid(1, 1, 1, 4), classes=1).double()
    with torch.no_grad():
        model.table[0, 0, 0, 0] = probabilities(0.4, 0.3, 0.2, 0.1)
        model.table[1, 0, 0, 0] = probabilities(0.25, 0.25, 0.25, 0.25)
    n = 20_000
    x = ts.sample(model, n=n, cond=torch.zeros(n, dtype=torch.int64), guidance=2.0, batch=n)
    expected = torch.tensor([16.0, 9, 4, 1]) / 30
    torch.testing.assert_close(
        torch.bincount(x.flatten(), minlength=4) / n, expected, rtol=0, atol=0.012
    )


@pytest.mark.parametrize(
    "bad", [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": 1.5}]
)
def test_rules_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises((InputError, TypeError)):
        Rule(**bad)  # type: ignore[arg-type]


@pytest.fixture
def model() -> ts.DensityModel:
    return ts.create("gated-pixelcnn", ts.Grid(4, 3, 2, 5), layers=2, hidden=8).double()


def test_a_stream_yields_partial_grids_row_by_row(model: ts.DensityModel) -> None:
    final = ts.sample(model, n=2, seed=3)
    seen = [(index, x.clone()) for index, x in ts.stream(model, n=2, seed=3)]
    assert [index for index, _ in seen] == [6, 12, 18, 24]
    for index, x in seen:
        assert torch.equal(x.flatten(1)[:, :index], final.flatten(1)[:, :index])
        assert not x.flatten(1)[:, index:].any()
    assert [index for index, _ in ts.stream(model, n=1, every=7)] == [7, 14, 21, 24]


def test_two_streams_may_run_at_once_and_grad_mode_is_left_alone(model: ts.DensityModel) -> None:
    one, two = ts.stream(model, n=1, seed=1), ts.stream(model, n=1, seed=2)
    last = {}
    for last["one"], last["two"] in zip(one, two, strict=True):
        assert torch.is_grad_enabled()
    assert torch.equal(last["one"][1], ts.sample(model, n=1, seed=1))
    assert torch.equal(last["two"][1], ts.sample(model, n=1, seed=2))


def test_known_symbols_differ_by_image(model: ts.DensityModel) -> None:
    x = ts.sample(model, n=2, seed=8)
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    y = ts.complete(model, x, known, seed=8)
    assert torch.equal(y, x), (
        "the noise of a place is its own: what was drawn before is drawn again"
    )
    other = ts.complete(model, x, known, seed=9)
    assert torch.equal(other[known], x[known])
    assert not torch.equal(other, x)


def test_what_is_not_known_may_be_anything(model: ts.DensityModel) -> None:
    x = torch.full((1, 4, 3, 2), 99)
    known = torch.zeros(4, 3, dtype=torch.bool)
    known[0], x[:, 0] = True, 1
    assert (ts.complete(model, x, known)[:, 0] == 1).all()
    with pytest.raises(InputError, match=r"0\.\.4"):
        ts.complete(model, x, ~known)


def test_replay_sees_a_changed_symbol(model: ts.DensityModel) -> None:
    x = ts.sample(model, n=1, seed=5)
    x[0, 2, 1, 0] = (x[0, 2, 1, 0] + 1) % 5
    assert ts.replay(model, x, seed=5).differs[0, 2, 1, 0]
    assert ts.replay(model, x, seed=5).gap[0, 2, 1, 0] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be an integer of at least 1"),
        ({"method": "fast"}, "cached"),
        ({"cond": torch.tensor([0])}, "no classes"),
        ({"guidance": 2.0}, "classes"),
        ({"batch": 0}, "batch"),
    ],
)
def test_bad_arguments_are_refused(
    model: ts.DensityModel, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ts.sample(model, **({"n": 1} | arguments))  # type: ignore[arg-type]


def test_a_model_left_in_training_mode_with_dropout_is_refused() -> None:
    model = ts.create(
        "gated-pixelcnn", ts.Grid(2, 2, 1, 3), layers=2, hidden=4, dropout=0.5
    ).train()
    with pytest.raises(InputError, match="eval"):
        ts.sample(model, n=1)
    with pytest.raises(InputError, match="eval"):
        model.log_prob(torch.zeros(1, 2, 2, 1, dtype=torch.int64))

"""MADE: masks by counting paths, the average over sets of degrees, refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError
from tessella.heads import Distribution, JointHead
from tessella.models.condition import Conditioning
from tessella.models.made import MADE, log_weights_before
from tessella.nn.stepping.state import State


def build(grid: ts.Grid, head: str = "categorical", **sizes: object) -> MADE:
    """A model in float64 whose parameters have been moved."""
    model = ts.create("made", grid, head, seed=1, **sizes).double()
    assert isinstance(model, MADE)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return model


def all_grids(grid: ts.Grid) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(grid.levels), repeat=grid.symbols))).view(
        -1, *grid.shape
    )


@pytest.mark.parametrize("direct", [False, True])
def test_the_field_of_one_set_is_where_paths_lead(direct: bool) -> None:
    model = build(ts.Grid(3, 3, 1, 2), layers=2, hidden=4, direct=direct)
    first, second = model.degrees[0].tolist()
    expected = torch.zeros(9, 9, dtype=torch.bool)
    for t, s in itertools.product(range(9), repeat=2):
        paths = sum(s < a <= b <= t for a in first for b in second)
        expected[t, s] = paths > 0 or (direct and s < t)
    assert torch.equal(model.receptive_field(), expected)
    assert expected.any()
    assert direct or not torch.equal(expected, torch.ones(9, 9).tril(-1).bool()), (
        "too few units to see everything"
    )


def test_several_sets_are_averaged_as_joint_distributions() -> None:
    grid = ts.Grid(2, 2, 1, 3)
    model = build(grid, hidden=5, masks=3, direct=True)
    x, total = all_grids(grid), torch.zeros(81, dtype=torch.float64)
    for which in range(3):
        one = build(grid, hidden=5, direct=True)
        one.load_state_dict(model.state_dict())
        one.degrees.copy_(model.degrees[which : which + 1])
        total += one.log_prob(x).detach().exp() / 3
    torch.testing.assert_close(model.log_prob(x).exp(), total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", ["categorical", "ordinal", "logistic-mixture"])
@pytest.mark.parametrize("direct", [False, True])
def test_three_sets_sum_to_one_and_step_as_they_run(head: str, direct: bool) -> None:
    grid = ts.Grid(2, 1, 2, 3)
    sizes: dict[str, object] = {"components": 6} if head == "logistic-mixture" else {}
    model = build(grid, head, layers=2, hidden=6, masks=3, embedding=2, direct=direct, **sizes)
    x = all_grids(grid)
    with torch.no_grad():
        assert abs(float(model.log_prob(x).logsumexp(0))) < 1e-12
        expected = model.distribution(x).table(x).flatten(1, 3)
    state, previous = model.init_state(len(x)), x.flatten(1)[:, 0]
    for index in range(grid.symbols):
        parameters, state = model.step(previous, index, state)
        torch.testing.assert_close(
            model.head.symbol(parameters).table(), expected[:, index], rtol=0, atol=1e-12
        )
        previous = x.flatten(1)[:, index]


def test_degrees_follow_their_seed_alone() -> None:
    one, two, other = (build(ts.Grid(3, 3, 1, 2), mask_seed=seed).degrees for seed in (4, 4, 5))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_weights_behind_masks_are_not_counted() -> None:
    model = build(ts.Grid(3, 3, 1, 2), layers=1, hidden=5)
    degrees = model.degrees[0, 0].tolist()
    assert model.parameter_count() == sum(degrees) + sum(9 - d for d in degrees) + 5 + 9


def test_components_must_divide_by_the_masks() -> None:
    with pytest.raises(ConfigError, match="10 components do not divide by masks=3"):
        build(ts.Grid(2, 2, 1, 5), "logistic-mixture", masks=3)


def test_several_masks_need_a_head_whose_mixture_is_known() -> None:
    class Other(JointHead):
        name, size = "other", 4

        def __call__(self, parameters: torch.Tensor) -> Distribution:
            raise NotImplementedError

        def symbol(self, parameters: torch.Tensor) -> Distribution:
            raise NotImplementedError

        def start(self, parameters: torch.Tensor) -> State:
            raise NotImplementedError

        def next(
            self, previous: torch.Tensor | None, channel: int, state: State
        ) -> tuple[torch.Tensor, State]:
            raise NotImplementedError

    grid = ts.Grid(2, 2, 1, 5)
    assert MADE(grid, Other(grid), Conditioning(), masks=1).free_size == 4
    with pytest.raises(ConfigError, match="masks=2.*head='other' take masks=1"):
        MADE(grid, Other(grid), Conditioning(), masks=2)


def test_the_average_starts_from_equal_weights() -> None:
    state = build(ts.Grid(2, 2, 1, 3), masks=4).init_state(2)
    torch.testing.assert_close(
        state.log_weights, torch.full((2, 4), -math.log(4), dtype=torch.float64)
    )


def test_log_weights_keep_their_digits_on_long_sequences() -> None:
    each = -5 + 0.05 * torch.randn(2, 3072, 4, generator=torch.Generator().manual_seed(0))
    running, expected = torch.zeros(2, 4, dtype=torch.float64), []
    for place in each.double().unbind(1):
        expected.append(running.log_softmax(-1))
        running = running + place
    torch.testing.assert_close(
        log_weights_before(each), torch.stack(expected, 1).float(), rtol=1e-6, atol=1e-6
    )

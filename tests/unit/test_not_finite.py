"""Parameters that are NaN or infinite: an error of ours from scoring and sampling, never a NaN."""

from __future__ import annotations

import math

import pytest
import torch

import tessella as ts
from tessella.errors import NumericalError
from tessella.sampling import METHODS, Method, Rule

FACTORS = (1e2, 1e4, 1e10, 1e20, 1e30)


# Masked models state no exact log-probability; test_masked.py has theirs.
EXACT_FAMILIES = [name for name, family in ts.MODELS.items() if not family.states_bound]


def model_of(name: str, levels: int = 3) -> ts.DensityModel:
    return ts.create(name, ts.Grid(4, 4, 1, levels), seed=1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", EXACT_FAMILIES)
def test_weights_that_are_no_numbers_are_an_error(name: str, value: float) -> None:
    model = model_of(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    x = torch.zeros(2, 4, 4, 1, dtype=torch.int64)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        model.log_prob(x)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        model.log_prob(x, reduce=False)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        ts.replay(model, x)
    for method in METHODS:
        with pytest.raises(NumericalError, match="NaN or infinite"):
            ts.sample(model, n=2, method=method)
        with pytest.raises(NumericalError, match="NaN or infinite"):
            ts.complete(model, x, torch.eye(4, dtype=torch.bool), method=method)


@pytest.mark.parametrize("head", ["categorical", "logistic-mixture"])
@pytest.mark.parametrize("name", EXACT_FAMILIES)
def test_large_weights_give_numbers_or_an_error(name: str, head: str) -> None:
    x = torch.randint(3, (2, 4, 4, 1), generator=torch.Generator().manual_seed(0))
    for factor in FACTORS:
        model = ts.create(name, ts.Grid(4, 4, 1, 3), head=head, seed=1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        try:
            score = model.log_prob(x)
        except NumericalError:
            # The sampler may still find finite numbers on its own way, but no NaN.
            pass
        else:
            assert torch.isfinite(score).all()
        try:
            drawn = ts.sample(model, n=2)
        except NumericalError:
            continue
        assert 0 <= int(drawn.min()) <= int(drawn.max()) < 3


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_in_the_last_row_only_is_found(method: Method) -> None:
    model = model_of("independent")
    with torch.no_grad():
        model.table[0, 3, 3, 0, 1] = math.nan  # type: ignore[index]
    with pytest.raises(NumericalError):
        ts.sample(model, n=3, method=method)


def test_a_level_of_probability_zero_is_no_error() -> None:
    model = model_of("independent")
    with torch.no_grad():
        model.table[..., 1] = -math.inf  # type: ignore[index]
    assert not (ts.sample(model, n=20) == 1).any()
    assert torch.isfinite(model.log_prob(torch.zeros(1, 4, 4, 1, dtype=torch.int64))).all()


TABLES = [
    torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log(),
    torch.tensor([[0.3, 0.1, 0.3, 0.3]]).log(),  # ties: the lower level
    torch.tensor([[0.25, 0.25, 0.25, 0.25]]).log(),
    torch.log_softmax(torch.tensor([[-1e30, 0.0, 88.0, 88.0]]), -1),
]

TINY = [5e-324, 1e-310, 1e-50, 1e-46, 1e-45, 1e-40, 1.2e-38, 1e-35]


@pytest.mark.parametrize("tiny", TINY)
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_limit_of_a_tiny_temperature_or_top_p_is_the_likeliest_level(
    table: torch.Tensor, tiny: float, dtype: torch.dtype
) -> None:
    table = table.to(dtype)
    likeliest = int(table.argmax())
    for rule in (
        Rule(temperature=tiny),
        Rule(top_p=tiny),
        Rule(temperature=tiny, top_p=tiny, top_k=2),
        Rule(temperature=tiny, top_p=0.9),
    ):
        changed = rule(table)
        assert torch.isfinite(changed)[0].nonzero().flatten().tolist() == [likeliest], rule


@pytest.mark.parametrize("temperature", [1e30, 1e38, 1e39, 1e300])
def test_the_limit_of_a_huge_temperature_is_uniform_over_the_possible_levels(
    temperature: float,
) -> None:
    table = torch.tensor([[0.9, 0.1, 0.0]]).log()
    expected = torch.tensor([[0.5, 0.5, 0.0]])
    torch.testing.assert_close(Rule(temperature=temperature)(table).exp(), expected)


@pytest.mark.parametrize("name", ["gated-pixelcnn", "made"])
@pytest.mark.parametrize(
    "rule", [{"temperature": 1e-40}, {"top_p": 1e-50}, {"temperature": 1e-320}, {"top_k": 1}]
)
def test_all_methods_draw_the_likeliest_levels_in_the_limit(
    name: str, rule: dict[str, float]
) -> None:
    model = model_of(name)
    expected = ts.sample(model, n=2, method="naive", top_k=1)
    for method in METHODS:
        assert torch.equal(ts.sample(model, n=2, method=method, **rule), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("guidance", [1e20, 1e38, 1e300, -1e300])
def test_guidance_however_strong_gives_symbols(guidance: float) -> None:
    model = ts.create("independent", ts.Grid(2, 2, 1, 4), classes=1, seed=3)
    cond = torch.zeros(3, dtype=torch.int64)
    drawn = ts.sample(model, n=3, cond=cond, guidance=guidance)
    c, u = (model.table[i].log_softmax(-1) for i in (0, 1))  # type: ignore[index]
    gain = (c - u) * math.copysign(1, guidance)
    assert torch.equal(drawn, gain.argmax(-1).expand(3, -1, -1, -1))

"""Arguments of a wrong type or value from Python: an error of ours, and keywords that are known."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import get_type_hints

import numpy as np
import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError, InputError
from tessella.models import ModelSizes, density_model
from tessella.sampling import Rule, RuleKeywords, Sampling, SamplingKeywords

GRID = ts.Grid(3, 3, 1, 4)


@pytest.fixture(scope="module")
def model() -> ts.DensityModel:
    return ts.create("gated-pixelcnn", GRID, classes=2, layers=1, hidden=4)


@pytest.fixture(scope="module")
def symbols() -> torch.Tensor:
    return torch.zeros(2, 3, 3, 1, dtype=torch.int64)


SAMPLE_MISTAKES = [
    ({"n": 2.5}, "n must be an integer"),
    ({"n": "3"}, "n must be an integer"),
    ({"n": None}, "n must be an integer"),
    ({"n": True}, "n must be an integer"),
    ({"n": torch.tensor(2.5)}, "n must be an integer"),
    ({"seed": "x"}, "seed must be an integer"),
    ({"seed": None}, "seed must be an integer"),
    ({"seed": 0.5}, "seed must be an integer"),
    ({"seed": -1}, "seed must be an integer"),
    ({"seed": 2**64 - 1}, "seed must be an integer"),
    ({"temperature": None}, "temperature must be a finite number"),
    ({"temperature": "hot"}, "temperature must be a finite number"),
    ({"temperature": [1.0]}, "temperature must be a finite number"),
    ({"temperature": float("nan")}, "temperature must be a finite number"),
    ({"temperature": float("inf")}, "temperature must be a finite number"),
    ({"temperature": -1.0}, "temperature must be above 0"),
    ({"top_k": "all"}, "top_k must be an integer"),
    ({"top_k": None}, "top_k must be an integer"),
    ({"top_p": None}, "top_p must be a finite number"),
    ({"top_p": "0.9"}, "top_p must be a finite number"),
    ({"guidance": None}, "guidance must be a finite number"),
    ({"method": None}, "unknown sampling method None"),
    ({"method": ["cached"]}, "unknown sampling method"),
    ({"batch": 0}, "batch must be an integer of at least 1"),
    ({"batch": None}, "batch must be an integer"),
    ({"cond": "a"}, "cond must be a tensor"),
    ({"cond": object()}, "cond must be a tensor"),
    ({"cond": [0, "b"]}, "cond must be a tensor"),
    ({"cond": 1}, r"classes must be integers of shape \[2\]"),
    ({"cond": [0.5, 1.0]}, r"classes must be integers of shape \[2\]"),
    ({"cond": {"class": "a"}}, r"cond\['class'\] must be a tensor"),
    ({"cond": {"klass": [0, 1]}}, "'class' and 'codes', got .*klass"),
    ({"cond": {1: [0, 1], "x": 2}}, "'class' and 'codes'"),
    ({"cond": np.array([0, 2**64 - 1], dtype=np.uint64)}, "classes must lie in 0..1"),
    ({"temprature": 0.5}, "did you mean 'temperature'"),
]


@pytest.mark.parametrize(("arguments", "message"), SAMPLE_MISTAKES)
def test_sampling_refuses_what_does_not_fit(
    model: ts.DensityModel, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ts.sample(model, **({"n": 2} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"known": None}, "completion needs both"),
        ({"x": None}, "completion needs both"),
        ({"known": "a"}, "known must be a tensor"),
        ({"known": 1.0}, "known must be boolean"),
        ({"known": [[True], [True, False]]}, "known must be a tensor"),
        ({"x": "a"}, "x must be a tensor"),
        ({"x": 5}, "known must have shape"),
        ({"seed": "x"}, "seed must be an integer"),
        ({"seed": 2**64}, "seed must be an integer"),
    ],
)
def test_completion_refuses_what_does_not_fit(
    model: ts.DensityModel, symbols: torch.Tensor, arguments: dict[str, object], message: str
) -> None:
    known = torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(InputError, match=message):
        ts.complete(model, **({"x": symbols, "known": known} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (None, "symbols must be a tensor"),
        ("a", "symbols must be a tensor"),
        ([[1], [2, 3]], "symbols must be a tensor"),
        (object(), "symbols must be a tensor"),
        (5, "four dimensions"),
        (1.5, "four dimensions"),
        (torch.zeros(2, 3, 3, 1), "symbols must be integers"),
        (torch.zeros(3, 3, 1, dtype=torch.uint8), "symbols must have shape"),
        (np.full((1, 3, 3, 1), 2**64 - 1, dtype=np.uint64), "symbols must lie in 0..3"),
    ],
)
def test_scoring_and_replay_refuse_what_is_no_grid(
    model: ts.DensityModel, x: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        model.log_prob(x)
    if not isinstance(x, (int, float)):
        with pytest.raises(InputError, match=message):
            ts.replay(model, x)


def test_what_is_no_model_cannot_be_sampled() -> None:
    calls: list[Callable[[], object]] = [
        lambda: ts.sample("digits", n=1),  # type: ignore[arg-type]
        lambda: ts.complete(None, None, None),  # type: ignore[arg-type]
        lambda: ts.replay(5, None),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(InputError, match="takes a density model"):
            call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": 5}, "unknown density model 5"),
        ({"name": None}, "unknown density model None"),
        ({"name": ["made"]}, "unknown density model"),
        ({"name": "mad"}, "did you mean 'made'"),
        ({"head": None}, "unknown head None"),
        ({"head": {}}, "unknown head"),
        ({"grid": (3, 3, 1, 4)}, "grid must be a Grid"),
        ({"grid": None}, "grid must be a Grid"),
        ({"seed": "x"}, "seed must be an integer"),
        ({"seed": None}, "seed must be an integer"),
        ({"classes": "two"}, "classes must be an integer"),
        ({"codes": 5}, "codes must be a Grid"),
        ({"layers": "3"}, "layers must be of type int"),
        ({"layers": True}, "layers must be of type int"),
        ({"layrs": 3}, "did you mean 'layers'"),
    ],
)
def test_create_refuses_what_does_not_fit(arguments: dict[str, object], message: str) -> None:
    with pytest.raises((ConfigError, InputError), match=message):
        ts.create(**({"name": "gated-pixelcnn", "grid": GRID} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("grids", [GRID, None, 5, (), "grids"])
def test_the_prior_of_no_grids_is_refused(grids: object) -> None:
    with pytest.raises(InputError, match="gri"):
        ts.create_prior("independent", grids)  # type: ignore[arg-type]


def test_integers_and_arrays_of_numpy_are_taken(model: ts.DensityModel) -> None:
    expected = ts.sample(model, n=3, seed=5, cond=torch.tensor([0, 1, 1]), temperature=0.5)
    drawn = ts.sample(
        model,
        n=np.int64(3),  # type: ignore[arg-type]
        seed=np.uint8(5),  # type: ignore[arg-type]
        cond=np.array([0, 1, 1], dtype=np.uint8),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
    )
    assert torch.equal(drawn, expected)
    flipped = expected.numpy()[:, ::-1]  # a view with a negative stride
    torch.testing.assert_close(model.log_prob(flipped), model.log_prob(flipped.copy()))


def test_large_batches_are_scored_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ts.create("gated-pixelcnn", GRID, classes=2, layers=2, hidden=4).double()
    x = torch.randint(4, (23, 3, 3, 1), generator=torch.Generator().manual_seed(0))
    cond = torch.arange(23) % 2
    whole = model.log_prob(x, cond)
    each = model.log_prob(x, cond, reduce=False)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(density_model, "PASS_VALUES", 5 * GRID.pixels * density_model.PIXEL_VALUES)
    torch.testing.assert_close(model.log_prob(x, cond), whole, rtol=1e-12, atol=0)
    assert sizes == [5, 5, 5, 5, 3]
    torch.testing.assert_close(model.log_prob(x, cond, reduce=False), each, rtol=1e-12, atol=0)
    assert model.log_prob(x[:0], cond[:0]).shape == (0,)
    sizes.clear()
    last_is_wrong = torch.cat([x, torch.full((1, 3, 3, 1), 4)])
    with pytest.raises(InputError, match=r"symbols must lie in 0\.\.3"):
        model.log_prob(last_is_wrong)
    assert sizes == [], "a mistake in the last image is found before the first is scored"


def test_the_keywords_for_type_checkers_are_those_of_the_classes() -> None:
    expected: dict[str, set[object]] = {}
    for table, without in ((ts.MODELS, {"grid", "head", "conditioning"}), (ts.HEADS, {"grid"})):
        for cls in table.values():  # type: ignore[attr-defined]
            for name, parameter in inspect.signature(cls, eval_str=True).parameters.items():
                if name not in without:
                    expected.setdefault(name, set()).add(parameter.annotation)
    declared: dict[str, set[object]] = {}
    for name, annotation in get_type_hints(ModelSizes).items():
        declared[name] = {annotation}
    assert declared == expected
    assert set(RuleKeywords.__annotations__) == set(inspect.signature(Rule).parameters)
    keywords = {"method", "order", "unmasking", *RuleKeywords.__annotations__}
    assert set(SamplingKeywords.__annotations__) == keywords
    options = {"method", "batch", "every", "rule", "order", "unmasking"}
    assert set(inspect.signature(Sampling).parameters) == options


def test_help_of_create_lists_the_sizes_of_every_family() -> None:
    text = re.sub(r"\s+", " ", inspect.getdoc(ts.create) or "")
    for name, cls in ts.MODELS.items():
        sizes = []
        for size, parameter in inspect.signature(cls).parameters.items():
            if size not in ("grid", "head", "conditioning"):
                sizes.append(f"{size}={parameter.default!r}")
        assert f"{name} {', '.join(sizes) or '(none)'}" in text


def test_representations_are_one_short_line(model: ts.DensityModel, symbols: torch.Tensor) -> None:
    replayed = ts.replay(model, symbols, cond=torch.tensor([0, 1]))
    assert re.fullmatch(
        r"Replay\(2 images, \d+ of 18 symbols differ, largest gap [\d.e+-]+ nats\)", repr(replayed)
    )
    assert repr(model.head) == "CategoricalHead(3x3x1 of 4 levels)"
    mixture = ts.create("independent", GRID, head="logistic-mixture", components=3).head
    assert repr(mixture) == "LogisticMixtureHead(3x3x1 of 4 levels, components=3)"
    assert "'gated-pixelcnn', 3x3x1 of 4 levels, head=CategoricalHead" in repr(model)
    assert repr(ts.HEADS) == "Registry('head': categorical, ordinal, logistic-mixture)"

"""The heads against independent computations."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError
from tessella.files import read_tensors
from tessella.heads import Categorical, LogisticMixture, create_head

GOLDEN = Path(__file__).parents[1] / "golden"


def mixture(levels: int, *components: tuple[float, float, float]) -> LogisticMixture:
    """Of (weight logit, mean, log-scale) triples, float64."""
    columns = torch.tensor(components, dtype=torch.float64).T
    return LogisticMixture(columns.flatten()[None], levels)


def integrated(levels: int, level: int, components: list[tuple[float, float, float]]) -> float:
    """Probability of a level by Simpson's rule over the density in its bin, tails cut 60 scales out."""
    half, centre = 1 / (levels - 1), 2 * level / (levels - 1) - 1
    total = sum(math.exp(w) for w, _, _ in components)
    probability = 0.0
    for weight, mean, log_scale in components:
        scale = math.exp(log_scale)
        low = mean - 60 * scale if level == 0 else centre - half
        high = mean + 60 * scale if level == levels - 1 else centre + half
        if low < high:
            at = torch.linspace(low, high, 20_001, dtype=torch.float64)
            z = (at - mean) / scale
            density = torch.sigmoid(z) * torch.sigmoid(-z) / scale
            simpson = torch.ones_like(at)
            simpson[1:-1:2], simpson[2:-1:2] = 4, 2
            probability += math.exp(weight) / total * float((density * simpson).sum() * (high - low) / 20_000 / 3)
    return probability


@pytest.mark.parametrize("levels", [3, 17, 256])
def test_the_mixture_is_the_integral_of_its_density(levels: int) -> None:
    components = [(0.3, -0.4, -1.5), (-0.2, 0.7, -2.5), (0.0, 0.1, 0.2)]
    table = mixture(levels, *components).table()[0].exp()
    for level in {0, 1, levels // 2, levels - 2, levels - 1}:
        assert float(table[level]) == pytest.approx(integrated(levels, level, components), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", [-50.0, -1.0, 0.0, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("log_scale", [-30.0, -7.0, -3.0, 0.0, 14.0, 40.0])
def test_the_mixture_sums_to_one_and_has_gradients_however_extreme(
    dtype: torch.dtype, mean: float, log_scale: float
) -> None:
    parameters = torch.tensor([[0.0, 1.0, mean, mean / 2, log_scale, log_scale / 2]], dtype=dtype, requires_grad=True)
    table = LogisticMixture(parameters, 256).table()
    assert not table.isnan().any()
    assert float(table.logsumexp(-1)) == pytest.approx(0, abs=1e-12 if dtype == torch.float64 else 2e-5)
    worst = LogisticMixture(parameters, 256).log_prob(torch.tensor([0 if mean > 0 else 255]))
    worst.sum().backward()
    assert torch.isfinite(worst).all()
    assert torch.isfinite(parameters.grad).all()  # type: ignore[arg-type]


def test_the_mixture_agrees_with_pixelcnn_plus_plus() -> None:
    # Weights and values of the PyTorch port of openai/pixel-cnn, whose channels hold means, log-scales and
    # coefficients in turn.
    golden = read_tensors(GOLDEN / "logistic_mixture.safetensors")
    params, x = golden["io.params"].double(), golden["io.x"]
    x = x.movedim(1, -1) if x.shape[1] == 3 else x
    params = params.movedim(1, -1)
    channels = params[..., 10:].unflatten(-1, (3, 30))
    ordered = [channels[..., part * 10 : part * 10 + 10].flatten(-2) for part in range(3)]
    head = create_head("logistic-mixture", ts.Grid(*x.shape[1:3], 3, 256))
    log_prob = head(torch.cat([params[..., :10], *ordered], -1)).log_prob(x.long())
    difference = log_prob.flatten(1).sum(1) + golden["io.nll_sum_per_image"].double()
    assert float(difference.abs().max()) < 2e-3


def test_a_bernoulli_is_the_categorical_of_two_levels() -> None:
    logits = torch.tensor([[0.0, 1.3], [0.5, -2.0]], dtype=torch.float64)
    p = torch.sigmoid(logits[:, 1] - logits[:, 0])
    torch.testing.assert_close(Categorical(logits).log_prob(torch.tensor([1, 0])).exp(), torch.stack([p[0], 1 - p[1]]))


def test_half_precision_parameters_are_told_in_float32() -> None:
    assert Categorical(torch.zeros(2, 3, dtype=torch.bfloat16)).table().dtype == torch.float32
    assert LogisticMixture(torch.zeros(2, 6, dtype=torch.bfloat16), 9).table().dtype == torch.float32


def test_a_mixture_on_two_levels_is_refused() -> None:
    with pytest.raises(ConfigError, match="categorical"):
        create_head("logistic-mixture", ts.Grid(2, 2, 1, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "categorial"}, "did you mean 'categorical'"),
        ({"layer": 3}, "did you mean 'layers'"),
        ({"layers": 2.5}, "layers must be of type int"),
        ({"layers": 0}, "layers >= 1"),
        ({"kernel": 4}, "odd kernel"),
        ({"head": "logistic-mixture", "components": 0}, "components"),
    ],
)
def test_create_refuses_what_makes_no_model(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ts.create("gated-pixelcnn", ts.Grid(2, 2, 1, 4), **arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Known: gated-pixelcnn, independent"):
        ts.create("pixelcnnn", ts.Grid(2, 2, 1, 4))

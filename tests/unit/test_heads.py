"""The heads against independent computations."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError
from tessella.files import read_tensors
from tessella.heads import (
    Categorical,
    CategoricalHead,
    LogisticMixture,
    create_head,
    level_covariance,
)
from tessella.heads.level_log_prob import level_log_prob
from tessella.nn.last_layer import LastLayer

GOLDEN = Path(__file__).parents[1] / "golden"


def mixture(levels: int, *components: tuple[float, float, float]) -> LogisticMixture:
    """Of (weight logit, mean, log-scale) triples, float64."""
    columns = torch.tensor(components, dtype=torch.float64).T
    return LogisticMixture(columns.flatten()[None], levels)


def integrated(levels: int, components: list[tuple[float, float, float]]) -> torch.Tensor:
    """Probability of every level: the density integrated over its bin, the tails cut 60 scales out.

    Each bin is cut into 64 pieces of 16 Gauss-Legendre nodes; the cumulative function is not used.
    """
    nodes, node_weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(16))
    edges = (2 * torch.arange(levels + 1, dtype=torch.float64) - 1) / (levels - 1) - 1
    total = sum(math.exp(w) for w, _, _ in components)
    probability = torch.zeros(levels, dtype=torch.float64)
    for weight, mean, log_scale in components:
        scale = math.exp(log_scale)
        ends = edges.clone()
        ends[0], ends[-1] = mean - 60 * scale, mean + 60 * scale
        cuts = torch.stack(
            [low + torch.linspace(0, 1, 65).double() * (high - low) for low, high in pairwise(ends)]
        )
        low, length = cuts[:, :-1, None], cuts.diff(dim=1)[..., None]
        z = (low + length * (nodes + 1) / 2 - mean) / scale
        density = torch.sigmoid(z) * torch.sigmoid(-z) / scale
        probability += math.exp(weight) / total * (density * length * node_weights / 2).sum((1, 2))
    return probability


@pytest.mark.parametrize("levels", [3, 17, 256])
def test_every_level_has_the_integral_of_the_density_over_its_bin(levels: int) -> None:
    components = [(0.3, -0.4, -1.5), (-0.2, 0.7, -2.5), (0.0, 0.1, 0.2), (-1.0, 0.35, -5.0)]
    table = mixture(levels, *components).table()[0].exp()
    torch.testing.assert_close(table, integrated(levels, components), rtol=0, atol=1e-9)
    assert float(table.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("levels", [3, 256])
def test_the_gradient_of_a_levels_log_probability_is_that_of_its_differences(levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(6, 3, generator=generator).double().requires_grad_()
    log_scales = (torch.randn(6, 3, generator=generator).double() - 2).requires_grad_()
    # The first and the last level, whose bins have one edge, and some between; one for each mixture
    # or, as in a table, all of them for every mixture.
    for x in (
        torch.tensor([0, levels - 1, 1, 2, 0, levels // 2])[:, None],
        torch.arange(3)[:, None, None],
    ):
        assert torch.autograd.gradcheck(
            lambda m, s, x=x: level_log_prob(x, m, s, levels), (means, log_scales)
        )


def test_a_pixel_has_the_integral_of_the_joint_density_over_its_bins() -> None:
    # Two channels, the density of the second shifted by the first: by a midpoint sum over the pair
    # of bins, whose first value enters by its level, as in the head.
    head, levels = create_head("logistic-mixture", ts.Grid(1, 1, 2, 9), components=2), 9
    parameters = torch.tensor(
        [[0.4, -0.3, -0.2, 0.5, 0.3, -0.6, -1.0, -1.5, -0.7, -1.2, 0.8, -0.4]]
    ).double()
    weights, first, second, scale, scales, pair = parameters[0].split(2)
    x = torch.tensor([[a, b] for a in range(levels) for b in range(levels)])
    expected = torch.zeros(levels, levels, dtype=torch.float64)
    for m in range(2):
        of_first = integrated(levels, [(0.0, float(first[m]), float(scale[m]))])
        for a in range(levels):
            mean = float(second[m] + torch.tanh(pair[m]) * (2 * a / (levels - 1) - 1))
            of_second = integrated(levels, [(0.0, mean, float(scales[m]))])
            expected[a] += weights.softmax(0)[m] * of_first[a] * of_second
    log_prob = head(parameters.expand(len(x), 12)).log_prob(x).sum(-1)
    torch.testing.assert_close(log_prob.exp(), expected.flatten(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", [-50.0, -1.0, 0.0, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("log_scale", [-30.0, -7.0, -3.0, 0.0, 14.0, 40.0])
def test_the_mixture_sums_to_one_and_has_gradients_however_extreme(
    dtype: torch.dtype, mean: float, log_scale: float
) -> None:
    parameters = torch.tensor(
        [[0.0, 1.0, mean, mean / 2, log_scale, log_scale / 2]], dtype=dtype, requires_grad=True
    )
    table = LogisticMixture(parameters, 256).table()
    assert not table.isnan().any()
    assert float(table.detach().logsumexp(-1)) == pytest.approx(
        0, abs=1e-12 if dtype == torch.float64 else 2e-5
    )
    worst = LogisticMixture(parameters, 256).log_prob(torch.tensor([0 if mean > 0 else 255]))
    worst.sum().backward()
    assert torch.isfinite(worst).all()
    assert torch.isfinite(parameters.grad).all()  # type: ignore[arg-type]


def test_the_mixture_agrees_with_pixelcnn_plus_plus() -> None:
    # Weights and values of the PyTorch port of openai/pixel-cnn, whose channels hold means,
    # log-scales and coefficients in turn.
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


@pytest.mark.parametrize("levels", [2, 3, 17, 256, 1024])
def test_the_covariance_of_levels_is_positive_definite_and_falls_with_distance(levels: int) -> None:
    covariance = level_covariance(levels)
    assert torch.equal(covariance, covariance.T)
    torch.testing.assert_close(covariance.diagonal(), torch.ones(levels, dtype=torch.float64))
    assert float(torch.linalg.eigvalsh(covariance)[0]) > 0.099, "0.1 of it is the identity"
    assert bool((covariance[0].diff() <= 0).all())


def ordinal(levels: int) -> CategoricalHead:
    head = create_head("ordinal", ts.Grid(2, 2, 1, levels))
    assert isinstance(head, CategoricalHead)
    return head


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_ordinal_head_expresses_every_table(levels: int) -> None:
    noise = torch.Generator().manual_seed(0)
    tables = torch.randn(5, levels, dtype=torch.float64, generator=noise)
    tables[1] *= 10
    tables[2] = torch.where(torch.arange(levels) % 2 == 0, 0.0, -25.0)  # a comb, as rough as can be
    tables[3] = torch.where(torch.arange(levels) == levels // 2, 0.0, -40.0)
    tables = tables.log_softmax(-1)
    head = ordinal(levels)
    torch.testing.assert_close(
        head(head.parameters_from_table(tables)).table(), tables, rtol=0, atol=1e-9
    )
    single = head(head.parameters_from_table(tables.float())).table().double()
    torch.testing.assert_close(single[0], tables[0], rtol=0, atol=1e-4)


def change_of_logits(head: CategoricalHead, level: int) -> torch.Tensor:
    """What one step along the gradient of ``log p(level)`` adds to the log-probabilities of all
    levels, from zero."""
    parameters = torch.zeros(1, head.grid.levels, dtype=torch.float64, requires_grad=True)
    head.symbol(parameters).log_prob(torch.tensor([level])).sum().backward()
    assert parameters.grad is not None
    return (
        head.symbol(parameters.grad * 0.1).table()[0] - head.symbol(parameters.detach()).table()[0]
    )


def test_a_step_on_one_level_raises_its_neighbours_with_the_ordinal_head_only() -> None:
    change = change_of_logits(ordinal(256), 100)
    order = change[[100, 101, 102, 105, 110, 130, 250]]
    assert bool((order.diff() < 0).all()), "the nearer, the more"
    assert float(change[101]) > 0 > float(change[250])
    plain = create_head("categorical", ts.Grid(2, 2, 1, 256))
    assert isinstance(plain, CategoricalHead)
    change = change_of_logits(plain, 100)
    torch.testing.assert_close(change[101], change[250])
    assert float(change[101]) < 0


def test_the_step_of_the_ordinal_head_is_the_covariance_times_that_of_the_softmax() -> None:
    head, level = ordinal(17), 5
    change = change_of_logits(head, level)
    softmax = torch.zeros(17, dtype=torch.float64) - 1 / 17
    softmax[level] += 1
    expected = (0.1 * level_covariance(17) @ softmax).log_softmax(0) + math.log(17)
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-12)


def test_a_bernoulli_is_the_categorical_of_two_levels() -> None:
    logits = torch.tensor([[0.0, 1.3], [0.5, -2.0]], dtype=torch.float64)
    p = torch.sigmoid(logits[:, 1] - logits[:, 0])
    torch.testing.assert_close(
        Categorical(logits).log_prob(torch.tensor([1, 0])).exp(), torch.stack([p[0], 1 - p[1]])
    )


def test_half_precision_parameters_are_told_in_float32() -> None:
    assert Categorical(torch.zeros(2, 3, dtype=torch.bfloat16)).table().dtype == torch.float32
    assert (
        LogisticMixture(torch.zeros(2, 6, dtype=torch.bfloat16), 9).table().dtype == torch.float32
    )


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
    with pytest.raises(
        ConfigError,
        match="Known: any-order, diagonal-bilstm, fvsbn, gated-pixelcnn, gpt, independent",
    ):
        ts.create("pixelcnnn", ts.Grid(2, 2, 1, 4))


def test_ordinal_logits_are_wide_under_autocast() -> None:
    head = create_head("ordinal", ts.Grid(1, 1, 1, 256))
    parameters = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        table = head.symbol(parameters).table()
    torch.testing.assert_close(table, head.symbol(parameters).table(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", list(ts.HEADS))
def test_a_matrix_can_go_into_the_layer_before(head: str) -> None:
    made = create_head(head, ts.Grid(2, 2, 1, 17))
    parameters = torch.randn(2, 2, 2, 1, made.size, dtype=torch.float64)
    if made.joint:
        parameters = parameters[..., 0, :]
    x = torch.randint(17, (2, 2, 2, 1))
    rows = parameters.flatten(0, -2).T  # [size, symbols]
    mixed = made.mix(rows).T.view_as(parameters)
    torch.testing.assert_close(made.of_mixed()(mixed).log_prob(x), made(parameters).log_prob(x))
    assert made.of_mixed().config() == made.config()
    assert type(made.of_mixed().of_mixed()) is type(made.of_mixed())


def test_one_logit_of_two_goes_into_the_layer_before_too() -> None:
    head = create_head("ordinal", ts.Grid(2, 2, 1, 2))
    free = torch.randn(1, 5, dtype=torch.float64)
    padded = torch.cat([torch.zeros_like(free), free]).T  # [5, 2]
    mixed = torch.cat([torch.zeros_like(free), head.mix(free)]).T
    torch.testing.assert_close(head.of_mixed().symbol(mixed).table(), head.symbol(padded).table())


def test_the_ordinal_head_of_mixed_parameters_expresses_every_table() -> None:
    head = ordinal(17).of_mixed()
    assert isinstance(head, CategoricalHead)
    table = torch.randn(3, 17, dtype=torch.float64).log_softmax(-1)
    torch.testing.assert_close(head(head.parameters_from_table(table)).table(), table)


@pytest.mark.parametrize("levels", [2, 17])
@pytest.mark.parametrize("name", ["gated-pixelcnn", "pixelcnn", "lstm"])
def test_weights_mean_what_they_meant_before_the_matrix_went_into_them(
    name: str, levels: int
) -> None:
    # Saved models and the steps of training rely on it: the same probabilities, the same gradient.
    grid = ts.Grid(3, 3, 2, levels)
    model = ts.create(name, grid, head="ordinal").double()
    x = torch.randint(levels, (4, *grid.shape))
    results = []
    for mixes in (True, False):
        if not mixes:
            # The matrix after the layer: what the head did to all parameters by itself.
            model.head = create_head("ordinal", grid)
            for layer in model.last_layers():
                assert isinstance(layer, LastLayer)
                layer.mix = lambda rows: rows
        model.zero_grad()
        nats = model.distribution(x).log_prob(x)
        nats.sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((nats.detach(), *gradients))
    torch.testing.assert_close(results[0], results[1])


def test_half_precision_does_not_reach_the_matrix() -> None:
    layer = LastLayer(4, torch.zeros(256), create_head("ordinal", ts.Grid(1, 1, 1, 256)).mix)
    plain = layer.mixed()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer.mixed(), plain, rtol=0, atol=0)


def test_ordinal_can_be_trained_after_it_was_used_in_inference_mode() -> None:
    head, parameters = (
        create_head("ordinal", ts.Grid(1, 1, 1, 7)),
        torch.zeros(2, 7, requires_grad=True),
    )
    with torch.inference_mode():
        head.symbol(parameters).table()
    head.symbol(parameters).log_prob(torch.tensor([1, 2])).sum().backward()
    assert parameters.grad is not None


def test_ordinal_refuses_very_many_levels() -> None:
    with pytest.raises(ConfigError, match="at most 4,096 levels, got 16,384"):
        create_head("ordinal", ts.Grid(1, 1, 1, 16384))

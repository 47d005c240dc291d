"""The linear predictor: its fit against references, what it must not see, and what a run keeps."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tessella as ts
from tessella.cli.entry import main
from tessella.errors import ConfigError, InputError, TessellaWarning
from tessella.heads.logistic_mixture import LogisticMixtureHead
from tessella.models import DensityModel
from tessella.models.independent import Independent
from tessella.nn import predictor_fit
from tessella.nn.linear_predictor import INSIDE, LinearPredictor
from tessella.nn.predictor_fit import Mixture
from tessella.pipeline import save_model

GRID = ts.Grid(6, 7, 3, 32)


def smooth(n: int, grid: ts.Grid = GRID, seed: int = 0) -> torch.Tensor:
    """Slopes and waves with a little noise, alike in all channels: like pieces of photographs."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[: grid.height, : grid.width] / 8.0
    slopes = generator.normal(size=(3, n, 1, 1))
    brightness = 0.5 + 0.2 * slopes[0] + 0.2 * np.sin(3 * (slopes[1] * rows + slopes[2] * columns))
    tints = 0.1 * generator.normal(size=(n, 1, 1, grid.channels))
    noise = 0.02 * generator.normal(size=(n, *grid.shape))
    x = (brightness[..., None] + tints + noise).clip(0, 1) * (grid.levels - 1)
    return torch.from_numpy(x.round().astype(np.int64))


def smooth_bytes(n: int = 24, seed: int = 0) -> np.ndarray:
    """The same as images of 256 levels."""
    return smooth(n, ts.Grid(6, 7, 3, 256), seed).numpy().astype(np.uint8)


OPTIONS: dict[str, Any] = {
    "steps": 4,
    "batch": 8,
    "warmup": 1,
    "validate_every": 2,
    "device": "cpu",
    "valid": smooth_bytes(8, seed=9),
    "say": lambda line: None,
}


def model(grid: ts.Grid = GRID, name: str = "independent", **sizes: Any) -> DensityModel:
    sizes = {"components": 3, "predictor": True, "predictor_hidden": 4} | sizes
    return ts.create(name, grid, "logistic-mixture", **sizes)


def predictor_of(net: DensityModel) -> LinearPredictor:
    assert net.predictor is not None
    return net.predictor


def bits(net: DensityModel, x: torch.Tensor) -> float:
    return float(net.bits_per_dim(x).detach().mean())


def buffers_of(net: DensityModel) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in predictor_of(net).named_buffers()}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_least_squares_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_fit, "RIDGE", 0.0)
    monkeypatch.setattr(predictor_fit, "PRIOR_PIXELS", 0.0)
    inputs = normal(20, 6)
    products = (inputs.T @ inputs)[None]
    solution = predictor_fit.least_squares(products, torch.tensor([20.0]).double(), channels=2)[0]
    table = inputs.numpy()
    for channel, target in enumerate((4, 5)):
        expected = np.linalg.lstsq(table[:, :target], table[:, target], rcond=None)[0]
        np.testing.assert_allclose(solution[channel, :target], expected, rtol=1e-9)
        assert not solution[channel, target:].any(), "a channel must not see itself"


def test_a_group_of_no_pixels_has_the_coefficients_of_its_parent() -> None:
    parents = normal(1, 2, 6)
    parents[0, 0, 4:] = 0
    parents[0, 1, 5:] = 0
    products = torch.zeros(1, 6, 6, dtype=torch.float64)
    counts = torch.zeros(1, dtype=torch.float64)
    solutions = predictor_fit.least_squares(products, counts, 2, parents)
    torch.testing.assert_close(solutions, parents)


def test_leverages_tell_the_errors_of_pixels_that_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The formula is exact where the penalty does not depend on the number of pixels.
    monkeypatch.setattr(predictor_fit, "RIDGE", 0.0)
    inputs = normal(9, 6)
    count = torch.tensor(9.0).double()

    def missed(kept: torch.Tensor) -> torch.Tensor:
        products = (kept.T @ kept)[None]
        solution = predictor_fit.least_squares(products, count[None], channels=2)[0]
        return inputs[:, -2:] - inputs @ solution.T

    leverages = predictor_fit.leverages(inputs, inputs.T @ inputs, count, channels=2)
    found = missed(inputs) / (1.0 - leverages)
    for pixel in range(9):
        rest = torch.cat([inputs[:pixel], inputs[pixel + 1 :]])
        torch.testing.assert_close(found[pixel], missed(rest)[pixel])


@pytest.mark.parametrize("levels", [5, 256])
def test_the_fit_sees_what_the_predictor_sees(levels: int) -> None:
    grid = ts.Grid(4, 5, 2, levels)
    net, x = model(grid), smooth(12, grid)
    net.fit_predictor(x)
    predictor = predictor_of(net)
    known = predictor.neighbours(x)
    activity = predictor_fit._activity(x)
    assert torch.equal(activity.float(), predictor.activity(known))
    classes = predictor_fit._classes(predictor, activity, predictor.thresholds)
    assert torch.equal(classes, predictor.classes_of(known, predictor.kinds).flatten())
    inputs = predictor_fit._Inputs(grid, x)(torch.arange(12 * 20))
    torch.testing.assert_close(inputs[:, :24], known.flatten(0, 2).flatten(1) / (levels - 1))
    torch.testing.assert_close(inputs[:, 25:], x.flatten(0, 2) / (levels - 1))


def test_the_classes_inside_hold_equally_many_pixels() -> None:
    grid = ts.Grid(8, 9, 3, 256)
    net = model(grid)
    x = torch.randint(256, (60, *grid.shape), generator=torch.Generator().manual_seed(0))
    net.fit_predictor(x)
    predictor = predictor_of(net)
    classes = predictor.classes_of(predictor.neighbours(x), predictor.kinds)
    first = int(predictor.first_class[INSIDE])
    bins = predictor.bins[INSIDE]
    counts = torch.bincount(classes.flatten(), minlength=predictor.classes)[first : first + bins]
    even = 60 * 6 * 5 / bins
    assert counts.sum() == 60 * 6 * 5
    assert (counts - even).abs().max() < 0.1 * even


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1), (2, 2), (3, 3), (3, 4), (5, 6)])
def test_places_of_a_kind_miss_the_same_neighbours(size: tuple[int, int]) -> None:
    predictor = predictor_of(model(ts.Grid(*size, 1, 4)))
    for kind in predictor.kinds.unique():
        here = predictor.exists[predictor.kinds == kind]
        assert (here == here[0]).all()


def test_what_is_beyond_the_border_is_never_seen() -> None:
    predictor = predictor_of(model())
    x = smooth(3)
    beyond = predictor.neighbours(x)[:, predictor.exists == 0]
    assert beyond.shape[1]
    assert not beyond.any()


def drawn_errors() -> torch.Tensor:
    """Errors of a known mixture: 7 of 10 have the scale 1, the others 20."""
    generator = np.random.default_rng(0)
    scales = np.where(generator.random((4000, 1)) < 0.7, 1.0, 20.0)
    return torch.from_numpy(generator.logistic(size=(4000, 2)) * scales)


def log_likelihood(errors: torch.Tensor, mixture: Mixture) -> float:
    """Of a pixel, in nats."""
    symbols = torch.full_like(errors, 500, dtype=torch.int64)
    units = torch.ones_like(errors)
    bins = predictor_fit._log_bins(symbols, errors, units, mixture.scales, 1000)
    return float((bins.sum(1) + mixture.weights.log()).logsumexp(1).mean())


def test_expectation_maximization_climbs_to_the_true_mixture() -> None:
    errors = drawn_errors()
    symbols = torch.full_like(errors, 500, dtype=torch.int64)
    units = torch.ones_like(errors)
    start = Mixture(torch.tensor([0.5, 0.5]).double(), torch.tensor([[2.0, 5.0]] * 2).double())
    reached = [log_likelihood(errors, start)]
    for iterations in (1, 2, 4, 8, 16, 64):
        fitted = predictor_fit.fit_mixture(symbols, errors, units, 1000, start, iterations)
        reached.append(log_likelihood(errors, fitted))
    assert all(later > earlier - 1e-3 for earlier, later in pairwise(reached))
    truth = Mixture(torch.tensor([0.7, 0.3]).double(), torch.tensor([[1.0, 20.0]] * 2).double())
    assert reached[0] < log_likelihood(errors, truth) - 0.2
    assert reached[-1] > log_likelihood(errors, truth) - 0.01


def test_a_fitted_predictor_beats_the_default_and_a_model_of_places() -> None:
    net, x, test = model(), smooth(120), smooth(30, seed=1)
    places = ts.create("independent", GRID)
    assert isinstance(places, Independent)
    places.fit(x)
    before = bits(net, test)
    net.fit_predictor(x)
    assert bits(net, test) < before - 0.3
    assert bits(net, test) < bits(places, test) - 1.0


@pytest.mark.parametrize("n", [4, 16])
def test_few_images_do_not_make_a_predictor_too_sure(n: int) -> None:
    grid = ts.Grid(16, 16, 3, 256)
    net = model(grid, components=10)
    net.fit_predictor(smooth(n, grid))
    assert bits(net, smooth(20, grid, seed=1)) < 8.0, "worse than no model"


@pytest.mark.parametrize("levels", [3, 65536])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 4), (5, 1, 2), (2, 3, 1)])
def test_any_grid_and_any_images_are_fitted(shape: tuple[int, int, int], levels: int) -> None:
    grid = ts.Grid(*shape, levels)
    x = smooth(6, grid)
    for images in (x, torch.zeros_like(x), torch.full_like(x, levels - 1), x[:1]):
        net = model(grid)
        net.fit_predictor(images)
        for name, buffer in buffers_of(net).items():
            assert buffer.isfinite().all(), name
        assert net.log_prob(x).isfinite().all()
        assert bits(net, images) < np.log2(levels)


def test_the_network_begins_without_a_correction_and_then_learns_one() -> None:
    net = model(name="gated-pixelcnn", layers=2, hidden=8)
    x = smooth(20)
    net.fit_predictor(x)
    parameters = net.head_parameters(x, net.condition(None, len(x)))
    assert not parameters[..., : net.head.size].any()
    (-net.log_prob(x)).mean().backward()
    for weights in (*net.output_weights(), predictor_of(net).last.weight):
        assert weights.grad is not None
        assert weights.grad.any()


def test_a_correction_of_one_shifts_a_mean_by_a_typical_error() -> None:
    net, x = model(), smooth(20)
    net.fit_predictor(x)
    head = net.head
    assert isinstance(head, LogisticMixtureHead)
    parameters = net.head_parameters(x, net.condition(None, len(x))).detach()
    weights, means, *rest = head.parts(parameters[..., : head.size])
    prediction = parameters[..., head.size :]
    corrected = torch.cat([weights, means + 1.0, *rest, prediction], dim=-1)
    units = head.prediction_parts(prediction)[2].exp()
    before = head.unroll(parameters, x, 3)
    after = head.unroll(corrected, x, 3)
    for channel in range(3):
        shift = after[channel].chunk(3, dim=-1)[1] - before[channel].chunk(3, dim=-1)[1]
        unit = units[..., channel : channel + 1].expand_as(shift)
        torch.testing.assert_close(shift, unit, rtol=1e-4, atol=1e-6)


def test_a_fitted_predictor_is_not_fitted_again() -> None:
    net = model()
    assert not predictor_of(net).fitted
    net.fit_predictor(smooth(20))
    before = buffers_of(net)
    assert before["fitted"]
    net.fit_predictor(smooth(20, seed=5))
    assert_equal(buffers_of(net), before)


def test_images_of_any_type_fit_alike() -> None:
    fits = []
    for images in (smooth(9), smooth(9).to(torch.uint8), smooth(9).numpy().astype(np.uint16)):
        net = model()
        net.fit_predictor(images)
        fits.append(buffers_of(net))
    assert_equal(fits[0], fits[1])
    assert_equal(fits[0], fits[2])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 6, 7, 3, dtype=torch.int64), "at least one image"),
        (torch.zeros(2, 6, 6, 3, dtype=torch.int64), "shape"),
        (torch.full((2, 6, 7, 3), 32), "must lie in"),
        (torch.zeros(2, 6, 7, 3), "must be integers"),
    ],
)
def test_images_that_do_not_fit_are_refused(x: torch.Tensor, message: str) -> None:
    net = model()
    with pytest.raises(InputError, match=message):
        net.fit_predictor(x)
    assert not predictor_of(net).fitted


@pytest.mark.parametrize(
    "sizes", [{"predictor": 1}, {"predictor_hidden": -1}, {"predictor_hidden": 2.5}]
)
def test_options_of_wrong_types_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(sizes))):
        model(**sizes)


def test_half_precision_keeps_the_prediction() -> None:
    net, x = model(name="gated-pixelcnn", layers=2, hidden=8), smooth(20)
    net.fit_predictor(x)
    exact = net.log_prob(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(net.log_prob(x).detach(), exact, rtol=1e-4, atol=1e-3)
    # Weights of bfloat16 round the coefficients, and levels stay whole.
    rounded = net.bfloat16()
    assert predictor_of(rounded).neighbours(x).dtype == torch.float32
    assert float((rounded.log_prob(x).detach() / exact).mean()) == pytest.approx(1.0, abs=0.2)


def test_a_saved_predictor_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    net = model()
    net.fit_predictor(smooth(20))
    save_model(net, tmp_path / "model")
    loaded = ts.load(tmp_path / "model")
    assert isinstance(loaded, ts.Generator)
    assert isinstance(loaded.prior, DensityModel)
    assert_equal(buffers_of(loaded.prior), buffers_of(net))
    assert torch.equal(loaded.prior.log_prob(smooth(3)), net.log_prob(smooth(3)))


def untrained() -> DensityModel:
    return model(ts.Grid(6, 7, 3, 256), "gated-pixelcnn", layers=1, hidden=4)


def test_training_fits_a_predictor_once(tmp_path: Path) -> None:
    net = untrained()
    ts.train(net, smooth_bytes(), out=tmp_path / "first", **OPTIONS)
    fitted = buffers_of(net)
    assert fitted["fitted"]
    expected = untrained()
    expected.fit_predictor(smooth_bytes())
    assert_equal(fitted, buffers_of(expected))
    ts.train(net, smooth_bytes(seed=3), out=tmp_path / "second", **OPTIONS)
    assert_equal(buffers_of(net), fitted)


def test_a_resumed_run_keeps_its_predictor(tmp_path: Path) -> None:
    straight, halted = untrained(), untrained()
    ts.train(straight, smooth_bytes(), out=tmp_path / "straight", **OPTIONS)
    ts.train(halted, smooth_bytes(), out=tmp_path / "run", **(OPTIONS | {"steps": 2}))
    resumed = untrained()
    ts.train(resumed, smooth_bytes(), out=tmp_path / "run", resume=True, **OPTIONS)
    assert_equal(buffers_of(resumed), buffers_of(straight))


def test_a_recipe_trains_a_predictor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "digits", "model.head=logistic-mixture", "model.predictor=true"]
    sizes = ["model.predictor_hidden=4", "model.layers=1", "model.hidden=4"]
    assert main([*words, *sizes, "--steps", "2", "--out", f"{tmp_path}/run"]) == 0
    capsys.readouterr()
    run = ts.load(tmp_path / "run")
    assert isinstance(run, ts.Generator)
    assert isinstance(run.prior, DensityModel)
    assert predictor_of(run.prior).fitted
    assert run.sample(2).shape[0] == 2


def test_a_predictor_of_codes_is_warned_of() -> None:
    tokenizer = ts.create_tokenizer(
        "vqvae", image_size=(16, 16), hidden=8, code_dim=4, codebook_size=8
    )
    prior = model(tokenizer.grids()[0])
    with pytest.warns(TessellaWarning, match="predicts them from the pixels around"):
        ts.Generator(tokenizer, prior)

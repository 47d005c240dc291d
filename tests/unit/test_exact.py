"""Exact twins: what they predict, that nothing changes it, and what has none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tessella as ts
from tessella.errors import ArtifactError, ConfigError, InputError
from tessella.exact import ExactModel, has_twin, load_twin, save_twin
from tessella.exact.conversion import integer_matrix
from tessella.exact.integer_predictor import IntegerPredictor, check_sizes, predictor_tables
from tessella.models.density_model import DensityModel
from tessella.nn.integer.functions import LIMIT
from tessella.nn.linear_predictor import LinearPredictor

GRID = ts.Grid(5, 4, 2, 16)

SMALL = {
    "gated-pixelcnn": {"layers": 2, "hidden": 8},
    "pixelcnn++": {"filters": 8, "embedding": 4},
    "pixelsnail": {"blocks": 1, "channels": 16, "residual_channels": 8, "heads": 2},
    "transformer": {"layers": 2, "width": 16, "heads": 2},
    "pixelcnn": {"layers": 2, "hidden": 8, "last": 16},
    "row-lstm": {"layers": 1, "hidden": 8, "last": 16},
    "diagonal-bilstm": {"layers": 1, "hidden": 8, "last": 16},
    "lstm": {"layers": 2, "hidden": 16},
}
"""Families that have a twin, and small sizes of them."""

HEADS = ("categorical", "ordinal", "logistic-mixture")


def build(family: str, head: str = "categorical", classes: int = 0, grid: ts.Grid = GRID):
    """A small model with weights large enough that its predictions vary."""
    model = ts.create(family, grid, head, classes, seed=3, **SMALL[family]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def build_predicted(family: str, grid: ts.Grid, hidden: int = 6) -> DensityModel:
    """A small model whose predictor is fitted to smooth images, and corrected at random."""
    model = ts.create(
        family,
        grid,
        "logistic-mixture",
        seed=3,
        predictor=True,
        predictor_hidden=hidden,
        components=3,
        **SMALL[family],
    ).eval()
    model.fit_predictor(smooth_images(200, grid, seed=1))
    generator = torch.Generator().manual_seed(2)
    changed = [*model.output_weights(), *model.predictor.parameters()]
    with torch.no_grad():
        for weights in changed:
            weights.copy_(0.15 * torch.randn(weights.shape, generator=generator))
    return model


def smooth_images(n: int, grid: ts.Grid, seed: int) -> torch.Tensor:
    """Images whose pixels resemble their neighbours, with noise of several strengths."""
    generator = torch.Generator().manual_seed(seed)
    surface = torch.randn(n, *grid.shape, generator=generator).cumsum(1).cumsum(2)
    strength = torch.rand(n, 1, 1, 1, generator=generator)
    surface = surface + strength * torch.randn(surface.shape, generator=generator)
    low = surface.amin((1, 2, 3), keepdim=True)
    high = surface.amax((1, 2, 3), keepdim=True)
    return ((surface - low) / (high - low) * (grid.levels - 1)).round().long()


def images(n: int = 3, grid: ts.Grid = GRID) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(grid.levels, (n, *grid.shape), generator=generator)


def twin_of(model: DensityModel) -> ExactModel:
    cond = torch.arange(3) if model.classes else None
    return model.exact(images(), cond)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", SMALL)
def test_a_twin_predicts_what_its_model_does(family: str, head: str):
    model = build(family, head, classes=2)
    twin = twin_of(model)
    # The last label is the null class.
    labels = torch.arange(12) % 3
    # Images of the model: in the tails, the least frequency of the twin is worth more than the
    # vanishing probabilities of a mixture.
    x = ts.sample(model, n=12, seed=5, cond=labels)
    expected = model.log_prob(x, labels).double()
    bits = (expected - twin.log_prob(x, labels)) / (0.6931 * GRID.symbols)
    assert bits.mean().abs() < 2e-3
    assert bits.abs().max() < 1e-2


PREDICTED_GRIDS = [ts.Grid(6, 7, 1, 17), ts.Grid(6, 7, 3, 256), ts.Grid(2, 3, 2, 4096)]


@pytest.mark.parametrize("grid", PREDICTED_GRIDS, ids=str)
@pytest.mark.parametrize("hidden", [0, 6])
def test_a_twin_predicts_what_a_model_with_a_predictor_does(grid: ts.Grid, hidden: int):
    model = build_predicted("gated-pixelcnn", grid, hidden)
    twin = model.exact(smooth_images(16, grid, seed=1))
    x = smooth_images(30, grid, seed=5)
    bits = twin.bits_per_dim(x) - model.bits_per_dim(x).double()
    assert bits.mean().abs() < 1e-3
    assert bits.abs().max() < 1e-2


# One of each kind of step: pixels, masked channels, and a sequence.
@pytest.mark.parametrize("family", ["gated-pixelcnn", "pixelcnn", "lstm"])
def test_a_prediction_in_a_twin_depends_on_nothing_but_the_symbols(family: str):
    grid = ts.Grid(3, 4, 3, 64)
    model = build_predicted(family, grid)
    twin = model.exact(smooth_images(8, grid, seed=1))
    x = smooth_images(3, grid, seed=4)
    together = twin(x)
    assert torch.equal(together, torch.cat([twin(image[None]) for image in x]))
    assert bool((together >= 1).all())
    assert bool((together.sum(-1) == 2**24).all())
    assert torch.equal(twin.receptive_field(), model.dependencies())


def test_a_twin_covers_the_integers_of_its_predictor(tmp_path: Path):
    grid = ts.Grid(4, 4, 1, 16)
    model = build_predicted("lstm", grid)
    calibration = smooth_images(8, grid, seed=1)
    twin = model.exact(calibration)
    save_twin(twin, tmp_path)
    loaded = load_twin(tmp_path)
    assert loaded.id == twin.id
    assert torch.equal(loaded(calibration), twin(calibration))
    for change in (model.predictor.coefficients, model.predictor.rest, model.predictor.last.bias):
        with torch.no_grad():
            change.flatten()[0] += 0.1
        changed = model.exact(calibration)
        assert changed.id != twin.id
        twin = changed


def test_a_twin_without_the_tables_of_its_predictor_is_damaged():
    grid = ts.Grid(4, 4, 1, 16)
    twin = build_predicted("lstm", grid).exact(smooth_images(8, grid, seed=1))
    network = build_predicted("lstm", grid)
    twin.constants.tables.pop()
    with pytest.raises(ValueError, match="other shapes"):
        ExactModel(network, twin.constants)


def test_predictions_at_their_limits_do_not_overflow():
    # As many levels and channels as there may be, and coefficients as large as integers hold.
    grid = ts.Grid(3, 3, 64, 2**22)
    real = LinearPredictor(grid, components=1, corrected=1, hidden=0)
    real.coefficients[..., :-1] = 1e9
    real.coefficients[1::2, ..., :-1] = -1e9
    predictor = IntegerPredictor(real, whole_tables(real), [])
    known = torch.full((80, 12, 64), 2**22 - 1)
    prediction = predictor.predictions(known, torch.arange(80))
    # Clamped at the ends of means: a sum that wrapped around would have the other sign.
    sign = 1 - 2 * (torch.arange(80) % 2)
    assert torch.equal(prediction[:, :64], ((2**31 - 1) * sign)[:, None].expand(80, 64))
    with pytest.raises(ConfigError, match="levels times channels"):
        check_sizes(ts.Grid(3, 3, 65, 2**22))


def whole_tables(real: LinearPredictor) -> list[torch.Tensor]:
    """The tables of a predictor, rounded and limited as in a conversion."""
    limits = (2**31 - 1, LIMIT, LIMIT)
    tables = []
    for table, limit in zip(predictor_tables(real), limits, strict=True):
        tables.append(table.round().clamp(-limit, limit).to(torch.int32))
    return tables


@pytest.mark.parametrize("grid", PREDICTED_GRIDS[:2], ids=str)
def test_images_compressed_after_a_prediction_come_back(grid: ts.Grid):
    pytest.importorskip("constriction", reason="needs the extra compress")
    twin = build_predicted("gated-pixelcnn", grid).exact(smooth_images(8, grid, seed=1))
    x = smooth_images(9, grid, seed=6)
    data = ts.compress(x, twin)
    assert ts.compress(x, twin, batch=2) == data
    assert torch.equal(torch.as_tensor(ts.decompress(data, twin, batch=4)), x)
    # Coded, not stored as it is, and in a file as long as the twin says.
    bits = float(twin.bits_per_dim(x).sum()) * grid.symbols
    assert abs(8 * len(data) - bits) < 8 * 60


@pytest.mark.parametrize("family", SMALL)
def test_the_frequencies_of_a_twin_do_not_depend_on_the_batch(family: str):
    twin = twin_of(build(family, "logistic-mixture"))
    together = twin(images())
    apart = torch.cat([twin(image[None]) for image in images()])
    assert together.dtype == torch.int64
    assert torch.equal(together, apart)
    assert bool((together >= 1).all())
    assert bool((together.sum(-1) == 2**24).all())


def test_forward_steps_and_scores_of_a_twin_agree():
    twin = twin_of(build("gated-pixelcnn"))
    x = images()
    frequencies = twin(x).gather(-1, x[..., None])[..., 0]
    nats = (frequencies.double() / 2**24).log()
    assert torch.equal(twin.log_prob(x, reduce=False), nats)


def test_sampling_from_a_twin_is_sampling_from_its_model():
    grid = ts.Grid(6, 6, 1, 4)
    model = build("gated-pixelcnn", grid=grid)
    twin = model.exact(images(grid=grid))
    # The same noise and nearly the same probabilities: nearly all symbols are the same.
    drawn = ts.sample(twin, n=8, seed=1)
    assert (drawn == ts.sample(model, n=8, seed=1)).double().mean() > 0.9


def test_a_twin_of_two_levels():
    grid = ts.Grid(6, 6, 1, 2)
    for family in ("lstm", "gated-pixelcnn"):
        for head in ("categorical", "ordinal"):
            model = build(family, head, grid=grid)
            twin = model.exact(images(grid=grid))
            expected = model.log_prob(images(grid=grid)).double()
            difference = expected - twin.log_prob(images(grid=grid))
            assert difference.abs().max() < 0.02


def test_a_twin_without_images_calibrates_on_its_own_samples():
    model = build("pixelcnn", classes=3)
    assert model.exact().id == model.exact().id


def test_a_saved_twin_is_the_same(tmp_path: Path):
    twin = twin_of(build("transformer", classes=2))
    assert not has_twin(tmp_path)
    save_twin(twin, tmp_path)
    assert has_twin(tmp_path)
    loaded = load_twin(tmp_path)
    assert loaded.id == twin.id
    labels = torch.tensor([0, 1, 2])
    assert torch.equal(loaded.log_prob(images(), labels), twin.log_prob(images(), labels))


def test_a_damaged_twin_is_refused(tmp_path: Path):
    with pytest.raises(ArtifactError, match="holds no exact twin"):
        load_twin(tmp_path)
    save_twin(twin_of(build("lstm")), tmp_path)
    other = tmp_path / "other"
    changed = build("lstm")
    with torch.no_grad():
        changed.last.weight.add_(0.1)
    save_twin(twin_of(changed), other)
    description = tmp_path / "exact.json"
    (other / "exact.safetensors").replace(tmp_path / "exact.safetensors")
    with pytest.raises(ArtifactError, match="do not belong together"):
        load_twin(tmp_path)
    description.write_text(description.read_text().replace('"arithmetic": 1', '"arithmetic": 2'))
    with pytest.raises(ArtifactError, match="version 2"):
        load_twin(tmp_path)


@pytest.mark.parametrize("family", SMALL)
def test_no_sum_of_a_twin_can_overflow(family: str):
    twin = twin_of(build(family))
    for matrix in twin.constants.matrices:
        weight = matrix.weight.long()
        largest = 8191 * weight.abs().sum(0) + (1 << (matrix.output_shift.long() - 1))
        assert int(largest.max()) < 2**31
        assert int(matrix.output_shift.min()) >= 1
        # No more than a bit is given away: weights are as large as one of the limits allows.
        doubled = (2 * 8191 * weight.abs().sum(0) >= 2**31) | (2 * weight.abs().amax(0) > 32767)
        free = matrix.output_shift < 30
        assert bool(doubled[free].double().mean() > 0.9) or not bool(free.any())


def test_a_sum_that_only_rounding_makes_too_large_does_not_overflow():
    # 1001 * 261.6 is below 2^31 / 8191, 1001 * 262 is above.
    matrix = integer_matrix(torch.full((1001, 1), 261.6 / 1024), 1.0, "a matrix")
    assert 8191 * int(matrix.weight.long().sum()) < 2**31
    assert int(matrix.weight[0, 0]) == 131


def test_models_without_a_twin_say_why():
    with pytest.raises(ConfigError, match="operations with an integer form"):
        ts.create("nade", GRID).exact()
    codes = ts.create("gated-pixelcnn", GRID, codes=ts.Grid(2, 2, 1, 4), layers=1, hidden=4)
    with pytest.raises(ConfigError, match="conditioned on a grid of codes"):
        codes.exact()
    model = build("gated-pixelcnn")
    with torch.no_grad():
        model.output.last.weight.mul_(1e6)
    with pytest.raises(ConfigError, match="could reach"):
        twin_of(model)
    with pytest.raises(InputError, match="at least one"):
        build("gated-pixelcnn").exact(images(0))


def test_a_model_with_a_predictor_can_be_outlined_without_memory():
    # As the record of a run is checked: no weight has a value then.
    with torch.device("meta"):
        model = ts.create("lstm", GRID, "logistic-mixture", predictor=True, **SMALL["lstm"])
    assert model.predictor.coefficients.is_meta

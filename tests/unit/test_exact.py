"""Exact twins: what they predict, that nothing changes it, and what has none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tessella as ts
from tessella.errors import ArtifactError, ConfigError, InputError
from tessella.exact import ExactModel, has_twin, load_twin, save_twin
from tessella.exact.conversion import integer_matrix
from tessella.models.density_model import DensityModel

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
    with pytest.raises(ConfigError, match="does not step through programs"):
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

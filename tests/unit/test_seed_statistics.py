"""Standard errors over images and seeds, on made-up numbers whose errors are known."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def statistics(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("seed_statistics")


def effects(
    rng: np.random.Generator, shape: tuple[int, int], of_seed: float, of_image: float, rest: float
) -> np.ndarray:
    seeds = of_seed * rng.standard_normal((shape[0], 1))
    images = of_image * rng.standard_normal((1, shape[1]))
    return seeds + images + rest * rng.standard_normal(shape)


def test_with_one_seed_the_error_is_that_of_images(statistics: ModuleType) -> None:
    found = statistics.estimate(np.array([[1.0, 2.0, 4.0, 5.0]]))
    assert found.mean == 3.0
    assert found.se == pytest.approx(np.std([1, 2, 4, 5], ddof=1) / 2)
    assert found.se_seeds is None
    with pytest.raises(ValueError, match="two images"):
        statistics.estimate(np.array([[1.0]]))


def test_images_and_seeds_add_up_where_nothing_else_is(statistics: ModuleType) -> None:
    a, b = np.array([0.0, 2.0, 4.0]), np.array([1.0, 1.5, 3.0, 6.5])
    found = statistics.estimate(a[:, None] + b[None, :])
    expected = a.var(ddof=1) / 3 + b.var(ddof=1) / 4
    assert found.se == pytest.approx(math.sqrt(expected))
    assert (found.seeds, found.images) == (3, 4)


@pytest.mark.parametrize(
    ("scales", "most"),
    [
        ((0.5, 2.0, 1.0), 1.08),
        ((1.0, 1.0, 0.1), 1.08),
        # Where the rest is nearly all there is, the error is on the safe side.
        ((0.3, 0.5, 3.0), 1.3),
    ],
)
def test_the_error_is_the_scatter_of_means_over_experiments(
    statistics: ModuleType, scales: tuple[float, float, float], most: float
) -> None:
    # Of many experiments, the mean of the squared errors must be the variance of the means.
    rng, shape, squares = np.random.default_rng(0), (3, 40), []
    for _ in range(2000):
        squares.append(statistics.estimate(effects(rng, shape, *scales)).se ** 2)
    seed, image, rest = scales
    truth = seed**2 / 3 + image**2 / 40 + rest**2 / 120
    assert 0.92 < np.mean(squares) / truth < most


def test_pairs_cancel_what_two_models_share(statistics: ModuleType) -> None:
    rng = np.random.default_rng(1)
    shared = effects(rng, (3, 50), 2.0, 5.0, 1.0)
    own = effects(rng, (3, 50), 0.01, 0.02, 0.01)
    found = statistics.difference(shared + own + 0.25, shared)
    assert found.mean == pytest.approx(0.25, abs=4 * found.se)
    assert found.se == pytest.approx(statistics.estimate(own).se)
    assert found.se < 0.02 < statistics.estimate(shared).se
    with pytest.raises(ValueError, match="3 seeds x 50 images and 2 x 50"):
        statistics.difference(shared, shared[:2])


def test_tiles_of_a_photograph_count_once(statistics: ModuleType) -> None:
    # Two tiles of each photograph with equal figures hold no more than one.
    figures = np.array([[1.0, 2.0, 4.0, 5.0]])
    twice = np.repeat(figures, 2, axis=1)
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    once, found = statistics.estimate(figures), statistics.estimate(twice, groups)
    assert (found.mean, found.images) == (once.mean, 4)
    assert found.se == pytest.approx(once.se)
    assert statistics.estimate(twice).se < found.se


def test_the_mean_is_that_of_tiles_where_photographs_have_unequal_numbers(
    statistics: ModuleType,
) -> None:
    figures = np.array([[1.0, 2.0, 3.0, 8.0], [0.0, 2.0, 2.0, 6.0]])
    groups = np.array([7, 7, 7, 9])
    found = statistics.estimate(figures, groups)
    assert found.mean == pytest.approx(figures.mean())
    # Sums of the deviations of each photograph's tiles, as a ratio estimate has them.
    sums = [sum(figures.mean(axis=0)[:3] - found.mean), figures.mean(axis=0)[3] - found.mean]
    expected = math.sqrt(2 / (2 - 1) * sum(s**2 for s in sums)) / 4
    assert found.se_images == pytest.approx(expected)

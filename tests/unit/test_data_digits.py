"""The bundled digits are the published ones, divided as the documentation says."""

from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np
import pytest

from tessella.config import DataConfig
from tessella.data import SPLITS, load
from tessella.errors import DataError


def bundled() -> tuple[np.ndarray, np.ndarray]:
    with (
        (resources.files("tessella.data") / "digits.npz").open("rb") as file,
        np.load(file) as arrays,
    ):
        return arrays["images"], arrays["labels"]


def test_the_packed_copy_is_pinned() -> None:
    images, labels = bundled()
    assert images.dtype == np.uint8
    assert images.shape == (1797, 8, 8)
    assert (
        hashlib.sha256(images.tobytes()).hexdigest().startswith("b41ca9fd335466eee997366c2e6f6bbe")
    )
    assert (
        hashlib.sha256(labels.astype("<i8").tobytes())
        .hexdigest()
        .startswith("a3c91c262eddcf7ba8f0e37507c30284")
    )
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_values_are_seventeen_shades() -> None:
    images, _ = bundled()
    assert np.unique(images).tolist() == [round(255 * v / 16) for v in range(17)]


def test_the_packed_copy_equals_scikit_learn() -> None:
    datasets = pytest.importorskip(
        "sklearn.datasets", reason="scikit-learn, whose copy this compares with, is missing"
    )
    images, labels = bundled()
    original = datasets.load_digits()
    np.testing.assert_array_equal(
        images, [[[round(255 * v / 16) for v in row] for row in i] for i in original.images]
    )
    np.testing.assert_array_equal(labels, original.target)


def test_the_split_is_a_permutation_of_seed_0() -> None:
    images, labels = bundled()
    order = np.random.default_rng(0).permutation(1797)
    bounds = {"train": slice(0, 1350), "valid": slice(1350, 1500), "test": slice(1500, 1797)}
    for split in SPLITS:
        part = load(DataConfig("digits"), split)
        np.testing.assert_array_equal(part.images, images[order[bounds[split]]][..., None])
        assert part.labels is not None
        np.testing.assert_array_equal(part.labels, labels[order[bounds[split]]])
        assert part.labels.dtype == np.int64
        assert (part.levels, part.classes) == (17, 10)


def test_digits_take_no_path() -> None:
    with pytest.raises(DataError, match="no path"):
        load(DataConfig("digits:here"), "train")


def test_the_licence_lies_beside_the_data() -> None:
    text = (resources.files("tessella.data") / "digits.LICENSE.txt").read_text()
    for word in (
        "Alpaydin",
        "Kaynak",
        "CC BY 4.0",
        "creativecommons.org/licenses/by/4.0",
        "scikit-learn",
        "round(255",
    ):
        assert word in text

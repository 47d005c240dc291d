"""Real files, where they are at hand (the fixture ``data_dir`` says where)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tessella.config import DataConfig
from tessella.data import SPLITS, load


def source(folder: Path, kind: str, name: str) -> str:
    if not (folder / name).is_file():
        pytest.skip(f"{name} is not in {folder}")
    return f"{kind}:{folder / name}"


def test_mnist(data_dir: Path) -> None:
    test = load(DataConfig(source(data_dir, "npz", "mnist.npz")), "test")
    assert test.images.shape == (10_000, 28, 28, 1)
    assert test.labels is not None
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert round(float(test.images.mean()) / 255, 4) == 0.1325
    valid = load(DataConfig(source(data_dir, "npz", "mnist.npz")), "valid")
    assert len(valid) == 3000


def test_binarized_mnist(data_dir: Path) -> None:
    config = DataConfig(source(data_dir, "npz", "binarized_mnist_fixed.npz"), bits="28x28")
    for split, count, mean in zip(
        SPLITS, (50_000, 10_000, 10_000), (0.13056, 0.13113, 0.13251), strict=True
    ):
        part = load(config, split)
        assert part.images.shape == (count, 28, 28, 1)
        assert (part.levels, part.labels) == (2, None)
        assert float((part.images == 255).mean()) == pytest.approx(mean, abs=6e-6)


def test_cifar10_original_pixels(data_dir: Path) -> None:
    config = DataConfig(source(data_dir, "npz", "cifar10_lossless_part.npz"))
    assert [len(load(config, split)) for split in SPLITS] == [4052, 213, 164]
    assert load(config, "test").images.shape == (164, 32, 32, 3)


def test_cifar10_jpeg(data_dir: Path) -> None:
    part = load(
        DataConfig(source(data_dir, "npz", "cifar10_jpeg_recompressed_train.npz"), limit=300),
        "train",
    )
    assert part.images.shape == (300, 32, 32, 3)
    assert part.labels is not None
    assert set(part.labels.tolist()) == set(range(10))
    original = load(DataConfig(source(data_dir, "npz", "cifar10_lossless_part.npz")), "test")
    test = load(
        DataConfig(source(data_dir, "npz", "cifar10_jpeg_recompressed_test.npz"), limit=164), "test"
    )
    error = np.square(original.images.astype(float) - test.images).mean(axis=(1, 2, 3))
    assert 10 * np.log10(255**2 / error).min() > 23


def test_emnist_letters(data_dir: Path) -> None:
    test = load(DataConfig(source(data_dir, "npz", "emnist_letters.npz")), "test")
    assert test.labels is not None
    assert np.bincount(test.labels).tolist() == [0] + [800] * 26
    assert test.images.shape == (20_800, 28, 28, 1)


def test_kodak_tiles_are_the_photographs(data_dir: Path) -> None:
    config = DataConfig(source(data_dir, "folder", "kodak24.zip"), size="256", crop="tiles")
    parts = [load(config, split) for split in SPLITS]
    assert sum(len(part) for part in parts) == 24 * 6
    names = [name.partition("#")[0] for part in parts for name in part.names or ()]
    assert sorted(set(names)) == [f"kodim{i:02}.png" for i in range(1, 25)]
    assert all(set(parts[0].names or ()).isdisjoint(part.names or ()) for part in parts[1:])


@pytest.mark.parametrize(
    ("name", "low", "high"), [("bsds500.zip", 200, 200), ("imagenet_sample.zip", 7, 33)]
)
def test_photographs(data_dir: Path, name: str, low: int, high: int) -> None:
    """The first comes divided into folders (200 test images), the second is divided by the hash (5
    % of 331)."""
    config = DataConfig(source(data_dir, "folder", name), size="32")
    valid, test = load(config, "valid"), load(config, "test")
    assert valid.images.shape[1:] == test.images.shape[1:] == (32, 32, 3)
    assert low <= len(test) <= high
    assert valid.skipped == test.skipped == ()
    assert valid.label_names == ()

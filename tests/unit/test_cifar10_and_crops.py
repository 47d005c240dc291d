"""The file of CIFAR-10 and crops: what is trained on has nothing of what is tested on."""

from __future__ import annotations

import importlib
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tessella import data
from tessella.config import DataConfig

ROOT = Path(__file__).resolve().parents[2]
KNOWN = 190
"""Training images whose original pixels are there; 30 others are JPEG files alone."""


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("cifar10_and_crops")


def jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90, subsampling=0)
    return file.getvalue()


def smooth(rng: np.random.Generator, count: int, side: int = 32) -> np.ndarray:
    """Images that JPEG keeps: a few random colours, enlarged."""
    small = rng.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), 2)) for image in small])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sources in the form of the real ones.

    Of the images that are JPEG files alone, two are copies of test images: the first one of test
    image 0, the second one of test image 1, mirrored and a little brighter.
    """
    rng = np.random.default_rng(0)
    everything = smooth(rng, 220)
    test = smooth(rng, 20)
    everything[KNOWN] = test[0]
    everything[KNOWN + 1] = np.clip(test[1, :, ::-1].astype(int) + 3, 0, 255)
    # The standard order of the originals has gaps.
    order = rng.permutation(220)
    indices = order[:KNOWN].astype(np.int32)
    np.savez(
        tmp_path / "cifar10_lossless_part.npz",
        train_images=everything[:KNOWN],
        train_indices=indices,
        test_images=test,
    )
    by_index = np.argsort(order)
    contents = [jpeg(everything[place]) for place in by_index]
    np.savez(
        tmp_path / "cifar10_jpeg_recompressed_train.npz",
        jpeg=np.frombuffer(b"".join(contents), np.uint8),
        offsets=np.cumsum([0, *map(len, contents)]),
        train_indices=np.arange(220, dtype=np.int32),
    )
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for number, photograph in enumerate(smooth(rng, 3, side=130)):
            file = io.BytesIO()
            Image.fromarray(photograph).save(file, "PNG")
            archive.writestr(f"{number}.png", file.getvalue())
        # A photograph of which one reduced tile is a test image.
        file = io.BytesIO()
        Image.fromarray(test[2].repeat(2, axis=0).repeat(2, axis=1)).save(file, "PNG")
        archive.writestr("leak.png", file.getvalue())
    return tmp_path


def nearest_db(images: np.ndarray, others: np.ndarray) -> float:
    """The greatest PSNR between an image and one of the others, or its mirror image."""
    most = 0.0
    for other in [*others, *others[:, :, ::-1]]:
        squares = ((images.astype(float) - other) ** 2).mean(axis=(1, 2, 3))
        most = max(most, 10 * np.log10(255**2 / max(squares.min(), 1e-9)))
    return most


def test_nothing_that_is_held_out_is_trained_on_in_whatever_form(
    building: ModuleType, folder: Path
) -> None:
    choice = building.Choice(("photos.zip",), factors=(2, 3, 4), jpeg=True)
    arrays, made_of = building.build(folder, choice)
    with np.load(folder / "cifar10_lossless_part.npz") as source:
        originals, test = source["train_images"], source["test_images"]
    assert np.array_equal(arrays["test_images"], test)
    assert len(arrays["valid_images"]) == 165
    # 190 - 165 originals; 30 JPEG images less two copies; crops of 2x2 + 1 + 1, less the leak.
    assert made_of["train_images"] == {"originals": 25, "crops": 3 * 6, "jpeg": 28}
    assert made_of["near_copies_left_out"] == {"originals": 0, "jpeg": 2}
    held_out = np.concatenate([arrays["valid_images"], test])
    trained = arrays["train_images"]
    assert len(trained) == 25 + 18 + 28
    assert not building.equal_to_any(trained, held_out).any()
    # Any JPEG version of a held-out image would be closer than this.
    assert nearest_db(trained, held_out) < building.NEAR_DB
    decoded = [np.asarray(Image.open(io.BytesIO(jpeg(image)))) for image in originals[:5]]
    assert all(nearest_db(image[None], originals) > 30 for image in decoded)
    # Together they are all originals, each in one split.
    ours = np.concatenate([trained[:25], arrays["valid_images"]])
    assert sorted(map(bytes, ours)) == sorted(map(bytes, originals))


def test_indices_keep_jpeg_versions_out_however_far_they_are(
    building: ModuleType, folder: Path
) -> None:
    path = folder / "cifar10_jpeg_recompressed_train.npz"
    assert len(building.recompressed(path, leave_out=np.array([], int))) == 220
    assert len(building.recompressed(path, leave_out=np.arange(200))) == 20
    with np.load(path) as source:
        last = source["jpeg"][source["offsets"][219] : source["offsets"][220]]
    found = building.recompressed(path, leave_out=np.arange(219))
    assert np.array_equal(found[0], np.asarray(Image.open(io.BytesIO(last.tobytes()))))


def test_what_is_made_is_the_same_again_and_told_by_its_hash(
    building: ModuleType, folder: Path
) -> None:
    one, _ = building.build(folder, building.Choice())
    other, _ = building.build(folder, building.Choice())
    assert building.fingerprint(one) == building.fingerprint(other)
    other["train_images"][0, 0, 0, 0] ^= 1
    assert building.fingerprint(one) != building.fingerprint(other)
    assert len(building.hold_out(4265)) == len(set(building.hold_out(4265))) == 165


def test_pixels_are_reduced_by_the_mean_of_squares(building: ModuleType) -> None:
    pixels = np.arange(7 * 8 * 3, dtype=np.uint8).reshape(7, 8, 3)
    small = building.reduced(pixels, 3)
    assert small.shape == (2, 2, 3)
    assert small[1, 0, 2] == round(float(pixels[3:6, 0:3, 2].mean()))
    assert np.array_equal(building.reduced(pixels, 1), pixels)


def test_cells_find_what_is_made_for_them(
    building: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = importlib.import_module("likelihood_data")
    monkeypatch.setattr(places, "DATA", folder)
    monkeypatch.setattr(places, "MADE", tmp_path / "made")
    config = places.located(DataConfig(source="npz:cifar10-originals.npz"))
    assert config.source == f"npz:{tmp_path / 'made' / 'cifar10-originals.npz'}"
    assert len(data.load(config, "train")) == 25
    assert len(data.load(config, "valid")) == 165
    assert len(data.load(config, "test")) == 20
    described = places.description(config)
    with np.load(tmp_path / "made" / "cifar10-originals.npz") as made:
        assert described["sha256"] == building.fingerprint(dict(made))
    assert json.loads(json.dumps(described)) == described
    # Not made a second time.
    monkeypatch.setattr(places, "RECIPES", dict.fromkeys(places.RECIPES))
    assert places.located(DataConfig(source="npz:cifar10-originals.npz")) == config
    assert places.description(replace(config, source="npz:mnist.npz")) is None
    assert places.located(DataConfig(source="digits")) == DataConfig(source="digits")


def test_tiles_of_natural_crops_know_their_photographs(
    building: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = importlib.import_module("natural_crops")
    splits = {"photos/0.png": "test", "photos/1.png": "train", "photos/2.png": "valid"}
    monkeypatch.setattr(crops, "choose_split", lambda name: splits.get(name, "test"))
    arrays = crops.split_tiles([folder / "photos.zip"])
    # Four tiles of 0.png, one of leak.png.
    assert arrays["test_photographs"].tolist() == [0, 0, 0, 0, 1]
    assert len(arrays["test_images"]) == 5
    np.savez(tmp_path / "tiles.npz", **arrays)
    places = importlib.import_module("likelihood_data")
    config = DataConfig(source=f"npz:{tmp_path / 'tiles.npz'}")
    assert places.photographs_of_test(config).tolist() == [0, 0, 0, 0, 1]
    assert len(data.load(config, "test")) == 5

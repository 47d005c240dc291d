"""Every layout of an .npz file, and what is wrong with the others."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessella.config import DataConfig
from tessella.data import SPLITS, ImageSet, load
from tessella.errors import ConfigError, DataError, InputError

RANDOM = np.random.default_rng(1)


def write(path: Path, **arrays: Any) -> str:
    np.savez_compressed(path, **arrays)
    return f"npz:{path}"


def numbered(count: int, *shape: int) -> np.ndarray:
    """Images that carry their number in their first pixels."""
    images = RANDOM.integers(0, 256, (count, *(shape or (4, 4, 3))), dtype=np.uint8)
    images[:, 0, 0] = (np.arange(count) // 256).reshape(-1, *[1] * (images.ndim - 3))
    images[:, 0, 1] = (np.arange(count) % 256).reshape(-1, *[1] * (images.ndim - 3))
    return images


def numbers(images: np.ndarray) -> list[int]:
    return (images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 1, 0]).tolist()


def every(source: str, **options: Any) -> list[ImageSet]:
    return [load(DataConfig(source, **options), split) for split in SPLITS]


@pytest.mark.parametrize("form", ["{}_images", "{}"])
@pytest.mark.parametrize("valid", ["valid", "val"])
def test_three_splits_by_key(tmp_path: Path, form: str, valid: str) -> None:
    arrays = {
        form.format(word): numbered(5 + i, 4, 4) for i, word in enumerate(("train", valid, "test"))
    }
    labels = {
        f"{word}_labels": np.arange(5 + i, dtype=np.uint8)[:, None] % 5
        for i, word in enumerate(("train", valid, "test"))
    }
    for part, images, label in zip(
        every(write(tmp_path / "x.npz", **arrays, **labels)),
        arrays.values(),
        labels.values(),
        strict=True,
    ):
        np.testing.assert_array_equal(part.images, images[..., None])
        assert part.labels is not None
        assert part.labels.tolist() == label[:, 0].tolist()
        assert part.levels == 256


def test_valid_is_cut_from_train_beside_a_test_key(tmp_path: Path) -> None:
    train, test = numbered(200), numbered(7)
    source = write(
        tmp_path / "x.npz", train_images=train, train_labels=np.arange(200), test_images=test
    )
    parts = every(source)
    order = np.random.default_rng(0).permutation(200)
    assert [numbers(part.images) for part in parts[:2]] == [
        order[:190].tolist(),
        order[190:].tolist(),
    ]
    assert parts[0].labels is not None
    assert parts[0].labels.tolist() == order[:190].tolist()
    np.testing.assert_array_equal(parts[2].images, test)
    assert parts[2].labels is None


def test_at_most_5000_are_cut_beside_a_test_key(tmp_path: Path) -> None:
    source = write(
        tmp_path / "x.npz",
        train=np.zeros((120_000, 1, 1), np.uint8),
        test=np.zeros((3, 1, 1), np.uint8),
    )
    assert [len(part) for part in every(source)] == [115_000, 5_000, 3]


@pytest.mark.parametrize("key", ["images", "arr_0", "train", "train_images"])
def test_one_array_is_divided_90_5_5(tmp_path: Path, key: str) -> None:
    parts = every(write(tmp_path / "x.npz", **{key: numbered(300)}))
    assert [len(part) for part in parts] == [270, 15, 15]
    order = np.random.default_rng(0).permutation(300)
    assert numbers(np.concatenate([part.images for part in parts])) == order.tolist()


def test_labels_of_one_array_follow_its_images(tmp_path: Path) -> None:
    for part in every(write(tmp_path / "x.npz", images=numbered(100), labels=np.arange(100))):
        assert part.labels is not None
        assert part.labels.tolist() == numbers(part.images)


@pytest.mark.parametrize(
    ("name", "key"), [("x.npz", "test_images"), ("cats_test.npz", "images"), ("test.npz", "arr_0")]
)
def test_a_test_file_is_test_only(tmp_path: Path, name: str, key: str) -> None:
    source = write(tmp_path / name, **{key: numbered(9)})
    assert len(load(DataConfig(source), "test")) == 9
    for split in ("train", "valid"):
        with pytest.raises(DataError, match=f"holds test images only.*{key}.*split '{split}'"):
            load(DataConfig(source), split)


def test_test_is_cut_where_only_train_and_valid_are_there(tmp_path: Path) -> None:
    parts = every(write(tmp_path / "x.npz", train=numbered(100), valid=numbered(8)))
    assert [len(part) for part in parts] == [95, 8, 5]


def test_packed_bits_are_unpacked_row_by_row(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 2, (40, 5, 7), dtype=np.uint8)
    source = write(tmp_path / "x.npz", test=np.packbits(pixels.reshape(40, -1), axis=1))
    part = load(DataConfig(source, bits="5x7"), "test")
    np.testing.assert_array_equal(part.images, pixels[..., None] * 255)
    assert part.levels == 2


def test_packed_bits_say_what_they_may_be(tmp_path: Path) -> None:
    source = write(tmp_path / "x.npz", test=np.zeros((3, 98), np.uint8))
    with pytest.raises(InputError, match=r"\[3, 98\].*data.bits=28x28"):
        load(DataConfig(source), "test")
    with pytest.raises(InputError, match=r"data.bits=28x32 it must be uint8 \[n, 112\]"):
        load(DataConfig(source, bits="28x32"), "test")
    flat = write(tmp_path / "y.npz", test=np.zeros((3, 784), np.uint8))
    with pytest.raises(InputError, match=r"reshape\(-1, 28, 28\)"):
        load(DataConfig(flat), "test")


def test_boolean_and_wide_integers(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 2, (6, 3, 3)).astype(bool)
    part = load(DataConfig(write(tmp_path / "x.npz", test=pixels)), "test")
    np.testing.assert_array_equal(part.images[..., 0], np.where(pixels, 255, 0))
    assert part.levels == 2
    wide = RANDOM.integers(0, 256, (6, 3, 3, 3))
    np.testing.assert_array_equal(
        load(DataConfig(write(tmp_path / "y.npz", test=wide)), "test").images, wide
    )


def jpeg_file(images: np.ndarray) -> dict[str, np.ndarray]:
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")  # the layout says nothing of the kind of file
        files.append(buffer.getvalue())
    data = np.frombuffer(b"".join(files), np.uint8)
    return {
        "jpeg": data,
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": np.arange(len(files), dtype=np.uint8),
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_files_end_to_end(tmp_path: Path, channels: int) -> None:
    images = numbered(60, *((6, 5, 3) if channels == 3 else (6, 5)))
    parts = every(write(tmp_path / "x.npz", **jpeg_file(images)))
    assert [len(part) for part in parts] == [54, 3, 3]
    for part in parts:
        assert part.labels is not None
        assert part.labels.tolist() == numbers(part.images)
        np.testing.assert_array_equal(part.images, images[part.labels].reshape(-1, 6, 5, channels))
        assert part.names is None
    limited = load(DataConfig(f"npz:{tmp_path / 'x.npz'}", limit=4), "train")
    np.testing.assert_array_equal(limited.images, parts[0].images[:4])


def test_a_damaged_file_among_them_is_named(tmp_path: Path) -> None:
    arrays = jpeg_file(numbered(30))
    arrays["jpeg"] = arrays["jpeg"].copy()
    arrays["jpeg"][arrays["offsets"][7] :][:20] = 0
    source = write(tmp_path / "x_test.npz", **arrays)
    with pytest.raises(DataError, match=r"x_test.npz, image 7: not an image"):
        load(DataConfig(source), "test")


@pytest.mark.parametrize("offsets", [[0, 10, 5], [0, 10, 999_999], [0.0, 1.0], [-1, 5], [[0, 1]]])
def test_offsets_are_checked(tmp_path: Path, offsets: list[Any]) -> None:
    source = write(tmp_path / "x.npz", jpeg=np.zeros(100, np.uint8), offsets=np.array(offsets))
    with pytest.raises(InputError, match="offsets"):
        load(DataConfig(source), "train")


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.full((4, 2, 2), 0.5), r"0.5..0.5.*np.round\(255 \* x\)"),
        (np.full((4, 2, 2), 7.0, np.float32), r"np.round\(x\)"),
        (np.linspace(-1, 1, 16).reshape(4, 2, 2), r"np.round\(127.5 \* \(x \+ 1\)\)"),
        (np.full((4, 2, 2), 256), "values 256..256"),
        (np.full((4, 2, 2), -1), "values -1..-1"),
        (np.full((4, 2, 2), "a"), "of type <U1"),
        (np.zeros((4, 3, 8, 8), np.uint8), r"np.moveaxis\(x, 1, -1\)"),
        (np.zeros((4, 8, 8, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((4, 0, 8), np.uint8), r"\[4, 0, 8\]"),
        (np.zeros(4, np.uint8), r"\[4\]"),
        (np.uint8(3), r"shape \[\]"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, array: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load(DataConfig(write(tmp_path / "x.npz", test=array)), "test")


def test_the_line_that_converts_floats_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x = RANDOM.random((30, 4, 4))
    with pytest.raises(InputError) as caught:
        load(DataConfig(write(tmp_path / "x.npz", images=x)), "train")
    line = re.search(r"np\.savez.*", str(caught.value))
    assert line
    exec(line[0], {"np": np, "x": x})
    assert sum(len(part) for part in every("npz:new.npz")) == 30


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.zeros(3, int), "3 labels for 4 images"),
        (np.zeros(4), "float64"),
        (np.full(4, -1), "negative"),
        (np.zeros((4, 2), int), r"\[4, 2\]"),
    ],
)
def test_labels_are_checked(tmp_path: Path, labels: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load(DataConfig(write(tmp_path / "x.npz", test=numbered(4), test_labels=labels)), "test")


def test_keys_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its keys: x_test, x_train"):
        load(
            DataConfig(write(tmp_path / "x.npz", x_train=numbered(4), x_test=numbered(4))), "train"
        )


def test_pickled_arrays_are_not_read(tmp_path: Path) -> None:
    source = write(tmp_path / "x.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match=r"'images' cannot be read.*allow_pickle"):
        load(DataConfig(source), "train")


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "single.npy", numbered(3))
    for name in ("text.npz", "empty.npz", "single.npy", "."):
        with pytest.raises(DataError, match=r"not an .npz file"):
            load(DataConfig(f"npz:{tmp_path / name}"), "train")
    with pytest.raises(DataError, match="there is no file"):
        load(DataConfig(f"npz:{tmp_path / 'missing.npz'}"), "train")


def test_a_damaged_archive(tmp_path: Path) -> None:
    source = write(tmp_path / "x.npz", images=numbered(50))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[200:260] = bytes(60)
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match="'images' cannot be read"):
        load(DataConfig(source), "train")


def test_bits_do_not_fit_image_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.bits"):
        load(DataConfig(write(tmp_path / "x.npz", **jpeg_file(numbered(30))), bits="4x4"), "train")


def test_too_few_images_for_a_split(tmp_path: Path) -> None:
    source = write(tmp_path / "x.npz", images=numbered(2))
    assert len(load(DataConfig(source), "train")) == 2
    with pytest.raises(DataError, match="no images for split 'valid'"):
        load(DataConfig(source), "valid")


@pytest.mark.parametrize("held_out", ["valid", "val", "test"])
@pytest.mark.parametrize("scale", [1, 100_000])
def test_held_out_labels_that_training_lacks_are_refused(
    tmp_path: Path, held_out: str, scale: int
) -> None:
    arrays = {
        "train": numbered(60),
        "train_labels": np.tile([0, 1, 5], 20) * scale,
        held_out: numbered(20),
        f"{held_out}_labels": np.tile([2, 5], 10) * scale,
    }
    source = write(tmp_path / "a.npz", **arrays)
    for split in SPLITS:
        with pytest.raises(InputError, match=f"has labels that train lacks.*has {2 * scale}; "):
            load(DataConfig(source), split)
    # Without labels to compare with, nothing is wrong.
    for absent in ("train_labels", f"{held_out}_labels"):
        fewer = {key: array for key, array in arrays.items() if key != absent}
        every(write(tmp_path / "b.npz", **fewer))

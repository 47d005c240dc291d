"""Arrays that are not what they are taken for: axes in another order, values of another range,
labels that are no numbers of classes."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella.config import DataConfig
from tessella.data import ImageSet, load
from tessella.data.array_checks import check_shape
from tessella.data.class_labels import MAX_CLASSES, sparse_ids
from tessella.errors import InputError, TessellaWarning
from tessella.evaluation.image_source import with_classes_of

RANDOM = np.random.default_rng(5)


def read(tmp_path: Path, split: str = "train", **arrays: Any) -> ImageSet:
    options = {key: arrays.pop(key) for key in ("levels", "binarize", "bits") if key in arrays}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    return load(DataConfig(f"npz:{tmp_path / 'x.npz'}", **options), split)


def binary(count: int = 50, side: int = 8) -> np.ndarray:
    return (RANDOM.random((count, side, side)) < 0.3).astype(np.uint8)


@pytest.mark.parametrize("options", [{}, {"levels": 2}, {"binarize": "fixed"}], ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int8])
def test_integers_of_0_and_1_are_refused_whatever_is_asked(
    tmp_path: Path, options: dict[str, Any], dtype: type
) -> None:
    with pytest.raises(InputError, match=r"values 0\.\.1.*data\.levels=256.*x \* 255.*astype"):
        read(tmp_path, train=binary().astype(dtype), **options)


def test_the_line_for_integers_of_0_and_1_keeps_the_share_of_ink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x = binary()
    with pytest.raises(InputError) as caught:
        read(tmp_path, train=x)
    converted = follow(str(caught.value), x)
    assert converted.levels == 2
    assert set(np.unique(converted.images)) == {0, 255}


def follow(message: str, x: np.ndarray) -> ImageSet:
    """Do as a message says, in the working directory."""
    line = re.search(r"np\.savez.*", message)
    assert line
    exec(line[0], {"np": np, "x": x})
    return load(DataConfig("npz:new.npz"), "train")


@pytest.mark.parametrize(
    ("high", "shades"), [(3, 4), (7, 8), (12, 16), (15, 16), (16, 17)], ids=str
)
def test_images_of_few_bits_are_refused_with_the_line_that_scales_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, high: int, shades: int
) -> None:
    monkeypatch.chdir(tmp_path)
    x = RANDOM.integers(0, high + 1, (60, 6, 6), dtype=np.uint8)
    with pytest.raises(InputError, match=rf"above {high};.*{shades} shades") as caught:
        read(tmp_path, train=x)
    if high in (3, 7, 15, 16):
        assert int(follow(str(caught.value), x).images.max()) == 255


def test_images_of_6_bits_are_read_with_a_warning(tmp_path: Path) -> None:
    x = RANDOM.integers(0, 64, (60, 6, 6), dtype=np.uint8)
    with pytest.warns(TessellaWarning, match="64 shades"):
        assert len(read(tmp_path, train=x)) == 54


def test_dark_images_are_read(tmp_path: Path) -> None:
    """One dark image among others, a single dark picture, and a data set said to be dark."""
    bright = RANDOM.integers(0, 256, (30, 6, 6), dtype=np.uint8)
    bright[:3] //= 200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(tmp_path, train=bright)) == 26
        assert len(read(tmp_path, train=RANDOM.integers(0, 12, (1, 6, 6), dtype=np.uint8))) == 1
        assert read(tmp_path, train=binary(), levels=256).levels == 256


@pytest.mark.parametrize(("high", "shades"), [(3, 4), (1, 2), (31, 32)], ids=str)
def test_a_few_bright_images_among_dark_ones_do_not_hide_these(
    tmp_path: Path, high: int, shades: int
) -> None:
    x = RANDOM.integers(0, high + 1, (101, 6, 6), dtype=np.uint8)
    x[7] = 255
    says = rf"few of the 101 images of 'train' .* above {high};.*{shades} shades"
    with pytest.warns(TessellaWarning, match=says):
        read(tmp_path, train=x)
    # Said to be dark, or mostly empty: nothing to warn of.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(tmp_path, train=x, levels=256)
        x[20:] = 0
        x[40:] = RANDOM.integers(0, 2, (61, 6, 6), dtype=np.uint8) * 255
        read(tmp_path, train=x)


def test_packed_bits_of_one_value_are_read_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(TessellaWarning, match="every pixel of 'images' of x.npz has the value 0"):
        read(tmp_path, images=np.zeros((30, 8), np.uint8), bits="8x8")


@pytest.mark.parametrize("value", [0, 1, 200])
def test_arrays_of_one_value_are_read_with_a_warning(tmp_path: Path, value: int) -> None:
    with pytest.warns(TessellaWarning, match=rf"every pixel of .* has the value {value}\b"):
        read(tmp_path, train=np.full((30, 4, 4), value, np.uint8))


@pytest.mark.parametrize(
    ("low", "high", "dtype", "expression"),
    [
        (-128, 127, np.int8, r"astype(np.int16) + 128"),
        (-40, 90, np.int64, r"astype(np.int16) + 128"),
        (-3000, 3000, np.int16, r"+ 32768) >> 8"),
        (-1, 1, np.int8, r"127.5 * (x + 1)"),
        (0, 1023, np.uint16, "x >> 2"),
        (0, 4000, np.int32, "x >> 4"),
        (0, 60_000, np.int32, "x >> 8"),
        (0, 10**6, np.int64, "x - x.min()"),
        (-(10**6), 10**6, np.int64, "x - x.min()"),
    ],
)
def test_wider_integers_are_refused_with_the_line_that_converts_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    low: int,
    high: int,
    dtype: type,
    expression: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    x = RANDOM.integers(low, high, (60, 6, 6), dtype=dtype, endpoint=True)
    x[0, 0, :2] = low, high
    with pytest.raises(InputError, match=rf"values {low}\.\.{high}") as caught:
        read(tmp_path, train=x)
    assert expression in str(caught.value)
    assert len(follow(str(caught.value), x)) == 54


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_floats_that_are_not_finite_are_named(tmp_path: Path, bad: float) -> None:
    x = RANDOM.random((9, 4, 4))
    x[2, 1, 1] = bad
    with pytest.raises(InputError, match="not finite"):
        read(tmp_path, train=x)


def test_normalized_floats_are_to_be_taken_back_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x \* std \+ mean"):
        read(tmp_path, train=RANDOM.normal(0, 1.5, (9, 4, 4)))


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((48, 64, 3), 1),
        ((48, 64, 4), 1),
        ((48, 64, 2), 2),
        ((48, 64, 1), 1),
        ((28, 28, 500), 500),
        ((28, 32, 5000), 5000),
        ((32, 32, 3, 4), 4),
        ((32, 32, 1, 3), 3),
        ((32, 32, 3, 50), 50),
        ((48, 64, 3, 50), 50),
        ((32, 32, 1, 7), 7),
        ((64, 48, 900), 900),
    ],
)
def test_axes_in_another_order_are_refused_with_the_line_that_mends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], count: int
) -> None:
    monkeypatch.chdir(tmp_path)
    x = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    with pytest.raises(InputError, match=re.escape(str(list(shape)))) as caught:
        read(tmp_path, images=x)
    mended = follow(str(caught.value), x)
    assert mended.images.shape[1:3] == shape[:2]
    assert len(mended) in (count, count - 2 * max(1, round(count / 20)))


@pytest.mark.parametrize("shape", [(100, 3, 32, 32), (100, 1, 28, 28), (100, 3, 4, 4)])
def test_channels_first_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"np\.moveaxis\(x, 1, -1\)"):
        check_shape(shape, "x")


@pytest.mark.parametrize(
    "shape",
    [
        (60_000, 28, 28),
        (1, 28, 28),
        (28, 28, 28),
        (300, 64, 256),
        (50, 4, 4),
        (28, 28, 500, 1),
        (10, 32, 32, 3),
        (4, 4, 4, 3),
        (32, 32, 32, 3),
        (1, 1, 1),
        (1, 64, 1),
        (500, 1, 64),
        (500, 1, 2),
        (50, 2, 2),
        (50, 2, 8),
        (3, 1, 1, 1),
    ],
)
def test_shapes_of_images_pass(shape: tuple[int, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_shape(shape, "x")


@pytest.mark.parametrize("shape", [(0, 8, 8), (0, 8, 8, 3), (0, 784)])
def test_an_array_without_images_says_so(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="there are no images in it"):
        check_shape(shape, "x")


@pytest.mark.parametrize("shape", [(48, 64, 3, 1), (32, 32, 3, 1)])
def test_narrow_grey_images_are_read_with_a_warning(shape: tuple[int, ...]) -> None:
    with pytest.warns(TessellaWarning, match=r"taken for \d+ grey images of \d+x3"):
        check_shape(shape, "x")


def test_a_number_of_images_that_may_stand_last_is_spoken_of() -> None:
    with pytest.warns(TessellaWarning, match=r"if it holds 200 images of 64x48, store x\.transp"):
        check_shape((64, 48, 200), "x")


def test_a_picture_with_channels_first_is_read_with_a_warning() -> None:
    with pytest.warns(TessellaWarning, match=r"x\.transpose\(1, 2, 0\)\[None\]"):
        check_shape((3, 32, 40), "x")


def test_flat_rows_of_colour_are_refused_with_both_orders(tmp_path: Path) -> None:
    rows = RANDOM.integers(0, 256, (9, 3072), dtype=np.uint8)
    with pytest.raises(InputError, match=r"reshape\(-1, 3, 32, 32\).*reshape\(-1, 32, 32, 3\)"):
        read(tmp_path, images=rows)


def test_sparse_labels_are_renumbered_and_named_by_their_ids(tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (120, 8, 8), dtype=np.uint8)
    ids = RANDOM.permutation(np.repeat(np.arange(40) * 100_000 + 7, 3))
    images[:, 0, 0] = ids // 100_000
    for split in ("train", "valid", "test"):
        part = read(tmp_path, split, train=images, train_labels=ids)
        assert part.classes == 40
        assert part.labels is not None
        named = [int(part.label_names[label]) for label in part.labels]
        assert named == (part.images[:, 0, 0, 0].astype(int) * 100_000 + 7).tolist()


def test_sparse_labels_mean_the_same_in_every_split(tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (6, 8, 8), dtype=np.uint8)
    arrays = {
        "train": images,
        "train_labels": np.array([5, 5, 900, 900, 30_000, 30_000]),
        "test": images,
        "test_labels": np.array([900, 30_000, 900, 30_000, 900, 900], np.uint64),
    }
    train = read(tmp_path, "train", **arrays)
    test = read(tmp_path, "test", **arrays)
    assert train.label_names == test.label_names == ("5", "900", "30000")
    assert test.labels is not None
    assert test.labels.tolist() == [1, 2, 1, 2, 1, 1]


def test_a_run_sees_its_classes_whatever_file_they_are_counted_in(tmp_path: Path) -> None:
    """Few images of many classes look like sparse ids, and few ids like numbers of classes."""
    (tmp_path / "config.json").write_text("{}")
    images = RANDOM.integers(0, 256, (6, 8, 8), dtype=np.uint8)
    few = read(tmp_path, "test", test=images, test_labels=np.array([3, 3, 700, 900, 900, 3]))
    assert few.classes == 3
    (tmp_path / "run.json").write_text('{"format": 1, "data": {"train": {"classes": []}}}')
    numbered = with_classes_of(tmp_path, few)
    assert numbered.labels is not None
    assert numbered.labels.tolist() == [3, 3, 700, 900, 900, 3]
    (tmp_path / "run.json").write_text(
        '{"format": 1, "data": {"train": {"classes": ["2", "5", "4000"]}}}'
    )
    plain = read(tmp_path, "test", test=images, test_labels=np.array([5, 5, 2, 2, 2, 2]))
    assert plain.label_names == ()
    named = with_classes_of(tmp_path, plain)
    assert named.labels is not None
    assert named.labels.tolist() == [1, 1, 0, 0, 0, 0]
    assert named.label_names == ("2", "5", "4000")
    with pytest.raises(InputError, match="not 3, 700, 900"):
        with_classes_of(tmp_path, few)


@pytest.mark.parametrize("labels", [np.arange(20) % 10, np.arange(20) % 5 * 20, np.arange(20) + 80])
def test_labels_that_number_classes_are_left_alone(tmp_path: Path, labels: np.ndarray) -> None:
    images = RANDOM.integers(0, 256, (20, 8, 8), dtype=np.uint8)
    part = read(tmp_path, "test", test=images, test_labels=labels)
    assert part.label_names == ()
    assert part.labels is not None
    assert part.labels.tolist() == labels.tolist()


def test_more_classes_than_a_model_can_have_are_refused() -> None:
    with pytest.raises(InputError, match=r"1,000,000 different labels, up to 999999"):
        sparse_ids([np.arange(10**6)], "labels")
    ids = sparse_ids([np.arange(MAX_CLASSES) * 3], "labels")
    assert ids is not None
    assert len(ids) == MAX_CLASSES


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.full(4, 2**64 - 1, np.uint64), "the label 18446744073709551615"),
        (np.array([0, 1, 2, 2**63], np.uint64), "the label 9223372036854775808"),
        (np.array([0, 1, -7, 2]), "negative labels .down to -7"),
        (np.array([0.0, 1, 2, 3]), r"labels\.astype\(np\.int64\)"),
        (np.array([0.5, 1, 2, 3]), "fractions"),
        (np.array([0, 1, np.nan, 3]), "NaN or infinite"),
        (np.array([True, False] * 2), r"labels\.astype\(np\.int64\)"),
        (np.array(["a", "b"] * 2), r"return_inverse"),
        (np.eye(4, 6), r"labels\.argmax\(1\)"),
    ],
    ids=str,
)
def test_labels_that_are_no_classes_are_refused_by_value(
    tmp_path: Path, labels: np.ndarray, says: str
) -> None:
    images = RANDOM.integers(0, 256, (4, 8, 8), dtype=np.uint8)
    with pytest.raises(InputError, match=says):
        read(tmp_path, "test", test=images, test_labels=labels)


def test_rows_of_downsampled_imagenet_are_read_plane_by_plane(tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    labels = RANDOM.integers(1, 1001, 60)
    images[:, 0, 0, 0] = labels % 256
    rows = images.transpose(0, 3, 1, 2).reshape(60, 3072)
    part = read(tmp_path, data=rows, labels=labels, mean=np.zeros(3072))
    assert part.classes == 1000
    assert part.labels is not None
    assert part.label_names[part.labels[0]] == str(part.labels[0] + 1)
    assert ((part.labels + 1) % 256).tolist() == part.images[:, 0, 0, 0].tolist()
    np.savez(tmp_path / "val_data.npz", data=rows, labels=labels)
    valid = load(DataConfig(f"npz:{tmp_path / 'val_data.npz'}"), "valid")
    np.testing.assert_array_equal(valid.images, images)

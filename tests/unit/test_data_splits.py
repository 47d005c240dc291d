"""Splits are disjoint, complete and stable."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessella.data.splits import (
    SPLITS,
    are_splits,
    by_folders,
    by_hash,
    check_split,
    permuted,
    split_size,
    tail_split,
)
from tessella.errors import DataError

PATHS = st.lists(st.text("ab/é.", min_size=1, max_size=6), unique=True, max_size=60)


@given(PATHS)
def test_small_folders_have_the_splits_they_can(names: list[str]) -> None:
    splits = by_hash(names)
    assert len(splits) == len(names)
    if names:
        assert "train" in splits
    if len(names) >= 20:
        assert set(splits) == set(SPLITS)


def test_the_hash_is_that_of_the_path() -> None:
    names = [f"class/{i}.png" for i in range(4000)]
    for name, split in zip(names, by_hash(names), strict=True):
        p = int(hashlib.sha256(f"tessella split:{name}".encode()).hexdigest()[:16], 16) / 16**16
        assert split == ("test" if p < 0.05 else "valid" if p < 0.1 else "train")
    shares = [by_hash(names).count(split) / 4000 for split in SPLITS]
    np.testing.assert_allclose(shares, [0.9, 0.05, 0.05], atol=0.015)


def test_images_keep_their_split_when_others_come() -> None:
    names = [f"{i}.png" for i in range(400)]
    assert by_hash(names)[:300] == by_hash(names[:300])


def test_a_path_means_the_same_on_every_system() -> None:
    composed, decomposed = (
        [f"\u00e9{i}.png" for i in range(50)],
        [f"e\u0301{i}.png" for i in range(50)],
    )
    assert by_hash(composed) == by_hash(decomposed)


def test_too_few_for_train_alone() -> None:
    low = next(
        f"{i}"
        for i in range(1000)
        if hashlib.sha256(f"tessella split:{i}".encode()).digest()[0] < 8
    )
    assert by_hash([low]) == ["train"]
    assert by_hash([]) == []


def test_permuted_is_a_partition() -> None:
    parts = [permuted(100, split, valid=7, test=11) for split in SPLITS]
    assert [len(part) for part in parts] == [82, 7, 11]
    assert np.concatenate(parts).tolist() == np.random.default_rng(0).permutation(100).tolist()


@pytest.mark.parametrize(
    ("count", "largest", "size"),
    [(2, None, 0), (3, None, 1), (1000, None, 50), (400_000, 5000, 5000)],
)
def test_share(count: int, largest: int | None, size: int) -> None:
    assert split_size(count, largest) == size


@pytest.mark.parametrize(("count", "tail"), [(60_000, 5000), (50_000, 5000), (100, 10)])
def test_with_tail(count: int, tail: int) -> None:
    numbers = np.arange(count)
    assert len(numbers[tail_split(count, "valid")]) == tail
    assert numbers[tail_split(count, "valid")][-1] == count - 1
    assert len(numbers[tail_split(count, "train")]) == count - tail


def test_unknown_split() -> None:
    with pytest.raises(DataError, match="did you mean 'train'"):
        check_split("trian")


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train", "test"], True),
        (["Training", "VALIDATION", "testing"], True),
        (["val", "test"], True),
        (["train", "training"], False),
        (["train", "test", "cat"], False),
        (["train"], False),
        (["train2017", "val2017", "test_2017"], True),
        (["train", "test1"], True),
        (["train1", "train2", "test1", "test2"], False),
        (["trainA", "testA"], False),
    ],
)
def test_folders_that_are_splits(folders: list[str], expected: bool) -> None:
    assert are_splits(folders) is expected


@pytest.mark.parametrize(
    ("other", "missing", "edge"), [("test", "valid", 0.1), ("val", "test", 0.05)]
)
def test_what_a_divided_folder_lacks_has_the_lowest_places_of_train(
    other: str, missing: str, edge: float
) -> None:
    names = [f"{folder}/{i}.png" for folder in ("train", other) for i in range(1000)]
    splits, rule = by_folders(names, [name.split("/")[0] for name in names])
    assert f"; {missing}: {edge:.0%} of train by SHA-256" in rule
    for name, split in zip(names, splits, strict=True):
        p = int(hashlib.sha256(f"tessella split:{name}".encode()).hexdigest()[:16], 16) / 2**64
        given = {"test": "test", "val": "valid"}[other]
        assert split == (
            given if not name.startswith("train") else missing if p < edge else "train"
        )


def test_twenty_training_files_give_one_and_fewer_none() -> None:
    names = [
        f"train/{i}.png"
        for i in range(500)
        if by_hash([f"a/{i}.png", f"train/{i}.png"])[1] == "train"
    ]
    for count, taken in ((20, 1), (19, 0)):
        some = [*names[:count], "test/x.png"]
        assert by_folders(some, [name.split("/")[0] for name in some])[0].count("valid") == taken


def test_the_last_training_file_stays_whatever_its_place() -> None:
    low = []
    for i in range(500):
        name = f"train/{i}.png"
        place = int(hashlib.sha256(f"tessella split:{name}".encode()).hexdigest()[:16], 16) / 2**64
        if place < 0.05:
            low.append(name)
    assert by_folders([low[0], "test/x.png"], ["train", "test"])[0] == ["train", "test"]
    splits, _ = by_folders([*low[:2], "test/x.png"], ["train", "train", "test"])
    assert sorted(splits) == ["test", "train", "valid"]

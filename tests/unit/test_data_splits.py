"""Splits are disjoint, complete and stable."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessella.data.splits import SPLITS, by_hash, check_split, permuted, share, with_tail
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
    composed, decomposed = [f"\u00e9{i}.png" for i in range(50)], [f"e\u0301{i}.png" for i in range(50)]
    assert by_hash(composed) == by_hash(decomposed)


def test_too_few_for_train_alone() -> None:
    low = next(f"{i}" for i in range(1000) if hashlib.sha256(f"tessella split:{i}".encode()).digest()[0] < 8)
    assert by_hash([low]) == ["train"]
    assert by_hash([]) == []


def test_permuted_is_a_partition() -> None:
    parts = [permuted(100, split, valid=7, test=11) for split in SPLITS]
    assert [len(part) for part in parts] == [82, 7, 11]
    assert np.concatenate(parts).tolist() == np.random.default_rng(0).permutation(100).tolist()


@pytest.mark.parametrize(
    ("count", "largest", "size"), [(2, None, 0), (3, None, 1), (1000, None, 50), (400_000, 5000, 5000)]
)
def test_share(count: int, largest: int | None, size: int) -> None:
    assert share(count, largest) == size


@pytest.mark.parametrize(("count", "tail"), [(60_000, 5000), (50_000, 5000), (100, 10)])
def test_with_tail(count: int, tail: int) -> None:
    numbers = np.arange(count)
    assert len(numbers[with_tail(count, "valid")]) == tail
    assert numbers[with_tail(count, "valid")][-1] == count - 1
    assert len(numbers[with_tail(count, "train")]) == count - tail


def test_unknown_split() -> None:
    with pytest.raises(DataError, match="did you mean 'train'"):
        check_split("trian")

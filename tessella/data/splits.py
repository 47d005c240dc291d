"""Four rules that divide images into train, valid and test, each a pure function.

- :func:`permuted`: by a permutation with seed 0, for a single array.
- :func:`tail_split`: the last images of the training set become ``valid``, for data sets that come
  with a test set.
- :func:`by_hash`: by a hash of each image's relative path, for folders.
- :func:`by_folders`: by the folders ``train``, ``valid`` and ``test``, if a folder has them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from tessella.errors import DataError, unknown

SPLITS = ("train", "valid", "test")

SHARE = 0.05
"""Share of the images for ``valid``, and for ``test``, if a source defines no splits."""
LARGEST_TAIL = 5_000
"""Most images that are taken from a training set for validation."""
EVERY_SPLIT_FROM = 20
"""Number of images from which every split of a folder has at least one."""


ALL = "all"
"""Every image of a folder, whatever its split; meant for a folder that was not trained on."""


def check_split(split: str) -> None:
    """Raise :class:`DataError` unless ``split`` is one of :data:`SPLITS`, or :data:`ALL`."""
    if split not in (*SPLITS, ALL):
        raise DataError(unknown("split", split, (*SPLITS, ALL)))


def permuted(count: int, split: str, valid: int, test: int) -> np.ndarray:
    """Indices of the images of a split: part of numpy's permutation with seed 0.

    The permutation is ``numpy.random.default_rng(0).permutation(count)``. Its last ``test`` indices
    are test, the ``valid`` indices before them are valid, and the rest is train.

    >>> [len(permuted(1797, split, valid=150, test=297)) for split in SPLITS]
    [1350, 150, 297]
    """
    # This permutation must never change, since published figures depend on it.
    order = np.random.default_rng(0).permutation(count)
    train = count - valid - test
    if split == "train":
        return order[:train]
    if split == "valid":
        return order[train : train + valid]
    return order[train + valid :]


def split_size(count: int, largest: int | None = None) -> int:
    """Size of a split taken from ``count`` images: 5 %, at least 1, at most ``largest``.

    It is 0 if there are fewer than 3 images.
    """
    # With fewer than three, one each for valid and test would leave nothing to train on.
    if count < 3:
        return 0
    size = max(1, round(SHARE * count))
    if largest is not None:
        size = min(size, largest)
    return size


def tail_split(count: int, split: str) -> slice:
    """The part of a training set of ``count`` images that is the split train or valid.

    Its last 5,000 images are valid, or the last tenth if there are fewer than 50,000.
    """
    tail = min(LARGEST_TAIL, count // 10)
    if split == "train":
        return slice(0, count - tail)
    return slice(count - tail, count)


def by_hash(names: Sequence[str]) -> list[str]:
    """The split of each file of a folder.

    A relative path (separator ``/``, Unicode form NFC) is mapped to a number ``p`` in [0, 1): the
    first 8 bytes of the SHA-256 of ``tessella split:PATH``. (The prefix makes the split independent
    of any earlier selection of files by the hash of their names.) Files with p < 0.05 are test,
    those with p < 0.10 valid, the others train, so an image stays in its split when others are
    added or removed. If train is empty, it gets the file with the highest p. With 20 files or more,
    an empty test split gets the training file with the lowest p, and then so does an empty valid
    split.

    >>> sorted(set(by_hash([f"{i}.png" for i in range(20)])))
    ['test', 'train', 'valid']
    """
    positions = np.array([hash_position(name) for name in names])
    return [SPLITS[number] for number in by_position(positions)]


def by_position(positions: np.ndarray) -> np.ndarray:
    """:func:`by_hash` of files whose numbers ``p`` are known, ``float64 [n]``.

    Returns:
        the split of each, as its number in :data:`SPLITS`: ``uint8 [n]``.
    """
    train, valid, test = range(len(SPLITS))
    # p is uniform on [0, 1), which gives shares of 5, 5 and 90 %.
    splits = np.full(len(positions), train, np.uint8)
    splits[positions < 2 * SHARE] = valid
    splits[positions < SHARE] = test
    needed: tuple[int, ...] = ()
    if len(positions) >= EVERY_SPLIT_FROM:
        needed = (test, valid, train)
    elif len(positions):
        needed = (train,)
    for split in needed:
        if not (splits == split).any():
            # The largest split gives up one image, the one nearest to the empty split.
            largest = np.bincount(splits, minlength=len(SPLITS)).argmax()
            donors = np.flatnonzero(splits == largest)
            nearest = donors[positions[donors].argmin()]
            if split == train:
                nearest = donors[positions[donors].argmax()]
            splits[nearest] = split
    return splits


FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}
"""The split that a folder of this name is; upper and lower case are the same."""


def split_of_folder(name: str) -> str:
    """The split that a folder is by its name; empty if it is none.

    A year or another number may follow, as in ``train2017``.

    >>> split_of_folder("Val"), split_of_folder("val2017"), split_of_folder("trainA")
    ('valid', 'valid', '')
    """
    return FOLDERS.get(re.sub(r"[-_ ]?\d+$", "", name.lower()), "")


def are_splits(folders: Iterable[str]) -> bool:
    """Whether these folders are splits, not classes.

    They are if all are named in :data:`FOLDERS`, and stand for at least two different splits.
    Numbers may follow these names, but not several numbers the same name: ``train1`` and ``train2``
    may have images in common with ``test2`` and ``test1``.
    """
    splits = set()
    numbered = set()
    for name in set(folders):
        split = split_of_folder(name)
        if name.lower() not in FOLDERS:
            if split in numbered:
                return False
            numbered.add(split)
        splits.add(split)
    return "" not in splits and len(splits) > 1


def by_folders(names: Sequence[str], folders: Sequence[str]) -> tuple[list[str], str]:
    """The split of each file in a folder with split sub-folders, and the rule as text.

    A split without a folder is taken from the training files (:func:`fill_missing`).

    Args:
        names: the relative path of each file.
        folders: for each file, the name of the split folder that it is in.

    >>> by_folders(["test/1.png", "train/2.png", "val/3.png"], ["test", "train", "val"])
    (['test', 'train', 'valid'], 'the folders test, train, val')
    """
    splits = [split_of_folder(name) for name in folders]
    rule = f"the folders {', '.join(sorted(set(folders)))}"
    return splits, rule + fill_missing(names, splits)


def fill_missing(names: Sequence[str], splits: list[str]) -> str:
    """Take a split that a data set lacks from its training files, in place.

    If there are training files but none for valid, or none for test, the missing split gets the
    training files with the lowest p (see :func:`by_hash`): p < 0.10 for valid, p < 0.05 for test,
    and at least one file if there are 20 or more.

    Args:
        names: the relative path of each file.
        splits: the split of each file; changed if one was missing.

    Returns:
        what was done, to be appended to the rule; empty if nothing was missing.
    """
    positions = np.array([hash_position(name) for name in names])
    numbers = np.array([SPLITS.index(split) for split in splits], np.uint8)
    done = fill_missing_at(positions, numbers)
    for place, number in enumerate(numbers):
        splits[place] = SPLITS[number]
    return done and f"{done} and the relative path"


def fill_missing_at(positions: np.ndarray, splits: np.ndarray) -> str:
    """:func:`fill_missing` of files whose numbers ``p`` are known.

    Args:
        positions: ``float64 [n]``.
        splits: number of the split of each in :data:`SPLITS`, ``uint8 [n]``; changed if one was
            missing.

    Returns:
        what was done, up to the names of the things that are hashed; empty if nothing was missing.
    """
    train, valid, test = range(len(SPLITS))
    training = np.flatnonzero(splits == train)
    missing = None
    edge = 2 * SHARE
    if not (splits == valid).any():
        missing = valid
    elif not (splits == test).any():
        missing = test
        edge = SHARE
    if missing is None or not len(training):
        return ""
    # p is the same as in by_hash, and valid takes what would be valid or test there: an image that
    # is held out in a folder without splits is never trained on in one with splits.
    rising = training[np.argsort(positions[training], kind="stable")]
    candidates = rising[:-1]  # one at least stays for training
    taken = candidates[positions[candidates] < edge]
    if not len(taken) and len(training) >= EVERY_SPLIT_FROM:
        taken = candidates[:1]
    splits[taken] = missing
    return f"; {SPLITS[missing]}: {edge:.0%} of train by SHA-256 of 'tessella split:'"


def hash_position(name: str) -> float:
    """The number ``p`` in [0, 1) of a relative path, see :func:`by_hash`."""
    # macOS writes names in another normal form than Linux; surrogates stand for bytes that are no
    # UTF-8.
    text = "tessella split:" + unicodedata.normalize("NFC", name)
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64

"""How images are divided into train, valid and test: four rules, each a pure function of the data.

- :func:`permuted`: a permutation of seed 0, for one array.
- :func:`tail_split`: the last images of the training set become ``valid``, for data sets that come
  with a test set.
- :func:`by_hash`: by a hash of each image's relative path, for folders.
- :func:`by_folders`: by the folders ``train``, ``valid`` and ``test``, where a folder has them.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from tessella.errors import DataError, unknown

SPLITS = ("train", "valid", "test")

SHARE = 0.05
"""Share of the images that ``valid`` and ``test`` get, each, where a source does not divide
itself."""
LARGEST_TAIL = 5_000
EVERY_SPLIT_FROM = 20
"""Number of images from which on a folder gives every split at least one."""


ALL = "all"
"""For folders: every image, whatever its split; for a folder that was not trained on."""


def check_split(split: str) -> None:
    """Raise :class:`DataError` unless ``split`` is one of :data:`SPLITS`, or :data:`ALL`."""
    if split not in (*SPLITS, ALL):
        raise DataError(unknown("split", split, (*SPLITS, ALL)))


def permuted(count: int, split: str, valid: int, test: int) -> np.ndarray:
    """Places of a split in the permutation ``numpy.random.default_rng(0).permutation(count)``.

    Train comes first, then ``valid`` places, then ``test`` places.

    >>> [len(permuted(1797, split, valid=150, test=297)) for split in SPLITS]
    [1350, 150, 297]
    """
    # numpy promises this permutation for the seed; it is part of every published figure.
    order = np.random.default_rng(0).permutation(count)
    train = count - valid - test
    if split == "train":
        return order[:train]
    if split == "valid":
        return order[train : train + valid]
    return order[train + valid :]


def split_size(count: int, largest: int | None = None) -> int:
    """Size of a split cut from ``count`` images: 5 %, at least 1 (0 of fewer than 3), at most
    ``largest``."""
    # Of fewer than three, taking one for valid and one for test would leave nothing to train on.
    if count < 3:
        return 0
    size = max(1, round(SHARE * count))
    if largest is not None:
        size = min(size, largest)
    return size


def tail_split(count: int, split: str) -> slice:
    """Train or valid of a training set of ``count`` images: its last 5,000 are valid (a tenth of
    fewer than 50,000)."""
    tail = min(LARGEST_TAIL, count // 10)
    if split == "train":
        return slice(0, count - tail)
    return slice(count - tail, count)


def by_hash(names: Sequence[str]) -> list[str]:
    """The split of each file of a folder.

    A path (relative, ``/`` between its parts, Unicode form NFC) has the place ``p`` in [0, 1) that
    the first 8 bytes of the SHA-256 of ``tessella split:PATH`` spell (the prefix keeps the split
    apart from any earlier selection of files by the hash of their names). Files with p < 0.05 are
    test, p < 0.10 valid, the others train; so an image stays in its split when others come or go.
    An empty train split takes the file of highest p; of 20 files or more, an empty test split takes
    the training file of lowest p, and then an empty valid split does the same.

    >>> sorted(set(by_hash([f"{i}.png" for i in range(20)])))
    ['test', 'train', 'valid']
    """
    # The hash is uniform on [0, 1), so its place alone makes shares of 5, 5 and 90 %.
    places = []
    splits = []
    for name in names:
        places.append(_place(name))
        splits.append(_split_at(places[-1]))
    rising = sorted(range(len(names)), key=lambda i: (places[i], names[i]))
    needed: tuple[str, ...] = ()
    if len(names) >= EVERY_SPLIT_FROM:
        needed = ("test", "valid", "train")
    elif names:
        needed = ("train",)
    for split in needed:
        if split not in splits:
            # The largest split gives one of its images, the one nearest to the empty split.
            largest = max(SPLITS, key=splits.count)
            donors = [i for i in rising if splits[i] == largest]
            nearest = donors[0]
            if split == "train":
                nearest = donors[-1]
            splits[nearest] = split
    return splits


def _split_at(place: float) -> str:
    if place < SHARE:
        return "test"
    if place < 2 * SHARE:
        return "valid"
    return "train"


FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}
"""The splits that folders of these names are, in letters of any case."""


def are_splits(folders: Iterable[str]) -> bool:
    """Whether these folders are splits and not classes: all bear a name of :data:`FOLDERS`, of two
    splits or more."""
    splits = {FOLDERS.get(name.lower(), "") for name in folders}
    return "" not in splits and len(splits) > 1


def by_folders(names: Sequence[str], folders: Sequence[str]) -> tuple[list[str], str]:
    """The split of each file of a folder that is divided into sub-folders, and the rule in words.

    Splits that have no folder are cut from the training files (:func:`fill_missing`).

    Args:
        names: the relative path of each file.
        folders: the folder of each file that bears the name of a split.

    >>> by_folders(["test/1.png", "train/2.png", "val/3.png"], ["test", "train", "val"])
    (['test', 'train', 'valid'], 'the folders test, train, val')
    """
    splits = [FOLDERS[name.lower()] for name in folders]
    rule = f"the folders {', '.join(sorted(set(folders)))}"
    return splits, rule + fill_missing(names, splits)


def fill_missing(names: Sequence[str], splits: list[str]) -> str:
    """Cut a split that a data set lacks from its training files, in place.

    Where there are training files but none of one of the other splits, that one gets the training
    files with the lowest places (those of :func:`by_hash`): p < 0.10 for valid, p < 0.05 for test,
    and at least one of 20 files.

    Args:
        names: the relative path of each file.
        splits: the split of each file; changed where one was missing.

    Returns:
        what was done, to be added to the rule in words; empty if nothing was missing.
    """
    training = []
    for number, name in enumerate(names):
        if splits[number] == "train":
            training.append((_place(name), name, number))
    training.sort()
    missing = ""
    edge = 2 * SHARE
    if "valid" not in splits:
        missing = "valid"
    elif "test" not in splits:
        missing = "test"
        edge = SHARE
    if not missing or not training:
        return ""
    # The places are those of by_hash, and valid takes what there would be valid or test: an image
    # that a folder without splits would hold out is never trained on here.
    taken = 0
    for place, _, number in training[:-1]:  # one at least stays for training
        if place < edge or (taken == 0 and len(training) >= EVERY_SPLIT_FROM):
            splits[number] = missing
            taken += 1
    return f"; {missing}: {edge:.0%} of train by SHA-256 of 'tessella split:' and the relative path"


def _place(name: str) -> float:
    # macOS writes names in another normal form than Linux; surrogates stand for bytes that are no
    # UTF-8.
    text = "tessella split:" + unicodedata.normalize("NFC", name)
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64

"""How images are divided into train, valid and test: four rules, each a pure function of the data.

- :func:`permuted`: a permutation of seed 0, for one array. - :func:`with_tail`: the last images of
the training set become ``valid``, for data sets that come with a test set. - :func:`by_hash`: by a
hash of each image's relative path, for folders; - :func:`by_folders`: by the folders ``train``,
``valid`` and ``test``, where a folder has them.
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
    order = np.random.default_rng(0).permutation(count)
    train = count - valid - test
    ends = {"train": (0, train), "valid": (train, train + valid), "test": (train + valid, count)}
    return order[slice(*ends[split])]


def share(count: int, largest: int | None = None) -> int:
    """Size of a split cut from ``count`` images: 5 %, at least 1 (0 of fewer than 3), at most
    ``largest``."""
    if count < 3:
        return 0
    size = max(1, round(SHARE * count))
    return size if largest is None else min(size, largest)


def with_tail(count: int, split: str) -> slice:
    """Train or valid of a training set of ``count`` images: its last 5,000 are valid (a tenth of
    fewer than 50,000)."""
    tail = min(LARGEST_TAIL, count // 10)
    return slice(0, count - tail) if split == "train" else slice(count - tail, count)


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
    places = [_place(name) for name in names]
    splits = ["test" if p < SHARE else "valid" if p < 2 * SHARE else "train" for p in places]
    rising = sorted(range(len(names)), key=lambda i: (places[i], names[i]))
    needed = SPLITS[::-1] if len(names) >= EVERY_SPLIT_FROM else SPLITS[:1] if names else ()
    for split in needed:
        if split not in splits:
            largest = max(SPLITS, key=splits.count)
            donors = [i for i in rising if splits[i] == largest]
            splits[donors[-1 if split == "train" else 0]] = split
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
"""The splits that folders of these names are, in letters of any case."""


def divide(folders: Iterable[str]) -> bool:
    """Whether these folders are splits and not classes: all bear a name of :data:`FOLDERS`, of two
    splits or more."""
    splits = [FOLDERS.get(name.lower(), "") for name in folders]
    return all(splits) and len({*splits}) > 1


def by_folders(names: Sequence[str], folders: Sequence[str]) -> tuple[list[str], str]:
    """The split of each file of a folder that is divided into sub-folders, and the rule in words.

    Where there are training files but no folder of one of the other splits, that one gets the
    training files with the lowest places (those of :func:`by_hash`): p < 0.10 for valid, p < 0.05
    for test, and at least one of 20 files.

    Args:
        names: the relative path of each file.
        folders: the folder of each file that bears the name of a split.

    >>> by_folders(["test/1.png", "train/2.png", "val/3.png"], ["test", "train", "val"])
    (['test', 'train', 'valid'], 'the folders test, train, val')
    """
    splits, rule = (
        [FOLDERS[name.lower()] for name in folders],
        f"the folders {', '.join(sorted({*folders}))}",
    )
    rising = sorted((_place(name), name, i) for i, name in enumerate(names) if splits[i] == "train")
    missing = [split for split in SPLITS if split not in splits]
    if missing and rising:
        edge = SHARE if missing == ["test"] else 2 * SHARE
        taken = [i for place, _, i in rising if place < edge]
        taken = taken[: len(rising) - 1]
        for i in taken or [i for *_, i in rising[: len(rising) >= EVERY_SPLIT_FROM]]:
            splits[i] = missing[0]
        rule += f"; {missing[0]}: {edge:.0%} of train by SHA-256 of 'tessella split:' and the relative path"
    return splits, rule


def _place(name: str) -> float:
    text = "tessella split:" + unicodedata.normalize("NFC", name)
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64

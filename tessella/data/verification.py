"""Look through a data source: damaged images, copies, sizes, classes."""

from __future__ import annotations

import contextlib
import io
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from tessella.config import DataConfig
from tessella.data.folder import folder_files
from tessella.data.hashes import image_hashes
from tessella.data.image_files import ImageFiles, each_decoded
from tessella.data.paths import last_name, printable
from tessella.data.shards.shard_manifest import class_names
from tessella.data.shards.shard_set import open_shards
from tessella.data.shards_source import divide_shards, left_out_of
from tessella.data.sources import find_source, load
from tessella.data.splits import SPLITS
from tessella.data.unusable_image import UnusableImage
from tessella.errors import DataError

MOST_NAMED = 1000
"""Damaged images, and groups of copies, that are named one by one."""


@dataclass
class Verification:
    """What was found in a data source.

    Args:
        source: its name.
        images: usable images of each split.
        sizes: number of usable images of each size, ``WIDTHxHEIGHT``.
        classes: number of usable images of each class, by split; without labels it is empty.
        without_label: usable images without a label, where others have one.
        damage: number of damaged images by the reason.
        damaged: the first of them, each as ``name: reason``.
        left_out: what is there and is no image.
        copies: the first groups of images that are equal, pixel for pixel, by name.
        copied: images that are equal to an earlier one.
        copied_across_splits: those of them whose first copy is in another split.
    """

    source: str
    images: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    classes: dict[str, Counter[str]] = field(default_factory=dict)
    without_label: int = 0
    damage: Counter[str] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    copies: list[list[str]] = field(default_factory=list)
    copied: int = 0
    copied_across_splits: int = 0


@dataclass(frozen=True)
class _Files:
    """Image files of all splits: split, label and class name of each by its index."""

    count: int
    name: Callable[[int], str]
    open: Callable[[int], BufferedIOBase]
    split: Callable[[int], str]
    label: Callable[[int], int | None]
    label_names: tuple[str, ...]
    left_out: Sequence[str] = ()


def verify_source(config: DataConfig) -> Verification:
    """Decode every image of a source, and count what is found.

    Args:
        config: the source. Files are looked at as they are; of other sources the prepared images.

    Raises:
        DataError: when the source is missing, or cannot be read at all.
    """
    source, path = find_source(config.source)
    if source.name == "folder":
        root = source.locate(path)
        with _of_folder(root) as given:
            return _verify_files(given, f"folder:{last_name(root)}")
    if source.name == "shards":
        return _verify_files(_of_shards(path), f"shards:{Path(path).name}")
    return _verify_arrays(config)


@contextlib.contextmanager
def _of_folder(root: Path) -> Iterator[_Files]:
    with folder_files(root) as found:

        def label(index: int) -> int | None:
            labels = found.labels[found.splits[index]]
            return None if labels is None else labels[index]

        yield _Files(
            count=len(found.names),
            name=found.names.__getitem__,
            open=found.open,
            split=found.splits.__getitem__,
            label=label,
            label_names=found.label_names,
        )


def _of_shards(path: str) -> _Files:
    shards = open_shards(path)
    splits, _ = divide_shards(shards)
    labels = shards.column("label")

    def open_item(index: int) -> BufferedIOBase:
        return io.BytesIO(shards.item(index).data)

    def label(index: int) -> int | None:
        value = int(labels[index])
        return value if value >= 0 else None

    def split(index: int) -> str:
        return SPLITS[splits[index]]

    return _Files(
        count=len(shards),
        name=shards.name,
        open=open_item,
        split=split,
        label=label,
        label_names=class_names(shards.shards[0].path.parent),
        left_out=left_out_of(shards),
    )


class _FileNames(Sequence[str]):
    """The names of files, asked for one by one."""

    def __init__(self, given: _Files) -> None:
        self._given = given

    def __len__(self) -> int:
        return self._given.count

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._given.name(index)


def _verify_files(given: _Files, title: str) -> Verification:
    found = Verification(title, left_out=list(given.left_out))
    copies = _Copies()
    labelled = 0
    image_files = ImageFiles(_FileNames(given), given.open)
    for index, outcome in each_decoded(image_files, 3, title):
        if isinstance(outcome, UnusableImage):
            _count_damage(found, given.name(index), outcome)
            continue
        split = given.split(index)
        label = given.label(index)
        labelled += label is not None
        _count_image(found, split, label, given.label_names, outcome)
        copies.add(outcome, index, split)
    usable = found.images.total()
    found.without_label = usable - labelled if labelled else 0
    copies.report(found, given.name)
    return found


def _verify_arrays(config: DataConfig) -> Verification:
    found = Verification(config.source)
    copies = _Copies()
    firsts: list[tuple[int, str]] = []
    count = 0
    failure: DataError | None = None
    for split in SPLITS:
        try:
            images = load(config, split)
        except DataError as error:
            # A source may lack a split; without any image the first error tells why.
            failure = failure or error
            continue
        firsts.append((count, split))
        for place in range(len(images)):
            pixels = np.asarray(images.images[place])
            label = None if images.labels is None else int(images.labels[place])
            _count_image(found, split, label, images.label_names, pixels)
            copies.add(pixels, count, split)
            count += 1
    if failure is not None and not count:
        raise failure

    def name(index: int) -> str:
        first, split = max(entry for entry in firsts if entry[0] <= index)
        return f"{split} {index - first}"

    copies.report(found, name)
    return found


def _count_damage(found: Verification, name: str, why: UnusableImage) -> None:
    # What follows a semicolon is advice, or differs from image to image.
    found.damage[str(why).partition(";")[0]] += 1
    if len(found.damaged) < MOST_NAMED:
        found.damaged.append(f"{printable(name)}: {why}")


def _count_image(
    found: Verification,
    split: str,
    label: int | None,
    names: tuple[str, ...],
    pixels: np.ndarray,
) -> None:
    found.images[split] += 1
    found.sizes[f"{pixels.shape[1]}x{pixels.shape[0]}"] += 1
    if label is not None:
        known = label < len(names)
        found.classes.setdefault(split, Counter())[names[label] if known else str(label)] += 1


class _Copies:
    """Finds images that are equal, pixel for pixel, in 17 bytes an image."""

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._numbers = array("Q")
        self._splits = array("B")

    def add(self, pixels: np.ndarray, number: int, split: str) -> None:
        """Take note of an image ``[height, width, channels]``."""
        self._hashes.append(int(image_hashes(pixels[None])[0]))
        self._numbers.append(number)
        self._splits.append(SPLITS.index(split))

    def report(self, found: Verification, name: Callable[[int], str]) -> None:
        """Put what was found into a report."""
        hashes = np.array(self._hashes)
        # Equal hashes become neighbours, in the order in which the images came.
        order = np.argsort(hashes, kind="stable")
        _, starts, counts = np.unique(hashes[order], return_index=True, return_counts=True)
        several = np.flatnonzero(counts > 1)
        for start, count in zip(starts[several], counts[several], strict=True):
            group = order[start : start + count].tolist()
            found.copied += len(group) - 1
            first = self._splits[group[0]]
            found.copied_across_splits += sum(self._splits[place] != first for place in group[1:])
            if len(found.copies) < MOST_NAMED:
                found.copies.append([printable(name(self._numbers[place])) for place in group])

"""``hf:PATH_OR_NAME``: data sets of the library ``datasets``, on disk or from the Hugging Face Hub.

A path is read from disk: a Parquet file, a folder of them, or a folder that ``save_to_disk`` wrote.
Anything else is the name of a data set on the Hub, which ``datasets`` downloads and keeps.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tessella import files
from tessella.config import DataConfig
from tessella.data.class_labels import (
    check_held_out,
    check_labels,
    names_of_ids,
    renumbered,
    sparse_ids,
)
from tessella.data.decode import MAX_BYTES
from tessella.data.encoded_split import EncodedSplit
from tessella.data.limits import FEW_FILES
from tessella.data.paths import READ_ERRORS, existing, find, name_list, one_line, printable
from tessella.data.source_kinds import Source, register_source
from tessella.data.splits import (
    ALL,
    SPLITS,
    by_position,
    fill_missing_at,
    hash_position,
    split_of_folder,
)
from tessella.data.transform import Part
from tessella.data.unusable_image import UnusableImage
from tessella.errors import ArtifactError, ConfigError, DataError

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "pixels")
LABEL_COLUMNS = ("label", "labels", "class", "cls", "target", "fine_label")
"""Names of columns that are tried, in this order, where the types leave a choice."""
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@register_source("hf")
class HuggingFaceSource(Source):
    """A data set of the library ``datasets``, whose images are files in a column."""

    about = "a data set of Hugging Face: Parquet, save_to_disk, or a name on the Hub"
    argument = "PATH_OR_NAME"
    allows_all = True
    sizes_may_differ = True
    streams = True
    takes_columns = True

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether it is a Parquet file, or a folder of some, or one that was saved."""
        if path.is_dir():
            # Only a guess, for an error message: a folder can hold millions of files.
            names = itertools.islice(path.glob("**/*"), FEW_FILES)
            return _is_saved(path) or any(name.suffix == ".parquet" for name in names)
        return path.suffix == ".parquet"

    def read(self, path: str, split: str, config: DataConfig) -> Part:
        """One split of a data set, in the order of its rows.

        The splits are those of the data set; valid, or else test, is taken from train where it is
        missing. A data set of a single split is divided by the hash of the row numbers.

        Raises:
            DataError: when ``datasets`` is not installed, or the data set is missing, damaged, or
                has no image column.
            ConfigError: when ``config.columns`` names columns that it does not have.
        """
        title = f"hf:{Path(path).name}"
        tables = _Tables(_opened(path), config.columns, title)
        splits, rule = tables.divided()
        places = np.arange(len(tables))
        if split != ALL:
            places = np.flatnonzero(splits == SPLITS.index(split))
        numbers = places[: config.limit or None].astype(np.uint32)
        labels, names = tables.classes(splits)
        if labels is not None:
            labels = labels[numbers]
            # Test sets of competitions mark their images as unlabelled.
            if len(labels) and (labels == _NO_LABEL).all():
                labels = None
        chosen = EncodedSplit(
            files=tables,
            split=split,
            numbers=numbers,
            labels=labels,
            label_names=names,
            rule="every image" if split == ALL else rule,
            title=title,
            places=["hf", path, tables.columns],
            identity=[tables.columns, tables.counts, tables.contents()],
            stamps=tables.stamps(),
        )
        return chosen.part(config)


_NO_LABEL = -1

HASHED_ROWS = 256
"""Rows, at most twice as many, whose image files identify a data set."""


class _Tables:
    """The rows of all splits of a data set, one after another.

    Args:
        parts: the ``datasets.Dataset`` of each split, by its name.
        columns: ``IMAGE`` or ``IMAGE,LABEL``; empty to find them.
        title: the source, for messages.
    """

    def __init__(self, parts: Mapping[str, Any], columns: str, title: str) -> None:
        self._title = title
        self._parts = dict(parts)
        self._ignored: list[str] = []
        known = [name for name in parts if split_of_folder(name)]
        # Without any split, all rows are divided; with some, further tables are something else.
        if known:
            self._ignored = [name for name in parts if name not in known]
            self._parts = {name: parts[name] for name in known}
        first = next(iter(self._parts.values()))
        self._features = first.features
        self._image, self._label = _columns(first.features, columns, title)
        self._images = [_encoded_column(part, self._image) for part in self._parts.values()]
        self._firsts = [0]
        for part in self._parts.values():
            self._firsts.append(self._firsts[-1] + len(part))

    def __len__(self) -> int:
        return self._firsts[-1]

    @property
    def columns(self) -> list[str]:
        """The columns of the images and of the labels, as far as there are any."""
        return [self._image, self._label]

    @property
    def counts(self) -> dict[str, int]:
        """The rows of each split."""
        return {name: len(part) for name, part in self._parts.items()}

    def contents(self) -> str:
        """A hash of the image files of some rows, which tells apart sets of equal columns."""
        digest = hashlib.sha256()
        # Spread over all rows: hashing each of millions would take longer than an epoch.
        for number in range(0, len(self), max(1, len(self) // HASHED_ROWS)):
            try:
                digest.update(self.encoded(number))
            except UnusableImage as error:
                digest.update(str(error).encode())
        return digest.hexdigest()

    def encoded(self, number: int) -> bytes:
        """The content of an image file."""
        part = bisect.bisect_right(self._firsts, number) - 1
        value = self._images[part][number - self._firsts[part]][self._image]
        content = value
        if isinstance(value, dict):
            content = value.get("bytes")
            path = value.get("path")
            # Only regular files of this machine are read, never an address.
            if content is None and path and find(str(path)) is not None:
                try:
                    content = files.read_bytes(Path(str(path)).expanduser(), MAX_BYTES)
                except ArtifactError as error:
                    raise UnusableImage(str(error)) from error
        if not isinstance(content, bytes):
            raise UnusableImage("the row holds no image file")
        return content

    def name(self, number: int) -> str:
        """``SPLIT/ROW`` of an image."""
        part = bisect.bisect_right(self._firsts, number) - 1
        return f"{list(self._parts)[part]}/{number - self._firsts[part]:08}"

    def divided(self) -> tuple[np.ndarray, str]:
        """The split of each row, as its number in ``SPLITS`` (``uint8 [n]``), and the rule."""
        named = [split_of_folder(name) for name in self._parts]
        # A single table is the whole data set, whatever it is called.
        if not all(named) or len(set(named)) < 2:
            rule = "by SHA-256 of 'tessella split:' and the row: 5 % test, 5 % valid"
            return by_position(self._positions()), rule
        splits = np.empty(len(self), np.uint8)
        for number, name in enumerate(named):
            splits[self._firsts[number] : self._firsts[number + 1]] = SPLITS.index(name)
        rule = f"the splits {', '.join(self._parts)}"
        if self._ignored:
            rule += f" (without {', '.join(self._ignored)})"
        if {"valid", "test"} <= set(named):
            return splits, rule
        filled = fill_missing_at(self._positions(), splits)
        return splits, rule + (filled and f"{filled} and the row")

    def classes(self, splits: np.ndarray) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """The class of each row, ``int64 [n]``, and the names of the classes."""
        if not self._label:
            return None, ()
        values = [np.asarray(part[self._label][:]) for part in self._parts.values()]
        every = np.concatenate(values)
        if every.dtype.kind in "UO":
            words, ranks = np.unique(every.astype(str), return_inverse=True)
            return ranks.astype(np.int64), tuple(map(str, words))
        # Rows without a label stay apart: they have no class.
        labelled = every != _NO_LABEL
        what = f"the column {self._label} of {self._title}"
        labels = every.astype(np.int64)
        labels[labelled] = check_labels(every[labelled], int(labelled.sum()), what)
        in_splits = {}
        titles = {}
        for number, split in enumerate(SPLITS):
            chosen = labelled & (splits == number)
            if chosen.any():
                in_splits[split] = labels[chosen]
                titles[split] = f"{split} of {self._title}"
        check_held_out(in_splits, titles)
        names = getattr(self._features[self._label], "names", None)
        if names:
            return labels, tuple(names)
        ids = sparse_ids([labels[labelled]], what)
        if ids is None:
            return labels, ()
        labels[labelled] = renumbered(labels[labelled], ids)
        return labels, names_of_ids(ids)

    def stamps(self) -> list[object]:
        """What changes when the files of the data set do."""
        stamps: list[object] = []
        for name, part in self._parts.items():
            stamps.append([name, len(part)])
            for entry in part.cache_files:
                facts = Path(entry["filename"]).stat()
                stamps.append([entry["filename"], facts.st_size, facts.st_mtime_ns])
        return stamps

    def _positions(self) -> np.ndarray:
        return np.array([hash_position(self.name(number)) for number in range(len(self))])


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            'hf: needs the library datasets: pip install "tessella[data]" (or datasets)'
        ) from error
    return datasets


def _opened(path: str) -> dict[str, Any]:
    """The tables of a data set by the names of their splits.

    Raises:
        DataError: when it is not there or cannot be read.
    """
    datasets = _library()
    location = find(path) if path else None
    try:
        if location is not None:
            found = _from_disk(datasets, location)
        elif _NAME.fullmatch(path):
            found = datasets.load_dataset(path)
        else:
            existing(path, HuggingFaceSource.form)  # raises, and suggests a name
            raise AssertionError
    except (*READ_ERRORS, LookupError) as error:
        raise DataError(f"hf:{path} cannot be read: {one_line(error)}") from error
    if isinstance(found, Mapping):
        return dict(found)
    return {str(found.split or "all"): found}


def _from_disk(datasets: Any, location: Path) -> Any:
    if location.is_file():
        if location.suffix != ".parquet":
            raise DataError(f"{location} is no Parquet file and no folder of a data set")
        return datasets.load_dataset("parquet", data_files=str(location))
    if _is_saved(location):
        return datasets.load_from_disk(str(location))
    if not any(location.glob("**/*.parquet")):
        there = name_list([printable(path.name) for path in location.iterdir()])
        raise DataError(
            f"{location} has no Parquet files, and save_to_disk did not write it; it holds {there}"
        )
    return datasets.load_dataset(str(location))


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _columns(features: Mapping[str, Any], given: str, title: str) -> tuple[str, str]:
    """The columns of the images and of the labels; the latter is empty where there are none."""
    if given:
        image, _, label = given.replace(" ", "").partition(",")
        for name in (image, label):
            if name and name not in features:
                raise ConfigError(
                    f"data.columns names {name!r}; the columns of {title} are {', '.join(features)}"
                )
        return image, label
    images = [name for name in features if _holds_images(features[name])]
    labels = [name for name in features if type(features[name]).__name__ == "ClassLabel"]
    if not labels:
        labels = [name for name in LABEL_COLUMNS if name in features]
    image = _one_of(images, IMAGE_COLUMNS)
    if not image:
        raise DataError(
            f"{title} has {len(images)} columns that may hold images; its columns are"
            f" {', '.join(features)}: name them with data.columns=IMAGE or data.columns=IMAGE,LABEL"
        )
    return image, _one_of(labels, LABEL_COLUMNS)


def _one_of(found: list[str], preferred: tuple[str, ...]) -> str:
    """The only column, or the first with a usual name; empty if there is none."""
    if len(found) == 1:
        return found[0]
    for name in preferred:
        if name in found:
            return name
    return ""


def _holds_images(feature: Any) -> bool:
    """Whether a column has encoded images: an Image feature, or bytes that may be one."""
    if type(feature).__name__ == "Image":
        return True
    if isinstance(feature, Mapping):
        return "bytes" in feature
    return getattr(feature, "dtype", "") in ("binary", "large_binary")


def _encoded_column(part: Any, column: str) -> Any:
    """A table of one column, whose images stay encoded."""
    datasets = _library()
    alone = part.select_columns([column])
    if type(part.features[column]).__name__ == "Image":
        alone = alone.cast_column(column, datasets.Image(decode=False))
    return alone

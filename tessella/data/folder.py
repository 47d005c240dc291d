"""``folder:PATH``: images in a folder, its sub-folders, or a ``.zip`` file of them."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from PIL import Image

from tessella.config import DataConfig
from tessella.data.archive import open_archive
from tessella.data.decode import UnusableImage, is_image, known_kinds, libraries, quiet
from tessella.data.decoded_cache import Writer, digest, stored
from tessella.data.image_files import Files, decode_files
from tessella.data.paths import (
    READ_ERRORS,
    existing,
    last_name,
    listing,
    one_line,
    passing,
    passing_ends,
    printable,
)
from tessella.data.splits import ALL, FOLDERS, by_folders, by_hash, divide
from tessella.data.transform import Part, parse_size
from tessella.errors import DataError

RULE = "SHA-256 of 'tessella split:' and the relative path: 5 % test, 5 % valid, the rest train"
_FOREIGN = ("__MACOSX",)
UNREAD = {
    **dict.fromkeys((".heic", ".heics", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys(
        (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"), "camera raw"
    ),
    ".jxl": "JPEG XL",
    ".psd": "PSD",
    ".svg": "SVG",
    ".ico": "ICO",
    ".pcx": "PCX",
}
"""Extensions of images that are not read, whatever the file holds (camera raws are TIFF files of a
small preview), and what they are called."""


@dataclass(frozen=True)
class _Place:
    """What lies in a folder or a zip file.

    Args:
        names: relative paths with ``/`` between their parts, sorted.
        stamps: facts about each file that change when its content does.
        open: opens the file of a name, from any thread.
    """

    names: Sequence[str]
    stamps: Sequence[tuple[int, ...]]
    open: Callable[[str], BufferedIOBase]


def read_folder(path: str, split: str, config: DataConfig) -> Part:
    """One split of the images under a folder or in a zip file, sorted by relative path.

    Files and folders whose name begins with a dot are passed over, and so is ``__MACOSX``. What is
    an image is decided by its content; a file that is none, or is damaged, is skipped and named.
    Files that are not even named like an image are no failures; the others are, those of
    :data:`UNREAD` among them. Where every image lies in a sub-folder, the sub-folder is its label:
    the first part of its path, after the parts that all images share with a further sub-folder
    below them. Where these parts are the names of splits they are the splits, and labels come from
    the sub-folders below (:func:`tessella.data.splits.by_folders`); else the split is taken by
    :func:`tessella.data.splits.by_hash`. ``all`` takes every image. Only files of the split are
    decoded: once, into a file that is used until a file of the folder is added, removed or changed,
    or another size, crop, limit or number of channels is asked for
    (:mod:`tessella.data.decoded_cache`).

    Raises:
        DataError: when there is no image, more than 20 % of the files of the split (and at least
            three) are unusable, one cannot be read for a reason outside of it, or the decoded
            images cannot be kept.
        InputError: when images differ in size and ``config.size`` is empty.
    """
    root = existing(path, "folder:PATH")
    with _open(root) as archive:
        place = _in_zip(archive) if archive else _in_folder(root)

        def make(writer: Writer) -> dict[str, Any]:
            return _decode(place, split, config, writer, root)

        images, facts = stored(
            _key(root, split, config), _listing_key(place), make, f"folder:{last_name(root)}"
        )
    return Part(
        images=images,
        labels=None if facts["labels"] is None else np.array(facts["labels"], np.int64),
        label_names=tuple(facts["label_names"]),
        levels=256,
        split_rule="every image" if split == ALL else facts["split_rule"],
        names=tuple(facts["names"]),
        skipped=tuple(facts["skipped"]),
        resampled=facts["resampled"],
    )


def _decode(
    place: _Place, split: str, config: DataConfig, writer: Writer, root: Path
) -> dict[str, Any]:
    """Decode a split into ``writer``; returns what is to be known of it besides its pixels."""
    with quiet():
        mask = [_may_be_image(name, place.open, root) for name in place.names]
    names = [name for name, good in zip(place.names, mask, strict=True) if good]
    others = [printable(name) for name, good in zip(place.names, mask, strict=True) if not good]
    if not names:
        raise DataError(f"{root} has no images; it holds {listing(others)}")
    division = _division(names)
    splits, label_names = division.splits, division.label_names
    labels = division.labels(split)
    mine = [index for index, part in enumerate(splits) if split in (part, ALL)]
    files = Files(
        [names[index] for index in mine],
        lambda index: _open_image(place, names[mine[index]]),
        None if labels is None else [labels[index] for index in mine],
    )
    title = f"folder:{last_name(root)}"
    decoded = decode_files(
        files, config, writer.append, channels=config.channels or 3, place=f"{title}, {split}"
    )
    return {
        "names": decoded.names,
        "labels": None if labels is None else decoded.labels,
        "label_names": list(label_names),
        "skipped": [*decoded.skipped, *(f"{name}: not an image" for name in others)],
        "resampled": decoded.resampled,
        "split_rule": division.rule,
        "source": printable(
            str(root.resolve())
        ),  # this and the rest for whoever looks into the cache
        "split": split,
        "size": config.size,
        "crop": config.crop if config.size else "",
        "limit": config.limit,
    }


def _key(root: Path, split: str, config: DataConfig) -> str:
    """The place of the decoded images in the cache: where they come from and what is made of
    them."""
    size = parse_size(config.size, "size")
    crop = config.crop if size else ""
    return digest(
        printable(str(root.resolve())), split, size, crop, config.channels or 3, config.limit
    )


def _listing_key(place: _Place) -> str:
    """What lies there, and what decodes it."""
    return digest(libraries(), list(zip(place.names, place.stamps, strict=True)))


def _open(place: Path) -> AbstractContextManager[zipfile.ZipFile | None]:
    """The zip file to read from, or None for a folder."""
    if place.is_dir():
        return nullcontext()
    try:
        return open_archive(place)
    except READ_ERRORS as error:
        raise DataError(
            f"folder:PATH takes a folder or a .zip file, and {place} is neither: {one_line(error)}"
        ) from error


def _in_zip(archive: zipfile.ZipFile) -> _Place:
    found = {
        info.filename: (info.CRC, info.file_size)
        for info in archive.infolist()
        if not info.is_dir() and _visible(info.filename.split("/"))
    }
    names = sorted(found)
    return _Place(
        names,
        [found[name] for name in names],
        lambda name: cast(BufferedIOBase, archive.open(archive.getinfo(name))),
    )


def _in_folder(root: Path) -> _Place:
    """The files under a folder. Links to folders are followed, each folder is visited once."""
    found: dict[str, tuple[int, ...]] = {}
    visited: set[str] = set()
    for folder, inner, names in os.walk(root, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        if real in visited:
            inner.clear()
            continue
        visited.add(real)
        inner[:] = sorted(name for name in inner if _visible([name]))
        for name in filter(lambda name: _visible([name]), names):
            file = Path(folder, name)
            if stamp := _stamp(file):
                found[file.relative_to(root).as_posix()] = stamp
    names = sorted(found)
    return _Place(names, [found[name] for name in names], lambda name: (root / name).open("rb"))


def _stamp(file: Path) -> tuple[int, ...]:
    """Size, time of change and permissions; empty for what is not a file (a dead link, a pipe that
    might never end)."""
    try:
        facts = file.stat()
    except OSError:
        return ()
    return (facts.st_size, facts.st_mtime_ns, facts.st_mode) if stat.S_ISREG(facts.st_mode) else ()


def _refuse(error: OSError) -> None:
    raise DataError(f"a folder cannot be read: {one_line(error)}") from error


def _visible(parts: Iterable[str]) -> bool:
    return not any(part.startswith(".") or part in _FOREIGN for part in parts)


def _may_be_image(name: str, opener: Callable[[str], BufferedIOBase], root: Path) -> bool:
    """Whether a file is named like an image, or else has the content of one."""
    extension = PurePosixPath(name).suffix.lower()
    if extension in UNREAD or Image.registered_extensions().get(extension) in known_kinds():
        return True
    with passing_ends(f"{root}, {printable(name)}"):
        try:
            with opener(name) as file:
                return is_image(file)
        except READ_ERRORS as error:
            if passing(error):
                raise
            return False


def _open_image(place: _Place, name: str) -> BufferedIOBase:
    if kind := UNREAD.get(PurePosixPath(name).suffix.lower()):
        raise UnusableImage(f"{kind} is not read here; convert it to JPEG or PNG")
    return place.open(name)


@dataclass(frozen=True)
class _Division:
    """How a folder is divided.

    Args:
        splits: of each image.
        folders: the sub-folders each image lies in, besides those that all share and those that say
            its split.
        rule: how the splits were taken, in words.
        given: whether the folders said the splits.
    """

    splits: list[str]
    folders: list[list[str]]
    rule: str
    given: bool

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes; ``()`` where there are none."""
        return (
            tuple(sorted({parts[0] for parts in self.folders if parts}))
            if self.given or all(self.folders)
            else ()
        )

    def labels(self, split: str) -> list[int] | None:
        """The class of each image; None where images of this split (without given splits: any
        images) have none."""
        concerned = [not self.given or split in (part, ALL) for part in self.splits]
        if not all(parts for parts, mine in zip(self.folders, concerned, strict=True) if mine):
            return None
        number = {label: i for i, label in enumerate(self.label_names)}
        return [number[parts[0]] if parts else 0 for parts in self.folders]


def _division(names: list[str]) -> _Division:
    """How images are divided. Files that cannot be read here have no say in it.

    Raises:
        DataError: when images lie beside folders that are splits.
    """
    readable = [name for name in names if PurePosixPath(name).suffix.lower() not in UNREAD] or names
    shared = _shared([name.split("/")[:-1] for name in readable])
    below = {name: name.split("/")[:-1][shared:] for name in names}
    folders = list(below.values())
    told = {below[name][0] for name in readable if below[name]}
    stray = [name for name in readable if not below[name]]
    if not divide(told):
        # What cannot be read is never labelled, so that any class will do for it.
        classes = [[] if stray else parts or sorted(told)[:1] for parts in folders]
        return _Division(by_hash(names), classes, RULE + _not_splits(told), False)
    if stray:
        raise DataError(
            f"the folders {', '.join(sorted(told))} are splits, and {printable(stray[0])} lies beside them: "
            "move it into one of them, or elsewhere"
        )
    splits, rule = by_folders(names, [parts[0] if parts else sorted(told)[0] for parts in folders])
    inner = [parts[1:] for parts in folders]
    deeper = _shared([parts for parts in inner if parts])
    return _Division(splits, [parts[deeper:] for parts in inner], rule, True)


def _not_splits(told: set[str]) -> str:
    """What is to be said where some sub-folders are named like splits and are none."""
    alike = sorted(name for name in told if name.lower() in FOLDERS)
    others = sorted(told - {*alike})
    if len(alike) < 2 or not others:
        return ""
    return f" (the folders {', '.join(alike)} are not splits but classes, since {others[0]} lies beside them)"


def _shared(folders: list[list[str]]) -> int:
    """How many leading parts all these paths share, with a further folder below them."""
    count, shortest = 0, min(map(len, folders), default=0)
    while count + 1 < shortest and len({parts[count] for parts in folders}) == 1:
        count += 1
    return count

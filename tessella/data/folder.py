"""``folder:PATH``: images in a folder, its sub-folders, or a ``.zip`` file of them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import cast

from PIL import Image

from tessella.config import DataConfig
from tessella.data.decode import is_image
from tessella.data.files import READ_ERRORS, existing, last_name, listing, one_line
from tessella.data.splits import by_hash
from tessella.data.transform import Entry, Part, fit_files
from tessella.errors import DataError

RULE = "SHA-256 of 'tessella split:' and the relative path: 5 % test, 5 % valid, the rest train"

Files = dict[str, Callable[[], BufferedIOBase]]
"""Relative path, with ``/`` between its parts, to what opens the file."""


def read_folder(path: str, split: str, config: DataConfig) -> Part:
    """One split of the images under a folder or in a zip file, sorted by relative path.

    Files and folders whose name begins with a dot are passed over. What is an image is decided by its content; a file
    that is none, or is damaged, is skipped and named. Where every image lies in a sub-folder, the sub-folder is its
    label: the first part of its path, after the parts that all images share with a further sub-folder below them. The
    split is taken by :func:`tessella.data.splits.by_hash`, and only its files are decoded.

    Raises:
        DataError: when there is no image, or more than 20 % of the files of the split are unusable.
        InputError: when images differ in size and ``config.size`` is empty.
    """
    place = existing(path, "folder:PATH")
    title = f"folder:{last_name(place)}"
    with _open(place) as archive:
        files = _in_zip(archive) if archive else _in_folder(place)
        others = [name for name, opener in files.items() if not _may_be_image(name, opener)]
        names = sorted(set(files) - set(others))
        if not names:
            raise DataError(f"{path} has no images; it holds {listing(others)}")
        label_names, labels = _labels(names)
        entries = [
            Entry(name, files[name], None if labels is None else labels[name])
            for name, part in zip(names, by_hash(names), strict=True)
            if part == split
        ]
        part = fit_files(entries, config, channels=config.channels or 3, place=title)
    skipped = (*part.skipped, *(f"{name}: not an image" for name in sorted(others)))
    return replace(part, label_names=label_names, split_rule=RULE, skipped=skipped)


def _open(place: Path) -> AbstractContextManager[zipfile.ZipFile | None]:
    """The zip file to read from, or None for a folder."""
    if place.is_dir():
        return nullcontext()
    try:
        return zipfile.ZipFile(place)
    except READ_ERRORS as error:
        raise DataError(
            f"folder:PATH takes a folder or a .zip file, and {place} is neither: {one_line(error)}"
        ) from error


def _in_zip(archive: zipfile.ZipFile) -> Files:
    return {
        info.filename: partial(_open_member, archive, info)
        for info in archive.infolist()
        if not info.is_dir() and _visible(info.filename.split("/"))
    }


def _in_folder(root: Path) -> Files:
    """The files under a folder. Links to folders are followed, each folder is visited once."""
    files: Files = {}
    visited: set[str] = set()
    for folder, inner, names in os.walk(root, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        if real in visited:
            inner.clear()
            continue
        visited.add(real)
        inner[:] = sorted(name for name in inner if _visible([name]))
        for name in names:
            file = Path(folder, name)
            if _visible([name]) and file.is_file():  # not a pipe or a device, which might never end
                files[file.relative_to(root).as_posix()] = partial(_open_file, file)
    return files


def _open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BufferedIOBase:
    return cast(BufferedIOBase, archive.open(info))


def _open_file(file: Path) -> BufferedIOBase:
    return file.open("rb")


def _refuse(error: OSError) -> None:
    raise DataError(f"a folder cannot be read: {one_line(error)}") from error


def _visible(parts: Iterable[str]) -> bool:
    return not any(part.startswith(".") for part in parts)


def _may_be_image(name: str, opener: Callable[[], BufferedIOBase]) -> bool:
    """Whether a file is named like an image, or else has the content of one."""
    kind = Image.registered_extensions().get(PurePosixPath(name).suffix.lower())
    if kind in Image.OPEN:
        return True
    try:
        with opener() as file:
            return is_image(file)
    except READ_ERRORS:
        return False


def _labels(names: list[str]) -> tuple[tuple[str, ...], dict[str, int] | None]:
    """Class names and the class of each path; ``((), None)`` unless every image lies in a sub-folder."""
    folders = [name.split("/")[:-1] for name in names]
    while all(len(parts) > 1 for parts in folders) and len({parts[0] for parts in folders}) == 1:
        folders = [parts[1:] for parts in folders]
    if not all(folders):
        return (), None
    label_names = sorted({parts[0] for parts in folders})
    number = {label: i for i, label in enumerate(label_names)}
    return tuple(label_names), {name: number[parts[0]] for name, parts in zip(names, folders, strict=True)}

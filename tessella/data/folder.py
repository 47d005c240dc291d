"""``folder:PATH``: images in a folder, its sub-folders, or a ``.zip`` file of them."""

from __future__ import annotations

import itertools
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import TypedDict, cast

import numpy as np
from PIL import Image

from tessella.config import DataConfig
from tessella.data.archive import open_archive
from tessella.data.caller_warning import warn_caller
from tessella.data.decode import UnusableImage, is_image, known_kinds, libraries, quiet
from tessella.data.decoded_cache import Writer, digest, stored
from tessella.data.folder_layouts import (
    LAYOUT_VERSION,
    Listing,
    divide_listing,
)
from tessella.data.image_files import Files, decode_files
from tessella.data.limits import PIECE
from tessella.data.other_formats import HEAD, describe, describe_content, with_way_out
from tessella.data.paths import (
    READ_ERRORS,
    last_name,
    listing,
    one_line,
    passing,
    passing_ends,
    printable,
)
from tessella.data.source_kinds import Source, refuse_other_kind, register_source
from tessella.data.splits import ALL
from tessella.data.transform import Part, parse_size
from tessella.errors import DataError

MAX_LIST_BYTES = 4 * PIECE
"""Bytes of a list of labels or splits beside the images."""
FEW_FILES = 1000
"""Files that are looked at to tell whether a folder is one of images."""
_FOREIGN = ("__MACOSX",)
_CAMERA_RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2")
UNREAD = {
    **dict.fromkeys((".heic", ".heics", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys(_CAMERA_RAW, "camera raw"),
    ".jxl": "JPEG XL",
    ".psd": "PSD",
    ".svg": "SVG",
    ".ico": "ICO",
    ".pcx": "PCX",
}
"""Extensions of images that are not read, whatever the file holds (camera raws are TIFF files of a
small preview), and what they are called."""


class _Facts(TypedDict):
    """Facts that are kept of a decoded split besides its pixels."""

    names: list[str]
    labels: list[int] | None
    label_names: list[str]
    skipped: list[str]
    resampled: bool
    split_rule: str
    notes: list[str]
    # The rest is for people who look into the cache.
    source: str
    split: str
    size: str
    crop: str
    limit: int


@dataclass(frozen=True)
class _Place:
    """The files in a folder or a zip file.

    Args:
        names: relative paths with ``/`` between their parts, sorted.
        stamps: facts about each file that change when its content does.
        open: opens the file of a name, from any thread.
    """

    names: Sequence[str]
    stamps: Sequence[tuple[int, ...]]
    open: Callable[[str], BufferedIOBase]

    def read_text(self, name: str) -> str:
        """A list beside the images, as text.

        Raises:
            DataError: when it cannot be read or is too large for a list.
        """
        # One byte more than allowed tells a list of exactly that size from a larger file.
        try:
            with self.open(name) as file:
                content = file.read(MAX_LIST_BYTES + 1)
        except READ_ERRORS as error:
            raise DataError(f"{printable(name)} cannot be read: {one_line(error)}") from error
        if len(content) > MAX_LIST_BYTES:
            raise DataError(
                f"{printable(name)} has more than {MAX_LIST_BYTES:,} bytes, too many for a list"
            )
        return content.decode("utf-8-sig", "surrogateescape")


@register_source("folder")
class FolderSource(Source):
    """Image files, decoded once into a file of their pixels."""

    about = "a folder or a .zip file of images"
    allows_all = True
    sizes_may_differ = True

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether image files lie in a folder, its first sub-folders, or a zip file."""
        try:
            if path.is_dir():
                # A guess for an error message: data sets can hold millions of files.
                names = []
                for file in itertools.islice(path.glob("**/*"), FEW_FILES):
                    names.append(file.name)
            elif zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    names = archive.namelist()
            else:
                return False
        except READ_ERRORS:
            return False
        return any(map(_looks_like_image, names))

    def read(self, path: str, split: str, config: DataConfig) -> Part:
        """One split of the images under a folder or in a zip file, sorted by relative path.

        Files and folders whose name begins with a dot are passed over, and so is ``__MACOSX``. What
        is an image is decided by its content; a file that is none, or is damaged, is skipped and
        named. Files that are not even named like an image are no failures; the others are, those of
        :data:`UNREAD` among them. Splits and classes come from the folders or from lists beside the
        images (:mod:`tessella.data.folder_layouts`); where nothing says the splits, they are taken
        by :func:`tessella.data.splits.by_hash`. ``all`` takes every image. Only files of the split
        are decoded: once, into a file that is used until a file of the folder is added, removed or
        changed, or another size, crop, limit or number of channels is asked for
        (:mod:`tessella.data.decoded_cache`).

        Raises:
            DataError: when there is no image, the lists or classes do not fit the images, more than
                20 % of the files of the split (and at least three) are unusable, one cannot be read
                for a reason outside of it, or the decoded images cannot be kept.
            InputError: when images differ in size and ``config.size`` is empty.
        """
        root = self.locate(path)
        with _open(root) as archive:
            place = _in_zip(archive) if archive else _in_folder(root)

            # Called only where nothing fitting is in the cache.
            def make(writer: Writer) -> dict[str, object]:
                return dict(_decode(place, split, config, writer, root))

            images, kept = stored(
                _key(root, split, config), _listing_key(place), make, f"folder:{last_name(root)}"
            )
        facts = cast(_Facts, kept)
        # Kept with the pixels, so that they are heard of each time and not only the first.
        for note in facts["notes"]:
            warn_caller(f"folder:{last_name(root)}: {note}")
        labels = None
        if facts["labels"] is not None:
            labels = np.array(facts["labels"], np.int64)
        return Part(
            images=images,
            labels=labels,
            label_names=tuple(facts["label_names"]),
            levels=256,
            split_rule="every image" if split == ALL else facts["split_rule"],
            names=tuple(facts["names"]),
            skipped=tuple(facts["skipped"]),
            resampled=facts["resampled"],
        )


def _decode(place: _Place, split: str, config: DataConfig, writer: Writer, root: Path) -> _Facts:
    """Decode a split into ``writer``; returns what is to be known of it besides its pixels."""
    names = []
    others = []
    with quiet():
        for name in place.names:
            if _may_be_image(name, place.open, root):
                names.append(name)
            else:
                others.append(name)
    if not names:
        raise DataError(_no_images(place, others, root))
    division = divide_listing(Listing(names, _unreadable(names), others, place.read_text), split)
    labels = division.labels(split)
    # Other splits are divided along with this one, since the rules look at all images, but only
    # this one is decoded.
    chosen: list[str] = []
    chosen_labels: list[int] = []
    for index, part in enumerate(division.splits):
        if split in (part, ALL):
            chosen.append(names[index])
            if labels is not None:
                chosen_labels.append(labels[index])

    def open_chosen(index: int) -> BufferedIOBase:
        return _open_image(place, chosen[index])

    files = Files(chosen, open_chosen, None if labels is None else chosen_labels)
    title = f"folder:{last_name(root)}"
    decoded = decode_files(
        files, config, writer.append, channels=config.channels or 3, place=f"{title}, {split}"
    )
    skipped = list(decoded.skipped)
    for name in others:
        skipped.append(f"{printable(name)}: not an image")
    return {
        "names": decoded.names,
        "labels": decoded.labels if labels is not None else None,
        "label_names": list(division.label_names),
        "skipped": skipped,
        "resampled": decoded.resampled,
        "split_rule": division.rule,
        "notes": division.notes,
        "source": printable(str(root.resolve())),
        "split": split,
        "size": config.size,
        "crop": config.crop if config.size else "",
        "limit": config.limit,
    }


def _no_images(place: _Place, others: list[str], root: Path) -> str:
    """The message for a folder without images: what is there, and how it is read where that is
    known."""
    # An .npz file is a zip as well, and a folder may hold idx files or batches of CIFAR-10.
    refuse_other_kind(root, FolderSource)
    there = listing(list(map(printable, others)))
    described = ""
    for name in others[:FEW_FILES]:
        try:
            with place.open(name) as file:
                described = describe_content(PurePosixPath(name).name, file.read(HEAD))
        except READ_ERRORS:
            continue
        # The first file that says something speaks for the others, which are mostly of its kind.
        if described:
            break
    return with_way_out(f"{root} has no images; it holds {there}", described)


def _unreadable(names: Iterable[str]) -> frozenset[str]:
    """The files of a kind that is not read; they have no say in how a folder is divided."""
    unreadable = set()
    for name in names:
        if PurePosixPath(name).suffix.lower() in UNREAD:
            unreadable.add(name)
    return frozenset(unreadable)


def _key(root: Path, split: str, config: DataConfig) -> str:
    """The place of the decoded images in the cache: where they come from and what is made of
    them."""
    size = parse_size(config.size, "size")
    crop = config.crop if size else ""  # without a size nothing is cropped
    channels = config.channels or 3
    where = printable(str(root.resolve()))
    return digest(where, split, size, crop, channels, config.limit, LAYOUT_VERSION)


def _listing_key(place: _Place) -> str:
    """A hash of the files that lie there, and of the libraries that decode them."""
    return digest(libraries(), list(zip(place.names, place.stamps, strict=True)))


def _open(place: Path) -> AbstractContextManager[zipfile.ZipFile | None]:
    """The zip file to read from, or None for a folder."""
    if place.is_dir():
        return nullcontext()
    try:
        return open_archive(place)
    except READ_ERRORS as error:
        message = (
            f"folder:PATH takes a folder or a .zip file, and {place} is neither: {one_line(error)}"
        )
        raise DataError(with_way_out(message, describe(place))) from error


def _in_zip(archive: zipfile.ZipFile) -> _Place:
    found = {}
    for info in archive.infolist():
        # The checksum changes with the content, whatever times an archive says.
        if not info.is_dir() and _visible(info.filename.split("/")):
            found[info.filename] = (info.CRC, info.file_size)
    names = sorted(found)

    # Zip files may be read by several threads at once; ZipFile guards the file itself.
    def open_member(name: str) -> BufferedIOBase:
        return cast(BufferedIOBase, archive.open(archive.getinfo(name)))

    return _Place(names, [found[name] for name in names], open_member)


def _in_folder(root: Path) -> _Place:
    """The files under a folder. Links to folders are followed, each folder is visited once."""
    found: dict[str, tuple[int, ...]] = {}
    visited: set[str] = set()
    for folder, inner, names in os.walk(root, followlinks=True, onerror=_refuse):
        # A link to a folder above would lead round in a circle.
        real = os.path.realpath(folder)
        if real in visited:
            inner.clear()
            continue
        visited.add(real)
        # Changed in place, which tells os.walk where to go; sorted, so that of two links to one
        # folder the same is followed on every machine.
        inner[:] = sorted(filter(_is_visible, inner))
        for name in filter(_is_visible, names):
            file = Path(folder, name)
            stamp = _stamp(file)
            if stamp:
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
    if not stat.S_ISREG(facts.st_mode):
        return ()
    return (facts.st_size, facts.st_mtime_ns, facts.st_mode)


def _refuse(error: OSError) -> None:
    raise DataError(f"a folder cannot be read: {one_line(error)}") from error


def _visible(parts: Iterable[str]) -> bool:
    """Whether no part of a path is hidden or foreign."""
    return all(map(_is_visible, parts))


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in _FOREIGN


def _looks_like_image(name: str) -> bool:
    """Whether a file is named like an image."""
    extension = PurePosixPath(name).suffix.lower()
    return extension in UNREAD or Image.registered_extensions().get(extension) in known_kinds()


def _may_be_image(name: str, opener: Callable[[str], BufferedIOBase], root: Path) -> bool:
    """Whether a file is named like an image, or else has the content of one."""
    # A file that is named like an image counts as one even if it is damaged: it is a failure then,
    # which must not go unnoticed. Only other files are opened to see what they are.
    if _looks_like_image(name):
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
    kind = UNREAD.get(PurePosixPath(name).suffix.lower())
    if kind:
        raise UnusableImage(f"{kind} is not read here; convert it to JPEG or PNG")
    return place.open(name)

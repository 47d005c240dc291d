"""``folder:PATH``: images in a folder, its sub-folders, or a ``.zip`` file of them."""

from __future__ import annotations

import codecs
import itertools
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import TypedDict, cast

import numpy as np
from PIL import Image

from tessella.config import DataConfig
from tessella.data.archive import open_archive
from tessella.data.caller_warning import warn_caller
from tessella.data.decode import (
    UnusableImage,
    is_image,
    known_kinds,
    libraries,
    without_pillow_warnings,
)
from tessella.data.decoded_cache import Writer, cached_images, digest
from tessella.data.folder_layouts import (
    LAYOUT_VERSION,
    Listing,
    divide_listing,
)
from tessella.data.image_files import ImageFiles, decode_files
from tessella.data.limits import FEW_FILES, PIECE
from tessella.data.other_formats import HEAD, describe, describe_content, with_advice
from tessella.data.paths import (
    READ_ERRORS,
    is_transient,
    last_name,
    name_list,
    one_line,
    printable,
    transient_as_data_error,
)
from tessella.data.source_kinds import Source, refuse_other_kind, register_source
from tessella.data.splits import ALL, SPLITS
from tessella.data.transform import Part, parse_size
from tessella.errors import DataError

MAX_LIST_BYTES = 4 * PIECE
"""Largest list of labels or splits that is read, in bytes."""
_IGNORED_NAMES = ("__MACOSX",)
_CAMERA_RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2")
UNSUPPORTED = {
    **dict.fromkeys((".heic", ".heics", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys(_CAMERA_RAW, "camera raw"),
    ".jxl": "JPEG XL",
    ".psd": "PSD",
    ".svg": "SVG",
    ".ico": "ICO",
    ".pcx": "PCX",
}
"""Formats that are not read, by file extension, whatever the file contains. (Camera raws are TIFF
files that contain a small preview.)"""


class _Facts(TypedDict):
    """Facts about a decoded split that are cached with its pixels."""

    names: list[str]
    labels: list[int] | None
    label_names: list[str]
    skipped: list[str]
    resampled: bool
    split_rule: str
    notes: list[str]
    # The rest is for people who inspect the cache.
    source: str
    split: str
    size: str
    crop: str
    limit: int


@dataclass(frozen=True)
class _ImageTree:
    """The files in a folder or a zip file.

    Args:
        names: relative paths with ``/`` between their parts, sorted.
        stamps: for each file, numbers that change when its content does.
        sizes: bytes of each file.
        open: opens a file by its name; may be called from any thread.
    """

    names: Sequence[str]
    stamps: Sequence[tuple[int, ...]]
    sizes: Sequence[int]
    open: Callable[[str], BufferedIOBase]

    def read_text(self, name: str) -> str:
        """The text of a list of labels or splits that comes with the images.

        Raises:
            DataError: when it cannot be read or is too large for a list.
        """
        # One byte more than allowed distinguishes a list of exactly that size from a larger file.
        try:
            with self.open(name) as file:
                content = file.read(MAX_LIST_BYTES + 1)
        except READ_ERRORS as error:
            raise DataError(f"{printable(name)} cannot be read: {one_line(error)}") from error
        if len(content) > MAX_LIST_BYTES:
            raise DataError(
                f"{printable(name)} has more than {MAX_LIST_BYTES:,} bytes, too many for a list"
            )
        encoding = _encoding(content)
        # Bytes that are no UTF-8 stay recognizable, as in file names; UTF-16 cannot keep them.
        errors = "surrogateescape"
        if encoding.startswith("utf-16"):
            errors = "replace"
        return content.decode(encoding, errors)


def _encoding(content: bytes) -> str:
    """The encoding of a text file: UTF-16, as spreadsheets write it, or else UTF-8."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Without a mark, the zero halves of the first ASCII characters tell.
    if content[1:4:2] == b"\0\0":
        return "utf-16-le"
    if content[0:3:2] == b"\0\0":
        return "utf-16-be"
    return "utf-8-sig"


@register_source("folder")
class FolderSource(Source):
    """Image files in a folder or a zip file, decoded once into a file of pixels."""

    about = "a folder or a .zip file of images"
    allows_all = True
    sizes_may_differ = True

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether there are image files in a folder, its sub-folders, or a zip file."""
        try:
            if path.is_dir():
                # Only a guess, for an error message: data sets can have millions of files.
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
        return any(map(looks_like_image, names))

    def read(self, path: str, split: str, config: DataConfig) -> Part:
        """One split of the images under a folder or in a zip file, sorted by relative path.

        Files and folders whose name begins with a dot are ignored, and so is ``__MACOSX``. The
        content of a file decides whether it is an image. A file that is not an image, or is
        damaged, is skipped and listed; it counts as a failure if it is named like an image, which
        includes the formats in :data:`UNSUPPORTED`. Splits and classes come from the sub-folders or
        from lists that come with the images (:mod:`tessella.data.folder_layouts`); if neither
        defines splits, :func:`tessella.data.splits.by_hash` does. ``all`` takes every image. Only
        the files of the split are decoded, once, into a cache (:mod:`tessella.data.decoded_cache`).
        It is used until a file in the folder is added, removed or changed, or another size, crop,
        limit or number of channels is asked for.

        Raises:
            DataError: when there are no images, when lists or classes do not match the images, when
                more than 20 % of the files of the split (and at least three) are unusable, when one
                cannot be read for a reason that has nothing to do with the file, or when the cache
                cannot be written.
            InputError: when images differ in size and ``config.size`` is empty.
        """
        root = self.locate(path)
        with _open(root) as archive:
            tree = _zip_tree(archive) if archive else _folder_tree(root)

            # Called only if the cache has no such entry.
            def make(writer: Writer) -> dict[str, object]:
                return dict(_decode(tree, split, config, writer, root))

            request = _request_key(root, split, config)
            title = f"folder:{last_name(root)}"
            images, kept = cached_images(request, _contents_key(tree), make, title)
        facts = cast(_Facts, kept)
        # Cached with the pixels, so that every run prints them and not only the first.
        for note in facts["notes"]:
            warn_caller(f"{title}: {note}")
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


def _decode(tree: _ImageTree, split: str, config: DataConfig, writer: Writer, root: Path) -> _Facts:
    """Decode a split into ``writer`` and return the facts to cache with its pixels."""
    names, other_files = _images_in(tree, root)
    files = Listing(names, _unsupported(names), other_files, tree.read_text)
    division = divide_listing(files, split)
    labels = division.labels(split)
    # All images are assigned to splits, since the rules depend on all of them, but only the images
    # of this split are decoded.
    chosen: list[str] = []
    chosen_labels: list[int] = []
    for index, part in enumerate(division.splits):
        if split in (part, ALL):
            chosen.append(names[index])
            if labels is not None:
                chosen_labels.append(labels[index])

    def open_chosen(index: int) -> BufferedIOBase:
        return _open_image(tree, chosen[index])

    chosen_files = ImageFiles(chosen, open_chosen, None if labels is None else chosen_labels)
    title = f"folder:{last_name(root)}"
    decoded = decode_files(
        chosen_files,
        config,
        writer.append,
        channels=config.channels or 3,
        title=f"{title}, {split}",
    )
    skipped = list(decoded.skipped)
    for name in other_files:
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


@dataclass(frozen=True)
class FolderFiles:
    """The image files of a folder or a zip file as they are, divided into splits.

    Args:
        names: relative paths, sorted.
        sizes: bytes of each.
        splits: the split of each.
        labels: for each split, the labels of all files, or None where it has none.
        label_names: names of the classes.
        open: opens the file of an index; may be called from any thread.
    """

    names: Sequence[str]
    sizes: Sequence[int]
    splits: Sequence[str]
    labels: Mapping[str, Sequence[int] | None]
    label_names: tuple[str, ...]
    open: Callable[[int], BufferedIOBase]


@contextmanager
def folder_files(root: Path) -> Iterator[FolderFiles]:
    """The files that ``folder:PATH`` would decode; they can be read inside the block.

    Raises:
        DataError: see :meth:`FolderSource.read`.
    """
    with _open(root) as archive:
        tree = _zip_tree(archive) if archive else _folder_tree(root)
        names, other_files = _images_in(tree, root)
        listing = Listing(names, _unsupported(names), other_files, tree.read_text)
        division = divide_listing(listing, "train")
        sizes = dict(zip(tree.names, tree.sizes, strict=True))

        def open_image(index: int) -> BufferedIOBase:
            return _open_image(tree, names[index])

        yield FolderFiles(
            names=names,
            sizes=[sizes[name] for name in names],
            splits=division.splits,
            labels={split: division.labels(split) for split in SPLITS},
            label_names=division.label_names,
            open=open_image,
        )


def _images_in(tree: _ImageTree, root: Path) -> tuple[list[str], list[str]]:
    """The files that are images or named like one, and the others.

    Raises:
        DataError: when there are no images.
    """
    names = []
    other_files = []
    with without_pillow_warnings():
        for name in tree.names:
            if _may_be_image(name, tree.open, root):
                names.append(name)
            else:
                other_files.append(name)
    if not names:
        raise DataError(_no_images(tree, other_files, root))
    return names, other_files


def _no_images(tree: _ImageTree, other_files: list[str], root: Path) -> str:
    """The message for a folder without images: its content, and how to read that if known."""
    # An .npz file is a zip file too, and a folder may hold idx files or batches of CIFAR-10.
    refuse_other_kind(root, FolderSource)
    there = name_list(list(map(printable, other_files)))
    described = ""
    for name in other_files[:FEW_FILES]:
        try:
            with tree.open(name) as file:
                described = describe_content(PurePosixPath(name).name, file.read(HEAD))
        except READ_ERRORS:
            continue
        # One recognized file is enough, since the others are mostly of the same kind.
        if described:
            break
    return with_advice(f"{root} has no images; it holds {there}", described)


def _unsupported(names: Iterable[str]) -> frozenset[str]:
    """The files of unsupported formats; they do not affect how a folder is divided."""
    unreadable = set()
    for name in names:
        if PurePosixPath(name).suffix.lower() in UNSUPPORTED:
            unreadable.add(name)
    return frozenset(unreadable)


def _request_key(root: Path, split: str, config: DataConfig) -> str:
    """The cache key of a request: the source, and how its images are prepared."""
    size = parse_size(config.size, "size")
    crop = config.crop if size else ""  # without a size nothing is cropped
    channels = config.channels or 3
    where = printable(str(root.resolve()))
    return digest(where, split, size, crop, channels, config.limit, LAYOUT_VERSION)


def _contents_key(tree: _ImageTree) -> str:
    """The cache key of the files as they are now, and of the libraries that decode them."""
    return digest(libraries(), list(zip(tree.names, tree.stamps, strict=True)))


def _open(path: Path) -> AbstractContextManager[zipfile.ZipFile | None]:
    """The zip file to read from, open; None for a folder."""
    if path.is_dir():
        return nullcontext()
    try:
        return open_archive(path)
    except READ_ERRORS as error:
        message = (
            f"folder:PATH takes a folder or a .zip file, and {path} is neither: {one_line(error)}"
        )
        raise DataError(with_advice(message, describe(path))) from error


def _zip_tree(archive: zipfile.ZipFile) -> _ImageTree:
    found = {}
    for info in archive.infolist():
        # The checksum changes with the content, whatever dates the archive states.
        if not info.is_dir() and _all_visible(info.filename.split("/")):
            found[info.filename] = (info.CRC, info.file_size)
    names = sorted(found)

    # Zip files may be read by several threads at once; ZipFile guards the file itself.
    def open_member(name: str) -> BufferedIOBase:
        return cast(BufferedIOBase, archive.open(archive.getinfo(name)))

    stamps = [found[name] for name in names]
    return _ImageTree(names, stamps, [size for _, size in stamps], open_member)


def _folder_tree(root: Path) -> _ImageTree:
    """The files under a folder. Links are followed; each folder is visited only once."""
    found: dict[str, tuple[int, ...]] = {}
    visited: set[str] = set()
    for folder, inner, names in os.walk(root, followlinks=True, onerror=_refuse):
        # Without this, a link to a parent folder would loop forever.
        real = os.path.realpath(folder)
        if real in visited:
            inner.clear()
            continue
        visited.add(real)
        # os.walk descends into what is left in this list. It is sorted, so that if two links point
        # to the same folder, every machine follows the same one.
        inner[:] = sorted(filter(_is_visible, inner))
        for name in filter(_is_visible, names):
            file = Path(folder, name)
            stamp = _stamp(file)
            if stamp:
                found[file.relative_to(root).as_posix()] = stamp
    names = sorted(found)
    stamps = [found[name] for name in names]
    sizes = [stamp[0] for stamp in stamps]
    return _ImageTree(names, stamps, sizes, lambda name: (root / name).open("rb"))


def _stamp(file: Path) -> tuple[int, ...]:
    """Size, modification time and permissions; empty if it is not a regular file."""
    try:
        facts = file.stat()
    except OSError:
        return ()  # a broken link, for example
    # Reading a pipe, for example, might never end.
    if not stat.S_ISREG(facts.st_mode):
        return ()
    return (facts.st_size, facts.st_mtime_ns, facts.st_mode)


def _refuse(error: OSError) -> None:
    raise DataError(f"a folder cannot be read: {one_line(error)}") from error


def _all_visible(parts: Iterable[str]) -> bool:
    """Whether no part of a path is hidden or ignored."""
    return all(map(_is_visible, parts))


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in _IGNORED_NAMES


def looks_like_image(name: str) -> bool:
    """Whether a file is named like an image."""
    extension = PurePosixPath(name).suffix.lower()
    return extension in UNSUPPORTED or Image.registered_extensions().get(extension) in known_kinds()


def _may_be_image(name: str, opener: Callable[[str], BufferedIOBase], root: Path) -> bool:
    """Whether a file is named like an image or contains one."""
    # A file that is named like an image counts as one even if it is damaged, since that is a
    # failure to report. Other files are opened to see what they are.
    if looks_like_image(name):
        return True
    with transient_as_data_error(f"{root}, {printable(name)}"):
        try:
            with opener(name) as file:
                return is_image(file)
        except READ_ERRORS as error:
            if is_transient(error):
                raise
            return False


def _open_image(tree: _ImageTree, name: str) -> BufferedIOBase:
    kind = UNSUPPORTED.get(PurePosixPath(name).suffix.lower())
    if kind:
        raise UnusableImage(f"{kind} is not read here; convert it to JPEG or PNG")
    return tree.open(name)

"""Many image files to images of one size: decoded by several threads, in order, within bounded memory."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from io import BufferedIOBase

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from tessella.config import DataConfig
from tessella.data.decode import UnusableImage, begin, decode, finish, quiet
from tessella.data.files import READ_ERRORS, one_line, printable
from tessella.data.transform import Part, cut, parse_size
from tessella.errors import DataError, InputError

MOST_FAILURES = 0.2
"""Share of unusable files above which a folder is refused."""

_alone = threading.Lock()  # held while a large image is in memory


@dataclass(frozen=True)
class Files:
    """Image files of one split, in order.

    Args:
        names: what they are called, in names of images and in messages.
        open: opens the file of a number; called from several threads at once.
        labels: the class of each file, or None.
    """

    names: Sequence[str]
    open: Callable[[int], BufferedIOBase]
    labels: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class Decoded:
    """What is known of decoded images, beside their pixels.

    Args:
        names: of each image; a tile has the suffix ``#top,left``.
        labels: of each image; empty where the files have none.
        skipped: files left out, each as ``name: reason``.
        resampled: whether pixels were interpolated.
    """

    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    resampled: bool = False


@dataclass(frozen=True)
class _Pieces:
    """The images that one file gives: suffixes of their names and their pixels, the file's (height, width)."""

    cut: list[tuple[str, np.ndarray]]
    size: tuple[int, int]


@dataclass(frozen=True)
class _Wanted:
    """What each file is made into."""

    channels: int
    size: tuple[int, int] | None
    crop: str


def fit_files(files: Files, config: DataConfig, *, channels: int, place: str, strict: bool = False) -> Part:
    """:func:`decode_files` into one array in memory."""
    images: list[np.ndarray] = []
    decoded = decode_files(files, config, images.append, channels=channels, place=place, strict=strict)
    return Part(
        images=np.stack(images) if images else np.empty((0, 0, 0, 0), np.uint8),
        labels=None if files.labels is None else np.array(decoded.labels, np.int64),
        label_names=(),
        levels=256,
        split_rule="",
        names=tuple(decoded.names),
        skipped=tuple(decoded.skipped),
        resampled=decoded.resampled,
    )


def decode_files(
    files: Files,
    config: DataConfig,
    keep: Callable[[np.ndarray], None],
    *,
    channels: int,
    place: str,
    strict: bool = False,
) -> Decoded:
    """Decode files until ``config.limit`` images are there, in the size asked for; unusable ones are skipped and named.

    Args:
        files: the files of one split, in order.
        config: size, crop and limit.
        keep: takes each image, ``uint8 [height, width, channels]``, in order.
        channels: channels of the result; 0 keeps what the first image has.
        place: the source, for messages.
        strict: refuse a single unusable file.

    Raises:
        DataError: when more than 20 % of the files are unusable (at the first file that makes this certain), or one
            where ``strict``.
        InputError: when the images differ in size and none is asked for.
    """
    with quiet():
        wanted = _Wanted(channels or _first_channels(files), parse_size(config.size, "size"), config.crop)
        limit, result, failures, tried = config.limit, Decoded(), 0, 0
        first: tuple[str, tuple[int, int]] | None = None
        for index, pieces in _in_order(files, wanted, limit, place):
            tried, name = index + 1, files.names[index]
            if isinstance(pieces, UnusableImage):
                failures += 1
                result.skipped.append(f"{printable(name)}: {pieces}")
                if strict:
                    raise DataError(f"{place}, {printable(name)}: {pieces}") from pieces
                if failures > MOST_FAILURES * len(files):
                    raise DataError(_too_many(f"at least {failures} of {len(files)}", place, result.skipped))
                continue
            if wanted.size is None:
                first = first or (name, pieces.size)
                _check_same_size(first, name, pieces.size)
            _add(result, keep, files, index, pieces, limit)
            result.resampled |= wanted.size not in (None, pieces.size) and config.crop != "tiles"
            if limit and len(result.names) >= limit:
                break
    if failures > MOST_FAILURES * tried:
        raise DataError(_too_many(f"{failures} of {tried}", place, result.skipped))
    return result


def _add(
    result: Decoded, keep: Callable[[np.ndarray], None], files: Files, index: int, pieces: _Pieces, limit: int
) -> None:
    """Take over the images of one file, up to ``limit`` in all."""
    room = limit - len(result.names) if limit else None
    for suffix, image in pieces.cut[:room]:
        keep(image)
        result.names.append(files.names[index] + suffix)
        if files.labels is not None:
            result.labels.append(int(files.labels[index]))
    if not pieces.cut:
        result.skipped.append(f"{printable(files.names[index])}: smaller than a tile")


def _in_order(files: Files, wanted: _Wanted, limit: int, place: str) -> Iterator[tuple[int, _Pieces | UnusableImage]]:
    """The outcome of each file, in order, while threads decode a few files ahead.

    Whoever takes the outcomes may stop at any time; files that nobody began are then left alone. Where a file gives at
    most one image and ``limit`` are wanted, no file is begun that may turn out not to be needed.
    """
    threads = workers()
    waiting: deque[tuple[int, Future[_Pieces | UnusableImage]]] = deque()
    upcoming, found = iter(range(len(files))), 0
    executor = ThreadPoolExecutor(threads, "decode")
    bar = tqdm(total=len(files), desc=f"decoding {place}", unit="file", disable=None, leave=False)
    try:
        while True:
            ahead = 2 * threads if not limit or wanted.crop == "tiles" else min(2 * threads, limit - found)
            while len(waiting) < ahead and (index := next(upcoming, None)) is not None:
                waiting.append((index, executor.submit(_attempt, files, index, wanted)))
            if not waiting:
                return
            index, future = waiting.popleft()
            outcome = future.result()
            found += isinstance(outcome, _Pieces)
            bar.update()
            yield index, outcome
    finally:
        bar.close()
        executor.shutdown(cancel_futures=True)


def workers() -> int:
    """Threads to decode with: one for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _attempt(files: Files, index: int, wanted: _Wanted) -> _Pieces | UnusableImage:
    """One file decoded and cut, or why not."""
    try:
        with files.open(index) as file:
            opened = begin(file)
        with _alone if opened.large else nullcontext():
            image = finish(opened, wanted.channels)
            return _Pieces(list(cut(image, wanted.size, wanted.crop)), (image.height, image.width))
    except UnusableImage as error:
        return error
    except READ_ERRORS as error:
        return UnusableImage(f"cannot be read: {getattr(error, 'strerror', None) or one_line(error)}")


def _first_channels(files: Files) -> int:
    """Channels of the first usable image (grey keeps one); 3 where there is none."""
    for index in range(len(files)):
        try:
            with files.open(index) as file:
                return len(decode(file, 0).getbands())
        except (UnusableImage, *READ_ERRORS):
            continue
    return 3


def _check_same_size(first: tuple[str, tuple[int, int]], name: str, size: tuple[int, int]) -> None:
    if size != first[1]:
        raise InputError(
            f"images differ in size: {printable(first[0])} has {first[1][0]}x{first[1][1]} pixels,"
            f" {printable(name)} has {size[0]}x{size[1]}; set data.size, for example size=64"
        )


def _too_many(count: str, place: str, skipped: Sequence[str]) -> str:
    return f"{count} files of {place} are unusable (more than 20 %); the first: {skipped[0]}"

"""Many image files to images of one size: decoded by several threads, in order, within bounded
memory."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BufferedIOBase
from typing import TypeVar

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from tessella.config import DataConfig
from tessella.data.decode import Opened, UnusableImage, begin, finish, quiet
from tessella.data.memory_budget import Budget
from tessella.data.paths import READ_ERRORS, passing, passing_ends, printable, reason
from tessella.data.transform import Part, cut, parse_size
from tessella.errors import DataError, InputError

MOST_FAILURES = 0.2
"""Share of unusable files above which a folder is refused."""
FEW_FAILURES = 2
"""As many failures never refuse a folder, however small it is."""
MAX_TOGETHER = 512 << 20
"""Bytes that all threads together may hold to decode images, finished ones that wait for their turn
included. The files that are being read, one a thread, come on top until their headers are known."""
MANY_FILES = 300
PATIENCE = 5.0
"""From so many files or seconds on, a line is printed where there is no terminal for a progress
bar."""

_Result = TypeVar("_Result")


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
    """The images that one file gives: suffixes of their names and their pixels, the file's (height,
    width)."""

    cut: list[tuple[str, np.ndarray]]
    size: tuple[int, int]

    @property
    def bytes(self) -> int:
        return sum(image.nbytes for _, image in self.cut)


_Outcome = _Pieces | UnusableImage


@dataclass(frozen=True)
class _Wanted:
    """What each file is made into."""

    channels: int
    size: tuple[int, int] | None
    crop: str

    @property
    def bytes(self) -> int:
        """What an image of the wanted size takes while it is made: as Pillow keeps it, and as an
        array."""
        return 0 if self.size is None else self.size[0] * self.size[1] * (4 + self.channels)


def fit_files(
    files: Files, config: DataConfig, *, channels: int, place: str, strict: bool = False
) -> Part:
    """:func:`decode_files` into one array in memory."""
    images: list[np.ndarray] = []
    decoded = decode_files(
        files, config, images.append, channels=channels, place=place, strict=strict
    )
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
    """Decode files until ``config.limit`` images are there, in the size asked for; unusable ones
    are skipped and named.

    Args:
        files: the files of one split, in order.
        config: size, crop and limit.
        keep: takes each image, ``uint8 [height, width, channels]``, in order.
        channels: channels of the result; 0 keeps what the first image has.
        place: the source, for messages.
        strict: refuse a single unusable file.

    Raises:
        DataError: when more than 20 % of the files, and at least three, are unusable (at the first
            file that makes this certain), or one where ``strict``; when a file cannot be read for a
            reason outside of it.
        InputError: when the images differ in size and none is asked for.
    """
    with quiet():
        wanted = _Wanted(
            channels or _first_channels(files), parse_size(config.size, "size"), config.crop
        )
        limit, result, failures, tried = config.limit, Decoded(), 0, 0
        first: tuple[str, tuple[int, int]] | None = None
        for index, pieces in _in_order(files, wanted, limit, place):
            tried, name = index + 1, files.names[index]
            if isinstance(pieces, UnusableImage):
                failures += 1
                result.skipped.append(f"{printable(name)}: {pieces}")
                if strict:
                    raise DataError(f"{place}, {printable(name)}: {pieces}") from pieces
                if failures > max(FEW_FAILURES, MOST_FAILURES * len(files)):
                    raise DataError(
                        _too_many(f"at least {failures} of {len(files)}", place, result.skipped)
                    )
                continue
            if wanted.size is None:
                first = first or (name, pieces.size)
                _check_same_size(first, name, pieces.size)
            _add(result, keep, files, index, pieces, limit)
            result.resampled |= wanted.size not in (None, pieces.size) and config.crop != "tiles"
            if limit and len(result.names) >= limit:
                break
    if failures > max(FEW_FAILURES, MOST_FAILURES * tried):
        raise DataError(_too_many(f"{failures} of {tried}", place, result.skipped))
    return result


def _add(
    result: Decoded,
    keep: Callable[[np.ndarray], None],
    files: Files,
    index: int,
    pieces: _Pieces,
    limit: int,
) -> None:
    """Take over the images of one file, up to ``limit`` in all, and let go of them."""
    room = limit - len(result.names) if limit else None
    for suffix, image in pieces.cut[:room]:
        keep(image)
        result.names.append(files.names[index] + suffix)
        if files.labels is not None:
            result.labels.append(int(files.labels[index]))
    if not pieces.cut:
        result.skipped.append(f"{printable(files.names[index])}: smaller than a tile")
    pieces.cut.clear()


def _in_order(
    files: Files, wanted: _Wanted, limit: int, place: str
) -> Iterator[tuple[int, _Outcome]]:
    """The outcome of each file, in order, while threads decode a few files ahead, together within a
    budget of memory.

    Whoever takes the outcomes may stop at any time; files that nobody began are then left alone.
    Where a file gives at most one image and ``limit`` are wanted, no file is begun that may turn
    out not to be needed.
    """
    threads, budget = workers(), Budget(MAX_TOGETHER)
    waiting: deque[tuple[int, Future[tuple[_Outcome, int]]]] = deque()
    upcoming, found = iter(range(len(files))), 0
    executor = ThreadPoolExecutor(threads, "decode")
    bar = tqdm(total=len(files), desc=f"decoding {place}", unit="file", disable=None, leave=False)
    announce = (
        _announcing(files, limit if wanted.crop != "tiles" else 0, place)
        if bar.disable
        else bar.update
    )
    try:
        while True:
            ahead = (
                2 * threads
                if not limit or wanted.crop == "tiles"
                else min(2 * threads, limit - found)
            )
            while len(waiting) < ahead and (index := next(upcoming, None)) is not None:
                waiting.append(
                    (index, executor.submit(_attempt, files, index, wanted, budget, place))
                )
            if not waiting:
                return
            index, future = waiting.popleft()
            outcome, held = future.result()
            del future  # it holds the outcome
            found += isinstance(outcome, _Pieces)
            announce()
            yield index, outcome
            budget.give_back(held)
    finally:
        bar.close()
        budget.close()
        executor.shutdown(cancel_futures=True)


def workers() -> int:
    """Threads to decode with: one for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _announcing(files: Files, limit: int, place: str) -> Callable[[], object]:
    """What to call after each file: prints one line on stderr where there are many files or they
    take long."""
    count, started, said = min(limit or len(files), len(files)), time.monotonic(), False

    def announce() -> None:
        nonlocal said
        if not said and (count > MANY_FILES or time.monotonic() - started > PATIENCE):
            print(f"decoding {count} files of {place}", file=sys.stderr, flush=True)
            said = True

    return announce


def _attempt(
    files: Files, index: int, wanted: _Wanted, budget: Budget, place: str
) -> tuple[_Outcome, int]:
    """One file decoded and cut, or why not, and its share of the budget, to be given back with the
    outcome."""
    outcome: _Outcome
    with passing_ends(f"{place}, {printable(files.names[index])}"):
        opened = _tried(partial(_begun, files, index))
        taken = budget.take(
            index, opened.memory + wanted.bytes if isinstance(opened, Opened) else 0
        )
        outcome = (
            _tried(partial(_finished, opened, wanted)) if isinstance(opened, Opened) else opened
        )
    del opened
    held = min(taken, outcome.bytes) if isinstance(outcome, _Pieces) else 0
    budget.give_back(taken - held)
    return outcome, held


def _begun(files: Files, index: int) -> Opened:
    with files.open(index) as file:
        return begin(file)


def _finished(opened: Opened, wanted: _Wanted) -> _Pieces:
    image = finish(opened, wanted.channels)
    return _Pieces(list(cut(image, wanted.size, wanted.crop)), (image.height, image.width))


def _tried(step: Callable[[], _Result]) -> _Result | UnusableImage:
    """The result of a step, or why the file is to blame; without a traceback, which would keep the
    image in memory."""
    try:
        return step()
    except UnusableImage as error:
        return UnusableImage(str(error))
    except READ_ERRORS as error:
        if passing(error):
            raise
        return UnusableImage(f"cannot be read: {reason(error)}")


def _first_channels(files: Files) -> int:
    """Channels of the first usable image (grey keeps one); 3 where there is none."""
    for index in range(len(files)):
        with passing_ends(printable(files.names[index])):
            opened = _tried(partial(_begun, files, index))
            image = _tried(partial(finish, opened, 0)) if isinstance(opened, Opened) else opened
        if not isinstance(image, UnusableImage):
            return len(image.getbands())
    return 3


def _check_same_size(first: tuple[str, tuple[int, int]], name: str, size: tuple[int, int]) -> None:
    if size != first[1]:
        raise InputError(
            f"images differ in size: {printable(first[0])} is {first[1][1]} pixels wide and {first[1][0]} high,"
            f" {printable(name)} {size[1]} wide and {size[0]} high; set data.size, for example data.size=64"
        )


def _too_many(count: str, place: str, skipped: Sequence[str]) -> str:
    return (
        f"{count} files of {place} are unusable (more than 20 %); repair, convert or remove them;"
        f" the first: {skipped[0]}"
    )

"""Decode many image files into images of one size.

Several threads decode, images arrive in the order of the files, and memory stays bounded, however
many files there are.
"""

from __future__ import annotations

import io
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

from tessella import progress_bars
from tessella.config import DataConfig
from tessella.data.caller_warning import warn_caller
from tessella.data.decode import (
    LARGEST_OF_16_BITS,
    Opened,
    decode,
    decode_pixels,
    open_image,
    without_pillow_warnings,
)
from tessella.data.memory_budget import Budget
from tessella.data.paths import (
    READ_ERRORS,
    is_transient,
    printable,
    reason,
    transient_as_data_error,
)
from tessella.data.transform import Part, cut, parse_size
from tessella.data.unusable_image import UnusableImage
from tessella.errors import DataError, InputError

MAX_FAILURES = 0.2
"""Share of unusable files above which a folder is refused."""
TOLERATED_FAILURES = 2
"""This many failures never refuse a folder, however small it is."""
MAX_TOGETHER = 512 << 20
"""Most bytes that all threads together hold while decoding, including finished images that wait for
their turn. Files whose header is not parsed yet come on top, one per thread."""
MANY_FILES = 300
"""Number of files from which a line is printed if there is no terminal for a progress bar."""
PATIENCE = 5.0
"""Seconds of decoding after which that line is printed for fewer files too."""
_LOW_BITS = 14  # this many bits or fewer, stored as 16, come out dark

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ImageFiles:
    """Image files of one split, in order.

    Args:
        names: the file names, from which the images get theirs.
        open: opens a file by its index; called from several threads at once.
        labels: the label of each file, or None.
    """

    names: Sequence[str]
    open: Callable[[int], BufferedIOBase]
    labels: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class Decoded:
    """Facts about decoded images, without their pixels.

    Args:
        names: the name of each image; a tile has the suffix ``#top,left``.
        labels: the label of each image; empty if the files have none.
        skipped: files left out, each as ``name: reason``.
        resampled: whether pixels were interpolated.
    """

    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    resampled: bool = False


@dataclass(frozen=True)
class _CutImages:
    """The images cut from one file.

    Args:
        cut: for each image, the suffix of its name and its pixels ``[height, width, channels]``.
        size: (height, width) of the uncut image.
        largest: the largest value if the file has 16 bits per value, else None.
    """

    cut: list[tuple[str, np.ndarray]]
    size: tuple[int, int]
    largest: int | None

    @property
    def bytes(self) -> int:
        """Bytes of all the images."""
        return sum(image.nbytes for _, image in self.cut)


_Outcome = _CutImages | UnusableImage
"""The images of a file, or the reason why it has none."""


@dataclass(frozen=True)
class _Target:
    """What images should become.

    Args:
        channels: 1, 3 or 4.
        size: (height, width); None leaves images as large as they are.
        crop: ``center``, ``squash`` or ``tiles``; see :func:`~tessella.data.transform.cut`.
    """

    channels: int
    size: tuple[int, int] | None
    crop: str

    @property
    def bytes(self) -> int:
        """Bytes of a resized image, which exists both in Pillow and as an array for a while."""
        if self.size is None:
            return 0
        height, width = self.size
        return height * width * (4 + self.channels)


def fit_files(
    files: ImageFiles, config: DataConfig, *, channels: int, title: str, strict: bool = False
) -> Part:
    """:func:`decode_files` into one array in memory, ``uint8 [n, height, width, channels]``."""
    images: list[np.ndarray] = []
    decoded = decode_files(
        files, config, images.append, channels=channels, title=title, strict=strict
    )
    labels = None
    if files.labels is not None:
        labels = np.array(decoded.labels, np.int64)
    return Part(
        images=np.stack(images) if images else np.empty((0, 0, 0, 0), np.uint8),
        labels=labels,
        label_names=(),
        levels=256,
        split_rule="",
        names=tuple(decoded.names),
        skipped=tuple(decoded.skipped),
        resampled=decoded.resampled,
    )


def decode_alone(
    content: bytes, channels: int, size: tuple[int, int] | None, crop: str
) -> np.ndarray:
    """Decode one file to one image, ``uint8 [height, width, channels]``.

    Args:
        content: of the image file.
        channels: 1, 3 or 4.
        size: (height, width) of the result; None leaves the image as large as it is.
        crop: ``center`` or ``squash``.

    Raises:
        UnusableImage: with the reason.
    """
    decoded = _or_unusable(partial(decode, io.BytesIO(content), channels))
    if isinstance(decoded, UnusableImage):
        raise decoded
    _, pixels = next(cut(decoded, size, crop))
    return pixels


def each_decoded(
    files: ImageFiles, channels: int, title: str
) -> Iterator[tuple[int, np.ndarray | UnusableImage]]:
    """Decode files one by one, in order, each as large as it is.

    Yields:
        The index of a file, and its image ``uint8 [height, width, channels]`` or the reason why it
        has none.

    Raises:
        DataError: when a file cannot be read for a reason that has nothing to do with it.
    """
    with without_pillow_warnings():
        target = _Target(channels, None, "center")
        for index, outcome in _outcomes_in_order(files, target, 0, title):
            if isinstance(outcome, UnusableImage):
                yield index, outcome
            else:
                _, pixels = outcome.cut[0]
                yield index, pixels


def decode_files(
    files: ImageFiles,
    config: DataConfig,
    keep: Callable[[np.ndarray], None],
    *,
    channels: int,
    title: str,
    strict: bool = False,
) -> Decoded:
    """Decode files, in order, until there are ``config.limit`` images.

    Unusable files are skipped and listed.

    Args:
        files: the files of one split, in order.
        config: its size, crop and limit are applied.
        keep: called with each image, ``uint8 [height, width, channels]``, in order.
        channels: channels of the result; 0 takes those of the first usable image.
        title: the source, for messages.
        strict: refuse even a single unusable file.

    Returns:
        names, labels and skipped files; the pixels went to ``keep``.

    Raises:
        DataError: when at least three files, and more than 20 % of them, are unusable (raised as
            soon as this is certain), or one if ``strict``; when a file cannot be read for a reason
            that has nothing to do with it.
        InputError: when the images differ in size and ``config.size`` is empty.
    """
    # Warning filters apply to all threads, so they are set around the whole loop.
    with without_pillow_warnings():
        target = _Target(
            channels or _first_channels(files), parse_size(config.size, "size"), config.crop
        )
        collector = _Collector(files, target, config.limit, keep, title)
        for index, outcome in _outcomes_in_order(files, target, config.limit, title):
            if isinstance(outcome, UnusableImage):
                collector.skip(index, outcome, strict=strict)
            else:
                collector.add(index, outcome)
            if collector.full:
                break  # closes the generator, which leaves the other files alone
    # Now relative to the files that were tried: the limit may have left out the good ones.
    collector.check_failures(collector.tried)
    collector.warn_of_few_bits()
    return collector.decoded


class _Collector:
    """Collects the outcomes of files in order, and stops if too many are unusable.

    Args:
        files: the files.
        target: the images asked for.
        limit: most images to keep; 0 for all.
        keep: called with each image.
        title: the source, for messages.
    """

    def __init__(
        self,
        files: ImageFiles,
        target: _Target,
        limit: int,
        keep: Callable[[np.ndarray], None],
        title: str,
    ) -> None:
        self.decoded = Decoded()
        self.tried = 0
        self._files = files
        self._target = target
        self._limit = limit
        self._keep = keep
        self._title = title
        self._failures = 0
        self._largest: list[int | None] = []  # of each file
        self._first: tuple[str, tuple[int, int]] | None = None

    @property
    def full(self) -> bool:
        """Whether there are as many images as were asked for."""
        return bool(self._limit) and len(self.decoded.names) >= self._limit

    def skip(self, index: int, why: UnusableImage, *, strict: bool) -> None:
        """Record an unusable file; raise DataError once there are too many."""
        name = printable(self._files.names[index])
        self.tried = index + 1
        self._failures += 1
        self.decoded.skipped.append(f"{name}: {why}")
        if strict:
            raise DataError(f"{self._title}, {name}: {why}") from why
        # Relative to all files: this many failures are too many, whatever follows.
        self.check_failures(len(self._files), at_least="at least ")

    def add(self, index: int, pieces: _CutImages) -> None:
        """Keep the images of one file, up to the limit, and release its copy of them."""
        self.tried = index + 1
        self._largest.append(pieces.largest)
        # Without a size, all images must have the same one, since they become one array.
        name = self._files.names[index]
        if self._target.size is None:
            self._check_same_size(name, pieces.size)
        images = pieces.cut
        if self._limit:
            images = images[: self._limit - len(self.decoded.names)]
        for suffix, image in images:
            self._keep(image)
            self.decoded.names.append(name + suffix)
            if self._files.labels is not None:
                self.decoded.labels.append(int(self._files.labels[index]))
        if not pieces.cut:
            self.decoded.skipped.append(f"{printable(name)}: smaller than a tile")
        if self._target.size not in (None, pieces.size) and self._target.crop != "tiles":
            self.decoded.resampled = True
        # Anything that still holds the outcome would hold its pixels, whose memory is given back
        # next.
        pieces.cut.clear()

    def check_failures(self, count: int, at_least: str = "") -> None:
        """Raise DataError if more than a fifth of ``count`` files, and at least three, failed."""
        if self._failures <= max(TOLERATED_FAILURES, MAX_FAILURES * count):
            return
        raise DataError(
            f"{at_least}{self._failures} of {count} files of {self._title} are unusable (more than"
            f" 20 %); repair, convert or remove them; the first: {self.decoded.skipped[0]}"
        )

    def warn_of_few_bits(self) -> None:
        """Warn if all files have 16 bits per value and no value needs that many.

        A single such file may be a dark image. If all files are like this, they hold unscaled
        values of a 10- to 14-bit camera, whose high bytes are nearly black.
        """
        known = [largest for largest in self._largest if largest is not None]
        if not known or len(known) < len(self._largest):
            return
        largest = max(known)
        if 0 < largest < 1 << _LOW_BITS:
            factor = 1 << (16 - max(8, largest.bit_length()))
            warn_caller(
                f"{self._title}: no 16-bit image has a value above {largest}, so they"
                f" come out nearly black; multiply all values by {factor}, or save 8 bits"
            )

    def _check_same_size(self, name: str, size: tuple[int, int]) -> None:
        if self._first is None:
            self._first = (name, size)
        first, first_size = self._first
        if size != first_size:
            raise InputError(
                f"images differ in size: {printable(first)} is {first_size[1]} pixels wide and"
                f" {first_size[0]} high, {printable(name)} {size[1]} wide and {size[0]} high;"
                " set data.size, for example data.size=64"
            )


def _outcomes_in_order(
    files: ImageFiles, target: _Target, limit: int, title: str
) -> Iterator[tuple[int, _Outcome]]:
    """The outcome of each file, in order, while threads decode a few files ahead.

    All threads share a memory budget. The caller may stop iterating at any time; files that were
    not started are then left alone. If each file gives at most one image, no more files are started
    than ``limit`` may need.
    """
    threads = worker_count()
    budget = Budget(MAX_TOGETHER)
    waiting: deque[tuple[int, Future[tuple[_Outcome, int]]]] = deque()
    one_each = limit > 0 and target.crop != "tiles"
    begun = 0
    found = 0
    executor = ThreadPoolExecutor(threads, "decode")
    bar = progress_bars.create(total=len(files), desc=f"decoding {title}", unit="file", leave=False)
    announce: Callable[[], object] = bar.update
    if bar.disable and not progress_bars.are_hidden():  # no terminal
        announce = _Announcement(files, limit if one_each else 0, title)
    try:
        while True:
            # Two files per thread: one is decoded while the next waits.
            ahead = 2 * threads
            if one_each:
                ahead = min(ahead, limit - found)
            while len(waiting) < ahead and begun < len(files):
                future = executor.submit(_decode_one, files, begun, target, budget, title)
                waiting.append((begun, future))
                begun += 1
            if not waiting:
                return
            # Wait for the oldest, even if others are done: images keep the order of the files.
            index, future = waiting.popleft()
            outcome, held = future.result()
            del future  # it would keep the outcome in memory
            if isinstance(outcome, _CutImages):
                found += 1
            announce()
            yield index, outcome
            budget.give_back(held)
    finally:
        bar.close()
        # Otherwise threads that wait for memory would wait forever.
        budget.close()
        executor.shutdown(cancel_futures=True)


def worker_count() -> int:
    """Number of decoding threads: one for each core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Announcement:
    """Called after each file; prints one line to stderr if there are many or they are slow.

    Args:
        files: all files.
        limit: most files that will be decoded; 0 for all.
        title: the source, for the message.
    """

    def __init__(self, files: ImageFiles, limit: int, title: str) -> None:
        self._count = min(limit or len(files), len(files))
        self._title = title
        self._started = time.monotonic()
        self._printed = False

    def __call__(self) -> None:
        is_slow = time.monotonic() - self._started > PATIENCE
        if not self._printed and (self._count > MANY_FILES or is_slow):
            print(f"decoding {self._count} files of {self._title}", file=sys.stderr, flush=True)
            self._printed = True


def _decode_one(
    files: ImageFiles, index: int, target: _Target, budget: Budget, title: str
) -> tuple[_Outcome, int]:
    """Decode and cut one file, in a thread.

    Returns:
        Its images or the reason why there are none, and the bytes of the budget that it still
        holds, which the caller gives back once it has kept the images.
    """
    outcome: _Outcome
    with transient_as_data_error(f"{title}, {printable(files.names[index])}"):
        opened = _or_unusable(partial(_open, files, index))
        # Every file must take its turn in the budget, or those after it would wait forever.
        if isinstance(opened, Opened):
            taken = budget.take(index, opened.memory + target.bytes)
            outcome = _or_unusable(partial(_decode_and_cut, opened, target))
        else:
            taken = budget.take(index, 0)
            outcome = opened
    del opened  # frees the file and Pillow's image; only the cut images remain
    held = min(taken, outcome.bytes) if isinstance(outcome, _CutImages) else 0
    budget.give_back(taken - held)
    return outcome, held


def _open(files: ImageFiles, index: int) -> Opened:
    """Read a file and check its header."""
    with files.open(index) as file:
        return open_image(file)


def _decode_and_cut(opened: Opened, target: _Target) -> _CutImages:
    """Decode the pixels of a file and cut them."""
    image = decode_pixels(opened, target.channels)
    return _CutImages(
        list(cut(image, target.size, target.crop)),
        (image.height, image.width),
        image.info.get(LARGEST_OF_16_BITS),
    )


def _or_unusable(step: Callable[[], _Result]) -> _Result | UnusableImage:
    """The result of a step, or the reason if the file is to blame for a failure.

    The error is a new one, because a traceback would keep the image in memory.
    """
    try:
        return step()
    except UnusableImage as error:
        return UnusableImage(str(error))
    except READ_ERRORS as error:
        if is_transient(error):
            raise
        return UnusableImage(f"cannot be read: {reason(error)}")


def _first_channels(files: ImageFiles) -> int:
    """Channels of the first usable image (1 for grey); 3 if there is none."""
    for index in range(len(files)):
        with transient_as_data_error(printable(files.names[index])):
            opened = _or_unusable(partial(_open, files, index))
            if not isinstance(opened, Opened):
                continue
            image = _or_unusable(partial(decode_pixels, opened, 0))
        if not isinstance(image, UnusableImage):
            return len(image.getbands())
    return 3

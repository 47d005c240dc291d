"""From images of any size to one array: size, crop, channels, binarization."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BufferedIOBase

import numpy as np
import PIL
from PIL import Image, ImageOps

from tessella.config import DataConfig
from tessella.data.decode import UnusableImage, decode, with_channels
from tessella.data.files import READ_ERRORS, one_line
from tessella.data.splits import SPLITS
from tessella.errors import ConfigError, DataError, InputError

FILTER = Image.Resampling.LANCZOS
FILTER_NAME = f"lanczos (Pillow {PIL.__version__})"
"""The resampling filter, recorded because it changes bits/dim by about 0.1."""
MOST_FAILURES = 0.2
"""Share of unusable files above which a folder is refused."""


@dataclass(frozen=True)
class Part:
    """One split as a source gives it.

    Args:
        images: ``uint8 [n, height, width, channels]``.
        labels: ``int64 [n]``, or None.
        label_names: names of the classes; ``()`` when unknown.
        levels: values that the pixels take by nature.
        split_rule: one line on how the split was taken.
        names: names of the images, for folders.
        skipped: files left out, each as ``path: reason``.
        resampled: whether pixels were interpolated, so that they can take any value.
    """

    images: np.ndarray
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    levels: int
    split_rule: str
    names: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    resampled: bool = False


@dataclass(frozen=True)
class Entry:
    """An image file that is read when its turn comes."""

    name: str
    open: Callable[[], BufferedIOBase]
    label: int | None = None


def parse_size(text: str, key: str) -> tuple[int, int] | None:
    """``64`` or ``HEIGHTxWIDTH`` as (height, width) in pixels; None when empty.

    >>> parse_size("28x32", "size"), parse_size("64", "size"), parse_size("", "size")
    ((28, 32), (64, 64), None)

    Raises:
        ConfigError: for any other text.
    """
    if not text:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text.strip())
    if not match:
        raise ConfigError(f"data.{key} must be a number of pixels like 64, or HEIGHTxWIDTH like 48x64, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def fit_arrays(part: Part, config: DataConfig) -> Part:
    """The first ``config.limit`` images of an array in the size and channels asked for.

    Raises:
        InputError: when an image is smaller than the tiles to be cut from it.
    """
    if config.limit:
        part = replace(part, images=part.images[: config.limit], labels=_take(part.labels, slice(config.limit)))
    size = parse_size(config.size, "size")
    height, width, channels = part.images.shape[1:]
    if size in (None, (height, width)) and config.channels in (0, channels):
        return part
    if size and config.crop == "tiles" and (size[0] > height or size[1] > width):
        raise InputError(f"images of {height}x{width} pixels are smaller than tiles of {size[0]}x{size[1]}")
    pieces = [
        (piece, index)
        for index, image in enumerate(part.images)
        for _, piece in cut(with_channels(_to_pillow(image), config.channels or channels), size, config.crop)
    ]
    if config.limit:
        pieces = pieces[: config.limit]
    resampled = bool(size) and size != (height, width) and config.crop != "tiles"
    kept = [index for _, index in pieces]
    images = np.stack([piece for piece, _ in pieces]) if pieces else part.images
    return replace(
        part,
        images=images,
        labels=_take(part.labels, kept),
        resampled=resampled,
        levels=_levels(part, images, resampled),
    )


def fit_files(entries: Sequence[Entry], config: DataConfig, *, channels: int, place: str, strict: bool = False) -> Part:
    """Decode files until ``config.limit`` images are there, in the size asked for; unusable ones are skipped and named.

    Args:
        entries: the files of one split, in order.
        config: size, crop and limit.
        channels: channels of the result; 0 keeps what the first image has.
        place: the source, for messages.
        strict: refuse a single unusable file.

    Raises:
        DataError: when more than 20 % of the files are unusable, or one where ``strict``.
        InputError: when the images differ in size and none is asked for, or all are smaller than a tile.
    """
    size = parse_size(config.size, "size")
    found: list[tuple[str, np.ndarray, int | None]] = []
    skipped: list[str] = []
    failures = tried = 0
    resampled = False
    for entry in entries:
        tried += 1
        try:
            image = _decode(entry, channels)
        except UnusableImage as error:
            if strict:
                raise DataError(f"{place}, {entry.name}: {error}") from error
            failures += 1
            skipped.append(f"{entry.name}: {error}")
            continue
        channels = channels or len(image.getbands())
        resampled |= size is not None and config.crop != "tiles" and image.size != (size[1], size[0])
        pieces = [(entry.name + suffix, piece, entry.label) for suffix, piece in cut(image, size, config.crop)]
        if not pieces:
            skipped.append(f"{entry.name}: smaller than a tile")
        for name, piece, _ in pieces:
            _check_same_size(found, name, piece)
        found += pieces
        if config.limit and len(found) >= config.limit:
            break
    if failures > MOST_FAILURES * tried:
        raise DataError(
            f"{failures} of {tried} files of {place} are unusable (more than 20 %); the first: {skipped[0]}"
        )
    return _gathered(found[: config.limit or None], skipped, resampled)


def cut(image: Image.Image, size: tuple[int, int] | None, crop: str) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays ``uint8 [height, width, channels]`` that an image gives, each with the suffix of its name.

    ``center`` scales the image to cover ``size`` and cuts the middle, ``squash`` scales both sides freely, ``tiles``
    cuts tiles from the top left without scaling and drops what is left over at the right and the bottom.

    Args:
        image: 8-bit image of mode L, RGB or RGBA.
        size: (height, width) in pixels; None keeps the image whole.
        crop: ``center``, ``squash`` or ``tiles``.
    """
    if size is None:
        yield "", _to_array(image)
        return
    height, width = size
    if crop == "tiles":
        whole = _to_array(image)
        for top in range(0, whole.shape[0] - height + 1, height):
            for left in range(0, whole.shape[1] - width + 1, width):
                yield f"#{top},{left}", whole[top : top + height, left : left + width].copy()
    elif crop == "squash":
        yield "", _to_array(image.resize((width, height), FILTER))
    else:
        yield "", _to_array(ImageOps.fit(image, (width, height), FILTER))


def binarize_fixed(images: np.ndarray, seed: int, split: str) -> np.ndarray:
    """One Bernoulli(v/255) draw of every value, as 0 or 255.

    The draw of a split comes from ``numpy.random.default_rng([seed, i])``, i = 0, 1, 2 for train, valid, test; the
    first k images of a split get the same draw whether or not others follow.
    """
    # A whole number u of 0..254 is below v with probability exactly v/255.
    random = np.random.default_rng([seed, SPLITS.index(split)])
    draw = random.integers(0, 255, size=images.shape, dtype=np.uint8)
    return np.where(images > draw, np.uint8(255), np.uint8(0))


def _decode(entry: Entry, channels: int) -> Image.Image:
    try:
        with entry.open() as file:
            return decode(file, channels)
    except READ_ERRORS as error:
        raise UnusableImage(f"cannot be read: {one_line(error)}") from error


def _check_same_size(found: Sequence[tuple[str, np.ndarray, int | None]], name: str, piece: np.ndarray) -> None:
    if found and piece.shape != found[0][1].shape:
        other, first = found[0][0], found[0][1].shape
        raise InputError(
            f"images differ in size: {other} has {first[0]}x{first[1]} pixels, {name} has"
            f" {piece.shape[0]}x{piece.shape[1]}; set data.size, for example size=64"
        )


def _gathered(found: Sequence[tuple[str, np.ndarray, int | None]], skipped: Sequence[str], resampled: bool) -> Part:
    labels = [label for _, _, label in found if label is not None]
    return Part(
        images=np.stack([piece for _, piece, _ in found]) if found else np.empty((0, 0, 0, 0), np.uint8),
        labels=np.array(labels, np.int64) if found and len(labels) == len(found) else None,
        label_names=(),
        levels=256,
        split_rule="",
        names=tuple(name for name, _, _ in found),
        skipped=tuple(skipped),
        resampled=resampled,
    )


def _levels(part: Part, images: np.ndarray, resampled: bool) -> int:
    """Interpolated pixels, and grey made from colours, can take any value."""
    mixed = images.shape[-1] == 1 and part.images.shape[-1] > 1
    return 256 if resampled or mixed else part.levels


def _take(values: np.ndarray | None, index: slice | list[int]) -> np.ndarray | None:
    return None if values is None else values[index]


def _to_pillow(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def _to_array(image: Image.Image) -> np.ndarray:
    array = np.array(image)
    return array[..., None] if array.ndim == 2 else array

"""Turn images of any size into one array: size, crop, channels, binarization."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import PIL
from PIL import Image, ImageOps

from tessella.config import DataConfig
from tessella.data.image_set import Images
from tessella.data.limits import check_resized
from tessella.data.pixel_conversion import with_channels
from tessella.data.splits import ALL, SPLITS
from tessella.errors import ConfigError, InputError

FILTER = Image.Resampling.LANCZOS
FILTER_NAME = f"lanczos (Pillow {PIL.__version__})"
"""The resampling filter, recorded because it changes bits/dim by about 0.1."""
_BAND = 1 << 20  # number of pixels that are copied at a time


@dataclass(frozen=True)
class Part:
    """One split, as a data source returns it.

    Args:
        images: ``uint8 [n, height, width, channels]``; stored in a file for folders, an array for
            all other sources.
        labels: ``int64 [n]``, or None.
        label_names: names of the classes; ``()`` when unknown.
        levels: number of values that the pixels of this source take.
        split_rule: the rule that defines the split, in one line.
        names: names of the images, for folders.
        skipped: files left out, each as ``path: reason``.
        resampled: whether pixels were interpolated, so that they can take any value.
    """

    images: Images
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    levels: int
    split_rule: str
    names: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    resampled: bool = False


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
        raise ConfigError(
            f"data.{key} must be a number of pixels like 64, or HEIGHTxWIDTH like 48x64,"
            f" got {text!r}"
        )
    height = int(match[1])
    width = int(match[2] or height)
    return height, width


def fit_arrays(part: Part, config: DataConfig) -> Part:
    """Limit, resize and convert the images of a source that is held in memory.

    The configuration says how: its ``limit``, ``size``, ``crop`` and ``channels``.

    Raises:
        InputError: when the images asked for would take too much memory, or an image is smaller
            than the tiles to be cut from it.
    """
    if config.limit:
        # Limited before scaling; with tiles, the first images give more than enough.
        part = replace(
            part,
            images=part.images[: config.limit],
            labels=_take(part.labels, slice(config.limit)),
        )
    size = parse_size(config.size, "size")
    arrays = np.asarray(part.images)  # [n, height, width, channels]
    height, width, channels = arrays.shape[1:]
    if size in (None, (height, width)) and config.channels in (0, channels):
        return part
    # Tiles are cut out of existing pixels, so together they are never larger. Resized images all
    # exist at the same time, first in a list and then in one array.
    if size is not None and config.crop != "tiles":
        check_resized((len(arrays), *size, config.channels or channels))
    if size and config.crop == "tiles" and (size[0] > height or size[1] > width):
        raise InputError(
            f"images {width} pixels wide and {height} high are smaller than tiles"
            f" {size[1]} wide and {size[0]} high"
        )
    pieces, sources = _cut_all(arrays, config.channels or channels, size, config)
    resampled = bool(size) and size != (height, width) and config.crop != "tiles"
    images = np.stack(pieces) if pieces else arrays
    return replace(
        part,
        images=images,
        labels=_take(part.labels, sources),
        resampled=resampled,
        levels=_levels(part, channels, images, resampled),
    )


def _cut_all(
    arrays: np.ndarray, channels: int, size: tuple[int, int] | None, config: DataConfig
) -> tuple[list[np.ndarray], list[int]]:
    """The pieces of all images, up to the limit, and for each the index of its image."""
    pieces: list[np.ndarray] = []
    sources: list[int] = []
    for index, array in enumerate(arrays):
        image = with_channels(_to_pillow(array), channels)
        for _, piece in cut(image, size, config.crop):
            if config.limit and len(pieces) == config.limit:
                return pieces, sources
            pieces.append(piece)
            sources.append(index)
    return pieces, sources


def cut(
    image: Image.Image, size: tuple[int, int] | None, crop: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Cut an image into arrays ``uint8 [height, width, channels]``, with name suffixes.

    ``center`` scales the image to cover ``size`` and crops the centre, ``squash`` scales it without
    keeping the aspect ratio, and ``tiles`` cuts tiles from the top left without scaling and drops
    what is left over at the right and the bottom.

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
        for top in range(0, image.height - height + 1, height):
            for left in range(0, image.width - width + 1, width):
                tile = image.crop((left, top, left + width, top + height))
                yield f"#{top},{left}", _to_array(tile)
    elif crop == "squash":
        yield "", _to_array(image.resize((width, height), FILTER))
    else:
        yield "", _to_array(ImageOps.fit(image, (width, height), FILTER))


def binarize_fixed(images: np.ndarray, seed: int, split: str) -> np.ndarray:
    """Draw every value v once from Bernoulli(v/255), as 0 or 255.

    The draw of a split comes from ``numpy.random.default_rng([seed, i])``, i = 0, 1, 2 for train,
    valid, test (3 for all); the first k images of a split get the same draw whether or not others
    follow.
    """
    # A uniform integer in 0..254 is below v with probability exactly v/255.
    random = np.random.default_rng([seed, (*SPLITS, ALL).index(split)])
    draw = random.integers(0, 255, size=images.shape, dtype=np.uint8)
    return np.where(images > draw, np.uint8(255), np.uint8(0))


def _levels(part: Part, channels: int, images: np.ndarray, resampled: bool) -> int:
    """Number of values that pixels take, after ``channels`` channels became ``images``."""
    mixed = images.shape[-1] == 1 and channels > 1
    # Interpolated pixels, and grey made from colours, can take any value.
    return 256 if resampled or mixed else part.levels


def _take(values: np.ndarray | None, index: slice | list[int]) -> np.ndarray | None:
    if values is None:
        return None
    return values[index]


def _to_pillow(array: np.ndarray) -> Image.Image:
    """An image of mode L, RGB or RGBA from ``uint8 [height, width, 1, 3 or 4]``."""
    if array.shape[-1] == 1:
        array = array[..., 0]  # Pillow wants grey without a dimension for its channel
    return Image.fromarray(array)


def _to_array(image: Image.Image) -> np.ndarray:
    """The pixels of an image as ``uint8 [height, width, channels]``.

    They are copied band by band, since numpy alone would hold the pixels three times.
    """
    array = np.empty((image.height, image.width, len(image.getbands())), np.uint8)
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        part = array[top : top + rows]  # a view: writing to it fills the array
        band = image.crop((0, top, image.width, top + len(part)))
        # Grey comes without a dimension for its channel.
        part[:] = np.asarray(band).reshape(part.shape)
    return array

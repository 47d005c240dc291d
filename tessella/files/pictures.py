"""Pictures for people: sheets of images as PNG that carry in their text how they were made."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from tessella import files
from tessella.errors import ArtifactError, InputError

LEAST_SIDE = 512
"""Sheets are magnified by a whole factor until their longer side would pass this."""

GAP = 2
"""Pixels between images, at least."""

BACKGROUND = 255
"""Grey level between images and around them."""

LINE_HEIGHT = 24
"""Pixels of a line of text above a panel."""

MARGIN = 8
"""Pixels around a page of panels."""

PANEL_GAP = 16
"""Pixels between panels."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Numbers of channels that a PNG can have, and what Pillow calls them."""


def save_png(path: Path | str, image: np.ndarray, made: Mapping[str, object]) -> None:
    """Write one image as PNG, and how it was made in its text.

    Args:
        path: of the file.
        image: ``uint8 [h, w, c]`` with 1, 3 or 4 channels.
        made: plain values (model, seed, settings, version); stored as text under ``tessella``.

    Raises:
        ArtifactError: when it cannot be written.
        InputError: when the image has another number of channels.
    """
    # In memory first: the file is written whole or not at all.
    files.write_bytes(path, png(image, made))


def png(image: np.ndarray, made: Mapping[str, object] | None = None) -> bytes:
    """One image as the bytes of a PNG file; arguments and errors as of :func:`save_png`."""
    text = PngInfo()
    if made is not None:
        text.add_text(files.PNG_KEY, files.json_text(dict(made), indent=None, sort_keys=True))
    buffer = io.BytesIO()
    _picture(image).save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def read_made(path: Path | str) -> dict[str, object]:
    """How a PNG was made, as :func:`save_png` stored it; empty when it was not made here.

    Raises:
        ArtifactError: when its text is damaged.
    """
    with Image.open(path) as picture:
        text = picture.info.get(files.PNG_KEY, "{}")
    made = files.parse_json(text, f"the text of {path}")
    if not isinstance(made, dict):
        raise ArtifactError(f"the text of {path} is not a JSON object")
    return made


def sheet(images: np.ndarray, columns: int = 0, magnify: int = 0) -> np.ndarray:
    """Images in rows on one sheet.

    Args:
        images: ``uint8 [n, h, w, c]``.
        columns: images in a row; 0 makes the sheet about square.
        magnify: whole factor of nearest-neighbour magnification; 0 picks one for the screen.

    Returns:
        ``uint8 [H, W, c]``.
    """
    n, height, width, channels = images.shape
    # columns * width = rows * height, with rows = n / columns.
    if not columns:
        columns = int(np.ceil(np.sqrt(n * height / width)))
    columns = min(n, columns)
    rows = -(-n // columns)
    factor = magnify or max(1, LEAST_SIDE // max(rows * height, columns * width))
    # Gaps grow with the pixels, or they would vanish between large ones.
    gap = max(GAP, factor)
    large = images.repeat(factor, axis=1).repeat(factor, axis=2)
    height *= factor
    width *= factor
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap, channels)
    page = np.full(size, BACKGROUND, np.uint8)
    for number, image in enumerate(large):
        row, column = divmod(number, columns)
        top = row * (height + gap)
        left = column * (width + gap)
        page[top : top + height, left : left + width] = image
    return page


def captioned(panels: Sequence[tuple[str, np.ndarray]], across: bool = True) -> np.ndarray:
    """Sheets side by side, or one under another, each under a line of text.

    Args:
        panels: titles and sheets ``uint8 [h, w, c]``.
        across: side by side.

    Returns:
        ``uint8 [H, W, 3]``.
    """
    font = ImageFont.load_default(size=16)
    titles = []
    pictures = []
    widths = []
    heights = []
    for title, panel in panels:
        picture = _picture(panel).convert("RGB")
        titles.append(title)
        pictures.append(picture)
        # A title may be wider than its picture.
        widths.append(max(picture.width, int(font.getlength(title)) + 1))
        heights.append(picture.height + LINE_HEIGHT + 4)
    gaps = PANEL_GAP * (len(panels) - 1)
    if across:
        size = (sum(widths) + gaps, max(heights))
    else:
        size = (max(widths), sum(heights) + gaps)
    page = Image.new("RGB", (size[0] + 2 * MARGIN, size[1] + 2 * MARGIN), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(page)
    left = MARGIN
    top = MARGIN
    for title, picture, width, height in zip(titles, pictures, widths, heights, strict=True):
        draw.text((left, top), title, fill=(0, 0, 0), font=font)
        page.paste(picture, (left, top + LINE_HEIGHT))
        if across:
            left += width + PANEL_GAP
        else:
            top += height + PANEL_GAP
    return np.asarray(page)


def beside_nearest(
    images: np.ndarray, training: np.ndarray, columns: int = 4, magnify: int = 0
) -> np.ndarray:
    """A sheet of pairs: each image, and right of it the training image nearest to it.

    Samples that look like copies are copies: this is where to see it. The distance is the squared
    one between pixels.
    """
    flat_training = training.reshape(len(training), -1).astype(np.float32)
    flat_images = images.reshape(len(images), -1).astype(np.float32)
    # |a - b|^2 = |a|^2 - 2 a b + |b|^2, without an array of all differences: [images, training]
    products = flat_images @ flat_training.T
    distances = (flat_images**2).sum(1)[:, None] - 2 * products + (flat_training**2).sum(1)[None]
    nearest = training[distances.argmin(1)]
    # A grey line between the two: [n, h, 1, c].
    line = np.full((len(images), images.shape[1], 1, images.shape[3]), 128, np.uint8)
    return sheet(np.concatenate([images, line, nearest], axis=2), columns, magnify)


def _picture(image: np.ndarray) -> Image.Image:
    if image.ndim != 3 or image.shape[2] not in MODES or image.dtype != np.uint8:
        raise InputError(
            "a picture needs uint8 [height, width, 1, 3 or 4], "
            f"got {image.dtype} {list(image.shape)}; write other data as .npz"
        )
    mode = MODES[image.shape[2]]
    # Pillow knows grey images as [h, w].
    if mode == "L":
        image = image[:, :, 0]
    return Image.fromarray(image, mode)

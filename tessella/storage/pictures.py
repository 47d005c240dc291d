"""Pictures for people: sheets of images as PNG that carry in their text how they were made."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from tessella import files
from tessella.errors import InputError

LEAST_SIDE = 512
"""Sheets are magnified by a whole factor until their longer side would pass this."""

GAP = 2
"""Pixels between images, before magnification is chosen."""

BACKGROUND = 255


def save_png(path: Path | str, image: np.ndarray, made: Mapping[str, Any]) -> None:
    """Write one image ``uint8 [h, w, c]`` with 1, 3 or 4 channels, and how it was made in its PNG
    text.

    Args:
        made: plain values (model, seed, settings, version); stored as text under ``tessella``.

    Raises:
        ArtifactError: when it cannot be written.
        InputError: when the image has another number of channels.
    """
    text = PngInfo()
    text.add_text("tessella", files.json_text(dict(made), indent=None, sort_keys=True))
    buffer = io.BytesIO()
    _picture(image).save(buffer, format="PNG", pnginfo=text)
    files.write_bytes(path, buffer.getvalue())


def read_made(path: Path | str) -> dict[str, Any]:
    """How a PNG was made, as :func:`save_png` stored it; empty when it was not made here."""
    with Image.open(path) as picture:
        made: dict[str, Any] = files.parse_json(picture.info.get("tessella", "{}"), str(path))
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
    columns = min(n, columns or int(np.ceil(np.sqrt(n * height / width))))
    rows = -(-n // columns)
    factor = magnify or max(1, LEAST_SIDE // max(rows * height, columns * width))
    gap = max(GAP, factor)
    large = images.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = height * factor, width * factor
    page = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels), BACKGROUND, np.uint8
    )
    for i, image in enumerate(large):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        page[top : top + height, left : left + width] = image
    return page


def captioned(panels: Sequence[tuple[str, np.ndarray]], across: bool = True) -> np.ndarray:
    """Sheets side by side (or one under another), each under a line of text:
    ``uint8 [H, W, 3]``."""
    font = ImageFont.load_default(size=16)
    pictures = [(title, _picture(panel).convert("RGB")) for title, panel in panels]
    widths = [max(picture.width, int(font.getlength(title)) + 1) for title, picture in pictures]
    heights = [picture.height + 28 for _, picture in pictures]
    size = (sum(widths) + 16 * (len(widths) - 1), max(heights))
    if not across:
        size = (max(widths), sum(heights) + 16 * (len(heights) - 1))
    page = Image.new("RGB", (size[0] + 16, size[1] + 16), (BACKGROUND,) * 3)
    at, draw = 8, ImageDraw.Draw(page)
    for (title, picture), width, height in zip(pictures, widths, heights, strict=True):
        place = (at, 8) if across else (8, at)
        draw.text(place, title, fill=(0, 0, 0), font=font)
        page.paste(picture, (place[0], place[1] + 24))
        at += (width if across else height) + 16
    return np.asarray(page)


def beside_nearest(
    images: np.ndarray, training: np.ndarray, columns: int = 4, magnify: int = 0
) -> np.ndarray:
    """A sheet of pairs: each image, and right of it the training image nearest to it in squared
    distance.

    Samples that look like copies are copies: this is where to see it.
    """
    flat = training.reshape(len(training), -1).astype(np.float32)
    own = images.reshape(len(images), -1).astype(np.float32)
    distances = (own**2).sum(1)[:, None] - 2 * own @ flat.T + (flat**2).sum(1)[None]
    nearest = training[distances.argmin(1)]
    gap = np.full((len(images), images.shape[1], 1, images.shape[3]), 128, np.uint8)
    return sheet(np.concatenate([images, gap, nearest], axis=2), columns, magnify)


def _picture(image: np.ndarray) -> Image.Image:
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if image.ndim != 3 or image.shape[2] not in modes or image.dtype != np.uint8:
        raise InputError(
            f"a picture needs uint8 [height, width, 1, 3 or 4], got {image.dtype}"
            f" {list(image.shape)}; write other data as .npz"
        )
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image, modes[image.shape[2]])

"""Pictures and plots of a page: PNG in data URIs, and inline SVG in the colour of the text."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tessella import data
from tessella.files import pictures

INK = "#010203"
"""Drawn in this colour, then replaced by the colour of the page's text."""

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes  # the name for all plots of a page
else:
    Axes = object  # matplotlib is optional, and imported where something is drawn

Plotter = Callable[[Axes], None]
"""Draws onto axes."""


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Args:
        title: heading, and the text where the picture cannot be shown.
        uri: the PNG itself.
        note: the caption.
        width: in pixels.
    """

    title: str
    uri: str
    note: str = ""
    width: int = 0


def svg(title: str, draw: Plotter) -> str:
    """A plot as an inline SVG element in the colour of the text around it."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        # Whatever style the user has set: pages repeat.
        matplotlib.rcdefaults()
        matplotlib.rcParams["axes.edgecolor"] = INK
        matplotlib.rcParams["axes.labelcolor"] = INK
        matplotlib.rcParams["axes.titlecolor"] = INK
        matplotlib.rcParams["text.color"] = INK
        matplotlib.rcParams["xtick.color"] = INK
        matplotlib.rcParams["ytick.color"] = INK
        matplotlib.rcParams["svg.fonttype"] = "none"
        matplotlib.rcParams["font.size"] = 9
        # The salt makes equal plots equal files.
        matplotlib.rcParams["svg.hashsalt"] = title
        figure = Figure(figsize=(7, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, loc="left", fontsize=10)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inlined(buffer.getvalue())


def sheet(title: str, images: np.ndarray, columns: int, note: str) -> Picture:
    """Images in rows as one picture; those of two channels are shown by their first."""
    if images.shape[3] == 2:
        images = rgb(images)
    return picture(title, pictures.sheet(images, columns), note)


def picture(title: str, pixels: np.ndarray, note: str) -> Picture:
    """Pixels ``uint8 [h, w, c]`` as a picture of the page."""
    buffer = io.BytesIO()
    # Pillow knows grey images as [h, w].
    if pixels.shape[2] == 1:
        shown = pixels[:, :, 0]
    else:
        shown = pixels
    Image.fromarray(shown).save(buffer, format="PNG", optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return Picture(title, f"data:image/png;base64,{encoded}", note, pixels.shape[1])


def columns(images: np.ndarray, n: int) -> int:
    """Images in a row: about twice as many as rows, since a page is wider than high.

    Rows are full where they can be.
    """
    height, width = images.shape[1:3]
    # columns * width = 2 * rows * height, with rows = n / columns.
    wanted = max(1, int(np.ceil(np.sqrt(2 * n * height / width))))
    for candidate in range(wanted, min(n, 2 * wanted) + 1):
        if n % candidate == 0:
            return candidate
    return min(n, wanted)


def rgb(images: np.ndarray) -> np.ndarray:
    """Images of any number of channels with three.

    Grey is repeated, alpha is left out, of two channels the first is shown.
    """
    if images.shape[-1] >= 3:
        return images[..., :3]
    return images[..., :1].repeat(3, axis=-1)


def size_of(images: data.ImageSet) -> tuple[int, int]:
    """Height and width, of one image: images may be read piece by piece."""
    height, width = np.asarray(images.images[:1]).shape[1:3]
    return height, width


def some(images: data.ImageSet, n: int) -> np.ndarray:
    """So many images, spread evenly over the split: neighbours in a folder are often alike."""
    # Few images: places may meet, and each is shown once.
    places = np.unique(np.linspace(0, len(images) - 1, min(n, len(images))).round().astype(int))
    chosen = [np.asarray(images.images[at : at + 1]) for at in places.tolist()]
    return np.concatenate(chosen)


def which(images: data.ImageSet) -> str:
    """The source and the split of images, for captions."""
    return f"{images.name}, {images.split}"


def _inlined(text: str) -> str:
    """An SVG file as an element of a page.

    What only a file needs goes, and so do names, which plots would share.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", text)
    text = re.sub(r'<g id="[\w.]+_\d+">', "<g>", text)
    text = text.replace(INK, "currentColor")
    text = re.sub(r'font-family: [^;"]*', "font-family: inherit", text)
    # Two decimals of a pixel are enough for a path.
    text = re.sub(r' d="[^"]*"', _short_path, text)
    # The page's style gives the size.
    size = r'<svg ([^>]*?)(width|height)="[^"]*" ?([^>]*?)(width|height)="[^"]*" ?'
    return re.sub(size, r"<svg \1\3", text, count=1)


def _short_path(path: re.Match[str]) -> str:
    return re.sub(r"(\.\d\d)\d+", r"\1", path[0])

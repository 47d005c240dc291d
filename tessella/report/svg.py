"""Pictures and plots of a page: PNG in data URIs, and inline SVG in the colour of the text."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tessella import data
from tessella.storage import pictures

INK = "#010203"
"""Drawn in this colour, then replaced by the colour of the page's text."""


@dataclass(frozen=True)
class Picture:
    """A picture of the page."""

    title: str
    uri: str
    note: str = ""
    width: int = 0
    """Pixels."""


def svg(title: str, draw: Callable[[Any], None]) -> str:
    """A plot as an inline SVG element whose lines and letters have the colour of the text around
    it."""
    import matplotlib
    from matplotlib.figure import Figure

    inked: Any = (
        "axes.edgecolor",
        "axes.labelcolor",
        "axes.titlecolor",
        "text.color",
        "xtick.color",
        "ytick.color",
    )
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(dict.fromkeys(inked, INK))
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9})
        figure = Figure(figsize=(7, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, loc="left", fontsize=10)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inlined(buffer.getvalue())


def _inlined(svg: str) -> str:
    """An SVG file as an element of a page: without what only a file needs, and without names that
    plots share."""
    body = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    body = re.sub(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", body)
    body = re.sub(r'<g id="[\w.]+_\d+">', "<g>", body).replace(INK, "currentColor")
    body = re.sub(r'font-family: [^;"]*', "font-family: inherit", body)
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body)
    return re.sub(
        r'<svg ([^>]*?)(width|height)="[^"]*" ?([^>]*?)(width|height)="[^"]*" ?',
        r"<svg \1\3",
        body,
        count=1,
    )


def sheet(title: str, images: np.ndarray, columns: int, note: str) -> Picture:
    return picture(
        title, pictures.sheet(rgb(images) if images.shape[3] == 2 else images, columns), note
    )


def picture(title: str, pixels: np.ndarray, note: str) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(
        buffer, format="PNG", optimize=True
    )
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(title, uri, note, pixels.shape[1])


def columns(images: np.ndarray, n: int) -> int:
    """Images in a row: about twice as many as rows, as a page is wider than high; rows are full
    where they can be."""
    wanted = max(1, int(np.ceil(np.sqrt(2 * n * images.shape[1] / images.shape[2]))))
    full = [columns for columns in range(wanted, min(n, 2 * wanted) + 1) if n % columns == 0]
    return full[0] if full else min(n, wanted)


def rgb(images: np.ndarray) -> np.ndarray:
    """Images of any number of channels with three: grey repeated, alpha left out, the first of
    two."""
    return images[..., :3] if images.shape[-1] >= 3 else images[..., :1].repeat(3, axis=-1)


def size_of(images: data.ImageSet) -> tuple[int, int]:
    """Height and width. Images may be read piece by piece, so no more of them are asked for than
    needed."""
    height, width = np.asarray(images.images[:1]).shape[1:3]
    return height, width


def some(images: data.ImageSet, n: int) -> np.ndarray:
    """So many images, spread evenly over the split: neighbours in a folder are often alike."""
    places = np.unique(np.linspace(0, len(images) - 1, min(n, len(images))).round().astype(int))
    return np.concatenate([np.asarray(images.images[at : at + 1]) for at in places.tolist()])


def which(images: data.ImageSet) -> str:
    return f"{images.name}, {images.split}"

"""Pictures in the terminal, above the line that says where they were written.

A terminal that can show images does (Kitty's protocol, or sixel, which iTerm2 reads too); any other
shows half blocks in colour. The library that asks the terminal is textual-image.
"""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tessella.cli import terminal

LINES = 20
"""Lines of the terminal that a preview takes, at most: the command above it stays in sight."""


def show(image: np.ndarray) -> None:
    """Show an image where a person watches; elsewhere nothing happens.

    Args:
        image: ``uint8 [h, w, c]`` with one or three channels.
    """
    if not _is_watched():
        return
    # Asking the terminal what it can do takes a moment, so nothing is asked before it is needed.
    from PIL import Image
    from rich.console import Console

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    console = Console()
    width, height = size_in_cells(picture.width, picture.height, console.width)
    console.print(_renderable(picture, width, height))


def show_file(path: Path | str) -> None:
    """Show a picture that was written as a PNG file."""
    if not _is_watched():
        return
    from PIL import Image

    with Image.open(path) as picture:
        show(np.asarray(picture.convert("RGB")))


def size_in_cells(width: int, height: int, columns: int, lines: int = LINES) -> tuple[int, int]:
    """The largest size that keeps the shape of a picture and fits into the terminal.

    A cell of a terminal is about twice as high as it is wide.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        columns: cells across that there are.
        lines: cells down that may be used.

    Returns:
        Cells across and cells down, at least one of each.
    """
    ratio = width / height
    across = max(1, min(columns, round(2 * lines * ratio)))
    down = max(1, min(lines, round(across / ratio / 2)))
    return across, down


def _is_watched() -> bool:
    if terminal.is_quiet() or not sys.stdout.isatty():
        return False
    # Programs that imitate a terminal may give it no size.
    return shutil.get_terminal_size(fallback=(0, 0)).columns > 0


def _renderable(picture: Any, width: int, height: int) -> Any:
    # Of terminals that do not answer it warns once more at each question; half blocks need none.
    logging.getLogger("textual_image").setLevel(logging.ERROR)
    # The module asks the terminal when it is imported.
    from textual_image.renderable import Image

    return Image(picture, width=width, height=height)

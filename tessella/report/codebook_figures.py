"""The codes of a tokenizer in pictures: maps, usage, and the patch that each code decodes to."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch

from tessella import data
from tessella.files import pictures
from tessella.grid import Grid
from tessella.report.curve_plots import can_plot
from tessella.report.svg import Axes, Picture, picture, rgb, sheet, size_of, some, svg, which
from tessella.tokenizers import Tokenizer, codebook_health
from tessella.tokenizers.quantizers import CodeUsage
from tessella.tokenizers.tokenizer import Symbols, channels

USAGE_PIXELS = 2**20
"""Pixels of the images whose codes are counted: 1024 images of 32x32."""

MOST_CODES = 1024
"""Codes in an atlas, and bars in a histogram."""

FEWEST_CODES = 64
"""Codes in an atlas, however large their patches are."""

ATLAS_PIXELS = 2**20
"""Pixels that are decoded for an atlas, at most, except for the most used codes."""

MOST_MAPS = 8
"""Codebooks that are drawn: depths beyond it are left out."""

ERROR_GAIN = 4
"""Factor by which error maps are brighter than the errors."""

SIDE = 5
"""Places along each side of the image of one code, of which the middle is shown."""

GOLDEN = 0.618034
"""Step of the hue between codes: neighbouring numbers get colours far apart."""

RED = (220, 40, 40)


class CodebookPart(TypedDict):
    """One codebook on the page."""

    title: str
    rows: list[tuple[str, str]]
    histogram: str
    atlas: Picture


class CodebookSection(TypedDict):
    """The codes of a tokenizer on the page; ``where`` says what they were counted on."""

    where: str
    diagnosis: list[str]
    books: list[CodebookPart]


def rebuilt(tokenizer: Tokenizer, images: data.ImageSet) -> Picture:
    """Originals, reconstructions, errors, and the codes of each codebook, one below another."""
    height, width = size_of(images)
    given = some(images, max(2, min(8, 640 // width)))
    symbols = tokenizer.encode(given)
    back = tokenizer.decode(symbols, (height, width)).cpu().numpy()
    # The largest error of a pixel's channels: [n, h, w, 1].
    errors = np.abs(given.astype(np.int16) - back).max(axis=3, keepdims=True) * ERROR_GAIN
    rows = [rgb(given), rgb(back), rgb(errors.clip(0, 255).astype(np.uint8))]
    grids: list[Grid] = []
    for grid in tokenizer.grids(height, width):
        grids += [grid] * grid.channels
    for grid, codes in list(zip(grids, channels(symbols), strict=True))[:MOST_MAPS]:
        stride = _stride(tokenizer, grid, (height, width))
        rows.append(code_map(codes.cpu().numpy(), grid.levels, stride, (height, width)))
    several = ""
    if len(grids) > 1:
        several = f" of each of {len(grids)} codebooks, coarse to fine"
    if len(grids) > MOST_MAPS:
        several += f", the first {MOST_MAPS}"
    note = (
        f"Images of {which(images)}. From above: the image, its reconstruction, the largest "
        f"absolute error of a pixel's channels times {ERROR_GAIN}, its codes{several} "
        "(a colour each)."
    )
    return sheet("Reconstructions", np.concatenate(rows), len(given), note)


def code_map(symbols: np.ndarray, levels: int, stride: int, size: tuple[int, int]) -> np.ndarray:
    """Codes ``[n, h, w]`` as pictures ``uint8 [n, *size, 3]``, a colour for each code."""
    tones = []
    for code in range(levels):
        saturation = 0.45 + 0.5 * (code % 3) / 2
        brightness = 0.6 + 0.4 * (code % 2)
        tones.append(colorsys.hsv_to_rgb(code * GOLDEN % 1, saturation, brightness))
    # [levels, 3]; symbols index it.
    palette = (np.array(tones) * 255).round().astype(np.uint8)
    # Each code covers its stride of pixels.
    large = palette[symbols].repeat(stride, axis=1).repeat(stride, axis=2)
    return large[:, : size[0], : size[1]]


def codebooks(
    tokenizer: Tokenizer, images: data.ImageSet | None, steps: int | None = None
) -> CodebookSection | None:
    """The section on codes: their usage, a diagnosis of it, and the patch of each code.

    Args:
        tokenizer: makes the codes.
        images: to count codes on; None takes the running counts that quantizers keep.
        steps: of the tokenizer's training, if known.

    Returns:
        None where there are no counts.
    """
    diagnosis: list[str] = []
    rows: list[list[tuple[str, str]]] = []
    if images is not None:
        height, width = size_of(images)
        # As many images as it takes for a stable count, and no more.
        counted = some(images, max(1, USAGE_PIXELS // (height * width)))
        counts = _counted(tokenizer, counted)
        facts = codebook_health.examine(tokenizer, counts, steps)
        diagnosis = codebook_health.diagnose(facts)
        where = f"{len(counted):,} images of {which(images)}"
        for book in facts:
            rows.append(_rows(book))
    else:
        counts = _running_counts(tokenizer)
        where = "moving averages of the training batches"
        for _ in counts:
            rows.append([])
    if not counts:
        return None
    books: list[CodebookPart] = []
    titles = [title for title, _ in _books(tokenizer)]
    charts = atlases(tokenizer, counts)
    # Codebooks beyond the last atlas are left out.
    for title, lines, count, chart in zip(titles, rows, counts, charts, strict=False):
        histogram = _histogram(count.numpy(), title)
        books.append({"title": title, "rows": lines, "histogram": histogram, "atlas": chart})
    return {"where": where, "diagnosis": diagnosis, "books": books}


def atlases(tokenizer: Tokenizer, counts: list[torch.Tensor]) -> list[Picture]:
    """The :func:`atlas` of each codebook, up to the eighth."""
    arrays = [count.numpy() for count in counts]
    charts = []
    for book in range(min(len(counts), MOST_MAPS)):
        charts.append(atlas(tokenizer, arrays, book))
    return charts


def atlas(tokenizer: Tokenizer, counts: list[np.ndarray], book: int = 0) -> Picture:
    """Each code decoded where all its neighbours are the same code.

    The most used codes come first, unused ones are crossed out. Other codebooks, where there are
    some, are set to their most used code.

    Args:
        tokenizer: decodes.
        counts: how often each code of each codebook is used.
        book: which codebook, coarse to fine.
    """
    used = counts[book]
    side, size = patch_sides(tokenizer, book)
    most = min(MOST_CODES, max(FEWEST_CODES, ATLAS_PIXELS // size**2))
    order = np.argsort(-used, kind="stable")[:most]
    # Many codes in long rows of small cells, few in short rows of large ones.
    if len(order) > 128:
        columns, least_side = 32, 16
    else:
        columns, least_side = 16, 32
    others = [int(np.argmax(count)) for count in counts]
    patches = rgb(code_patches(tokenizer, book, order, others))
    factor = max(1, least_side // side)
    cells = patches.repeat(factor, axis=1).repeat(factor, axis=2)
    for cell, count in zip(cells, used[order], strict=True):
        if not count:
            _cross_out(cell)
    note = "Each code where all its neighbours are the same code; the most used first, row by row."
    note += _shares(used[order] / max(1, used.sum()), columns)
    if not used[order].all():
        note += " Codes crossed out in red were not used."
    if len(used) > len(order):
        note += f" The first {len(order):,} of {len(used):,}."
    if len(counts) > 1:
        note += " The other codebooks are set to their most used code."
    return picture("What the codes decode to", pictures.sheet(cells, columns, 1), note)


def _cross_out(cell: np.ndarray) -> None:
    """Draw both diagonals of a cell ``[side, side, 3]`` in red."""
    at = np.arange(len(cell))
    cell[at, at] = RED
    cell[at, at[::-1]] = RED


def _books(tokenizer: Tokenizer) -> list[tuple[str, int]]:
    """The name of each codebook where there are several, and the number of its grid."""
    grids = tokenizer.grids()
    books = []
    for number, grid in enumerate(grids):
        for depth in range(grid.channels):
            words = []
            if len(grids) > 1:
                words.append(f"grid {number}")
            if grid.channels > 1:
                words.append(f"depth {depth}")
            books.append((", ".join(words), number))
    return books


def _counted(tokenizer: Tokenizer, images: np.ndarray) -> list[torch.Tensor]:
    """How often each code of each codebook is used in some images."""
    books: list[CodeUsage] = []
    for grid in tokenizer.grids():
        for _ in range(grid.channels):
            books.append(CodeUsage(grid.levels))
    counts = []
    for book, codes in zip(books, channels(tokenizer.encode(images)), strict=True):
        book.update(codes)
        counts.append(book.counts)
    return counts


def _running_counts(tokenizer: Tokenizer) -> list[torch.Tensor]:
    """The running counts that quantizers keep; none unless each codebook has them."""
    kept = []
    for name, buffer in tokenizer.named_buffers():
        if name.split(".")[-1] == "counts":
            kept.append(buffer.cpu())
    levels = []
    for grid in tokenizer.grids():
        levels += [grid.levels] * grid.channels
    # Other buffers may be called so, and some quantizers keep no counts.
    if list(map(len, kept)) != levels:
        return []
    return kept


def _rows(book: codebook_health.Facts) -> list[tuple[str, str]]:
    rows = [
        ("codes used", f"{book.used:,} of {book.codes:,}"),
        ("never used", f"{book.dead:,}"),
        ("perplexity", f"{book.perplexity:.1f}, {book.perplexity / book.codes:.3f} of the codes"),
        ("entropy", f"{book.entropy_bits:.3f} bits a code"),
        ("most frequent code", f"{book.top_share:.2%}"),
    ]
    if book.twins is not None:
        rows.append(("codes with a twin", f"{book.twins:,}"))
    if book.variance_share is not None:
        rows.append(("share of the variance", f"{book.variance_share:.1%}"))
    return rows


def code_patches(
    tokenizer: Tokenizer, book: int, codes: np.ndarray, others: Sequence[int] = ()
) -> np.ndarray:
    """What codes decode to, each where all its neighbours are the same code.

    Args:
        tokenizer: decodes.
        book: number of the codebook, coarse to fine.
        codes: int64 ``[n]``.
        others: the code that stands in each of the other codebooks; code 0 where there are none.

    Returns:
        ``uint8 [n, side, side, channels]``, where a side is the pixels that a code stands for.
    """
    side, size = patch_sides(tokenizer, book)
    images = _images_of_codes(tokenizer, book, codes, others, size)
    # Only the middle: borders of a patch decode as borders of an image.
    start = (size - side) // 2
    middle = slice(start, start + side)
    return images[:, middle, middle]


def patch_sides(tokenizer: Tokenizer, book: int) -> tuple[int, int]:
    """Pixels along each side of the patch of a code, and of the image that it is the middle of.

    Args:
        tokenizer: decodes.
        book: number of the codebook, coarse to fine.
    """
    _, number = _books(tokenizer)[book]
    grid = tokenizer.grids()[number]
    side = _stride(tokenizer, grid)
    # A code that stands for the whole image has no neighbours.
    if grid.height * grid.width == 1:
        return side, side
    return side, SIDE * side


def _images_of_codes(
    tokenizer: Tokenizer, book: int, codes: np.ndarray, others: Sequence[int], size: int
) -> np.ndarray:
    """Images ``[codes, size, size, channels]`` of one code each."""
    symbols = []
    number = 0
    for grid in tokenizer.grids(size, size):
        part = torch.zeros(len(codes), *grid.shape, dtype=torch.int64)
        for channel in range(grid.channels):
            if number == book:
                part[..., channel] = torch.from_numpy(codes)[:, None, None]
            elif others:
                part[..., channel] = others[number]
            # Codebooks are numbered through all grids and depths.
            number += 1
        symbols.append(part)
    # One grid is a tensor, several are a tuple.
    given: Symbols = symbols[0]
    if len(symbols) > 1:
        given = tuple(symbols)
    return tokenizer.decode(given, (size, size)).cpu().numpy()


def _shares(shares: np.ndarray, columns: int) -> str:
    """How many places the first codes take, for a caption."""
    if not shares.sum():
        return ""
    # Codes are ordered by use: the first of them that together take half.
    half = int(np.searchsorted(np.cumsum(shares), 0.5)) + 1
    first_row = shares[:columns].sum()
    text = f" The first takes {shares[0]:.1%}, the first row {first_row:.0%}"
    if 1 < half <= len(shares):
        return f"{text}; {half:,} codes take half of the places."
    return f"{text}."


def _stride(tokenizer: Tokenizer, grid: Grid, size: tuple[int, int] | None = None) -> int:
    """Pixels along each side of a place of a grid, of images of ``size``.

    Without a size, of images of ``image_size``.
    """
    height, width = size or tokenizer.image_size
    stride = max(1, tokenizer.stride)
    # Coarser grids have places twice as large, as often as it takes to cover the image.
    while grid.height * stride < height or grid.width * stride < width:
        stride *= 2
    return stride


def _histogram(counts: np.ndarray, name: str) -> str:
    """How often each code is used, as a plot; empty without any count or without matplotlib."""
    ordered = np.sort(counts)[::-1].astype(float)
    used = ordered[ordered > 0]
    if not len(used) or not can_plot():
        return ""
    at = np.linspace(0, len(used) - 1, min(len(used), MOST_CODES)).round().astype(int)

    def plot(axes: Axes) -> None:
        lowest = used.min() * 0.5
        axes.fill_between(at, used[at], lowest, step="mid", color="#4477aa", linewidth=0)
        axes.set_yscale("log")
        axes.set_ylim(lowest, used.max() * 1.5)
        axes.set_xlim(-0.5, len(counts) - 0.5)
        axes.set_xlabel("codes, the most used first")
        axes.set_ylabel("times used")

    title = "How often each code is used"
    # Several codebooks have names; titles must differ, as they seed the names within a plot.
    if name:
        title += f", {name}"
    return svg(title, plot)

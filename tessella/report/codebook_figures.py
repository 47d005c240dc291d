"""The codes of a tokenizer in pictures: maps beside images, how often each is used, and what each
decodes to."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import torch

from tessella import data
from tessella.grid import Grid
from tessella.report.svg import Picture, picture, rgb, sheet, size_of, some, svg, which
from tessella.storage import pictures
from tessella.tokenizers import Tokenizer, codebook_health
from tessella.tokenizers.quantizers import CodeUsage
from tessella.tokenizers.tokenizer import channels

USAGE_PIXELS = 2**20
"""Pixels of the images whose codes are counted: 1024 images of 32x32."""

MOST_CODES = 1024
"""Codes in an atlas."""

ATLAS_PIXELS = 2**20
"""Pixels that are decoded for an atlas, at most, but for the 64 most used codes."""

MOST_MAPS = 8
"""Codebooks that are drawn: depths beyond it are left out."""

ERROR_GAIN = 4
"""Error maps are so many times brighter than the errors."""

SIDE = 5
"""Places along each side of the patch of one code, of which the middle is shown."""


def rebuilt(tokenizer: Tokenizer, images: data.ImageSet) -> Picture:
    """Originals, reconstructions, errors, and the codes of each codebook, one below another."""
    height, width = size_of(images)
    given = some(images, max(2, min(8, 640 // width)))
    symbols = tokenizer.encode(given)
    back = tokenizer.decode(symbols, (height, width)).cpu().numpy()
    errors = np.abs(given.astype(np.int16) - back).max(axis=3, keepdims=True) * ERROR_GAIN
    rows = [rgb(given), rgb(back), rgb(errors.clip(0, 255).astype(np.uint8))]
    of = [grid for grid in tokenizer.grids(height, width) for _ in range(grid.channels)]
    for grid, codes in list(zip(of, channels(symbols), strict=True))[:MOST_MAPS]:
        rows.append(
            code_map(
                codes.cpu().numpy(),
                grid.levels,
                _stride(tokenizer, grid, (height, width)),
                (height, width),
            )
        )
    several = "" if len(of) == 1 else f" of each of {len(of)} codebooks, coarse to fine"
    several += f", the first {MOST_MAPS}" if len(of) > MOST_MAPS else ""
    note = (
        f"Images of {which(images)}. From above: the image, its reconstruction, the largest absolute error of a "
        f"pixel's channels times {ERROR_GAIN}, its codes{several} (a colour each)."
    )
    return sheet("Reconstructions", np.concatenate(rows), len(given), note)


def code_map(symbols: np.ndarray, levels: int, stride: int, size: tuple[int, int]) -> np.ndarray:
    """Codes ``[n, h, w]`` as pictures ``uint8 [n, *size, 3]``, a colour for each code."""
    tones = [
        colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.45 + 0.5 * (i % 3) / 2, 0.6 + 0.4 * (i % 2))
        for i in range(levels)
    ]
    palette = (np.array(tones) * 255).round().astype(np.uint8)
    large = palette[symbols].repeat(stride, axis=1).repeat(stride, axis=2)
    return large[:, : size[0], : size[1]]


def codebooks(tokenizer: Tokenizer, images: data.ImageSet | None) -> dict[str, Any] | None:
    """How much the codes of each codebook are used, what is wrong with that, and what each code
    decodes to."""
    diagnosis: list[str] = []
    if images is not None:
        height, width = size_of(images)
        counted = some(images, max(1, USAGE_PIXELS // (height * width)))
        counts = _counted(tokenizer, counted)
        facts = codebook_health.examine(tokenizer, counts)
        where, diagnosis = (
            f"{len(counted):,} images of {which(images)}",
            codebook_health.diagnose(facts),
        )
        rows = [_rows(book) for book in facts]
    else:
        counts, where = _averages(tokenizer), "moving averages of the training batches"
        rows = [[] for _ in counts]
    if not counts:
        return None
    named = [name for name, _ in _books(tokenizer)]
    books = [
        {"title": name, "rows": told, "histogram": _histogram(count.numpy(), name), "atlas": chart}
        for name, told, count, chart in zip(
            named, rows, counts, atlases(tokenizer, counts), strict=False
        )
    ]
    return {"where": where, "diagnosis": diagnosis, "books": books}


def _books(tokenizer: Tokenizer) -> list[tuple[str, int]]:
    """The name of each codebook where there are several, and its grid."""
    grids, books = tokenizer.grids(), []
    for number, grid in enumerate(grids):
        for depth in range(grid.channels):
            told = [f"grid {number}"] * (len(grids) > 1) + [f"depth {depth}"] * (grid.channels > 1)
            books.append((", ".join(told), number))
    return books


def _counted(tokenizer: Tokenizer, images: np.ndarray) -> list[torch.Tensor]:
    """How often each code of each codebook is used in some images."""
    usage = [CodeUsage(grid.levels) for grid in tokenizer.grids() for _ in range(grid.channels)]
    for book, codes in zip(usage, channels(tokenizer.encode(images)), strict=True):
        book.update(codes)
    return [book.counts for book in usage]


def _averages(tokenizer: Tokenizer) -> list[torch.Tensor]:
    """The running counts that quantizers keep, where each codebook has them."""
    kept = [
        buffer.cpu()
        for name, buffer in tokenizer.named_buffers()
        if name.split(".")[-1] == "counts"
    ]
    levels = [grid.levels for grid in tokenizer.grids() for _ in range(grid.channels)]
    return kept if [len(count) for count in kept] == levels else []


def _rows(book: codebook_health.Facts) -> list[tuple[str, str]]:
    rows = [
        ("codes used", f"{book.used:,} of {book.codes:,}"),
        ("never used", f"{book.dead:,}"),
        ("perplexity", f"{book.perplexity:.1f}, {book.perplexity / book.codes:.3f} of the codes"),
        ("entropy", f"{book.entropy_bits:.3f} bits a code"),
        ("most frequent code", f"{book.top_share:.2%}"),
    ]
    rows += [] if book.twins is None else [("codes with a twin", f"{book.twins:,}")]
    rows += (
        []
        if book.variance_share is None
        else [("share of the variance", f"{book.variance_share:.1%}")]
    )
    return rows


def atlases(tokenizer: Tokenizer, counts: list[torch.Tensor]) -> list[Picture]:
    """The :func:`atlas` of each codebook, up to the eighth."""
    return [
        atlas(tokenizer, [count.numpy() for count in counts], book)
        for book in range(min(len(counts), MOST_MAPS))
    ]


def atlas(tokenizer: Tokenizer, counts: list[np.ndarray], book: int = 0) -> Picture:
    """What each code decodes to where all around it is the same code; the most used first, unused
    ones crossed out.

    Other codebooks, where there are some, say their most used code meanwhile.

    Args:
        counts: how often each code of each codebook is used.
        book: which codebook, coarse to fine.
    """
    used, number = counts[book], _books(tokenizer)[book][1]
    own = tokenizer.grids()[number]
    stride = _stride(tokenizer, own)
    size = SIDE * stride
    most = min(MOST_CODES, max(64, ATLAS_PIXELS // size**2))
    order = np.argsort(-used, kind="stable")[:most]
    columns, least = (32, 16) if len(order) > 128 else (16, 32)
    cells = rgb(_patches(tokenizer, counts, book, order, size))
    middle, factor = slice(SIDE // 2 * stride, (SIDE // 2 + 1) * stride), max(1, least // stride)
    cells = cells[:, middle, middle].repeat(factor, axis=1).repeat(factor, axis=2)
    for cell, count in zip(cells, used[order], strict=True):
        if not count:
            at = np.arange(len(cell))
            cell[at, at] = cell[at, at[::-1]] = (220, 40, 40)
    note = "Each code where all its neighbours are the same code; the most used first, row by row."
    note += _shares(used[order] / max(1, used.sum()), columns)
    note += " Codes crossed out in red were not used." if not used[order].all() else ""
    note += f" The first {len(order):,} of {len(used):,}." if len(used) > len(order) else ""
    note += " The other codebooks say their most used code meanwhile." if len(counts) > 1 else ""
    return picture("What the codes decode to", pictures.sheet(cells, columns, 1), note)


def _patches(
    tokenizer: Tokenizer, counts: list[np.ndarray], book: int, codes: np.ndarray, size: int
) -> np.ndarray:
    """Images ``[codes, size, size, channels]`` of one code each, the other codebooks at their most
    used code."""
    symbols, first = [], 0
    for grid in tokenizer.grids(size, size):
        part = torch.zeros(len(codes), *grid.shape, dtype=torch.int64)
        for channel in range(grid.channels):
            at = first + channel
            part[..., channel] = (
                torch.from_numpy(codes)[:, None, None] if at == book else int(np.argmax(counts[at]))
            )
        symbols.append(part)
        first += grid.channels
    return (
        tokenizer.decode(tuple(symbols) if len(symbols) > 1 else symbols[0], (size, size))
        .cpu()
        .numpy()
    )


def _shares(shares: np.ndarray, columns: int) -> str:
    """How much is said with the first codes, for a caption."""
    if not shares.sum():
        return ""
    half = int(np.searchsorted(np.cumsum(shares), 0.5)) + 1
    told = f" The first takes {shares[0]:.1%}, the first row {shares[:columns].sum():.0%}"
    return told + (f"; {half:,} codes take half of the places." if 1 < half <= len(shares) else ".")


def _stride(tokenizer: Tokenizer, grid: Grid, size: tuple[int, int] | None = None) -> int:
    """Pixels along each side of a place of a grid, of images of ``size`` (default:
    ``image_size``)."""
    height, width = size or tokenizer.image_size
    stride = max(1, tokenizer.stride)
    while grid.height * stride < height or grid.width * stride < width:
        stride *= 2
    return stride


def _histogram(counts: np.ndarray, name: str) -> str:
    ordered = np.sort(counts)[::-1].astype(float)
    used = ordered[ordered > 0]
    at = np.linspace(0, len(used) - 1, min(len(used), MOST_CODES)).round().astype(int)

    def draw(axes: Any) -> None:
        axes.fill_between(at, used[at], used.min() * 0.5, step="mid", color="#4477aa", linewidth=0)
        axes.set_yscale("log")
        axes.set_ylim(used.min() * 0.5, used.max() * 1.5)
        axes.set_xlim(-0.5, len(counts) - 0.5)
        axes.set_xlabel("codes, the most used first")
        axes.set_ylabel("times used")

    return (
        svg("How often each code is used" + (f", {name}" if name else ""), draw)
        if len(used)
        else ""
    )

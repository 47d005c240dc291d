"""Codes: a picture through the tokenizer and back, and codes that were changed by hand."""

from __future__ import annotations

import json

import numpy as np
import torch

from tessella.errors import InputError, check_integer
from tessella.evaluation import metrics
from tessella.files import JSONValue
from tessella.pipeline import require_codes
from tessella.report.codebook_figures import code_patches, patch_sides
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.tokenizer import as_tuple
from tessella.web.page_requests import (
    ToShowCodes,
    ToTokenize,
    as_text,
    check_tiles,
    codes_from,
    images_from,
    symbols_as_text,
    symbols_from,
)
from tessella.web.served_models import ServedModel
from tessella.web.work_queue import Computation, Work

MOST_CODES = 256
"""Codes that one request decodes, at most."""

MOST_PIXELS = 1 << 18
"""Pixels that are decoded for the codes of one request, at most, unless one code takes more."""


def tokenizing(asked: ToTokenize, served: ServedModel) -> Work:
    """The work of encoding and decoding a picture, or of decoding codes.

    Raises:
        InputError: when the model makes no codes, or the picture or the codes do not fit.
    """
    tokenizer = require_codes(served.model, served.name)
    tiles = check_tiles(asked.tiles)
    if bool(asked.image) == bool(asked.symbols):
        raise InputError("give either the pixels of a picture (image) or its symbols")
    height, width, _ = served.size
    size = (height * tiles, width * tiles)
    grids = tokenizer.grids(*size)
    pixels = images_from(asked.image, served, tiles) if asked.image else None
    given = symbols_from(asked.symbols, grids) if asked.symbols else ()

    def tokenize(job: Computation) -> bytes:
        symbols = given
        if pixels is not None:
            symbols = as_tuple(tokenizer.encode(pixels))
        back = _decoded(tokenizer, symbols, size)
        facts: dict[str, JSONValue] = {
            "image": as_text(back),
            "symbols": symbols_as_text(symbols),
            "grids": [
                {
                    "height": grid.height,
                    "width": grid.width,
                    "depth": grid.channels,
                    "levels": grid.levels,
                }
                for grid in grids
            ],
        }
        if pixels is not None:
            facts["psnr"] = _psnr(pixels, back)
        return json.dumps(facts).encode()

    return tokenize


def describing_books(served: ServedModel) -> Work:
    """The work of describing the codebooks of a model, one for each depth of each grid.

    Raises:
        InputError: when the model makes no codes.
    """
    tokenizer = require_codes(served.model, served.name)

    def describe(job: Computation) -> bytes:
        books: list[JSONValue] = []
        for place, grid in enumerate(tokenizer.grids()):
            for depth in range(grid.channels):
                side, _ = patch_sides(tokenizer, len(books))
                books.append(
                    {
                        "grid": place,
                        "depth": depth,
                        "codes": grid.levels,
                        "side": side,
                        "most_patches": most_patches(tokenizer, len(books)),
                    }
                )
        return json.dumps({"books": books}).encode()

    return describe


def drawing_patches(asked: ToShowCodes, served: ServedModel) -> Work:
    """The work of decoding codes one by one, each where all its neighbours are the same code.

    Raises:
        InputError: when the model makes no codes, or they are too many or out of range.
    """
    tokenizer = require_codes(served.model, served.name)
    levels: list[int] = []
    for grid in tokenizer.grids():
        levels += [grid.levels] * grid.channels
    book = check_integer("book", asked.book, most=len(levels) - 1)
    codes = codes_from(asked.codes, levels[book], most_patches(tokenizer, book))

    def draw(job: Computation) -> bytes:
        return json.dumps({"patches": as_text(code_patches(tokenizer, book, codes))}).encode()

    return draw


def most_patches(tokenizer: Tokenizer, book: int) -> int:
    """How many codes one request decodes, so that its answer comes soon."""
    _, size = patch_sides(tokenizer, book)
    return max(1, min(MOST_CODES, MOST_PIXELS // size**2))


def _decoded(
    tokenizer: Tokenizer, symbols: tuple[torch.Tensor, ...], size: tuple[int, int]
) -> np.ndarray:
    images = tokenizer.decode(symbols if len(symbols) > 1 else symbols[0], size)
    array: np.ndarray = images.cpu().numpy()
    return array


def _psnr(images: np.ndarray, back: np.ndarray) -> float | None:
    """Peak signal-to-noise ratio in dB; None where nothing was lost."""
    error = torch.from_numpy(images).double() - torch.from_numpy(back)
    if not error.any():
        return None
    return float(metrics.psnr((error**2).mean()))

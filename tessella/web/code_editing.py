"""Codes: a picture through the tokenizer and back, and codes that were changed by hand."""

from __future__ import annotations

import json

import numpy as np
import torch

from tessella.errors import InputError
from tessella.evaluation import metrics
from tessella.files import JSONValue
from tessella.pipeline import require_codes
from tessella.report.codebook_figures import code_patches
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.tokenizer import as_tuple
from tessella.web.page_requests import (
    ToTokenize,
    as_text,
    check_tiles,
    images_from,
    symbols_as_text,
    symbols_from,
)
from tessella.web.served_models import ServedModel
from tessella.web.work_queue import Computation, Work

MOST_CODES = 1024
"""Codes of an atlas; of larger codebooks the first ones are shown."""


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


def drawing_atlas(served: ServedModel) -> Work:
    """The work of decoding each code alone, where all its neighbours are the same code.

    Raises:
        InputError: when the model makes no codes.
    """
    tokenizer = require_codes(served.model, served.name)

    def draw(job: Computation) -> bytes:
        books: list[JSONValue] = []
        number = 0
        for place, grid in enumerate(tokenizer.grids()):
            for depth in range(grid.channels):
                codes = np.arange(min(grid.levels, MOST_CODES))
                patches = code_patches(tokenizer, number, codes)
                books.append(
                    {
                        "grid": place,
                        "depth": depth,
                        "codes": len(codes),
                        "height": patches.shape[1],
                        "width": patches.shape[2],
                        "patches": as_text(patches),
                    }
                )
                number += 1
                job.check()
        return json.dumps({"books": books}).encode()

    return draw


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

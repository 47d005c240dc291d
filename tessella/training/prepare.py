"""Images, labels and model checked against each other, and images made codes for a prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tessella.config import TrainConfig
from tessella.data.decoded_cache import StoredImages
from tessella.errors import ConfigError, InputError
from tessella.grid import Grid
from tessella.models import Hierarchy, Prior
from tessella.models.hierarchy import pack
from tessella.pipeline import Generator, class_count
from tessella.storage.code_store import CodeSet, cached, open_codes
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.tokenizer import check_images, parts
from tessella.training.examples import Examples, Variant
from tessella.vae import VAE

IN_MEMORY = 1 << 30
"""Bytes of codes that are read into memory as a whole; more stay on disk."""

ENCODED_AT_ONCE = 256
"""Images that are made codes of together, for a prior."""


def prepare(
    model: Prior | Tokenizer | VAE,
    images: Any,
    labels: Any,
    tokenizer: Tokenizer | None,
    config: TrainConfig,
    flip: bool = False,
    binarize: bool = False,
) -> Examples:
    """Check images, labels and model against each other; encode for a prior."""
    classes = class_count(model)
    if labels is not None and not classes:
        raise InputError(
            "labels were given, but the model has no classes: create it with classes=n"
        )
    if classes and labels is None:
        raise InputError("the model has classes: give labels, int64 [n]")
    tags = None if labels is None else torch.as_tensor(labels).long()
    variants = _variants(model, images, tokenizer, flip)
    if not len(variants[0]):
        raise InputError("there are no images to train on")
    if tags is not None and (
        tags.shape != (len(variants[0]),) or int(tags.min()) < 0 or int(tags.max()) >= classes
    ):
        raise InputError(f"labels must be [{len(variants[0])}] integers in 0..{classes - 1}")
    return Examples(variants, tags, classes, flip, binarize, config.condition_dropout)


def _variants(model: Any, images: Any, tokenizer: Tokenizer | None, flip: bool) -> list[Variant]:
    """What a step sees of each image: its pixels or symbols, and of a prior the codes of its mirror
    image too."""
    if isinstance(images, CodeSet):
        if tokenizer is None or isinstance(model, Tokenizer):
            raise InputError("stored codes are for a prior: give the tokenizer that made them")
        Generator(tokenizer, model)  # refuses a prior that does not fit
        return _of_codes(open_codes(images.path, tokenizer), flip)
    pixels = _pixels(model, images, tokenizer)
    if pixels is None:  # symbols, already encoded
        return [_symbols(model, images)]
    if tokenizer is None or isinstance(model, Tokenizer):
        return [pixels]
    Generator(tokenizer, model)  # refuses a prior that does not fit
    kept = cached(
        tokenizer, pixels.cpu().numpy() if isinstance(pixels, torch.Tensor) else pixels, flip
    )
    if kept is not None:
        return _of_codes(kept, flip)
    plain, mirrored = [], []
    for start in range(0, len(pixels), ENCODED_AT_ONCE):
        part = torch.as_tensor(pixels[start : start + ENCODED_AT_ONCE])
        plain.append(_compact(tokenizer.encode(part), tokenizer.grids()))
        if flip:
            mirrored.append(_compact(tokenizer.encode(part.flip(2)), tokenizer.grids()))
    return [torch.cat(variant) for variant in (plain, mirrored) if variant]


def _of_codes(codes: CodeSet, flip: bool) -> list[Variant]:
    """Stored codes, in memory where they are few."""
    if flip and not codes.mirrored:
        raise ConfigError(
            f"data.flip needs the codes of mirrored images, and {codes.path} has none: tessella tokenize --mirrored "
            "makes them, data.flip=false does without"
        )
    variants = [codes.variant(), codes.variant(mirrored=True)][: 1 + flip]
    size = len(variants) * math.prod(variants[0].shape) * variants[0].dtype.itemsize
    return [torch.from_numpy(variant[:]) if size <= IN_MEMORY else variant for variant in variants]


def _symbols(model: Prior, given: Any) -> torch.Tensor:
    """Symbols that were given for a prior, checked."""
    grids = model.grids if isinstance(model, Hierarchy) else (model.grid,)
    several = given if isinstance(given, (tuple, list)) else (given,)
    if len(several) != len(grids):
        raise InputError(f"give the symbols of all {len(grids)} grids, coarse to fine")
    checked = tuple(grid.check(part) for grid, part in zip(grids, several, strict=True))
    return _compact(checked if len(grids) > 1 else checked[0], grids)


def _pixels(model: Any, images: Any, tokenizer: Tokenizer | None) -> Variant | None:
    """Images for a model, checked; None where they are symbols already."""
    stored = isinstance(images, StoredImages)
    x = torch.as_tensor(images[:1]) if stored else images
    if isinstance(images, (tuple, list)) and isinstance(model, Hierarchy):
        return None
    if not isinstance(model, Tokenizer):
        if str(getattr(x, "dtype", "")).removeprefix("torch.").startswith("float"):
            check_images(x)  # says how to convert them
        x = torch.as_tensor(np.array(x) if isinstance(x, np.ndarray) else x)
        if x.dtype != torch.uint8:
            return None
    if isinstance(model, Hierarchy) and not tokenizer:
        raise InputError("a hierarchy models codes: give tokenizer=, or the codes of all its grids")
    grid = None if isinstance(model, Tokenizer) or tokenizer else model.grid
    x = check_images(
        x, (model if isinstance(model, Tokenizer) else tokenizer or model.grid).channels
    )
    if grid and tuple(x.shape[1:3]) != (grid.height, grid.width):
        raise InputError(
            f"the model's grid is {grid}, the images are {x.shape[1]}x{x.shape[2]}x{x.shape[3]}"
        )
    return images if stored else x


def _compact(symbols: Any, grids: Sequence[Grid]) -> torch.Tensor:
    """Symbols, those of several grids packed, in the least type that holds them and is not the type
    of images."""
    packed = pack(symbols) if len(grids) > 1 else parts(symbols)[0]
    return packed.cpu().to(
        torch.int16 if max(grid.levels for grid in grids) <= 2**15 else torch.int32
    )

"""What a client may ask for, as dataclasses, and the arrays that travel in JSON.

Arrays are strings in base64: pixels as bytes, masks as a byte for each place, symbols as
little-endian int32. Their shapes follow from the model, so a wrong length is noticed.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from tessella import config, files
from tessella.errors import ArtifactError, InputError, check_integer
from tessella.grid import Grid
from tessella.sampling import Rule, SamplingKeywords
from tessella.web.served_models import ServedModel

R = TypeVar("R")

MOST_IMAGES = 16
"""Images that one request draws, at most."""

MOST_TILES = 8
"""Images of the model's size along each side of a picture that is looked at in tiles."""

SYMBOL = np.dtype("<i4")
"""How symbols travel."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Every request names a model."""

    model: str


@dataclass(frozen=True, kw_only=True)
class ToDraw(Asking):
    """Draw images.

    Args:
        seed: image ``i`` has this seed plus ``i``, as in Python. A string of digits is taken as
            well, since numbers of JavaScript end at 2^53.
        n: how many.
        class_label: class to draw; None for no class.
    """

    seed: int = 0
    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    class_label: int | None = None

    def rule(self) -> SamplingKeywords:
        """Its rule, checked.

        Raises:
            InputError: for a value out of range.
        """
        rule = Rule(self.temperature, self.top_k, self.top_p, self.guidance)
        return {
            "temperature": rule.temperature,
            "top_k": rule.top_k,
            "top_p": rule.top_p,
            "guidance": rule.guidance,
        }

    def labels(self) -> torch.Tensor | None:
        """The class of each image, int64 ``[n]``."""
        if self.class_label is None:
            return None
        label = check_integer("class_label", self.class_label, most=(1 << 62))
        return torch.full((self.n,), label)


@dataclass(frozen=True, kw_only=True)
class ToComplete(ToDraw):
    """Keep part of a picture and draw the rest, ``n`` times.

    Args:
        image: pixels of the model's size.
        known: a byte for each pixel, 0 where it is drawn.
    """

    image: str
    known: str


@dataclass(frozen=True, kw_only=True)
class ToScore(Asking):
    """The bits of each symbol of a picture: give its pixels, or its symbols.

    Args:
        image: pixels, ``tiles`` times the model's height and width.
        symbols: one string for each grid.
        tiles: images of the model's size along each side.
        class_label: of the picture; None for no class.
    """

    image: str = ""
    symbols: tuple[str, ...] = ()
    tiles: int = 1
    class_label: int | None = None


@dataclass(frozen=True, kw_only=True)
class ToExpect(Asking):
    """What the model expects at a place, given everything before it.

    Args:
        symbols: of the picture, one string for each grid.
        grid: number of the grid, coarse to fine.
        row, column: place in that grid, of the whole picture.
    """

    symbols: tuple[str, ...]
    row: int
    column: int
    grid: int = 0
    tiles: int = 1
    class_label: int | None = None


@dataclass(frozen=True, kw_only=True)
class ToTokenize(Asking):
    """A picture to codes, and its reconstruction; or codes to a picture."""

    image: str = ""
    symbols: tuple[str, ...] = ()
    tiles: int = 1


@dataclass(frozen=True, kw_only=True)
class ToShowCodes(Asking):
    """What codes of a codebook decode to.

    Args:
        book: number of the codebook, through all depths of all grids, coarse to fine.
        codes: of that codebook.
    """

    book: int
    codes: str


def read_request(kind: type[R], body: bytes) -> R:
    """A request of a kind from its JSON.

    Raises:
        InputError: when it is no JSON.
        ConfigError: for unknown keys and wrong types, with the nearest name.
    """
    try:
        values = files.parse_json(body, "the request")
    except ArtifactError as error:
        raise InputError(str(error)) from None
    if isinstance(values, dict):
        # Digits beyond what a number of JavaScript holds come as a string.
        seed = values.get("seed")
        if isinstance(seed, str) and seed.isascii() and seed.isdecimal() and len(seed) <= 20:
            values["seed"] = int(seed)
    try:
        return config.from_dict(kind, values, "request")
    except TypeError as error:
        # A field without a default was left out; Python names it.
        words = str(error).partition("missing ")[2]
        raise InputError(f"the request is incomplete: missing {words or 'a value'}") from None


def images_from(text: str, served: ServedModel, tiles: int = 1) -> np.ndarray:
    """Pixels ``uint8 [1, height, width, channels]`` of a picture of ``tiles`` x ``tiles`` images.

    Raises:
        InputError: when there are more or fewer.
    """
    tiles = check_tiles(tiles)
    height, width, channels = served.size
    shape = (1, height * tiles, width * tiles, channels)
    return _array("image", text, np.dtype(np.uint8), shape)


def mask_from(text: str, served: ServedModel) -> torch.Tensor:
    """Which pixels are kept, ``bool [height, width]``.

    Raises:
        InputError: when there are more or fewer.
    """
    height, width, _ = served.size
    return torch.from_numpy(_array("known", text, np.dtype(np.uint8), (height, width)) != 0)


def symbols_from(texts: Sequence[str], grids: Sequence[Grid]) -> tuple[torch.Tensor, ...]:
    """Symbols of a picture, ``int64 [1, h, w, depth]`` for each grid.

    Raises:
        InputError: for another number of grids or of symbols, or symbols out of range.
    """
    if len(texts) != len(grids):
        raise InputError(f"symbols must have {len(grids)} grids, got {len(texts)}")
    found = []
    for text, grid in zip(texts, grids, strict=True):
        array = _array("symbols", text, SYMBOL, (1, *grid.shape))
        found.append(grid.check(torch.from_numpy(array.astype(np.int64))))
    return tuple(found)


def codes_from(text: str, levels: int, most: int) -> np.ndarray:
    """Codes of one codebook, ``int64 [n]``.

    Args:
        text: in base64.
        levels: of the codebook.
        most: how many may be asked for at once.

    Raises:
        InputError: for none, more than ``most``, or codes that the codebook does not have.
    """
    codes = np.frombuffer(_decoded("codes", text, SYMBOL.itemsize), SYMBOL).astype(np.int64)
    if not 1 <= len(codes) <= most:
        raise InputError(f"ask for 1 to {most} codes of this codebook at once, got {len(codes)}")
    if codes.min() < 0 or codes.max() >= levels:
        raise InputError(f"codes must lie in 0..{levels - 1}, got {codes.min()}..{codes.max()}")
    return codes


def check_tiles(tiles: int) -> int:
    """Tiles along each side, within their limit."""
    return check_integer("tiles", tiles, least=1, most=MOST_TILES)


def _array(name: str, text: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    data = _decoded(name, text, dtype.itemsize)
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise InputError(f"{name} must have {wanted} bytes for {list(shape)}, got {len(data)}")
    # A copy, since arrays over bytes cannot be written and torch warns of that.
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _decoded(name: str, text: str, itemsize: int) -> bytes:
    """The bytes that a string in base64 stands for, a whole number of items."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{name} must be base64") from None
    if len(data) % itemsize:
        raise InputError(f"{name} must have {itemsize} bytes for each value, got {len(data)}")
    return data


def as_text(array: np.ndarray | torch.Tensor) -> str:
    """An array in base64."""
    if isinstance(array, torch.Tensor):
        array = array.cpu().numpy()
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def symbols_as_text(symbols: Sequence[torch.Tensor]) -> list[str]:
    """The symbols of each grid of one picture, in base64."""
    return [as_text(part.cpu().numpy().astype(SYMBOL)) for part in symbols]

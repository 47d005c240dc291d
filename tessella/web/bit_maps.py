"""See the bits: what each symbol of a picture costs, and what the model expected in its place."""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from typing import cast

import torch

from tessella.errors import InputError, check_integer
from tessella.files import JSONValue
from tessella.grid import Grid
from tessella.models import DensityModel
from tessella.models.condition import Condition
from tessella.models.hierarchy import level_condition
from tessella.pipeline import Generator, ScoresImages, require
from tessella.tokenizers.tokenizer import as_tuple
from tessella.web.page_requests import (
    ToExpect,
    ToScore,
    as_text,
    check_tiles,
    images_from,
    symbols_as_text,
    symbols_from,
)
from tessella.web.served_models import ServedModel
from tessella.web.work_queue import Computation, Work

KEPT = 8
"""Pictures whose parameters are kept while the pointer moves over them."""

LARGEST_KEPT = 16 << 20
"""Bytes of parameters of a picture that are kept, at most."""


class BitMaps:
    """Scores pictures, and answers what was expected at a place of the last ones.

    It computes in the thread of the models only, so nothing is locked.
    """

    def __init__(self) -> None:
        self._parameters: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def scoring(self, asked: ToScore, served: ServedModel) -> Work:
        """The work of scoring a picture.

        A picture of several tiles is so many images of the model's size, each scored for itself.

        Raises:
            InputError: when the picture does not fit.
        """
        model = _generator(served)
        tiles = check_tiles(asked.tiles)
        labels = _labels(asked.class_label, tiles * tiles)
        model.check_condition(labels, tiles * tiles)
        if bool(asked.image) == bool(asked.symbols):
            raise InputError("give either the pixels of a picture (image) or its symbols")
        grids = tiled(model.grids, tiles)
        pixels = images_from(asked.image, served, tiles) if asked.image else None
        given = symbols_from(asked.symbols, grids) if asked.symbols else ()

        def score(job: Computation) -> bytes:
            if pixels is not None:
                cut = apart(torch.from_numpy(pixels), tiles)
                symbols = as_tuple(model.encode(cut))
            else:
                symbols = tuple(apart(part, tiles) for part in given)
            job.check()
            maps = []
            total = 0.0
            for level, grid in enumerate(model.grids):
                condition = level_condition(model.priors[level], labels, symbols[:level]) or None
                prior = model.priors[level]
                nats = prior.log_prob(symbols[level], condition, reduce=False)
                bits = (-nats / math.log(2)).cpu()
                total += float(bits.sum(dtype=torch.float64))
                whole = together(bits, tiles)
                maps.append(_map_facts(grid, whole, tiles))
            whole_symbols = [together(part, tiles).cpu() for part in symbols]
            count = sum(part.numel() for part in symbols)
            facts: dict[str, JSONValue] = {
                "bits": total,
                "symbol_count": count,
                "bits_per_symbol": total / count,
                "maps": cast(JSONValue, maps),
                "symbols": symbols_as_text(whole_symbols),
            }
            return json.dumps(facts).encode()

        return score

    def expecting(self, asked: ToExpect, served: ServedModel) -> Work:
        """The work of finding the distribution at a place, given everything before it.

        Raises:
            InputError: when the symbols or the place do not fit.
        """
        model = _generator(served)
        tiles = check_tiles(asked.tiles)
        level = check_integer("grid", asked.grid, most=len(model.grids) - 1)
        grid = model.grids[level]
        row = check_integer("row", asked.row, most=grid.height * tiles - 1)
        column = check_integer("column", asked.column, most=grid.width * tiles - 1)
        labels = _labels(asked.class_label, 1)
        model.check_condition(labels, 1)
        whole = symbols_from(asked.symbols, tiled(model.grids, tiles))
        # The tile that the place lies in: [1, h, w, depth] of each grid.
        number = row // grid.height * tiles + column // grid.width
        symbols = tuple(apart(part, tiles)[number : number + 1] for part in whole)
        place = (slice(row % grid.height, None), slice(column % grid.width, None))

        def expect(job: Computation) -> bytes:
            prior = model.priors[level]
            given = level_condition(prior, labels, symbols[:level]) or None
            condition = prior.condition(given, 1)
            parameters = self._parameters_of(served.name, prior, symbols, level, condition)
            top, left = place[0].start, place[1].start
            here = parameters[:, top : top + 1, left : left + 1]
            x = symbols[level][:, top : top + 1, left : left + 1].to(prior.device)
            # [depth, levels]: later channels of a pixel given the earlier ones.
            table = prior.head(here).table(x)[0, 0, 0]
            facts: dict[str, JSONValue] = {
                "symbols": x[0, 0, 0].tolist(),
                "probabilities": [as_text(row) for row in table.exp().float()],
            }
            return json.dumps(facts).encode()

        return expect

    def _parameters_of(
        self,
        name: str,
        prior: DensityModel,
        symbols: tuple[torch.Tensor, ...],
        level: int,
        condition: Condition,
    ) -> torch.Tensor:
        """What the network says of all places of an image; kept for the next place."""
        digest = hashlib.sha256(f"{name} {level} {condition.labels}".encode())
        for part in symbols[: level + 1]:
            digest.update(part.cpu().numpy().tobytes())
        key = digest.digest()
        if key in self._parameters:
            self._parameters.move_to_end(key)
            return self._parameters[key]
        parameters = prior.head_parameters(symbols[level].to(prior.device), condition)
        if parameters.nbytes <= LARGEST_KEPT:
            self._parameters[key] = parameters
            while len(self._parameters) > KEPT:
                self._parameters.popitem(last=False)
        return parameters


def _generator(served: ServedModel) -> Generator:
    require(served.model, ScoresImages, served.name)
    model = served.model
    assert isinstance(model, Generator)
    return model


def _labels(label: int | None, n: int) -> torch.Tensor | None:
    if label is None:
        return None
    return torch.full((n,), check_integer("class_label", label, most=1 << 62))


def _map_facts(grid: Grid, bits: torch.Tensor, tiles: int) -> dict[str, JSONValue]:
    """One map ``[1, h, w, depth]`` for the page."""
    return {
        "height": grid.height * tiles,
        "width": grid.width * tiles,
        "depth": grid.channels,
        "levels": grid.levels,
        "bits": as_text(bits.numpy().astype("<f4")),
    }


def tiled(grids: tuple[Grid, ...], tiles: int) -> tuple[Grid, ...]:
    """The grids of ``tiles`` x ``tiles`` images side by side."""
    large = []
    for grid in grids:
        large.append(Grid(grid.height * tiles, grid.width * tiles, grid.channels, grid.levels))
    return tuple(large)


def apart(picture: torch.Tensor, tiles: int) -> torch.Tensor:
    """``[1, tiles * h, tiles * w, c]`` to ``[tiles * tiles, h, w, c]``, row by row."""
    _, height, width, channels = picture.shape
    cut = picture.reshape(tiles, height // tiles, tiles, width // tiles, channels)
    return cut.transpose(1, 2).reshape(-1, height // tiles, width // tiles, channels)


def together(cut: torch.Tensor, tiles: int) -> torch.Tensor:
    """The inverse of :func:`apart`."""
    _, height, width, channels = cut.shape
    rows = cut.reshape(tiles, tiles, height, width, channels).transpose(1, 2)
    return rows.reshape(1, tiles * height, tiles * width, channels)

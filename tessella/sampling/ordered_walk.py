"""The walk along another order than raster, for completions that see all that is known.

The known symbols of an image come first and then the missing ones, each part in raster order. So
the missing symbols are drawn exactly from their distribution given all known ones, under a model
that predicts in any order. The walk is that of :mod:`tessella.sampling.walk`; only what it counts
is different: positions of the order, rather than places of the grid.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tessella.errors import InputError
from tessella.grid import Grid
from tessella.models.condition import Cond
from tessella.models.density_model import DensityModel
from tessella.nn.orders import known_first
from tessella.noise import Noise
from tessella.sampling.known_symbols import KnownSymbols
from tessella.sampling.walk import Steps, SymbolBySymbol, SymbolSource


def check_any_order(model: DensityModel) -> None:
    """Check that a model can go through a grid in another order than raster.

    Raises:
        InputError: naming the models that can.
    """
    if not model.any_order:
        raise InputError(
            f"{model.name} predicts symbols in raster order only, so what is known cannot come "
            "first: take a model of the family any-order (tessella train --model any-order), or "
            "order='raster'"
        )


def check_whole_pixels(model: DensityModel, kept: KnownSymbols) -> None:
    """Check that a head which takes the channels of a pixel together can keep these symbols.

    Raises:
        InputError: where only some of the channels of a pixel are known.
    """
    by_pixel = kept.known.unflatten(1, (model.grid.pixels, model.grid.channels))
    if model.head.joint and not bool((by_pixel == by_pixel[..., :1]).all()):
        raise InputError(
            f"head={model.head.name!r} describes all channels of a pixel together: let known hold "
            "all or none of them, or take a model with head='categorical'"
        )


def condition_in_order(model: DensityModel, cond: Cond, order: torch.Tensor) -> Cond:
    """The condition of images whose symbols are predicted in an order.

    Args:
        model: a model that predicts in any order.
        cond: see :data:`Cond`.
        order: ``int64 [n, symbols]``.

    Raises:
        InputError: for a condition that does not fit.
    """
    condition = model.condition(cond, len(order))
    condition.order = order
    return condition


class OrderedNoise(Noise):
    """The noise of symbols by their position in an order, addressed by their place in the grid.

    Args:
        grid, seed, device, part: see :class:`Noise`.
        order: places of each image, ``int64 [n, symbols]``.
    """

    def __init__(
        self,
        grid: Grid,
        order: torch.Tensor,
        seed: int = 0,
        device: torch.device | str = "cpu",
        part: int = 0,
    ) -> None:
        super().__init__(grid, len(order), seed, device, part)
        self._places: list[list[int]] = order.tolist()
        self._images: list[Noise] = []
        # Images of one order share a buffer; others are at different places at the same time.
        if not bool((order == order[:1]).all()):
            self._images = [Noise(grid, 1, self.seed + i, device, part) for i in range(self.n)]

    def at(self, index: int) -> torch.Tensor:
        """``-log E`` of the symbol at position ``index`` of the order: ``float64 [n, levels]``."""
        if not self._images:
            return super().at(self._places[0][index])
        rows = []
        for image, places in zip(self._images, self._places, strict=True):
            rows.append(image.at(places[index]))
        return torch.cat(rows)


def walk_known_first(
    steps: Steps, source: SymbolSource, order: torch.Tensor, every: int = 0
) -> Iterator[tuple[int, torch.Tensor]]:
    """Visit all symbols in an order, and yield partial grids.

    Args:
        steps: predict the symbols, under a condition with the order.
        source: chooses the symbols; it counts positions of the order.
        order: places of each image, ``int64 [n, symbols]``.
        every: number of symbols between two yields; 0 means as many as a row has.

    Yields:
        ``(count, x)``: ``x int64 [n, height, width, channels]`` holds the first ``count`` symbols
        of the order and 0 elsewhere. It is the same tensor every time; clone it to keep it.

    Raises:
        NumericalError: when the model returns NaN or infinity.
    """
    grid = steps.model.grid
    x = torch.zeros(steps.n, *grid.shape, dtype=torch.int64, device=steps.model.device)
    flat = x.flatten(1)  # a view: [n, symbols]
    drawn = torch.zeros_like(flat)  # in the order of the walk
    drawing = SymbolBySymbol(steps, source, drawn)
    every = every or grid.row_symbols
    for start in range(0, grid.symbols, every):
        stop = min(start + every, grid.symbols)
        # As in walk(), nothing is yielded inside no_grad.
        with torch.no_grad():
            drawing.draw(start, stop)
            flat.scatter_(1, order[:, :stop], drawn[:, :stop])
        yield stop, x


@torch.no_grad()
def log_prob_missing(
    model: DensityModel, x: object, known: object, cond: Cond = None
) -> torch.Tensor:
    """Exact log-probability, in nats, of the missing symbols given all known ones.

    This is the probability with which :func:`tessella.complete` draws them with
    ``order="known-first"``, under the model's own distribution (without temperature and the like).

    Args:
        model: a model that predicts in any order, such as ``any-order``.
        x: symbols, ``[n, height, width, channels]``, of which none is really missing.
        known: which symbols are known, ``bool [height, width]`` for all images and channels, or
            ``bool [n, height, width, channels]``.
        cond: see :func:`tessella.stream`.

    Returns:
        ``[n]``; 0 where all is known.

    Raises:
        InputError: for a model of raster order only, a masked model, or an argument that does not
            fit.
        NumericalError: when the model returns NaN or infinity.
    """
    check_any_order(model)
    if model.states_bound:
        raise InputError(
            f"{model.name} completes by unmasking several symbols a step, whose probability is not "
            "known: model.log_prob(x, order=...) is exact under one order, and a model of the "
            "family any-order states the probability of its completions"
        )
    kept = KnownSymbols.check(model, x, known)
    check_whole_pixels(model, kept)
    condition = condition_in_order(model, cond, known_first(kept.known))
    nats = model.log_prob(x, condition, reduce=False).flatten(1)
    return nats.masked_fill(kept.known, 0.0).sum(1)

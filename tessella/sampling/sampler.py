"""Sampling and completion, both built on a stream of partial grids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import torch

from tessella import kernel
from tessella.errors import InputError, check_integer
from tessella.models.condition import Cond, Condition
from tessella.models.density_model import DensityModel
from tessella.models.masked_model import MaskedModel
from tessella.models.pixel_window import PixelWindow
from tessella.nn.orders import known_first
from tessella.nn.outline import check_drawn
from tessella.noise import Noise, check_seed
from tessella.sampling.known_symbols import KnownSymbols
from tessella.sampling.ordered_walk import (
    OrderedNoise,
    check_any_order,
    check_whole_pixels,
    condition_in_order,
    walk_known_first,
)
from tessella.sampling.parallel import Passes
from tessella.sampling.rule import RuleKeywords
from tessella.sampling.sampling_options import BATCH, Method, Sampling, WalkOrder
from tessella.sampling.unmasking import Unmasker, check_unmasking
from tessella.sampling.unmasking_options import Unmasking
from tessella.sampling.walk import Draw, KeepKnown, Steps, SymbolSource, guidance_condition, walk
from tessella.sampling.windows import PIXELS, Windows


class Sampler:
    """Draws batch after batch from one model.

    Batches share memory and programs, so the weights must not change in between.

    Args:
        model: a density model.
        options: method, rule, and ``every`` for :meth:`stream`; ``batch`` is not used.
        part: index of the grid that the model draws, if an image has several; each grid has its own
            noise.

    Raises:
        InputError: when ``model`` is not a density model, has active dropout, or predicts in raster
            order only and another order is asked for; for a method that a masked model does not
            have, and unmasking for a model that is not masked.
    """

    def __init__(self, model: DensityModel, options: Sampling | None = None, part: int = 0) -> None:
        check_model(model)
        self.model = model
        self.options = options or Sampling()
        if self.options.order != "raster":
            check_any_order(model)
        check_unmasking(model, self.options)
        self.part = part
        self.method = choose(model) if self.options.method == "auto" else self.options.method
        self._steps: Steps | None = None
        self._window: PixelWindow | None = None
        self._streams_begun = 0

    def stream(
        self, n: int = 16, seed: int = 0, cond: Cond = None, kept: KnownSymbols | None = None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Draw ``n`` images, and yield partial grids; see :func:`stream`.

        A new stream takes over the memory of the previous one, which cannot be continued then.

        Args:
            n, seed, cond: see :func:`tessella.stream`.
            kept: symbols to keep, for completion.

        Raises:
            InputError: for an argument that does not fit, or when a newer stream has begun.
            NumericalError: when the model returns NaN or infinity.
        """
        n = check_integer("n", n, least=1)
        _check_memory(self.model, n)
        if kept is not None and len(kept) != n:
            raise InputError(f"x holds {len(kept)} images, n is {n}")
        # All streams of a sampler share one memory, so this stops any older stream.
        self._streams_begun += 1
        if isinstance(self.model, MaskedModel):
            kept = kept or KnownSymbols.none(self.model, n)
            yield from self._unmasker(self.model, seed, cond, kept).walk()
            return
        if self.options.order == "known-first":
            kept = kept or KnownSymbols.none(self.model, n)
            partial_grids = self._known_first(seed, cond, kept)
        else:
            noise = Noise(self.model.grid, n, seed, self.model.device, self.part)
            partial_grids = self._drawn(noise, cond, kept)
        this_stream = self._streams_begun
        for partial in partial_grids:
            yield partial
            # Between two yields, the caller may have begun another stream.
            if this_stream != self._streams_begun:
                raise InputError(
                    "this stream cannot go on: its sampler has begun another one; "
                    "take a Sampler for each"
                )

    def _unmasker(self, model: MaskedModel, seed: int, cond: Cond, kept: KnownSymbols) -> Unmasker:
        """Draws the missing symbols of a masked model."""
        unmasking = self.options.unmasking or Unmasking()
        return Unmasker(model, kept, cond, self.options.rule, unmasking, seed, self.part)

    def _known_first(
        self, seed: int, cond: Cond, kept: KnownSymbols
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Visit the known symbols of each image, and then draw the missing ones."""
        check_whole_pixels(self.model, kept)
        order = known_first(kept.known)
        noise = OrderedNoise(self.model.grid, order, seed, self.model.device, self.part)
        source = KeepKnown(kept.along(order), Draw(noise, self.options.rule))
        steps = self._steps_at_start(len(kept), condition_in_order(self.model, cond, order))
        return walk_known_first(steps, source, order, self.options.every)

    def _drawn(
        self, noise: Noise, cond: Cond, kept: KnownSymbols | None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """The partial grids of a stream."""
        every = self.options.every
        rule = self.options.rule
        if self.method in ("cached", "naive"):
            # Both go symbol by symbol.
            source: SymbolSource = Draw(noise, rule)
            if kept is not None:
                source = KeepKnown(kept, source)
            yield from walk(self._steps_at_start(noise.n, cond), source, every)
            return
        # With guidance, every image is predicted with and without its class.
        if rule.guidance != 1:
            condition = guidance_condition(self.model, cond, noise.n)
        else:
            condition = self.model.condition(cond, noise.n)
        if self.method == "parallel":
            yield from Passes(self.model, condition, noise, rule, kept).walk(every)
            return
        rows = noise.n if rule.guidance == 1 else 2 * noise.n
        # Only batches of the same size can share memory.
        if self._window is None or self._window.batch != rows:
            self._window = self.model.window(rows, PIXELS)
        yield from Windows(self.model, self._window, condition, noise, rule, kept).walk(every)

    def _steps_at_start(self, n: int, cond: Cond) -> Steps:
        """Steps at the first symbol, reusing the memory of the previous batch if it fits."""
        # Only batches of the same size can share memory.
        if self._steps is None or not self._steps.restart(n, cond):
            cached = self.method == "cached"
            self._steps = Steps(self.model, n, cond, cached, self.options.rule.guidance)
        return self._steps


def choose(model: DensityModel) -> Method:
    """The sampling method that ``auto`` stands for.

    It is ``parallel`` for models that draw all symbols of a grid in one pass (those of the scales
    of ``next-scale``), and for models whose pass costs little more than a cached step in torch
    (MADE), if there are two levels, which keeps the number of passes low, and if the compiled
    kernel does not draw the symbols: on another device, or without a compiler. Otherwise it is
    ``cached``. The rule follows measurements on a CPU (``docs/performance.md``,
    ``results/parallel.json``). Nothing is timed here, so the choice never varies between runs.
    """
    if model.symbols_independent:
        return "parallel"
    if not model.pass_is_cheap or model.grid.levels > 2:
        return "cached"
    compiles = model.programs_are_final and model.device.type == "cpu" and kernel.available()
    return "cached" if compiles else "parallel"


def stream(
    model: DensityModel,
    n: int = 16,
    seed: int = 0,
    method: Method = "auto",
    cond: Cond = None,
    every: int = 0,
    x: object = None,
    known: object = None,
    order: WalkOrder = "raster",
    unmasking: Unmasking | None = None,
    **rule: Unpack[RuleKeywords],
) -> Iterator[tuple[int, torch.Tensor]]:
    """Sample step by step: a generator of partial grids.

    Args:
        model: a density model.
        n: number of images, drawn together.
        seed: image ``i`` has the seed ``seed + i``, and is the same whatever ``n`` is.
        method: ``"cached"``, ``"windows"``, ``"parallel"``, ``"naive"`` (the slow reference), or
            ``"auto"``, see :func:`choose`.
        cond: class of each image ``[n]``, codes, or both, see :data:`Cond`.
        every: number of symbols between two yields; 0 means a row. Passes over
            several symbols may skip some.
        x, known, order: symbols to keep, where, and when, see :func:`complete`.
        unmasking: the steps of a masked model, of which each yields a partial grid.
        rule: ``temperature``, ``top_k``, ``top_p``, ``guidance``, see :class:`Rule`.

    Yields:
        ``(index, x)``: ``x int64 [n, height, width, channels]`` holds the first ``index`` symbols
        of each image and 0 elsewhere. It is the same tensor every time; clone it to keep it.

    Raises:
        InputError: at the first iteration, for an argument that does not fit.
        NumericalError: when the model returns NaN or infinity.
    """
    options = Sampling.from_keywords(
        method=method, every=every, order=order, unmasking=unmasking, **rule
    )
    sampler = Sampler(model, options)
    # Either of the two alone is an error, which KnownSymbols.check explains.
    kept = None
    if x is not None or known is not None:
        kept = KnownSymbols.check(model, x, known)
    yield from sampler.stream(n, seed, cond, kept)


def sample(
    model: DensityModel,
    n: int = 16,
    seed: int = 0,
    method: Method = "auto",
    cond: Cond = None,
    batch: int = BATCH,
    unmasking: Unmasking | None = None,
    **rule: Unpack[RuleKeywords],
) -> torch.Tensor:
    """Draw ``n`` grids of symbols exactly from the model: ``int64 [n, height, width, channels]``.

    A masked model draws by :class:`Unmasking`, which is exact only with one symbol a step.

    Args:
        batch: images drawn at a time; affects memory and speed, but not the result.
        model, n, seed, method, cond, unmasking, rule: see :func:`stream`.

    Raises:
        InputError, NumericalError: see :func:`stream`.

    >>> import tessella as ts
    >>> model = ts.create("gated-pixelcnn", ts.Grid(4, 4, 1, 2), layers=2, hidden=8)
    >>> bool((ts.sample(model, n=16, seed=0)[5] == ts.sample(model, n=1, seed=5)[0]).all())
    True
    """
    check_model(model)
    # Nobody sees partial grids, so each batch is drawn in one go.
    whole = model.grid.symbols
    options = Sampling.from_keywords(
        method=method, batch=batch, every=whole, unmasking=unmasking, **rule
    )
    return _draw_batches(Sampler(model, options), check_integer("n", n, least=1), seed, cond)


def complete(
    model: DensityModel,
    x: object,
    known: object,
    seed: int = 0,
    method: Method = "auto",
    cond: Cond = None,
    batch: int = BATCH,
    order: WalkOrder = "raster",
    unmasking: Unmasking | None = None,
    **rule: Unpack[RuleKeywords],
) -> torch.Tensor:
    """Keep the known symbols, and draw the rest.

    Each symbol is drawn given all symbols before it, known or drawn. In raster order a known symbol
    cannot influence symbols *before* it: if the lower half is known, the upper half is drawn
    without regard to it, and the two may not fit together. With ``order="known-first"`` every
    missing symbol is drawn given all known ones, exactly; that takes a model that predicts in any
    order, such as ``any-order``.

    Args:
        x: symbols, ``[n, height, width, channels]``; unknown ones are ignored.
        known: which symbols to keep, ``bool [height, width]`` for all images and channels, or
            ``bool [n, height, width, channels]``.
        order: ``"raster"``; or ``"known-first"`` for the known symbols and then the missing ones,
            each part in raster order.
        model, seed, method, cond, batch, unmasking, rule: see :func:`sample`.

    Returns:
        ``int64 [n, height, width, channels]``. The noise of a symbol depends only on its position
        and the seed, so with nothing known this equals ``sample(model, n, seed)``.

    Raises:
        InputError, NumericalError: see :func:`stream`.
    """
    check_model(model)
    whole = model.grid.symbols
    options = Sampling.from_keywords(
        method=method, batch=batch, every=whole, order=order, unmasking=unmasking, **rule
    )
    sampler = Sampler(model, options)
    kept = KnownSymbols.check(model, x, known)
    n = check_integer("the number of images in x", len(kept), least=1)
    return _draw_batches(sampler, n, seed, cond, kept)


def check_model(model: object) -> None:
    """Check that ``model`` can be sampled from.

    Raises:
        InputError: when it is not a density model, or has active dropout.
    """
    if not isinstance(model, DensityModel):
        raise InputError(
            f"sampling takes a density model, got {type(model).__name__}; "
            "of a loaded run take generator.prior, or generator.sample() for images"
        )
    model.check_eval_mode()


def _check_memory(model: DensityModel, n: int) -> None:
    """Refuse more images than memory holds at the same time, as int64 symbols."""
    check_drawn(
        n,
        8 * model.grid.symbols,
        "draw them in parts, since image i has the seed seed + i; of a loaded run"
        " generator.batches() yields one batch after another, and tessella sample --out DIRECTORY"
        " writes them to files",
    )


def _draw_batches(
    sampler: Sampler, n: int, seed: int, cond: Cond, kept: KnownSymbols | None = None
) -> torch.Tensor:
    """Draw all images batch by batch: ``int64 [n, height, width, channels]``."""
    # Check the arguments for all images, before the first batch is drawn.
    seed = check_seed(seed, n)
    _check_memory(sampler.model, n)
    condition: Condition | None = None
    # None stays None, because steps restart faster without a condition.
    if cond is not None:
        condition = sampler.model.condition(cond, n)
    batches = []
    for start in range(0, n, sampler.options.batch):
        part = range(start, min(start + sampler.options.batch, n))
        condition_here = None
        if condition is not None:
            condition_here = condition.select(torch.arange(part.start, part.stop))
        kept_here = None if kept is None else kept.images(part)
        # A stream yields the same tensor each time; in the end it holds the batch.
        last = torch.empty(0)
        for _, partial in sampler.stream(len(part), seed + start, condition_here, kept_here):
            last = partial
        batches.append(last)
    return torch.cat(batches)

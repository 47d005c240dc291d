"""Exact sampling and completion, by three methods that draw the same.

``cached`` walks along the grid with the model's cached state, symbol after symbol; ``parallel``
repeats passes over the whole grid until nothing changes (``tessella.sampling.parallel``); ``naive``
runs the network on the whole grid for every symbol and is the oracle of both. With the noise of
``tessella.noise`` all give the same symbols for the same seed, whatever the batch. ``auto`` takes
the one that is fastest, see :func:`choose`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tessella.errors import InputError, unknown
from tessella.models.condition import Cond, Condition
from tessella.models.density_model import DensityModel
from tessella.noise import Noise
from tessella.sampling.parallel import Passes
from tessella.sampling.replay import Replay, replay
from tessella.sampling.rule import Rule
from tessella.sampling.walk import Complete, Draw, Source, Steps, doubled, walk

__all__ = [
    "BATCH", "METHODS", "Complete", "Draw", "Passes", "Replay", "Rule", "Sampler", "Source", "Steps", "choose",
    "complete", "replay", "sample", "stream", "walk",
]  # fmt: skip

METHODS = ("auto", "cached", "parallel", "naive")

BATCH = 64
"""Images that :func:`sample` draws at a time unless told otherwise."""


def choose(model: DensityModel) -> str:
    """The method that ``auto`` takes: ``parallel`` where a pass costs not much more than a cached
    step (MADE) and two levels make passes few, else ``cached``. So it was measured on a CPU
    (``docs/performance.md``, ``results/parallel.json``). It is a rule, not a race: a seed always
    takes the same method."""
    return "parallel" if model.pass_is_cheap and model.grid.levels == 2 else "cached"


class Sampler:
    """Draws batch after batch from one model, whose weights must not change meanwhile: what can be
    made once for all batches is.

    Args:
        model: a density model.
        method: ``"auto"``, ``"cached"``, ``"parallel"`` or ``"naive"``.
        part: which grid of an image the model draws, where an image has several: each has noise of
            its own.
        rule: ``temperature``, ``top_k``, ``top_p``, ``guidance``, see :class:`Rule`.

    Raises:
        InputError: for a method or a rule that does not exist, a model that is none or has dropout
            switched on.
    """

    def __init__(
        self, model: DensityModel, method: str = "auto", part: int = 0, **rule: Any
    ) -> None:
        if not isinstance(model, DensityModel):
            raise InputError(
                f"sampling takes a density model, got {type(model).__name__}; "
                "of a loaded run take generator.prior, or generator.sample() for images"
            )
        if method not in METHODS:
            raise InputError(unknown("sampling method", method, METHODS))
        model.refuse_dropout()
        self.model, self.rule, self.part = model, Rule(**rule), part
        self.method = choose(model) if method == "auto" else method
        self._steps: Steps | None = None
        self._streams = 0

    def stream(
        self,
        n: int = 16,
        seed: int = 0,
        cond: Cond = None,
        every: int = 0,
        x: Any = None,
        known: Any = None,
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """A generator of partial grids, see :func:`stream`. A new one takes the memory of the one
        before, which cannot go on then."""
        check_n(n)
        self._streams += 1
        if (known is None) != (x is None):
            raise InputError("completion needs both: x, the symbols, and known, where to keep them")
        given, where = (None, None) if known is None else known_symbols(self.model, x, known)
        if given is not None and len(given) != n:
            raise InputError(f"x holds {len(given)} images, n is {n}")
        noise = Noise(self.model.grid, n, seed, self.model.device, self.part)
        if self.method == "parallel":
            condition = self.model.condition(cond, n)
            if self.rule.guidance != 1:
                condition = doubled(self.model, cond, n)
            yield from Passes(self.model, condition, noise, self.rule, given, where).walk(every)
            return
        source: Source = Draw(noise, self.rule)
        if given is not None and where is not None:
            source = Complete(given, where, source)
        own = self._streams
        for partial in walk(self._walker(n, cond), source, every):
            yield partial
            if own != self._streams:
                raise InputError(
                    "this stream cannot go on: its sampler has begun another one; take a Sampler for each"
                )

    def _walker(self, n: int, cond: Cond) -> Steps:
        """Steps at their start; those of the batch before where they serve."""
        if self._steps is None or not self._steps.restart(n, cond):
            self._steps = Steps(self.model, n, cond, self.method, self.rule.guidance)
        return self._steps


def stream(
    model: DensityModel,
    n: int = 16,
    seed: int = 0,
    method: str = "auto",
    cond: Cond = None,
    every: int = 0,
    x: Any = None,
    known: Any = None,
    **rule: Any,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Sample, and watch: a generator of partial grids.

    Args:
        model: a density model.
        n: images, drawn together.
        seed: image ``i`` has the seed ``seed + i`` and comes out the same whatever ``n``.
        method: ``"cached"``, ``"parallel"``, ``"naive"``, their slow oracle, or ``"auto"``, see
            :func:`choose`.
        cond: class of each image ``[n]``, codes, or both, see :data:`Cond`.
        every: symbols between two yields; 0 means a row. Parallel passes may skip some.
        x, known: symbols to keep and where they are, see :func:`complete`.
        rule: ``temperature``, ``top_k``, ``top_p``, ``guidance``, see :class:`Rule`.

    Yields:
        ``(index, x)``: ``x int64 [n, height, width, channels]`` holds the first ``index`` symbols
        of each image and 0 elsewhere. It is the same array every time: clone it to keep it.

    Raises:
        InputError: at the first iteration, for an argument that does not fit.
    """
    yield from Sampler(model, method, **rule).stream(n, seed, cond, every, x, known)


def sample(
    model: DensityModel,
    n: int = 16,
    seed: int = 0,
    method: str = "auto",
    cond: Cond = None,
    batch: int = BATCH,
    **rule: Any,
) -> torch.Tensor:
    """Draw ``n`` grids of symbols exactly from the model: ``int64 [n, height, width, channels]``.

    Args:
        batch: images drawn at a time; changes memory and speed, not the result.
        model, n, seed, method, cond, rule: see :func:`stream`.

    >>> import tessella as ts
    >>> model = ts.create("gated-pixelcnn", ts.Grid(4, 4, 1, 2), layers=2, hidden=8)
    >>> bool((ts.sample(model, n=16, seed=0)[5] == ts.sample(model, n=1, seed=5)[0]).all())
    True
    """
    sampler = Sampler(model, method, **rule)
    check_n(n)
    condition = model.condition(cond, n) if cond is not None else None
    parts = [
        _last(sampler.stream(len(p), seed + p.start, _rows(condition, p))) for p in _parts(n, batch)
    ]
    return torch.cat(parts)


def complete(
    model: DensityModel,
    x: Any,
    known: Any,
    seed: int = 0,
    method: str = "auto",
    cond: Cond = None,
    batch: int = BATCH,
    **rule: Any,
) -> torch.Tensor:
    """Keep the known symbols, draw the rest in raster order.

    Each symbol is drawn given all symbols before it, known or drawn. A known symbol cannot
    influence the ones *before* it in the raster: a known lower half does not change how the upper
    half is drawn, and the two may not fit.

    Args:
        x: symbols ``[n, height, width, channels]``; what is not known is ignored.
        known: ``bool [height, width]``, or ``bool [n, height, width, channels]``.
        model, seed, method, cond, batch, rule: see :func:`sample`.

    Returns:
        ``int64 [n, height, width, channels]``. A symbol drawn at a place has the noise of that
        place, so with nothing known this is ``sample(model, n, seed)``.
    """
    sampler = Sampler(model, method, **rule)
    x, known = known_symbols(model, x, known)
    x, known = x.view(-1, *model.grid.shape), known.view(-1, *model.grid.shape)
    check_n(len(x))
    condition = model.condition(cond, len(x)) if cond is not None else None
    parts = [
        _last(
            sampler.stream(
                len(p),
                seed + p.start,
                _rows(condition, p),
                0,
                x[p.start : p.stop],
                known[p.start : p.stop],
            )
        )
        for p in _parts(len(x), batch)
    ]
    return torch.cat(parts)


def check_n(n: int) -> None:
    """Refuse a number of images that is none."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError(f"n must be a positive integer, got {n!r}")


def known_symbols(model: DensityModel, x: Any, known: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Symbols and mask as ``[n, symbols]``; symbols that are not known become 0."""
    known = torch.as_tensor(known).to(model.device)
    x = torch.as_tensor(x).to(model.device)
    if known.dtype != torch.bool:
        raise InputError(f"known must be boolean, got {known.dtype}: write known.bool()")
    if (
        known.dim() == 2
        and tuple(known.shape) == (model.grid.height, model.grid.width)
        and x.dim() == 4
    ):
        known = known[None, :, :, None].expand(x.shape)
    if x.shape != known.shape:
        raise InputError(
            f"known must have shape [{model.grid.height}, {model.grid.width}] or that of x, {list(x.shape)}, "
            f"got {list(known.shape)}"
        )
    x = model.grid.check(x.masked_fill(~known, 0) if not x.is_floating_point() else x)
    return x.flatten(1), known.flatten(1)


def _parts(n: int, batch: int) -> list[range]:
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InputError(f"batch must be a positive integer, got {batch!r}")
    return [range(start, min(start + batch, n)) for start in range(0, n, batch)]


def _rows(condition: Condition | None, part: range) -> Condition | None:
    return None if condition is None else condition.select(torch.arange(part.start, part.stop))


def _last(partial: Iterator[tuple[int, torch.Tensor]]) -> torch.Tensor:
    last = torch.empty(0)
    for _, last in partial:  # noqa: B007 - the last one is what is wanted
        pass
    return last

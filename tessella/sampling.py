"""One loop walks the grid: next distribution, next symbol.

A symbol drawn is sampling, a symbol given is completion; a codec reads or writes it. The distribution comes from one
of two methods: ``cached`` steps with the model's cached state, ``naive`` runs the network on the whole grid for every
symbol and is the oracle of the first. With the noise of ``tessella.noise`` both give the same symbols for the same
seed, whatever the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tessella.errors import InputError, unknown
from tessella.heads import Categorical, Distribution
from tessella.models.base import DensityModel
from tessella.models.condition import Cond, Condition
from tessella.noise import Noise

METHODS = ("cached", "naive")

BATCH = 64
"""Images that :func:`sample` draws at a time unless told otherwise."""

Source = Callable[[int, Distribution], torch.Tensor]
"""Gives symbol ``index`` of every image, ``int64 [n]``, in view of its distribution."""


@dataclass(frozen=True)
class Rule:
    """How the table of a symbol is bent before it is drawn from; the defaults leave it as it is.

    The order is: guidance ``u + s (c - u)`` on log-probabilities, renormalize, temperature, top-k, top-p.

    Args:
        temperature: divides the log-probabilities; above 0.
        top_k: keep exactly this many levels, ties going to the lower level; 0 keeps all.
        top_p: then keep the smallest set of likeliest levels whose mass reaches this; in (0, 1].
        guidance: scale ``s`` of classifier-free guidance (Ho and Salimans 2022); 1 is the conditional model itself.

    Raises:
        InputError: for a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, got {self.temperature} (top_k=1 takes the likeliest level)")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise InputError(f"top_k must be an integer of at least 0, got {self.top_k!r}")
        if not math.isfinite(self.guidance):
            raise InputError(f"guidance must be a finite number, got {self.guidance}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must lie in (0, 1], got {self.top_p}")

    def __call__(self, table: torch.Tensor) -> torch.Tensor:
        """Bend ``table [..., levels]``, log-probabilities in nats. Levels left out become ``-inf``."""
        if self.temperature != 1:
            table = torch.log_softmax(table / self.temperature, dim=-1)
        if 0 < self.top_k < table.shape[-1]:
            table = _keep(table, torch.arange(table.shape[-1], device=table.device) < self.top_k)
        if self.top_p < 1:
            ranked = table.sort(dim=-1, descending=True, stable=True).values.softmax(dim=-1)
            table = _keep(table, ranked.cumsum(dim=-1) - ranked < self.top_p)
        return table


def _keep(table: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Only the levels whose rank (likeliest first, ties to the lower level) is marked in ``ranks [..., levels]``."""
    order = table.sort(dim=-1, descending=True, stable=True).indices
    kept = torch.zeros_like(table, dtype=torch.bool).scatter_(-1, order, ranks.expand_as(table))
    return table.masked_fill(~kept, -torch.inf)


class Draw:
    """A source that draws: the argmax over levels of ``log p - log E`` (see ``tessella.noise``)."""

    def __init__(self, noise: Noise, rule: Rule) -> None:
        self.noise, self.rule = noise, rule

    def __call__(self, index: int, distribution: Distribution) -> torch.Tensor:
        return (self.rule(distribution.table()) + self.noise.at(index)).argmax(dim=-1)


class Complete:
    """A source that gives what is known and asks another for the rest.

    Args:
        x: ``int64 [n, symbols]``.
        known: ``bool [n, symbols]``.
        rest: source of the symbols not known.
    """

    def __init__(self, x: torch.Tensor, known: torch.Tensor, rest: Source) -> None:
        self.x, self.known, self.rest = x, known, rest
        self.whole = known.all(dim=0).tolist()

    def __call__(self, index: int, distribution: Distribution) -> torch.Tensor:
        given = self.x[:, index]
        if self.whole[index]:
            return given
        return torch.where(self.known[:, index], given, self.rest(index, distribution))


class Steps:
    """The distribution of one symbol after another, by either method, with or without guidance."""

    def __init__(self, model: DensityModel, n: int, cond: Cond, method: str, guidance: float) -> None:
        if method not in METHODS:
            raise InputError(unknown("sampling method", method, METHODS))
        model.refuse_dropout()
        self.model, self.n, self.guidance = model, n, guidance
        if guidance != 1:
            cond, n = self._guided(cond), 2 * n
        self._step = model.step if method == "cached" else model.whole_grid_step
        self.state: Any = (model.init_state if method == "cached" else model.whole_grid_state)(n, cond)

    def next(self, previous: torch.Tensor, index: int) -> Distribution:
        """Distribution of symbol ``index`` of every image, given symbol ``previous [n]`` before it."""
        if self.guidance == 1:
            parameters, self.state = self._step(previous, index, self.state)
            return self.model.head.symbol(parameters)
        parameters, self.state = self._step(previous.repeat(2), index, self.state)
        given, free = self.model.head.symbol(parameters).table().chunk(2)
        return Categorical(free + self.guidance * (given - free))

    def _guided(self, cond: Cond) -> Condition:
        """The condition of the images, then the same with the null class."""
        if not self.model.classes:
            raise InputError("guidance needs a model with classes; this one has none")
        if not self.model.null_class:
            raise InputError(
                "guidance needs the null class, and this model was trained with a class for every image: train with "
                "train.condition_dropout above 0"
            )
        given = self.model.condition(cond, self.n)
        assert given.labels is not None
        if cond is None or bool((given.labels == self.model.classes).all()):
            raise InputError("guidance needs a class for the images (cond=)")
        both = given.select(torch.arange(self.n).repeat(2))
        free = self.model.condition(Condition(None, given.codes), self.n).labels
        assert free is not None
        both.labels = torch.cat([given.labels, free])
        return both


def walk(steps: Steps, source: Source, every: int = 0) -> Iterator[tuple[int, torch.Tensor]]:
    """Walk the grid; yields ``(index, x)`` each time ``every`` more symbols are in place (0: a row).

    ``x int64 [n, height, width, channels]`` holds the first ``index`` symbols of each image and 0 elsewhere. It is
    the same array every time: clone it to keep it.
    """
    grid = steps.model.grid
    x = torch.zeros(steps.n, *grid.shape, dtype=torch.int64, device=steps.model.device)
    flat, previous = x.flatten(1), x.new_zeros(steps.n)
    every = every or grid.row_symbols
    for start in range(0, grid.symbols, every):
        stop = min(start + every, grid.symbols)
        with torch.no_grad():
            for index in range(start, stop):
                previous = source(index, steps.next(previous, index))
                flat[:, index] = previous
        yield stop, x


def stream(
    model: DensityModel,
    n: int = 16,
    seed: int = 0,
    method: str = "cached",
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
        method: ``"cached"``, or ``"naive"``, its slow oracle.
        cond: class of each image ``[n]``, codes, or both, see :data:`Cond`.
        every: symbols between two yields; 0 means a row.
        x, known: symbols to keep and where they are, see :func:`complete`.
        rule: ``temperature``, ``top_k``, ``top_p``, ``guidance``, see :class:`Rule`.

    Yields:
        ``(index, x)``, see :func:`walk`.

    Raises:
        InputError: at the first iteration, for an argument that does not fit.
    """
    _check(model, n)
    rules = Rule(**rule)
    source: Source = Draw(Noise(model.grid, n, seed, model.device), rules)
    if (known is None) != (x is None):
        raise InputError("completion needs both: x, the symbols, and known, where to keep them")
    if known is not None:
        given, where = _known(model, x, known)
        if len(given) != n:
            raise InputError(f"x holds {len(given)} images, n is {n}")
        source = Complete(given, where, source)
    yield from walk(Steps(model, n, cond, method, rules.guidance), source, every)


def sample(
    model: DensityModel,
    n: int = 16,
    seed: int = 0,
    method: str = "cached",
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
    _check(model, n)
    condition = model.condition(cond, n) if cond is not None else None
    parts = [
        _last(stream(model, len(part), seed + part.start, method, _rows(condition, part), **rule))
        for part in _parts(n, batch)
    ]
    return torch.cat(parts)


def complete(
    model: DensityModel,
    x: Any,
    known: Any,
    seed: int = 0,
    method: str = "cached",
    cond: Cond = None,
    batch: int = BATCH,
    **rule: Any,
) -> torch.Tensor:
    """Keep the known symbols, draw the rest in raster order.

    Each symbol is drawn given all symbols before it, known or drawn. A known symbol cannot influence the ones
    *before* it in the
    raster: a known lower half does not change how the upper half is drawn, and the two may not fit.

    Args:
        x: symbols ``[n, height, width, channels]``; what is not known is ignored.
        known: ``bool [height, width]``, or ``bool [n, height, width, channels]``.
        model, seed, method, cond, batch, rule: see :func:`sample`.

    Returns:
        ``int64 [n, height, width, channels]``. A symbol drawn at a place has the noise of that place, so with nothing
        known this is ``sample(model, n, seed)``.
    """
    x, known = _known(model, x, known)
    x, known = x.view(-1, *model.grid.shape), known.view(-1, *model.grid.shape)
    _check(model, len(x))
    condition = model.condition(cond, len(x)) if cond is not None else None
    parts = [
        _last(
            stream(
                model, len(part), seed + part.start, method, _rows(condition, part), 0, x[part.start : part.stop],
                known[part.start : part.stop], **rule,
            )
        )
        for part in _parts(len(x), batch)
    ]  # fmt: skip
    return torch.cat(parts)


@dataclass(frozen=True)
class Replay:
    """What one parallel pass says of a sample. Both are ``[n, height, width, channels]``."""

    differs: torch.Tensor
    """``bool``: the pass would have drawn another symbol."""
    gap: torch.Tensor
    """How far (nats) the symbol drawn stayed under the best one; 0 where they agree."""


@torch.no_grad()
def replay(model: DensityModel, x: Any, seed: int = 0, cond: Cond = None, **rule: Any) -> Replay:
    """Prove a sample by induction: one forward pass over it, plus its noise, must draw every symbol again.

    Costs one pass where the naive sampler costs one for each symbol, so it serves on large grids. In float64 nothing
    differs; in float32 a difference is a near-tie, which ``gap`` shows.
    """
    model.refuse_dropout()
    rules = Rule(**rule)
    if rules.guidance != 1:
        raise InputError("replay does not take guidance")
    x = model.grid.check(x).to(model.device)
    noise = Noise(model.grid, len(x), seed, model.device)
    tables = rules(model.distribution(x, model.condition(cond, len(x))).table(x)).flatten(1, 3)
    flat, gap = x.flatten(1), torch.zeros(len(x), model.grid.symbols, dtype=torch.float64, device=x.device)
    for index in range(model.grid.symbols):
        score = tables[:, index] + noise.at(index)
        gap[:, index] = score.amax(dim=-1) - score.gather(-1, flat[:, index, None])[:, 0]
    return Replay((gap > 0).view_as(x), gap.view_as(x))


def _check(model: Any, n: int) -> None:
    if not isinstance(model, DensityModel):
        raise InputError(
            f"sampling takes a density model, got {type(model).__name__}; "
            "of a loaded run take generator.prior, or generator.sample() for images"
        )
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError(f"n must be a positive integer, got {n!r}")


def _known(model: DensityModel, x: Any, known: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Symbols and mask as ``[n, symbols]``; symbols that are not known become 0."""
    known = torch.as_tensor(known).to(model.device)
    x = torch.as_tensor(x).to(model.device)
    if known.dtype != torch.bool:
        raise InputError(f"known must be boolean, got {known.dtype}: write known.bool()")
    if known.dim() == 2 and tuple(known.shape) == (model.grid.height, model.grid.width) and x.dim() == 4:
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

"""Sampling, completion, and the stream of partial grids that both consume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import torch

from tessella.errors import InputError, check_integer
from tessella.models.condition import Cond, Condition
from tessella.models.density_model import DensityModel
from tessella.noise import Noise, check_seed
from tessella.sampling.known_symbols import KnownSymbols
from tessella.sampling.parallel import Passes
from tessella.sampling.rule import RuleKeywords
from tessella.sampling.sampling_options import BATCH, Method, Sampling
from tessella.sampling.walk import Draw, KeepKnown, Steps, SymbolSource, guidance_condition, walk


class Sampler:
    """Draws batch after batch from one model.

    What all batches can share is made once, so the weights must not change meanwhile.

    Args:
        model: a density model.
        options: method and rule; ``every`` is that of :meth:`stream`, and ``batch`` is not used.
        part: which grid of an image the model draws, where an image has several: each has noise of
            its own.

    Raises:
        InputError: for a model that is none or has dropout switched on.
    """

    def __init__(self, model: DensityModel, options: Sampling | None = None, part: int = 0) -> None:
        check_model(model)
        self.model = model
        self.options = options or Sampling()
        self.part = part
        self.method = choose(model) if self.options.method == "auto" else self.options.method
        self._steps: Steps | None = None
        self._streams_begun = 0

    def stream(
        self, n: int = 16, seed: int = 0, cond: Cond = None, kept: KnownSymbols | None = None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """A generator of partial grids, see :func:`stream`.

        A new stream takes the memory of the one before, which cannot go on then.
        """
        n = check_integer("n", n, least=1)
        if kept is not None and len(kept) != n:
            raise InputError(f"x holds {len(kept)} images, n is {n}")
        # The memory of the steps is shared by all streams of a sampler, so an older one must stop.
        self._streams_begun += 1
        noise = Noise(self.model.grid, n, seed, self.model.device, self.part)
        rule = self.options.rule
        if self.method == "parallel":
            if rule.guidance != 1:
                condition = guidance_condition(self.model, cond, n)
            else:
                condition = self.model.condition(cond, n)
            passes = Passes(self.model, condition, noise, rule, kept)
            yield from passes.walk(self.options.every)
            return
        # Symbol after symbol, by cached steps or by the naive oracle.
        source: SymbolSource = Draw(noise, rule)
        if kept is not None:
            source = KeepKnown(kept, source)
        this_stream = self._streams_begun
        for partial in walk(self._steps_at_start(n, cond), source, self.options.every):
            yield partial
            # While the caller had the grid, another stream may have begun.
            if this_stream != self._streams_begun:
                raise InputError(
                    "this stream cannot go on: its sampler has begun another one; "
                    "take a Sampler for each"
                )

    def _steps_at_start(self, n: int, cond: Cond) -> Steps:
        """Steps at their start; those of the batch before where they serve."""
        if self._steps is None or not self._steps.restart(n, cond):
            cached = self.method == "cached"
            self._steps = Steps(self.model, n, cond, cached, self.options.rule.guidance)
        return self._steps


def choose(model: DensityModel) -> Method:
    """The method that ``auto`` takes.

    It is ``parallel`` where a pass costs not much more than a cached step (MADE) and two levels
    make passes few, else ``cached``. So it was measured on a CPU (``docs/performance.md``,
    ``results/parallel.json``). It is a rule, not a race: a seed always takes the same method.
    """
    return "parallel" if model.pass_is_cheap and model.grid.levels == 2 else "cached"


def stream(
    model: DensityModel,
    n: int = 16,
    seed: int = 0,
    method: Method = "auto",
    cond: Cond = None,
    every: int = 0,
    x: object = None,
    known: object = None,
    **rule: Unpack[RuleKeywords],
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
        NumericalError: where the model gives no probabilities, since its parameters are NaN or
            infinite.
    """
    sampler = Sampler(model, Sampling.from_keywords(method=method, every=every, **rule))
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
    **rule: Unpack[RuleKeywords],
) -> torch.Tensor:
    """Draw ``n`` grids of symbols exactly from the model: ``int64 [n, height, width, channels]``.

    Args:
        batch: images drawn at a time; changes memory and speed, not the result.
        model, n, seed, method, cond, rule: see :func:`stream`.

    Raises:
        InputError, NumericalError: see :func:`stream`.

    >>> import tessella as ts
    >>> model = ts.create("gated-pixelcnn", ts.Grid(4, 4, 1, 2), layers=2, hidden=8)
    >>> bool((ts.sample(model, n=16, seed=0)[5] == ts.sample(model, n=1, seed=5)[0]).all())
    True
    """
    options = Sampling.from_keywords(method=method, batch=batch, **rule)
    return _drawn(Sampler(model, options), check_integer("n", n, least=1), seed, cond)


def complete(
    model: DensityModel,
    x: object,
    known: object,
    seed: int = 0,
    method: Method = "auto",
    cond: Cond = None,
    batch: int = BATCH,
    **rule: Unpack[RuleKeywords],
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

    Raises:
        InputError, NumericalError: see :func:`stream`.
    """
    options = Sampling.from_keywords(method=method, batch=batch, **rule)
    sampler = Sampler(model, options)
    kept = KnownSymbols.check(model, x, known)
    n = check_integer("the number of images in x", len(kept), least=1)
    return _drawn(sampler, n, seed, cond, kept)


def check_model(model: object) -> None:
    """Refuse what cannot be sampled from.

    Raises:
        InputError: for what is not a density model, or one that has dropout switched on.
    """
    if not isinstance(model, DensityModel):
        raise InputError(
            f"sampling takes a density model, got {type(model).__name__}; "
            "of a loaded run take generator.prior, or generator.sample() for images"
        )
    model.check_eval_mode()


def _drawn(
    sampler: Sampler, n: int, seed: int, cond: Cond, kept: KnownSymbols | None = None
) -> torch.Tensor:
    """All images, batch by batch."""
    # Checked for all images here, so that nothing is drawn before a mistake is found.
    seed = check_seed(seed, n)
    condition: Condition | None = None
    # None stays None: steps restart faster where there is no condition.
    if cond is not None:
        condition = sampler.model.condition(cond, n)
    batches = []
    for start in range(0, n, sampler.options.batch):
        part = range(start, min(start + sampler.options.batch, n))
        condition_here = None
        if condition is not None:
            condition_here = condition.select(torch.arange(part.start, part.stop))
        kept_here = None if kept is None else kept.images(part)
        # A stream fills one array, which holds the batch in the end.
        last = torch.empty(0)
        for _, partial in sampler.stream(len(part), seed + start, condition_here, kept_here):
            last = partial
        batches.append(last)
    return torch.cat(batches)

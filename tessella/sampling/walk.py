"""The walk along a grid, which alternates between the next distribution and the next symbol.

Sampling draws all symbols; completion takes some of them as given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch

from tessella.errors import InputError
from tessella.heads import Categorical, Distribution
from tessella.models.condition import Cond, Condition
from tessella.models.density_model import DensityModel, check_finite
from tessella.nn.stepping.state import State
from tessella.noise import Noise
from tessella.sampling.kernel_walk import KernelWalk
from tessella.sampling.known_symbols import KnownSymbols
from tessella.sampling.rule import Rule

MAX_GUIDANCE = 1e30
"""Larger scales of guidance are clamped to this, with the same effect."""


SYMBOLS_A_CHECK = 128
"""Symbols of an image between two checks that the distributions are finite."""

FEW_SCORES = 1 << 10
"""Scores of a symbol, over all images, up to which all are kept for the check."""

HELD_SCORES = 1 << 22
"""Scores that are kept before they are checked: 32 MiB."""


class SymbolSource(ABC):
    """Base of the objects that supply the symbols of a walk."""

    @abstractmethod
    def __call__(self, index: int, distribution: Distribution) -> torch.Tensor:
        """Choose the next symbol of every image.

        Args:
            index: index of the symbol in the sequence.
            distribution: its distribution, over ``[n]``.

        Returns:
            ``int64 [n]``.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise NumericalError if a distribution was not finite; called about every row."""


class Draw(SymbolSource):
    """A source that draws symbols from their distributions.

    It takes the argmax over levels of ``log p - log E``, see ``tessella.noise``.

    Args:
        noise: ``-log E``.
        rule: changes the distributions first.
    """

    def __init__(self, noise: Noise, rule: Rule) -> None:
        self.noise = noise
        self.rule = rule
        self._rule_applies = rule.applies
        self._scores: list[torch.Tensor] = []
        self._held = 0

    def __call__(self, index: int, distribution: Distribution) -> torch.Tensor:
        table = distribution.table()
        if self._rule_applies:
            table = self.rule(table)
        score = table + self.noise.at(index)  # [n, levels]
        # Looking at the scores takes as long as a small step, and on a GPU it waits for the device.
        # So they are kept, and looked at now and then. Of many scores only the best ones are kept:
        # finding them, too, takes longer than finding their places only if there are few.
        if score.numel() > FEW_SCORES:
            score, symbol = score.max(dim=-1)
        else:
            symbol = score.argmax(dim=-1)
        self._scores.append(score)
        self._held += score.numel()
        if self._held > HELD_SCORES:
            self.check()
        return symbol

    def check(self) -> None:
        if self._scores:
            # NaN or infinite parameters make the best score of a symbol NaN. Other scores may be
            # -inf: a rule excludes levels in this way.
            check_finite(torch.stack(self._scores).amax(dim=-1))
            self._scores.clear()
            self._held = 0


class KeepKnown(SymbolSource):
    """A source that keeps known symbols and gets the rest from another source.

    Args:
        kept: the known symbols.
        rest: source of the unknown symbols.
    """

    def __init__(self, kept: KnownSymbols, rest: SymbolSource) -> None:
        self.kept = kept
        self.x = kept.x
        self.known = kept.known
        self.rest = rest
        # If a symbol is known in all images, its distribution is never evaluated.
        self.known_in_all: list[bool] = kept.known.all(dim=0).tolist()

    def __call__(self, index: int, distribution: Distribution) -> torch.Tensor:
        # [n]; 0 for images in which this symbol is unknown.
        given = self.x[:, index]
        if self.known_in_all[index]:
            return given
        return torch.where(self.known[:, index], given, self.rest(index, distribution))

    def check(self) -> None:
        self.rest.check()


class Steps:
    """Predicts one symbol after another, with or without guidance.

    Args:
        model: a density model.
        n: number of images.
        cond: see :data:`Cond`.
        cached: whether to use cached steps; otherwise each symbol takes a pass over the whole grid.
        guidance: scale of guidance, see :class:`Rule`.

    Raises:
        InputError: for a condition that does not fit.
    """

    def __init__(
        self, model: DensityModel, n: int, cond: Cond, cached: bool, guidance: float
    ) -> None:
        self.model = model
        self.n = n
        self.guidance = guidance
        self.cached = cached
        self._step = model.step if cached else model.whole_grid_step
        self.state = self._first_state(cond)
        self._unconditional_start: State | None = None
        """A copy of the first state without a condition, made at the first restart."""
        self._kernel_walk: KernelWalk | None = None
        self._kernel_was_asked = False

    def _first_state(self, cond: Cond) -> State:
        rows = self.n
        if self.guidance != 1:
            # Every image appears twice: with its class, and then with the null class.
            cond = guidance_condition(self.model, cond, rows)
            rows = 2 * rows
        if self.cached:
            return self.model.init_state(rows, cond)
        return self.model.whole_grid_state(rows, cond)

    def restart(self, n: int, cond: Cond) -> bool:
        """Go back to the first symbol, in the same memory.

        Returns:
            Whether that was possible. It is not for another number of images, or without caching.
        """
        if n != self.n or not self.cached:
            return False
        # Without a condition the first state is always the same, and copying it is faster.
        if cond is None and self._unconditional_start is not None:
            self.state.load(self._unconditional_start)
            return True
        self.state.load(self._first_state(cond))
        self._unconditional_start = self.state.clone() if cond is None else None
        return True

    def kernel_walk(self) -> KernelWalk | None:
        """The walk of these steps in the compiled kernel; None where it cannot take them."""
        if self.cached and not self._kernel_was_asked:
            self._kernel_walk = KernelWalk.of(self.model, self.state, self.n)
        self._kernel_was_asked = True
        return self._kernel_walk

    def next(self, previous: torch.Tensor, index: int) -> Distribution:
        """Distribution of the next symbol of every image, over ``[n]``.

        Args:
            previous: symbol ``index - 1``, ``int64 [n]``; ignored at index 0.
            index: index of the symbol to predict.
        """
        if self.guidance != 1:
            # Both copies of an image share the symbol that was drawn.
            previous = previous.repeat(2)
        parameters, self.state = self._step(previous, index, self.state)
        distribution = self.model.head.symbol(parameters)
        if self.guidance != 1:
            return guided(distribution.table(), self.guidance)
        return distribution


def guidance_condition(model: DensityModel, cond: Cond, n: int) -> Condition:
    """The condition for guidance: that of each image, and then the same with the null class.

    Args:
        model: a density model.
        cond: see :data:`Cond`.
        n: number of images.

    Returns:
        A condition of ``2 * n`` images.

    Raises:
        InputError: when the model has no classes or no null class, or ``cond`` has no class.
    """
    if not model.classes:
        raise InputError("guidance needs a model with classes; this one has none")
    if not model.null_class:
        raise InputError(
            "guidance needs the null class, and this model was trained with a class for every "
            "image: train with train.condition_dropout above 0"
        )
    given = model.condition(cond, n)
    assert given.labels is not None
    if cond is None or bool((given.labels == model.classes).all()):
        raise InputError("guidance needs a class for the images (cond=)")
    without_class = model.condition(Condition(None, given.codes), n)
    assert without_class.labels is not None
    # Both halves keep the codes; only the class differs.
    both = given.select(torch.arange(n).repeat(2))
    both.labels = torch.cat([given.labels, without_class.labels])
    return both


def guided(table: torch.Tensor, scale: float) -> Categorical:
    """Classifier-free guidance: the distribution of ``u + s (c - u)``, renormalized.

    Args:
        table: log-probabilities ``[2 * n, ..., levels]``: those with the class (``c``), then those
            without (``u``).
        scale: the scale ``s``.

    Returns:
        A distribution over ``[n, ...]``.
    """
    with_class, without = table.chunk(2)
    # Far larger scales would overflow to infinity. Long before, one level has all the probability.
    scale = max(-MAX_GUIDANCE, min(scale, MAX_GUIDANCE))
    return Categorical(without + scale * (with_class - without))


def walk(steps: Steps, source: SymbolSource, every: int = 0) -> Iterator[tuple[int, torch.Tensor]]:
    """Visit all symbols in order, and yield partial grids.

    Args:
        steps: predict the symbols.
        source: chooses the symbols.
        every: number of symbols between two yields; 0 means a row.

    Yields:
        ``(index, x)``: ``x int64 [n, height, width, channels]`` holds the first ``index`` symbols
        of each image and 0 elsewhere. It is the same tensor every time; clone it to keep it.

    Raises:
        NumericalError: when the model returns NaN or infinity.
    """
    grid = steps.model.grid
    x = torch.zeros(steps.n, *grid.shape, dtype=torch.int64, device=steps.model.device)
    flat = x.flatten(1)  # a view: [n, symbols]
    drawing = _in_kernel(steps, source, flat) or SymbolBySymbol(steps, source, flat)
    every = every or grid.row_symbols
    for start in range(0, grid.symbols, every):
        stop = min(start + every, grid.symbols)
        # Do not yield inside no_grad: it would stay in force in the code that iterates over this.
        with torch.no_grad():
            drawing.draw(start, stop)
        yield stop, x


class SymbolBySymbol:
    """Draws symbols one by one, as the kernel does many at a time.

    Args:
        steps: predict the symbols.
        source: chooses the symbols.
        x: receives the symbols, ``int64 [n, symbols]``.
    """

    def __init__(self, steps: Steps, source: SymbolSource, x: torch.Tensor) -> None:
        self.steps = steps
        self.source = source
        self.x = x
        self._previous = x.new_zeros(steps.n)
        self._checked = 0

    def draw(self, first: int, last: int) -> None:
        """Draw the symbols ``first .. last - 1`` of all images, after all symbols before them.

        Raises:
            NumericalError: when the model returns NaN or infinity.
        """
        for index in range(first, last):
            self._previous = self.source(index, self.steps.next(self._previous, index))
            self.x[:, index] = self._previous
            # A check costs as much as a small step, so many symbols share one.
            drawn = index + 1
            if drawn - self._checked >= SYMBOLS_A_CHECK or drawn == self.x.shape[1]:
                self.source.check()
                self._checked = drawn


def _in_kernel(steps: Steps, source: SymbolSource, x: torch.Tensor) -> KernelWalk | None:
    """The walk in the compiled kernel, at its beginning; None where it cannot take this one.

    Args:
        steps, source: see :func:`walk`.
        x: receives the symbols, ``int64 [n, symbols]``.
    """
    kept = None
    if type(source) is KeepKnown:
        kept = source.kept
        source = source.rest
    # Any other source wants to see the distributions.
    if type(source) is not Draw:
        return None
    in_kernel = steps.kernel_walk()
    if in_kernel is not None:
        in_kernel.begin(x, source.noise, source.rule, kept)
    return in_kernel

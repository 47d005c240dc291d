"""Heads of exact twins, which turn integers into frequencies (``docs/arithmetic.md``)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tessella.errors import ConfigError
from tessella.exact.integer_distributions import (
    IntegerCategorical,
    IntegerMixture,
    exponentials_below_largest,
    mixture_weights,
)
from tessella.grid import Grid
from tessella.heads import (
    CategoricalHead,
    Distribution,
    FactoredHead,
    Head,
    JointHead,
    LogisticMixtureHead,
    PixelMixture,
)
from tessella.nn.integer.functions import FRACTION_BITS, LIMIT, rounded, store, tanh
from tessella.nn.stepping.state import State

MAX_LEVELS = 2**20
"""Upper limit on levels: with a frequency of at least 1 each, they take a share of ``TOTAL``."""


class IntegerCategoricalHead(FactoredHead):
    """A softmax over the levels, from logits that are integers.

    Parameters are ``int32`` or ``int64``, in units of ``2**-16``.

    Args:
        grid: the grid whose symbols are modelled.

    Raises:
        ConfigError: for more than ``2**20`` levels.
    """

    name = "integer-categorical"

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        check_levels(grid)

    @property
    def size(self) -> int:
        return self.grid.levels

    def __call__(self, parameters: torch.Tensor) -> IntegerCategorical:
        return IntegerCategorical(parameters)

    def symbol(self, parameters: torch.Tensor) -> IntegerCategorical:
        # The softmax is over the last dimension, for one symbol as for a whole grid.
        return IntegerCategorical(parameters)

    def parameters_from_table(self, table: torch.Tensor) -> torch.Tensor:
        # Limited before they become integers, because a level may be impossible: -inf.
        scaled = torch.floor(table.double() * 2**FRACTION_BITS + 0.5)
        return scaled.clamp(-LIMIT, LIMIT).long()


@dataclass
class IntegerPosterior(State):
    """State of the walk through the channels of pixels, of integers in units of ``2**-16``."""

    parameters: list[torch.Tensor]
    """Means and log-scales of all channels, and coefficients after their ``tanh``, which are in
    units of ``2**-15``."""
    weights: torch.Tensor
    """Posterior weights of the components given the channels known so far, of sum ``2**20``:
    ``[..., components]``."""
    values: list[torch.Tensor]
    """Values of the known channels, scaled to [-1, 1], ``[..., 1]`` each."""
    current: torch.Tensor | None = None
    """Parameters of the newest channel, ``[..., 3 * components]``."""


class IntegerMixtureHead(JointHead):
    """A discretized mixture of logistics over the channels of a pixel, in integers.

    Its parameters are those of a :class:`LogisticMixtureHead` in the same order, ``int32`` or
    ``int64``, in units of ``2**-16``.

    Args:
        grid: the grid whose symbols are modelled, with at least 3 levels.
        components: number of logistics in the mixture.

    Raises:
        ConfigError: for fewer than 3 levels or more than ``2**20``, or a number of components that
            is not a positive integer.
    """

    name = "integer-mixture"
    ordered = True

    def __init__(self, grid: Grid, components: int = 10) -> None:
        super().__init__(grid)
        check_levels(grid)
        # It knows the layout of a pixel, and checks the arguments.
        self.real = LogisticMixtureHead(grid, components)
        self.components = components

    @property
    def size(self) -> int:
        return self.real.size

    def __call__(self, parameters: torch.Tensor) -> Distribution:
        return PixelMixture(self, parameters)

    def symbol(self, parameters: torch.Tensor) -> IntegerMixture:
        return IntegerMixture(parameters, self.grid.levels)

    def start(self, parameters: torch.Tensor) -> IntegerPosterior:
        weights, means, log_scales, coefficients = self.real.parts(parameters.long())
        proportions = exponentials_below_largest(weights)
        shared = [means, log_scales, tanh(coefficients)]
        return IntegerPosterior(shared, mixture_weights(proportions), [])

    def next(
        self, previous: torch.Tensor | None, channel: int, state: State
    ) -> tuple[torch.Tensor, IntegerPosterior]:
        assert isinstance(state, IntegerPosterior)
        m = self.components
        if channel:
            assert previous is not None
            assert state.current is not None
            # Bayes' rule.
            state.weights = mixture_weights(self.symbol(state.current).joint_with(previous))
            bins = self.grid.levels - 1
            value = ((previous << 17) + bins // 2) // bins - (1 << FRACTION_BITS)
            state.values.append(value.unsqueeze(-1))
        # The means of this channel, shifted by each earlier channel.
        means, log_scales, coefficients = state.parameters
        this_channel = slice(channel * m, (channel + 1) * m)
        mean = means[..., this_channel]
        first_pair = channel * (channel - 1) // 2
        for pair, value in enumerate(state.values, start=first_pair):
            mean = mean + rounded(coefficients[..., pair * m : (pair + 1) * m] * value, 15)
        log_scale = log_scales[..., this_channel]
        state.current = torch.cat([state.weights, store(mean), log_scale], dim=-1)
        return state.current, state

    def config(self) -> dict[str, object]:
        return {"name": self.name, "components": self.components}


def integer_head(head: Head) -> IntegerCategoricalHead | IntegerMixtureHead:
    """The head that makes frequencies of what a float head makes probabilities of.

    The conversion of a model multiplies the matrix of an ordinal head into the last layer, and
    takes an :class:`IntegerCategoricalHead` from there on.

    Raises:
        ConfigError: for a head that has no such counterpart, or more than ``2**20`` levels.
    """
    # A subclass may compute anything, so only the classes themselves will do.
    if type(head) is CategoricalHead:
        return IntegerCategoricalHead(head.grid)
    if type(head) is LogisticMixtureHead and head.predicted:
        raise ConfigError(
            "a model with a predictor has no arithmetic in integers yet: train one with "
            "predictor = false to compress files"
        )
    if type(head) is LogisticMixtureHead:
        return IntegerMixtureHead(head.grid, head.components)
    raise ConfigError(
        f"the head {head.name!r} has no arithmetic in integers; exact models have "
        "categorical, ordinal or logistic-mixture heads"
    )


def check_levels(grid: Grid) -> None:
    """Raise ConfigError for a grid of more levels than frequencies can express."""
    if grid.levels > MAX_LEVELS:
        raise ConfigError(
            f"an exact model takes at most {MAX_LEVELS:,} levels, got {grid.levels:,}: "
            "take a grid of fewer levels, or use the float model"
        )

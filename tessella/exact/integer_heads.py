"""Heads of exact twins, which turn integers into frequencies (``docs/arithmetic.md``)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tessella.errors import ConfigError
from tessella.exact.integer_distributions import (
    IntegerCategorical,
    IntegerMixture,
    exponentials_below_largest,
    mixture_weights,
    value_of,
)
from tessella.exact.integer_predictor import COEFFICIENT_BITS, LARGEST_MEAN, UNIT_BITS, in_units
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
from tessella.nn.integer.functions import FRACTION_BITS, LIMIT, clamp, rounded, store, tanh
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
    """Values of the known channels, scaled to [-1, 1], ``[..., 1]`` each; with a predictor they are
    in units of ``2**-24``."""
    current: torch.Tensor | None = None
    """Parameters of the newest channel, ``[..., 3 * components]``."""
    prediction: list[torch.Tensor] = field(default_factory=list)
    """With a predictor, its means, couplings, typical errors and their inverses; see
    :class:`~tessella.exact.integer_predictor.IntegerPredictor`."""
    expected: list[torch.Tensor] = field(default_factory=list)
    """With a predictor, its mean of each channel so far, given the channels before it, ``[..., 1]``
    each, in units of ``2**-24``."""


class IntegerMixtureHead(JointHead):
    """A discretized mixture of logistics over the channels of a pixel, in integers.

    Its parameters are those of a :class:`LogisticMixtureHead` in the same order, ``int32`` or
    ``int64``, in units of ``2**-16``. With a predictor, the prediction of an
    :class:`~tessella.exact.integer_predictor.IntegerPredictor` follows them.

    Args:
        grid: the grid whose symbols are modelled, with at least 3 levels.
        components: number of logistics in the mixture.
        predicted: whether there is a predictor.

    Raises:
        ConfigError: for fewer than 3 levels or more than ``2**20``, or a number of components that
            is not a positive integer.
    """

    name = "integer-mixture"
    ordered = True

    def __init__(self, grid: Grid, components: int = 10, predicted: bool = False) -> None:
        super().__init__(grid)
        check_levels(grid)
        self.predicted = predicted
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
        parameters = parameters.long()
        own = parameters[..., : self.size]
        weights, means, log_scales, coefficients = self.real.parts(own)
        prediction: list[torch.Tensor] = []
        if self.predicted:
            prediction = self._prediction_parts(parameters[..., self.size :])
            error_log_scales = prediction.pop()
            error_weights = prediction.pop()
            weights = store(weights + error_weights)
            log_scales = store(log_scales + error_log_scales)
        proportions = exponentials_below_largest(weights)
        shared = [means, log_scales, tanh(coefficients)]
        state = IntegerPosterior(shared, mixture_weights(proportions), [])
        state.prediction = prediction
        return state

    def _prediction_parts(self, prediction: torch.Tensor) -> list[torch.Tensor]:
        """Means, couplings, errors, their inverses, and logits and log-scales of the errors."""
        m = self.components
        c = self.grid.channels
        sizes = [c, self.real.pairs, c, c, c, m, c * m]
        means, couplings, _, *rest = prediction.split(sizes, dim=-1)
        return [means, couplings, *rest]

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
            bits = COEFFICIENT_BITS if self.predicted else FRACTION_BITS
            state.values.append(value_of(previous, self.grid.levels, bits).unsqueeze(-1))
        # The means of this channel, shifted by each earlier channel.
        means, log_scales, coefficients = state.parameters
        this_channel = slice(channel * m, (channel + 1) * m)
        mean = means[..., this_channel]
        first_pair = channel * (channel - 1) // 2
        shifts = self._correct(channel, state) if self.predicted else state.values
        for pair, shift in enumerate(shifts, start=first_pair):
            mean = mean + rounded(coefficients[..., pair * m : (pair + 1) * m] * shift, 15)
        mean = store(mean)
        if self.predicted:
            # The network's means count from the prediction, in units of the typical error.
            unit = state.prediction[2][..., channel : channel + 1]
            expected = state.expected[-1] << (UNIT_BITS + FRACTION_BITS - COEFFICIENT_BITS)
            mean = store(rounded(expected + unit * mean, UNIT_BITS))
        log_scale = log_scales[..., this_channel]
        state.current = torch.cat([state.weights, mean, log_scale], dim=-1)
        return state.current, state

    def _correct(self, channel: int, state: IntegerPosterior) -> list[torch.Tensor]:
        """Complete the prediction of a channel.

        Returns:
            How far each earlier channel was from its prediction, in units of its typical error:
            numbers of ``2**-16``, ``[..., 1]`` each.
        """
        means, couplings, _, inverses = state.prediction
        expected = means[..., channel : channel + 1]
        first_pair = channel * (channel - 1) // 2
        misses = []
        for earlier, value in enumerate(state.values):
            pair = first_pair + earlier
            coupling = couplings[..., pair : pair + 1]
            expected = expected + rounded(coupling * value, COEFFICIENT_BITS)
            inverse = inverses[..., earlier : earlier + 1]
            misses.append(in_units(value - state.expected[earlier], inverse))
        state.expected.append(clamp(expected, LARGEST_MEAN))
        return misses

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
    if type(head) is LogisticMixtureHead:
        return IntegerMixtureHead(head.grid, head.components, head.predicted)
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

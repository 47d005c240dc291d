"""The ``logistic-mixture`` head: a discretized mixture of logistics over a pixel's channels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from tessella.errors import ConfigError, InputError
from tessella.grid import Grid
from tessella.heads.head import AveragingJointHead, Distribution, JointHead, at_least_float32
from tessella.heads.level_log_prob import level_log_prob
from tessella.nn.linear_predictor import LinearPredictor
from tessella.nn.stepping.state import State

LOG_SCALES = (-7.0, 15.0)
"""Smallest and largest log-scale of a logistic, on the axis where the levels span [-1, 1]. The
smallest is that of PixelCNN++."""


class LogisticMixture(Distribution):
    """A mixture of logistics, each integrated over the bin of a level.

    Salimans et al. 2017, eq. 2. The levels are evenly spaced on [-1, 1]. The bins of the first and
    the last level extend to minus and plus infinity, so that the probabilities sum to exactly one.
    With ``a`` and ``b`` the standardized edges of a bin,
    ``log(sigmoid(b) - sigmoid(a)) = log sigmoid(b) + log sigmoid(-a) + log(1 - exp(a - b))``, which
    is stable in both tails.

    Args:
        parameters: logits of the weights, means and log-scales, ``[..., 3 * components]``.
        levels: number of levels.
    """

    def __init__(self, parameters: torch.Tensor, levels: int) -> None:
        self.parameters = at_least_float32(parameters)
        self.levels = levels
        self.weights, self.means, log_scales = self.parameters.chunk(3, dim=-1)
        self.log_scales = log_scales.clamp(*LOG_SCALES)

    @property
    def log_weights(self) -> torch.Tensor:
        """Logarithms of the components' weights, ``[..., components]``."""
        # On a CPU, a log-softmax over a few numbers takes four times as long.
        return self.weights - self.weights.logsumexp(dim=-1, keepdim=True)

    def components(self, x: torch.Tensor) -> torch.Tensor:
        """Log-probability of ``x [...]`` under each component: ``[..., components]``."""
        return level_log_prob(x.unsqueeze(-1), self.means, self.log_scales, self.levels)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(self.log_weights + self.components(x), dim=-1)

    def table(self, x: torch.Tensor | None = None) -> torch.Tensor:
        levels = torch.arange(self.levels, device=self.means.device)
        # Score all levels at once, along one more dimension.
        each_level = LogisticMixture(self.parameters.unsqueeze(-2), self.levels)
        return each_level.log_prob(levels.expand(*self.means.shape[:-1], self.levels))

    def mode(self) -> torch.Tensor:
        return self.table().argmax(dim=-1)


@dataclass
class PixelPosterior(State):
    """State of the walk through the channels of pixels."""

    parameters: list[torch.Tensor]
    """Means and log-scales of all channels, and coefficients after their ``tanh``."""
    log_weights: torch.Tensor
    """Posterior log-weights of the components given the channels known so far, in nats up to a
    constant, ``[..., components]``."""
    values: list[torch.Tensor]
    """Values of the known channels, scaled to [-1, 1], ``[..., 1]`` each."""
    current: torch.Tensor | None = None
    """Parameters of the newest channel, ``[..., 3 * components]``."""
    prediction: list[torch.Tensor] = field(default_factory=list)
    """With a predictor, its means, couplings and scales, ``[..., C]``, ``[..., pairs]`` and
    ``[..., C]``."""
    expected: list[torch.Tensor] = field(default_factory=list)
    """With a predictor, its mean of each channel so far, given the channels before it, ``[..., 1]``
    each."""


class LogisticMixtureHead(AveragingJointHead):
    """``logistic-mixture``: a discretized mixture of logistics over the channels of a pixel.

    Salimans et al. 2017, eq. 3. All channels of a pixel share their mixture weights. The mean of
    channel ``c`` is shifted by ``tanh(coefficient) * value`` for every earlier channel, with one
    coefficient for each component and pair of channels. Seen one symbol at a time, this is a
    *univariate* mixture whose weights are the posterior of the component given the known channels.

    A pixel with ``M`` components and ``C`` channels has ``size`` parameters, in this order: weights
    ``[M]``, means ``[C, M]``, log-scales ``[C, M]``, and coefficients ``[C (C - 1) / 2, M]`` for
    the pairs (1, 0), (2, 0), (2, 1), ...

    With a predictor (``tessella.nn.linear_predictor``), a prediction of the pixel follows these
    parameters, and the network only says how to correct it: its means count from the prediction, in
    units of the typical error; its log-scales and the logits of its weights are added to those of
    the mixture of errors; and its coefficients multiply how far earlier channels were from their
    prediction, in units of their typical error. Where all of them are zero, the distribution is
    that of the predictor.

    Args:
        grid: the grid whose symbols are modelled, with at least 3 levels.
        components: number of logistics in the mixture.
        predictor: whether there is a predictor; it is fitted when training begins.
        predictor_hidden: hidden units of the predictor's own small network; 0 for none.

    Raises:
        ConfigError: for 2 levels, or a number of components that is not a positive integer.
    """

    name = "logistic-mixture"
    ordered = True

    def __init__(
        self,
        grid: Grid,
        components: int = 10,
        predictor: bool = False,
        predictor_hidden: int = 128,
    ) -> None:
        super().__init__(grid)
        # With 2 levels both bins extend to infinity: a roundabout way to write a Bernoulli.
        if grid.levels < 3:
            raise ConfigError(
                "the logistic-mixture head needs at least 3 levels; "
                "for 2 levels take head='categorical'"
            )
        if isinstance(components, bool) or not isinstance(components, int) or components < 1:
            raise ConfigError(
                f"logistic-mixture components must be a positive integer, got {components!r}"
            )
        self.components = components
        if isinstance(predictor_hidden, bool) or predictor_hidden < 0:
            raise ConfigError(f"predictor_hidden must be at least 0, got {predictor_hidden!r}")
        self.predicted = predictor
        self.predictor_hidden = predictor_hidden

    def create_predictor(self) -> LinearPredictor | None:
        if not self.predicted:
            return None
        return LinearPredictor(self.grid, self.components, self.size, self.predictor_hidden)

    @property
    def pairs(self) -> int:
        """Number of pairs of channels in a pixel."""
        return self.grid.channels * (self.grid.channels - 1) // 2

    @property
    def size(self) -> int:
        return self.components * (1 + 2 * self.grid.channels + self.pairs)

    def __call__(self, parameters: torch.Tensor) -> Distribution:
        return PixelMixture(self, at_least_float32(parameters))

    def symbol(self, parameters: torch.Tensor) -> LogisticMixture:
        return LogisticMixture(parameters, self.grid.levels)

    def parts(self, parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Weights, means, log-scales and coefficients of pixels ``[..., size]``."""
        m = self.components
        c = self.grid.channels
        return parameters.split([m, c * m, c * m, self.pairs * m], dim=-1)

    def prediction_parts(self, prediction: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Means, couplings, log-scales, and weights and log-scales of the mixture of errors.

        See :class:`LinearPredictor`.
        """
        m = self.components
        c = self.grid.channels
        return prediction.split([c, self.pairs, c, m, c * m], dim=-1)

    def start(self, parameters: torch.Tensor) -> PixelPosterior:
        parameters = at_least_float32(parameters)
        own = parameters[..., : self.size]
        weights, means, log_scales, coefficients = self.parts(own)
        shared = [means, log_scales, torch.tanh(coefficients)]
        if not self.predicted:
            return PixelPosterior(shared, weights, [])
        prediction = self.prediction_parts(parameters[..., self.size :])
        predicted_means, couplings, units, error_weights, error_log_scales = prediction
        shared[1] = log_scales + error_log_scales
        state = PixelPosterior(shared, weights + error_weights, [])
        state.prediction = [predicted_means, couplings, torch.exp(units)]
        return state

    def next(
        self, previous: torch.Tensor | None, channel: int, state: State
    ) -> tuple[torch.Tensor, PixelPosterior]:
        assert isinstance(state, PixelPosterior)
        m = self.components
        if channel:
            assert previous is not None
            assert state.current is not None
            # Bayes' rule. This omits the normalizing constant, which the softmax of the next
            # channel's mixture drops anyway.
            state.log_weights = state.log_weights + self.symbol(state.current).components(previous)
            value = previous.to(state.log_weights) * (2.0 / (self.grid.levels - 1)) - 1.0
            state.values.append(value.unsqueeze(-1))
        # The means of this channel, shifted by each earlier channel (eq. 3).
        means, log_scales, coefficients = state.parameters
        this_channel = slice(channel * m, (channel + 1) * m)
        mean = means[..., this_channel]
        first_pair = channel * (channel - 1) // 2
        shifts = self._correct(channel, state) if self.predicted else state.values
        for pair, shift in enumerate(shifts, start=first_pair):
            mean = mean + coefficients[..., pair * m : (pair + 1) * m] * shift
        if self.predicted:
            # The network's means count from the prediction, in units of the typical error.
            unit = state.prediction[2][..., channel : channel + 1]
            mean = state.expected[-1] + unit * mean
        state.current = torch.cat([state.log_weights, mean, log_scales[..., this_channel]], dim=-1)
        return state.current, state

    def _correct(self, channel: int, state: PixelPosterior) -> list[torch.Tensor]:
        """Complete the prediction of a channel.

        Returns:
            How far each earlier channel was from its prediction, in units of its typical error,
            ``[..., 1]`` each.
        """
        means, couplings, units = state.prediction
        expected = means[..., channel : channel + 1]
        first_pair = channel * (channel - 1) // 2
        for pair, value in enumerate(state.values, start=first_pair):
            expected = expected + couplings[..., pair : pair + 1] * value
        misses = []
        for earlier, value in enumerate(state.values):
            unit = units[..., earlier : earlier + 1]
            misses.append((value - state.expected[earlier]) / unit)
        state.expected.append(expected)
        return misses

    def bias(self) -> torch.Tensor:
        """Initial bias with means spread over [-1, 1], and scales equal to half their spacing.

        With a predictor it is zero: the network begins with no correction.
        """
        if self.predicted:
            return torch.zeros(self.size)
        m = self.components
        c = self.grid.channels
        weights = torch.zeros(m)
        means = torch.linspace(-1 + 1 / m, 1 - 1 / m, m).repeat(c)
        log_scales = torch.full((c * m,), -math.log(m))
        coefficients = torch.zeros(self.pairs * m)
        return torch.cat([weights, means, log_scales, coefficients])

    def part_of_average(self, parts: int) -> LogisticMixtureHead:
        if self.predicted:
            raise ConfigError(
                "networks that are averaged have no common prediction to correct: "
                "take masks=1, or predictor=False"
            )
        if self.components % parts:
            raise ConfigError(
                f"each of the averaged networks gets a share of the mixture's components: "
                f"{self.components} components do not divide by masks={parts}; "
                f"take for example components={10 * parts}"
            )
        return LogisticMixtureHead(self.grid, self.components // parts)

    def average(self, parameters: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
        # A mixture of mixtures has the components of all parts, with the product of the weights.
        parts = log_weights.shape[-1]
        # [..., parts, vectors, components of a part]; the first vector is the mixture weights.
        vectors = parameters.unflatten(-1, (-1, self.components // parts)).to(log_weights.dtype)
        weights = F.log_softmax(vectors[..., :1, :], dim=-1) + log_weights[..., None, None]
        weighted = torch.cat([weights, vectors[..., 1:, :]], dim=-2)
        # Concatenate the components of all parts within each vector.
        return weighted.transpose(-3, -2).flatten(-3)

    def log_weights_after(self, previous: torch.Tensor, state: State, parts: int) -> torch.Tensor:
        assert isinstance(state, PixelPosterior)
        assert state.current is not None
        mixture = self.symbol(state.current)
        # The components of a part are contiguous.
        joint = mixture.log_weights + mixture.components(previous)
        return joint.unflatten(-1, (parts, -1)).logsumexp(dim=-1)

    def pixel_log_prob(self, parameters: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        steps = self.unroll(parameters, x, self.grid.channels)
        # The weight logits of the last channel already contain the log-probabilities of all earlier
        # channels. What is missing is the last channel, and the normalization of the first logits.
        last = self.symbol(steps[-1])
        joint = steps[-1].chunk(3, dim=-1)[0] + last.components(x[..., -1])
        constant = steps[0].chunk(3, dim=-1)[0].logsumexp(dim=-1)
        return joint.logsumexp(dim=-1) - constant

    def config(self) -> dict[str, object]:
        config: dict[str, object] = {"name": self.name, "components": self.components}
        # Without a predictor the key is omitted, as in models saved before there was one.
        if self.predicted:
            config["predictor"] = True
            config["predictor_hidden"] = self.predictor_hidden
        return config


class PixelMixture(Distribution):
    """The joint distribution over pixels of a head whose channels are mixtures.

    Args:
        head: the head; it takes parameters of any leading shape.
        parameters: ``[..., size]``.
    """

    def __init__(self, head: JointHead, parameters: torch.Tensor) -> None:
        self.head = head
        self.parameters = parameters

    def conditionals(self, x: torch.Tensor) -> Distribution:
        """The univariate mixture of each symbol, given the earlier channels of its pixel.

        Args:
            x: ``int64 [..., channels]``.
        """
        steps = self.head.unroll(self.parameters, x, self.head.grid.channels)
        return self.head.symbol(torch.stack(steps, dim=-2))

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return self.conditionals(x).log_prob(x)

    def table(self, x: torch.Tensor | None = None) -> torch.Tensor:
        if x is None:
            raise InputError(
                "the table of a joint distribution needs x: "
                "the channels of a pixel depend on each other"
            )
        return self.conditionals(x).table()

    def mode(self) -> torch.Tensor:
        state = self.head.start(self.parameters)
        # This is greedy, channel by channel. The most likely pixel would take a search.
        modes: list[torch.Tensor] = []
        for channel in range(self.head.grid.channels):
            previous = modes[-1] if modes else None
            step, state = self.head.next(previous, channel, state)
            modes.append(self.head.symbol(step).mode())
        return torch.stack(modes, dim=-1)

"""``logistic-mixture``: a discretized mixture of logistics over the channels of a pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tessella.errors import ConfigError, InputError
from tessella.grid import Grid
from tessella.heads.head import AveragingJointHead, Distribution, at_least_float32
from tessella.nn.stepping.state import State

LOG_SCALES = (-7.0, 15.0)
"""Least and largest log-scale of a logistic, on the axis where the levels span [-1, 1] (the least
is PixelCNN++'s)."""


class LogisticMixture(Distribution):
    """A mixture of logistics, each integrated over the bin of a level (Salimans et al. 2017, eq.
    2).

    The levels lie evenly on [-1, 1]; the bins of the first and the last level reach to minus and
    plus infinity, so that the probabilities sum to one exactly. With ``a`` and ``b`` the
    standardized edges of a bin,
    ``log(sigmoid(b) - sigmoid(a)) = log sigmoid(b) + log sigmoid(-a) + log(1 - exp(a - b))``, which
    is stable in both tails.

    Args:
        parameters: ``[..., 3 * components]``: logits of the weights, means, log-scales.
        levels: number of levels.
    """

    def __init__(self, parameters: torch.Tensor, levels: int) -> None:
        self.parameters = at_least_float32(parameters)
        self.levels = levels
        weights, self.means, log_scales = self.parameters.chunk(3, dim=-1)
        self.log_weights = F.log_softmax(weights, dim=-1)
        self.log_scales = log_scales.clamp(*LOG_SCALES)

    def components(self, x: torch.Tensor) -> torch.Tensor:
        """Log-probability of ``x [...]`` under each component: ``[..., components]``."""
        x = x.unsqueeze(-1)
        half_bin = 1.0 / (self.levels - 1)
        inverse_scale = torch.exp(-self.log_scales)
        centred = 2.0 * half_bin * x.to(self.means.dtype) - 1.0 - self.means
        # log sigmoid(b), log sigmoid(-a) and, since b - a is two half bins, log(1 - exp(a - b)).
        below_upper_edge = F.logsigmoid((centred + half_bin) * inverse_scale)
        above_lower_edge = F.logsigmoid((half_bin - centred) * inverse_scale)
        gap = torch.log(-torch.expm1(-2.0 * half_bin * inverse_scale))
        inside = below_upper_edge + above_lower_edge + gap
        # The outermost bins have one edge only.
        not_first = torch.where(x == self.levels - 1, above_lower_edge, inside)
        return torch.where(x == 0, below_upper_edge, not_first)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(self.log_weights + self.components(x), dim=-1)

    def table(self, x: torch.Tensor | None = None) -> torch.Tensor:
        levels = torch.arange(self.levels, device=self.means.device)
        # One more dimension, along which the levels lie.
        each_level = LogisticMixture(self.parameters.unsqueeze(-2), self.levels)
        return each_level.log_prob(levels.expand(*self.means.shape[:-1], self.levels))

    def mode(self) -> torch.Tensor:
        return self.table().argmax(dim=-1)


@dataclass
class PixelPosterior(State):
    """How far a joint head has walked through the channels of its pixels."""

    parameters: list[torch.Tensor]
    """Means, log-scales and coefficients of the pixel as the network gave them."""
    log_weights: torch.Tensor
    """Posterior of the mixture component given the channels known so far, ``[..., components]``,
    nats up to a constant."""
    values: list[torch.Tensor]
    """Known channels on [-1, 1], each ``[..., 1]``."""
    current: torch.Tensor | None = None
    """Parameters of the channel that was given last, ``[..., 3 * components]``."""


class LogisticMixtureHead(AveragingJointHead):
    """``logistic-mixture``: a discretized mixture of logistics over the channels of a pixel
    (Salimans et al. 2017, eq. 3).

    One set of mixture weights serves a pixel; the mean of channel ``c`` is shifted by
    ``tanh(coefficient) * value`` for every channel before it, with one coefficient for each pair of
    channels and component. One symbol at a time this is a *univariate* mixture whose weights are
    the posterior of the component given the channels already known.

    The ``size`` parameters of a pixel with ``M`` components and ``C`` channels, in this order:
    weights ``[M]``, means ``[C, M]``, log-scales ``[C, M]``, coefficients ``[C (C - 1) / 2, M]``
    for the pairs (1, 0), (2, 0), (2, 1), ...

    Args:
        grid: the grid whose symbols are modelled, of at least 3 levels.
        components: logistics of the mixture.

    Raises:
        ConfigError: for 2 levels, or a number of components that is not positive.
    """

    name = "logistic-mixture"
    ordered = True

    def __init__(self, grid: Grid, components: int = 10) -> None:
        super().__init__(grid)
        # Two bins that both reach to infinity are a Bernoulli, in a roundabout way.
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

    @property
    def pairs(self) -> int:
        """Pairs of channels of a pixel."""
        return self.grid.channels * (self.grid.channels - 1) // 2

    @property
    def size(self) -> int:
        return self.components * (1 + 2 * self.grid.channels + self.pairs)

    def __call__(self, parameters: torch.Tensor) -> Distribution:
        return PixelMixture(self, at_least_float32(parameters))

    def symbol(self, parameters: torch.Tensor) -> LogisticMixture:
        return LogisticMixture(parameters, self.grid.levels)

    def start(self, parameters: torch.Tensor) -> PixelPosterior:
        m = self.components
        c = self.grid.channels
        parts = at_least_float32(parameters).split([m, c * m, c * m, self.pairs * m], dim=-1)
        weights, means, log_scales, coefficients = parts
        return PixelPosterior([means, log_scales, torch.tanh(coefficients)], weights, [])

    def next(
        self, previous: torch.Tensor | None, channel: int, state: State
    ) -> tuple[torch.Tensor, PixelPosterior]:
        assert isinstance(state, PixelPosterior)
        m = self.components
        if channel:
            assert previous is not None
            assert state.current is not None
            # Bayes' rule. The logits that `current` holds and the posterior differ by a constant,
            # which the softmax drops.
            state.log_weights = state.log_weights + self.symbol(state.current).components(previous)
            value = previous.to(state.log_weights) * (2.0 / (self.grid.levels - 1)) - 1.0
            state.values.append(value.unsqueeze(-1))
        # The means of this channel, shifted by each channel before it (eq. 3).
        means, log_scales, coefficients = state.parameters
        this_channel = slice(channel * m, (channel + 1) * m)
        mean = means[..., this_channel]
        first_pair = channel * (channel - 1) // 2
        for pair, value in enumerate(state.values, start=first_pair):
            mean = mean + coefficients[..., pair * m : (pair + 1) * m] * value
        state.current = torch.cat([state.log_weights, mean, log_scales[..., this_channel]], dim=-1)
        return state.current, state

    def bias(self) -> torch.Tensor:
        """Means spread over [-1, 1], scales as wide as their distance."""
        m = self.components
        c = self.grid.channels
        weights = torch.zeros(m)
        means = torch.linspace(-1 + 1 / m, 1 - 1 / m, m).repeat(c)
        log_scales = torch.full((c * m,), -math.log(m))
        coefficients = torch.zeros(self.pairs * m)
        return torch.cat([weights, means, log_scales, coefficients])

    def part_of_average(self, parts: int) -> LogisticMixtureHead:
        if self.components % parts:
            raise ConfigError(
                f"each of the averaged networks gets a share of the mixture's components: "
                f"{self.components} components do not divide by masks={parts}; "
                f"take for example components={10 * parts}"
            )
        return LogisticMixtureHead(self.grid, self.components // parts)

    def average(self, parameters: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
        # A mixture of mixtures: all components of all parts, their weights multiplied.
        parts = log_weights.shape[-1]
        # [..., parts, vectors, components of a part]
        each = parameters.unflatten(-1, (-1, self.components // parts)).to(log_weights.dtype)
        weights = F.log_softmax(each[..., :1, :], dim=-1) + log_weights[..., None, None]
        together = torch.cat([weights, each[..., 1:, :]], dim=-2)
        # Components of all parts side by side within each vector.
        return together.transpose(-3, -2).flatten(-3)

    def log_weights_after(self, previous: torch.Tensor, state: State, parts: int) -> torch.Tensor:
        assert isinstance(state, PixelPosterior)
        assert state.current is not None
        mixture = self.symbol(state.current)
        # The components of each part lie side by side.
        joint = mixture.log_weights + mixture.components(previous)
        return joint.unflatten(-1, (parts, -1)).logsumexp(dim=-1)

    def pixel_log_prob(self, parameters: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        steps = self.unroll(parameters, x, self.grid.channels)
        # Weight logits of the last channel are those of the first plus the log-probabilities of
        # the channels between, so the last channel's term and a constant complete the sum.
        last = self.symbol(steps[-1])
        joint = steps[-1].chunk(3, dim=-1)[0] + last.components(x[..., -1])
        constant = steps[0].chunk(3, dim=-1)[0].logsumexp(dim=-1)
        return joint.logsumexp(dim=-1) - constant

    def config(self) -> dict[str, object]:
        return {"name": self.name, "components": self.components}


class PixelMixture(Distribution):
    """The joint distribution of a :class:`LogisticMixtureHead` over ``[..., channels]``."""

    def __init__(self, head: LogisticMixtureHead, parameters: torch.Tensor) -> None:
        self.head = head
        self.parameters = parameters

    def conditionals(self, x: torch.Tensor) -> LogisticMixture:
        """The univariate mixture of each symbol of ``x [..., channels]`` given the channels before
        it."""
        steps = self.head.unroll(self.parameters, x, self.head.grid.channels)
        return LogisticMixture(torch.stack(steps, dim=-2), self.head.grid.levels)

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
        # Greedy, channel by channel: not the likeliest pixel, which would take a search.
        modes: list[torch.Tensor] = []
        for channel in range(self.head.grid.channels):
            previous = modes[-1] if modes else None
            step, state = self.head.next(previous, channel, state)
            modes.append(self.head.symbol(step).mode())
        return torch.stack(modes, dim=-1)

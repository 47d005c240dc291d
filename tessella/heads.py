"""Heads: a network's parameters to distributions over symbols.

A head returns a distribution; the loss, ``log_prob``, sampling and coding use the same object.
There are two views of it:

* over a whole grid, ``head(parameters)``: what :meth:`DensityModel.forward` returned, to a
  distribution with ``log_prob(x)``, ``table(x)`` and ``mode()`` over
  ``x [batch, height, width, channels]``;
* over one symbol a row, ``head.symbol(parameters)``: what :meth:`DensityModel.step` returned, to a
  distribution over ``[batch]``.

A *factored* head takes parameters for each symbol; the network that makes them has ordered the
channels of a pixel. A *joint* head takes one vector for a pixel and orders the channels itself:
:meth:`Head.start` and :meth:`Head.next` walk through them, over a whole grid at once or for one
pixel, with the same code. All arithmetic is float32 or wider.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from tessella.errors import ConfigError, InputError
from tessella.grid import Grid
from tessella.nn.stepping.state import State
from tessella.registry import Registry


class Distribution(ABC):
    """A distribution over symbols of ``[...]``, each given the symbols that come before it."""

    @abstractmethod
    def table(self, x: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probabilities (nats) of all levels of every symbol: ``[..., levels]``.

        A joint distribution needs ``x [..., channels]``, of which it uses the channels that come
        before.
        """

    @abstractmethod
    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """Log-probability (nats) of each symbol of ``x [...]`` given the ones before it:
        ``[...]``."""

    @abstractmethod
    def mode(self) -> torch.Tensor:
        """The likeliest level of each symbol, channel after channel given the modes before:
        ``int64 [...]``."""


class Categorical(Distribution):
    """Any probability for any level: the softmax of logits ``[..., levels]``. With two levels, a
    Bernoulli."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = _wide(logits)

    def table(self, x: torch.Tensor | None = None) -> torch.Tensor:
        return F.log_softmax(self.logits, dim=-1)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        flat = F.cross_entropy(self.logits.flatten(0, -2), x.flatten(), reduction="none")
        return -flat.view(x.shape)

    def mode(self) -> torch.Tensor:
        return self.logits.argmax(dim=-1)


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
        self.parameters, self.levels = _wide(parameters), levels
        weights, self.means, log_scales = self.parameters.chunk(3, dim=-1)
        self.log_weights = F.log_softmax(weights, dim=-1)
        self.log_scales = log_scales.clamp(*LOG_SCALES)

    def components(self, x: torch.Tensor) -> torch.Tensor:
        """Log-probability of ``x [...]`` under each component: ``[..., components]``."""
        x = x.unsqueeze(-1)
        half = 1.0 / (self.levels - 1)
        inverse = torch.exp(-self.log_scales)
        centred = 2.0 * half * x.to(self.means.dtype) - 1.0 - self.means
        below = F.logsigmoid((centred + half) * inverse)
        above = F.logsigmoid((half - centred) * inverse)
        inside = below + above + torch.log(-torch.expm1(-2.0 * half * inverse))
        return torch.where(x == 0, below, torch.where(x == self.levels - 1, above, inside))

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(self.log_weights + self.components(x), dim=-1)

    def table(self, x: torch.Tensor | None = None) -> torch.Tensor:
        levels = torch.arange(self.levels, device=self.means.device)
        every = LogisticMixture(self.parameters.unsqueeze(-2), self.levels)
        return every.log_prob(levels.expand(*self.means.shape[:-1], self.levels))

    def mode(self) -> torch.Tensor:
        return self.table().argmax(dim=-1)


class Head(ABC):
    """Turns parameters into distributions over the symbols of one grid.

    Args:
        grid: the grid whose symbols are told.

    Raises:
        ConfigError: when the head cannot model such a grid.
    """

    name: ClassVar[str]
    joint: ClassVar[bool] = False
    ordered: ClassVar[bool] = False
    """Whether it takes level 99 to be next to level 100, which codes are not."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    @property
    @abstractmethod
    def size(self) -> int:
        """Parameters that a network gives: for each symbol, or for each pixel if the head is
        joint."""

    @abstractmethod
    def __call__(self, parameters: torch.Tensor) -> Distribution:
        """Distribution over grids, of ``[batch, height, width, channels, size]``
        (``[..., width, size]`` if joint)."""

    @abstractmethod
    def symbol(self, parameters: torch.Tensor) -> Distribution:
        """Distribution over one symbol of each of ``[batch]`` images, of the parameters that
        ``step`` returned."""

    def bias(self) -> torch.Tensor:
        """A good start for the bias of the layer that makes the parameters: ``[size]``."""
        return torch.zeros(self.size)

    def config(self) -> dict[str, object]:
        """Plain values that rebuild the head by :func:`create_head`."""
        return {"name": self.name}


class JointHead(Head):
    """A head that takes one parameter vector for a pixel and orders the channels itself."""

    joint = True

    @abstractmethod
    def start(self, parameters: torch.Tensor) -> Any:
        """The state before the first channel of pixels, of their ``parameters [..., size]``."""

    @abstractmethod
    def next(
        self, previous: torch.Tensor | None, channel: int, state: Any
    ) -> tuple[torch.Tensor, Any]:
        """Parameters of ``channel`` as :meth:`symbol` takes them, given symbol ``previous [...]``
        of the channel before."""

    def unroll(
        self, parameters: torch.Tensor, x: torch.Tensor, channels: int
    ) -> list[torch.Tensor]:
        """Parameters of the first ``channels`` channels of pixels ``[..., size]``, each given the
        symbols before it.

        Args:
            parameters: of the pixels, ``[..., size]``.
            x: their symbols ``[..., channels]``.
        """
        state, steps = self.start(parameters), []
        for channel in range(channels):
            step, state = self.next(x[..., channel - 1] if channel else None, channel, state)
            steps.append(step)
        return steps


class CategoricalHead(Head):
    """``categorical``: a softmax over the levels; a Bernoulli at two levels."""

    name = "categorical"

    @property
    def size(self) -> int:
        return self.grid.levels

    def __call__(self, parameters: torch.Tensor) -> Distribution:
        return Categorical(parameters)

    symbol = __call__

    def parameters_of(self, table: torch.Tensor) -> torch.Tensor:
        """Parameters whose distribution has the log-probabilities ``table [..., levels]``."""
        return table


MOST_ORDINAL = 4096
"""Levels of an ordinal head: the square root of its covariance takes their cube in time, their
square in memory."""


class OrdinalHead(CategoricalHead):
    """``ordinal``: a categorical whose logits share strength between neighbouring levels.

    With parameters ``u`` the logits are ``L u``, where ``L`` is the symmetric square root of a
    covariance ``C`` between
    levels: ``C[i, j]`` is the sum of ``0.1 [i = j]`` and of squared exponentials
    ``exp(-(i - j)^2 / (2 l^2))`` of lengths ``l`` = 1, 4, 16, ... below a quarter of the levels,
    each length with the same share of 0.9. What a gradient step tells one level it tells its
    neighbours too, near ones most (it is a step on the logits preconditioned by ``C``), and
    independent parameters make smooth logits, drawn from a Gaussian process over the levels. ``L``
    is invertible, so every distribution over the levels is still expressible, as by the softmax.

    Raises:
        ConfigError: above ``MOST_ORDINAL`` levels.
    """

    name = "ordinal"
    ordered = True

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        if grid.levels > MOST_ORDINAL:
            raise ConfigError(
                f"the ordinal head takes at most {MOST_ORDINAL:,} levels, got {grid.levels:,}: take head='categorical'"
            )
        self._roots: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, parameters: torch.Tensor) -> Distribution:
        return Categorical(self._product(_wide(parameters), 0))

    symbol = __call__

    def parameters_of(self, table: torch.Tensor) -> torch.Tensor:
        return self._product(table, 1)

    def _product(self, x: torch.Tensor, which: int) -> torch.Tensor:
        """``x [..., levels]`` times ``L`` (0) or its inverse (1), in the type of ``x`` whatever
        autocast says."""
        with torch.autocast(x.device.type, enabled=False):
            return x @ self._root(x)[which]

    def _root(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``L`` and its inverse ``[levels, levels]``, on the device and of the type of a tensor."""
        key = (like.device, like.dtype)
        if key not in self._roots:
            with (
                torch.inference_mode(False),
                torch.no_grad(),
            ):  # whoever asks first, training may use it later
                values, vectors = torch.linalg.eigh(level_covariance(self.grid.levels))
                root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
                self._roots[key] = root.to(*key), inverse.to(*key)
        return self._roots[key]


def level_covariance(levels: int) -> torch.Tensor:
    """How much levels have in common, see :class:`OrdinalHead`: float64 ``[levels, levels]``, 1 on
    the diagonal."""
    lengths = [1] + [4**i for i in range(1, 16) if 4 * 4**i < levels]
    level = torch.arange(levels, dtype=torch.float64)
    distance = (level[:, None] - level) ** 2
    smooth = sum(torch.exp(-distance / (2 * length**2)) for length in lengths)
    return 0.1 * torch.eye(levels, dtype=torch.float64) + 0.9 / len(lengths) * smooth


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


class LogisticMixtureHead(JointHead):
    """``logistic-mixture``: a discretized mixture of logistics over the channels of a pixel
    (Salimans et al. 2017, eq. 3).

    One set of mixture weights serves a pixel; the mean of channel ``c`` is shifted by
    ``tanh(coefficient) * value`` for every channel before it, with one coefficient for each pair of
    channels and component. Told one symbol at a time this is a *univariate* mixture whose weights
    are the posterior of the component given the channels already known.

    The ``size`` parameters of a pixel with ``M`` components and ``C`` channels, in this order:
    weights ``[M]``, means ``[C, M]``, log-scales ``[C, M]``, coefficients ``[C (C - 1) / 2, M]``
    for the pairs (1, 0), (2, 0), (2, 1), ...
    """

    name = "logistic-mixture"
    ordered = True

    def __init__(self, grid: Grid, components: int = 10) -> None:
        super().__init__(grid)
        if grid.levels < 3:
            raise ConfigError(
                "the logistic-mixture head needs at least 3 levels; for 2 levels take head='categorical'"
            )
        if not isinstance(components, int) or components < 1:
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
        return PixelMixture(self, _wide(parameters))

    def symbol(self, parameters: torch.Tensor) -> Distribution:
        return LogisticMixture(parameters, self.grid.levels)

    def start(self, parameters: torch.Tensor) -> PixelPosterior:
        m, c = self.components, self.grid.channels
        parts = _wide(parameters).split([m, c * m, c * m, self.pairs * m], dim=-1)
        weights, means, log_scales, coefficients = parts
        return PixelPosterior([means, log_scales, torch.tanh(coefficients)], weights, [])

    def next(
        self, previous: torch.Tensor | None, channel: int, state: PixelPosterior
    ) -> tuple[torch.Tensor, PixelPosterior]:
        m = self.components
        if channel:
            assert previous is not None
            assert state.current is not None
            # The logits that `current` holds and the posterior differ by a constant, which the
            # softmax drops.
            state.log_weights = state.log_weights + LogisticMixture(
                state.current, self.grid.levels
            ).components(previous)
            state.values.append(
                (previous.to(state.log_weights) * (2.0 / (self.grid.levels - 1)) - 1.0).unsqueeze(
                    -1
                )
            )
        means, log_scales, coefficients = state.parameters
        mean = means[..., channel * m : (channel + 1) * m]
        first = channel * (channel - 1) // 2
        for pair, value in enumerate(state.values, start=first):
            mean = mean + coefficients[..., pair * m : (pair + 1) * m] * value
        state.current = torch.cat(
            [state.log_weights, mean, log_scales[..., channel * m : (channel + 1) * m]], dim=-1
        )
        return state.current, state

    def bias(self) -> torch.Tensor:
        """Means spread over [-1, 1], scales as wide as their distance."""
        m, c = self.components, self.grid.channels
        means = torch.linspace(-1 + 1 / m, 1 - 1 / m, m).repeat(c)
        return torch.cat(
            [torch.zeros(m), means, torch.full((c * m,), -math.log(m)), torch.zeros(self.pairs * m)]
        )

    def config(self) -> dict[str, object]:
        return {"name": self.name, "components": self.components}


class PixelMixture(Distribution):
    """The joint distribution of a :class:`LogisticMixtureHead` over ``[..., channels]``."""

    def __init__(self, head: LogisticMixtureHead, parameters: torch.Tensor) -> None:
        self.head, self.parameters = head, parameters

    def given(self, x: torch.Tensor) -> LogisticMixture:
        """The univariate mixture of each symbol of ``x [..., channels]`` given the channels before
        it."""
        steps = self.head.unroll(self.parameters, x, self.head.grid.channels)
        return LogisticMixture(torch.stack(steps, dim=-2), self.head.grid.levels)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return self.given(x).log_prob(x)

    def table(self, x: torch.Tensor | None = None) -> torch.Tensor:
        if x is None:
            raise InputError(
                "the table of a joint distribution needs x: the channels of a pixel depend on each other"
            )
        return self.given(x).table()

    def mode(self) -> torch.Tensor:
        state = self.head.start(self.parameters)
        modes: list[torch.Tensor] = []
        for channel in range(self.head.grid.channels):
            step, state = self.head.next(modes[-1] if modes else None, channel, state)
            modes.append(self.head.symbol(step).mode())
        return torch.stack(modes, dim=-1)


HEADS: Registry[type[Head]] = Registry("head", base=Head)
"""Every head that :func:`create_head` can build."""

for _head in (CategoricalHead, OrdinalHead, LogisticMixtureHead):
    HEADS.register(_head.name)(_head)

register_head = HEADS.register
"""Decorator that adds a head from outside: ``@ts.register_head("mine")``."""


def create_head(name: str, grid: Grid, **sizes: object) -> Head:
    """Build a registered head.

    Raises:
        ConfigError: for an unknown name (the known ones are listed) or a size the head does not
            take.
    """
    head = HEADS.get_or_explain(name)
    try:
        return head(grid, **sizes)
    except TypeError as error:
        raise ConfigError(f"head {name!r} does not take these sizes: {sizes} ({error})") from error


def _wide(parameters: torch.Tensor) -> torch.Tensor:
    """Parameters in float32 or wider."""
    return parameters if parameters.dtype in (torch.float32, torch.float64) else parameters.float()

"""Base classes of heads, and of the distributions that they return.

With a *factored* head, the network makes parameters for each symbol, and is itself responsible for
conditioning each channel on the earlier channels of its pixel. A *joint* head takes a single vector
for each pixel and does that conditioning itself: :meth:`JointHead.start` and :meth:`JointHead.next`
walk through the channels, with the same code for a whole grid and for a single pixel. All
arithmetic is in float32 or wider.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from tessella.grid import Grid
from tessella.nn.linear_predictor import LinearPredictor
from tessella.nn.stepping.state import State


class Distribution(ABC):
    """Base of the distributions over symbols, each conditioned on the symbols before it."""

    @abstractmethod
    def table(self, x: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probabilities of all levels of every symbol, in nats.

        Args:
            x: the symbols, ``int64 [..., channels]``. Only joint distributions need them, because
                they condition each channel on the channels before it.

        Returns:
            ``[..., levels]``.

        Raises:
            InputError: when a joint distribution gets no ``x``.
        """

    @abstractmethod
    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """Log-probability of each symbol of ``x int64 [...]``, in nats: ``[...]``."""

    @abstractmethod
    def mode(self) -> torch.Tensor:
        """The most likely level of each symbol, ``int64 [...]``.

        A joint distribution goes channel by channel, given the modes of earlier channels.
        """


class Head(ABC):
    """Base of the heads, which turn parameters into distributions over the symbols of a grid.

    A subclass defines :attr:`size`, :meth:`__call__` and :meth:`symbol`. It overrides :meth:`bias`
    if zeros are a poor initial bias, and :meth:`config` if its constructor takes more than the
    grid. Register it with ``@ts.register_head("name")``.

    Args:
        grid: the grid whose symbols are modelled.

    Raises:
        ConfigError: when the head cannot model such a grid.
    """

    name: ClassVar[str]
    joint: ClassVar[bool] = False
    """Whether there is a single vector of parameters for all channels of a pixel."""
    ordered: ClassVar[bool] = False
    """Whether the head assumes that level 99 is close to level 100, as for intensities but not for
    codes."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of parameters for each symbol, or for each pixel if the head is joint."""

    @abstractmethod
    def __call__(self, parameters: torch.Tensor) -> Distribution:
        """Distribution over whole grids.

        Args:
            parameters: ``[batch, height, width, channels, size]``, or
                ``[batch, height, width, size]`` if the head is joint; behind them, if the head has
                a predictor, its predictions.
        """

    @abstractmethod
    def symbol(self, parameters: torch.Tensor) -> Distribution:
        """Distribution over one symbol of each image, ``[batch]``.

        Args:
            parameters: as :meth:`DensityModel.step` returns them, ``[batch, ...]``.
        """

    def create_predictor(self) -> LinearPredictor | None:
        """The predictor whose predictions follow the network's parameters; None for most heads."""
        return None

    def bias(self) -> torch.Tensor:
        """Good initial bias for the layer that makes the parameters: ``[size]``."""
        # Zeros suit heads whose parameters are logits: all levels are equally likely.
        return torch.zeros(self.size)

    def mix(self, rows: torch.Tensor) -> torch.Tensor:
        """The product with the matrix that this head multiplies parameters by before all else.

        A network applies it to the weights and the bias of its last layer, and then takes the head
        :meth:`of_mixed`, see :class:`tessella.nn.last_layer.LastLayer`. Most heads have no matrix.

        Args:
            rows: ``[size]`` or ``[size, n]``; or only the last ones of them, where a network fixes
                the others at zero.

        Returns:
            Of the shape of ``rows``.
        """
        return rows

    def of_mixed(self) -> Head:
        """This head, for parameters that went through :meth:`mix` already."""
        return self

    def config(self) -> dict[str, object]:
        """Plain values from which :func:`create_head` rebuilds the head."""
        return {"name": self.name}

    def __repr__(self) -> str:
        sizes = ""
        # Besides the name, a configuration holds the arguments of the constructor.
        for name, value in self.config().items():
            if name != "name":
                sizes += f", {name}={value}"
        return f"{type(self).__name__}({self.grid}{sizes})"


class FactoredHead(Head):
    """Base of the heads with parameters for each symbol; they can express any distribution."""

    @abstractmethod
    def parameters_from_table(self, table: torch.Tensor) -> torch.Tensor:
        """Parameters ``[..., size]`` of the distribution with these log-probabilities.

        Args:
            table: log-probabilities in nats, ``[..., levels]``.
        """


class JointHead(Head):
    """Base of the heads with one parameter vector for each pixel, whose channels they order."""

    # Tells networks to make one vector of parameters for each pixel, without a channel dimension.
    joint = True

    @abstractmethod
    def start(self, parameters: torch.Tensor) -> State:
        """The state before the first channel.

        Args:
            parameters: parameters of the pixels, ``[..., size]``.
        """

    @abstractmethod
    def next(
        self, previous: torch.Tensor | None, channel: int, state: State
    ) -> tuple[torch.Tensor, State]:
        """Advance by one channel.

        Args:
            previous: symbols of the previous channel, ``int64 [...]``; None at the first channel.
            channel: index of the channel to predict.
            state: returned by :meth:`start` or the previous call; it must not be used again.

        Returns:
            The parameters of the channel as :meth:`symbol` takes them, and the next state.
        """

    def unroll(
        self, parameters: torch.Tensor, x: torch.Tensor, channels: int
    ) -> list[torch.Tensor]:
        """Parameters of the first channels of pixels whose symbols are known.

        Args:
            parameters: parameters of the pixels, ``[..., size]``.
            x: their symbols, ``int64 [..., channels of the grid]``.
            channels: how many channels to visit.

        Returns:
            For each channel, what :meth:`next` returns.
        """
        # This is the walk of a step, but over all pixels at once.
        state = self.start(parameters)
        steps = []
        for channel in range(channels):
            previous = x[..., channel - 1] if channel else None
            step, state = self.next(previous, channel, state)
            steps.append(step)
        return steps


class AveragingJointHead(JointHead):
    """Base of the joint heads that can express an average of several of their own distributions.

    A model that averages several networks, as MADE does, gives each network the head of
    :meth:`part_of_average`, and combines their parameters by :meth:`average`.
    """

    @abstractmethod
    def part_of_average(self, parts: int) -> AveragingJointHead:
        """The head of each network, when the average has this number of parts.

        Raises:
            ConfigError: when this head cannot be divided into that many parts.
        """

    @abstractmethod
    def average(self, parameters: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
        """Parameters of a weighted average of distributions.

        Args:
            parameters: parameters of each part, ``[..., parts, size of a part]``.
            log_weights: normalized log-weight of each part, in nats, ``[..., parts]``.

        Returns:
            ``[..., size]``.
        """

    @abstractmethod
    def log_weights_after(self, previous: torch.Tensor, state: State, parts: int) -> torch.Tensor:
        """Posterior log-weight of each part of an average, given all channels of a pixel.

        Args:
            previous: symbols of the last channel, ``int64 [...]``.
            state: returned by :meth:`next` for that channel.
            parts: number of parts.

        Returns:
            Log-weights in nats, up to a constant, ``[..., parts]``.
        """

    @abstractmethod
    def pixel_log_prob(self, parameters: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Log-probability of whole pixels, in nats: ``[...]``.

        Args:
            parameters: ``[..., size]``.
            x: ``int64 [..., channels]``.
        """


def at_least_float32(parameters: torch.Tensor) -> torch.Tensor:
    """Convert parameters to float32 or wider.

    Half precision has too few digits for probabilities.
    """
    # The conversion is differentiable: gradients return in the original type.
    if parameters.dtype in (torch.float32, torch.float64):
        return parameters
    return parameters.float()

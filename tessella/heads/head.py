"""The bases of heads and of the distributions that they return.

A *factored* head takes parameters for each symbol; the network that makes them has ordered the
channels of a pixel. A *joint* head takes one vector for a pixel and orders the channels itself:
:meth:`JointHead.start` and :meth:`JointHead.next` walk through them, over a whole grid at once or
for one pixel, with the same code. All arithmetic is float32 or wider.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from tessella.grid import Grid
from tessella.nn.stepping.state import State


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


class Head(ABC):
    """Turns parameters into distributions over the symbols of one grid.

    A subclass gives :attr:`size`, :meth:`__call__` and :meth:`symbol`; :meth:`bias` where zeros are
    a poor start; :meth:`config` where its constructor takes more than the grid. Register it with
    ``@ts.register_head("name")``.

    Args:
        grid: the grid whose symbols are modelled.

    Raises:
        ConfigError: when the head cannot model such a grid.
    """

    name: ClassVar[str]
    joint: ClassVar[bool] = False
    """Whether one vector of parameters serves a pixel, whose channels the head orders itself."""
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
        """Distribution over grids, from ``[batch, height, width, channels, size]``
        (``[batch, height, width, size]`` if joint)."""

    @abstractmethod
    def symbol(self, parameters: torch.Tensor) -> Distribution:
        """Distribution over one symbol of each of ``[batch]`` images, from the parameters that
        ``step`` returned."""

    def bias(self) -> torch.Tensor:
        """A good start for the bias of the layer that makes the parameters: ``[size]``."""
        return torch.zeros(self.size)

    def config(self) -> dict[str, object]:
        """Plain values that rebuild the head by :func:`create_head`."""
        return {"name": self.name}

    def __repr__(self) -> str:
        sizes = ""
        # The configuration holds the sizes, under the names of the constructor.
        for name, value in self.config().items():
            if name != "name":
                sizes += f", {name}={value}"
        return f"{type(self).__name__}({self.grid}{sizes})"


class FactoredHead(Head):
    """A head whose parameters, one vector for each symbol, can express any table."""

    @abstractmethod
    def parameters_from_table(self, table: torch.Tensor) -> torch.Tensor:
        """Parameters ``[..., size]`` whose distribution has the log-probabilities
        ``table [..., levels]``."""


class JointHead(Head):
    """A head that takes one parameter vector for a pixel and orders the channels itself."""

    joint = True

    @abstractmethod
    def start(self, parameters: torch.Tensor) -> State:
        """The state before the first channel of pixels, from their ``parameters [..., size]``."""

    @abstractmethod
    def next(
        self, previous: torch.Tensor | None, channel: int, state: State
    ) -> tuple[torch.Tensor, State]:
        """One channel further.

        Args:
            previous: symbol ``[...]`` of the channel before; None at the first.
            channel: which channel comes next.
            state: what :meth:`start` or the call before returned; it is spent.

        Returns:
            The parameters of the channel as :meth:`symbol` takes them, and the next state.
        """

    def unroll(
        self, parameters: torch.Tensor, x: torch.Tensor, channels: int
    ) -> list[torch.Tensor]:
        """Parameters of the first ``channels`` channels of pixels ``[..., size]``, each given the
        symbols before it.

        Args:
            parameters: of the pixels, ``[..., size]``.
            x: their symbols ``[..., channels]``.
        """
        # The same walk as in a step, over as many pixels at once as there are.
        state = self.start(parameters)
        steps = []
        for channel in range(channels):
            previous = x[..., channel - 1] if channel else None
            step, state = self.next(previous, channel, state)
            steps.append(step)
        return steps


class AveragingJointHead(JointHead):
    """A joint head that can express the average of several of its own distributions.

    A network that averages ``parts`` networks (MADE does) gives each of them the head of
    :meth:`part_of_average`, and puts their parameters together by :meth:`average`.
    """

    @abstractmethod
    def part_of_average(self, parts: int) -> AveragingJointHead:
        """The head of each of so many networks.

        Raises:
            ConfigError: where this head does not divide into so many parts.
        """

    @abstractmethod
    def average(self, parameters: torch.Tensor, log_weights: torch.Tensor) -> torch.Tensor:
        """Parameters of the weighted average of distributions.

        Args:
            parameters: of the parts' heads, ``[..., parts, size of a part]``.
            log_weights: of the parts, normalized, nats: ``[..., parts]``.

        Returns:
            ``[..., size]``.
        """

    @abstractmethod
    def log_weights_after(self, previous: torch.Tensor, state: State, parts: int) -> torch.Tensor:
        """How likely each part of an average is, given all channels of a pixel.

        Args:
            previous: the symbol ``[...]`` of the last channel.
            state: what :meth:`next` returned for that channel.
            parts: how many.

        Returns:
            Log-weights ``[..., parts]``, nats up to a constant.
        """

    @abstractmethod
    def pixel_log_prob(self, parameters: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Log-probability (nats) of whole pixels ``x [..., channels]``: ``[...]``."""


def at_least_float32(parameters: torch.Tensor) -> torch.Tensor:
    """Parameters in float32 or wider: half precision has too few digits for probabilities."""
    # The gradient goes back in the type of the parameters.
    if parameters.dtype in (torch.float32, torch.float64):
        return parameters
    return parameters.float()

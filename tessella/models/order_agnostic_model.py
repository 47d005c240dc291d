"""Density models that predict the symbols of a grid in any order.

Under an order ``s``, a permutation of the places, such a model gives a grid the exact probability
``log p_s(x) = sum over i of log p(x_s(i) | x_s(0) .. x_s(i - 1))`` (Uria, Murray and Larochelle
2014, "A Deep and Tractable Density Estimator"). Every order has a distribution of its own; nothing
makes them equal, but training draws them together. Raster order is the one that scoring, sampling
and coding use unless another is asked for.

The order travels in the condition (:attr:`Condition.order`), so that all that selects the condition
of some images selects their orders too. Parameters and scores stay where they are in the grid; only
a walk (:meth:`DensityModel.step`) counts along the order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from tessella.errors import ConfigError, InputError, check_integer
from tessella.grid import Grid, to_tensor
from tessella.heads import Head, JointHead
from tessella.models.condition import Cond, Condition, Conditioning
from tessella.models.density_model import DensityModel, WholeGridState
from tessella.nn import orders
from tessella.nn.stepping.state import State


class OrderAgnosticModel(DensityModel):
    """Base of the models that predict the symbols of a grid in any order.

    A family's ``forward``, ``init_state`` and ``step`` follow the order of the condition, or raster
    order where it has none. Index ``i`` of a step is then the ``i``-th symbol of the order.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.

    Raises:
        ConfigError: for a head with a predictor, which needs the pixels before each in raster
            order.
    """

    any_order: ClassVar[bool] = True

    def __init__(self, grid: Grid, head: Head, conditioning: Conditioning) -> None:
        super().__init__(grid, head, conditioning)
        if self.predictor is not None:
            raise ConfigError(
                f"{self.name} takes no predictor, which predicts a pixel from those before it in "
                "raster order: take predictor=False"
            )

    def condition(self, cond: Cond, batch: int, order: object = None) -> Condition:
        """Check a caller's condition for ``batch`` images, and the order.

        Args:
            cond, batch: see :meth:`DensityModel.condition`.
            order: a permutation of the symbols, ``[symbols]`` for all images or
                ``[batch, symbols]``; None for that of a condition that was checked before, or
                raster order.

        Raises:
            InputError: for a condition or an order that does not fit.
        """
        condition = super().condition(cond, batch)
        if order is None and isinstance(cond, Condition):
            order = cond.order
        if order is not None:
            checked = orders.check_order(self.grid, order, batch, whole_pixels=self.head.joint)
            condition.order = checked.to(self.device)
        return condition

    def log_prob(
        self, x: object, cond: Cond = None, reduce: bool = True, order: object = None
    ) -> torch.Tensor:
        """Exact log-probability in nats under one order.

        Args:
            x, cond, reduce: see :meth:`DensityModel.log_prob`. Without ``reduce``, a symbol's score
                stands at its place in the grid.
            order: a permutation of the symbols, ``[symbols]`` or ``[batch, symbols]``; None for
                raster order.

        Returns:
            ``[batch]``, or ``[batch, height, width, channels]`` without ``reduce``.

        Raises:
            InputError: for symbols, a condition or an order that do not fit the model.
            NumericalError: see :meth:`DensityModel.log_prob`.
        """
        images = to_tensor("symbols", x)
        # What has no dimensions is refused below.
        if order is None or images.dim() == 0:
            return super().log_prob(images, cond, reduce)
        return super().log_prob(images, self.condition(cond, len(images), order), reduce)

    def log_prob_bound(
        self, x: object, several: Sequence[torch.Tensor] | torch.Tensor, cond: Cond = None
    ) -> torch.Tensor:
        """Mean log-probability over several orders: a lower bound on :meth:`log_prob_mixture`.

        Args:
            x, cond: see :meth:`log_prob`.
            several: the orders, ``[k, symbols]``, such as :meth:`random_orders` draws.

        Returns:
            Nats, ``[batch]``.

        Raises:
            InputError: see :meth:`log_prob`; also for no order.
        """
        return self._under_each(x, several, cond).mean(0)

    def log_prob_mixture(
        self, x: object, several: Sequence[torch.Tensor] | torch.Tensor, cond: Cond = None
    ) -> torch.Tensor:
        """Exact log-probability of the equal mixture of the distributions of several orders.

        ``log (1/k sum over the orders s of p_s(x))``, itself a distribution that sums to one.

        Args:
            x, cond: see :meth:`log_prob`.
            several: the orders, ``[k, symbols]``, such as :meth:`random_orders` draws.

        Returns:
            Nats, ``[batch]``.

        Raises:
            InputError: see :meth:`log_prob`; also for no order.
        """
        nats = self._under_each(x, several, cond)
        return nats.logsumexp(0) - math.log(len(nats))

    def random_orders(self, k: int, seed: int = 0) -> torch.Tensor:
        """Orders drawn from all permutations that the head allows: ``int64 [k, symbols]``.

        Args:
            k: number of orders.
            seed: of the orders; the global generator is left unchanged.

        Raises:
            InputError: when ``k`` is not a positive integer, or ``seed`` not an integer.
        """
        k = check_integer("k", k, least=1)
        generator = torch.Generator().manual_seed(check_integer("seed", seed))
        drawn = orders.random_permutations(k, self._places, generator)
        return orders.of_symbols(drawn, self._symbols_each)

    def _under_each(
        self, x: object, several: Sequence[torch.Tensor] | torch.Tensor, cond: Cond
    ) -> torch.Tensor:
        """Nats under each of several orders: ``[k, batch]``."""
        if not len(several):
            raise InputError("give at least one order, such as model.random_orders(8) draws")
        return torch.stack([self.log_prob(x, cond, order=order) for order in several])

    @property
    def _symbols_each(self) -> int:
        """Symbols of a place: a joint head takes the channels of a pixel together."""
        return self.grid.channels if self.head.joint else 1

    @property
    def _places(self) -> int:
        return self.grid.symbols // self._symbols_each

    def whole_grid_step(
        self, previous: torch.Tensor, index: int, state: State
    ) -> tuple[torch.Tensor, WholeGridState]:
        assert isinstance(state, WholeGridState)
        order = state.condition.order
        if order is None:
            return super().whole_grid_step(previous, index, state)
        flat = state.x.flatten(1)  # a view: [batch, symbols]
        if index:
            flat.scatter_(1, order[:, index - 1, None], previous[:, None])
        with torch.no_grad():
            parameters = self.head_parameters(state.x, state.condition)
        images = torch.arange(len(flat), device=flat.device)
        place = order[:, index]  # [batch]
        if not isinstance(self.head, JointHead):
            # [batch, h, w, c, size] to the symbol of each image, [batch, size].
            return parameters.flatten(1, 3)[images, place], state
        pixel, channel = place // self.grid.channels, index % self.grid.channels
        # The head repeats its walk through the pixel, whose later channels hold random symbols.
        known = state.x.flatten(1, 2)[images, pixel]
        steps = self.head.unroll(parameters.flatten(1, 2)[images, pixel], known, channel + 1)
        return steps[-1], state

"""Models that predict masked symbols from the others, and the bound that they state.

Such a model is given any part of a grid and predicts each of the other symbols from it, all in one
pass (Chang et al. 2022, "MaskGIT"). It draws by unmasking several places a step
(:mod:`tessella.sampling.unmasking`), whose symbols are then independent given those known before.
No simple formula gives the probability of such a drawing, so these models state no exact
log-probability of an image. Two statements about probabilities are true of them all the same:

* Under one order of the places, ``log p_s(x) = sum over i of log p(x_s(i) | x_s(0) .. x_s(i - 1))``
  is exact. It takes a pass for every symbol (``log_prob(x, order=...)``), and is the oracle.
* The mean of that over all orders is a lower bound on the log-probability under their mixture, from
  which one draws by unmasking one random place a step. It equals the mean, over the number ``m`` of
  masked places in ``1 .. S`` and over masks of so many, of ``S / m`` times the log-probability of
  the masked symbols (Uria, Murray and Larochelle 2014, eq. 10; Hoogeboom et al. 2022,
  "Autoregressive Diffusion Models", eq. 3). A mask takes one pass. This is the *any-order bound*.

The loss of training is minus the term of the any-order bound at one random mask.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import torch

from tessella.errors import ConfigError, InputError, check_integer, unknown
from tessella.grid import Grid, to_tensor
from tessella.heads import Head
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.density_model import PASS_VALUES, PIXEL_VALUES, check_finite
from tessella.models.order_agnostic_model import OrderAgnosticModel
from tessella.nn.stepping.state import State
from tessella.noise import check_seed, place_noise

MASKS = 16
"""Masks of each image in a bound unless another number is given."""

BOUND_PART = 1 << 40
"""The noise of the masks of bounds has keys of its own, from this part on, see :class:`Noise`."""

TRAINING_SCHEDULES = ("uniform", "cosine", "arccos")
"""How training draws the share of masked places, see :meth:`MaskedModel.use_schedule`."""


@dataclass
class MaskedState(State):
    """The state of a walk along an order: a pass over the whole grid for every symbol."""

    x: torch.Tensor
    """The symbols so far, ``int64 [batch, height, width, channels]``; 0 where there is none."""
    known: torch.Tensor
    """Where there is a symbol, ``bool`` of the same shape."""
    condition: Condition


class MaskedModel(OrderAgnosticModel):
    """Base of the models that predict masked symbols from the others.

    A family defines :meth:`predictions`.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.

    Raises:
        ConfigError: for a head that takes the channels of a pixel together.
    """

    states_bound: ClassVar[bool] = True
    takes_joint_heads: ClassVar[bool] = False
    schedule: str = "uniform"
    """How training draws the share of masked places, see :meth:`use_schedule`."""

    def __init__(self, grid: Grid, head: Head, conditioning: Conditioning) -> None:
        super().__init__(grid, head, conditioning)
        if head.joint:
            raise ConfigError(
                f"{self.name} masks every symbol by itself, and head={head.name!r} describes all "
                "channels of a pixel together: take head='categorical'"
            )

    def use_schedule(self, schedule: str) -> None:
        """Set how training draws the share of masked places from a uniform number ``u``.

        Args:
            schedule: ``"uniform"``, ``u`` itself, with which the loss is minus the any-order bound;
                ``"cosine"``, ``cos(pi u / 2)``; or ``"arccos"``, ``2 arccos(u) / pi``. The last two
                mask much more often than little, and their loss is no bound.

        Raises:
            ConfigError: for another schedule.
        """
        if schedule not in TRAINING_SCHEDULES:
            raise ConfigError(unknown("schedule", schedule, TRAINING_SCHEDULES))
        self.schedule = schedule

    @abstractmethod
    def predictions(
        self, x: torch.Tensor, known: torch.Tensor, condition: Condition = UNCONDITIONAL
    ) -> torch.Tensor:
        """Parameters of every masked symbol given all known ones, in one pass.

        Args:
            x: symbols, ``int64 [batch, height, width, channels]``; masked ones are not looked at.
            known: where they are known, ``bool`` of the same shape.
            condition: condition of each image, as :meth:`condition` returns it.

        Returns:
            ``[batch, height, width, channels, size]``; those of known symbols mean nothing.
        """

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        """Parameters of every symbol along the order of the condition, in a pass for each."""
        order = condition.order
        if order is None:
            self._refuse()
        known = torch.zeros_like(x, dtype=torch.bool)
        images = torch.arange(len(x), device=x.device)
        steps = []
        for index in range(self.grid.symbols):
            place = order[:, index]
            made = self.predictions(x, known, condition).flatten(1, 3)
            steps.append(made[images, place])
            known = known.flatten(1).scatter(1, place[:, None], True).view_as(x)
        along = torch.stack(steps, dim=1)  # [batch, symbols, size]
        # Back to where the symbols are in the grid.
        back = order.argsort(dim=1)[..., None].expand_as(along)
        return along.gather(1, back).unflatten(1, self.grid.shape)

    def any_order_bound(
        self, x: object, cond: Cond = None, masks: int = MASKS, seed: int = 0
    ) -> torch.Tensor:
        """An estimate of the any-order bound, a lower bound of log-probabilities: nats ``[batch]``.

        Its mean over seeds is the mean of ``log_prob(x, order=s)`` over all orders ``s``, which is
        at most the log-probability of drawing the image by unmasking one random place a step.

        Args:
            x, cond: see :meth:`DensityModel.log_prob`.
            masks: masks of each image; the numbers of masked places are spread evenly.
            seed: image ``i`` has masks of the seed ``seed + i``, whatever the batch.

        Raises:
            InputError: for symbols, a condition, a number or a seed that do not fit.
            NumericalError: when the result would be NaN or infinite, because weights are.
        """
        self.check_eval_mode()
        masks = check_integer("masks", masks, least=1)
        symbols = self.grid.check(to_tensor("symbols", x)).to(self.device)
        seed = check_seed(seed, max(1, len(symbols)))
        condition = self.condition(cond, len(symbols))
        nats = [torch.zeros(0, device=self.device)]
        with torch.no_grad():
            # All masks of some images pass through the network together.
            for images in torch.arange(len(symbols)).split(max(1, self._rows // masks)):
                # Of no images, split makes one empty part.
                if not len(images):
                    continue
                here = condition.select(images)
                known = self._bound_masks(len(images), masks, seed + int(images[0]))
                nats.append(self._mean_terms(symbols[images.to(self.device)], known, here))
        return torch.cat(nats)

    def training_nats(self, x: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Minus the term of the any-order bound at one random mask of each image: nats ``[batch]``.

        With ``schedule="uniform"``, its mean over masks is minus the bound. Masks come from the
        global generator, which every step seeds.
        """
        return -self._terms(x, self._training_masks(len(x)).to(x.device), condition)

    def init_state(self, batch: int, cond: Cond = None) -> MaskedState:
        condition = self.condition(cond, batch)
        if condition.order is None:
            self._refuse()
        x = torch.zeros(batch, *self.grid.shape, dtype=torch.int64, device=self.device)
        return MaskedState(x, torch.zeros_like(x, dtype=torch.bool), condition)

    @torch.no_grad()
    def step(self, previous: torch.Tensor, index: int, state: State) -> tuple[torch.Tensor, State]:
        assert isinstance(state, MaskedState)
        order = state.condition.order
        assert order is not None
        if index:
            place = order[:, index - 1, None]
            # flatten makes views, so the state itself is changed.
            state.x.flatten(1).scatter_(1, place, previous[:, None])
            state.known.flatten(1).scatter_(1, place, True)
        made = self.predictions(state.x, state.known, state.condition).flatten(1, 3)
        images = torch.arange(len(made), device=made.device)
        return made[images, order[:, index]], state

    def _refuse(self) -> NoReturn:
        """Raise InputError: without an order, there is no exact probability."""
        raise InputError(
            f"{self.name} states no exact probability of an image, and so no files and no bits of "
            "single symbols: any_order_bound(x) gives a lower bound, log_prob(x, order=...) is "
            "exact under one order in a pass for every symbol, and a model such as any-order or "
            "transformer states exact ones"
        )

    @property
    def _rows(self) -> int:
        """Roughly how many masked images fit into one pass."""
        values = self.grid.symbols * max(PIXEL_VALUES, self.head.size)
        return max(1, PASS_VALUES // values)

    def _terms(self, x: torch.Tensor, known: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The term of the any-order bound at one mask of each image: nats ``[batch]``."""
        parameters = self.predictions(x, known, condition)
        nats = self.head(parameters).log_prob(x).masked_fill(known, 0.0).flatten(1).sum(1)
        masked = (~known).flatten(1).sum(1)
        # Those of m masked symbols stand for the terms of all S symbols.
        return nats * (self.grid.symbols / masked)

    def _mean_terms(
        self, x: torch.Tensor, known: torch.Tensor, condition: Condition
    ) -> torch.Tensor:
        """Mean of the terms of several masks ``[batch, masks, symbols]``: nats ``[batch]``."""
        batch, masks, _ = known.shape
        terms = []
        for rows in torch.arange(batch * masks).split(self._rows):
            # All masks of an image follow each other.
            images = rows // masks
            here = known.flatten(0, 1)[rows].to(x.device).unflatten(1, self.grid.shape)
            terms.append(self._terms(x[images.to(x.device)], here, condition.select(images)))
        found = torch.cat(terms)
        check_finite(found)
        return found.view(batch, masks).mean(1)

    def _bound_masks(self, batch: int, masks: int, seed: int) -> torch.Tensor:
        """What is known under the masks of a bound: ``bool [batch, masks, symbols]``."""
        symbols = self.grid.symbols
        # One uniform number an image; the numbers of masked places are spread evenly from it.
        offset = uniform_of(place_noise(self.grid, batch, seed, BOUND_PART)[:, :1])  # [batch, 1]
        share = (torch.arange(masks) + offset) / masks
        masked = (share * symbols).long().clamp(max=symbols - 1) + 1  # [batch, masks]
        known = []
        for number in range(masks):
            scores = place_noise(self.grid, batch, seed, BOUND_PART + 1 + number)
            known.append(scores.argsort(dim=1).argsort(dim=1) >= masked[:, number, None])
        return torch.stack(known, dim=1)

    def _training_masks(self, batch: int) -> torch.Tensor:
        """Draw what is known in each image of a step: ``bool [batch, h, w, c]``."""
        symbols = self.grid.symbols
        # The shares of a batch are spread evenly over 0..1, so that its loss varies less.
        uniform = (torch.arange(batch) + torch.rand(1)) / batch
        if self.schedule == "cosine":
            share = torch.cos(uniform * (math.pi / 2))
        elif self.schedule == "arccos":
            share = torch.arccos(uniform.clamp(max=1.0)) * (2 / math.pi)
        else:
            share = uniform
        masked = (share * symbols).long().clamp(max=symbols - 1) + 1
        ranks = torch.rand(batch, symbols).argsort(dim=1).argsort(dim=1)
        return (ranks >= masked[:, None]).unflatten(1, self.grid.shape)


def uniform_of(noise: torch.Tensor) -> torch.Tensor:
    """The uniform numbers in (0, 1) behind noise ``-log E``."""
    # E = -log U, and the noise is -log E.
    return torch.exp(-torch.exp(-noise))

"""The base of every density model: an exact probability for a grid of symbols, in raster order.

A model gives, for symbol ``t`` of the sequence ``x.flatten(1)``, a distribution given all symbols before it, so that
``log p(x) = sum over t of log p(x_t | x_0 .. x_(t-1))``. There are two ways to evaluate it, proven equal by the
contract tests: :meth:`DensityModel.forward` over a whole grid in parallel, and :meth:`DensityModel.step` one symbol
at a time with an explicit cached state. The base class steps by running ``forward`` on the whole grid: slow, right,
and the oracle of the fast ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from tessella.errors import InputError
from tessella.grid import Grid
from tessella.heads import Distribution, Head, JointHead
from tessella.nn.state import State

Cond = torch.Tensor | Mapping[str, torch.Tensor] | None
"""A class ``[batch]``, a code grid ``[batch, h, w, c]``, a dictionary ``{"class": ..., "codes": ...}`` of both, or
nothing."""


@dataclass
class WholeGridState(State):
    """The state of the oracle: the grid so far, random symbols in the places not yet drawn."""

    x: torch.Tensor
    labels: torch.Tensor | None


class DensityModel(nn.Module, ABC):
    """An exact distribution over grids of symbols.

    Args:
        grid: the grid that is modelled.
        head: turns the network's parameters into distributions.
        classes: labels ``0 .. classes - 1`` to condition on; index ``classes`` is the null class. 0 for none.
    """

    name: ClassVar[str]

    def __init__(self, grid: Grid, head: Head, classes: int = 0) -> None:
        super().__init__()
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
            raise InputError(f"classes must be an integer of at least 0, got {classes!r}")
        self.grid, self.head, self.classes = grid, head, classes
        self.null_class = True
        """Whether the null class means something; training without label dropout clears it."""

    @abstractmethod
    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Parameters of every symbol, in parallel.

        Args:
            x: ``int64 [batch, height, width, channels]``.
            labels: ``int64 [batch]`` for a model with classes.

        Returns:
            What :meth:`Head.__call__` takes: ``[batch, height, width, channels, size]``, or ``[batch, height, width,
            size]`` of a joint head. The part of symbol ``t`` depends on symbols before ``t`` only.
        """

    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """The sizes it was built with, as :func:`tessella.create` takes them."""

    @abstractmethod
    def receptive_field(self) -> torch.Tensor:
        """``bool [symbols, symbols]``: whether the distribution of symbol ``t`` (row) depends on symbol ``s``
        (column)."""

    def distribution(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Distribution:
        """The distributions of all symbols of ``x``, each given the symbols before it. Takes checked input."""
        return self.head(self(x, labels))

    def log_prob(self, x: Any, cond: Cond = None, reduce: bool = True) -> torch.Tensor:
        """Exact log-probability in nats.

        Args:
            x: symbols, any integer type, ``[batch, height, width, channels]``.
            cond: class of each image (int64 ``[batch]``), or None for the null class.
            reduce: sum over the symbols of an image.

        Returns:
            ``[batch]``, or ``[batch, height, width, channels]`` without ``reduce``.

        Raises:
            InputError: for symbols or classes that do not fit, or a model left in training mode with dropout.
        """
        self.refuse_dropout()
        x = self.grid.check(x).to(self.device)
        log_prob = self.distribution(x, self.labels(cond, len(x))).log_prob(x)
        return log_prob.flatten(1).sum(1) if reduce else log_prob

    def bits_per_dim(self, x: Any, cond: Cond = None) -> torch.Tensor:
        """Bits per symbol of each image: ``[batch]``. See :meth:`log_prob`."""
        return -self.grid.bits_per_dim(self.log_prob(x, cond))

    def init_state(self, batch: int, cond: Cond = None) -> State:
        """The state before the first symbol of ``batch`` images."""
        return self.whole_grid_state(batch, cond)

    def step(self, previous: torch.Tensor, index: int, state: Any) -> tuple[torch.Tensor, Any]:
        """One symbol further.

        Args:
            previous: ``int64 [batch]``, symbol ``index - 1``; ignored at 0.
            index: which symbol of the sequence comes next.
            state: what :meth:`init_state` or the step before returned; it may be updated in place and is spent.

        Returns:
            The parameters of symbol ``index`` as :meth:`Head.symbol` takes them, ``[batch, ...]``, and the next state.
        """
        return self.whole_grid_step(previous, index, state)

    def whole_grid_state(self, batch: int, cond: Cond = None, seed: int = 0) -> WholeGridState:
        """The state of the oracle: random symbols everywhere, since zeros would hide a leak."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(self.grid.levels, (batch, *self.grid.shape), generator=generator).to(self.device)
        return WholeGridState(x, self.labels(cond, batch))

    def whole_grid_step(
        self, previous: torch.Tensor, index: int, state: WholeGridState
    ) -> tuple[torch.Tensor, WholeGridState]:
        """:meth:`step` by a forward pass over the whole grid."""
        if index:
            state.x.flatten(1)[:, index - 1] = previous
        row, column, channel = self.grid.place(index)
        with torch.no_grad():
            parameters = self(state.x, state.labels)[:, row, column]
        if isinstance(self.head, JointHead):
            return self.head.unroll(parameters, state.x[:, row, column], channel + 1)[-1], state
        return parameters[:, channel], state

    def labels(self, cond: Cond, batch: int) -> torch.Tensor | None:
        """The class of each image, checked: ``int64 [batch]``, None for a model without classes.

        Raises:
            InputError: for a condition the model does not take, a class out of range, or the null class of a model
                that never trained with it.
        """
        codes: Any = None
        if isinstance(cond, Mapping):
            if set(cond) - {"class", "codes"}:
                raise InputError(f"cond takes the keys 'class' and 'codes', got {sorted(cond)}")
            codes, cond = cond.get("codes"), cond.get("class")
        elif cond is not None and torch.as_tensor(cond).dim() == 4:
            codes, cond = cond, None
        if codes is not None:
            raise InputError(f"{self.name} does not take a grid of codes as condition")
        if self.classes == 0:
            if cond is not None:
                raise InputError(
                    "this model has no classes: leave cond (--class-label) out, or train one that is conditional"
                )
            return None
        return self._labels(cond, batch)

    def _labels(self, cond: torch.Tensor | None, batch: int) -> torch.Tensor:
        if cond is None:
            if not self.null_class:
                raise InputError(
                    "this model was trained with a class for every image: "
                    f"give cond, int64 [{batch}] in 0..{self.classes - 1}"
                )
            return torch.full((batch,), self.classes, device=self.device)
        labels = torch.as_tensor(cond)
        if labels.is_floating_point() or labels.shape != (batch,):
            raise InputError(
                f"classes must be integers of shape [{batch}], got {labels.dtype} of shape {list(labels.shape)}"
            )
        if batch and (int(labels.min()) < 0 or int(labels.max()) > self.classes):
            raise InputError(
                f"classes must lie in 0..{self.classes - 1} (or {self.classes}, the null class), "
                f"got {int(labels.min())}..{int(labels.max())}"
            )
        return labels.long().to(self.device)

    def refuse_dropout(self) -> None:
        """Raise InputError in training mode with dropout, where no probability is exact."""
        if self.training and any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.modules()):
            raise InputError("the model is in training mode and has dropout: call model.eval() first")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def config(self) -> dict[str, Any]:
        """Plain values that rebuild the model, without its weights, by :func:`tessella.models.from_config`."""
        return {
            "name": self.name,
            "grid": {"height": self.grid.height, "width": self.grid.width}
            | {"channels": self.grid.channels, "levels": self.grid.levels},
            "head": self.head.config(),
            "classes": self.classes,
            "null_class": self.null_class,
            "sizes": self.sizes(),
        }


def symbol_field(grid: Grid, pixels: torch.Tensor, inside: bool) -> torch.Tensor:
    """A receptive field over pixels to one over symbols.

    Args:
        grid: the grid.
        pixels: ``bool [pixels, pixels]``: whether pixel ``t`` (row) sees pixel ``s`` (column).
        inside: whether a symbol sees the channels before it in its own pixel.
    """
    c = grid.channels
    field = pixels.repeat_interleave(c, 0).repeat_interleave(c, 1)
    if inside:
        field |= torch.block_diag(*[torch.ones(c, c).tril(-1)] * grid.pixels).bool()
    return field

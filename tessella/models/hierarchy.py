"""The prior of a tokenizer that makes several grids of an image: one density model for each, coarse
to fine.

``log p(x_0, x_1) = log p(x_0) + log p(x_1 | x_0)``: the model of the second grid is conditioned on
the codes of the first (Razavi et al. 2019, section 3.2). Each part is an ordinary density model,
sampled by the ordinary walk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from tessella.errors import ConfigError, InputError
from tessella.grid import LN2, Grid
from tessella.models.condition import Cond, Condition, split
from tessella.models.density_model import DensityModel

GRIDS = 2
"""Grids that there may be: a model takes the codes of one other grid."""


class Hierarchy(nn.Module):
    """Density models of the grids of an image, coarse to fine.

    Args:
        priors: the models; the second is conditioned on the codes of the first one's grid
            (``codes=``), and all on the same classes.

    Raises:
        ConfigError: for fewer or more than two models, or ones that do not fit each other.

    >>> import tessella as ts
    >>> coarse, fine = ts.Grid(2, 2, 1, 4), ts.Grid(4, 4, 1, 4)
    >>> top = ts.create("gated-pixelcnn", coarse, layers=1, hidden=4)
    >>> bottom = ts.create("gated-pixelcnn", fine, codes=coarse, layers=1, hidden=4)
    >>> prior = Hierarchy([top, bottom])
    >>> x = (torch.zeros(3, 2, 2, 1, dtype=torch.int64), torch.zeros(3, 4, 4, 1, dtype=torch.int64))
    >>> prior.log_prob(x).shape, prior.symbols
    (torch.Size([3]), 20)
    """

    name = "hierarchy"
    kind = "density-model"

    def __init__(self, priors: Sequence[DensityModel]) -> None:
        super().__init__()
        if len(priors) != GRIDS:
            raise ConfigError(f"a hierarchy has {GRIDS} priors, coarse to fine, got {len(priors)}")
        # Each prior must be conditioned on the grid of the one before it; the first on none.
        coarser: Grid | None = None
        for prior in priors:
            if prior.conditioning.codes != coarser:
                raise ConfigError(
                    f"the prior of {prior.grid} must be conditioned on codes of {coarser}, "
                    f"not {prior.conditioning.codes}"
                )
            coarser = prior.grid
        if len({(prior.classes, prior.null_class) for prior in priors}) > 1:
            raise ConfigError(
                "the priors of a hierarchy must all be conditioned on the same classes"
            )
        # A ModuleList, so that the weights are found; it is indexed and iterated as a sequence.
        self.priors = cast("Sequence[DensityModel]", nn.ModuleList(priors))

    def __iter__(self) -> Iterator[DensityModel]:
        return iter(self.priors)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grids that are modelled, coarse to fine."""
        return tuple(prior.grid for prior in self.priors)

    @property
    def symbols(self) -> int:
        """Symbols of all grids together."""
        return sum(grid.symbols for grid in self.grids)

    @property
    def classes(self) -> int:
        """Classes it is conditioned on; index ``classes`` is the null class."""
        return self.priors[0].classes

    @property
    def null_class(self) -> bool:
        """Whether the null class means something; see :class:`DensityModel`."""
        return self.priors[0].null_class

    @null_class.setter
    def null_class(self, value: bool) -> None:
        for prior in self.priors:
            prior.null_class = value

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def condition(self, cond: Cond, batch: int) -> Condition:
        """The classes of ``batch`` images, checked; the codes are each other's.

        Raises:
            InputError: see :meth:`DensityModel.condition`.
        """
        labels, codes = split(cond)
        if codes is not None:
            raise InputError(
                "a hierarchy draws its own codes: give it a class as condition, or nothing"
            )
        return self.priors[0].condition(labels, batch)

    def log_prob(self, x: object, cond: Cond = None) -> torch.Tensor:
        """Exact log-probability in nats of the codes of all grids: ``[batch]``.

        Args:
            x: symbols of each grid, any integer type, ``[batch, height, width, channels]``.
            cond: class of each image (int64 ``[batch]``); without it, the null class.

        Raises:
            InputError: for symbols or a condition that do not fit, or a model in training mode with
                dropout.
        """
        # The chain rule: log p(x_0) + log p(x_1 | x_0).
        return torch.stack(self.log_probs(x, cond)).sum(0)

    def log_probs(self, x: object, cond: Cond = None) -> list[torch.Tensor]:
        """:meth:`log_prob` of each grid given the coarser ones, ``[batch]`` each."""
        if not isinstance(x, (tuple, list)) or len(x) != len(self.priors):
            raise InputError(f"give the symbols of all {len(self.priors)} grids, coarse to fine")
        # All grids are checked before the first is scored.
        symbols = []
        for prior, part in zip(self.priors, x, strict=True):
            symbols.append(prior.grid.check(part))
        labels = self.condition(cond, len(symbols[0])).labels
        scores = []
        for level, prior in enumerate(self.priors):
            condition = level_condition(prior, labels, symbols[:level])
            scores.append(prior.log_prob(symbols[level], condition))
        return scores

    def bits_per_dim(self, x: object, cond: Cond = None) -> torch.Tensor:
        """Bits per symbol of all grids: ``[batch]``."""
        return -self.log_prob(x, cond) / (LN2 * self.symbols)

    @property
    def checkpointing(self) -> bool:
        """See :class:`DensityModel`."""
        return self.priors[0].checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        for prior in self.priors:
            prior.checkpointing = value

    def parameter_count(self) -> int:
        """Numbers that training sets."""
        return sum(prior.parameter_count() for prior in self.priors)

    def config(self) -> dict[str, Any]:
        """Plain values that rebuild the priors, without their weights."""
        return {"name": self.name, "priors": [prior.config() for prior in self.priors]}


def level_condition(
    prior: DensityModel, labels: torch.Tensor | None, coarser: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The condition of one prior of a hierarchy: the labels, and the codes of the next coarser
    grid."""
    # An empty dictionary is no condition.
    cond: dict[str, torch.Tensor] = {}
    if labels is not None:
        cond["class"] = labels
    if prior.conditioning.codes is not None:
        cond["codes"] = coarser[-1]
    return cond


def pack(symbols: Iterable[torch.Tensor]) -> torch.Tensor:
    """The symbols of several grids, ``[n, ...]`` each, as one row for each image:
    ``[n, symbols]``."""
    return torch.cat([part.flatten(1) for part in symbols], dim=1)


def unpack(packed: torch.Tensor, grids: Sequence[Grid]) -> tuple[torch.Tensor, ...]:
    """The inverse of :func:`pack`: symbols ``[n, height, width, channels]`` of each grid."""
    pieces = packed.split([grid.symbols for grid in grids], dim=1)
    symbols = []
    for piece, grid in zip(pieces, grids, strict=True):
        symbols.append(piece.view(-1, *grid.shape))
    return tuple(symbols)

"""A prior over several grids of codes, coarse to fine, as VQ-VAE-2 makes them.

There is one density model for each grid. ``log p(x_0, x_1) = log p(x_0) + log p(x_1 | x_0)``: the
model of the second grid is conditioned on the codes of the first (Razavi et al. 2019, section 3.2).
Each is an ordinary density model and is sampled like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import nn

from tessella.errors import ConfigError, InputError
from tessella.grid import LN2, Grid
from tessella.models.condition import Cond, Condition, split
from tessella.models.density_model import DensityModel
from tessella.nn.pretrained import Pretrained

GRIDS = 2
"""Number of grids in a hierarchy of models that are each conditioned on one other grid."""


class Hierarchy(Pretrained, nn.Module):
    """Density models over several grids of an image, coarse to fine.

    Args:
        priors: two models. The second is conditioned on the grid of the first (``codes=``), and
            both on the same classes.

    Raises:
        ConfigError: for any other number of models, or models that do not fit each other.

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
        for prior in priors:
            if prior.states_bound:
                raise ConfigError(
                    f"{prior.name} states a bound instead of exact probabilities, and those of a "
                    "hierarchy are exact: take another family, or a tokenizer of one grid"
                )
        # Each prior must be conditioned on the grid of the one before it; the first on none.
        coarser: Grid | None = None
        for prior in priors:
            if prior.conditioning.codes != coarser:
                raise ConfigError(
                    f"the prior of {prior.grid} must be conditioned on codes of {coarser}, "
                    f"not {prior.conditioning.codes}"
                )
            coarser = prior.grid
        # One class label conditions all grids of an image.
        if len({(prior.classes, prior.null_class) for prior in priors}) > 1:
            raise ConfigError(
                "the priors of a hierarchy must all be conditioned on the same classes"
            )
        # A ModuleList registers the weights. Type checkers may treat it as a plain sequence.
        self.priors = cast("Sequence[DensityModel]", nn.ModuleList(priors))

    def __iter__(self) -> Iterator[DensityModel]:
        return iter(self.priors)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The modelled grids, coarse to fine."""
        return tuple(prior.grid for prior in self.priors)

    @property
    def symbols(self) -> int:
        """Number of symbols in all grids together."""
        return sum(grid.symbols for grid in self.grids)

    @property
    def classes(self) -> int:
        """Number of classes; label ``classes`` is the null class."""
        # All priors have the same classes.
        return self.priors[0].classes

    @property
    def null_class(self) -> bool:
        """Whether the priors have learned the null class; see :class:`DensityModel`."""
        return self.priors[0].null_class

    @null_class.setter
    def null_class(self, value: bool) -> None:
        for prior in self.priors:
            prior.null_class = value

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def condition(self, cond: Cond, batch: int) -> Condition:
        """Check the class labels of ``batch`` images.

        The result has no codes: the hierarchy models them itself.

        Raises:
            InputError: for codes, and see :meth:`DensityModel.condition`.
        """
        labels, codes = split(cond)
        # The codes of each grid come from the hierarchy itself.
        if codes is not None:
            raise InputError(
                "a hierarchy draws its own codes: give it a class as condition, or nothing"
            )
        return self.priors[0].condition(labels, batch)

    def log_prob(self, x: object, cond: Cond = None) -> torch.Tensor:
        """Exact log-probability in nats of the codes of all grids: ``[batch]``.

        Args:
            x: symbols of each grid, any integer type, ``[batch, height, width, channels]``.
            cond: class of each image (int64 ``[batch]``); without it, the null class is used.

        Raises:
            InputError: for symbols or a condition that do not fit, or a model with dropout in
                training mode.
            NumericalError: when the result would be NaN or infinite, because weights are.
        """
        # The chain rule: log p(x_0) + log p(x_1 | x_0).
        return torch.stack(self.log_probs(x, cond)).sum(0)

    def log_probs(self, x: object, cond: Cond = None) -> list[torch.Tensor]:
        """Log-probability of each grid given the coarser ones, in nats: ``[batch]`` each.

        Arguments and errors are those of :meth:`log_prob`.
        """
        # Check all grids before scoring the first.
        symbols = self.check(x)
        labels = self.condition(cond, len(symbols[0])).labels
        scores = []
        for level, prior in enumerate(self.priors):
            condition = level_condition(prior, labels, symbols[:level])
            scores.append(prior.log_prob(symbols[level], condition))
        return scores

    def check(self, x: object) -> list[torch.Tensor]:
        """The symbols of each grid, checked.

        Raises:
            InputError: when a grid is missing, or symbols do not fit.
        """
        if not isinstance(x, (tuple, list)) or len(x) != len(self.priors):
            raise InputError(f"give the symbols of all {len(self.priors)} grids, coarse to fine")
        symbols = []
        for prior, part in zip(self.priors, x, strict=True):
            symbols.append(prior.grid.check(part))
        return symbols

    def training_nats(
        self, x: Sequence[torch.Tensor], labels: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """What a training step minimizes, for each grid: nats of each image, ``[batch]``.

        See :meth:`DensityModel.training_nats`.

        Args:
            x: symbols of each grid, as :meth:`check` returns them, on the device of the models.
            labels: class of each image, ``int64 [batch]``; None without classes.
        """
        nats = []
        for level, prior in enumerate(self.priors):
            coarser = level_condition(prior, None, x[:level]).get("codes")
            nats.append(prior.training_nats(x[level], Condition(labels, coarser)))
        return nats

    def bits_per_dim(self, x: object, cond: Cond = None) -> torch.Tensor:
        """Bits per symbol, averaged over the symbols of all grids: ``[batch]``."""
        return -self.log_prob(x, cond) / (LN2 * self.symbols)

    @property
    def checkpointing(self) -> bool:
        """Whether to use activation checkpointing; see :class:`DensityModel`."""
        return self.priors[0].checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        for prior in self.priors:
            prior.checkpointing = value

    def networks(self) -> list[nn.Module]:
        """The networks whose calls can be compiled."""
        return list(self.priors)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Those of all models, see :meth:`DensityModel.hidden_matrices`."""
        matrices: list[nn.Parameter] = []
        for prior in self.priors:
            matrices += prior.hidden_matrices()
        return matrices

    @property
    def family_names(self) -> tuple[str, ...]:
        """Names of the models, coarse to fine."""
        return tuple(prior.name for prior in self.priors)

    def parameter_count(self) -> int:
        """Number of trainable parameters."""
        return sum(prior.parameter_count() for prior in self.priors)

    def config(self) -> dict[str, object]:
        """Plain values from which :func:`tessella.models.prior_from_config` rebuilds the priors.

        The weights are not included.
        """
        return {"name": self.name, "priors": [prior.config() for prior in self.priors]}


def level_condition(
    prior: DensityModel, labels: torch.Tensor | None, coarser: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The condition of one prior of a hierarchy, as a dictionary.

    Args:
        prior: the prior.
        labels: class of each image, ``int64 [batch]``.
        coarser: codes of all coarser grids, coarse to fine.
    """
    # An empty dictionary means no condition.
    cond: dict[str, torch.Tensor] = {}
    if labels is not None:
        cond["class"] = labels
    if prior.conditioning.codes is not None:
        codes = coarser[-1]
        if prior.sees_all_coarser:
            # One row, as its conditioning says.
            codes = pack(coarser)[:, None, :, None]
        cond["codes"] = codes
    return cond


def pack(symbols: Iterable[torch.Tensor]) -> torch.Tensor:
    """Concatenate the symbols of several grids, ``[n, ...]`` each, to ``[n, symbols]``."""
    return torch.cat([part.flatten(1) for part in symbols], dim=1)


def unpack(packed: torch.Tensor, grids: Sequence[Grid]) -> tuple[torch.Tensor, ...]:
    """Undo :func:`pack`: the symbols ``[n, height, width, channels]`` of each grid."""
    # The grids lie one after the other in each row.
    pieces = packed.split([grid.symbols for grid in grids], dim=1)
    symbols = []
    for piece, grid in zip(pieces, grids, strict=True):
        symbols.append(piece.view(-1, *grid.shape))
    return tuple(symbols)

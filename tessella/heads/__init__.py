"""Heads: a network's parameters to distributions over symbols.

A head returns a distribution; the loss, ``log_prob``, sampling and coding use the same object.
There are two views of it:

* over a whole grid, ``head(parameters)``: from what :meth:`DensityModel.forward` returned, a
  distribution with ``log_prob(x)``, ``table(x)`` and ``mode()`` over
  ``x [batch, height, width, channels]``;
* over one symbol a row, ``head.symbol(parameters)``: from what :meth:`DensityModel.step` returned,
  a distribution over ``[batch]``.
"""

from __future__ import annotations

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads.categorical import Categorical, CategoricalHead
from tessella.heads.head import AveragingJointHead, Distribution, FactoredHead, Head, JointHead
from tessella.heads.logistic_mixture import (
    LogisticMixture,
    LogisticMixtureHead,
    PixelMixture,
    PixelPosterior,
)
from tessella.heads.ordinal import OrdinalHead, level_covariance
from tessella.registry import Registry

__all__ = [
    "HEADS",
    "AveragingJointHead",
    "Categorical",
    "CategoricalHead",
    "Distribution",
    "FactoredHead",
    "Head",
    "JointHead",
    "LogisticMixture",
    "LogisticMixtureHead",
    "OrdinalHead",
    "PixelMixture",
    "PixelPosterior",
    "create_head",
    "level_covariance",
    "register_head",
]

HEADS: Registry[type[Head]] = Registry("head", base=Head)
"""Every head that :func:`create_head` can build."""

# The order in which tables and help show them.
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
    # Sizes of a saved configuration may be of any name.
    try:
        return head(grid, **sizes)
    except TypeError as error:
        raise ConfigError(f"head {name!r} does not take these sizes: {sizes} ({error})") from error

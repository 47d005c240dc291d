"""Heads turn the parameters that a network outputs into distributions over symbols.

The loss, ``log_prob`` and sampling all use the same distribution object. There are two ways to get
one:

* ``head(parameters)`` takes what :meth:`DensityModel.forward` returns, and gives a distribution
  over whole grids ``x [batch, height, width, channels]``, with ``log_prob(x)``, ``table(x)`` and
  ``mode()``;
* ``head.symbol(parameters)`` takes what :meth:`DensityModel.step` returns, and gives a distribution
  over one symbol of each image, ``[batch]``.
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

# This is the order in which tables and help texts show them.
for _head in (CategoricalHead, OrdinalHead, LogisticMixtureHead):
    HEADS.register(_head.name)(_head)

register_head = HEADS.register
"""Decorator that adds a custom head: ``@ts.register_head("mine")``."""


def create_head(name: str, grid: Grid, **sizes: object) -> Head:
    """Build a registered head.

    Args:
        name: a key of ``ts.HEADS``.
        grid: the grid whose symbols are modelled.
        sizes: further arguments of the head, such as ``components``.

    Raises:
        ConfigError: for an unknown name (the known ones are listed) or a size the head does not
            take.
    """
    head = HEADS.get_or_explain(name)
    # A saved configuration may hold arguments that the head does not know.
    try:
        return head(grid, **sizes)
    except TypeError as error:
        raise ConfigError(f"head {name!r} does not take these sizes: {sizes} ({error})") from error

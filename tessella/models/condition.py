"""Conditions of a model: the class of an image, a coarser grid of codes, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tessella.errors import InputError
from tessella.grid import Grid, to_tensor
from tessella.nn.stepping.state import State


@dataclass(frozen=True)
class Conditioning:
    """The kind of condition that a model takes.

    Args:
        classes: number of classes; labels are ``0 .. classes - 1``, and label ``classes`` is the
            null class. 0 for no classes.
        codes: grid of the codes, for example the upper level of a VQ-VAE-2; None for no codes.

    Raises:
        InputError: when ``classes`` is not an integer of at least 0, or ``codes`` is not a grid.
    """

    classes: int = 0
    codes: Grid | None = None

    def __post_init__(self) -> None:
        # Saved configurations come through here too, so types are checked rather than converted.
        if isinstance(self.classes, bool) or not isinstance(self.classes, int) or self.classes < 0:
            raise InputError(f"classes must be an integer of at least 0, got {self.classes!r}")
        if self.codes is not None and not isinstance(self.codes, Grid):
            raise InputError(
                f"codes must be a Grid, for example codes=ts.Grid(4, 4, 1, 512), got {self.codes!r}"
            )


@dataclass
class Condition(State):
    """A checked condition for each image of a batch.

    :meth:`DensityModel.condition` makes it from a caller's argument. It derives from :class:`State`
    to get ``select``, which picks the condition of some of the images.
    """

    labels: torch.Tensor | None = None
    """``int64 [batch]``; None for a model without classes."""
    codes: torch.Tensor | None = None
    """``int64 [batch, h, w, c]``; None for a model that takes no codes."""
    order: torch.Tensor | None = None
    """The order in which the symbols become known, ``int64 [batch, symbols]``; None for raster
    order, the only one of most models."""


Cond = torch.Tensor | Mapping[str, torch.Tensor] | Condition | None
"""A condition as a caller may give it: class labels ``[batch]``, codes ``[batch, h, w, c]``, a
dictionary ``{"class": ..., "codes": ...}``, a :class:`Condition`, or None."""

UNCONDITIONAL = Condition()
"""The condition of an unconditional model."""

CODE_DIMENSIONS = 4
"""Number of dimensions of codes, which tells them from class labels."""


def split(cond: Cond) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Split a caller's condition into class labels and codes.

    Both become tensors, but are not checked any further.

    Raises:
        InputError: for anything that cannot become a tensor, or a dictionary with unknown keys.
    """
    if cond is None:
        return None, None
    # A checked condition, as samplers pass it on.
    if isinstance(cond, Condition):
        return cond.labels, cond.codes
    if isinstance(cond, Mapping):
        # A misspelled key would otherwise drop the condition silently.
        other_keys = set(cond) - {"class", "codes"}
        if other_keys:
            raise InputError(
                f"cond takes the keys 'class' and 'codes', got {sorted(map(repr, other_keys))}"
            )
        labels = cond.get("class")
        codes = cond.get("codes")
        return (
            None if labels is None else to_tensor("cond['class']", labels),
            None if codes is None else to_tensor("cond['codes']", codes),
        )
    # A bare tensor is told apart by its number of dimensions.
    given = to_tensor("cond", cond)
    if given.dim() == CODE_DIMENSIONS:
        return None, given
    return given, None

"""The condition of a model: a class of the image, a coarser grid of codes, or both."""

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
        classes: labels ``0 .. classes - 1``; index ``classes`` is the null class. 0 for none.
        codes: grid of the codes the model is conditioned on, for example the upper level of a
            VQ-VAE-2; None for none.

    Raises:
        InputError: when ``classes`` is not an integer of at least 0, or ``codes`` no grid.
    """

    classes: int = 0
    codes: Grid | None = None

    def __post_init__(self) -> None:
        # A saved configuration comes through here too, so the type is checked and not converted.
        if isinstance(self.classes, bool) or not isinstance(self.classes, int) or self.classes < 0:
            raise InputError(f"classes must be an integer of at least 0, got {self.classes!r}")
        if self.codes is not None and not isinstance(self.codes, Grid):
            raise InputError(
                f"codes must be a Grid, for example codes=ts.Grid(4, 4, 1, 512), got {self.codes!r}"
            )


@dataclass
class Condition(State):
    """The condition of each image of a batch, checked.

    :meth:`DensityModel.condition` makes it from a caller's argument. It is a :class:`State` for the
    sake of ``select`` (the condition of some of the images).
    """

    labels: torch.Tensor | None = None
    """``int64 [batch]``; None for a model without classes."""
    codes: torch.Tensor | None = None
    """``int64 [batch, h, w, c]``; None for a model that takes no codes."""


Cond = torch.Tensor | Mapping[str, torch.Tensor] | Condition | None
"""A class ``[batch]``, a code grid ``[batch, h, w, c]``, a dictionary
``{"class": ..., "codes": ...}`` of both, a condition already checked, or nothing."""

UNCONDITIONAL = Condition()

CODE_DIMENSIONS = 4
"""Dimensions of a grid of codes, which distinguish it from classes."""


def split(cond: Cond) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Class and codes from a caller's condition, as tensors, but otherwise unchecked.

    Raises:
        InputError: for what is no tensor, or a dictionary with other keys.
    """
    if cond is None:
        return None, None
    if isinstance(cond, Condition):
        return cond.labels, cond.codes
    if isinstance(cond, Mapping):
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
    # A bare tensor is recognized by its shape.
    given = to_tensor("cond", cond)
    if given.dim() == CODE_DIMENSIONS:
        return None, given
    return given, None

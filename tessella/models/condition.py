"""What a model is conditioned on: a class of the image, a coarser grid of codes, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tessella.errors import InputError
from tessella.grid import Grid
from tessella.nn.stepping.state import State


@dataclass(frozen=True)
class Conditioning:
    """What a model takes as condition.

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
        if isinstance(self.classes, bool) or not isinstance(self.classes, int) or self.classes < 0:
            raise InputError(f"classes must be an integer of at least 0, got {self.classes!r}")
        if self.codes is not None and not isinstance(self.codes, Grid):
            raise InputError(
                f"codes must be a Grid, for example codes=ts.Grid(4, 4, 1, 512), got {self.codes!r}"
            )


@dataclass
class Condition(State):
    """The condition of each image of a batch, checked. :meth:`DensityModel.condition` makes it of
    what a caller gives.

    It is a :class:`State` for the sake of ``select`` (the condition of some of the images).
    """

    labels: torch.Tensor | None = None
    """``int64 [batch]``; None for a model without classes."""
    codes: torch.Tensor | None = None
    """``int64 [batch, h, w, c]``; None for a model that takes no codes."""


Cond = torch.Tensor | Mapping[str, torch.Tensor] | Condition | None
"""A class ``[batch]``, a code grid ``[batch, h, w, c]``, a dictionary
``{"class": ..., "codes": ...}`` of both, a condition already checked, or nothing."""

UNCONDITIONAL = Condition()


def split(cond: Cond) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Class and codes of what a caller gave, unchecked.

    Raises:
        InputError: for a dictionary with other keys.
    """
    if isinstance(cond, Condition):
        return cond.labels, cond.codes
    if isinstance(cond, Mapping):
        if set(cond) - {"class", "codes"}:
            raise InputError(f"cond takes the keys 'class' and 'codes', got {sorted(cond)}")
        return cond.get("class"), cond.get("codes")
    if cond is not None and torch.as_tensor(cond).dim() == 4:
        return None, torch.as_tensor(cond)
    return cond, None

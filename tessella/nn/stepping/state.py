"""The cached state of a walk along a grid: an explicit value, never hidden in a module."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch

AnyState = TypeVar("AnyState", bound="State")

Change = Callable[[torch.Tensor, int], torch.Tensor]
"""Makes a tensor of another one, given the dimension along which the images lie."""


@dataclasses.dataclass
class State:
    """Base of the states that :meth:`DensityModel.step` takes and returns.

    Subclasses are dataclasses whose fields hold tensors, or lists and dictionaries of them. A step
    may update tensors in place: the state passed in is spent.

    * The images of the batch lie along dimension 0, or along the dimension that ``batch_dims``
      names for a field.
    * Fields named in ``shared`` (weights laid out for stepping) do not depend on the batch and are
      never copied.
    * Fields named in ``derived`` are made of the others when they are needed, and are None in a
      copy.
    """

    batch_dims: ClassVar[dict[str, int]] = {}
    shared: ClassVar[frozenset[str]] = frozenset()
    derived: ClassVar[frozenset[str]] = frozenset()

    def clone(self: AnyState) -> AnyState:
        """A copy that steps taken on this state do not touch."""
        return self._changed(_clone)

    def select(self: AnyState, rows: torch.Tensor) -> AnyState:
        """The state of some images of the batch, in the given order, repeats allowed. ``rows`` is
        ``int64 [m]``."""

        def pick(tensor: torch.Tensor, dim: int) -> torch.Tensor:
            # Not a view, even where the rows are a range: a step would write through it.
            return tensor.index_select(dim, rows.to(tensor.device))

        return self._changed(pick)

    def load(self, other: State) -> None:
        """Copy what another state of the same shape holds into this one's memory.

        Weights and what is derived stay, so that programs written for this state serve again.
        """
        for field in dataclasses.fields(self):
            # Shared fields are equal already, and derived ones are made of the memory that stays.
            if field.name not in self.shared | self.derived:
                value = _loaded(getattr(self, field.name), getattr(other, field.name))
                setattr(self, field.name, value)

    def _changed(self: AnyState, change: Change) -> AnyState:
        """A copy with every tensor of the batch changed."""
        # Everything shared stays shared; the other fields follow.
        changed = copy.copy(self)
        for field in dataclasses.fields(self):
            if field.name in self.derived:
                # Programs work on the memory of the state they were written for.
                setattr(changed, field.name, None)
            elif field.name not in self.shared:
                dim = self.batch_dims.get(field.name, 0)
                value = _change_tensors(getattr(self, field.name), change, dim)
                setattr(changed, field.name, value)
        return changed


def _clone(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    return tensor.clone()


def _change_tensors(value: object, change: Change, dim: int) -> object:
    """A value of a field with its tensors changed."""
    if isinstance(value, State):
        return value._changed(change)
    if isinstance(value, torch.Tensor):
        return change(value, dim)
    if isinstance(value, list):
        return [_change_tensors(item, change, dim) for item in value]
    if isinstance(value, dict):
        return {key: _change_tensors(item, change, dim) for key, item in value.items()}
    return value


def _loaded(mine: object, other: object) -> object:
    """``mine`` with the values of ``other`` where both are tensors, else a copy of ``other``."""
    if isinstance(mine, State) and type(mine) is type(other):
        mine.load(other)
        return mine
    if isinstance(mine, torch.Tensor) and isinstance(other, torch.Tensor):
        assert mine.shape == other.shape, "a program reads and writes the memory of its state"
        return mine.copy_(other)
    # Element by element, so that programs find each tensor where it was.
    if isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other):
        return [_loaded(*pair) for pair in zip(mine, other, strict=True)]
    return _change_tensors(other, _clone, 0)

"""The cached state of a walk along a grid: an explicit value, not hidden in a module."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch

AnyState = TypeVar("AnyState", bound="State")

Change = Callable[[torch.Tensor, int], torch.Tensor]
"""Function from a tensor and its batch dimension to a new tensor."""


@dataclasses.dataclass
class State:
    """Base of the states that :meth:`DensityModel.step` takes and returns.

    Subclasses are dataclasses whose fields hold tensors, or lists and dictionaries of tensors. A
    step may update tensors in place, so the state passed in must not be used again.

    * The batch dimension of a field is 0, unless ``batch_dims`` names another.
    * Fields named in ``shared`` (weights laid out for stepping) do not depend on the batch and are
      never copied.
    * Fields named in ``derived`` are rebuilt from the others on demand, and are None in a copy.
    """

    batch_dims: ClassVar[dict[str, int]] = {}
    shared: ClassVar[frozenset[str]] = frozenset()
    derived: ClassVar[frozenset[str]] = frozenset()

    def clone(self: AnyState) -> AnyState:
        """A copy that later steps on this state leave unchanged."""
        return self._changed(_clone)

    def select(self: AnyState, rows: torch.Tensor) -> AnyState:
        """The state of some images of the batch.

        Args:
            rows: their indices, ``int64 [m]``, in any order; repeats are allowed.
        """

        def pick(tensor: torch.Tensor, dim: int) -> torch.Tensor:
            # index_select copies. A view would let a step write to the original.
            return tensor.index_select(dim, rows.to(tensor.device))

        return self._changed(pick)

    def load(self, other: State) -> None:
        """Copy the values of another state of the same shape into this one's memory.

        Shared and derived fields stay, so that programs written for this state remain valid.
        """
        for field in dataclasses.fields(self):
            # Shared fields are equal already; derived fields refer to memory that stays.
            if field.name not in self.shared | self.derived:
                value = _loaded(getattr(self, field.name), getattr(other, field.name))
                setattr(self, field.name, value)

    def _changed(self: AnyState, change: Change) -> AnyState:
        """A copy in which ``change`` is applied to every tensor that is not shared."""
        # A shallow copy keeps shared fields shared; the loop replaces the others.
        changed = copy.copy(self)
        for field in dataclasses.fields(self):
            if field.name in self.derived:
                # Programs refer to the memory of the state they were written for.
                setattr(changed, field.name, None)
            elif field.name not in self.shared:
                dim = self.batch_dims.get(field.name, 0)
                value = _change_tensors(getattr(self, field.name), change, dim)
                setattr(changed, field.name, value)
        return changed


def _clone(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    return tensor.clone()


def _change_tensors(value: object, change: Change, dim: int) -> object:
    """A field's value with ``change`` applied to all tensors in it."""
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
    """``mine`` filled with the values of ``other`` if both are tensors, else a copy."""
    if isinstance(mine, State) and type(mine) is type(other):
        mine.load(other)
        return mine
    if isinstance(mine, torch.Tensor) and isinstance(other, torch.Tensor):
        assert mine.shape == other.shape, "a program reads and writes the memory of its state"
        return mine.copy_(other)
    # Element by element, so that each tensor stays where programs expect it.
    if isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other):
        return [_loaded(*pair) for pair in zip(mine, other, strict=True)]
    return _change_tensors(other, _clone, 0)

"""The cached state of a walk along a grid: an explicit value, never hidden in a module."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch

S = TypeVar("S", bound="State")


@dataclasses.dataclass
class State:
    """Base of the states that :meth:`DensityModel.step` takes and returns.

    Subclasses are dataclasses whose fields hold tensors, or lists and dictionaries of them. The
    images of the batch lie along dimension 0, or along the dimension that ``batch_dims`` names for
    a field. Fields named in ``shared`` (weights laid out for stepping) do not depend on the batch
    and are never copied; fields named in ``derived`` are made of the others when they are needed,
    and are None in a copy. A step may update tensors in place: the state passed in is spent.
    """

    batch_dims: ClassVar[dict[str, int]] = {}
    shared: ClassVar[frozenset[str]] = frozenset()
    derived: ClassVar[frozenset[str]] = frozenset()

    def clone(self: S) -> S:
        """A copy that steps taken on this state do not touch."""
        return self._map(lambda tensor, dim: tensor.clone())

    def select(self: S, rows: torch.Tensor) -> S:
        """The state of some images of the batch, in the given order, repeats allowed. ``rows`` is
        ``int64 [m]``."""
        return self._map(lambda tensor, dim: tensor.index_select(dim, rows.to(tensor.device)))

    def load(self, other: State) -> None:
        """Take over what another state of the same shape holds, in this one's memory; weights and
        what is derived stay, so that programs written for this state serve again."""
        for f in dataclasses.fields(self):
            if f.name not in self.shared | self.derived:
                setattr(self, f.name, _loaded(getattr(self, f.name), getattr(other, f.name)))

    def _map(self: S, change: Callable[[torch.Tensor, int], torch.Tensor]) -> S:
        changed = copy.copy(self)
        for f in dataclasses.fields(self):
            if f.name in self.derived:
                setattr(changed, f.name, None)
            elif f.name not in self.shared:
                setattr(
                    changed,
                    f.name,
                    _map(getattr(self, f.name), change, self.batch_dims.get(f.name, 0)),
                )
        return changed


def _map(value: Any, change: Callable[[torch.Tensor, int], torch.Tensor], dim: int) -> Any:
    if isinstance(value, State):
        return value._map(change)
    if isinstance(value, torch.Tensor):
        return change(value, dim)
    if isinstance(value, list):
        return [_map(item, change, dim) for item in value]
    if isinstance(value, dict):
        return {key: _map(item, change, dim) for key, item in value.items()}
    return value


def _loaded(mine: Any, other: Any) -> Any:
    """``mine`` with the values of ``other`` where both are tensors, else a copy of ``other``."""
    if isinstance(mine, State) and type(mine) is type(other):
        mine.load(other)
        return mine
    if isinstance(mine, torch.Tensor) and isinstance(other, torch.Tensor):
        assert mine.shape == other.shape, "a program reads and writes the memory of its state"
        return mine.copy_(other)
    if isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other):
        return [_loaded(*pair) for pair in zip(mine, other, strict=True)]
    return _map(other, lambda tensor, dim: tensor.clone(), 0)

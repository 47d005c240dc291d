"""What programs are made of: weights, operands on fixed memory, operations. See
``tessella.nn.stepping.program``."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

CODES = ("linear", "map", "add", "norm", "rotate", "attend", "lookup", "cell")
THEN = ("", "relu", "silu", "elu", "concat-elu", "gate", "glu", "swiglu")
"""What follows a product. The last three take outputs in pairs, the first half ``a`` and the second
half ``b``."""
PAIRS = frozenset({"gate", "glu", "swiglu"})


class Matrix:
    """Weights ``[inputs, outputs]``, and the same packed for the kernel when it asks.

    Args:
        weight: the weights, of any layout; torch goes fastest where either dimension is contiguous.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight.detach()
        self._by_inputs: torch.Tensor | None = None
        self._packed: dict[tuple[bool, int], torch.Tensor] = {}

    def by_inputs(self) -> torch.Tensor:
        """The weights of each input as neighbours in memory."""
        if self._by_inputs is None:
            self._by_inputs = self.weight.contiguous()
        return self._by_inputs

    def packed(self, pairs: bool, lane_bytes: int) -> torch.Tensor:
        """Panels ``[panels, inputs, 2, lanes]``; in pairs, a panel holds outputs ``a`` and their
        ``b``."""
        if (pairs, lane_bytes) not in self._packed:
            lanes = lane_bytes // self.weight.element_size()
            halves = self.weight.chunk(2, dim=1) if pairs else (self.weight,)
            whole = lanes if pairs else 2 * lanes
            padded = [_padded(half, whole).unflatten(1, (-1, whole)) for half in halves]
            panels = torch.stack(padded, dim=2) if pairs else padded[0].unflatten(2, (2, lanes))
            self._packed[pairs, lane_bytes] = panels.transpose(0, 1).contiguous()
        return self._packed[pairs, lane_bytes]


def _padded(weight: torch.Tensor, multiple: int) -> torch.Tensor:
    """With columns of zeros up to a multiple."""
    missing = -weight.shape[1] % multiple
    return F.pad(weight, (0, missing)) if missing else weight


class Moving:
    """An operand that moves along memory.

    Args:
        start: where it is when the variable is 0.
        by: the variable's name.
        step: numbers it moves on as the variable grows by one.
    """

    def __init__(self, start: torch.Tensor, by: str, step: int) -> None:
        self.start, self.by, self.step = start, by, step
        self._views: dict[int, torch.Tensor] = {}

    def at(self, value: int) -> torch.Tensor:
        """The operand for a value of the variable, a view."""
        view = self._views.get(value)
        if view is None:
            start = self.start
            offset = start.storage_offset() + self.step * value
            view = self._views[value] = start.as_strided(start.shape, start.stride(), offset)
        return view

    def upto(self, size: int) -> Moving:
        """The first ``size`` numbers of each row of the operand."""
        return Moving(self.start[..., :size], self.by, self.step)


def along(memory: torch.Tensor, by: str, first: int = 0, every: int = 1, count: int = 1) -> Moving:
    """``count`` neighbouring places from ``first + every * value`` on of
    ``memory [batch, places, size]``, side by
    side: ``[batch, count * size]``."""
    assert count == 1 or memory.stride(1) == memory.shape[2]
    return Moving(memory[:, first : first + count].flatten(1), by, every * memory.stride(1))


def windows(memory: torch.Tensor, count: int, first: int = 0, every: int = 1) -> torch.Tensor:
    """All runs of ``count`` neighbouring places of ``memory [batch, places, size]``, from ``first``
    on, ``every``
    apart: ``[batch, runs, count * size]``, a view."""
    size, places = memory.shape[2], memory[:, first:]
    assert memory.stride(1) == size
    runs = places.unfold(1, count, every)
    return places.as_strided((*runs.shape[:2], count * size), (*runs.stride()[:2], 1))


Operand = torch.Tensor | Moving


@dataclass
class Operation:
    """One operation; see the methods of :class:`Program`."""

    code: str
    out: Operand
    x: Operand
    y: Operand | None = None
    z: Operand | None = None
    then: str = ""
    weight: Matrix | None = None
    heads: int = 1
    groups: int = 1
    number: float = 0.0
    by: str = ""
    room: torch.Tensor | None = None
    """Memory for sums that are not the result, ``[rows, outputs]``; the runners that need it make
    it."""
    halved: torch.Tensor | None = None
    """The weights in the layout of which torch takes two halves, where that is faster."""

    @property
    def size(self) -> int:
        """Numbers in a row of the result, before it is joined by that of the negatives."""
        size = (self.out.start if isinstance(self.out, Moving) else self.out).shape[-1]
        return size // 2 if self.then == "concat-elu" else size


@dataclass
class Work:
    """Operations in their order, and what they have in common.

    Args:
        batch: images.
        variables: what the walk moves.
        like: a tensor of the type and on the device of all others.
        places: places of each image that are worked on at once; 0 for one, whose operands are
            ``[batch, size]``.
    """

    batch: int
    variables: tuple[str, ...]
    like: torch.Tensor
    places: int = 0
    operations: list[Operation] = field(default_factory=list)

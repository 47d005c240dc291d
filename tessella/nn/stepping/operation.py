"""Weights and operations, the building blocks of programs (``tessella.nn.stepping.program``).

:data:`OPERATIONS` and :data:`ACTIVATIONS` are the only lists of what a program can do. The records
of the compiled kernel refer to positions in them. The kernel exports its own lists, and
``tessella.nn.stepping.compiled`` compares them with these when it loads the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from tessella.nn.integer.matrix import IntegerMatrix
from tessella.nn.stepping.compact import compacted
from tessella.nn.stepping.memory import Operand, start_of

OPERATIONS = ("linear", "map", "add", "norm", "rotate", "attend", "lookup", "cell", "product")
"""Kinds of operation; each is a method of :class:`tessella.nn.stepping.program.OperationWriter`."""

ACTIVATIONS = ("", "relu", "silu", "elu", "concat-elu", "gate", "glu", "swiglu")
"""Activation functions; the empty name is the identity."""

PAIRED = frozenset({"gate", "glu", "swiglu"})
"""Gated activations: they read the first half of their input as ``a`` and the second half as
``b``, and their result is half as wide."""


class Matrix:
    """Weights of a linear operation, in the memory layout that a runner asks for.

    Most layers rearrange their weights for a step, and large ones should not be held once more than
    needed. So what the kernel has packed is kept in that form alone, and :attr:`weight` unpacks it
    if anybody asks.

    Args:
        weight: ``[inputs, outputs]``, of any layout; torch is fastest if either dimension is
            contiguous.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self.shape = weight.shape
        """Inputs and outputs."""
        self.largest_input: float | None = None
        """If set, runs of programs raise it to the largest absolute input of the product."""
        self._weight: torch.Tensor | None = weight.detach()
        self._by_inputs: torch.Tensor | None = None
        # Keyed by `paired` and `lane_bytes`: several operations may share a matrix.
        self._panels: dict[tuple[bool, int], Panels] = {}

    @property
    def weight(self) -> torch.Tensor:
        """The weights, ``[inputs, outputs]``; unpacked integers are theirs to rounding."""
        if self._weight is None:
            (paired, _), panels = next(iter(self._panels.items()))
            self._weight = panels.unpacked(paired, self.shape[1])
        return self._weight

    def by_inputs(self) -> torch.Tensor:
        """The weights ``[inputs, outputs]``, with the weights of one input contiguous."""
        if self._by_inputs is None:
            self._by_inputs = self.weight.contiguous()
        return self._by_inputs

    def packed(self, paired: bool, lane_bytes: int) -> torch.Tensor:
        """The weights in the panels of the kernel: ``[panels, inputs, 2, lanes]``.

        Args:
            paired: whether a gated activation follows. Then a panel holds ``lanes`` outputs ``a``
                and the matching outputs ``b``; otherwise ``2 * lanes`` adjacent outputs.
            lane_bytes: size of a vector register in bytes.
        """
        return _pack(self.weight, paired, lane_bytes // self.weight.element_size())

    def panels(self, paired: bool, lane_bytes: int) -> Panels:
        """The panels of :meth:`packed` in the most compact form that holds these weights.

        Arguments as of :meth:`packed`.
        """
        if (paired, lane_bytes) not in self._panels:
            self._panels[paired, lane_bytes] = self._compact(paired, lane_bytes)
            self._weight = None
        return self._panels[paired, lane_bytes]

    def _compact(self, paired: bool, lane_bytes: int) -> Panels:
        compact = compacted(self.weight)
        if compact is None:
            return Panels("whole", self.packed(paired, lane_bytes), None)
        # As many lanes as float32 has, whatever the weights are stored as.
        lanes = lane_bytes // self.weight.element_size()
        scales = None
        if compact.scales is not None:
            scales = _pack(compact.scales, paired, lanes)
        return Panels(compact.storage, _pack(compact.values, paired, lanes), scales)


@dataclass(frozen=True)
class Panels:
    """Packed weights as the kernel reads them."""

    storage: str
    """A name in :data:`~tessella.nn.stepping.compact.STORAGES`."""
    weights: torch.Tensor
    """``[panels, inputs, 2, lanes]``."""
    scales: torch.Tensor | None
    """What the weights of each output are multiplied by: ``[panels, 1, 2, lanes]``."""

    def unpacked(self, paired: bool, outputs: int) -> torch.Tensor:
        """The weights ``[inputs, outputs]`` that :meth:`Matrix.packed` has packed."""
        values = _unpack(self.weights, paired, outputs)
        if self.storage == "bfloat16":
            return values.view(torch.bfloat16).float()
        if self.scales is not None:
            return values * _unpack(self.scales, paired, outputs)
        return values


Weights = Matrix | IntegerMatrix
"""Weights of a linear operation: real numbers, or the integers of an exact twin."""


def _pack(weight: torch.Tensor, paired: bool, lanes: int) -> torch.Tensor:
    """``[inputs, outputs]`` to ``[panels, inputs, 2, lanes]``, see :meth:`Matrix.packed`."""
    if paired:
        a, b = weight.chunk(2, dim=1)
        # Each [inputs, panels, lanes], then [inputs, panels, 2, lanes].
        panels = torch.stack([_split(a, lanes), _split(b, lanes)], dim=2)
    else:
        # [inputs, panels, 2, lanes]
        panels = _split(weight, 2 * lanes).unflatten(2, (2, lanes))
    # The kernel reads a panel from its first input to its last, so make that contiguous.
    return panels.transpose(0, 1).contiguous()


def _unpack(panels: torch.Tensor, paired: bool, outputs: int) -> torch.Tensor:
    """``[panels, inputs, 2, lanes]`` to ``[inputs, outputs]``: the reverse of :func:`_pack`."""
    if not paired:
        return panels.transpose(0, 1).flatten(1)[:, :outputs]
    halves = []
    for half in panels.unbind(2):
        halves.append(half.transpose(0, 1).flatten(1)[:, : outputs // 2])
    return torch.cat(halves, dim=1)


def _split(weight: torch.Tensor, size: int) -> torch.Tensor:
    """``[inputs, outputs]`` to ``[inputs, parts, size]``, padded with zeros."""
    # The kernel computes whole panels, and discards the padded outputs.
    missing = -weight.shape[1] % size
    padded = F.pad(weight, (0, missing)) if missing else weight
    return padded.unflatten(1, (-1, size))


@dataclass
class Operation:
    """One operation of a program.

    What ``x``, ``y`` and ``z`` mean depends on the operation, see the methods of
    :class:`tessella.nn.stepping.program.OperationWriter`.
    """

    name: str
    out: Operand
    x: Operand
    y: Operand | None = None
    z: Operand | None = None
    activation: str = ""
    weight: Weights | None = None
    heads: int = 1
    groups: int = 1
    epsilon: float = 0.0
    known: str = ""
    """The variable that counts the places that attention looks at, or the inputs of a product."""
    count: str = ""
    """The variable that counts the outputs of a product."""
    sums: torch.Tensor | None = None
    """Scratch memory for a product before its activation, ``[rows, outputs]``; runners that need
    it allocate it."""
    split_weight: torch.Tensor | None = None
    """Set where multiplying by two halves of the weights is faster: the weights in the layout for
    that."""

    @property
    def size(self) -> int:
        """Length of a vector of the result; for ``concat-elu``, the length of either half."""
        # The shape is the same wherever a moving operand is.
        out = start_of(self.out)
        if self.activation == "concat-elu":
            return out.shape[-1] // 2
        return out.shape[-1]

    @property
    def operands(self) -> tuple[Operand | None, ...]:
        """The result and the inputs, in the order of the kernel's records."""
        return (self.out, self.x, self.y, self.z)


@dataclass
class Work:
    """A sequence of operations, and the facts that all of them share.

    Args:
        batch: number of images.
        variables: names of the variables of the walk.
        like: any tensor of the type and on the device that all operands have.
        places: places of each image that are worked on at once, as ``[batch, places, size]``; 0
            for a single place, whose operands are ``[batch, size]``.
        operations: in the order in which they run.
    """

    batch: int
    variables: tuple[str, ...]
    like: torch.Tensor
    places: int = 0
    operations: list[Operation] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Number of vectors that each operation works on."""
        return self.batch * max(1, self.places)

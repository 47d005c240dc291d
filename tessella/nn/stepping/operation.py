"""What programs are made of: packed weights and operations. See ``tessella.nn.stepping.program``.

:data:`OPERATIONS` and :data:`ACTIVATIONS` are the only lists of what a program can do. A number in
a record of the compiled kernel is a position in them; the kernel exports its own names, and
``tessella.nn.stepping.compiled`` compares them when it is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from tessella.nn.stepping.memory import Moving, Operand

OPERATIONS = ("linear", "map", "add", "norm", "rotate", "attend", "lookup", "cell")
"""Each is a method of :class:`tessella.nn.stepping.program.OperationWriter`."""

ACTIVATIONS = ("", "relu", "silu", "elu", "concat-elu", "gate", "glu", "swiglu")
"""What may follow a product; the empty name is the identity."""

PAIRED = frozenset({"gate", "glu", "swiglu"})
"""Activations of outputs in pairs: the first half of a product's outputs are ``a``, the second half
``b``, and the result is half as wide."""


class Matrix:
    """Weights ``[inputs, outputs]``, also packed for the kernel when it asks for that.

    Args:
        weight: the weights, of any layout; torch goes fastest where either dimension is contiguous.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight.detach()
        self._by_inputs: torch.Tensor | None = None
        # Keyed by paired and lane_bytes: a matrix may serve operations of both kinds.
        self._packed: dict[tuple[bool, int], torch.Tensor] = {}

    def by_inputs(self) -> torch.Tensor:
        """The weights with those of one input next to each other in memory."""
        if self._by_inputs is None:
            self._by_inputs = self.weight.contiguous()
        return self._by_inputs

    def packed(self, paired: bool, lane_bytes: int) -> torch.Tensor:
        """The weights in the panels that the kernel multiplies by:
        ``[panels, inputs, 2, lanes]``.

        Args:
            paired: a panel holds ``lanes`` outputs ``a`` and then their ``b``; else
                ``2 * lanes`` neighbouring outputs.
            lane_bytes: bytes of a vector register.
        """
        if (paired, lane_bytes) not in self._packed:
            self._packed[paired, lane_bytes] = self._pack(paired, lane_bytes)
        return self._packed[paired, lane_bytes]

    def _pack(self, paired: bool, lane_bytes: int) -> torch.Tensor:
        lanes = lane_bytes // self.weight.element_size()
        if paired:
            a, b = self.weight.chunk(2, dim=1)
            # Each [inputs, panels, lanes], then [inputs, panels, 2, lanes].
            panels = torch.stack([_split(a, lanes), _split(b, lanes)], dim=2)
        else:
            # [inputs, panels, 2, lanes]
            panels = _split(self.weight, 2 * lanes).unflatten(2, (2, lanes))
        # A panel is read from its first input to its last: its numbers become neighbours.
        return panels.transpose(0, 1).contiguous()


def _split(weight: torch.Tensor, size: int) -> torch.Tensor:
    """``[inputs, outputs]`` to ``[inputs, parts, size]``, with zeros after the last output."""
    # The kernel computes whole panels, and stores only the outputs that are there.
    missing = -weight.shape[1] % size
    padded = F.pad(weight, (0, missing)) if missing else weight
    return padded.unflatten(1, (-1, size))


@dataclass
class Operation:
    """One operation; the methods of :class:`tessella.nn.stepping.program.OperationWriter` say what
    ``x``, ``y`` and ``z`` are."""

    name: str
    out: Operand
    x: Operand
    y: Operand | None = None
    z: Operand | None = None
    activation: str = ""
    weight: Matrix | None = None
    heads: int = 1
    groups: int = 1
    epsilon: float = 0.0
    known: str = ""
    """Of attention: the variable that counts the places it looks at."""
    sums: torch.Tensor | None = None
    """Memory for a product that an activation follows, ``[rows, outputs]``; the runners that need
    it make it."""
    halved: torch.Tensor | None = None
    """The weights in the layout in which torch multiplies two halves, where that is faster."""

    @property
    def size(self) -> int:
        """Length of a vector of the result; of ``concat-elu``, of either half."""
        # Moving does not change the shape.
        out = self.out.start if isinstance(self.out, Moving) else self.out
        if self.activation == "concat-elu":
            return out.shape[-1] // 2
        return out.shape[-1]

    @property
    def operands(self) -> tuple[Operand | None, ...]:
        """Result and inputs, in the order of the kernel's records."""
        return (self.out, self.x, self.y, self.z)


@dataclass
class Work:
    """Operations in their order, and what they have in common.

    Args:
        batch: images.
        variables: names of what the walk moves.
        like: a tensor of the type and on the device of all others.
        places: places of each image that are worked on at once; 0 for one, whose operands are
            ``[batch, size]``.
    """

    batch: int
    variables: tuple[str, ...]
    like: torch.Tensor
    places: int = 0
    operations: list[Operation] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Vectors that each operation works on."""
        return self.batch * max(1, self.places)

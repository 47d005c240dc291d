"""The constants of an exact twin, in the order in which the layers of its model ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from tessella.nn.integer.matrix import IntegerMatrix


@dataclass
class IntegerConstants:
    """All numbers that an exact twin was made from.

    Layers always ask for memory in the same order, so a list is enough to find each constant again.
    """

    kept: list[torch.Tensor] = field(default_factory=list)
    """What memory holds at the start of an image, ``int32 [classes + 1, ...]``: a row for each
    class, and the last for no class."""
    tables: list[torch.Tensor] = field(default_factory=list)
    """Other tensors, ``int32``."""
    matrices: list[IntegerMatrix] = field(default_factory=list)
    """Weights of linear operations."""

    def on(self, device: torch.device) -> IntegerConstants:
        """The same constants on a device; these themselves if they are there."""
        if all(tensor.device == device for tensor in (*self.kept, *self.tables)):
            return self
        moved = IntegerConstants()
        moved.kept = [tensor.to(device) for tensor in self.kept]
        moved.tables = [tensor.to(device) for tensor in self.tables]
        # Matrices copy what they need to a device by themselves.
        moved.matrices = self.matrices
        return moved

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors, with names under which they are saved."""
        for index, tensor in enumerate(self.kept):
            yield f"kept.{index}", tensor
        for index, tensor in enumerate(self.tables):
            yield f"tables.{index}", tensor
        for index, matrix in enumerate(self.matrices):
            yield f"matrices.{index}.weight", matrix.weight
            yield f"matrices.{index}.output_shift", matrix.output_shift
            yield f"matrices.{index}.input_shift", torch.tensor(matrix.input_shift)

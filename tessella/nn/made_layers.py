"""The hidden layers of a masked autoencoder in a step: each unit once, when its inputs are known.

A unit of degree ``d`` sees the first ``d`` places, so it is computed when place ``d`` is predicted,
and stays. Units are sorted by degree: those that are computed at a place are then neighbours, and
those that are known come first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tessella.nn.sequence_step import SequenceStep
from tessella.nn.stepping.memory import Moving, Operand


class UnitLayer:
    """The units of one hidden layer, sorted by degree.

    Args:
        name: a name for its variables, unlike that of any other layer.
        degrees: ``int64 [units]``.
        places: number of places.
    """

    def __init__(self, name: str, degrees: torch.Tensor, places: int) -> None:
        self.order = degrees.argsort(stable=True)
        """For each unit its index before sorting, ``int64 [units]``."""
        # [places]: how many units have that degree. No unit has degree 0.
        counts = degrees.bincount(minlength=places)[:places]
        ends = counts.cumsum(0)
        self._most = max(1, int(counts.max()))
        self._first = f"first-{name}"
        self._count = f"count-{name}"
        self.known = f"known-{name}"
        """Name of the variable that counts the units known at a place."""
        self.variables: dict[str, Sequence[int]] = {
            self._first: (ends - counts).tolist(),
            self._count: counts.tolist(),
            self.known: ends.tolist(),
        }
        """The values of the layer's variables at every place."""

    def sorted_inputs(self, weight: torch.Tensor) -> torch.Tensor:
        """Weights ``[..., units]`` of these units, in their order."""
        # This is much faster than indexing.
        return weight.gather(-1, self.order.expand(weight.shape))

    def write(
        self,
        step: SequenceStep,
        x: Operand,
        known: str,
        weight: torch.Tensor,
        bias: torch.Tensor,
    ) -> Operand:
        """Append the units that can be computed at a place.

        Args:
            step: the step to write to, with the layer's variables.
            x: the inputs of the layer, ``[batch, inputs]``.
            known: name of the variable that counts the inputs known.
            weight: ``[units, inputs]``; units and inputs in the order in which they become known.
            bias: ``[batch, units]``, in the same order.

        Returns:
            The units, ``[batch, units]``.
        """
        # All windows of units have the size of the largest, so the last ones reach beyond the end.
        weights = step.memory.table(F.pad(weight, (0, 0, 0, self._most)))
        units = step.memory.keep(F.pad(bias, (0, self._most)))
        rows = Moving(weights[: self._most].T, self._first, weights.stride(0))
        # Until they are computed, units hold their bias.
        new = Moving(units[:, : self._most], self._first, 1)
        step.every.product(x, rows, new, new, "silu", known, self._count)
        return units[:, : len(self.order)]

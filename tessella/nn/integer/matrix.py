"""Integer weights of a linear operation (``docs/arithmetic.md``, "Matrices")."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

INPUT_LIMIT = 8191
"""Largest absolute value of an input of a matrix, after its input shift."""

WEIGHT_LIMIT = 32767
"""Largest absolute value of a weight."""


@dataclass
class IntegerMatrix:
    """Weights, and the shifts before and after the product."""

    weight: torch.Tensor
    """``int16 [inputs, outputs]``."""
    input_shift: int
    """How many bits the inputs are shifted to the right."""
    output_shift: torch.Tensor
    """How many bits each sum is shifted to the right: ``int32 [outputs]``."""
    wide: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False)
    """The weights in float64, for products in torch, by device."""
    shifts: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict, repr=False
    )
    """Half a unit of each output before its shift, and the shift, int64, by device."""
    packed: dict[tuple[bool, int], torch.Tensor] = field(default_factory=dict, repr=False)
    """The weights in the panels of the kernel, keyed by whether outputs come in pairs and by the
    size of a vector register in bytes."""

    def half_and_shift(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """What to add to each sum before its shift, and the shift: ``int64 [outputs]`` each."""
        if device not in self.shifts:
            shift = self.output_shift.to(device, torch.int64)
            self.shifts[device] = (torch.ones_like(shift) << (shift - 1), shift)
        return self.shifts[device]

    def in_float64(self, device: torch.device) -> torch.Tensor:
        """The weights in float64, in which sums below 2^53 are exact: ``[inputs, outputs]``."""
        if device not in self.wide:
            self.wide[device] = self.weight.to(device, torch.float64)
        return self.wide[device]

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
    units: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False)
    """What the sums are multiplied by in torch, in float64, by device."""
    packed: dict[tuple[bool, int], torch.Tensor] = field(default_factory=dict, repr=False)
    """The weights in the panels of the kernel, keyed by whether outputs come in pairs and by the
    size of a vector register in bytes."""

    @property
    def shape(self) -> torch.Size:
        """Inputs and outputs."""
        return self.weight.shape

    def unit(self, device: torch.device) -> torch.Tensor:
        """``2^-shift`` of each output: ``float64 [outputs]``."""
        if device not in self.units:
            # A quotient is exact where exp2 may be off in the last digit.
            shift = self.output_shift.to(device, torch.int64)
            self.units[device] = 1.0 / (torch.ones_like(shift) << shift).double()
        return self.units[device]

    def in_float64(self, device: torch.device) -> torch.Tensor:
        """The weights in float64, in which sums below 2^53 are exact: ``[inputs, outputs]``."""
        if device not in self.wide:
            self.wide[device] = self.weight.to(device, torch.float64)
        return self.wide[device]

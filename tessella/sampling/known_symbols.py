"""The part of each image that a completion keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tessella.errors import InputError
from tessella.grid import to_tensor
from tessella.models.density_model import DensityModel


@dataclass(frozen=True)
class KnownSymbols:
    """Symbols of ``n`` images, and where they are known."""

    x: torch.Tensor
    """Symbols, 0 where they are not known: ``int64 [n, symbols]``."""
    known: torch.Tensor
    """``bool [n, symbols]``."""

    @classmethod
    def check(cls, model: DensityModel, x: object, known: object) -> KnownSymbols:
        """Symbols and mask as a caller gives them.

        Args:
            x: symbols ``[n, height, width, channels]``; what is not known is ignored.
            known: ``bool [height, width]``, or ``bool [n, height, width, channels]``.

        Raises:
            InputError: for another shape or type, or a known symbol out of range.
        """
        if known is None or x is None:
            raise InputError("completion needs both: x, the symbols, and known, where to keep them")
        # On the model's device from the start: masking is done there.
        grid = model.grid
        mask = to_tensor("known", known).to(model.device)
        symbols = to_tensor("x", x).to(model.device)
        if mask.dtype != torch.bool:
            raise InputError(f"known must be boolean, got {mask.dtype}: write known.bool()")
        # A mask of one image's pixels serves all images and channels.
        if tuple(mask.shape) == (grid.height, grid.width) and symbols.dim() == 4:
            mask = mask[None, :, :, None].expand(symbols.shape)
        if symbols.shape != mask.shape:
            raise InputError(
                f"known must have shape [{grid.height}, {grid.width}] or that of x, "
                f"{list(symbols.shape)}, got {list(mask.shape)}"
            )
        if not symbols.is_floating_point():
            # What stands in unknown places may be anything, so it is not checked.
            symbols = symbols.masked_fill(~mask, 0)
        return cls(grid.check(symbols).flatten(1), mask.flatten(1))

    def __len__(self) -> int:
        return len(self.x)

    def images(self, part: range) -> KnownSymbols:
        """The part of some images, numbered consecutively."""
        return KnownSymbols(self.x[part.start : part.stop], self.known[part.start : part.stop])

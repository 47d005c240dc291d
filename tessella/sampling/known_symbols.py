"""The symbols that a completion keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tessella.errors import InputError
from tessella.grid import to_tensor
from tessella.models.density_model import DensityModel


@dataclass(frozen=True)
class KnownSymbols:
    """The known symbols of ``n`` images."""

    x: torch.Tensor
    """The symbols, with 0 for unknown ones: ``int64 [n, symbols]``."""
    known: torch.Tensor
    """Which symbols are known: ``bool [n, symbols]``."""

    @classmethod
    def check(cls, model: DensityModel, x: object, known: object) -> KnownSymbols:
        """Check the symbols and the mask that a caller gives.

        Args:
            model: the model that completes them.
            x: symbols ``[n, height, width, channels]``; unknown ones are ignored.
            known: which symbols to keep, ``bool [height, width]`` for all images and channels, or
                ``bool [n, height, width, channels]``.

        Raises:
            InputError: for a wrong shape or type, or a known symbol out of range.
        """
        if known is None or x is None:
            raise InputError("completion needs both: x, the symbols, and known, where to keep them")
        # Move both to the model's device first, where they are combined.
        grid = model.grid
        mask = to_tensor("known", known).to(model.device)
        symbols = to_tensor("x", x).to(model.device)
        if mask.dtype != torch.bool:
            raise InputError(f"known must be boolean, got {mask.dtype}: write known.bool()")
        # A mask of pixels applies to all images and channels.
        if tuple(mask.shape) == (grid.height, grid.width) and symbols.dim() == 4:
            mask = mask[None, :, :, None].expand(symbols.shape)
        if symbols.shape != mask.shape:
            raise InputError(
                f"known must have shape [{grid.height}, {grid.width}] or that of x, "
                f"{list(symbols.shape)}, got {list(mask.shape)}"
            )
        if not symbols.is_floating_point():
            # Unknown symbols may hold any value, so hide them from the check below.
            symbols = symbols.masked_fill(~mask, 0)
        return cls(grid.check(symbols).flatten(1), mask.flatten(1))

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def none(cls, model: DensityModel, n: int) -> KnownSymbols:
        """No known symbol in any of ``n`` images."""
        x = torch.zeros(n, model.grid.symbols, dtype=torch.int64, device=model.device)
        return cls(x, torch.zeros_like(x, dtype=torch.bool))

    def along(self, order: torch.Tensor) -> KnownSymbols:
        """The known symbols by their positions in an order, ``int64 [n, symbols]``."""
        return KnownSymbols(self.x.gather(1, order), self.known.gather(1, order))

    def images(self, part: range) -> KnownSymbols:
        """The known symbols of the images whose indices are in ``part``."""
        return KnownSymbols(self.x[part.start : part.stop], self.known[part.start : part.stop])

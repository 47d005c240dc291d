"""What a completion keeps, over all grids of an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tessella import sampling
from tessella.errors import InputError
from tessella.grid import Grid
from tessella.models import DensityModel
from tessella.tokenizers.tokenizer import Symbols, as_tuple


@dataclass(frozen=True)
class KeptGrids:
    """Symbols to keep of each grid, ``[n, h, w, depth]``, and a mask of the places to keep them."""

    symbols: tuple[torch.Tensor, ...]
    known: tuple[torch.Tensor, ...]

    def rows(self, rows: slice) -> KeptGrids:
        """Those of some of the images."""
        symbols = tuple(part[rows] for part in self.symbols)
        known = tuple(part[rows] for part in self.known)
        return KeptGrids(symbols, known)

    def check(self, level: int, prior: DensityModel) -> sampling.KnownSymbols:
        """The symbols of one grid, checked."""
        return sampling.KnownSymbols.check(prior, self.symbols[level], self.known[level])


def kept_grids(x: Symbols | None, known: Symbols | None) -> KeptGrids | None:
    """The symbols to keep of each grid; None where all are drawn."""
    if x is None and known is None:
        return None
    # A mask alone would keep symbols that nobody gave.
    if x is None or known is None:
        raise InputError("completion needs both: x, the symbols, and known, where to keep them")
    return KeptGrids(as_tuple(x), as_tuple(known))


def as_mask(known: object) -> torch.Tensor:
    try:
        mask = torch.as_tensor(known)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"known must be a boolean array or tensor, got {type(known).__name__}"
        ) from error
    if mask.dtype != torch.bool:
        raise InputError(f"known must be boolean, got {mask.dtype}: write known.bool()")
    return mask


def whole_cells(known: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Pixels ``bool [n, h, w]`` to symbols ``[n, *grid.shape]``.

    A symbol is known where all pixels of its cell are.
    """
    # [n, h, w] -> [n, h', cell height, w', cell width]
    cells = known.unflatten(2, (grid.width, -1)).unflatten(1, (grid.height, -1))
    whole = cells.all(4).all(2)
    return whole[..., None].expand(len(known), *grid.shape)

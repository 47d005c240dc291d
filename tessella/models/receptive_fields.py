"""Receptive fields over pixels, as ones over symbols."""

from __future__ import annotations

import torch

from tessella.grid import Grid


def symbol_field(grid: Grid, pixels: torch.Tensor, inside: bool) -> torch.Tensor:
    """Expand a receptive field over pixels to one over symbols.

    Args:
        grid: the grid.
        pixels: ``bool [pixels, pixels]``: whether pixel ``t`` (row) sees pixel ``s`` (column).
        inside: whether a symbol also sees the earlier channels of its own pixel.

    Returns:
        ``bool [symbols, symbols]``.
    """
    c = grid.channels
    # If pixel t sees pixel s, all channels of t see all channels of s.
    field = pixels.repeat_interleave(c, 0).repeat_interleave(c, 1)
    if inside:
        # On the diagonal blocks, one for each pixel: channel t sees the channels s < t.
        earlier_channels = torch.ones(c, c).tril(-1)
        field |= torch.block_diag(*[earlier_channels] * grid.pixels).bool()
    return field

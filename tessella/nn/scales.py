"""Maps of several scales: averages over areas, and enlargement to the full size.

Tian et al. 2024 ("VAR"), algorithms 1 and 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def pooled(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Averages over areas: ``[n, features, h, w]`` to ``[n, features, *size]``."""
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="area")


def enlarged(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic interpolation: ``[n, features, h, w]`` to ``[n, features, *size]``."""
    # The finest scale has the full size already.
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bicubic")

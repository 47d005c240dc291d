"""Predictions of a few neighbouring pixels at once, given all pixels before them.

A sampler that has guesses for the next pixels asks for the parameters of all of them in one call
(``tessella.sampling.windows``). For a model that is bound by reading its weights this takes little
more time than a step, because the weights are read once for all pixels of the window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

from tessella.models.condition import Condition

if TYPE_CHECKING:
    import tessella.models.density_model


class PixelWindow(ABC):
    """Makes the parameters of the pixels ``first .. first + pixels - 1`` of ``batch`` images.

    It may keep what it has computed of earlier pixels. So a walk begins with :meth:`begin` and the
    pixel 0, and a window begins at most one pixel after the last pixel before which no symbol has
    changed since the call before.

    Args:
        batch: number of images.
        pixels: how many pixels it predicts at once; at most those of the grid.
    """

    def __init__(self, batch: int, pixels: int) -> None:
        self.batch = batch
        self.pixels = pixels

    @abstractmethod
    def begin(self, condition: Condition) -> None:
        """Begin new images.

        Args:
            condition: condition of each image, as :meth:`DensityModel.condition` returns it.
        """

    @abstractmethod
    def parameters(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """Parameters of the pixels of the window, each given all pixels before it.

        Args:
            x: all symbols, ``int64 [batch, height, width, channels]``; what follows the window is
                not looked at.
            first: index of the first pixel of the window, which ends within the grid.

        Returns:
            The argument of :meth:`Head.__call__` for a grid of one row of ``pixels``
            pixels.
        """


class WholeGridWindow(PixelWindow):
    """A window by a forward pass over the whole grid: slow, but simple and correct.

    Args:
        model: a density model.
        batch, pixels: see :class:`PixelWindow`.
    """

    def __init__(
        self, model: tessella.models.density_model.DensityModel, batch: int, pixels: int
    ) -> None:
        super().__init__(batch, pixels)
        self._model = model

    def begin(self, condition: Condition) -> None:
        self._condition = condition

    def parameters(self, x: torch.Tensor, first: int) -> torch.Tensor:
        grid = self._model.grid
        row = first // grid.width
        # [batch, rows, width, ...] to [batch, pixels of these rows, ...].
        from_row = self._model.head_parameters(x, self._condition, row).flatten(1, 2)
        start = first - row * grid.width
        return from_row[:, None, start : start + self.pixels]

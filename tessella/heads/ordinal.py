"""``ordinal``: a categorical whose logits share strength between neighbouring levels."""

from __future__ import annotations

import torch

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads.categorical import Categorical, CategoricalHead
from tessella.heads.head import Distribution, at_least_float32

MAX_LEVELS = 4096
"""Levels of an ordinal head: the square root of its covariance takes their cube in time, their
square in memory."""


class OrdinalHead(CategoricalHead):
    """``ordinal``: a categorical whose logits share strength between neighbouring levels.

    With parameters ``u`` the logits are ``L u``, where ``L`` is the symmetric square root of a
    covariance ``C`` between levels: ``C[i, j]`` is the sum of ``0.1 [i = j]`` and of squared
    exponentials ``exp(-(i - j)^2 / (2 l^2))`` of lengths ``l`` = 1, 4, 16, ... below a quarter of
    the levels, each length with the same share of 0.9.

    A gradient step that moves one level moves its neighbours too, near ones most (it is a step on
    the logits preconditioned by ``C``), and independent parameters make smooth logits, drawn from a
    Gaussian process over the levels. ``L`` is invertible, so every distribution over the levels is
    still expressible, as by the softmax.

    Raises:
        ConfigError: above ``MAX_LEVELS`` levels.
    """

    name = "ordinal"
    ordered = True

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        if grid.levels > MAX_LEVELS:
            raise ConfigError(
                f"the ordinal head takes at most {MAX_LEVELS:,} levels, got {grid.levels:,}: "
                "take head='categorical'"
            )
        self._roots: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, parameters: torch.Tensor) -> Distribution:
        wide = at_least_float32(parameters)
        root, _ = self._root_and_inverse(wide)
        return Categorical(_product(wide, root))

    def symbol(self, parameters: torch.Tensor) -> Distribution:
        return self(parameters)

    def parameters_from_table(self, table: torch.Tensor) -> torch.Tensor:
        _, inverse = self._root_and_inverse(table)
        return _product(table, inverse)

    def _root_and_inverse(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``L`` and its inverse ``[levels, levels]``, on the device and of the type of a tensor.

        They are computed once for each device and type.
        """
        key = (like.device, like.dtype)
        if key not in self._roots:
            # Whoever asks first may be in inference mode, whose tensors training could not use.
            with torch.inference_mode(False), torch.no_grad():
                # L = V sqrt(D) V^T where C = V D V^T. No eigenvalue is below 0.1: L has an inverse.
                values, vectors = torch.linalg.eigh(level_covariance(self.grid.levels))
                root = (vectors * values**0.5) @ vectors.T
                inverse = (vectors * values**-0.5) @ vectors.T
                self._roots[key] = (root.to(*key), inverse.to(*key))
        return self._roots[key]


def level_covariance(levels: int) -> torch.Tensor:
    """How much levels have in common, see :class:`OrdinalHead`: float64 ``[levels, levels]``, 1 on
    the diagonal."""
    # 1, 4, 16, ... as long as a quarter of the levels is longer.
    lengths = [1]
    while 4 * 4 * lengths[-1] < levels:
        lengths.append(4 * lengths[-1])
    # Squared distance of every pair of levels: [levels, levels].
    level = torch.arange(levels, dtype=torch.float64)
    distance = (level[:, None] - level) ** 2
    smooth = torch.zeros_like(distance)
    for length in lengths:
        smooth = smooth + torch.exp(-distance / (2 * length**2))
    return 0.1 * torch.eye(levels, dtype=torch.float64) + 0.9 / len(lengths) * smooth


def _product(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """``x [..., levels]`` times a symmetric matrix, in the type of ``x`` even under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ matrix

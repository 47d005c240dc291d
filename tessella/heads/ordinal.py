"""The ``ordinal`` head: a categorical whose neighbouring levels learn from each other."""

from __future__ import annotations

import torch

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads.categorical import Categorical, CategoricalHead
from tessella.heads.head import Distribution, at_least_float32

MAX_LEVELS = 4096
"""Upper limit on the levels of an ordinal head. The square root of its covariance takes cubic time
and quadratic memory."""


class OrdinalHead(CategoricalHead):
    """``ordinal``: a categorical whose neighbouring levels learn from each other.

    With parameters ``u`` the logits are ``L u``, where ``L`` is the symmetric square root of a
    covariance ``C`` between levels. ``C[i, j]`` is the sum of ``0.1 [i = j]`` and of squared
    exponentials ``exp(-(i - j)^2 / (2 l^2))`` with lengths ``l`` = 1, 4, 16, ... below a quarter of
    the levels, each length with an equal share of 0.9.

    A gradient step that moves one level also moves its neighbours, the nearest ones most: it is a
    step on the logits preconditioned by ``C``. And independent random parameters make smooth
    logits, a sample of a Gaussian process over the levels. ``L`` is invertible, so the head can
    still express any distribution over the levels.

    Args:
        grid: the grid whose symbols are modelled.

    Raises:
        ConfigError: for more than ``MAX_LEVELS`` levels.
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

    def mix(self, rows: torch.Tensor) -> torch.Tensor:
        wide = at_least_float32(rows)
        root, _ = self._root_and_inverse(wide)
        count = len(rows)
        part = root[-count:, -count:]
        if count < self.size:
            # Of two levels only one logit may be computed, and the other is zero before and after:
            # probabilities depend on the difference alone.
            part = part - root[: self.size - count, -count:]
        with torch.autocast(rows.device.type, enabled=False):
            return (part @ wide).to(rows.dtype)

    def of_mixed(self) -> OrdinalHead:
        return OrdinalHeadOfMixed(self.grid)

    def parameters_from_table(self, table: torch.Tensor) -> torch.Tensor:
        _, inverse = self._root_and_inverse(table)
        return _product(table, inverse)

    def _root_and_inverse(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``L`` and its inverse, ``[levels, levels]`` each, of the device and type of ``like``.

        They are computed once for each device and type.
        """
        key = (like.device, like.dtype)
        if key not in self._roots:
            # The first call may be in inference mode, and training could not use such tensors.
            with torch.inference_mode(False), torch.no_grad():
                # C = V D V^T, so L = V sqrt(D) V^T. No eigenvalue is below 0.1, so L is invertible.
                values, vectors = torch.linalg.eigh(level_covariance(self.grid.levels))
                root = (vectors * values**0.5) @ vectors.T
                inverse = (vectors * values**-0.5) @ vectors.T
                self._roots[key] = (root.to(*key), inverse.to(*key))
        return self._roots[key]


class OrdinalHeadOfMixed(OrdinalHead):
    """``ordinal`` for a network whose last layer applies ``L``, so that parameters are logits."""

    def __call__(self, parameters: torch.Tensor) -> Distribution:
        return Categorical(at_least_float32(parameters))

    def of_mixed(self) -> OrdinalHead:
        return self

    def parameters_from_table(self, table: torch.Tensor) -> torch.Tensor:
        return table


def level_covariance(levels: int) -> torch.Tensor:
    """Covariance between levels, see :class:`OrdinalHead`: ``float64 [levels, levels]``.

    The diagonal is 1.
    """
    # 1, 4, 16, ... below a quarter of the levels.
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

"""The linear predictor of an exact twin (``docs/arithmetic.md``, "Predictions")."""

from __future__ import annotations

import torch

from tessella.errors import ConfigError
from tessella.exact.integer_distributions import value_of
from tessella.grid import Grid
from tessella.nn.integer.constants import IntegerConstants
from tessella.nn.integer.functions import FRACTION_BITS, LIMIT, clamp, rounded, store
from tessella.nn.integer.matrix import IntegerMatrix
from tessella.nn.integer.operations import activate, multiply
from tessella.nn.linear_predictor import LOG_UNIT_SHIFT, LinearPredictor

COEFFICIENT_BITS = 24
"""Fraction bits of coefficients, of means, and of the values that they are compared with."""

UNIT_BITS = 26
"""Fraction bits of typical errors."""

INVERSE_BITS = 10
"""Fraction bits of their inverses. Errors of 2**-20 .. 2**4 have six good bits or more in both."""

LARGEST_MEAN = 2**31 - 1
"""Largest absolute value of a mean."""

MAX_LEVELS_AND_CHANNELS = 2**28
"""Upper limit on channels times levels, up to which no sum of 12 neighbours can overflow."""

TABLES = 3
"""Tables of a predictor, without the biases of its small network."""

LAYERS = 3
"""Layers of the small network."""


class IntegerPredictor(LinearPredictor):
    """A :class:`LinearPredictor` that computes with integers.

    A prediction holds, in this order: means ``[C]`` and couplings ``[C (C - 1) / 2]`` in units of
    ``2**-24``; the logarithms of the typical errors, plus 4, in units of ``2**-16``, the errors
    themselves in units of ``2**-26``, and their inverses in units of ``2**-10``, ``[C]`` each; and
    the logits ``[M]`` and log-scales ``[C, M]`` of the mixture of errors in units of ``2**-16``.

    Args:
        real: the predictor of the model. Its coefficients are not used, only its sizes.
        tables: the last of the twin's tables, as :func:`predictor_tables` makes them, and then the
            biases of the small network.
        matrices: the last of the twin's matrices, for a predictor with a small network.

    Raises:
        ConfigError: for too many levels and channels.
        ValueError: for tables or matrices of other shapes.
    """

    def __init__(
        self, real: LinearPredictor, tables: list[torch.Tensor], matrices: list[IntegerMatrix]
    ) -> None:
        # Without layers of its own: their weights are in the matrices.
        corrected = real.last.out_features if real.hidden else 0
        super().__init__(real.grid, real.components, corrected, hidden=0)
        check_sizes(real.grid)
        self.hidden = real.hidden
        self._check_shapes(real, tables, matrices)
        thresholds, coefficients, rest = (table.long() for table in tables[:TABLES])
        # The couplings to the earlier channels of a pixel are those below the diagonal.
        first = self.coefficients.shape[2]
        later, earlier = torch.tril_indices(self.grid.channels, self.grid.channels, -1)
        couplings = coefficients[:, later, first + earlier]
        self.register_buffer("thresholds", thresholds, persistent=False)
        self.register_buffer("coefficients", coefficients[..., :first], persistent=False)
        self.register_buffer("rest", torch.cat([couplings, rest], dim=1), persistent=False)
        self.register_buffer("exists", self.exists.long(), persistent=False)
        self.register_buffer(
            "values",
            value_of(torch.arange(self.grid.levels), self.grid.levels, COEFFICIENT_BITS),
            persistent=False,
        )
        self.values: torch.Tensor
        self.integer_matrices = matrices
        for layer, bias in enumerate(tables[TABLES:]):
            self.register_buffer(f"bias_{layer}", bias.long(), persistent=False)

    def _check_shapes(
        self, real: LinearPredictor, tables: list[torch.Tensor], matrices: list[IntegerMatrix]
    ) -> None:
        """Raise ValueError for constants that are not those of this predictor."""
        classes, channels, inputs = self.coefficients.shape
        rest = 3 * channels + self.components + channels * self.components
        expected: list[tuple[int, ...]] = [
            tuple(self.thresholds.shape),
            (classes, channels, inputs + channels),
            (classes, rest),
        ]
        layers = [real.first, real.second, real.last] if real.hidden else []
        expected += [(layer.out_features,) for layer in layers]
        if [tuple(table.shape) for table in tables] != expected:
            raise ValueError(f"tables of a predictor have other shapes than {expected}")
        weights = [(layer.in_features, layer.out_features) for layer in layers]
        if [tuple(matrix.weight.shape) for matrix in matrices] != weights:
            raise ValueError(f"matrices of a predictor have other shapes than {weights}")

    def _complete(
        self,
        parameters: torch.Tensor,
        known: torch.Tensor,
        classes: torch.Tensor,
        exists: torch.Tensor,
    ) -> torch.Tensor:
        prediction = self.predictions(known, classes)
        parameters = parameters.long()
        if self.hidden:
            parameters = store(parameters + self.correction(known, exists, prediction))
        return torch.cat([parameters, prediction], dim=-1)

    def predictions(self, known: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        coefficients = self.coefficients[classes]  # [..., C, inputs]
        sums = (coefficients[..., :-1] * known.flatten(-2).unsqueeze(-2)).sum(-1)
        # Levels are 2 / (levels - 1) apart on the axis of the means.
        bins = self.grid.levels - 1
        means = torch.div(2 * sums + bins // 2, bins, rounding_mode="floor")
        means = clamp(means + coefficients[..., -1], LARGEST_MEAN)
        return torch.cat([means, self.rest[classes]], dim=-1)

    def correction(
        self, known: torch.Tensor, exists: torch.Tensor, prediction: torch.Tensor
    ) -> torch.Tensor:
        hidden = self.network_inputs(known, exists, prediction)
        for layer, matrix in enumerate(self.integer_matrices):
            bias: torch.Tensor = getattr(self, f"bias_{layer}")
            hidden = (multiply(hidden, matrix) + bias).clamp_(-LIMIT, LIMIT)
            if layer < LAYERS - 1:
                hidden = activate("silu", hidden)
        return hidden.long()

    def network_inputs(
        self, known: torch.Tensor, exists: torch.Tensor, prediction: torch.Tensor
    ) -> torch.Tensor:
        c = self.grid.channels
        means = prediction[..., :c]
        log_units, _, inverses = prediction[..., c + self.pairs :][..., : 3 * c].split(c, dim=-1)
        above = self.values[known] - means.unsqueeze(-2)
        relative = in_units(above, inverses.unsqueeze(-2))
        # r / (1 + |r| / 2), rounded to the nearest integer.
        divisor = relative.abs() + (1 << 17)
        squashed = torch.div((relative << 18) + divisor, 2 * divisor, rounding_mode="floor")
        flags = (exists << FRACTION_BITS).expand(*relative.shape[:-1])
        parts = [
            (squashed * exists.unsqueeze(-1)).flatten(-2),
            flags,
            store(rounded(means, COEFFICIENT_BITS - FRACTION_BITS)),
            log_units,
        ]
        return torch.cat(parts, dim=-1)


def in_units(above: torch.Tensor, inverses: torch.Tensor) -> torch.Tensor:
    """Differences in units of the typical error, as numbers of ``2**-16``: ``int64 [...]``.

    Args:
        above: differences to a mean, in units of ``2**-24``, below ``2**32``.
        inverses: inverses of the typical errors, in units of ``2**-10``; both broadcast.
    """
    return store(rounded(above * inverses, COEFFICIENT_BITS + INVERSE_BITS - FRACTION_BITS))


def integer_predictor(real: LinearPredictor, constants: IntegerConstants) -> IntegerPredictor:
    """The predictor of a twin, from the last of its tables and matrices.

    Raises:
        ConfigError: for too many levels and channels.
        ValueError: when these constants are not those of such a predictor.
    """
    layers = LAYERS if real.hidden else 0
    tables = constants.tables[-(TABLES + layers) :]
    matrices = constants.matrices[len(constants.matrices) - layers :]
    return IntegerPredictor(real, tables, matrices)


@torch.no_grad()
def predictor_tables(predictor: LinearPredictor) -> list[torch.Tensor]:
    """The real numbers behind the tables of an exact twin, each times the unit of its table.

    Returns:
        ``float64``, to be rounded: thresholds ``[kinds, BINS - 1]``; coefficients
        ``[classes, C, 12 C + 1 + C]``, of the neighbours, of a constant, and of the channels of the
        pixel itself; and ``[classes, 3 C + M + C M]``, see :class:`IntegerPredictor`.

    Raises:
        ConfigError: for too many levels and channels.
    """
    check_sizes(predictor.grid)
    c = predictor.grid.channels
    classes = predictor.classes
    # An activity is a whole number, so that comparing it with the floor is the same.
    thresholds = predictor.thresholds.double().floor().clamp(max=2.0**31 - 1)
    # Neighbours count in steps of a level, on an axis where the levels span [0, 2].
    coefficients = predictor.coefficients.double()
    coefficients[..., :-1] *= (predictor.grid.levels - 1) / 2.0
    couplings = coefficients.new_zeros(classes, c, c)
    later, earlier = torch.tril_indices(c, c, -1)
    couplings[:, later, earlier] = predictor.rest[:, : predictor.pairs].double()
    log_units = predictor.rest[:, predictor.pairs : predictor.pairs + c].double()
    mixture = predictor.rest[:, predictor.pairs + c :].double()
    rest = [
        (log_units + LOG_UNIT_SHIFT) * 2.0**FRACTION_BITS,
        torch.exp(log_units) * 2.0**UNIT_BITS,
        torch.exp(-log_units) * 2.0**INVERSE_BITS,
        mixture * 2.0**FRACTION_BITS,
    ]
    both = torch.cat([coefficients, couplings], dim=-1) * 2.0**COEFFICIENT_BITS
    return [thresholds, both, torch.cat(rest, dim=-1)]


def check_sizes(grid: Grid) -> None:
    """Raise ConfigError for a grid in which the sums of a prediction could overflow."""
    if grid.channels * grid.levels > MAX_LEVELS_AND_CHANNELS:
        raise ConfigError(
            f"the exact twin of a model with a predictor takes at most "
            f"{MAX_LEVELS_AND_CHANNELS:,} levels times channels, got {grid.levels:,} times "
            f"{grid.channels:,}: train one with predictor = false"
        )

"""Fits a linear predictor to images: least squares, then expectation-maximization.

All sums are taken in float64. A class of few pixels stays close to what fits all pixels of its kind
of place, and a kind of place that is hardly ever seen close to zero.
"""

from __future__ import annotations

import math

import torch

from tessella.nn.linear_predictor import NEVER, LinearPredictor

PIXELS = 1 << 20
"""Pixels that the coefficients are fitted to, at most."""

MIXTURE_PIXELS = 1 << 11
"""Pixels of a class that its mixture of errors is fitted to, at most."""

ITERATIONS = 24
"""Iterations of expectation-maximization."""

RIDGE = 2e-5
"""Penalty on the squares of the coefficients, as a share of a pixel's squared error each."""

PRIOR_PIXELS = 0.05
"""Weight with which a class is drawn to the coefficients of its kind of place, in the same unit."""

SMALLEST_WEIGHT = 1e-3
"""Smallest weight of a component: one of none would never learn."""

SMALLEST_SCALE = 0.1
"""Smallest scale of a component, in levels."""

SMALLEST_UNIT = 0.5
"""Smallest typical error, in levels: the network's corrections are in units of it."""

MEAN_TO_SCALE = 1.0 / (2.0 * math.log(2.0))
"""Scale of a logistic, as a share of its mean absolute value."""


@torch.no_grad()
def fit(predictor: LinearPredictor, images: torch.Tensor) -> None:
    """Set the coefficients, thresholds and mixtures of a predictor.

    Args:
        predictor: changed in place.
        images: symbols of any integer type, ``[n, height, width, channels]``, on any device. Of
            many images some are used, evenly spaced.
    """
    wanted = max(1, PIXELS // predictor.grid.pixels)
    if len(images) > wanted:
        images = images[torch.arange(wanted) * len(images) // wanted]
    x = images.to(predictor.coefficients.device).long()
    known = predictor.neighbours(x)
    _set_thresholds(predictor, known)
    kinds = predictor.kinds.expand(x.shape[:3]).flatten()
    classes = predictor.classes_of(known, predictor.kinds).flatten()
    members = _members(classes, predictor.classes)
    symbols = x.flatten(0, 2).double()
    inputs = _inputs(known.flatten(0, 2).double(), symbols, predictor.grid.levels)
    of_kinds = []
    for rows in _members(kinds, len(predictor.bins)):
        of_kinds.append(_least_squares(inputs[rows], predictor.grid.channels, None))
    for kind, first in enumerate(predictor.first_class.tolist()):
        for label in range(first, first + predictor.bins[kind]):
            solution = _least_squares(
                inputs[members[label]], predictor.grid.channels, of_kinds[kind]
            )
            _set_coefficients(predictor, label, solution)
    _fit_mixtures(predictor, x, known, members)
    predictor.fitted.fill_(True)


def _set_thresholds(predictor: LinearPredictor, known: torch.Tensor) -> None:
    """Choose thresholds so that the classes of a kind of place hold equally many pixels."""
    activity = predictor.activity(known)
    for kind, count in enumerate(predictor.bins):
        here = activity[:, predictor.kinds == kind].flatten().sort().values
        predictor.thresholds[kind] = NEVER
        if len(here):
            places = torch.arange(1, count) * len(here) // count
            # Between two whole numbers, so that no rounding can move an activity across.
            predictor.thresholds[kind, : count - 1] = here[places].floor() + 0.5


def _members(labels: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Indices of the elements with each label in ``range(count)``."""
    order = torch.argsort(labels, stable=True)
    return list(order.split(torch.bincount(labels, minlength=count).tolist()))


def _inputs(known: torch.Tensor, symbols: torch.Tensor, levels: int) -> torch.Tensor:
    """What predicts a channel: neighbours, a constant, and the channels of the pixel itself.

    Args:
        known: neighbours, ``[pixels, neighbours, channels]``.
        symbols: ``[pixels, channels]``.
        levels: number of levels.

    Returns:
        ``[pixels, neighbours * channels + 1 + channels]``, scaled to [0, 1].
    """
    ones = torch.ones(len(known), 1, dtype=known.dtype, device=known.device)
    scale = 1.0 / (levels - 1)
    return torch.cat([known.flatten(1) * scale, ones, symbols * scale], dim=1)


def _least_squares(
    inputs: torch.Tensor, channels: int, parent: torch.Tensor | None
) -> torch.Tensor:
    """Coefficients that predict each channel from the inputs before it.

    Args:
        inputs: see :func:`_inputs`.
        channels: number of channels.
        parent: coefficients to stay close to; None for zeros.

    Returns:
        ``[channels, inputs]``, zero for inputs that a channel does not see.
    """
    width = inputs.shape[1]
    products = inputs.T @ inputs
    solution = inputs.new_zeros(channels, width)
    penalty = RIDGE * len(inputs) + PRIOR_PIXELS
    for channel in range(channels):
        target = width - channels + channel
        # The channels of the pixel come last, in order: a channel sees those before it.
        left = products[:target, :target] + penalty * torch.eye(target).to(products)
        right = products[:target, target].clone()
        if parent is not None:
            right += penalty * parent[channel, :target]
        solution[channel, :target] = torch.linalg.solve(left, right)
    return solution


def _set_coefficients(predictor: LinearPredictor, label: int, solution: torch.Tensor) -> None:
    """Store the coefficients of a class.

    They were found for symbols scaled to [0, 1]. A prediction is scaled to [-1, 1], neighbours
    count in levels, and the channels of the pixel itself are scaled to [-1, 1] too.
    """
    channels = predictor.grid.channels
    neighbours = solution.shape[1] - channels - 1
    own = solution[:, neighbours + 1 :]
    predictor.coefficients[label, :, :-1] = (
        solution[:, :neighbours] * 2.0 / (predictor.grid.levels - 1)
    ).to(predictor.coefficients)
    constant = 2.0 * solution[:, neighbours] - 1.0 + own.sum(1)
    predictor.coefficients[label, :, -1] = constant.to(predictor.coefficients)
    couplings = [own[later, earlier] for later in range(channels) for earlier in range(later)]
    if couplings:
        predictor.rest[label, : predictor.pairs] = torch.stack(couplings).to(predictor.rest)


def _fit_mixtures(
    predictor: LinearPredictor,
    x: torch.Tensor,
    known: torch.Tensor,
    members: list[torch.Tensor],
) -> None:
    """Fit the mixture of errors of every class.

    Args:
        predictor: has its coefficients already.
        x: symbols, ``int64 [n, height, width, channels]``.
        known: their neighbours.
        members: pixels of each class.
    """
    symbols = x.flatten(0, 2)
    neighbours = known.flatten(0, 2)
    for label, rows in enumerate(members):
        if not len(rows):
            continue
        # Evenly spaced, so that they come from all images.
        count = min(len(rows), MIXTURE_PIXELS)
        chosen = rows[torch.arange(count) * len(rows) // count]
        labels = torch.full((count,), label, device=x.device)
        predictions = predictor.predictions(neighbours[chosen], labels)
        here = symbols[chosen]
        mixture = _mixture(predictor, here, _errors(predictor, predictions, here))
        predictor.rest[label, predictor.pairs :] = mixture.to(predictor.rest)


def _errors(
    predictor: LinearPredictor, predictions: torch.Tensor, symbols: torch.Tensor
) -> torch.Tensor:
    """How far each channel is above its prediction, in levels: ``float64 [pixels, channels]``."""
    half = (predictor.grid.levels - 1) / 2.0
    channels = predictor.grid.channels
    wide = predictions.double()
    values = symbols.double() / half - 1.0
    errors = []
    pair = channels
    for channel in range(channels):
        mean = wide[:, channel]
        for earlier in range(channel):
            mean = mean + wide[:, pair] * values[:, earlier]
            pair += 1
        errors.append((values[:, channel] - mean) * half)
    return torch.stack(errors, dim=1)


def _mixture(
    predictor: LinearPredictor, symbols: torch.Tensor, errors: torch.Tensor
) -> torch.Tensor:
    """What follows the couplings in a prediction: typical errors and a mixture of logistics.

    Args:
        predictor: gives the number of components and of levels.
        symbols: ``int64 [pixels, channels]``.
        errors: see :func:`_errors`.

    Returns:
        ``float64 [channels + M + channels * M]``.
    """
    m = predictor.components
    size = errors.abs()
    typical = (size.mean(0) * MEAN_TO_SCALE).clamp(min=SMALLEST_SCALE)  # [C]
    # Components of ever larger scales, from a tenth to five times the typical one.
    spread = torch.logspace(-1.0, math.log10(5.0), m, dtype=torch.float64, device=errors.device)
    scales = (typical[:, None] * spread).clamp(min=SMALLEST_SCALE)  # [C, M]
    weights = torch.full((m,), 1.0 / m, dtype=torch.float64, device=errors.device)
    for _ in range(ITERATIONS):
        joint = _log_bins(symbols, errors, scales, predictor.grid.levels).sum(1) + weights.log()
        share = torch.softmax(joint, dim=1)  # [pixels, M]
        total = share.sum(0)
        weights = (total / total.sum()).clamp(min=SMALLEST_WEIGHT)
        weights = weights / weights.sum()
        # The mean absolute value gives the scale; half a step, because bins have a width.
        found = (size.T @ share) / total.clamp(min=1e-9) * MEAN_TO_SCALE
        scales = (0.5 * scales + 0.5 * found).clamp(min=SMALLEST_SCALE)
    per_level = 2.0 / (predictor.grid.levels - 1)
    unit = (scales.log() * weights).sum(1).exp().clamp(min=SMALLEST_UNIT)
    parts = [(unit * per_level).log(), weights.log(), (scales * per_level).log().flatten()]
    return torch.cat(parts)


def _log_bins(
    symbols: torch.Tensor, errors: torch.Tensor, scales: torch.Tensor, levels: int
) -> torch.Tensor:
    """Log-probability of each error under each component: ``[pixels, channels, M]``."""
    lower = ((errors - 0.5).unsqueeze(-1)) / scales
    upper = ((errors + 0.5).unsqueeze(-1)) / scales
    # The outermost bins have only one edge.
    lower = torch.where((symbols == 0).unsqueeze(-1), -torch.inf, lower)
    upper = torch.where((symbols == levels - 1).unsqueeze(-1), torch.inf, upper)
    # Of whichever tail is the smaller one: differences near 1 would lose all digits.
    flip = lower > 0
    high = torch.where(flip, -lower, upper)
    low = torch.where(flip, -upper, lower)
    return (torch.sigmoid(high) - torch.sigmoid(low)).clamp(min=1e-30).log()

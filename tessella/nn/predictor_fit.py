"""Fits a linear predictor to images: least squares, then expectation-maximization.

Everything is computed on the CPU, so that a fit is the same whatever device the model is on. The
products of the inputs are taken in float32 and summed in float64; all else is in float64.

Classes of few pixels borrow from larger groups. The coefficients of a class stay close to those of
its kind of place, and its mixture of errors close to the shape that all errors share. What the
mixtures are fitted to are *leave-one-out* errors: how far off the prediction of a pixel would be if
that pixel had not been among those that the coefficients were fitted to. They follow from ordinary
errors and the leverages of the pixels (Allen 1974, PRESS), and keep a fit to few images from being
too sure of itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tessella.grid import Grid
from tessella.nn.linear_predictor import DIFFERENCES, NEIGHBOURS, NEVER, REACH, LinearPredictor

PIXELS = 1 << 22
"""Pixels that a predictor is fitted to, about; one image at least."""

PART = 1 << 15
"""Pixels whose products are taken at a time."""

MIXTURE_PIXELS = 1 << 11
"""Pixels of a class that its mixture of errors is fitted to, at most."""

SHAPE_PIXELS = 1 << 13
"""Pixels that the shape of all mixtures is fitted to, at most."""

SHAPE_ITERATIONS = 32
"""Iterations of expectation-maximization for the shape of all mixtures."""

ITERATIONS = 12
"""Iterations for the mixture of a class, which begins with that shape."""

RIDGE = 2e-5
"""Penalty on the squares of the coefficients, as a share of a pixel's squared error each."""

PRIOR_PIXELS = 0.05
"""Weight with which a class is drawn to the coefficients of its kind of place, in the same unit."""

TYPICAL_PIXELS = 2.0
"""Weight, in pixels, with which a typical error is drawn to that of a larger group."""

SHAPE_WEIGHT = 30.0
"""Weight, in pixels, with which a mixture is drawn to the shape of all mixtures."""

LARGEST_LEVERAGE = 0.99
"""Largest leverage of a pixel: errors of pixels that had all to say are multiplied by 100."""

SMALLEST_WEIGHT = 1e-3
"""Smallest weight of a component: one of none would never learn."""

SMALLEST_SCALE = 0.1
"""Smallest scale of a component, in levels."""

SMALLEST_UNIT = 0.5
"""Smallest typical error, in levels: the network's corrections are in units of it."""

MEAN_TO_SCALE = 1.0 / (2.0 * math.log(2.0))
"""Scale of a logistic, as a share of its mean absolute value."""


@dataclass
class Mixture:
    """A mixture of logistics around zero, shared by the channels of a pixel."""

    weights: torch.Tensor
    """``float64 [components]``, with a sum of 1."""
    scales: torch.Tensor
    """``float64 [channels, components]``."""


def images_to_use(grid: Grid, available: int) -> torch.Tensor:
    """Indices of the images that a predictor is fitted to, evenly spaced: ``int64 [n]``."""
    count = min(available, max(1, PIXELS // grid.pixels))
    return torch.arange(count) * available // count


@torch.no_grad()
def fit(predictor: LinearPredictor, images: torch.Tensor) -> None:
    """Set the coefficients, thresholds and mixtures of a predictor.

    Args:
        predictor: changed in place; it may be on any device.
        images: symbols of any integer type, ``[n, height, width, channels]``, at least one image,
            on any device. Of many images some are used, see :func:`images_to_use`.
    """
    grid = predictor.grid
    x = images[images_to_use(grid, len(images)).to(images.device)].cpu()
    source = _Inputs(grid, x)
    activity = _activity(x)
    thresholds = _thresholds(predictor, activity)
    classes = _classes(predictor, activity, thresholds)
    members = _members(classes, predictor.classes)

    counts = torch.tensor([len(rows) for rows in members], dtype=torch.float64)
    products = torch.stack([source.products(rows) for rows in members])
    kind_of = torch.repeat_interleave(torch.tensor(predictor.bins))  # int64 [classes]
    kinds = len(predictor.bins)
    kind_counts = counts.new_zeros(kinds).index_add(0, kind_of, counts)
    kind_products = products.new_zeros(kinds, *products.shape[1:]).index_add(0, kind_of, products)
    of_kinds = least_squares(kind_products, kind_counts, grid.channels)
    solutions = least_squares(products, counts, grid.channels, parents=of_kinds[kind_of])

    errors = []
    chosen = []
    for label, rows in enumerate(members):
        # Evenly spaced, so that they come from all images.
        count = min(len(rows), MIXTURE_PIXELS)
        rows = rows[torch.arange(count) * len(rows) // max(1, count)]
        inputs = source(rows).double()
        kind = kind_of[label]
        free = 1.0 - leverages(inputs, products[label], counts[label], grid.channels)
        # The coefficients of its kind of place have seen the pixel too.
        free *= 1.0 - leverages(inputs, kind_products[kind], kind_counts[kind], grid.channels)
        missed = _errors(inputs, solutions[label], grid.channels) / free
        errors.append(missed * (grid.levels - 1))
        chosen.append(rows)
    typical = _typical_errors(errors, counts, kind_of)
    symbols = [source.symbols[rows] for rows in chosen]
    mixtures = _mixtures(predictor, symbols, errors, typical)

    predictor.thresholds.copy_(thresholds)
    for label, (solution, mixture) in enumerate(zip(solutions, mixtures, strict=True)):
        _set_coefficients(predictor, label, solution)
        _set_mixture(predictor, label, mixture)
    predictor.fitted.fill_(True)


class _Inputs:
    """What predicts a channel: neighbours, a constant, and the channels of the pixel itself.

    Called with indices ``[pixels]`` of pixels of the flattened images, it gives ``float32
    [pixels, neighbours * channels + 1 + channels]``, scaled to [0, 1].

    Args:
        grid: the grid of the images.
        x: symbols, ``[n, height, width, channels]``.
    """

    def __init__(self, grid: Grid, x: torch.Tensor) -> None:
        columns = grid.width + 2 * REACH
        margins = (0, 0, REACH, REACH, REACH, 0)
        padded = F.pad(x.float() / (grid.levels - 1), margins)
        self.symbols = x.reshape(-1, grid.channels)
        self.values = padded.reshape(-1, grid.channels)
        """Of all pixels and those of the margins, ``[places, channels]``."""
        places = torch.arange(len(self.values), dtype=torch.int32).view(len(x), -1, columns)
        self.places = places[:, REACH:, REACH : REACH + grid.width].flatten()
        """The index of each pixel in :attr:`values`."""
        offsets = [row * columns + column for row, column in NEIGHBOURS]
        self.offsets = torch.tensor(offsets, dtype=torch.int32)
        self.neighbours = len(offsets) * grid.channels
        """Number of the inputs that are channels of neighbours."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        places = self.places[rows]
        around = (places[:, None] + self.offsets).flatten()
        # index_select copies whole rows, which indexing with brackets does not.
        known = self.values.index_select(0, around).view(len(rows), self.neighbours)
        ones = torch.ones(len(rows), 1)
        return torch.cat([known, ones, self.values.index_select(0, places)], dim=1)

    def products(self, rows: torch.Tensor) -> torch.Tensor:
        """The sum of the products of all pairs of inputs: ``float64 [inputs, inputs]``."""
        inputs = self.neighbours + 1 + self.values.shape[1]
        total = torch.zeros(inputs, inputs, dtype=torch.float64)
        for part in rows.split(PART):
            here = self(part)
            total += (here.T @ here).double()
        return total


def _activity(x: torch.Tensor) -> torch.Tensor:
    """The activity around each pixel, as the predictor computes it: ``int32 [n, height, width]``.

    Args:
        x: symbols, ``[n, height, width, channels]``.
    """
    height, width = x.shape[1:3]
    padded = F.pad(x.int(), (0, 0, REACH, REACH, REACH, 0))
    neighbours = []
    for row, column in NEIGHBOURS:
        rows = slice(REACH + row, REACH + row + height)
        columns = slice(REACH + column, REACH + column + width)
        neighbours.append(padded[:, rows, columns])
    total = torch.zeros(x.shape[:3], dtype=torch.int32)
    for first, second in DIFFERENCES:
        total += (neighbours[first] - neighbours[second]).abs().sum(-1, dtype=torch.int32)
    return total


def _thresholds(predictor: LinearPredictor, activity: torch.Tensor) -> torch.Tensor:
    """Thresholds between which the classes of a kind of place hold equally many pixels."""
    thresholds = torch.full(predictor.thresholds.shape, NEVER)
    kinds = predictor.kinds.cpu()
    for kind, count in enumerate(predictor.bins):
        here = activity[:, kinds == kind].flatten().sort().values
        if len(here):
            places = torch.arange(1, count) * len(here) // count
            # Between two whole numbers, so that no rounding can move an activity across.
            thresholds[kind, : count - 1] = here[places] + 0.5
    return thresholds


def _classes(
    predictor: LinearPredictor, activity: torch.Tensor, thresholds: torch.Tensor
) -> torch.Tensor:
    """The class of each pixel: ``int64 [pixels]``."""
    kinds = predictor.kinds.cpu()
    classes = torch.zeros(activity.shape, dtype=torch.int64)
    for kind, first in enumerate(predictor.first_class.tolist()):
        here = kinds == kind
        classes[:, here] = first + torch.bucketize(activity[:, here].float(), thresholds[kind])
    return classes.flatten()


def _members(labels: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Indices of the elements with each label in ``range(count)``."""
    order = torch.argsort(labels, stable=True)
    return list(order.split(torch.bincount(labels, minlength=count).tolist()))


def least_squares(
    products: torch.Tensor,
    counts: torch.Tensor,
    channels: int,
    parents: torch.Tensor | None = None,
) -> torch.Tensor:
    """Coefficients that predict each channel from the inputs before it, for groups of pixels.

    Args:
        products: sums of products of inputs, ``float64 [groups, inputs, inputs]``. The channels of
            the pixel are the last inputs, in order, and a channel sees those before it.
        counts: pixels of each group, ``float64 [groups]``.
        channels: number of channels.
        parents: coefficients to stay close to, shaped like the result; None for zeros.

    Returns:
        ``float64 [groups, channels, inputs]``, zero for inputs that a channel does not see.
    """
    width = products.shape[-1]
    solutions = products.new_zeros(len(products), channels, width)
    penalty = _penalty(counts)[:, None]
    for channel in range(channels):
        target = width - channels + channel
        right = products[:, :target, target]
        if parents is not None:
            right = right + penalty * parents[:, channel, :target]
        left = _normal_matrix(products, counts, target)
        solutions[:, channel, :target] = torch.linalg.solve(left, right)
    return solutions


def leverages(
    inputs: torch.Tensor, products: torch.Tensor, count: torch.Tensor, channels: int
) -> torch.Tensor:
    """How much the prediction of a pixel follows that pixel: ``float64 [pixels, channels]``.

    Args:
        inputs: of pixels of a group, ``float64 [pixels, inputs]``.
        products, count, channels: of that group, see :func:`least_squares`.
    """
    width = products.shape[-1]
    parts = []
    for channel in range(channels):
        target = width - channels + channel
        factor = torch.linalg.cholesky(_normal_matrix(products, count, target))
        halves = torch.linalg.solve_triangular(factor, inputs[:, :target].T, upper=False)
        parts.append(halves.square().sum(0))
    return torch.stack(parts, dim=1).clamp(max=LARGEST_LEVERAGE)


def _normal_matrix(products: torch.Tensor, counts: torch.Tensor, target: int) -> torch.Tensor:
    """The left-hand side of the normal equations of the input ``target``."""
    penalty = _penalty(counts)[..., None, None]
    return products[..., :target, :target] + penalty * torch.eye(target).to(products)


def _penalty(counts: torch.Tensor) -> torch.Tensor:
    return RIDGE * counts + PRIOR_PIXELS


def _errors(inputs: torch.Tensor, solution: torch.Tensor, channels: int) -> torch.Tensor:
    """How far each channel is above its prediction: ``float64 [pixels, channels]``."""
    return inputs[:, -channels:] - inputs @ solution.T


def _typical_errors(
    errors: list[torch.Tensor], counts: torch.Tensor, kind_of: torch.Tensor
) -> torch.Tensor:
    """The scale of the errors of each class, in levels: ``float64 [classes, channels]``.

    Args:
        errors: of some pixels of each class, in levels, ``[pixels, channels]`` each.
        counts: how many pixels each class has in all, ``[classes]``.
        kind_of: the kind of place of each class, ``[classes]``.
    """
    totals = torch.stack([part.abs().sum(0) / max(1, len(part)) for part in errors])
    totals = totals * MEAN_TO_SCALE * counts[:, None]
    everywhere = totals.sum(0) / counts.sum()
    kinds = int(kind_of.max()) + 1
    kind_totals = totals.new_zeros(kinds, totals.shape[1]).index_add(0, kind_of, totals)
    kind_counts = counts.new_zeros(kinds).index_add(0, kind_of, counts)[:, None]
    of_kinds = (kind_totals + TYPICAL_PIXELS * everywhere) / (kind_counts + TYPICAL_PIXELS)
    borrowed = TYPICAL_PIXELS * of_kinds[kind_of]
    typical = (totals + borrowed) / (counts[:, None] + TYPICAL_PIXELS)
    return typical.clamp(min=SMALLEST_SCALE)


def _mixtures(
    predictor: LinearPredictor,
    symbols: list[torch.Tensor],
    errors: list[torch.Tensor],
    typical: torch.Tensor,
) -> list[Mixture]:
    """The mixture of errors of every class, with scales in levels.

    Args:
        predictor: gives the numbers of components and of levels.
        symbols, errors: of some pixels of each class, ``[pixels, channels]`` each, in levels.
        typical: see :func:`_typical_errors`.
    """
    levels = predictor.grid.levels
    m = predictor.components
    # Components of ever larger scales, from a tenth to five times the typical one.
    spread = torch.logspace(-1.0, math.log10(5.0), m, dtype=torch.float64)
    weights = torch.full((m,), 1.0 / m, dtype=torch.float64)
    start = Mixture(weights, spread.expand(typical.shape[1], m))
    units = [typical[label].expand_as(part) for label, part in enumerate(errors)]
    all_symbols = torch.cat(symbols)
    count = min(len(all_symbols), SHAPE_PIXELS)
    some = torch.arange(count) * len(all_symbols) // count
    all_errors = torch.cat(errors)[some]
    all_units = torch.cat(units)[some]
    shape = fit_mixture(all_symbols[some], all_errors, all_units, levels, start, SHAPE_ITERATIONS)
    mixtures = []
    for label, unit in enumerate(typical):
        mixture = fit_mixture(
            symbols[label], errors[label], units[label], levels, shape, ITERATIONS
        )
        scales = (mixture.scales * unit[:, None]).clamp(min=SMALLEST_SCALE)
        mixtures.append(Mixture(mixture.weights, scales))
    return mixtures


def fit_mixture(
    symbols: torch.Tensor,
    errors: torch.Tensor,
    units: torch.Tensor,
    levels: int,
    prior: Mixture,
    iterations: int,
) -> Mixture:
    """Fit a mixture by expectation-maximization.

    Args:
        symbols: ``[pixels, channels]``.
        errors: how far each is above its prediction, in levels, ``float64 [pixels, channels]``.
        units: what the scales of the mixture are multiplied by, in levels, ``[pixels, channels]``.
        levels: number of levels.
        prior: where to begin, and what to stay close to.
        iterations: how many.
    """
    relative = errors.abs() / units
    smallest = SMALLEST_SCALE / units.amax(0)[:, None] if len(units) else 0.0
    borrowed = SHAPE_WEIGHT * prior.weights
    weights = prior.weights
    scales = prior.scales
    for _ in range(iterations):
        log_bins = _log_bins(symbols, errors, units, scales, levels)  # [pixels, channels, M]
        share = torch.softmax(log_bins.sum(1) + weights.log(), dim=1)  # [pixels, M]
        total = share.sum(0) + borrowed
        weights = (total / total.sum()).clamp(min=SMALLEST_WEIGHT)
        weights = weights / weights.sum()
        # The mean absolute value gives the scale; half a step, because bins have a width.
        found = relative.T @ share * MEAN_TO_SCALE + borrowed * prior.scales
        scales = 0.5 * scales + 0.5 * found / total
        scales = scales.clamp(min=smallest)
    return Mixture(weights, scales)


def _log_bins(
    symbols: torch.Tensor,
    errors: torch.Tensor,
    units: torch.Tensor,
    scales: torch.Tensor,
    levels: int,
) -> torch.Tensor:
    """Log-probability of each error under each component: ``[pixels, channels, M]``."""
    lower = (errors - 0.5) / units
    upper = (errors + 0.5) / units
    # The outermost bins have only one edge.
    lower = torch.where(symbols == 0, -torch.inf, lower)
    upper = torch.where(symbols == levels - 1, torch.inf, upper)
    # Of whichever tail is the smaller one: differences near 1 would lose all digits.
    flip = lower > 0
    high = torch.where(flip, -lower, upper).unsqueeze(-1) / scales
    low = torch.where(flip, -upper, lower).unsqueeze(-1) / scales
    return (torch.sigmoid(high) - torch.sigmoid(low)).clamp(min=1e-30).log()


def _set_coefficients(predictor: LinearPredictor, label: int, solution: torch.Tensor) -> None:
    """Store the coefficients of a class.

    They were found for symbols scaled to [0, 1]. A prediction is scaled to [-1, 1], neighbours
    count in levels, and the channels of the pixel itself are scaled to [-1, 1] too.
    """
    channels = predictor.grid.channels
    neighbours = solution.shape[1] - channels - 1
    own = solution[:, neighbours + 1 :]
    per_level = 2.0 / (predictor.grid.levels - 1)
    predictor.coefficients[label, :, :-1] = (solution[:, :neighbours] * per_level).to(
        predictor.coefficients
    )
    constant = 2.0 * solution[:, neighbours] - 1.0 + own.sum(1)
    predictor.coefficients[label, :, -1] = constant.to(predictor.coefficients)
    couplings = [own[later, earlier] for later in range(channels) for earlier in range(later)]
    if couplings:
        predictor.rest[label, : predictor.pairs] = torch.stack(couplings).to(predictor.rest)


def _set_mixture(predictor: LinearPredictor, label: int, mixture: Mixture) -> None:
    """Store the mixture of errors of a class, whose scales are in levels, and its typical error."""
    per_level = 2.0 / (predictor.grid.levels - 1)
    log_scales = mixture.scales.log()
    unit = (log_scales * mixture.weights).sum(1).exp().clamp(min=SMALLEST_UNIT)
    parts = [
        (unit * per_level).log(),
        mixture.weights.log(),
        (mixture.scales * per_level).log().flatten(),
    ]
    predictor.rest[label, predictor.pairs :] = torch.cat(parts).to(predictor.rest)

"""A causal linear predictor: where a classical codec of photographs ends, a network can begin.

The symbols of a pixel are predicted as linear functions of twelve known neighbours and of the
channels already known of the pixel itself. There are several sets of coefficients, and the *class*
of a pixel chooses one: it is given by the pixel's distance to the border, and by the *activity*
around it, the sum of absolute differences between neighbours. Each class also has a mixture of
logistics for what the prediction misses.

Least squares give the coefficients, and expectation-maximization the mixtures
(``tessella.nn.predictor_fit``); neither takes more than seconds. Similar predictors are at the core
of lossless codecs, see for example Weinberger et al. 2000 (LOCO-I) and Wu and Memon 1997 (CALIC).

Besides, a small network of its own sees the same neighbours relative to the prediction, in units of
the typical error, so that a bright edge of high contrast looks to it like a dark one of low
contrast. It corrects the prediction, as the model's network does: both corrections are added.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tessella.grid import Grid

NEIGHBOURS = (
    (0, -1),
    (-1, 0),
    (-1, -1),
    (-1, 1),
    (0, -2),
    (-2, 0),
    (-2, -1),
    (-2, 1),
    (-1, -2),
    (-1, 2),
    (-2, -2),
    (-2, 2),
)
"""Rows and columns of the neighbours, relative to the predicted pixel."""

LOG_UNIT_SHIFT = 4.0
"""Added to the logarithm of a typical error, which makes it a small number for photographs."""

REACH = 2
"""Largest distance of a neighbour, in rows and in columns."""

DIFFERENCES = ((0, 2), (1, 2), (1, 3), (0, 4), (1, 5))
"""The pairs of neighbours (by index) whose differences make the activity."""

BINS = 24
"""Classes of activity inside the image."""

BORDER_BINS = 4
"""Classes of activity at each kind of place near a border, of which there are far fewer pixels."""

ROW_KINDS = 3
"""The first row, the second, and all others."""

COLUMN_KINDS = 5
"""The first column, the second, those inside, the last but one, and the last."""

INSIDE = 2 * COLUMN_KINDS + 2
"""The kind of place that has all neighbours."""

NEVER = 1e30
"""A threshold that no activity reaches. Infinity would look like damage in a saved model."""


class LinearPredictor(nn.Module):
    """Predicts pixels, and how far off it will be, from pixels before them.

    Symbols are scaled to [-1, 1], as in a mixture of logistics. A *prediction* holds, for one pixel
    of ``C`` channels, in this order:

    * means ``[C]``, from the neighbours alone,
    * couplings ``[C (C - 1) / 2]``, for the pairs of channels (1, 0), (2, 0), (2, 1), ...: the mean
      of a channel is that from the neighbours plus each earlier channel times its coupling,
    * log-scales ``[C]``, the typical error of each channel,
    * logits of the weights of the mixture of errors ``[M]``, and its log-scales ``[C, M]``.

    The coefficients are buffers: they are saved with the model, and training leaves them alone. It
    does train the weights of the small network.

    Args:
        grid: the grid whose symbols are predicted.
        components: number of logistics in the mixture of errors (``M``).
        corrected: how many parameters a correction has.
        hidden: hidden units of the small network, in two layers; 0 for no such network.
    """

    def __init__(self, grid: Grid, components: int, corrected: int, hidden: int) -> None:
        super().__init__()
        self.grid = grid
        self.components = components
        self.hidden = hidden
        if hidden:
            # Of each neighbour, its channels and whether it exists; means and log-scales.
            inputs = len(NEIGHBOURS) * (grid.channels + 1) + 2 * grid.channels
            self.first = nn.Linear(inputs, hidden)
            self.second = nn.Linear(hidden, hidden)
            self.last = nn.Linear(hidden, corrected)
        c = grid.channels
        kinds = ROW_KINDS * COLUMN_KINDS
        self.bins = [BORDER_BINS] * kinds
        """Number of classes of each kind of place."""
        self.bins[INSIDE] = BINS
        self.classes = sum(self.bins)
        # Plain numbers for single places, and buffers for whole grids.
        self._first_class = [sum(self.bins[:kind]) for kind in range(kinds)]
        self._kinds = place_kinds(grid)
        self.register_buffer("first_class", torch.tensor(self._first_class), persistent=False)
        self.register_buffer("kinds", torch.tensor(self._kinds), persistent=False)
        self.register_buffer("exists", existing_neighbours(grid), persistent=False)
        self._register_indices()
        # Activities that separate the classes of a kind, padded with NEVER: [kinds, BINS - 1].
        self.register_buffer("thresholds", torch.full((kinds, BINS - 1), NEVER))
        # Of each neighbour's channels in turn, and then a constant: [classes, C, 12 C + 1].
        inputs = len(NEIGHBOURS) * c + 1
        self.register_buffer("coefficients", torch.zeros(self.classes, c, inputs))
        # What follows the means in a prediction.
        rest = self.pairs + c + components + c * components
        self.register_buffer("rest", torch.zeros(self.classes, rest))
        # Whether the coefficients come from images; until then they are a guess.
        self.register_buffer("fitted", torch.tensor(False))
        self.first_class: torch.Tensor
        self.kinds: torch.Tensor
        self.exists: torch.Tensor
        self.thresholds: torch.Tensor
        self.coefficients: torch.Tensor
        self.rest: torch.Tensor
        self.fitted: torch.Tensor
        self._set_defaults()

    def _register_indices(self) -> None:
        """Indices that a step needs, as tensors: lists would become tensors again at each pixel."""
        # Of the neighbours of the first pixel, in memory with rows and columns flattened.
        columns = self.grid.width + 2 * REACH
        places = [(REACH + row) * columns + REACH + right for row, right in NEIGHBOURS]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        minuends, subtrahends = torch.tensor(DIFFERENCES).unbind(1)
        self.register_buffer("minuends", minuends, persistent=False)
        self.register_buffer("subtrahends", subtrahends, persistent=False)
        self.places: torch.Tensor
        self.minuends: torch.Tensor
        self.subtrahends: torch.Tensor

    def _set_defaults(self) -> None:
        """Predict the mean of the pixels to the left and above, with errors of a tenth."""
        c = self.grid.channels
        for channel in range(c):
            self.coefficients[:, channel, channel] = 1.0 / (self.grid.levels - 1)
            self.coefficients[:, channel, c + channel] = 1.0 / (self.grid.levels - 1)
            self.coefficients[:, channel, -1] = -1.0
        log_scales = torch.full((c,), 0.1).log()
        self.rest[:, self.pairs : self.pairs + c] = log_scales
        spread = torch.linspace(-2.0, 2.0, self.components) if self.components > 1 else 0.0
        mixture = log_scales[:, None] + spread
        self.rest[:, self.pairs + c + self.components :] = mixture.flatten()

    @property
    def pairs(self) -> int:
        """Number of pairs of channels in a pixel."""
        return self.grid.channels * (self.grid.channels - 1) // 2

    @property
    def size(self) -> int:
        """Length of a prediction."""
        return self.grid.channels + self.rest.shape[1]

    def complete(self, parameters: torch.Tensor, x: torch.Tensor, row: int = 0) -> torch.Tensor:
        """Correct the parameters of a model's network, and append the predictions.

        Args:
            parameters: for the rows from ``row`` on, ``[batch, rows, width, size]``.
            x: symbols, ``int64 [batch, height, width, channels]``.
            row: the first row of ``parameters``.

        Returns:
            What the head takes, ``[batch, rows, width, size + prediction]``.
        """
        known = self.neighbours(x)[:, row:]
        classes = self.classes_of(known, self.kinds[row:])
        return self._complete(parameters, known, classes, self.exists[row:])

    def complete_at(
        self, parameters: torch.Tensor, memory: torch.Tensor, row: int, column: int
    ) -> torch.Tensor:
        """:meth:`complete` for one pixel of each image: ``[batch, size + prediction]``.

        Args:
            parameters: ``[batch, size]``.
            memory: made by :meth:`empty`; holds the symbols before the pixel.
            row, column: its place.
        """
        places = self.places + (row * memory.shape[2] + column)
        known = memory.flatten(1, 2).index_select(1, places)  # [batch, neighbours, channels]
        kind = self._kinds[row][column]
        above = self.activity(known).unsqueeze(-1) > self.thresholds[kind]
        classes = above.sum(-1) + self._first_class[kind]
        return self._complete(parameters, known, classes, self.exists[row, column])

    def _complete(
        self,
        parameters: torch.Tensor,
        known: torch.Tensor,
        classes: torch.Tensor,
        exists: torch.Tensor,
    ) -> torch.Tensor:
        prediction = self.predictions(known, classes)
        # In float32 or wider, even where a network computes in half precision.
        parameters = parameters.to(prediction.dtype)
        if self.hidden:
            correction = self.correction(known, exists, prediction)
            parameters = parameters + correction.to(prediction.dtype)
        return torch.cat([parameters, prediction], dim=-1)

    def correction(
        self, known: torch.Tensor, exists: torch.Tensor, prediction: torch.Tensor
    ) -> torch.Tensor:
        """The correction of the small network: ``[..., corrected]``.

        Args:
            known: see :meth:`neighbours`.
            exists: 1 for neighbours within the image, 0 for others, ``[..., neighbours]``.
            prediction: ``[..., size]``.
        """
        inputs = self.network_inputs(known, exists, prediction).to(self.first.weight.dtype)
        hidden = F.silu(self.first(inputs))
        hidden = F.silu(self.second(hidden))
        correction: torch.Tensor = self.last(hidden)
        return correction

    def network_inputs(
        self, known: torch.Tensor, exists: torch.Tensor, prediction: torch.Tensor
    ) -> torch.Tensor:
        """What the small network sees; see :meth:`correction` for the arguments."""
        c = self.grid.channels
        means = prediction[..., :c]
        log_units = prediction[..., c + self.pairs : 2 * c + self.pairs]
        above = known * (2.0 / (self.grid.levels - 1)) - (means + 1.0).unsqueeze(-2)
        relative = above * torch.exp(-log_units).unsqueeze(-2)
        # Far outliers are pulled in, into (-2, 2): this is r / (1 + |r| / 2).
        relative = F.softsign(0.5 * relative) * (2.0 * exists).unsqueeze(-1)
        flags = exists.expand(*relative.shape[:-1])
        parts = [relative.flatten(-2), flags, means, log_units + LOG_UNIT_SHIFT]
        return torch.cat(parts, dim=-1)

    def neighbours(self, x: torch.Tensor) -> torch.Tensor:
        """Known neighbours of every pixel, zero beyond the border.

        Args:
            x: symbols, ``[batch, height, width, channels]``.

        Returns:
            ``[batch, height, width, neighbours, channels]``, in the type of :meth:`empty`.
        """
        height = self.grid.height
        width = self.grid.width
        padded = self.empty(x.shape[0])
        inside = slice(REACH, REACH + width)
        padded[:, REACH:, inside] = x.to(padded.dtype)
        parts = []
        for row, column in NEIGHBOURS:
            rows = slice(REACH + row, REACH + row + height)
            columns = slice(REACH + column, REACH + column + width)
            parts.append(padded[:, rows, columns])
        return torch.stack(parts, dim=-2)

    def classes_of(self, known: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """The class of each pixel.

        Args:
            known: its neighbours, ``[..., neighbours, channels]``.
            kinds: kind of its place, ``int64 [...]``, or a shape that broadcasts to it.

        Returns:
            ``int64 [...]``.
        """
        activity = self.activity(known)
        # The activity is a whole number, so that comparing it is exact whatever computed it.
        above = activity.unsqueeze(-1) > self.thresholds[kinds]
        return above.sum(-1) + self.first_class[kinds]

    def activity(self, known: torch.Tensor) -> torch.Tensor:
        """Sum of absolute differences between neighbours, over all channels.

        Args:
            known: neighbours, ``[..., neighbours, channels]``.

        Returns:
            A whole number for each pixel, ``[...]``.
        """
        minuends = known.index_select(-2, self.minuends)
        differences = minuends - known.index_select(-2, self.subtrahends)
        return differences.abs().sum((-2, -1))

    def predictions(self, known: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Predictions of pixels, ``[..., size]``, from what :meth:`classes_of` takes and gives."""
        coefficients = self.coefficients[classes].to(known.dtype)  # [..., C, inputs]
        # Not a matrix product: it would be in half precision, which has too few digits for means,
        # where a network is.
        products = coefficients[..., :-1] * known.flatten(-2).unsqueeze(-2)
        means = products.sum(-1) + coefficients[..., -1]
        return torch.cat([means, self.rest[classes].to(known.dtype)], dim=-1)

    def empty(self, batch: int) -> torch.Tensor:
        """Memory for the symbols of a walk, with margins: ``[batch, height, width, channels]``.

        There are ``REACH`` more rows than in the grid, above it, and as many columns at each side.
        It is of float32 or wider, because bfloat16 does not hold the levels of photographs, or of
        the integers of an exact twin.
        """
        height, width, channels = self.grid.shape
        shape = (batch, height + REACH, width + 2 * REACH, channels)
        dtype = self.coefficients.dtype
        if dtype.is_floating_point:
            dtype = torch.promote_types(dtype, torch.float32)
        return self.coefficients.new_zeros(shape, dtype=dtype)

    def observe(self, memory: torch.Tensor, symbol: torch.Tensor, index: int) -> None:
        """Write a symbol that has become known.

        Args:
            memory: made by :meth:`empty`.
            symbol: ``int64 [batch]``.
            index: its index in the sequence of symbols.
        """
        row, column, channel = self.grid.place(index)
        memory[:, row + REACH, column + REACH, channel] = symbol.to(memory.dtype)

    def receptive_field(self) -> torch.Tensor:
        """Which pixels a prediction depends on: ``bool [pixels, pixels]``."""
        height, width = self.grid.height, self.grid.width
        field = torch.zeros(height, width, height, width, dtype=torch.bool)
        for row, column, index in self.exists.nonzero().tolist():
            down, right = NEIGHBOURS[index]
            field[row, column, row + down, column + right] = True
        return field.view(self.grid.pixels, self.grid.pixels)


def place_kinds(grid: Grid) -> list[list[int]]:
    """The kind of each place, by its distance to the border, in rows."""
    columns = [2] * grid.width
    # From the outside to the inside, so that the first columns win in narrow grids.
    columns[-1] = 4
    columns[-2:-1] = [3] * len(columns[-2:-1])
    columns[1:2] = [1] * len(columns[1:2])
    columns[0] = 0
    rows = []
    for row in range(grid.height):
        first = min(row, ROW_KINDS - 1) * COLUMN_KINDS
        rows.append([first + column for column in columns])
    return rows


def existing_neighbours(grid: Grid) -> torch.Tensor:
    """1 for neighbours within the image, 0 for others: ``[height, width, neighbours]``."""
    height, width = grid.height, grid.width
    exists = torch.zeros(height, width, len(NEIGHBOURS))
    for index, (down, right) in enumerate(NEIGHBOURS):
        exists[-down:, max(0, -right) : max(0, width - max(0, right)), index] = 1.0
    return exists

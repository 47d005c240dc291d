"""The exact twin of an ``lstm`` in plain NumPy, written from docs/arithmetic.md alone.

``decode_reference.py`` decodes files with it. It follows the documentation from top to bottom, and
is written to be read rather than to be fast. All arithmetic is done with Python integers or with
int64 arrays, of the shapes in square brackets.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 2**30 - 1  # of the numbers in the memory of a twin
TOTAL = 2**24  # what frequencies sum to
NO_CLASS = -1  # images are compressed without a class, whose kept values are the last row

DTYPES = {"I16": "<i2", "I32": "<i4", "I64": "<i8"}  # of safetensors, as NumPy calls them
TORCH_DTYPES = {"<i2": "torch.int16", "<i4": "torch.int32", "<i8": "torch.int64"}


class DecodingError(ValueError):
    """The file is damaged, or the twin is not the one that it was made with."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`DecodingError` unless ``condition`` holds."""
    if not condition:
        raise DecodingError(message)


# --- arithmetic.md: Notation, Numbers in memory ---------------------------------------------------


def rounded(a: Any, shift: Any) -> Any:
    """``a / 2**shift``, rounded to the nearest integer, halves up."""
    shift = np.asarray(shift)
    half = np.where(shift > 0, 1 << np.maximum(shift - 1, 0), 0)
    return (a + half) >> shift


def clamp(a: Any, bound: int) -> Any:
    """``a`` limited to ``-bound .. bound``."""
    return np.clip(a, -bound, bound)


def store(a: Any) -> Any:
    """``a`` as memory holds it."""
    return clamp(a, LIMIT)


# --- arithmetic.md: Functions ---------------------------------------------------------------------

# The tables come from exponentials with 128 bits after the point. Their errors are below 2**-110,
# and no entry lies so near to the half of a unit that it could be rounded to the other side.
PRECISION = 128
ONE = 1 << PRECISION


def exponentials(count: int, divisor: int) -> list[int]:
    """``exp(-j / divisor)`` for ``j`` below ``count``, in units of ``2**-PRECISION``."""
    first = 0
    term = ONE
    order = 0
    while term != 0:  # the series of the exponential function at -1 / divisor
        first += term if order % 2 == 0 else -term
        order += 1
        term //= order * divisor
    values = [ONE]
    while len(values) < count:
        values.append((values[-1] * first) >> PRECISION)
    return values


def quotient(numerator: int, denominator: int) -> int:
    """``numerator / denominator``, rounded to the nearest integer, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


@dataclass(frozen=True)
class Tables:
    """The five tables of functions, each an int64 array ``[entries]``."""

    sigmoid: np.ndarray
    exp: np.ndarray
    exp_coarse: np.ndarray
    exp_fine: np.ndarray
    logistic: np.ndarray

    def digest(self) -> str:
        """The SHA-256 of all tables as little-endian int32, one after the other."""
        digest = hashlib.sha256()
        for table in (self.sigmoid, self.exp, self.exp_coarse, self.exp_fine, self.logistic):
            digest.update(table.astype("<i4").tobytes())
        return digest.hexdigest()


@cache
def tables() -> Tables:
    """Compute the tables with integers of unlimited size."""
    by_256 = exponentials(4609, 256)
    sigmoid = []
    for j in range(8193):
        decline = by_256[abs(j - 4096)]
        # For arguments below zero, 1 / (1 + exp(y)) is exp(-y) / (1 + exp(-y)).
        numerator = ONE if j >= 4096 else decline
        sigmoid.append(quotient(2**15 * numerator, ONE + decline))
    exp = []
    for decline in by_256[:4097]:
        exp.append(quotient(2**16 * decline, ONE))
    exp_coarse = []
    for decline in by_256:
        exp_coarse.append(quotient(2**24 * decline, ONE))
    exp_fine = []
    for decline in exponentials(256, 65536):
        exp_fine.append(quotient(2**24 * decline, ONE))
    logistic = []
    for decline in exponentials(17409, 1024):
        logistic.append(quotient(2**24 * ONE, ONE + decline))
    return Tables(
        sigmoid=np.array(sigmoid),
        exp=np.array(exp),
        exp_coarse=np.array(exp_coarse),
        exp_fine=np.array(exp_fine),
        logistic=np.array(logistic),
    )


def sigmoid(x: np.ndarray) -> np.ndarray:
    """``1 / (1 + exp(-x))`` in units of ``2**-15``, of ``x`` in units of ``2**-16``."""
    t = clamp(x, 2**20)
    j = (t + 128) >> 8
    r = t - 256 * j
    nearest = tables().sigmoid[j + 4096]
    slope = (nearest * (32768 - nearest)) >> 15
    return nearest + rounded(slope * r, 16)


def tanh(x: np.ndarray) -> np.ndarray:
    """The hyperbolic tangent in units of ``2**-15``, of ``x`` in units of ``2**-16``."""
    return 2 * sigmoid(clamp(x, LIMIT) * 2) - 32768


def fine_decay(n: np.ndarray) -> np.ndarray:
    """``exp(-n)`` in units of ``2**-24``, of ``n >= 0`` in units of ``2**-16``."""
    inside = np.minimum(n, 18 * 2**16 - 1)
    product = tables().exp_coarse[inside >> 8] * tables().exp_fine[inside & 255]
    return np.where(n >= 18 * 2**16, 0, rounded(product, 24))


def fine_sigmoid(x: np.ndarray) -> np.ndarray:
    """``1 / (1 + exp(-x))`` in units of ``2**-24``, of ``x`` in units of ``2**-16``."""
    t = np.minimum(np.abs(x), 17 * 2**16 - 1)
    j = t >> 6
    r = t & 63
    left = tables().logistic[j]
    right = tables().logistic[j + 1]
    positive = left + (((right - left) * r) >> 6)
    return np.where(x >= 0, positive, 2**24 - positive)


# --- arithmetic.md: Twins on disk -----------------------------------------------------------------


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name, each with the dtype that it has there."""
    data = path.read_bytes()
    header_length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + header_length])
    payload = data[8 + header_length :]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        numbers = np.frombuffer(payload[begin:end], dtype=DTYPES[entry["dtype"]])
        tensors[name] = numbers.reshape(entry["shape"])
    return tensors


def numbered(tensors: dict[str, np.ndarray], pattern: str) -> list[str]:
    """The names ``pattern.format(0)``, ``pattern.format(1)`` and so on, as far as there are any."""
    names: list[str] = []
    while pattern.format(len(names)) in tensors:
        names.append(pattern.format(len(names)))
    return names


@dataclass(frozen=True)
class Matrix:
    """A matrix with 16-bit weights and its shifts."""

    weight: np.ndarray  # [inputs, outputs]
    output_shift: np.ndarray  # [outputs]
    input_shift: int

    def apply(self, x: np.ndarray) -> np.ndarray:
        """``x @ w`` of the documentation, ``[batch, inputs]`` to ``[batch, outputs]``."""
        narrow = clamp(rounded(x, self.input_shift), 8191)
        return rounded(narrow @ self.weight, self.output_shift)


@dataclass(frozen=True)
class Twin:
    """The constants of an exact twin, all int64, and what it is a model of."""

    identity: bytes  # SHA-256
    network: dict[str, Any]
    kept: list[np.ndarray]
    tables: list[np.ndarray]
    matrices: list[Matrix]

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """Height, width, channels and levels."""
        grid = self.network["grid"]
        return grid["height"], grid["width"], grid["channels"], grid["levels"]


def read_twin(folder: Path) -> Twin:
    """Read ``exact.json`` and ``exact.safetensors`` from ``folder`` and check the id.

    Raises:
        DecodingError: If the id is not that of the numbers.
    """
    description = json.loads((folder / "exact.json").read_text("utf-8"))
    require(description["arithmetic"] == 1, "the twin has another version of the arithmetic")
    tensors = read_safetensors(folder / "exact.safetensors")

    # The hash takes the tensors in this order: kept values, tables, matrices.
    kept_names = numbered(tensors, "kept.{}")
    table_names = numbered(tensors, "tables.{}")
    weight_names = numbered(tensors, "matrices.{}.weight")
    names = kept_names + table_names
    matrices = []
    for weight_name in weight_names:
        stem = weight_name.removesuffix("weight")
        names += [weight_name, stem + "output_shift", stem + "input_shift"]
        matrix = Matrix(
            weight=tensors[weight_name].astype(np.int64),
            output_shift=tensors[stem + "output_shift"].astype(np.int64),
            input_shift=int(tensors[stem + "input_shift"]),
        )
        matrices.append(matrix)
    require(len(names) == len(tensors), "the twin has tensors that no twin should have")

    hashed = {"arithmetic": description["arithmetic"], "network": description["network"]}
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode("utf-8"))
    for name in names:
        tensor = tensors[name]
        line = f"{name} {TORCH_DTYPES[tensor.dtype.newbyteorder('<').str]} {list(tensor.shape)}\n"
        digest.update(line.encode("utf-8"))
        digest.update(tensor.tobytes())
    require(digest.hexdigest() == description["id"], "the numbers of the twin do not have its id")

    return Twin(
        identity=digest.digest(),
        network=description["network"],
        kept=[tensors[name].astype(np.int64) for name in kept_names],
        tables=[tensors[name].astype(np.int64) for name in table_names],
        matrices=matrices,
    )


# --- arithmetic.md: Operations, Frequencies, A worked example -------------------------------------


class Lstm:
    """The twin of an ``lstm`` while it goes through a batch of grids, symbol by symbol."""

    def __init__(self, twin: Twin, batch: int) -> None:
        network = twin.network
        head = network["head"]
        self.is_mixture = head["name"] == "logistic-mixture"
        known = self.is_mixture or (head["name"] == "categorical" and twin.grid[2] == 1)
        require(
            network["name"] == "lstm" and known,
            "this decoder knows only lstm, with logistic-mixture or on a single channel",
        )
        self.twin = twin
        self.layers = network["sizes"]["layers"]
        width = network["sizes"]["hidden"]
        self.hidden = np.zeros([self.layers, batch, width], np.int64)
        self.cell = np.zeros([self.layers, batch, width], np.int64)
        self.pixel: Pixel | None = None
        self.predictor: Predictor | None = None
        if head.get("predictor", False):
            first_table = 4 + self.layers  # after rows, columns, symbols and the biases
            self.predictor = Predictor(twin, first_table, self.layers + 1)

    def frequencies(self, index: int, symbols: np.ndarray) -> np.ndarray:
        """The frequencies ``[batch, levels]`` of symbol ``index`` in raster order.

        Of ``symbols [batch, height, width, channels]`` it looks at those before it.
        """
        _, width, channels, levels = self.twin.grid
        place, channel = divmod(index, channels)
        row, column = divmod(place, width)
        if not self.is_mixture:
            logits = self._parameters(place, symbols)
            if logits.shape[1] == 1:  # two levels: the logit of the first is 0
                logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
            return categorical(logits)
        if channel == 0:
            parameters = self._parameters(place, symbols)
            prediction = None
            if self.predictor is not None:
                parameters, prediction = self.predictor.at(symbols, row, column, parameters)
            components = self.twin.network["head"]["components"]
            self.pixel = Pixel(parameters, prediction, components, channels, levels)
        else:
            assert self.pixel is not None
            self.pixel.learn(symbols[:, row, column, channel - 1])
        return self.pixel.frequencies()

    def _parameters(self, place: int, symbols: np.ndarray) -> np.ndarray:
        """The step of the network: ``[batch, parameters]``."""
        rows, columns, vectors, *biases = self.twin.tables
        row, column = divmod(place, self.twin.grid[1])
        x = store(self.twin.kept[0][NO_CLASS] + rows[row])
        x = store(x + columns[column])
        x = np.broadcast_to(x, self.hidden.shape[1:])
        if place > 0:
            before = symbols.reshape(len(symbols), -1, self.twin.grid[2])[:, place - 1]
            for channel, vectors_of_channel in enumerate(vectors):
                x = store(x + vectors_of_channel[before[:, channel]])
        for layer in range(self.layers):
            inputs = np.concatenate([x, self.hidden[layer]], axis=1)
            gates = store(self.twin.matrices[layer].apply(inputs) + biases[layer])
            self._cell(layer, gates)
            x = store(x + self.hidden[layer])
        return store(self.twin.matrices[self.layers].apply(x) + biases[self.layers])

    def _cell(self, layer: int, gates: np.ndarray) -> None:
        """The operation ``cell``: change hidden state and cell by ``gates [batch, 4 width]``."""
        output, forget, write, content = np.split(gates, 4, axis=1)
        remembered = rounded(sigmoid(forget) * self.cell[layer], 15)
        written = rounded(sigmoid(write) * tanh(content), 14)
        self.cell[layer] = store(remembered + written)
        self.hidden[layer] = rounded(sigmoid(output) * tanh(self.cell[layer]), 14)


def categorical(logits: np.ndarray) -> np.ndarray:
    """Logits ``[batch, levels]``, in units of ``2**-16``, to frequencies of the same shape."""
    batch, levels = logits.shape
    e = fine_decay(logits.max(axis=1, keepdims=True) - logits)
    ratio = (2**32 * (TOTAL - levels)) // e.sum(axis=1, keepdims=True)
    frequencies = 1 + ((e * ratio) >> 32)
    largest = frequencies.argmax(axis=1)  # the first of them
    frequencies[np.arange(batch), largest] += TOTAL - frequencies.sum(axis=1)
    return frequencies


def mixture_weights(p: np.ndarray) -> np.ndarray:
    """Integers ``p [batch, components]``, none below zero, to weights that sum to ``2**20``."""
    weights = (p * 2**20) // p.sum(axis=1, keepdims=True)
    largest = weights.argmax(axis=1)  # the first of them
    weights[np.arange(len(p)), largest] += 2**20 - weights.sum(axis=1)
    return weights


def below_edges(means: np.ndarray, log_scales: np.ndarray, levels: int) -> np.ndarray:
    """``F`` of the documentation, from -1 on: ``[batch, components, levels + 1]``.

    Means and log-scales, ``[batch, components]`` each, are in units of ``2**-16``.
    """
    limited = np.clip(log_scales, -7 * 2**16, 15 * 2**16)
    inverse = rounded(1149903211 * fine_decay(limited + 7 * 2**16), 24)  # in units of 2**-20
    v = np.arange(levels - 1)
    edges = ((2 * v + 1) * 2**24 + (levels - 1) // 2) // (levels - 1) - 2**24
    distance = clamp(edges - 256 * means[..., None], 2**31 - 1)
    inside = fine_sigmoid(clamp((distance * inverse[..., None]) >> 28, 2**21))
    below = np.zeros([*means.shape, levels + 1], np.int64)
    below[..., 1:-1] = inside
    below[..., -1] = 2**24
    return below


def mixed_frequencies(weights: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Weights ``[batch, components]`` and ``F`` to frequencies ``[batch, levels]``."""
    levels = below.shape[2] - 1
    mixed = (weights[..., None] * below).sum(axis=1) >> 20
    ends = np.arange(levels + 1) + ((mixed * (TOTAL - levels)) >> 24)
    return np.diff(ends, axis=1)


class Pixel:
    """The head ``logistic-mixture`` on its way through the channels of a pixel."""

    def __init__(
        self,
        parameters: np.ndarray,
        prediction: Prediction | None,
        components: int,
        channels: int,
        levels: int,
    ) -> None:
        m = components
        vectors = parameters.reshape(len(parameters), -1, m)  # [batch, vectors, components]
        self.means = vectors[:, 1 : 1 + channels]
        self.log_scales = vectors[:, 1 + channels : 1 + 2 * channels]
        self.shares = tanh(vectors[:, 1 + 2 * channels :])  # one for each pair of channels
        logits = vectors[:, 0]
        if prediction is not None:
            logits = store(logits + prediction.logits)
            self.log_scales = store(self.log_scales + prediction.log_scales)
        self.weights = mixture_weights(fine_decay(logits.max(axis=1, keepdims=True) - logits))
        self.prediction = prediction
        self.levels = levels
        self.known: list[np.ndarray] = []  # the symbols of the channels so far, [batch] each
        self.expected: list[np.ndarray] = []  # with a predictor, its means of them
        self._mix()

    def learn(self, symbol: np.ndarray) -> None:
        """Go on to the next channel, after ``symbol [batch]`` in the one before."""
        below = self.below[np.arange(len(symbol)), :, symbol]
        upto = self.below[np.arange(len(symbol)), :, symbol + 1]
        self.weights = mixture_weights((self.weights * np.maximum(upto - below, 1) + 15) >> 4)
        self.known.append(symbol)
        self._mix()

    def _mix(self) -> None:
        """Set ``F`` of the newest channel."""
        c = len(self.known)
        if self.prediction is not None:
            self.expected.append(self.prediction.expected(c, self.known))
        means = self.means[:, c]
        for b, symbol in enumerate(self.known):
            if self.prediction is None:
                bins = self.levels - 1
                shift = (symbol * 2**17 + bins // 2) // bins - 2**16
            else:
                shift = self.prediction.miss(b, symbol, self.expected[b])
            share = self.shares[:, c * (c - 1) // 2 + b]
            means = means + rounded(share * shift[:, None], 15)
        means = store(means)
        if self.prediction is not None:
            error = self.prediction.errors[:, c, None]
            means = store(rounded(self.expected[c][:, None] * 2**18 + error * means, 26))
        self.below = below_edges(means, self.log_scales[:, c], self.levels)

    def frequencies(self) -> np.ndarray:
        """Of the newest channel, ``[batch, levels]``."""
        return mixed_frequencies(self.weights, self.below)


# --- arithmetic.md: Predictions -------------------------------------------------------------------

NEIGHBOURS = [
    (0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0),
    (-2, -1), (-2, 1), (-1, -2), (-1, 2), (-2, -2), (-2, 2),
]  # fmt: skip
DIFFERENCES = [(0, 2), (1, 2), (1, 3), (0, 4), (1, 5)]
CLASSES_OF_KINDS = [4] * 12 + [24] + [4] * 2


def level(x: np.ndarray, levels: int) -> np.ndarray:
    """Symbols on the axis where the levels span [-1, 1], in units of ``2**-24``."""
    return (x * 2**25 + (levels - 1) // 2) // (levels - 1) - 2**24


@dataclass
class Prediction:
    """What a predictor says of a pixel, in the units of the documentation."""

    levels: int
    means: np.ndarray  # [batch, channels], from the neighbours alone
    couplings: np.ndarray  # [batch, channels, channels]
    logs: np.ndarray  # [batch, channels], the logarithms of the errors, plus 4
    errors: np.ndarray  # [batch, channels]
    inverses: np.ndarray  # [batch, channels]
    logits: np.ndarray  # [batch, components]
    log_scales: np.ndarray  # [batch, channels, components]

    def units(self, difference: np.ndarray, channel: int) -> np.ndarray:
        """Differences ``[batch, ...]`` to a mean in units of the channel's error."""
        inverse = self.inverses[:, channel].reshape([-1] + [1] * (difference.ndim - 1))
        return store(rounded(difference * inverse, 18))

    def expected(self, channel: int, known: list[np.ndarray]) -> np.ndarray:
        """The mean of a channel after the channels before it."""
        mean = self.means[:, channel].copy()
        for before, symbol in enumerate(known):
            coupling = self.couplings[:, channel, before]
            mean += rounded(coupling * level(symbol, self.levels), 24)
        return clamp(mean, 2**31 - 1)

    def miss(self, channel: int, symbol: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """How far off the prediction of a channel was."""
        return self.units(level(symbol, self.levels) - expected, channel)


class Predictor:
    """The predictor of a twin, whose constants begin at the given table and matrix."""

    def __init__(self, twin: Twin, first_table: int, first_matrix: int) -> None:
        self.grid = twin.grid
        self.components = twin.network["head"]["components"]
        tables_of_it = twin.tables[first_table:]
        self.thresholds, self.coefficients, self.rest, *self.biases = tables_of_it
        self.matrices = twin.matrices[first_matrix:]
        layers = 3 if twin.network["head"]["predictor_hidden"] > 0 else 0
        require(
            len(self.biases) == layers and len(self.matrices) == layers,
            "the predictor has other constants than it should",
        )

    def at(
        self, symbols: np.ndarray, row: int, column: int, parameters: np.ndarray
    ) -> tuple[np.ndarray, Prediction]:
        """Correct the network's parameters at a place, and predict.

        Of ``symbols [batch, height, width, channels]`` it looks at the neighbours.
        """
        _, width, channels, _ = self.grid
        x = np.zeros([len(symbols), len(NEIGHBOURS), channels], np.int64)
        exists = np.zeros(len(NEIGHBOURS), np.int64)
        for i, (down, right) in enumerate(NEIGHBOURS):
            if row + down >= 0 and 0 <= column + right < width:
                exists[i] = 1
                x[:, i] = symbols[:, row + down, column + right]
        prediction = self._predict(x, self._classes(x, row, column))
        if self.matrices:
            correction = self._network(x, exists, prediction)
            parameters = store(parameters + correction)
        return parameters, prediction

    def _classes(self, x: np.ndarray, row: int, column: int) -> np.ndarray:
        """The class of the pixel in each image, ``[batch]``."""
        width = self.grid[1]
        from_left = {0: 0, 1: 1}
        from_right = {width - 1: 4, width - 2: 3}
        kind = 5 * min(row, 2) + from_left.get(column, from_right.get(column, 2))
        activity = np.zeros(len(x), np.int64)
        for i, j in DIFFERENCES:
            activity += np.abs(x[:, i] - x[:, j]).sum(axis=1)
        above = (activity[:, None] > self.thresholds[kind]).sum(axis=1)
        return sum(CLASSES_OF_KINDS[:kind]) + above

    def _predict(self, x: np.ndarray, classes: np.ndarray) -> Prediction:
        _, _, channels, levels = self.grid
        count = len(NEIGHBOURS) * channels
        a = self.coefficients[classes]  # [batch, channels, 13 channels + 1]
        products = a[:, :, :count] * x.reshape(len(x), 1, count)
        means = (2 * products.sum(axis=2) + (levels - 1) // 2) // (levels - 1)
        rest = self.rest[classes]
        logs, errors, inverses = np.split(rest[:, : 3 * channels], 3, axis=1)
        mixture = rest[:, 3 * channels :].reshape(len(x), 1 + channels, self.components)
        return Prediction(
            levels=levels,
            means=clamp(means + a[:, :, count], 2**31 - 1),
            couplings=a[:, :, count + 1 :],
            logs=logs,
            errors=errors,
            inverses=inverses,
            logits=mixture[:, 0],
            log_scales=mixture[:, 1:],
        )

    def _network(self, x: np.ndarray, exists: np.ndarray, of: Prediction) -> np.ndarray:
        """The correction of the small network, ``[batch, parameters]``."""
        _, _, channels, levels = self.grid
        near = np.zeros_like(x)
        for c in range(channels):
            r = of.units(level(x[:, :, c], levels) - of.means[:, c, None], c)
            divisor = 2**17 + np.abs(r)
            near[:, :, c] = (r * 2**18 + divisor) // (2 * divisor) * exists
        flags = np.broadcast_to(exists * 2**16, [len(x), len(exists)])
        means = store(rounded(of.means, 8))
        hidden = np.concatenate([near.reshape(len(x), -1), flags, means, of.logs], axis=1)
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            hidden = store(matrix.apply(hidden) + bias)
            if i < 2:
                hidden = store(rounded(hidden * sigmoid(hidden), 15))  # silu
        return hidden

"""The heads of exact twins, against the float heads and a transcription of the specification."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from tessella.errors import ConfigError
from tessella.exact.integer_distributions import IntegerDistribution, mixture_weights
from tessella.exact.integer_heads import (
    IntegerCategoricalHead,
    IntegerMixtureHead,
    integer_head,
)
from tessella.grid import Grid
from tessella.heads import Categorical, CategoricalHead, LogisticMixtureHead, OrdinalHead
from tessella.heads.head import Head
from tessella.heads.logistic_mixture import LOG_SCALES
from tessella.nn.integer.functions import tables

TOTAL = 2**24
LIMIT = 2**30 - 1
TABLES = {name: table.tolist() for name, table in tables().items()}


# docs/arithmetic.md in plain Python.


def rounded(a: int, s: int) -> int:
    return (a + 2 ** (s - 1)) >> s


def clamp(a: int, b: int) -> int:
    return max(-b, min(a, b))


def sigmoid(x: int) -> int:
    t = min(max(x, -(2**20)), 2**20)
    j = (t + 128) >> 8
    r = t - 256 * j
    entry = TABLES["SIGMOID"][j + 4096]
    return entry + rounded(((entry * (32768 - entry)) >> 15) * r, 16)


def tanh(x: int) -> int:
    return 2 * sigmoid(clamp(x, LIMIT) * 2) - 32768


def fine_decay(n: int) -> int:
    if n >= 18 * 2**16:
        return 0
    return rounded(TABLES["EXP_COARSE"][n >> 8] * TABLES["EXP_FINE"][n & 255], 24)


def fine_sigmoid(x: int) -> int:
    if x < 0:
        return 2**24 - fine_sigmoid(-x)
    t = min(x, 17 * 2**16 - 1)
    j = t >> 6
    r = t & 63
    entries = TABLES["LOGISTIC"]
    return entries[j] + (((entries[j + 1] - entries[j]) * r) >> 6)


def completed(counts: list[int], total: int) -> list[int]:
    counts[counts.index(max(counts))] += total - sum(counts)
    return counts


def categorical_frequencies(z: list[int]) -> list[int]:
    e = [fine_decay(max(z) - logit) for logit in z]
    ratio = (2**32 * (TOTAL - len(z))) // sum(e)
    return completed([1 + ((part * ratio) >> 32) for part in e], TOTAL)


def weights_of(p: list[int]) -> list[int]:
    return completed([(part * 2**20) // sum(p) for part in p], 2**20)


def component_cumulative(mu: int, ls: int, v: int, levels: int) -> int:
    if v == -1:
        return 0
    if v == levels - 1:
        return 2**24
    limited = min(max(ls, -7 * 2**16), 15 * 2**16)
    largest = math.floor(math.exp(7) * 2**20 + 0.5)
    inverse = rounded(largest * fine_decay(limited + 7 * 2**16), 24)
    edge = ((2 * v + 1) * 2**24 + (levels - 1) // 2) // (levels - 1) - 2**24
    t = clamp(edge - 256 * mu, 2**31 - 1)
    return fine_sigmoid(clamp((t * inverse) >> 28, 2**21))


def pixel_frequencies(
    parameters: list[int], x: list[int], components: int, levels: int
) -> list[list[int]]:
    """The frequencies of every channel of a pixel with symbols ``x``."""
    channels = len(x)
    m = components
    parts = [parameters[i : i + m] for i in range(0, len(parameters), m)]
    logits = parts[0]
    pi = weights_of([fine_decay(max(logits) - logit) for logit in logits])
    result = []
    for c in range(channels):
        mu = list(parts[1 + c])
        ls = parts[1 + channels + c]
        for b in range(c):
            coefficients = parts[1 + 2 * channels + c * (c - 1) // 2 + b]
            value = (x[b] * 2**17 + (levels - 1) // 2) // (levels - 1) - 2**16
            for i in range(m):
                mu[i] += rounded(tanh(coefficients[i]) * value, 15)
        mu = [clamp(mean, LIMIT) for mean in mu]
        cum = [0]
        for v in range(levels):
            mixed = 0
            for i in range(m):
                mixed += pi[i] * component_cumulative(mu[i], ls[i], v, levels)
            cum.append(v + 1 + (((mixed >> 20) * (TOTAL - levels)) >> 24))
        result.append([cum[v + 1] - cum[v] for v in range(levels)])
        p = []
        for i in range(m):
            above = component_cumulative(mu[i], ls[i], x[c], levels)
            below = component_cumulative(mu[i], ls[i], x[c] - 1, levels)
            p.append((pi[i] * max(above - below, 1) + 15) >> 4)
        pi = weights_of(p)
    return result


# Random parameters.


def integers(real: torch.Tensor) -> torch.Tensor:
    """Real numbers in units of 2**-16."""
    return torch.floor(real * 2**16 + 0.5).clamp(-LIMIT, LIMIT).long()


def logits(levels: int, scale: float, rows: int = 64) -> torch.Tensor:
    """Random logits: ``float64 [rows, levels]``."""
    generator = torch.Generator().manual_seed(levels)
    return scale * torch.randn(rows, levels, generator=generator, dtype=torch.float64)


def pixels(
    head: LogisticMixtureHead, scales: tuple[float, float], means: float, rows: int = 100
) -> torch.Tensor:
    """Random parameters of a mixture, with scales in levels: ``float64 [rows, size]``."""
    generator = torch.Generator().manual_seed(head.size)
    m = head.components
    c = head.grid.channels
    weights = 2 * torch.randn(rows, m, generator=generator, dtype=torch.float64)
    mean = means * torch.randn(rows, c * m, generator=generator, dtype=torch.float64)
    uniform = torch.rand(rows, c * m, generator=generator, dtype=torch.float64)
    low = math.log(2 * scales[0] / (head.grid.levels - 1))
    log_scale = low + math.log(scales[1] / scales[0]) * uniform
    coefficients = torch.randn(rows, head.pairs * m, generator=generator, dtype=torch.float64)
    return torch.cat([weights, mean, log_scale, coefficients], dim=-1)


def random_symbols(grid: Grid, rows: int) -> torch.Tensor:
    """``int64 [rows, channels]``."""
    generator = torch.Generator().manual_seed(grid.levels)
    return torch.randint(grid.levels, (rows, grid.channels), generator=generator)


def mixture_head(channels: int, levels: int, components: int) -> LogisticMixtureHead:
    return LogisticMixtureHead(Grid(2, 2, channels, levels), components)


def check_frequencies(distribution: IntegerDistribution, levels: int) -> torch.Tensor:
    """Frequencies, after a look at what all of them promise."""
    frequencies = distribution.frequencies()
    assert frequencies.dtype == torch.int64
    assert frequencies.shape[-1] == levels
    assert int(frequencies.min()) >= 1
    assert bool((frequencies.sum(dim=-1) == TOTAL).all())
    # The interval of each level, computed for it alone.
    ends = frequencies.cumsum(-1)
    for x in {0, 1, levels // 2, levels - 2, levels - 1}:
        start, frequency = distribution.interval(torch.full(frequencies.shape[:-1], x))
        assert torch.equal(frequency, frequencies[..., x])
        assert torch.equal(start, ends[..., x] - frequencies[..., x])
    return frequencies


def lost_bits(table: torch.Tensor, distribution: IntegerDistribution) -> torch.Tensor:
    """The KL divergence from log-probabilities in nats, in bits per symbol: ``[...]``."""
    difference = table - distribution.table()
    return (table.exp() * difference).sum(dim=-1) / math.log(2)


# What both promise.


@pytest.mark.parametrize("levels", [2, 3, 17, 256, 4096])
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0, 1e5])
def test_categorical_frequencies_are_a_distribution(levels: int, scale: float) -> None:
    head = IntegerCategoricalHead(Grid(1, 1, 1, levels))
    # Logits beyond 2**14 would not fit into memory.
    real = logits(levels, scale).clamp(-1e4, 1e4)
    distribution = head.symbol(integers(real))
    frequencies = check_frequencies(distribution, levels)
    assert torch.equal(distribution.mode(), frequencies.argmax(-1))
    lost = lost_bits(Categorical(real).table(), distribution)
    # Every level has one count of its own, and rounding down moves less than one more.
    assert float(lost.max()) < 2 * levels / TOTAL / math.log(2) + 1e-6


def test_a_categorical_of_as_many_levels_as_there_can_be() -> None:
    head = IntegerCategoricalHead(Grid(1, 1, 1, 2**20))
    frequencies = head.symbol(integers(logits(2**20, 1.0, rows=1))).frequencies()
    assert int(frequencies.min()) >= 1
    assert int(frequencies.sum()) == TOTAL
    flat = head.symbol(torch.zeros(1, 2**20, dtype=torch.int64))
    assert bool((flat.frequencies() == 16).all())


@pytest.mark.parametrize("levels", [3, 4, 200, 256])
@pytest.mark.parametrize("components", [1, 10])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_mixture_frequencies_are_close_to_the_float_head(
    levels: int, components: int, channels: int
) -> None:
    head = mixture_head(channels, levels, components)
    exact = integer_head(head)
    assert isinstance(exact, IntegerMixtureHead)
    real = pixels(head, (1.0, levels / 12 + 1), 0.5)
    float_state = head.start(real)
    exact_state = exact.start(integers(real))
    generator = torch.Generator().manual_seed(0)
    previous = None
    lost = []
    for channel in range(channels):
        float_step, float_state = head.next(previous, channel, float_state)
        step, exact_state = exact.next(previous, channel, exact_state)
        table = head.symbol(float_step).table()
        distribution = exact.symbol(step)
        check_frequencies(distribution, levels)
        lost.append(lost_bits(table, distribution))
        # Symbols of the model itself, as in training data that it fits well.
        previous = torch.multinomial(table.exp(), 1, generator=generator)[:, 0]
    assert float(torch.stack(lost).mean()) < 3e-5
    # Only without a posterior is every single symbol close.
    assert float(lost[0].max()) < 5e-5


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(
    ("scales", "means"),
    [
        ((1e-6, 1e-3), 1.0),
        ((1e7, 1e12), 1.0),
        ((1e-6, 1e12), 100.0),
        ((1.0, 20.0), 1e4),
        ((1e-6, 1e12), 1e5),
    ],
)
def test_mixtures_of_extreme_parameters_are_distributions(
    scales: tuple[float, float], means: float, channels: int
) -> None:
    head = mixture_head(channels, 256, 5)
    exact = IntegerMixtureHead(head.grid, 5)
    real = pixels(head, scales, means)
    real[::2, :5] *= 1e4
    x = random_symbols(head.grid, len(real))
    for step in exact.unroll(integers(real), x, channels):
        assert bool((step[..., :5].sum(dim=-1) == 2**20).all())
        check_frequencies(exact.symbol(step), 256)


def test_parameters_at_the_limits_of_memory_do_not_overflow() -> None:
    head = IntegerMixtureHead(Grid(1, 1, 3, 256), 2)
    generator = torch.Generator().manual_seed(3)
    signs = 2 * torch.randint(2, (100, head.size), generator=generator) - 1
    x = random_symbols(head.grid, 100)
    for channel, step in enumerate(head.unroll((signs * LIMIT).int(), x, 3)):
        frequencies = check_frequencies(head.symbol(step), 256)
        expected = pixel_frequencies((signs[0] * LIMIT).tolist(), x[0].tolist(), 2, 256)
        assert frequencies[0].tolist() == expected[channel]
    ends = torch.tensor([[-LIMIT, LIMIT, 0]], dtype=torch.int32)
    categorical = IntegerCategoricalHead(Grid(1, 1, 1, 3)).symbol(ends)
    assert categorical.frequencies().tolist() == [[1, TOTAL - 2, 1]]


# The specification.


@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0, 1e4])
def test_categoricals_follow_the_specification(scale: float) -> None:
    for levels in (2, 5, 256, 1000):
        rows = integers(logits(levels, scale, rows=4))
        frequencies = IntegerCategoricalHead(Grid(1, 1, 1, levels)).symbol(rows).frequencies()
        for z, found in zip(rows.tolist(), frequencies.tolist(), strict=True):
            assert found == categorical_frequencies(z)


@pytest.mark.parametrize(("channels", "components", "levels"), [(1, 1, 3), (3, 4, 20), (4, 2, 256)])
@pytest.mark.parametrize("scales", [(0.1, 20.0), (1e-6, 1e12)])
def test_mixtures_follow_the_specification(
    channels: int, components: int, levels: int, scales: tuple[float, float]
) -> None:
    head = mixture_head(channels, levels, components)
    exact = IntegerMixtureHead(head.grid, components)
    parameters = integers(pixels(head, scales, 0.7, rows=4))
    x = random_symbols(head.grid, 4)
    found = []
    for step in exact.unroll(parameters, x, channels):
        found.append(exact.symbol(step).frequencies())
    for row in range(4):
        expected = pixel_frequencies(parameters[row].tolist(), x[row].tolist(), components, levels)
        for channel in range(channels):
            assert found[channel][row].tolist() == expected[channel]


def test_frequencies_are_those_of_version_1() -> None:
    z = torch.tensor([[0, 65536, -40000, 123456, 7]])
    categorical = IntegerCategoricalHead(Grid(1, 1, 1, 5)).symbol(z)
    assert categorical.frequencies().tolist() == [[1417003, 3851812, 769659, 9321588, 1417154]]
    head = IntegerMixtureHead(Grid(1, 1, 3, 64), 3)
    # Numbers that do not depend on anybody's random numbers.
    index = torch.arange(20 * head.size)
    parameters = ((index * index * 40503 + 12345) % 400_003 - 200_000).view(20, head.size)
    x = (torch.arange(60) * 37 % 64).view(20, 3)
    sha = hashlib.sha256()
    for step in head.unroll(parameters, x, 3):
        sha.update(head.symbol(step).frequencies().numpy().astype("<i8").tobytes())
    assert sha.hexdigest() == "7e243a27e4a3228efc0486b668311960a397497ac1c0e0214ce01aaaa3806d4e"


def test_the_range_of_scales_is_that_of_the_float_head() -> None:
    assert LOG_SCALES == (-7.0, 15.0)


# Use in models.


def test_an_image_has_the_same_frequencies_in_any_batch() -> None:
    head = mixture_head(3, 256, 10)
    exact = IntegerMixtureHead(head.grid, 10)
    parameters = integers(pixels(head, (0.5, 20.0), 0.5, rows=16))
    x = random_symbols(head.grid, 16)
    together = exact.unroll(parameters, x, 3)
    of_pixels = []
    for step in together:
        of_pixels.append(exact.symbol(step).frequencies())
    categorical = IntegerCategoricalHead(Grid(1, 1, 1, 256))
    rows = integers(logits(256, 3.0, rows=16))
    of_rows = categorical.symbol(rows).frequencies()
    for image in range(16):
        only = slice(image, image + 1)
        alone = exact.unroll(parameters[only], x[only], 3)
        for channel, step in enumerate(alone):
            assert torch.equal(step, together[channel][only])
            frequencies = exact.symbol(step).frequencies()
            assert torch.equal(frequencies, of_pixels[channel][only])
        assert torch.equal(categorical.symbol(rows[only]).frequencies(), of_rows[only])


def test_int32_and_int64_parameters_give_the_same() -> None:
    head = mixture_head(3, 256, 4)
    exact = IntegerMixtureHead(head.grid, 4)
    parameters = integers(pixels(head, (0.5, 20.0), 0.5))
    x = random_symbols(head.grid, len(parameters))
    narrow = exact.unroll(parameters.int(), x, 3)
    for mine, theirs in zip(narrow, exact.unroll(parameters, x, 3), strict=True):
        assert torch.equal(mine, theirs)


def test_a_whole_grid_has_the_log_probabilities_of_its_symbols() -> None:
    head = mixture_head(3, 256, 4)
    exact = IntegerMixtureHead(head.grid, 4)
    parameters = integers(pixels(head, (0.5, 20.0), 0.5, rows=12)).view(3, 2, 2, -1)
    x = random_symbols(head.grid, 12).view(3, 2, 2, 3)
    whole = exact(parameters)
    log_prob = whole.log_prob(x)
    table = whole.table(x)
    assert log_prob.dtype == torch.float64
    assert torch.equal(log_prob, table.gather(-1, x.unsqueeze(-1)).squeeze(-1))
    steps = exact.unroll(parameters[:, 1, 0], x[:, 1, 0], 3)
    for channel, step in enumerate(steps):
        assert torch.equal(table[:, 1, 0, channel], exact.symbol(step).table())
    mode = whole.mode()
    assert torch.equal(mode[..., 0], table[..., 0, :].argmax(-1))
    categorical = IntegerCategoricalHead(Grid(2, 2, 3, 9))
    z = integers(logits(9, 2.0, rows=36)).view(3, 2, 2, 3, 9)
    x = x % 9
    of_symbol = categorical.symbol(z[:, 0, 1, 2]).log_prob(x[:, 0, 1, 2])
    assert torch.equal(categorical(z).log_prob(x)[:, 0, 1, 2], of_symbol)


def test_a_posterior_can_be_cloned_and_selected() -> None:
    head = mixture_head(3, 256, 4)
    exact = IntegerMixtureHead(head.grid, 4)
    parameters = integers(pixels(head, (0.5, 20.0), 0.5, rows=6))
    x = random_symbols(head.grid, 6)
    expected = exact.unroll(parameters, x, 3)
    _, state = exact.next(None, 0, exact.start(parameters))
    _, state = exact.next(x[:, 0], 1, state)
    rows = torch.tensor([4, 0, 4])
    picked = state.select(rows)
    copy = state.clone()
    # A step on one must not show in the others.
    exact.next((x[:, 1] + 100) % 256, 2, state)
    step, _ = exact.next(x[:, 1], 2, copy)
    assert torch.equal(step, expected[2])
    step, _ = exact.next(x[rows, 1], 2, picked)
    assert torch.equal(step, expected[2][rows])


def test_weights_keep_their_sum_and_proportions() -> None:
    proportions = torch.tensor([[1, 1, 1], [0, 0, 5], [2**40, 1, 2**40 - 1]])
    weights = mixture_weights(proportions)
    third = 2**20 // 3
    assert weights.tolist() == [[third + 1, third, third], [0, 0, 2**20], [2**19 + 1, 0, 2**19 - 1]]


# Conversion.


def test_each_float_head_has_its_integer_head() -> None:
    grid = Grid(3, 3, 2, 16)
    assert isinstance(integer_head(CategoricalHead(grid)), IntegerCategoricalHead)
    mixture = integer_head(LogisticMixtureHead(grid, 7))
    assert isinstance(mixture, IntegerMixtureHead)
    assert mixture.size == LogisticMixtureHead(grid, 7).size
    assert mixture.config() == {"name": "integer-mixture", "components": 7}


def test_other_heads_are_refused_by_name() -> None:
    class Custom(CategoricalHead):
        name = "mine"

    heads: list[Head] = [OrdinalHead(Grid(1, 1, 1, 4)), Custom(Grid(1, 1, 1, 4))]
    for head in heads:
        with pytest.raises(ConfigError, match=f"'{head.name}'"):
            integer_head(head)


def test_grids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="1,048,577"):
        IntegerCategoricalHead(Grid(1, 1, 1, 2**20 + 1))
    with pytest.raises(ConfigError, match="1,048,577"):
        IntegerMixtureHead(Grid(1, 1, 1, 2**20 + 1))
    with pytest.raises(ConfigError, match="at least 3 levels"):
        IntegerMixtureHead(Grid(1, 1, 1, 2))


def test_log_probabilities_become_logits() -> None:
    head = IntegerCategoricalHead(Grid(1, 1, 1, 4))
    table = torch.tensor([[0.5, 0.25, 0.25, 0.0]]).log()
    distribution = head.symbol(head.parameters_from_table(table))
    expected = torch.tensor([[TOTAL / 2, TOTAL / 4, TOTAL / 4, 1]], dtype=torch.float64)
    assert float((distribution.frequencies() - expected).abs().max()) < 150
    assert int(distribution.frequencies()[0, 3]) == 1

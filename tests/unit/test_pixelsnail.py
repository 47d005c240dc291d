"""PixelSNAIL's attention and convolutions against computations by loops, in float64."""

from __future__ import annotations

import itertools
import math
from typing import TypeVar

import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError
from tessella.models.pixelsnail import PixelSNAIL
from tessella.nn.pixelsnail_layers import AttentionBlock, strictly_before
from tessella.nn.shifted_convolution import CausalKernel

M = TypeVar("M", bound=torch.nn.Module)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some(grid: ts.Grid, n: int) -> torch.Tensor:
    return torch.randint(grid.levels, (n, *grid.shape), generator=torch.Generator().manual_seed(1))


def moved(module: M) -> M:
    """The module in float64 with every parameter moved."""
    module = module.double().requires_grad_(False)
    for seed, parameter in enumerate(module.parameters()):
        parameter += 0.2 * random(*parameter.shape, seed=seed)
    return module


def small(
    grid: ts.Grid, classes: int = 0, codes: ts.Grid | None = None, **sizes: int
) -> PixelSNAIL:
    given = {
        "blocks": 2,
        "residual_blocks": 1,
        "channels": 4,
        "residual_channels": 3,
        "heads": 2,
    } | sizes
    model = moved(ts.create("pixelsnail", grid, classes=classes, codes=codes, **given))
    assert isinstance(model, PixelSNAIL)
    return model


def attention_by_loops(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    seen = torch.zeros_like(values)
    batch, heads, positions, size = queries.shape
    for b, h, t in itertools.product(range(batch), range(heads), range(positions)):
        scores = [
            math.exp(float(queries[b, h, t] @ keys[b, h, s]) / math.sqrt(size)) for s in range(t)
        ]
        for s, score in enumerate(scores):
            seen[b, h, t] += score / sum(scores) * values[b, h, s]
    return seen


def test_attention_looks_at_the_positions_strictly_before() -> None:
    queries, keys, values = (random(2, 3, 7, 4, seed=s) for s in range(3))
    expected = attention_by_loops(queries, keys, values)
    torch.testing.assert_close(strictly_before(queries, keys, values), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("positions", [1, 2, 5])
def test_the_first_position_sees_zeros(positions: int) -> None:
    seen = strictly_before(*(random(2, 3, positions, 4, seed=s) for s in range(3)))
    assert seen.shape == (2, 3, positions, 4)
    assert not seen[:, :, 0].any()


def test_a_block_attends_with_the_pixels_themselves_in_the_keys() -> None:
    block = moved(AttentionBlock(4, 3, 3, 0.0, codes=False, count=1, heads=2))
    x, pixels, places = random(2, 2, 3, 4), random(2, 2, 3, 4, seed=1), random(2, 2, 3, 2, seed=2)
    asking = block.query_block(torch.cat([x, places], -1)) @ block.query.weight.T + block.query.bias
    told = block.key_block(torch.cat([pixels, x, places], -1)) @ block.keys_values.weight.T
    heads = [
        part.reshape(2, 6, 2, 1).transpose(1, 2) for part in (asking, told[..., :2], told[..., 2:])
    ]
    seen = attention_by_loops(*heads).transpose(1, 2).reshape(2, 2, 3, 2)
    torch.testing.assert_close(
        block.attend(x, pixels, places), block.merge(x, seen), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_causal_kernel_sees_rows_above_and_its_own_row_to_the_left(kernel: int) -> None:
    layer = moved(CausalKernel(3, 4, kernel))
    x, weight = random(2, 5, 6, 3), layer.weight()
    expected = layer.bias.expand(2, 5, 6, 4).clone()
    for r, c, up, tap in itertools.product(range(5), range(6), range(kernel), range(kernel)):
        row, column = r - up, c + tap - (kernel // 2 if up else kernel - 1)
        if row >= 0 and 0 <= column < 6:
            expected[:, r, c] += x[:, row, column] @ weight[:, :, kernel - 1 - up, tap].T
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 8), (7, 5), (1, 3), (4, 1)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_step_equals_forward(shape: tuple[int, int], kernel: int) -> None:
    model = small(ts.Grid(*shape, 2, 4), 2, residual_blocks=2, kernel=kernel)
    x, labels = some(model.grid, 3), torch.tensor([0, 1, 2])
    expected = model.distribution(x, model.condition(labels, 3)).table(x).flatten(1, 3)
    state, previous = model.init_state(3, labels), labels
    for index in range(model.grid.symbols):
        parameters, state = model.step(previous, index, state)
        table = model.head.symbol(parameters).table()
        torch.testing.assert_close(table, expected[:, index], rtol=0, atol=1e-12)
        previous = x.flatten(1)[:, index]


@pytest.mark.parametrize("index", [8, 9, 10, 13])
def test_a_state_chosen_from_another_goes_on_as_forward(index: int) -> None:
    # Rows of 5 pixels with 1 symbol: inside a row, before its last pixel, before a row and inside
    # the next.
    codes = ts.Grid(2, 2, 1, 5)
    model = small(ts.Grid(4, 5, 1, 3), 2, codes, residual_blocks=2)
    cond = {"class": torch.tensor([0, 1, 2]), "codes": some(codes, 3)}
    x, rows = some(model.grid, 3), torch.tensor([2, 0, 0, 1])
    expected = model.distribution(x, model.condition(cond, 3)).table(x).flatten(1, 3)[rows]
    state, symbols = model.init_state(3, cond), x.flatten(1)
    for i in range(index):
        _, state = model.step(symbols[:, i - 1], i, state)
    chosen = state.select(rows)
    model.step(1 - symbols[:, index - 1].clamp(max=1), index, state)
    for i in range(index, model.grid.symbols):
        parameters, chosen = model.step(symbols[rows, i - 1], i, chosen)
        torch.testing.assert_close(
            model.head.symbol(parameters).table(), expected[:, i], rtol=0, atol=1e-12
        )


def test_every_pixel_sees_the_one_at_the_end_of_the_row_above() -> None:
    # The convolutions alone do not reach it: a key must hold the value of its own pixel.
    model = small(ts.Grid(2, 16, 1, 3), blocks=1)
    x = some(model.grid, 1)
    changed = x.clone()
    changed[0, 0, 15] = (changed[0, 0, 15] + 1) % 3
    tables = [model.distribution(y).table(y)[0, 1, :, 0] for y in (x, changed)]
    assert bool(((tables[1] - tables[0]).abs().amax(-1) > 1e-13).all())
    assert torch.equal(model.receptive_field(), torch.ones(32, 32).tril(-1).bool())


def test_codes_reach_the_first_pixel() -> None:
    codes = ts.Grid(2, 2, 1, 5)
    model = small(ts.Grid(4, 4, 1, 3), codes=codes)
    x, upper = some(model.grid, 1), some(codes, 1)
    first = [
        model.distribution(x, model.condition(c, 1)).table(x)[0, 0, 0]
        for c in (upper, (upper + 1) % 5)
    ]
    assert float((first[1] - first[0]).abs().max()) > 1e-6


def parameters(
    blocks: int, residual_blocks: int, channels: int, hidden: int, kernel: int, levels: int
) -> int:
    """Parameters counted layer by layer."""

    def layer(fan_in: int, fan_out: int) -> int:
        return fan_out * (fan_in + 2)  # direction, gain, bias

    def point(width: int) -> int:
        return layer(width, channels) + layer(channels, 2 * width)

    half, side = channels // 2, kernel // 2
    first = layer(channels * side * kernel, channels) + layer(
        channels * side * (side + 1), channels
    )
    convolutions = layer(channels * kernel**2, hidden) + layer(hidden * kernel**2, 2 * channels)
    points = point(2 * channels + 2) + point(channels + 2) + point(channels) + layer(half, channels)
    products = (channels + 3) * half + (2 * channels + 2) * 2 * half
    ends = (levels + 1) * channels + (channels + 1) * levels
    return first + blocks * (residual_blocks * convolutions + points + products) + ends


@pytest.mark.parametrize(("blocks", "residual_blocks", "kernel"), [(1, 2, 3), (3, 1, 5)])
def test_parameters_are_those_of_its_layers(blocks: int, residual_blocks: int, kernel: int) -> None:
    sizes = {"blocks": blocks, "residual_blocks": residual_blocks, "kernel": kernel}
    model = ts.create(
        "pixelsnail", ts.Grid(4, 4, 1, 9), channels=8, residual_channels=5, heads=2, **sizes
    )
    assert model.parameter_count() == parameters(blocks, residual_blocks, 8, 5, kernel, 9)


def test_the_usual_size_has_about_the_usual_number_of_parameters() -> None:
    # 84,873,280 in a public implementation, of which a mask holds 9,437,184 at zero; here none is.
    count = parameters(blocks=4, residual_blocks=4, channels=256, hidden=256, kernel=5, levels=512)
    assert count == 83_952_960
    assert abs(count / 84_873_280 - 1) < 0.05


def test_a_fresh_model_knows_about_nothing() -> None:
    model = ts.create("pixelsnail", ts.Grid(8, 8, 1, 16))
    with torch.no_grad():
        bits = model.bits_per_dim(some(model.grid, 8)).mean()
    assert abs(float(bits) - 4.0) < 0.1


@pytest.mark.parametrize(
    "sizes",
    [{"blocks": 0}, {"kernel": 4}, {"kernel": 1}, {"heads": 3}, {"dropout": 1.0}, {"channels": 6}],
)
def test_sizes_that_make_no_network_are_refused(sizes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="pixelsnail needs"):
        ts.create("pixelsnail", ts.Grid(4, 4, 1, 2), **sizes)

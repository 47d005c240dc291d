"""PixelCNN++ and the shifted convolutions it is made of, against direct computations in float64."""

from __future__ import annotations

import itertools
from typing import TypeVar

import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError
from tessella.models.pixelcnn_pp import PixelCNNpp
from tessella.nn.pixelcnn_pp_layers import Resize, grown_index
from tessella.nn.shifted_convolution import (
    Normed,
    ShiftedConvolution,
    UpsamplingConvolution,
    concat_elu,
)
from tessella.nn.stepping.program import Moving
from tessella.nn.stepping.runs import RunsNow
from tessella.nn.stepping.step import GridStep, MemoryAllocator, StateMemory

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


def small(grid: ts.Grid, classes: int = 0, **sizes: int) -> ts.DensityModel:
    return moved(
        ts.create("pixelcnn++", grid, classes=classes, **{"filters": 4, "embedding": 3} | sizes)
    )


def kernel(layer: Normed) -> torch.Tensor:
    """Gain times direction over its length, by loops."""
    rows = [
        gain * v / (v * v).sum().sqrt()
        for gain, v in zip(layer.gain.flatten(), layer.direction, strict=True)
    ]
    return torch.stack(rows)


SHIFTED = [
    (2, 1, 1, 1),
    (2, 1, 0, 1),
    (2, 1, 1, 2),
    (2, 1, 0, 2),
    (1, 1, 1, 1),
    (2, 0, 0, 1),
    (3, 0, 0, 1),
]


@pytest.mark.parametrize(("rows", "left", "right", "stride"), SHIFTED)
def test_a_shifted_convolution_is_a_sum_over_its_window(
    rows: int, left: int, right: int, stride: int
) -> None:
    layer = moved(ShiftedConvolution(3, 4, rows, left, right, stride))
    x = random(2, 6, 4, 3)
    weight = kernel(layer)
    expected = layer.bias.expand(2, 6 // stride, 4 // stride, 4).clone()
    for r, c, up, aside in itertools.product(
        range(6 // stride), range(4 // stride), range(rows), range(-left, right + 1)
    ):
        row = stride * r - up
        column = stride * c + aside
        if row >= 0 and 0 <= column < 4:
            expected[:, r, c] += x[:, row, column] @ weight[:, :, rows - 1 - up, left + aside].T
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("taps", [2, 3])
def test_a_growing_convolution_spreads_each_place(taps: int) -> None:
    layer = moved(UpsamplingConvolution(3, 4, taps))
    x = random(2, 3, 4, 3)
    weight = kernel(layer)
    expected = layer.bias.expand(2, 6, 8, 4).clone()
    for r, c, down, tap in itertools.product(range(3), range(4), range(2), range(taps)):
        column = 2 * c + tap - (taps - 2)
        if 0 <= column < 8:
            expected[:, 2 * r + down, column] += x[:, r, c] @ weight[:, :, down, tap].T
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def steps_of(x: torch.Tensor, width: int, smaller: int) -> tuple[GridStep, GridStep]:
    """Steps over maps of that width and over smaller ones that are made of them."""
    memory = MemoryAllocator(StateMemory(), len(x), x)
    return GridStep(memory, width), GridStep(memory, smaller)


@pytest.mark.parametrize(("right", "stride"), [(0, 1), (1, 1), (0, 2), (1, 2)])
def test_a_convolution_is_stepped_along_rows_as_over_the_whole_map(right: int, stride: int) -> None:
    layer = moved(ShiftedConvolution(3, 4, 2, 1, right, stride))
    x = random(2, 6, 4, 3)
    step, into = steps_of(x, 4, 4 // stride)
    stepped = layer.bind(step, into=into)
    out = into.row.zeros(4)
    stepped.write_row(out)
    expected = layer(x)
    for r in range(6):
        step.advance.run()
        stepped.input.row.copy_(x[:, r])
        if r % stride == 0:
            into.row.run(r // stride)
            torch.testing.assert_close(out, expected[:, r // stride], rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_stepped_along_pixels_as_over_the_whole_map(stride: int) -> None:
    layer = moved(ShiftedConvolution(3, 4, 2, 1, 0, stride))
    x = random(2, 6, 4, 3)
    step, into = steps_of(x, 4, 4 // stride)
    stepped = layer.bind(step, into=into)
    out = into.pixel.zeros(4)
    stepped.write_place(out)
    expected = layer(x)
    for r, c in itertools.product(range(6), range(4)):
        row = r // stride
        column = c // stride
        if c == 0:
            step.start_row(RunsNow(), r)
            into.row.run(row)
        stepped.input.at("column").at(c).copy_(x[:, r, c])
        if r % stride == 0 and c % stride == 0:
            into.start_pixel(RunsNow(), row, column)
            torch.testing.assert_close(out, expected[:, row, column], rtol=0, atol=1e-12)


def test_resolutions_grow_row_by_row_as_the_convolution_does() -> None:
    layer = moved(Resize(3))
    x = random(2, 2, 4, 3)
    smaller, _ = steps_of(x, 4, 4)
    row = smaller.places(3, right=1)
    rows, _ = layer.write_grow(smaller, row, smaller.pixel.zeros(3), "parity", "grown")
    expected = layer.grow_v(x)
    grown = rows.moving_row()
    assert isinstance(grown, Moving)
    for r in range(2):
        row.row.copy_(x[:, r])
        smaller.row.run(r)
        for parity in (0, 1):
            torch.testing.assert_close(
                grown.at(parity), expected[:, 2 * r + parity], rtol=0, atol=1e-12
            )


def test_resolutions_grow_place_by_place_as_the_convolution_does() -> None:
    layer = moved(Resize(3))
    x = random(2, 1, 4, 3)
    smaller, _ = steps_of(x, 4, 4)
    h = smaller.pixel.zeros(3)
    _, places = layer.write_grow(smaller, smaller.places(3, right=1), h, "parity", "grown")
    expected = layer.grow_h(x)
    assert isinstance(places, Moving)
    for c in range(4):
        h.copy_(x[:, 0, c])
        smaller.start_pixel(RunsNow(), 0, c)
    for r, c in itertools.product(range(2), range(8)):
        place = places.at(grown_index(r, c))
        torch.testing.assert_close(place, expected[:, r, c], rtol=0, atol=1e-12)


def test_concat_elu_has_both_signs() -> None:
    x = torch.tensor([2.0, -1.0], dtype=torch.float64)
    low = torch.expm1(torch.tensor([-1.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close(
        concat_elu(x), torch.stack([x[0], low[0], low[1], -x[1]]), rtol=0, atol=1e-15
    )


@pytest.mark.parametrize("shape", [(8, 8), (7, 5), (4, 4)])
@pytest.mark.parametrize("scales", [1, 2, 3])
@pytest.mark.parametrize("blocks", [1, 2])
def test_step_equals_forward_at_every_scale(
    shape: tuple[int, int], scales: int, blocks: int
) -> None:
    model = small(ts.Grid(*shape, 1, 4), 2, blocks=blocks, scales=scales)
    x = some(model.grid, 3)
    labels = torch.tensor([0, 1, 2])
    expected = model.distribution(x, model.condition(labels, 3)).table(x).flatten(1, 3).detach()
    state = model.init_state(3, labels)
    previous = labels
    for index in range(model.grid.symbols):
        parameters, state = model.step(previous, index, state)
        table = model.head.symbol(parameters).table()
        torch.testing.assert_close(table, expected[:, index], rtol=0, atol=1e-12)
        previous = x.flatten(1)[:, index]


@pytest.mark.parametrize("index", [1, 13, 24, 33])
def test_images_can_be_selected_inside_a_row_of_every_scale(index: int) -> None:
    model = small(ts.Grid(7, 5, 1, 4), scales=3)
    x = some(model.grid, 3)
    rows = torch.tensor([2, 0, 2])
    expected = model.distribution(x[rows]).table(x[rows]).flatten(1, 3).detach()
    state = model.init_state(3)
    symbols = x.flatten(1)
    for i in range(model.grid.symbols):
        if i == index:
            state = state.select(rows)
            symbols = symbols[rows]
        parameters, state = model.step(symbols[:, i - 1], i, state)
        if i >= index:
            table = model.head.symbol(parameters).table()
            torch.testing.assert_close(table, expected[:, i], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("scales", "embedding"), [(1, 0), (2, 2), (3, 0)])
def test_pixels_see_their_receptive_field_and_nothing_else(scales: int, embedding: int) -> None:
    model = small(ts.Grid(7, 6, 1, 3), scales=scales, embedding=embedding)
    x = some(model.grid, 1)
    n = model.grid.symbols
    changed = x.flatten(1).repeat(n, 1)
    changed.diagonal().add_(1).remainder_(3)
    with torch.no_grad():
        tables = [
            model.distribution(y).table(y).flatten(1, 3) for y in (x, changed.view(n, 7, 6, 1))
        ]
    depends = ((tables[1] - tables[0]).abs().amax(-1) > 1e-13).T
    assert torch.equal(depends, model.receptive_field())


def test_more_scales_see_farther() -> None:
    grid = ts.Grid(4, 24, 1, 2)
    fields = [
        ts.create("pixelcnn++", grid, filters=2, scales=s).receptive_field().sum()
        for s in (1, 2, 3)
    ]
    assert fields[0] < fields[1] < fields[2]


def test_probabilities_of_all_4x4_grids_of_two_levels_sum_to_one() -> None:
    model = small(ts.Grid(4, 4, 1, 2), filters=1, scales=2, embedding=0)
    every = (torch.arange(1 << 16)[:, None] >> torch.arange(16)) & 1
    with torch.no_grad():
        parts = [model.log_prob(part.view(-1, 4, 4, 1)) for part in every.split(8192)]
    total = torch.cat(parts).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_paper_feeds_intensities_and_a_one() -> None:
    model = ts.create(
        "pixelcnn++", ts.Grid(1, 1, 3, 256), head="logistic-mixture", filters=4, embedding=0
    )
    assert isinstance(model, PixelCNNpp)
    fed = model.input(torch.tensor([[[[0, 255, 51]]]]))
    torch.testing.assert_close(fed.flatten(), torch.tensor([-1.0, 1.0, 51 * 2 / 255 - 1, 1.0]))


def parameters(blocks: int, filters: int, scales: int, outputs: int) -> int:
    """Parameters on pixels of 3 channels fed as intensities, counted layer by layer."""

    def layer(fan_in: int, fan_out: int) -> int:
        return fan_out * (fan_in + 2)  # direction, gain, bias

    def block(skips: int, taps: int) -> int:
        skip = layer(2 * skips * filters, filters) if skips else 0
        return layer(2 * filters * taps, filters) + layer(2 * filters * taps, 2 * filters) + skip

    down = block(0, 6) + block(1, 4)
    up = block(1, 6) + block(2, 4)
    first = sum(layer(4 * taps, filters) for taps in (6, 3, 2))
    resize = 2 * (layer(6 * filters, filters) + layer(4 * filters, filters))
    several = scales * blocks * down + (scales * blocks + scales - 1) * up + (scales - 1) * resize
    return first + several + (filters + 1) * outputs


@pytest.mark.parametrize(("blocks", "filters", "scales"), [(1, 4, 1), (2, 6, 2), (5, 8, 3)])
def test_parameters_are_those_of_the_paper(blocks: int, filters: int, scales: int) -> None:
    grid = ts.Grid(4, 4, 3, 256)
    model = ts.create(
        "pixelcnn++",
        grid,
        "logistic-mixture",
        blocks=blocks,
        filters=filters,
        scales=scales,
        embedding=0,
    )
    assert model.parameter_count() == parameters(blocks, filters, scales, 100)


def test_the_paper_size_has_its_number_of_parameters() -> None:
    # 53,659,080 in a public implementation, which also has a gain for each of the 100 outputs of
    # its last layer.
    assert parameters(5, 160, 3, 100) == 53_659_080 - 100


@pytest.mark.parametrize("embedding", [0, 8])
def test_a_fresh_model_knows_about_nothing(embedding: int) -> None:
    model = ts.create("pixelcnn++", ts.Grid(8, 8, 1, 16), embedding=embedding)
    with torch.no_grad():
        bits = model.bits_per_dim(some(model.grid, 8)).mean()
    assert abs(float(bits) - 4.0) < 0.1


@pytest.mark.parametrize(
    "sizes", [{"blocks": 0}, {"filters": 0}, {"scales": 0}, {"scales": 9}, {"dropout": 1.0}]
)
def test_sizes_that_make_no_network_are_refused(sizes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="pixelcnn\\+\\+ needs"):
        ts.create("pixelcnn++", ts.Grid(4, 4, 1, 2), **sizes)

"""PixelCNN, and what the families with channel groups share: groups, masks, receptive fields,
output."""

from __future__ import annotations

import itertools

import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError
from tessella.models.channel_masked import ChannelMasked
from tessella.models.pixelcnn import PixelCNN
from tessella.nn.channel_groups import ChannelGroups, ChannelGroupStep, GroupedConvolution
from tessella.nn.embedding import ChannelEmbedding
from tessella.nn.pixelcnn_layers import ResidualBlock
from tessella.nn.stepping.program import Program
from tessella.nn.stepping.step import MemoryAllocator, StateMemory

FAMILIES = ["pixelcnn", "row-lstm", "diagonal-bilstm"]


def build(name: str, grid: ts.Grid, head: str = "categorical", **sizes: object) -> ChannelMasked:
    """A model in float64 whose parameters have been moved."""
    model = ts.create(name, grid, head, seed=1, **sizes).double()
    assert isinstance(model, ChannelMasked)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return model


def measured_field(model: ts.DensityModel) -> torch.Tensor:
    """Which symbols change the parameters of which, by changing each."""
    grid = model.grid
    seen = torch.zeros(grid.symbols, grid.symbols, dtype=torch.bool)
    with torch.no_grad():
        for seed in range(3):
            x = torch.randint(
                grid.levels, (1, *grid.shape), generator=torch.Generator().manual_seed(seed)
            )
            changed = x.flatten(1).repeat(grid.symbols, 1)
            changed.diagonal().add_(1).remainder_(grid.levels)
            moved = (model(changed.view(-1, *grid.shape)) - model(x)).abs().amax(-1).flatten(1)
            seen |= (moved > 1e-13).T
    return seen


def test_groups_may_be_unequal() -> None:
    groups = ChannelGroups(3)
    assert groups.bounds(5) == [0, 1, 3, 5]
    assert groups.group_indices(5).tolist() == [0, 1, 1, 2, 2]
    assert groups.group_indices(3, maps=2).tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("own", "rows"),
    [(False, ["0000", "1000", "1000", "1100"]), (True, ["1000", "1100", "1100", "1111"])],
)
def test_masks_a_and_b(own: bool, rows: list[str]) -> None:
    # Of four features the groups own 1, 1, 2 of the inputs; the outputs are 0 | 1 | 1 again | 2.
    groups = ChannelGroups(3)
    mask = groups.mask(4, 4, inclusive=own)
    chosen = mask[[0, 1, 1, 3]]
    assert ["".join(str(int(v)) for v in row) for row in chosen] == rows


def test_arranged_by_group_the_maps_of_a_group_lie_together() -> None:
    groups = ChannelGroups(2)
    assert groups.arranged(torch.arange(6), maps=2).tolist() == [0, 3, 1, 2, 4, 5]
    assert groups.slices(3, maps=2) == [slice(0, 2), slice(2, 6)]


@pytest.mark.parametrize(("above", "aside", "own"), [(3, 3, False), (1, 1, True), (0, 1, True)])
def test_a_grouped_convolution_is_a_sum_over_what_a_group_may_see(
    above: int, aside: int, own: bool
) -> None:
    torch.manual_seed(0)
    groups, inputs, outputs, maps = ChannelGroups(2), 3, 5, 2
    layer = GroupedConvolution(groups, inputs, outputs, above, aside, maps, own).double()
    x = torch.randn(2, 4, 5, inputs, dtype=torch.float64)
    expected = torch.zeros(2, 4, 5, maps * outputs, dtype=torch.float64)
    for r, c, o in itertools.product(range(4), range(5), range(maps * outputs)):
        group = int(o % outputs >= outputs // 2)
        for dr, dc, i in itertools.product(
            range(-above, 1), range(-aside, aside + 1), range(inputs)
        ):
            owner = int(i >= inputs // 2)
            here = dr == dc == 0
            if (dr == 0 and dc > 0) or (here and (owner > group or (owner == group and not own))):
                continue
            if r + dr >= 0 and 0 <= c + dc < 5:
                expected[:, r, c, o] += (
                    layer.weight[o, i, dr + above, dc + aside].detach() * x[:, r + dr, c + dc, i]
                )
    torch.testing.assert_close(
        layer(x).detach(), expected + layer.bias.detach(), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("above", "aside", "maps", "inclusive"), [(3, 3, 1, False), (1, 1, 1, True), (1, 2, 4, True)]
)
def test_a_grouped_convolution_is_stepped_by_group_as_over_the_whole_map(
    above: int, aside: int, maps: int, inclusive: bool
) -> None:
    torch.manual_seed(0)
    groups, inputs, outputs, width = ChannelGroups(3), 7, 9, 6
    layer = GroupedConvolution(groups, inputs, outputs, above, aside, maps, inclusive)
    layer = layer.double().requires_grad_(False)
    x = torch.randn(2, 5, width, inputs, dtype=torch.float64)
    bias = torch.randn(2, 1, maps * outputs, dtype=torch.float64)
    expected = groups.arranged(layer(x) + bias[:, None], maps)
    programs = [Program(2, ("column",), x) for _ in range(groups.count)]
    step = ChannelGroupStep(MemoryAllocator(StateMemory(), 2, x), width, programs)
    stepped = layer.bind(step, bias)
    places = groups.slices(outputs, maps)
    outs = []
    for group, place in enumerate(places):
        outs.append(programs[group].zeros(place.stop - place.start))
        stepped.write_group(programs[group], group, outs[group])
    bounds = groups.bounds(inputs)
    for row in range(5):
        step.row.run()
        for column in range(width):
            pixel = stepped.input.row[:, column]
            for group, place in enumerate(places):
                # A mask of type B needs the group itself, one of type A those before it.
                known = bounds[group + 1] if inclusive else bounds[group]
                pixel[:, :known] = x[:, row, column, :known]
                programs[group].run(column)
                torch.testing.assert_close(outs[group], expected[:, row, column, place])
            pixel.copy_(x[:, row, column])


def test_channels_are_embedded_side_by_side() -> None:
    embedding = ChannelEmbedding(ts.Grid(2, 2, 3, 4), 5)
    x, table = torch.randint(4, (2, 2, 2, 3)), embedding.table()
    expected = torch.cat([table[c][x[..., c]] for c in range(3)], dim=-1)
    assert torch.equal(embedding(x), expected)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_blind_spot_lies_to_the_right_of_a_wedge(layers: int) -> None:
    model = build("pixelcnn", ts.Grid(8, 15, 1, 2), layers=layers, hidden=2, last=2)
    field = model.receptive_field().view(8, 15, 8, 15)[7, 4]
    for up, right in itertools.product(range(1, 8), range(1, 11)):
        # A block leads one row up and at most one pixel right, the first layer three pixels right
        # from one row up.
        expected = up <= layers + 3 and right <= min(up - 1, layers) + 3
        assert bool(field[7 - up, 4 + right]) == expected
    assert field[7].tolist() == [layers + 3 >= 4 - c > 0 for c in range(15)]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("grid", [ts.Grid(3, 9, 1, 3), ts.Grid(2, 7, 2, 3)], ids=str)
def test_the_receptive_field_is_that_of_wide_grids_too(name: str, grid: ts.Grid) -> None:
    model = build(name, grid, layers=1, hidden=12, last=16)
    field = model.receptive_field()
    assert torch.equal(measured_field(model), field)
    assert int(field.sum()) < grid.symbols * (grid.symbols - 1) // 2, (
        "wide enough that something is not seen"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_joint_head_has_one_group_and_a_factored_one_has_a_group_a_channel(name: str) -> None:
    grid = ts.Grid(2, 2, 3, 5)
    assert build(name, grid).groups.count == 3
    assert build(name, grid, head="logistic-mixture").groups.count == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_a_class_reaches_every_symbol(name: str) -> None:
    model = ts.create(name, ts.Grid(3, 3, 2, 4), classes=2, seed=1)
    x = torch.zeros(1, 3, 3, 2, dtype=torch.int64)
    scores = [model.log_prob(x, torch.tensor([c]), reduce=False) for c in range(3)]
    assert all(bool((a != b).all()) for a, b in itertools.combinations(scores, 2))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_leaves_later_groups_alone(name: str) -> None:
    model = build(name, ts.Grid(2, 2, 3, 4), layers=1, hidden=9, last=24)
    state, previous = model.init_state(2), torch.zeros(2, dtype=torch.int64)
    for index in range(2):
        _, state = model.step(previous, index, state)
    (middle,) = [memory for memory in state.memory.tensors if memory.shape == (2, 24)]
    assert bool(middle[:, :16].any())
    assert not bool(middle[:, 16:].any())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fresh_model_knows_no_more_than_the_levels(name: str) -> None:
    model = ts.create(name, ts.Grid(8, 8, 3, 256), seed=1)
    x = torch.randint(256, (2, 8, 8, 3), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        model.bits_per_dim(x).detach(), torch.full((2,), 8.0), rtol=0, atol=0.2
    )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("sizes", [{"layers": 0}, {"hidden": 2}, {"last": 2}, {"dropout": 1.0}])
def test_sizes_that_make_no_network_are_refused(name: str, sizes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{name} needs"):
        ts.create(name, ts.Grid(2, 2, 3, 4), **sizes)


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_works_in_training_only(name: str) -> None:
    model = ts.create(name, ts.Grid(3, 3, 1, 4), dropout=0.5)
    x = torch.zeros(1, 3, 3, 1, dtype=torch.int64)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_layers_of_the_papers_cifar_model() -> None:
    model = ts.create("pixelcnn", ts.Grid(4, 4, 3, 256), layers=15, hidden=128, last=192)
    assert isinstance(model, PixelCNN)
    assert len(model.layers) == 15
    block = model.layers[-1]
    assert isinstance(block, ResidualBlock)
    assert model.first.weight.shape[0] == 256
    assert block.reduce.weight.shape == (128, 256)
    assert block.around.weight.shape == (128, 128, 2, 3), "a 3 x 3 kernel without the row below"
    assert block.restore.weight.shape == (256, 128)

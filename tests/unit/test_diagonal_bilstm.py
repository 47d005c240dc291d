"""Diagonal BiLSTM: the walk along diagonals against a loop over pixels, the shift, the field."""

from __future__ import annotations

import pytest
import torch

import tessella as ts
from tessella.models.diagonal_bilstm import DiagonalBiLSTM
from tessella.nn.channel_groups import ChannelGroups
from tessella.nn.diagonal_bilstm_layers import DiagonalLayer, Diagonals

SHAPES = [(1, 1), (1, 4), (4, 1), (3, 5), (5, 3)]


def build(height: int, width: int, hidden: int = 5) -> DiagonalLayer:
    torch.manual_seed(0)
    return DiagonalLayer(ChannelGroups(2), hidden, Diagonals(height, width), dropout=0.0).double()


def by_pixel(
    layer: DiagonalLayer, x: torch.Tensor, bias: torch.Tensor, direction: int
) -> torch.Tensor:
    """The states ``[batch, height, width, hidden]`` of a direction, one pixel after the other."""
    batch, height, width, _ = x.shape
    linear = (layer.left, layer.right)[direction]
    beside, columns = (-1, range(width)) if direction == 0 else (1, reversed(range(width)))
    columns = list(columns)
    above_weight, beside_weight = layer.state[direction].chunk(2)
    zero = x.new_zeros(batch, layer.hidden)
    hidden: dict[tuple[int, int], torch.Tensor] = {}
    cell: dict[tuple[int, int], torch.Tensor] = {}
    for r in range(height):
        for c in columns:
            gates = x[:, r, c] @ linear.kernel().T + linear.bias + bias.chunk(2, dim=-1)[direction]
            gates = gates + hidden.get((r - 1, c), zero) @ above_weight
            gates = gates + hidden.get((r, c + beside), zero) @ beside_weight
            o, f, i, g = gates.chunk(4, dim=-1)
            cell[r, c] = f.sigmoid() * cell.get((r, c + beside), zero) + i.sigmoid() * g.tanh()
            hidden[r, c] = o.sigmoid() * cell[r, c].tanh()
    rows = [torch.stack([hidden[r, c] for c in range(width)], 1) for r in range(height)]
    return torch.stack(rows, 1)


def inputs(height: int, width: int, hidden: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, height, width, 2 * hidden, generator=generator, dtype=torch.float64)
    return x, torch.randn(2, 8 * hidden, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("direction", [0, 1])
def test_the_walk_along_diagonals_equals_one_pixel_after_the_other(
    height: int, width: int, direction: int
) -> None:
    layer, (x, bias) = build(height, width), inputs(height, width)
    states = layer.states(x, bias[:, None, None])[direction]
    expected = by_pixel(layer, x, bias, direction).flatten(1, 2).transpose(0, 1)
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_the_right_to_left_map_is_moved_down_by_a_row(height: int, width: int) -> None:
    layer, (x, bias) = build(height, width), inputs(height, width)
    both = by_pixel(layer, x, bias, 0)
    both[:, 1:] += by_pixel(layer, x, bias, 1)[:, :-1]
    expected = x + both @ layer.restore.kernel().T
    torch.testing.assert_close(layer(x, bias[:, None, None]), expected, rtol=0, atol=1e-12)


def test_pixels_are_ordered_by_diagonals() -> None:
    diagonals = Diagonals(2, 3)
    assert diagonals.order.tolist() == [[0, 1, 3, 2, 4, 5], [2, 1, 5, 0, 4, 3]]
    assert diagonals.lengths == [1, 2, 2, 1]
    assert diagonals.first_rows == [0, 0, 0, 1]


def test_everything_before_is_seen_but_the_end_of_the_row_above() -> None:
    model = ts.create("diagonal-bilstm", ts.Grid(4, 9, 1, 2), layers=1, hidden=2, last=2)
    field = model.receptive_field().view(4, 9, 4, 9)
    expected = torch.ones(36, 36, dtype=torch.bool).tril(-1).view(4, 9, 4, 9)
    for row in range(1, 4):
        expected[row, :5, row - 1, 8] = (
            False  # the 7 x 7 convolution sees three pixels to the right
        )
    assert torch.equal(field, expected)


@pytest.mark.parametrize(("layers", "hidden"), [(7, 16), (12, 128)])
def test_layers_of_the_papers_models(layers: int, hidden: int) -> None:
    model = ts.create("diagonal-bilstm", ts.Grid(2, 2, 1, 2), layers=layers, hidden=hidden, last=32)
    assert isinstance(model, DiagonalBiLSTM)
    assert len(model.layers) == layers
    layer = model.layers[0]
    assert isinstance(layer, DiagonalLayer)
    assert layer.left.weight.shape == layer.right.weight.shape == (4 * hidden, 2 * hidden)
    assert layer.state.shape == (2, 2 * hidden, 4 * hidden), (
        "a kernel of size 2, from h to 4 h, in each direction"
    )
    assert layer.restore.weight.shape == (2 * hidden, hidden)

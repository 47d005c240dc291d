"""Row LSTM: the walk over rows against a loop over pixels, the cell, the triangle."""

from __future__ import annotations

import itertools

import pytest
import torch

import tessella as ts
from tessella.models.row_lstm import RowLSTM
from tessella.nn.channel_groups import ChannelGroups
from tessella.nn.lstm_cell import lstm_cell, lstm_cell_
from tessella.nn.row_lstm_layers import RowLayer


def test_the_cell_is_that_of_torch() -> None:
    # torch lays the gates out as input, forget, content, output.
    torch.manual_seed(0)
    n, reference = 3, torch.nn.LSTMCell(5, 3).double()
    x, hidden, cell = (torch.randn(2, k, dtype=torch.float64) for k in (5, n, n))
    gates = (
        x @ reference.weight_ih.T
        + hidden @ reference.weight_hh.T
        + reference.bias_ih
        + reference.bias_hh
    )
    i, f, g, o = gates.chunk(4, dim=-1)
    new = lstm_cell(torch.cat([o, f, i, g], dim=-1), cell)
    for ours, theirs in zip(new, reference(x, (hidden, cell)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_the_cell_in_place_is_the_same() -> None:
    torch.manual_seed(0)
    gates, cell, out = (torch.randn(2, n, dtype=torch.float64) for n in (12, 3, 3))
    hidden, expected = lstm_cell(gates, cell)
    lstm_cell_(gates, cell, out)
    torch.testing.assert_close(cell, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(out, hidden, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["row-lstm", "diagonal-bilstm"])
def test_cells_of_half_precision_models_are_wide_on_a_walk(name: str) -> None:
    model = ts.create(name, ts.Grid(2, 2, 1, 3), layers=2, hidden=4, last=4).bfloat16()
    state, previous = model.init_state(1), torch.zeros(1, dtype=torch.int64)
    for index in range(3):
        _, state = model.step(previous, index, state)
    cells = [memory for memory in state.memory.tensors if memory.dtype == torch.float32]
    assert len(cells) == 2, "one for each layer"
    for cell in cells:
        assert not torch.equal(cell, cell.bfloat16().float())


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (4, 1), (3, 5)])
def test_the_walk_over_rows_equals_one_pixel_after_the_other(height: int, width: int) -> None:
    torch.manual_seed(0)
    n = 5
    layer = RowLayer(ChannelGroups(2), n, dropout=0.0).double()
    x = torch.randn(2, height, width, 2 * n, dtype=torch.float64)
    bias = torch.randn(2, 4 * n, dtype=torch.float64)
    left, here = layer.input.kernel()[:, :, 0].unbind(-1)
    taps, zero = layer.state.view(3, n, 4 * n), x.new_zeros(2, n)
    hidden: dict[tuple[int, int], torch.Tensor] = {}
    cell: dict[tuple[int, int], torch.Tensor] = {}
    expected = x.clone()
    for r, c in itertools.product(range(height), range(width)):
        gates = x[:, r, c] @ here.T + layer.input.bias + bias
        if c:
            gates = gates + x[:, r, c - 1] @ left.T
        for tap in range(3):
            gates = gates + hidden.get((r - 1, c + tap - 1), zero) @ taps[tap]
        hidden[r, c], cell[r, c] = lstm_cell(gates, cell.get((r - 1, c), zero))
        expected[:, r, c] += hidden[r, c] @ layer.restore.kernel().T
    torch.testing.assert_close(layer(x, bias[:, None, None]), expected, rtol=0, atol=1e-12)


def test_a_layer_sees_a_triangle_of_its_input() -> None:
    model = ts.create("row-lstm", ts.Grid(5, 11, 1, 2), layers=1, hidden=2, last=2)
    assert isinstance(model, RowLSTM)
    field = (
        model.channel_layers()[0]
        .field(torch.eye(55, dtype=torch.bool).view(55, 1, 5, 11))
        .view(5, 11, 5, 11)
    )
    for row, column, above, aside in itertools.product(range(5), range(11), range(5), range(11)):
        up = row - above
        expected = up >= 0 and column - up - 1 <= aside <= column + up
        assert bool(field[above, aside, row, column]) == expected


@pytest.mark.parametrize(("layers", "hidden"), [(7, 16), (12, 128)])
def test_layers_of_the_papers_models(layers: int, hidden: int) -> None:
    model = ts.create("row-lstm", ts.Grid(2, 2, 1, 2), layers=layers, hidden=hidden, last=32)
    assert isinstance(model, RowLSTM)
    assert len(model.layers) == layers
    layer = model.layers[0]
    assert isinstance(layer, RowLayer)
    assert layer.input.weight.shape == (4 * hidden, 2 * hidden, 1, 2), (
        "3 x 1 without the pixel to the right"
    )
    assert layer.state.shape == (3 * hidden, 4 * hidden)
    assert layer.restore.weight.shape == (2 * hidden, hidden)

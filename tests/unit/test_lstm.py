"""LSTM over the sequence: segments against one symbol at a time, memory, a training step on 3,072
symbols."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import tessella as ts
from tessella.errors import ConfigError
from tessella.models import lstm
from tessella.models.lstm import LSTM
from tessella.nn.lstm_layers import RecurrentLayers


def test_segments_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ts.create("lstm", ts.Grid(4, 3, 2, 5), layers=2, hidden=6).double()
    assert isinstance(model, LSTM)
    x = torch.randint(5, (3, 4, 3, 2), generator=torch.Generator().manual_seed(0))
    whole = model(x)
    monkeypatch.setattr(lstm, "SEGMENT", (5, 5))
    assert model.segment == 5
    torch.testing.assert_close(model(x), whole, rtol=0, atol=1e-12)


def test_a_layer_computes_the_equations_of_the_cell() -> None:
    model = ts.create("lstm", ts.Grid(2, 2, 1, 3), layers=1, hidden=4).double()
    assert isinstance(model, LSTM)
    x = torch.tensor([[[[2], [0]], [[1], [2]]]])
    of_input, of_state, first, second = model.layers.recurrent()[0].parameters()
    table, places = (
        model.embedding.table()[0],
        (model.row + model.column + model.channel).flatten(0, 2),
    )
    hidden = cell = torch.zeros(4, dtype=torch.float64)
    for t, symbol in enumerate([None, 2, 0, 1]):
        entering = places[t] if symbol is None else places[t] + table[symbol]
        gates = of_input @ entering + of_state @ hidden + first + second
        write, forget, content, emit = gates.view(4, 4)
        cell = forget.sigmoid() * cell + write.sigmoid() * content.tanh()
        hidden = emit.sigmoid() * cell.tanh()
        expected = model.last(entering + hidden)
        torch.testing.assert_close(model(x).flatten(1, 3)[0, t], expected, rtol=0, atol=1e-12)


def test_layers_keep_the_names_of_saved_weights() -> None:
    model = ts.create("lstm", ts.Grid(2, 2, 1, 4), layers=2, hidden=3)
    names = [name for name in model.state_dict() if name.startswith("layers.")]
    parts = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    assert names == [f"layers.{layer}.{part}" for layer in range(2) for part in parts]


def test_dropout_acts_on_the_output_of_each_layer_while_training() -> None:
    x = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0))
    states = [torch.zeros(1, 1, 4)] * 4
    layers = RecurrentLayers(2, 4, dropout=1.0).train()
    # Layers are residual, so their input is all that is left.
    torch.testing.assert_close(layers(x, states)[0], x, rtol=0, atol=0)
    assert (layers.eval()(x, states)[0] != x).all()


def test_a_step_on_3072_symbols_keeps_little_and_trains() -> None:
    hidden, grid = 16, ts.Grid(32, 32, 3, 256)
    model = ts.create("lstm", grid, layers=1, hidden=hidden).train()
    model.checkpointing = True
    x = torch.randint(256, (1, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        parameters = model(x)
    symbols, states = 8 * grid.symbols, 2 * 4 * hidden * (grid.symbols // model.segment + 2)
    inputs = 4 * hidden * (3 * 256 + grid.symbols) + 4 * 256
    assert sum(kept.values()) <= symbols + states + inputs, (
        "states between segments, vectors and levels once, no more"
    )
    model.head(parameters).log_prob(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_sizes_that_make_no_network_are_refused() -> None:
    with pytest.raises(ConfigError, match="layers >= 1"):
        ts.create("lstm", ts.Grid(2, 2, 1, 4), layers=0)

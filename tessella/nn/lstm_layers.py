"""The layers of an LSTM over a sequence of symbols, and the programs of its step.

The cell is that of ``tessella.nn.lstm_cell``, and the output of each layer is added to its input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tessella.nn.last_layer import LastLayer
from tessella.nn.lstm_cell import GATES, cell_dtype
from tessella.nn.sequence_step import SequenceStep
from tessella.nn.stepping.program import Operand

TORCH_GATES = [3, 1, 0, 2]
"""For each gate of :func:`tessella.nn.lstm_cell.lstm_cell`, its index in torch, whose order is
input, forget, content, output."""


class RecurrentLayer(nn.LSTM):
    """One LSTM layer, and the dropout of its outputs.

    Args:
        hidden: width of a state, of the inputs and of the outputs.
        dropout: dropout rate of the outputs, which the caller applies (:attr:`drop`).
    """

    matrices = ("weight_ih_l0", "weight_hh_l0")

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__(hidden, hidden, batch_first=True)
        self.drop = nn.Dropout(dropout)
        # The forget gate: remember at first.
        self.get_parameter("bias_hh_l0").data[hidden : 2 * hidden] += 1


class RecurrentLayers(nn.ModuleList):
    """Residual LSTM layers, one on top of the other.

    Args:
        count: number of layers.
        hidden: width of a state, and of the vectors between layers.
        dropout: dropout rate of each layer's outputs.
    """

    def __init__(self, count: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.hidden = hidden
        for _ in range(count):
            self.append(RecurrentLayer(hidden, dropout))

    def recurrent(self) -> list[RecurrentLayer]:
        """The layers."""
        return [layer for layer in self if isinstance(layer, RecurrentLayer)]

    def forward(
        self, x: torch.Tensor, states: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run the layers over a part of a sequence.

        Args:
            x: ``[batch, length, hidden]``.
            states: hidden state and cell state of each layer, alternating, ``[1, batch, hidden]``.

        Returns:
            The outputs of the last layer, of the shape of ``x``, and the new states.
        """
        after: list[torch.Tensor] = []
        for i, layer in enumerate(self.recurrent()):
            hidden, cell = states[2 * i : 2 * i + 2]
            # Few processors support LSTMs in bfloat16.
            with torch.autocast("cpu", enabled=False):
                y, pair = layer(x, (hidden.to(x.dtype), cell.to(x.dtype)))
            after.extend(pair)
            x = x + layer.drop(y)
        return x, after

    def bind(self, step: SequenceStep) -> SteppedRecurrentLayers:
        """Allocate memory for the inputs of the layers."""
        return SteppedRecurrentLayers(self, step)


class SteppedRecurrentLayers:
    """:class:`RecurrentLayers` bound to the memory of a step."""

    def __init__(self, layers: RecurrentLayers, step: SequenceStep) -> None:
        self._layers = layers
        self._step = step
        self._entering = []
        for _ in layers:
            # The layer's input and its previous hidden state, concatenated for one product.
            self._entering.append(step.memory.zeros(2 * layers.hidden))

    @property
    def input(self) -> torch.Tensor:
        """Memory for the input of the first layer, ``[batch, hidden]``."""
        return self._entering[0][:, : self._layers.hidden]

    def write(self) -> torch.Tensor:
        """Append the layers, and return the memory of their output, ``[batch, hidden]``."""
        size = self._layers.hidden
        step = self._step
        memory = step.memory
        gates = step.every.zeros(GATES * size)
        # The input of each layer and, last, the output.
        inputs = [entering[:, :size] for entering in self._entering] + [step.every.zeros(size)]
        for i, layer in enumerate(self._layers.recurrent()):
            weight, bias = packed(layer)
            hidden = self._entering[i][:, size:]
            cell = memory.zeros(size, dtype=cell_dtype(memory.like))
            step.every.linear(
                self._entering[i], memory.matrix(weight), gates, add=memory.table(bias)
            )
            step.every.cell(gates, cell, hidden)
            step.every.add(inputs[i], hidden, inputs[i + 1])
        return inputs[-1]


def write_position(
    step: SequenceStep,
    constants: Sequence[torch.Tensor],
    row: Operand,
    column: Operand,
    x: Operand,
) -> None:
    """Append the sum of all that does not depend on the symbols.

    Args:
        step: the step to write to.
        constants: one for each place of a pixel, ``[batch, features]``.
        row, column: the vectors of the pixel's row and column, ``[features]``.
        x: receives the sum, ``[batch, features]``.
    """
    step.first.add(constants[0], row, x)
    for constant, program in zip(constants, step.later, strict=True):
        program.add(constant, row, x)
    step.every.add(x, column, x)


def write_output(step: SequenceStep, layer: LastLayer, x: Operand) -> None:
    """Append the layer that makes the parameters from ``x [batch, features]``.

    If it makes fewer than there are, these are the last ones, and the first stay zero.
    """
    out = step.parameters[:, -layer.out_features :]
    weight, bias = layer.mixed()
    step.every.linear(x, step.memory.matrix(weight.T), out, add=step.memory.table(bias))


def packed(layer: nn.LSTM) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack the weights of an LSTM layer into one product, with the gates in our cell's order.

    Returns:
        Weights ``[2 * hidden, 4 * hidden]`` for input and hidden state, concatenated, and the bias
        ``[4 * hidden]``.
    """
    hidden = layer.hidden_size
    # torch has two matrices [4 * hidden, hidden], for input and state, and a bias for each.
    by_gate = []
    for parameter in layer.parameters():
        by_gate.append(parameter.detach().unflatten(0, (GATES, hidden))[TORCH_GATES])
    from_input, from_state, input_bias, state_bias = by_gate
    weight = torch.cat([from_input, from_state], dim=-1).flatten(0, 1)
    return weight.T.contiguous(), (input_bias + state_bias).flatten()

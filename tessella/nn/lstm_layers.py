"""The layers of an LSTM over a sequence of symbols, and the programs of its step.

The cell is that of ``tessella.nn.lstm_cell``, and the output of each layer is added to its input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tessella.nn.last_layer import LastLayer
from tessella.nn.lstm_cell import GATES, cell_dtype
from tessella.nn.stepping.program import Operand, Program, SeveralPrograms
from tessella.nn.stepping.runs import Numbers, Runs, Truths
from tessella.nn.stepping.step import MemoryAllocator

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


class SequenceStep:
    """The programs of a step along a sequence, which predicts a place from the symbols before it.

    All have the variables ``row`` and ``column``.

    Args:
        memory: allocates the state's memory for the layers.
        symbols: number of symbols of a place.
        channels: number of places of a pixel.
        size: number of parameters of a place.
    """

    def __init__(self, memory: MemoryAllocator, symbols: int, channels: int, size: int) -> None:
        self.memory = memory
        self.symbols: list[torch.Tensor] = []
        """The symbols of the previous place: ``int64 [batch]`` each."""
        for _ in range(symbols):
            self.symbols.append(memory.zeros(dtype=torch.int64))
        self.parameters = memory.zeros(size)
        """Parameters of the newest place: ``[batch, size]``."""
        self.first = self._program()
        """Predicts the first place, before which nothing is known."""
        self.later = [self._program() for _ in range(channels)]
        """Predict any later place from the symbols of the place before: one program for each place
        of a pixel."""
        self.every = SeveralPrograms([self.first, *self.later])
        """Writes to all of them."""

    def _program(self) -> Program:
        return Program(self.memory.batch, ("row", "column"), self.memory.like)

    def write_position(
        self, constants: Sequence[torch.Tensor], row: Operand, column: Operand, x: Operand
    ) -> None:
        """Append the sum of all that does not depend on the symbols.

        Args:
            constants: one for each place of a pixel, ``[batch, features]``.
            row, column: the vectors of the pixel's row and column, ``[features]``.
            x: receives the sum, ``[batch, features]``.
        """
        self.first.add(constants[0], row, x)
        for constant, program in zip(constants, self.later, strict=True):
            program.add(constant, row, x)
        self.every.add(x, column, x)

    def write_symbols(self, table: torch.Tensor, x: Operand) -> None:
        """Append the lookup of the symbols of the place before.

        Args:
            table: vectors of the symbols, ``[channels, levels, features]``.
            x: their sum is added to it, ``[batch, features]``.
        """
        for channel, program in enumerate(self.later):
            for i, symbol in enumerate(self.symbols):
                # A negative index wraps around: the symbol before channel 0 is the last channel.
                program.lookup(symbol, table[channel - len(self.symbols) + i], x)

    def write_output(self, layer: LastLayer, x: Operand) -> None:
        """Append the layer that makes the parameters from ``x [batch, features]``.

        If it makes fewer than there are, these are the last ones, and the first stay zero.
        """
        out = self.parameters[:, -layer.out_features :]
        weight, bias = layer.mixed()
        self.every.linear(x, self.memory.matrix(weight.T), out, add=self.memory.table(bias))

    def add_runs(
        self, runs: Runs, row: Numbers, column: Numbers, channel: Numbers, when: Truths = True
    ) -> None:
        """Add the prediction of a place.

        Args:
            runs: takes the program.
            row, column: those of its pixel.
            channel: its index within the pixel.
            when: whether the symbol that comes next begins a place.
        """
        place = row + column + channel
        runs.add(self.first, row, column, when=when & (place == 0))
        for number, program in enumerate(self.later):
            runs.add(program, row, column, when=when & (place > 0) & (channel == number))


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

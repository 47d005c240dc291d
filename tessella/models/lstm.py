"""An LSTM that reads an image like a sentence, one symbol after the other in raster order.

The cell is that of Hochreiter and Schmidhuber 1997 with forget gates. Treating an image as one long
sequence is the simplest of the recurrent models; compare the spatial LSTM of Theis and Bethge 2015
and the PixelRNN of van den Oord et al. 2016. The input at a place is the vector of the previous
symbol, plus learned vectors of the row, column and channel of the place to be predicted, plus the
vector of the class. Layers are residual.

The sequence is processed in segments. With activation checkpointing, only the states between
segments and the activations of a single segment are in memory. So memory per image grows with the
square root of the length up to 65,536 places, where segments reach their largest size, and linearly
beyond. In addition there are the vectors of the places, stored once for all images, and symbols and
parameters, which always grow linearly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.condition import UNCONDITIONAL, Condition, Conditioning
from tessella.models.program_model import ProgramModel
from tessella.models.sequence_model import SequenceModel, SequenceState
from tessella.nn.condition_embedding import ClassEmbedding
from tessella.nn.embedding import SymbolEmbedding
from tessella.nn.lstm_cell import GATES, cell_dtype
from tessella.nn.stepping.memory import Vectors
from tessella.nn.stepping.program import Program, SeveralPrograms
from tessella.nn.stepping.step import MemoryAllocator, StateMemory

SEGMENT = (32, 256)
"""Shortest and longest segment. In between, a segment is as long as the square root of the number
of places."""

TORCH_GATES = [3, 1, 0, 2]
"""For each gate of :func:`tessella.nn.lstm_cell.lstm_cell`, its index in torch, whose order is
input, forget, content, output."""


@dataclass
class LSTMPrograms:
    """The programs of a state, each with the variables ``row`` and ``column``."""

    first: Program
    """Predicts the first place, before which nothing is known."""
    later: list[Program]
    """Predict any later place from the symbols of the place before: one program for each channel,
    a single one for a joint head."""
    symbols: list[torch.Tensor]
    """The symbols of the previous place: ``int64 [batch]`` each."""
    parameters: torch.Tensor
    """Parameters of the newest place: ``[batch, size]``."""


@dataclass
class LSTMState(SequenceState):
    """The cached state of a walk."""

    derived: ClassVar[frozenset[str]] = frozenset({"programs"})

    labels: torch.Tensor | None
    """Class of each image: ``int64 [batch]``."""
    memory: StateMemory
    programs: LSTMPrograms | None = None


class LSTM(SequenceModel[LSTMState], ProgramModel):
    """``lstm``: residual LSTM layers over the image as one sequence of symbols.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: number of LSTM layers.
        hidden: width of a state, and of the vectors between layers.
        dropout: dropout rate of each layer's outputs.

    Raises:
        ConfigError: for sizes out of range, or weights that are too large.
    """

    name = "lstm"

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        layers: int = 1,
        hidden: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(grid, head, conditioning)
        if layers < 1 or hidden < 1 or not 0 <= dropout < 1:
            raise ConfigError(
                "lstm needs layers >= 1, hidden >= 1 and 0 <= dropout < 1, got "
                f"layers={layers}, hidden={hidden}, dropout={dropout}"
            )
        self.hidden = hidden
        self.dropout = dropout
        largest = hidden * max(GATES * hidden, grid.channels * grid.levels)
        self.check_matrix(largest, "take a smaller hidden=")
        self.embedding = SymbolEmbedding(grid, hidden)
        # Their sum broadcasts to [height, width, channels, hidden].
        self.row = nn.Parameter(torch.randn(grid.height, 1, 1, hidden) * 0.3)
        self.column = nn.Parameter(torch.randn(grid.width, 1, hidden) * 0.3)
        self.channel = nn.Parameter(
            torch.randn(grid.channels // self.symbols_per_place, hidden) * 0.3
        )
        self.class_vectors = ClassEmbedding(self.classes, hidden, std=0.3) if self.classes else None
        self.layers = nn.ModuleList()
        for _ in range(layers):
            self.layers.append(nn.LSTM(hidden, hidden, batch_first=True))
        self.drop = nn.Dropout(dropout)
        self.last = nn.Linear(hidden, self.free_size)
        with torch.no_grad():
            for layer in self.recurrent():
                bias: torch.Tensor = layer.get_parameter("bias_hh_l0")
                bias[hidden : 2 * hidden] += 1  # the forget gate: remember at first
            self.last.bias.copy_(self.free_bias())

    @property
    def segment(self) -> int:
        """Length of a segment: the square root of the number of places, within ``SEGMENT``."""
        shortest, longest = SEGMENT
        # With the square root, rounded up, there are as many segments as places in a segment.
        root = math.isqrt(self.places - 1) + 1 if self.places > 1 else 1
        return min(max(root, shortest), longest)

    def recurrent(self) -> list[nn.LSTM]:
        """The layers."""
        return [layer for layer in self.layers if isinstance(layer, nn.LSTM)]

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        # Called only because it checks the condition.
        self.class_rows(condition)
        symbols = x.flatten(1).unflatten(1, (self.places, self.symbols_per_place))
        table = self.embedding.table().flatten(0, 1)
        classes = None
        if self.class_vectors is not None:
            classes = self.class_vectors(condition.labels)[:, None]  # [batch, 1, hidden]
        zero = self.row.new_zeros(1, len(x), self.hidden)
        # Hidden state and cell state of layer 0, then of layer 1, and so on; all start at zero.
        states = [zero] * (2 * len(self.layers))
        parts = []
        for i, positions in enumerate(self._positions().split(self.segment)):
            start = i * self.segment
            part, *states = self.recomputed(
                self._run, symbols, table, positions, classes, start, *states
            )
            parts.append(part)
        return self.on_grid(self.parameters_from_free(torch.cat(parts, dim=1)))

    def _run(
        self,
        symbols: torch.Tensor,
        table: torch.Tensor,
        positions: torch.Tensor,
        classes: torch.Tensor | None,
        start: int,
        *states: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Run the layers over one segment.

        Args:
            symbols: symbols of all places, ``int64 [batch, places, symbols_per_place]``.
            table: vectors of the symbols, ``[channels * levels, hidden]``.
            positions: vectors of the segment's places, ``[length, hidden]``.
            classes: vectors of the images' classes, ``[batch, 1, hidden]``.
            start: index of the segment's first place.
            states: hidden state and cell state of each layer, alternating, ``[1, batch, hidden]``.

        Returns:
            The segment's parameters, ``[batch, length, free_size]``, and then the new states.
        """
        x = self._vectors_before(symbols, table, start, start + len(positions)) + positions
        if classes is not None:
            x = x + classes
        after: list[torch.Tensor] = []
        for i, layer in enumerate(self.recurrent()):
            hidden, cell = states[2 * i : 2 * i + 2]
            # Few processors support LSTMs in bfloat16.
            with torch.autocast("cpu", enabled=False):
                y, pair = layer(x, (hidden.to(x.dtype), cell.to(x.dtype)))
            after.extend(pair)
            x = x + self.drop(y)
        return (self.last(x), *after)

    def _vectors_before(
        self, symbols: torch.Tensor, table: torch.Tensor, start: int, stop: int
    ) -> torch.Tensor:
        """Input vectors of the places ``start .. stop - 1``, from the symbols before each of them.

        ``symbols`` and ``table`` are as in :meth:`_run`; the result is
        ``[batch, stop - start, hidden]``.
        """
        first = max(start - 1, 0)
        before = symbols[:, first : stop - 1]
        index = torch.arange(
            first * self.symbols_per_place,
            (stop - 1) * self.symbols_per_place,
            device=symbols.device,
        )
        channel = (index % self.grid.channels).view(-1, self.symbols_per_place)
        # Level k of channel c is row c * levels + k of the table.
        vectors = F.embedding(before + channel * self.grid.levels, table).sum(2)
        # Place 0 has no previous place, and gets zeros.
        return F.pad(vectors, (0, 0, 1, 0)) if start == 0 else vectors

    def _positions(self) -> torch.Tensor:
        """Vectors of the places, ``[places, hidden]``."""
        return (self.row + self.column + self.channel).flatten(0, 2)

    @torch.no_grad()
    def state_in(self, memory: StateMemory, condition: Condition, batch: int) -> LSTMState:
        state = LSTMState(None, condition.labels, memory)
        state.programs = self._write(state, batch)
        return state

    def observe(self, symbol: torch.Tensor, index: int, state: LSTMState) -> None:
        self._programs(state).symbols[index % self.symbols_per_place].copy_(symbol)

    def predict(self, place: int, state: LSTMState) -> torch.Tensor:
        programs = self._programs(state)
        row, column, channel = self.grid.place(place * self.symbols_per_place)
        # For a joint head the place is a pixel, and its channel is 0.
        program = programs.later[channel] if place else programs.first
        program.run(row, column)
        return programs.parameters.clone()

    def _programs(self, state: LSTMState) -> LSTMPrograms:
        """The programs of a state, written now if the state is a fresh copy without any."""
        if state.programs is None:
            state.programs = self._write(state, len(state.memory.tensors[0]))
        return state.programs

    def _write(self, state: LSTMState, batch: int) -> LSTMPrograms:
        """Write the programs of a new or copied state of ``batch`` images."""
        memory = MemoryAllocator(state.memory, batch, self.row)
        like = memory.like
        symbols = []
        for _ in range(self.symbols_per_place):
            symbols.append(memory.zeros(dtype=torch.int64))
        parameters = memory.zeros(self.head.size)
        entering = []
        for _ in self.layers:
            # The layer's input and its previous hidden state, concatenated for one product.
            entering.append(memory.zeros(2 * self.hidden))
        # One program for the first place, and one for the later places of each channel.
        first = Program(batch, ("row", "column"), like)
        later = [Program(batch, ("row", "column"), like) for _ in self.channel]
        every = SeveralPrograms([first, *later])
        # The input of the first layer: constant + row + column + the vectors of the symbols before.
        x = entering[0][:, : self.hidden]
        row = Vectors(memory.table(self.row[:, 0, 0])).at("row")
        constants = self._write_constants(memory, state.labels)
        first.add(constants[0], row, x)
        for constant, program in zip(constants, later, strict=True):
            program.add(constant, row, x)
        every.add(x, Vectors(memory.table(self.column[:, 0])).at("column"), x)
        table = memory.table(self.embedding.table())
        for channel, program in enumerate(later):
            for i in range(self.symbols_per_place):
                # A negative index wraps around: the symbol before channel 0 is the last channel.
                program.lookup(symbols[i], table[channel - self.symbols_per_place + i], x)
        gates = every.zeros(GATES * self.hidden)
        # The input of each layer and, last, of the output layer.
        inputs = [entered[:, : self.hidden] for entered in entering] + [every.zeros(self.hidden)]
        for i, layer in enumerate(self.recurrent()):
            weight, bias = packed(layer)
            hidden = entering[i][:, self.hidden :]
            cell = memory.zeros(self.hidden, dtype=cell_dtype(like))
            every.linear(entering[i], memory.matrix(weight), gates, add=memory.table(bias))
            every.cell(gates, cell, hidden)
            every.add(inputs[i], hidden, inputs[i + 1])
        # With two levels only the last parameter is computed, and the first stays zero.
        last = memory.matrix(self.last.weight.T)
        free = parameters[:, -self.free_size :]
        every.linear(inputs[-1], last, free, add=memory.table(self.last.bias))
        return LSTMPrograms(first, later, symbols, parameters)

    def _write_constants(
        self, memory: MemoryAllocator, labels: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Sum of the vectors of class and channel, ``[batch, hidden]``.

        There is one for each channel, and a single one for a joint head.
        """
        classes = self.row.new_zeros(memory.batch, self.hidden)
        if self.class_vectors is not None:
            classes = self.class_vectors(labels)
        return [memory.keep(classes + channel) for channel in self.channel]

    def last_layers(self) -> Sequence[nn.Linear]:
        return [self.last]

    def sizes(self) -> dict[str, object]:
        return {"layers": len(self.layers), "hidden": self.hidden, "dropout": self.dropout}


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

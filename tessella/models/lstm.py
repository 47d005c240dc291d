"""An LSTM that reads the image as a sentence, one symbol after the other in raster order.

The cell is that of Hochreiter and Schmidhuber 1997 with forget gates; an image as one sequence of
symbols is the plainest of the recurrent models of images, compare the spatial LSTM of Theis and
Bethge 2015 and the PixelRNN of van den Oord et al. 2016. Its input at a place is the vector of the
symbol before, plus learned vectors of the row, column and channel of the place to be predicted,
plus the vector of the class. Layers are residual.

The sequence is run in segments. With activation checkpointing the layers keep of an image the
states between segments, and the activations of the one segment that is computed again: memory that
grows with the square root of the length up to 65,536 places, where segments stop growing, and
linearly from there. Not in it are the vectors of the places, kept once for all images, and the
symbols and the parameters that are told of each, which are linear in the length anyway.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.sequence_model import SequenceModel, SequenceState
from tessella.nn.condition_embedding import ClassEmbedding
from tessella.nn.embedding import SymbolEmbedding
from tessella.nn.stepping.program import Matrix, Moving, Program

SEGMENT = (32, 256)
"""Least and largest length of a segment; between them it is the square root of the number of
places."""


@dataclass
class Weights:
    """Weights laid out for stepping; gates in the order of
    :func:`tessella.nn.lstm_cell.lstm_cell`."""

    table: torch.Tensor
    """Vectors of every channel and level: ``[channels, levels, hidden]``."""
    row: torch.Tensor
    """Vectors of the rows, ``[height, hidden]``."""
    column: torch.Tensor
    """The same of the columns."""
    gates: list[Matrix]
    """Of each layer, ``[2 * hidden, 4 * hidden]``: its input, then its own state."""
    biases: list[torch.Tensor]
    """``[4 * hidden]`` each."""
    last: Matrix
    """``[hidden, free]``."""
    last_bias: torch.Tensor


@dataclass
class Programs:
    """The programs of a state, each with the variables ``row`` and ``column``."""

    first: Program
    """The first place."""
    later: list[Program]
    """A place, from the symbols of the place before, for each channel; for a joint head there is
    one."""


@dataclass
class LSTMState(SequenceState):
    """States of the layers."""

    shared: ClassVar[frozenset[str]] = frozenset({"weights"})
    derived: ClassVar[frozenset[str]] = frozenset({"programs"})

    weights: Weights
    constant: list[torch.Tensor]
    """Vectors of class and channel, for each channel; for a joint head there is one:
    ``[batch, hidden]``."""
    symbols: list[torch.Tensor]
    """Those of the place before, as far as they are known: ``int64 [batch]``."""
    entering: list[torch.Tensor]
    """Of each layer its input and its state of the place before, side by side:
    ``[batch, 2 * hidden]``."""
    cells: list[torch.Tensor]
    """``[batch, hidden]`` each."""
    parameters: torch.Tensor
    """Of the place that came last: ``[batch, size]``."""
    programs: Programs | None = None


class LSTM(SequenceModel):
    """``lstm``: the image as a sentence of symbols, read by residual LSTM layers.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: LSTM layers.
        hidden: numbers in a state, and in the vectors between layers.
        dropout: share of a layer's outputs dropped in training.

    Raises:
        ConfigError: for sizes that make no network.
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
                f"lstm needs layers >= 1, hidden >= 1 and 0 <= dropout < 1, got layers={layers}, hidden={hidden}, "
                f"dropout={dropout}"
            )
        self.hidden, self.dropout = hidden, dropout
        self.refuse_absurd(
            hidden * max(4 * hidden, grid.channels * grid.levels), "take a smaller hidden="
        )
        self.embedding = SymbolEmbedding(grid, hidden)
        self.row = nn.Parameter(torch.randn(grid.height, 1, 1, hidden) * 0.3)
        self.column = nn.Parameter(torch.randn(grid.width, 1, hidden) * 0.3)
        self.channel = nn.Parameter(torch.randn(grid.channels // self.group, hidden) * 0.3)
        self.class_vectors = ClassEmbedding(self.classes, hidden, std=0.3) if self.classes else None
        self.layers = nn.ModuleList(
            nn.LSTM(hidden, hidden, batch_first=True) for _ in range(layers)
        )
        self.drop = nn.Dropout(dropout)
        self.last = nn.Linear(hidden, self.free)
        with torch.no_grad():
            for layer in self.recurrent():
                bias: torch.Tensor = layer.get_parameter("bias_hh_l0")
                bias[hidden : 2 * hidden] += 1  # the forget gate: remember at first
            self.last.bias.copy_(self.free_bias())

    @property
    def segment(self) -> int:
        """Places that are run at once."""
        return min(
            max(math.isqrt(self.places - 1) + 1 if self.places > 1 else 1, SEGMENT[0]), SEGMENT[1]
        )

    def recurrent(self) -> list[nn.LSTM]:
        """The layers."""
        return [layer for layer in self.layers if isinstance(layer, nn.LSTM)]

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        self.classes_of(condition)
        symbols = x.flatten(1).unflatten(1, (self.places, self.group))
        table = self.embedding.table().flatten(0, 1)
        classes = (
            None if self.class_vectors is None else self.class_vectors(condition.labels)[:, None]
        )
        zero = self.row.new_zeros(1, len(x), self.hidden)
        states = [zero] * (2 * len(self.layers))
        parts = []
        for i, positions in enumerate(self._positions().split(self.segment)):
            start = i * self.segment
            part, *states = self.recomputed(
                self._run, symbols, table, positions, classes, start, *states
            )
            parts.append(part)
        return self.on_grid(self.complete(torch.cat(parts, dim=1)))

    def _run(
        self,
        symbols: torch.Tensor,
        table: torch.Tensor,
        positions: torch.Tensor,
        classes: torch.Tensor | None,
        start: int,
        *states: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """One segment.

        Args:
            symbols: of all places, ``int64 [batch, places, group]``.
            table: vectors of the symbols, ``[channels * levels, hidden]``.
            positions: vectors of the segment's places, ``[length, hidden]``.
            classes: vectors of the images' classes, ``[batch, 1, hidden]``.
            start: the first place of the segment.
            states: hidden and cell state of each layer in turn, ``[1, batch, hidden]``.

        Returns:
            What the segment gives, ``[batch, length, free]``, and the states after it.
        """
        x = self._before(symbols, table, start, start + len(positions)) + positions
        if classes is not None:
            x = x + classes
        after: list[torch.Tensor] = []
        for i, layer in enumerate(self.recurrent()):
            with torch.autocast("cpu", enabled=False):  # few processors have an LSTM in bfloat16
                y, pair = layer(x, (states[2 * i].to(x.dtype), states[2 * i + 1].to(x.dtype)))
            after.extend(pair)
            x = x + self.drop(y)
        return (self.last(x), *after)

    def _before(
        self, symbols: torch.Tensor, table: torch.Tensor, start: int, stop: int
    ) -> torch.Tensor:
        """Vectors of what comes before each of the places ``start .. stop - 1``:
        ``[batch, stop - start, hidden]``."""
        before = symbols[:, max(start - 1, 0) : stop - 1]
        first = torch.arange(
            max(start - 1, 0) * self.group, (stop - 1) * self.group, device=symbols.device
        )
        channel = (first % self.grid.channels).view(-1, self.group)
        vectors = F.embedding(before + channel * self.grid.levels, table).sum(2)
        return F.pad(vectors, (0, 0, 1, 0)) if start == 0 else vectors

    def _positions(self) -> torch.Tensor:
        """Vectors of the places, ``[places, hidden]``."""
        return (self.row + self.column + self.channel).flatten(0, 2)

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> LSTMState:
        labels = self.condition(cond, batch).labels
        make, hidden = self.row.new_zeros, self.hidden
        classes = make(batch, hidden) if self.class_vectors is None else self.class_vectors(labels)
        order = torch.tensor(
            [3, 1, 0, 2], device=self.device
        )  # torch has input, forget, content, output
        packed, biases = [], []
        for layer in self.recurrent():
            of_input, of_state, first, second = (
                parameter.unflatten(0, (4, hidden)) for parameter in layer.parameters()
            )
            packed.append(
                Matrix(torch.cat([of_input, of_state], dim=-1)[order].flatten(0, 1).T.contiguous())
            )
            biases.append((first + second)[order].flatten())
        weights = Weights(
            self.embedding.table(),
            self.row[:, 0, 0].detach(),
            self.column[:, 0].detach(),
            packed,
            biases,
            Matrix(self.last.weight.T),
            self.last.bias.detach(),
        )
        return LSTMState(
            pixel=None,
            weights=weights,
            constant=[classes + channel for channel in self.channel],
            symbols=[make(batch, dtype=torch.int64) for _ in range(self.group)],
            entering=[make(batch, 2 * hidden) for _ in packed],
            cells=[make(batch, hidden) for _ in packed],
            parameters=make(batch, self.head.size),
        )

    def learn(self, symbol: torch.Tensor, index: int, state: LSTMState) -> None:
        state.symbols[index % self.group].copy_(symbol)

    def predict(self, place: int, state: LSTMState) -> torch.Tensor:
        if state.programs is None:
            state.programs = self._write(state)
        row, column, channel = self.grid.place(place * self.group)
        (state.programs.later[channel] if place else state.programs.first).run(row, column)
        return state.parameters.clone()

    def _write(self, state: LSTMState) -> Programs:
        """The programs of a state."""
        later = [self._write_place(channel, True, state) for channel in range(len(state.constant))]
        return Programs(self._write_place(0, False, state), later)

    def _write_place(self, channel: int, known: bool, state: LSTMState) -> Program:
        """A place of a channel; what comes before it is ``known``, or nothing."""
        weights, hidden = state.weights, self.hidden
        program = Program(len(state.parameters), ("row", "column"), state.parameters)
        gates, end = program.room(4 * hidden), program.room(hidden)
        inputs = [entering[:, :hidden] for entering in state.entering]
        program.add(state.constant[channel], _each(weights.row, "row"), inputs[0])
        program.add(inputs[0], _each(weights.column, "column"), inputs[0])
        for i, symbols in enumerate(state.symbols if known else []):
            program.lookup(symbols, weights.table[channel - self.group + i], inputs[0])
        for i, (entering, x, then) in enumerate(
            zip(state.entering, inputs, [*inputs[1:], end], strict=True)
        ):
            program.linear(entering, weights.gates[i], gates, plus=weights.biases[i])
            program.cell(gates, state.cells[i], entering[:, hidden:])
            program.add(x, entering[:, hidden:], then)
        program.linear(end, weights.last, state.parameters[:, -self.free :], plus=weights.last_bias)
        return program

    def sizes(self) -> dict[str, Any]:
        return {"layers": len(self.layers), "hidden": self.hidden, "dropout": self.dropout}


def _each(vectors: torch.Tensor, by: str) -> Moving:
    """The vector of ``[n, hidden]`` that a variable says."""
    return Moving(vectors[0], by, vectors.stride(0))

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
from tessella.models.density_model import JointWalk
from tessella.models.program_model import ProgramModel
from tessella.models.sequence_model import SequenceModel, SequenceState
from tessella.nn.condition_embedding import ClassEmbedding
from tessella.nn.embedding import SymbolEmbedding
from tessella.nn.last_layer import LastLayer
from tessella.nn.lstm_cell import GATES
from tessella.nn.lstm_layers import RecurrentLayers, SequenceStep
from tessella.nn.stepping.memory import Vectors
from tessella.nn.stepping.step import MemoryAllocator, StateMemory

SEGMENT = (32, 256)
"""Shortest and longest segment. In between, a segment is as long as the square root of the number
of places."""


@dataclass
class LSTMState(SequenceState):
    """The cached state of a walk."""

    derived: ClassVar[frozenset[str]] = frozenset({"step"})

    labels: torch.Tensor | None
    """Class of each image: ``int64 [batch]``."""
    memory: StateMemory
    step: SequenceStep | None = None


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
        self.layers = RecurrentLayers(layers, hidden, dropout)
        self.last = LastLayer(hidden, self.free_bias(), head.mix)

    @property
    def segment(self) -> int:
        """Length of a segment: the square root of the number of places, within ``SEGMENT``."""
        shortest, longest = SEGMENT
        # With the square root, rounded up, there are as many segments as places in a segment.
        root = math.isqrt(self.places - 1) + 1 if self.places > 1 else 1
        return min(max(root, shortest), longest)

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        # Called only because it checks the condition.
        self.class_rows(condition)
        symbols = x.flatten(1).unflatten(1, (self.places, self.symbols_per_place))
        table = self.embedding.table().flatten(0, 1)
        classes = None
        if self.class_vectors is not None:
            classes = self.class_vectors(condition.labels)[:, None]  # [batch, 1, hidden]
        zero = self.row.new_zeros(1, x.shape[0], self.hidden)
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
        x, after = self.layers(x, states)
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
        state = LSTMState(JointWalk(), condition.labels, memory)
        state.step = self._write(state, batch)
        return state

    def observe(self, symbol: torch.Tensor, index: int, state: LSTMState) -> None:
        self._step(state).symbols[index % self.symbols_per_place].copy_(symbol)

    def predict(self, place: int, state: LSTMState) -> torch.Tensor:
        # For a joint head the place is a pixel, and its channel is 0.
        row, column, channel = self.grid.place(place * self.symbols_per_place)
        return self._step(state).run(place, row, column, channel).clone()

    def _step(self, state: LSTMState) -> SequenceStep:
        """The programs of a state, written now if the state is a fresh copy without any."""
        if state.step is None:
            state.step = self._write(state, len(state.memory.tensors[0]))
        return state.step

    def _write(self, state: LSTMState, batch: int) -> SequenceStep:
        """Write the programs of a new or copied state of ``batch`` images."""
        memory = MemoryAllocator(state.memory, batch, self.row)
        step = SequenceStep(memory, self.symbols_per_place, len(self.channel), size=self.head.size)
        layers = self.layers.bind(step)
        # The input of the first layer: constant + row + column + the vectors of the symbols before.
        x = layers.input
        row = Vectors(memory.table(self.row[:, 0, 0])).at("row")
        column = Vectors(memory.table(self.column[:, 0])).at("column")
        step.write_position(self._constants(memory, state.labels), row, column, x)
        step.write_symbols(memory.table(self.embedding.table()), x)
        step.write_output(self.last, layers.write())
        return step

    def _constants(
        self, memory: MemoryAllocator, labels: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Sum of the vectors of class and channel, ``[batch, hidden]``.

        There is one for each channel, and a single one for a joint head.
        """
        classes = self.row.new_zeros(memory.batch, self.hidden)
        if self.class_vectors is not None:
            classes = self.class_vectors(labels)
        return [memory.keep(classes + channel) for channel in self.channel]

    def last_layers(self) -> Sequence[LastLayer]:
        return [self.last]

    def sizes(self) -> dict[str, object]:
        return {"layers": len(self.layers), "hidden": self.hidden, "dropout": self.dropout}

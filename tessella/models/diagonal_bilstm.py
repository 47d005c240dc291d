"""Diagonal BiLSTM (van den Oord et al. 2016, "Pixel Recurrent Neural Networks", sec. 3.2 to 3.5,
Fig. 3, Fig. 5 right).

Every layer is an LSTM that walks along the diagonals of the image in two directions. From left to
right the state of a pixel is made of the states of the pixel to its left and of the pixel above (a
column-wise convolution of size 2 on the *skewed* map, whose row ``r`` is moved ``r`` places to the
right, so that a diagonal of the image is a column), and of its input under mask B; from right to
left of the pixel to its right and of the one above. All pixels of a diagonal are computed at once.
So that no pixel sees one after it, the right-to-left map is moved down by one row before it is
added. A 1 x 1 convolution leads back to ``2 h`` features and the layer's input is added. The class
adds a bias to all gates.

A pixel sees everything before it but for one place: what the right-to-left state knows of row
``r - 1`` begins with the features of its last pixel, which (mask A) do not contain that pixel
itself. The last pixel of the row above is therefore seen only within the reach of the first layer's
7 x 7 convolution (:meth:`DiagonalBiLSTM.receptive_field`).

Sizes of the paper: ``layers=7, hidden=16, last=32`` for MNIST, ``layers=12, hidden=128, last=1024``
for CIFAR-10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.channel_masked import ChannelMasked
from tessella.models.condition import Conditioning
from tessella.nn.channel_groups import ChannelGroups
from tessella.nn.lstm_cell import GATES, cell_dtype, lstm_cell
from tessella.nn.stepping.program import Matrix, Moving, Program, along
from tessella.nn.stepping.state import State


class Diagonals(nn.Module):
    """The order of pixels by diagonals, and within a diagonal from the top, for both directions.

    Args:
        height, width: of the grid.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.width = width
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        number = (rows + columns) * height + rows
        order = torch.stack([number.flatten().argsort(), number.flip(1).flatten().argsort()])
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("place", order.argsort(1), persistent=False)
        self.order: torch.Tensor
        """The pixels in this order, ``int64 [directions, pixels]``."""
        self.place: torch.Tensor
        """The places of the pixels in it, ``int64 [directions, pixels]``."""
        count = range(height + width - 1)
        self.first_rows = [max(0, d - width + 1) for d in count]
        self.lengths = [
            min(height - 1, d) - first + 1 for d, first in zip(count, self.first_rows, strict=True)
        ]


class DiagonalLayer(nn.Module):
    """Both directions, and the way back to the features of the next layer.

    Args:
        groups: how features are split.
        hidden: features of a state.
        diagonals: the order of the grid's pixels.
        dropout: share of the states dropped in training on the way to the next layer.
    """

    def __init__(
        self, groups: ChannelGroups, hidden: int, diagonals: Diagonals, dropout: float
    ) -> None:
        super().__init__()
        self.hidden, self.diagonals = hidden, diagonals
        self.left, self.right = (groups.linear(2 * hidden, hidden, GATES) for _ in range(2))
        """From the inputs to the gates, for each direction: from left to right, from right to
        left."""
        bound = (2 * hidden) ** -0.5
        self.state = nn.Parameter(
            torch.empty(2, 2 * hidden, GATES * hidden).uniform_(-bound, bound)
        )
        """From the states above and beside, in this order, to the gates, for each direction."""
        self.restore = groups.linear(hidden, 2 * hidden, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``[batch, height, width, 2 * hidden]`` to the same; ``bias [batch, 1, 1, 2 * gates]`` is
        added to the gates of both directions."""
        left, right = self.states(x, bias)
        below = F.pad(right[: -self.diagonals.width], (0, 0, 0, 0, self.diagonals.width, 0))
        out = self.restore(self.dropout(left + below))
        return x + out.transpose(0, 1).view_as(x)

    def states(
        self, x: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The states of each pixel in both directions, ``[pixels, batch, hidden]`` each."""
        pixels = x.flatten(1, 2).transpose(0, 1)
        order = self.diagonals.order
        gates = torch.stack([self.left(pixels[order[0]]), self.right(pixels[order[1]])])
        if bias is not None:
            gates = gates + bias[:, 0, 0].unflatten(-1, (2, 1, -1)).movedim(0, 2)
        left, right = self._walk(gates)
        return left[self.diagonals.place[0]], right[self.diagonals.place[1]]

    def bias(self) -> torch.Tensor:
        """The biases of the gates of both directions, ``[2 * gates]``."""
        assert self.left.bias is not None
        assert self.right.bias is not None
        return torch.cat([self.left.bias, self.right.bias])

    def _walk(self, gates: torch.Tensor) -> torch.Tensor:
        """What the inputs add to the gates, diagonal by diagonal ``[2, pixels, batch, gates]``, to
        the states ``[2, pixels, batch, hidden]``."""
        batch = gates.shape[2]
        hidden = gates.new_zeros(
            2, 2, batch, self.hidden
        )  # of the diagonal before, a row of zeros at both ends
        cell = hidden.to(cell_dtype(gates))
        states, before = [], 0
        for first, rows, part in zip(
            self.diagonals.first_rows,
            self.diagonals.lengths,
            gates.split(self.diagonals.lengths, dim=1),
            strict=True,
        ):
            up = first - before
            seen = torch.cat([hidden[:, up : up + rows], hidden[:, up + 1 : up + 1 + rows]], dim=-1)
            sums = torch.baddbmm(part.flatten(1, 2), seen.flatten(1, 2), self.state).view_as(part)
            state, cell = lstm_cell(sums, cell[:, up + 1 : up + 1 + rows])
            states.append(state)
            hidden, cell = F.pad(state, (0, 0, 0, 0, 1, 1)), F.pad(cell, (0, 0, 0, 0, 1, 1))
            before = first
        return torch.cat(states, dim=1)


@dataclass
class Weights:
    """Weights laid out for stepping; lists are by layer, and lists in them by group. Those of the
    left-to-right direction are arranged by group; of the right-to-left one all groups are computed
    at once."""

    above: list[Matrix]
    this_row: list[list[Matrix]]
    """Of the state to the left, then of the inputs."""
    restore: list[list[Matrix]]
    right_inputs: list[Matrix]
    right_above: list[Matrix]
    right: list[Matrix]


@dataclass
class RightToLeft:
    """Programs of the right-to-left direction: what a row's inputs and the states above give its
    gates; its states, one ``column`` after the other from the right."""

    gates: Program
    states: Program


@dataclass
class DiagonalState(State):
    """Caches of the layers, lists by layer."""

    shared: ClassVar[frozenset[str]] = frozenset({"weights"})
    derived: ClassVar[frozenset[str]] = frozenset({"programs"})
    batch_dims: ClassVar[dict[str, int]] = {"biases": 1, "right_biases": 1, "cells": 1}

    weights: Weights
    biases: torch.Tensor
    """Bias and class bias of the gates from left to right: ``[layers, batch, 1, gates]``."""
    right_biases: torch.Tensor
    """The same from right to left."""
    row: list[torch.Tensor]
    """For each place the left-to-right state to its left, zeros at the first, then the input; this
    row up to the pixel, then the row above: ``[batch, width + 1, 3 * hidden]``."""
    cells: torch.Tensor
    """Left-to-right cell states of the pixel to the left, or of this pixel for the groups known:
    ``[layers, batch, hidden]``. Between rows those of the other direction."""
    above: list[torch.Tensor]
    """What the row above and the biases give the gates in this row: ``[batch, width, gates]``."""
    right: list[torch.Tensor]
    """Right-to-left states in the row above, zeros at the right: ``[batch, width + 1, hidden]``."""
    both: list[torch.Tensor]
    """The sum of both directions at this pixel: ``[batch, hidden]``."""
    programs: RightToLeft | None = None


class DiagonalBiLSTM(ChannelMasked):
    """``diagonal-bilstm``: LSTMs along the diagonals in two directions, channel groups in every
    layer.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: LSTM layers.
        hidden: features of a state; there are twice as many between layers.
        last: features of the two last layers.
        dropout: share of the states dropped in training on the way to the next layer.

    Raises:
        ConfigError: for sizes that make no network.
    """

    name = "diagonal-bilstm"

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        layers: int = 3,
        hidden: int = 32,
        last: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(grid, head, conditioning, layers, hidden, last, dropout)
        self.narrow, self.gates = self.groups.slices(hidden), self.groups.slices(hidden, GATES)

    @property
    def biases(self) -> int:
        return 2 * GATES * self.hidden

    def create_layers(self, count: int) -> list[nn.Module]:
        diagonals = Diagonals(self.grid.height, self.grid.width)
        return [
            DiagonalLayer(self.groups, self.hidden, diagonals, self.dropout) for _ in range(count)
        ]

    def _layers(self) -> list[DiagonalLayer]:
        return [layer for layer in self.layers if isinstance(layer, DiagonalLayer)]

    def init_layers(self, batch: int, class_bias: torch.Tensor | None) -> DiagonalState:
        layers, width, hidden, gates = (
            self._layers(),
            self.grid.width,
            self.hidden,
            GATES * self.hidden,
        )
        make, count = self.first.weight.new_zeros, len(layers)
        biases = make(count, batch, 1, 2 * gates) if class_bias is None else class_bias.clone()
        biases += torch.stack([layer.bias() for layer in layers])[:, None, None]
        left, right = biases.split(gates, dim=-1)
        return DiagonalState(
            weights=self._weights(layers),
            biases=self.groups.arranged(left, GATES),
            right_biases=right,
            row=[make(batch, width + 1, 3 * hidden) for _ in layers],
            cells=make(count, batch, hidden, dtype=cell_dtype(biases)),
            above=[make(batch, width, gates) for _ in layers],
            right=[make(batch, width + 1, hidden) for _ in layers],
            both=[make(batch, hidden) for _ in layers],
        )

    def _weights(self, layers: list[DiagonalLayer]) -> Weights:
        groups = self.groups
        states = [layer.state.unflatten(1, (2, self.hidden)) for layer in layers]
        return Weights(
            above=[Matrix(groups.arranged(state[0, 0], GATES).contiguous()) for state in states],
            this_row=[
                groups.products(layer.left.weight, GATES, before=state[0, 1])
                for layer, state in zip(layers, states, strict=True)
            ],
            restore=[groups.products(layer.restore.weight) for layer in layers],
            right_inputs=[Matrix(layer.right.kernel().T) for layer in layers],
            right_above=[Matrix(state[1, 0]) for state in states],
            right=[Matrix(state[1, 1]) for state in states],
        )

    def start_row(self, row: int, layers: DiagonalState) -> None:
        if row:
            if layers.programs is None:
                layers.programs = self._right_to_left(layers)
            layers.programs.gates.run()
            layers.cells.zero_()
            for column in reversed(range(self.grid.width)):
                layers.programs.states.run(column)
        layers.cells.zero_()

    def _right_to_left(self, layers: DiagonalState) -> RightToLeft:
        """The right-to-left states of the row that is now complete, of all layers, in place of
        those above it."""
        batch, like, width, weights = (
            layers.biases.shape[1],
            layers.biases,
            self.grid.width,
            layers.weights,
        )
        row, walk = Program(batch, (), like, places=width), Program(batch, ("column",), like)
        sums = walk.room(GATES * self.hidden)
        for i, (here, right) in enumerate(zip(layers.row, layers.right, strict=True)):
            gates = row.room(GATES * self.hidden)
            row.linear(
                here[:, :width, self.hidden :],
                weights.right_inputs[i],
                gates,
                plus=layers.right_biases[i],
            )
            row.linear(right[:, :width], weights.right_above[i], gates, plus=gates)
            walk.linear(
                along(right, "column", 1), weights.right[i], sums, plus=along(gates, "column")
            )
            walk.cell(sums, layers.cells[i], along(right, "column"))
        return RightToLeft(row, walk)

    def write_row(self, program: Program, layers: DiagonalState) -> None:
        for row, weight, above, bias in zip(
            layers.row, layers.weights.above, layers.above, layers.biases, strict=True
        ):
            program.linear(row[:, 1:, : self.hidden], weight, above, plus=bias)

    def entering(self, group: int, layers: DiagonalState) -> Moving:
        return along(layers.row[0][:, :, self.hidden :][:, :, self.wide[group]], "column")

    def write_layers(
        self, program: Program, group: int, out: torch.Tensor, layers: DiagonalState
    ) -> None:
        weights, wide, narrow = layers.weights, self.wide[group], self.narrow[group]
        gates = program.room(GATES * (narrow.stop - narrow.start))
        targets = [along(row[:, :, self.hidden :][:, :, wide], "column") for row in layers.row]
        for i, (row, cells, both) in enumerate(
            zip(layers.row, layers.cells, layers.both, strict=True)
        ):
            seen = along(row, "column").upto(self.hidden + wide.stop)
            above = along(layers.above[i][:, :, self.gates[group]], "column")
            program.linear(seen, weights.this_row[i][group], gates, plus=above)
            state = along(row[:, :, narrow], "column", 1)
            program.cell(gates, cells[:, narrow], state)
            program.add(state, along(layers.right[i][:, :, narrow], "column"), both[:, narrow])
            to, then = (out, "relu") if i == len(layers.row) - 1 else (targets[i + 1], "")
            program.linear(
                both[:, : narrow.stop], weights.restore[i][group], to, plus=targets[i], then=then
            )

    def layer_field(self, field: torch.Tensor) -> torch.Tensor:
        inside = self.groups.field_within(field)
        right = _walked(inside.flip(-1)).flip(-1)
        below = torch.zeros_like(right)
        below[:, :, 1:] = right[:, :, :-1]
        return field | self.groups.field_within(_walked(inside) | below)


def _walked(inside: torch.Tensor) -> torch.Tensor:
    """Which sources reach the states from left to right, of those that reach the inputs:
    ``bool [sources, groups, height, width]``."""
    every = (
        inside.any(1).cummax(1).values.cummax(2).values
    )  # everything above and to the left, and the pixel
    before = torch.zeros_like(every)
    before[:, 1:] |= every[:, :-1]
    before[:, :, 1:] |= every[:, :, :-1]
    return inside | before[:, None]

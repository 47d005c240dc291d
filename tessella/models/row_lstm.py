"""Row LSTM (van den Oord et al. 2016, "Pixel Recurrent Neural Networks", sec. 3.1, 3.3 to 3.5, Fig.
5 right).

Every layer is an LSTM that walks from row to row. The gates of a pixel are the sum of a convolution
along its own row (input to state, kernel 3 x 1 under mask B: the pixel to the left and the pixel
itself) and of an unmasked 3 x 1 convolution of the states in the row above (state to state); the
cell state comes from the pixel above (eq. 3). A 1 x 1 convolution leads back to ``2 h`` features
and the layer's input is added. The class adds a bias to the gates. A row is computed at once.

The state knows a triangle above the pixel, one pixel wider on each side with each row up, and grown
by what the first layer and the convolutions along rows see: :meth:`RowLSTM.receptive_field`.

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
from tessella.nn.channel_groups import ChannelGroups, GroupedConvolution
from tessella.nn.convolution import field_along
from tessella.nn.lstm_cell import GATES, cell_dtype, lstm_cell
from tessella.nn.stepping.program import Matrix, Moving, Program, along, windows
from tessella.nn.stepping.state import State

REACH = 1
"""How far the convolutions along a row see to each side: a kernel of 3."""


class RowLayer(nn.Module):
    """An LSTM from row to row, and the way back to the features of the next layer.

    Args:
        groups: how features are split.
        hidden: features of a state.
        dropout: share of the states dropped in training on the way to the next layer.
    """

    def __init__(self, groups: ChannelGroups, hidden: int, dropout: float) -> None:
        super().__init__()
        self.input = GroupedConvolution(
            groups, 2 * hidden, hidden, above=0, aside=REACH, maps=GATES
        )
        taps = 2 * REACH + 1
        bound = (taps * hidden) ** -0.5
        self.state = nn.Parameter(
            torch.empty(taps * hidden, GATES * hidden).uniform_(-bound, bound)
        )
        """From the states above, the leftmost first, to the gates."""
        self.restore = groups.linear(hidden, 2 * hidden, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``[batch, height, width, 2 * hidden]`` to the same; ``bias [batch, 1, 1, gates]`` is
        added to the gates."""
        gates = self.input(x)
        out: torch.Tensor = x + self.restore(
            self.dropout(self.states(gates if bias is None else gates + bias))
        )
        return out

    def states(self, gates: torch.Tensor) -> torch.Tensor:
        """What the inputs add to the gates ``[batch, height, width, gates]`` to the states
        ``[..., hidden]``."""
        batch, _, width, features = gates.shape
        hidden = gates.new_zeros(batch, width, features // GATES)
        cell = hidden.to(cell_dtype(gates))
        states = []
        for row in gates.transpose(0, 1).contiguous():
            padded = F.pad(hidden, (0, 0, REACH, REACH))
            seen = torch.cat([padded[:, tap : tap + width] for tap in range(2 * REACH + 1)], dim=-1)
            sums = torch.addmm(row.flatten(0, 1), seen.flatten(0, 1), self.state)
            hidden, cell = lstm_cell(sums.view_as(row), cell)
            states.append(hidden)
        return torch.stack(states, dim=1)


@dataclass
class Weights:
    """Weights laid out for stepping; lists are by layer, and lists in them by group."""

    above: list[Matrix]
    this_row: list[list[Matrix]]
    restore: list[list[Matrix]]


@dataclass
class RowState(State):
    """Caches of the layers, lists by layer."""

    shared: ClassVar[frozenset[str]] = frozenset({"weights"})
    batch_dims: ClassVar[dict[str, int]] = {"biases": 1}

    weights: Weights
    biases: torch.Tensor
    """Bias and class bias of the gates: ``[layers, batch, 1, gates]``."""
    inputs: list[torch.Tensor]
    """Inputs in this row, a margin of zeros first: ``[batch, width + 1, 2 * hidden]``."""
    hidden: list[torch.Tensor]
    """States with margins of zeros; this row up to the pixel, then the row above:
    ``[batch, width + 2, hidden]``."""
    cells: list[torch.Tensor]
    """Cell states, laid out alike without the margins."""
    above: list[torch.Tensor]
    """What the row above and the biases give the gates in this row: ``[batch, width, gates]``."""


class RowLSTM(ChannelMasked):
    """``row-lstm``: LSTMs from row to row that see a triangle above, channel groups in every layer.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: LSTM layers.
        hidden: features of a state; there are twice as many between layers.
        last: features of the two last layers.
        dropout: share of the states dropped in training on the way to the next layer.

    Raises:
        ConfigError: for sizes that make no network.
    """

    name = "row-lstm"

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
        return GATES * self.hidden

    def create_layers(self, count: int) -> list[nn.Module]:
        return [RowLayer(self.groups, self.hidden, self.dropout) for _ in range(count)]

    def _layers(self) -> list[RowLayer]:
        return [layer for layer in self.layers if isinstance(layer, RowLayer)]

    def init_layers(self, batch: int, class_bias: torch.Tensor | None) -> RowState:
        layers, width, hidden, gates = (
            self._layers(),
            self.grid.width,
            self.hidden,
            GATES * self.hidden,
        )
        make = self.first.weight.new_zeros
        biases = torch.stack([layer.input.offset() for layer in layers])[:, None, None].repeat(
            1, batch, 1, 1
        )
        return RowState(
            weights=self._weights(layers),
            biases=biases
            if class_bias is None
            else biases + self.groups.arranged(class_bias, GATES),
            inputs=[make(batch, REACH + width, 2 * hidden) for _ in layers],
            hidden=[make(batch, width + 2 * REACH, hidden) for _ in layers],
            cells=[make(batch, width, hidden, dtype=cell_dtype(biases)) for _ in layers],
            above=[make(batch, width, gates) for _ in layers],
        )

    def _weights(self, layers: list[RowLayer]) -> Weights:
        return Weights(
            above=[
                Matrix(self.groups.arranged(layer.state, GATES).contiguous()) for layer in layers
            ],
            this_row=[layer.input.this_row() for layer in layers],
            restore=[self.groups.products(layer.restore.weight) for layer in layers],
        )

    def write_row(self, program: Program, layers: RowState) -> None:
        for hidden, weight, above, bias in zip(
            layers.hidden, layers.weights.above, layers.above, layers.biases, strict=True
        ):
            program.linear(windows(hidden, 2 * REACH + 1), weight, above, plus=bias)

    def entering(self, group: int, layers: RowState) -> Moving:
        return along(layers.inputs[0][:, :, self.wide[group]], "column", REACH)

    def write_layers(
        self, program: Program, group: int, out: torch.Tensor, layers: RowState
    ) -> None:
        weights, wide, narrow = layers.weights, self.wide[group], self.narrow[group]
        gates = program.room(GATES * (narrow.stop - narrow.start))
        targets = [along(inputs[:, :, wide], "column", REACH) for inputs in layers.inputs]
        for i, (inputs, hidden, cells) in enumerate(
            zip(layers.inputs, layers.hidden, layers.cells, strict=True)
        ):
            seen = along(inputs, "column", count=REACH + 1).upto(
                REACH * inputs.shape[2] + wide.stop
            )
            above = along(layers.above[i][:, :, self.gates[group]], "column")
            program.linear(seen, weights.this_row[i][group], gates, plus=above)
            own = along(hidden[:, :, narrow], "column", REACH)
            program.cell(gates, along(cells[:, :, narrow], "column"), own)
            known, last = (
                along(hidden, "column", REACH).upto(narrow.stop),
                i == len(layers.inputs) - 1,
            )
            to, then = (out, "relu") if last else (targets[i + 1], "")
            program.linear(known, weights.restore[i][group], to, plus=targets[i], then=then)

    def layer_field(self, field: torch.Tensor) -> torch.Tensor:
        states = self._layers()[0].input.field(field)
        for row in range(1, self.grid.height):
            above = field_along(
                states[:, :, row - 1].any(1, keepdim=True), "columns", -REACH, REACH
            )
            states[:, :, row] |= above
        return field | self.groups.field_within(states)

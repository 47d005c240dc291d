"""An LSTM from row to row, with channel groups.

Van den Oord et al. 2016, "Pixel Recurrent Neural Networks", sec. 3.1 and Fig. 5 (right).

The gates of a pixel are the sum of two terms: a convolution along its own row (input to state,
kernel 3 x 1 under mask B, that is, the pixel to the left and the pixel itself) and an unmasked
3 x 1 convolution of the states in the row above (state to state). The cell state comes from the
pixel above (eq. 3). All pixels of a row are computed at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.channel_groups import ChannelGroups, ChannelGroupStep, GroupedConvolution
from tessella.nn.channel_masked_layers import ChannelMaskedLayer, SteppedLayer
from tessella.nn.convolution import field_along
from tessella.nn.lstm_cell import GATES, cell_dtype, lstm_cell
from tessella.nn.stepping.program import Operand, OperationWriter, Places

REACH = 1
"""How far the convolutions along a row see to each side; the kernel size is 3."""


class RowLayer(ChannelMaskedLayer):
    """An LSTM from row to row, and a 1 x 1 convolution that restores the number of features.

    Args:
        groups: how features are split.
        hidden: features of a state.
        dropout: dropout rate of the states before the 1 x 1 convolution.
    """

    matrices = ("state",)

    def __init__(self, groups: ChannelGroups, hidden: int, dropout: float) -> None:
        super().__init__()
        self.groups = groups
        self.hidden = hidden
        self.biases = GATES * hidden
        self.input = GroupedConvolution(groups, 2 * hidden, hidden, above=0, side=REACH, maps=GATES)
        taps = 2 * REACH + 1
        # Uniform within 1 / sqrt(inputs), like the initial weights of torch's LSTM.
        bound = (taps * hidden) ** -0.5
        weight = torch.empty(taps * hidden, GATES * hidden).uniform_(-bound, bound)
        self.state = nn.Parameter(weight)
        """Weights from the states above, the leftmost first, to the gates."""
        self.restore = groups.linear(hidden, 2 * hidden, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        gates = self.input(x)
        if bias is not None:
            gates = gates + bias
        out: torch.Tensor = x + self.restore(self.dropout(self.states(gates)))
        return out

    def states(self, gates: torch.Tensor) -> torch.Tensor:
        """Run the LSTM over all rows.

        Args:
            gates: contribution of the inputs to the gates, ``[batch, height, width, 4 * hidden]``.

        Returns:
            The hidden states, ``[batch, height, width, hidden]``.
        """
        batch, _, width, features = gates.shape
        hidden = gates.new_zeros(batch, width, features // GATES)
        cell = hidden.to(cell_dtype(gates))
        states = []
        # A row at a time, all its pixels at once.
        for row in gates.transpose(0, 1).contiguous():
            padded = F.pad(hidden, (0, 0, REACH, REACH))
            taps = [padded[:, tap : tap + width] for tap in range(2 * REACH + 1)]
            seen = torch.cat(taps, dim=-1)  # [batch, width, taps * hidden]
            sums = torch.addmm(row.flatten(0, 1), seen.flatten(0, 1), self.state)
            hidden, cell = lstm_cell(sums.view_as(row), cell)
            states.append(hidden)
        return torch.stack(states, dim=1)

    def bind(self, step: ChannelGroupStep, bias: torch.Tensor | None) -> SteppedLayer:
        return SteppedRowLayer(self, step, bias)

    def field(self, field: torch.Tensor) -> torch.Tensor:
        # In its own row a pixel sees what the convolution sees; from above, what the states saw.
        states = self.input.field(field)
        for row in range(1, states.shape[2]):
            reach_above = states[:, :, row - 1].any(1, keepdim=True)
            states[:, :, row] |= field_along(reach_above, "columns", -REACH, REACH)
        return field | self.groups.field_within(states)


class SteppedRowLayer(SteppedLayer):
    """A :class:`RowLayer` bound to the memory of a step."""

    def __init__(self, layer: RowLayer, step: ChannelGroupStep, bias: torch.Tensor | None) -> None:
        groups = layer.groups
        self._input_slices = groups.slices(2 * layer.hidden)
        self._hidden_slices = groups.slices(layer.hidden)
        self._input = layer.input.bind(step, bias)
        self._restore = step.products(groups.products(layer.restore.weight))
        # Hidden states of this row up to the current pixel, and of the row above from there on.
        self._hidden = step.places(layer.hidden, REACH, REACH)
        cells = step.memory.zeros(step.width, layer.hidden, dtype=cell_dtype(step.memory.like))
        self._cells = Places(cells)
        # The contribution of the states above, for the gates of the whole row at once.
        weight = step.memory.matrix(groups.arranged(layer.state, GATES).contiguous())
        above = self._hidden.windows(REACH, REACH)
        step.row.linear(above, weight, self._input.sums.row, add=self._input.bias)

    def group_input(self, group: int) -> Operand:
        return self._input.input.features(self._input_slices[group]).at("column")

    def write_group(
        self, program: OperationWriter, group: int, out: Operand, activation: str
    ) -> None:
        hidden_slice = self._hidden_slices[group]
        # The sums already hold the contribution of the row above; this adds that of the inputs.
        gates = program.zeros(GATES * (hidden_slice.stop - hidden_slice.start))
        self._input.write_group(program, group, gates)
        cell = self._cells.features(hidden_slice).at("column")
        program.cell(gates, cell, self._hidden.features(hidden_slice).at("column"))
        # Restore the number of features, and add the layer's input.
        known = self._hidden.at("column").first(hidden_slice.stop)
        x = self.group_input(group)
        program.linear(known, self._restore[group], out, add=x, activation=activation)

"""The residual block of a PixelCNN, with channel groups.

Van den Oord et al. 2016, "Pixel Recurrent Neural Networks", sec. 3.3 and Fig. 5 (left).

A 1 x 1 convolution reduces ``2 h`` features to ``h``, a 3 x 3 convolution looks at the neighbours,
another 1 x 1 convolution restores ``2 h`` features, and the block's input is added. All are under
mask B, with a ReLU before each convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.channel_groups import ChannelGroups, ChannelGroupStep, GroupedConvolution
from tessella.nn.channel_masked_layers import ChannelMaskedLayer, SteppedLayer
from tessella.nn.stepping.program import Operand, OperationWriter


class ResidualBlock(ChannelMaskedLayer):
    """The residual block of Fig. 5 (left).

    Args:
        groups: how features are split.
        hidden: features of the 3 x 3 convolution.
        dropout: dropout rate of these features.
    """

    def __init__(self, groups: ChannelGroups, hidden: int, dropout: float) -> None:
        super().__init__()
        self.groups = groups
        self.biases = hidden
        self.reduce = groups.linear(2 * hidden, hidden)
        self.around = GroupedConvolution(groups, hidden, hidden, above=1, side=1)
        self.restore = groups.linear(hidden, 2 * hidden, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        # [..., 2 h] to [..., h]; the restoring layer below leads back to [..., 2 h].
        y = self.around(F.relu(self.reduce(F.relu(x))))
        if bias is not None:
            y = y + bias
        out: torch.Tensor = x + self.restore(self.dropout(F.relu(y)))
        return out

    def bind(self, step: ChannelGroupStep, bias: torch.Tensor | None) -> SteppedLayer:
        return SteppedBlock(self, step, bias)

    def field(self, field: torch.Tensor) -> torch.Tensor:
        # The block is residual, so its input reaches the output too.
        return field | self.around.field(self.groups.field_within(field))


class SteppedBlock(SteppedLayer):
    """A :class:`ResidualBlock` bound to the memory of a step."""

    def __init__(
        self, block: ResidualBlock, step: ChannelGroupStep, bias: torch.Tensor | None
    ) -> None:
        groups = block.groups
        hidden = block.biases
        self._input_slices = groups.slices(2 * hidden)
        self._hidden_slices = groups.slices(hidden)
        # This appends the contribution of the rows above; the rest is appended for each group.
        self._around = block.around.bind(step, bias)
        self._reduce = step.products(groups.products(block.reduce.weight))
        self._restore = step.products(groups.products(block.restore.weight))
        assert block.reduce.bias is not None
        self._reduce_bias = step.memory.table(block.reduce.bias)
        self._x = step.memory.zeros(2 * hidden)
        # Later groups read the features of earlier ones, so these belong to the state.
        self._active_x = step.memory.zeros(2 * hidden)
        self._gathered = step.memory.zeros(hidden)

    def group_input(self, group: int) -> Operand:
        return self._x[:, self._input_slices[group]]

    def write_group(
        self, program: OperationWriter, group: int, out: Operand, activation: str
    ) -> None:
        input_slice = self._input_slices[group]
        hidden_slice = self._hidden_slices[group]
        x = self.group_input(group)
        program.map(x, self._active_x[:, input_slice], "relu")
        program.linear(
            self._active_x[:, : input_slice.stop],
            self._reduce[group],
            self._around.input.features(hidden_slice).at("column"),
            add=self._reduce_bias[hidden_slice],
            activation="relu",
        )
        self._around.write_group(program, group, self._gathered[:, hidden_slice], "relu")
        # Under mask B, a group reads itself and the groups before it.
        known = self._gathered[:, : hidden_slice.stop]
        program.linear(known, self._restore[group], out, add=x, activation=activation)

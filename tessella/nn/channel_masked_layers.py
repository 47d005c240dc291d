"""The layers between which features are split into one group per channel.

Van den Oord et al. 2016, "Pixel Recurrent Neural Networks", sec. 3.3 to 3.5 and Table 1.

The residual layers of PixelCNN, Row LSTM and Diagonal BiLSTM have ``2 * hidden`` features in and
out, and each group sees what its mask allows (``tessella.nn.channel_groups``). Here are their base
classes, of the layer itself and of the layer bound to the memory of a step, and the output layers
that all three share. A step computes one group of features in every layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.channel_groups import ChannelGroups, ChannelGroupStep
from tessella.nn.last_layer import LastLayer, Mix
from tessella.nn.stepping.program import Operand, OperationWriter


class SteppedLayer(ABC):
    """Base of the layers bound to the memory of a step."""

    @abstractmethod
    def group_input(self, group: int) -> Operand:
        """Memory for one group of the layer's input at the ``column``, ``[batch, features]``."""

    @abstractmethod
    def write_group(
        self, program: OperationWriter, group: int, out: Operand, activation: str
    ) -> None:
        """Append the layer's work on one group at the ``column``.

        Args:
            program: the program of the group.
            group: which group.
            out: receives the output, ``[batch, features of the group]``.
            activation: applied to the output.
        """


class ChannelMaskedLayer(nn.Module, ABC):
    """Base of the residual layers with channel groups; ``2 * hidden`` features in and out."""

    biases: int
    """Length of the bias that a class adds to the layer."""

    @abstractmethod
    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Apply the layer; the result has the shape of ``x``.

        Args:
            x: ``[batch, height, width, 2 * hidden]``.
            bias: bias of each image's class, ``[batch, 1, 1, biases]``.
        """

    @abstractmethod
    def bind(self, step: ChannelGroupStep, bias: torch.Tensor | None) -> SteppedLayer:
        """Allocate memory for a step, and append the work on whole rows to ``step.row``.

        Args:
            step: the step to write to.
            bias: bias of each image's class, ``[batch, 1, biases]``.
        """

    @abstractmethod
    def field(self, field: torch.Tensor) -> torch.Tensor:
        """Receptive field of the layer's output, given that of its input.

        Both are ``bool [sources, groups, height, width]``.
        """


class GroupedOutput(nn.Module):
    """The output layers: each channel's parameters are made from its group of features.

    There are two pairs of ReLU and 1 x 1 convolution under mask B, and then one linear layer for
    each group.

    Args:
        groups: how features are split.
        inputs: input features.
        hidden: features of the two convolutions.
        bias: initial bias of each group's parameters, ``[size]``.
        joint: whether there is a single group, whose parameters are those of the whole pixel.
        mix: see :class:`~tessella.nn.last_layer.LastLayer`.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        inputs: int,
        hidden: int,
        bias: torch.Tensor,
        joint: bool,
        mix: Mix,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.joint = joint
        self.slices = groups.slices(hidden)
        self.one = groups.linear(inputs, hidden)
        self.two = groups.linear(hidden, hidden)
        self.last = nn.ModuleList()
        for part in self.slices:
            self.last.append(LastLayer(part.stop - part.start, bias, mix))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., inputs]`` to ``[..., channels, size]``, or ``[..., size]`` for a joint head."""
        x = F.relu(self.two(F.relu(self.one(F.relu(x)))))
        parameters = []
        # Parameters of channel c come from group c alone.
        for linear, part in zip(self.last, self.slices, strict=True):
            parameters.append(linear(x[..., part]))
        return parameters[0] if self.joint else torch.stack(parameters, dim=-2)

    def bind(self, step: ChannelGroupStep) -> SteppedGroupedOutput:
        """Allocate memory for a step."""
        return SteppedGroupedOutput(self, step)


class SteppedGroupedOutput:
    """A :class:`GroupedOutput` bound to the memory of a step.

    Args:
        layer: the output layers.
        step: the step to write to.
    """

    def __init__(self, layer: GroupedOutput, step: ChannelGroupStep) -> None:
        self._layer = layer
        inputs = layer.one.weight.shape[1]
        self._input_slices = layer.groups.slices(inputs)
        self._one = step.products(layer.groups.products(layer.one.weight))
        self._two = step.products(layer.groups.products(layer.two.weight))
        # Later groups read these, so they belong to the state. Both are stored after their ReLU.
        self._inputs = step.memory.zeros(inputs)
        self._middle = step.memory.zeros(layer.one.weight.shape[0])
        # Weights and bias of each group's last layer.
        self._last = []
        for linear in layer.last:
            assert isinstance(linear, LastLayer)
            weight, bias = linear.mixed()
            self._last.append((step.memory.matrix(weight.T), step.memory.table(bias)))
        assert layer.one.bias is not None
        assert layer.two.bias is not None
        self._first_bias = step.memory.table(layer.one.bias)
        self._second_bias = step.memory.table(layer.two.bias)

    def group_input(self, group: int) -> Operand:
        """Memory for a group of input features after their ReLU, ``[batch, features]``."""
        return self._inputs[:, self._input_slices[group]]

    def write_group(self, program: OperationWriter, group: int, out: torch.Tensor) -> None:
        """Append the output layers of one group.

        Args:
            program: the program of the group.
            group: which group.
            out: receives the parameters, ``[batch, size]``.
        """
        part = self._layer.slices[group]
        # Under mask B a group sees the leading features, up to its own end.
        known_inputs = self._inputs[:, : self._input_slices[group].stop]
        first_bias = self._first_bias[part]
        middle = self._middle[:, part]
        program.linear(known_inputs, self._one[group], middle, add=first_bias, activation="relu")
        known = self._middle[:, : part.stop]
        second_bias = self._second_bias[part]
        features = program.zeros(part.stop - part.start)
        program.linear(known, self._two[group], features, add=second_bias, activation="relu")
        weight, bias = self._last[group]
        program.linear(features, weight, out, add=bias)

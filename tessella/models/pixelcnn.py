"""PixelCNN (van den Oord et al. 2016, "Pixel Recurrent Neural Networks", sec. 3.3 to 3.5, Fig. 5
left, Table 1).

After the first layer come residual blocks: ``2 h`` features are reduced to ``h`` by a 1 x 1
convolution, a 3 x 3 convolution looks around, a 1 x 1 convolution leads back to ``2 h`` and the
block's input is added; all under mask B, with a ReLU before each convolution. A stack of masked 3 x
3 convolutions has a *blind spot*: of the rows above it sees a wedge that widens by one pixel a row
to the right, so that pixels farther to the right are never seen, however many layers there are.
:meth:`PixelCNN.receptive_field` shows it. The class adds a bias to the 3 x 3 convolution of every
block.

The paper's CIFAR-10 model has ``layers=15, hidden=128, last=1024``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.channel_masked import FIRST_REACH, ChannelMasked
from tessella.models.condition import Condition, Conditioning
from tessella.nn.channel_groups import ChannelGroups, GroupedConvolution
from tessella.nn.stepping.program import Matrix, Program, along, windows
from tessella.nn.stepping.state import State


class ResidualBlock(nn.Module):
    """A block of Fig. 5 (left).

    Args:
        groups: how features are split.
        hidden: features of the 3 x 3 convolution.
        dropout: share of its features dropped in training.
    """

    def __init__(self, groups: ChannelGroups, hidden: int, dropout: float) -> None:
        super().__init__()
        self.reduce = groups.linear(2 * hidden, hidden)
        self.around = GroupedConvolution(groups, hidden, hidden, above=1, aside=1)
        self.restore = groups.linear(hidden, 2 * hidden, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``[batch, height, width, 2 * hidden]`` to the same; ``bias`` is added to the 3 x 3
        convolution."""
        y = self.around(F.relu(self.reduce(F.relu(x))))
        y = F.relu(y if bias is None else y + bias)
        out: torch.Tensor = x + self.restore(self.dropout(y))
        return out


@dataclass
class Weights:
    """Weights laid out for stepping; lists are by layer, and lists in them by group."""

    above: list[Matrix]
    reduce: list[list[Matrix]]
    around: list[list[Matrix]]
    restore: list[list[Matrix]]
    reduce_bias: list[torch.Tensor]


@dataclass
class BlocksState(State):
    """Caches of the blocks, lists by layer."""

    shared: ClassVar[frozenset[str]] = frozenset({"weights"})
    batch_dims: ClassVar[dict[str, int]] = {"biases": 1}

    weights: Weights
    biases: torch.Tensor
    """Bias and class bias of the 3 x 3 convolutions: ``[layers, batch, 1, hidden]``."""
    reduced: list[torch.Tensor]
    """What enters the 3 x 3 convolutions, with margins of zeros; this row up to the pixel, then the
    row above: ``[batch, width + 2, hidden]``."""
    above: list[torch.Tensor]
    """What the row above gives the 3 x 3 convolutions in this row: ``[batch, width, hidden]``."""
    features: torch.Tensor
    """What goes from block to block at this pixel: ``[batch, 2 * hidden]``."""
    inputs: list[torch.Tensor]
    """The same that came to the block, after the ReLU: ``[batch, 2 * hidden]``."""
    gathered: list[torch.Tensor]
    """Outputs of the 3 x 3 convolutions at this pixel after the ReLU: ``[batch, hidden]``."""


class PixelCNN(ChannelMasked):
    """``pixelcnn``: residual blocks of masked 3 x 3 convolutions, channel groups in every layer; it
    has a blind spot.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: residual blocks.
        hidden: features of the 3 x 3 convolutions; there are twice as many between blocks.
        last: features of the two last layers.
        dropout: share of the features dropped in training, before the last convolution of a block.

    Raises:
        ConfigError: for sizes that make no network.
    """

    name = "pixelcnn"

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        layers: int = 5,
        hidden: int = 32,
        last: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(grid, head, conditioning, layers, hidden, last, dropout)
        self.narrow = self.groups.slices(hidden)

    def forward_from(self, x: torch.Tensor, condition: Condition, row: int) -> torch.Tensor:
        top = max(0, row - FIRST_REACH - len(self.layers))
        return self(x[:, top:], condition)[:, row - top :]

    @property
    def biases(self) -> int:
        return self.hidden

    def create_layers(self, count: int) -> list[nn.Module]:
        return [ResidualBlock(self.groups, self.hidden, self.dropout) for _ in range(count)]

    def _blocks(self) -> list[ResidualBlock]:
        return [block for block in self.layers if isinstance(block, ResidualBlock)]

    def init_layers(self, batch: int, class_bias: torch.Tensor | None) -> BlocksState:
        blocks, width, hidden = self._blocks(), self.grid.width, self.hidden
        make = self.first.weight.new_zeros
        biases = torch.stack([block.around.offset() for block in blocks])[:, None, None]
        return BlocksState(
            weights=self._weights(blocks),
            biases=biases.repeat(1, batch, 1, 1) if class_bias is None else biases + class_bias,
            reduced=[make(batch, width + 2, hidden) for _ in blocks],
            above=[make(batch, width, hidden) for _ in blocks],
            features=make(batch, 2 * hidden),
            inputs=[make(batch, 2 * hidden) for _ in blocks],
            gathered=[make(batch, hidden) for _ in blocks],
        )

    def _weights(self, blocks: list[ResidualBlock]) -> Weights:
        return Weights(
            above=[block.around.rows_above() for block in blocks],
            reduce=[self.groups.products(block.reduce.weight) for block in blocks],
            around=[block.around.this_row() for block in blocks],
            restore=[self.groups.products(block.restore.weight) for block in blocks],
            reduce_bias=[
                block.reduce.bias.detach() for block in blocks if block.reduce.bias is not None
            ],
        )

    def write_row(self, program: Program, layers: BlocksState) -> None:
        for reduced, weight, above, bias in zip(
            layers.reduced, layers.weights.above, layers.above, layers.biases, strict=True
        ):
            program.linear(windows(reduced, 3), weight, above, plus=bias)

    def entering(self, group: int, layers: BlocksState) -> torch.Tensor:
        return layers.features[:, self.wide[group]]

    def write_layers(
        self, program: Program, group: int, out: torch.Tensor, layers: BlocksState
    ) -> None:
        weights, x, wide, narrow = (
            layers.weights,
            self.entering(group, layers),
            self.wide[group],
            self.narrow[group],
        )
        for i, (inputs, reduced, gathered) in enumerate(
            zip(layers.inputs, layers.reduced, layers.gathered, strict=True)
        ):
            program.map(x, inputs[:, wide], "relu")
            here, bias = along(reduced[:, :, narrow], "column", 1), weights.reduce_bias[i][narrow]
            program.linear(
                inputs[:, : wide.stop], weights.reduce[i][group], here, plus=bias, then="relu"
            )
            around = along(reduced, "column", count=2).upto(self.hidden + narrow.stop)
            above, own = along(layers.above[i][:, :, narrow], "column"), gathered[:, narrow]
            program.linear(around, weights.around[i][group], own, plus=above, then="relu")
            to, then = (out, "relu") if i == len(layers.inputs) - 1 else (x, "")
            program.linear(
                gathered[:, : narrow.stop], weights.restore[i][group], to, plus=x, then=then
            )

    def layer_field(self, field: torch.Tensor) -> torch.Tensor:
        return field | self._blocks()[0].around.field(self.groups.field_within(field))

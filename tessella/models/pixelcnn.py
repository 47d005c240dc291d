"""PixelCNN (van den Oord et al. 2016, "Pixel Recurrent Neural Networks", sec. 3.3 to 3.5, Fig. 5 left, Table 1).

After the first layer come residual blocks: ``2 h`` features are reduced to ``h`` by a 1 x 1 convolution, a 3 x 3
convolution looks around, a 1 x 1 convolution leads back to ``2 h`` and the block's input is added; all under mask B,
with a ReLU before each convolution. A stack of masked 3 x 3 convolutions has a *blind spot*: of the rows above it
sees a wedge that widens by one pixel a row to the right, so that pixels farther to the right are never seen, however
many layers there are. :meth:`PixelCNN.receptive_field` shows it. The class adds a bias to the 3 x 3 convolution of
every block.

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
from tessella.models.channel_masked import ChannelMasked
from tessella.models.condition import Conditioning
from tessella.nn.channel_groups import ChannelGroups, GroupedConvolution, windows
from tessella.nn.state import State


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
        """``[batch, height, width, 2 * hidden]`` to the same; ``bias`` is added to the 3 x 3 convolution."""
        y = self.around(F.relu(self.reduce(F.relu(x))))
        y = F.relu(y if bias is None else y + bias)
        out: torch.Tensor = x + self.restore(self.dropout(y))
        return out


@dataclass
class Weights:
    """Weights laid out for stepping; lists are by layer and group."""

    above: torch.Tensor
    """``[layers, 3 * hidden, hidden]``."""
    left: torch.Tensor
    """``[layers, hidden, hidden]``."""
    reduce: list[list[torch.Tensor]]
    within: list[list[torch.Tensor]]
    restore: list[list[torch.Tensor]]
    reduce_bias: list[list[torch.Tensor]]


@dataclass
class BlocksState(State):
    """Caches of the blocks."""

    shared: ClassVar[frozenset[str]] = frozenset({"weights"})
    batch_dims: ClassVar[dict[str, int]] = dict.fromkeys(
        ("biases", "reduced", "above", "sums", "inputs", "gathered"), 1
    )

    weights: Weights
    biases: torch.Tensor
    """Bias and class bias of the 3 x 3 convolutions: ``[layers, batch, 1, hidden]``."""
    reduced: torch.Tensor
    """What enters the 3 x 3 convolutions, with a margin of zeros; this row up to the pixel, then the row above:
    ``[layers, batch, width + 2, hidden]``."""
    above: torch.Tensor
    """What the row above gives the 3 x 3 convolutions in this row: ``[layers, batch, width, hidden]``."""
    sums: torch.Tensor
    """The same with the pixel to the left, at this pixel: ``[layers, batch, hidden]``."""
    inputs: torch.Tensor
    """Inputs of the blocks at this pixel after the ReLU: ``[layers, batch, 2 * hidden]``."""
    gathered: torch.Tensor
    """Outputs of the 3 x 3 convolutions at this pixel after the ReLU: ``[layers, batch, hidden]``."""


class PixelCNN(ChannelMasked):
    """``pixelcnn``: residual blocks of masked 3 x 3 convolutions, channel groups in every layer; it has a blind spot.

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

    @property
    def biases(self) -> int:
        return self.hidden

    def create_layers(self, count: int) -> list[nn.Module]:
        return [ResidualBlock(self.groups, self.hidden, self.dropout) for _ in range(count)]

    def _blocks(self) -> list[ResidualBlock]:
        return [block for block in self.layers if isinstance(block, ResidualBlock)]

    def init_layers(self, batch: int, class_bias: torch.Tensor | None) -> BlocksState:
        blocks, width, hidden = self._blocks(), self.grid.width, self.hidden
        make, layers = self.first.weight.new_zeros, len(blocks)
        biases = torch.stack([block.around.offset() for block in blocks])[:, None, None]
        return BlocksState(
            weights=self._weights(blocks),
            biases=biases.repeat(1, batch, 1, 1) if class_bias is None else biases + class_bias,
            reduced=make(layers, batch, width + 2, hidden),
            above=make(layers, batch, width, hidden),
            sums=make(layers, batch, hidden),
            inputs=make(layers, batch, 2 * hidden),
            gathered=make(layers, batch, hidden),
        )

    def _weights(self, blocks: list[ResidualBlock]) -> Weights:
        biases = [block.reduce.bias for block in blocks if block.reduce.bias is not None]
        return Weights(
            above=torch.stack([block.around.rows_above() for block in blocks]),
            left=torch.stack([block.around.to_the_left() for block in blocks]),
            reduce=[self.groups.products(block.reduce.weight) for block in blocks],
            within=[block.around.within() for block in blocks],
            restore=[self.groups.products(block.restore.weight) for block in blocks],
            reduce_bias=[[bias[place] for place in self.narrow] for bias in biases],
        )

    def start_row(self, row: int, state: BlocksState) -> None:
        seen = windows(state.reduced.unsqueeze(2), 3).flatten(1, 2)
        state.above.copy_((seen @ state.weights.above).view_as(state.above))
        state.above += state.biases

    def start_pixel(self, column: int, state: BlocksState) -> None:
        torch.baddbmm(state.above[:, :, column], state.reduced[:, :, column], state.weights.left, out=state.sums)

    def advance(self, column: int, group: int, x: torch.Tensor, state: BlocksState) -> torch.Tensor:
        weights, wide, narrow = state.weights, self.wide[group], self.narrow[group]
        reduced = state.reduced[:, :, column + 1].unbind()
        for i, (inputs, here, sums, gathered) in enumerate(
            zip(state.inputs.unbind(), reduced, state.sums.unbind(), state.gathered.unbind(), strict=True)
        ):
            inputs[:, wide] = x.relu()
            y = torch.addmm(weights.reduce_bias[i][group], inputs[:, : wide.stop], weights.reduce[i][group])
            here[:, narrow] = y.relu_()
            y = torch.addmm(sums[:, narrow], here[:, : narrow.stop], weights.within[i][group])
            gathered[:, narrow] = y.relu_()
            x = torch.addmm(x, gathered[:, : narrow.stop], weights.restore[i][group])
        return x

    def layer_field(self, field: torch.Tensor) -> torch.Tensor:
        return field | self._blocks()[0].around.field(self.groups.field_within(field))

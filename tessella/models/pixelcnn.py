"""PixelCNN: masked convolutions with channel groups.

Van den Oord et al. 2016, "Pixel Recurrent Neural Networks", sec. 3.3 to 3.5, Fig. 5 (left) and
Table 1.

The first layer is followed by residual blocks around a masked 3 x 3 convolution
(``tessella.nn.pixelcnn_layers``). A stack of such convolutions has a *blind spot*: to the right,
its view of the rows above widens by only one pixel per row, so that pixels beyond are never seen,
however many layers there are (:meth:`PixelCNN.receptive_field`). The class adds a bias to the 3 x 3
convolution of every block.

The paper's CIFAR-10 model has ``layers=15, hidden=128, last=1024``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.channel_masked import FIRST_REACH, ChannelMasked
from tessella.models.condition import Condition, Conditioning
from tessella.nn.channel_masked_layers import ChannelMaskedLayer
from tessella.nn.pixelcnn_layers import ResidualBlock


class PixelCNN(ChannelMasked):
    """``pixelcnn``: residual blocks of masked 3 x 3 convolutions, with a blind spot.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: number of residual blocks.
        hidden: features of the 3 x 3 convolutions; there are twice as many between blocks.
        last: features of the last two layers.
        dropout: dropout rate before the last convolution of each block.

    Raises:
        ConfigError: for sizes out of range.
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

    def create_layers(self, count: int) -> Sequence[ChannelMaskedLayer]:
        return [ResidualBlock(self.groups, self.hidden, self.dropout) for _ in range(count)]

    def forward_from(self, x: torch.Tensor, condition: Condition, row: int) -> torch.Tensor:
        # Each block extends the view by one row, so rows above `top` can be skipped.
        top = max(0, row - FIRST_REACH - len(self.layers))
        return self(x[:, top:], condition)[:, row - top :]

"""Diagonal BiLSTM: LSTMs that go along the diagonals of the image in two directions.

Van den Oord et al. 2016, "Pixel Recurrent Neural Networks", sec. 3.2 to 3.5, Fig. 3 and Fig. 5
(right).

In every layer one LSTM goes from left to right and another from right to left, both from the top
down (``tessella.nn.diagonal_bilstm_layers``). A 1 x 1 convolution of their sum restores ``2 h``
features, and the layer's input is added. The class adds a bias to all gates.

A pixel sees everything before it, with one exception. The right-to-left states of row ``r - 1``
start from the features of its last pixel, and because of mask A these do not contain that pixel
itself. So the last pixel of the row above is seen only within the reach of the first layer's 7 x 7
convolution (:meth:`DiagonalBiLSTM.receptive_field`).

Sizes of the paper: ``layers=7, hidden=16, last=32`` for MNIST, ``layers=12, hidden=128, last=1024``
for CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tessella.models.channel_masked import ChannelMasked
from tessella.nn.channel_groups import ChannelGroupStep
from tessella.nn.channel_masked_layers import ChannelMaskedLayer, SteppedLayer
from tessella.nn.diagonal_bilstm_layers import (
    DiagonalLayer,
    Diagonals,
    RightToLeft,
    SteppedDiagonalLayer,
)
from tessella.nn.stepping.runs import Runs, Truths


class DiagonalBiLSTM(ChannelMasked):
    """``diagonal-bilstm``: LSTMs along the diagonals, in two directions.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: number of LSTM layers.
        hidden: features of a state; there are twice as many between layers.
        last: features of the last two layers.
        dropout: dropout rate of each layer's states.

    Raises:
        ConfigError: for sizes out of range.
    """

    name = "diagonal-bilstm"

    def create_layers(self, count: int) -> Sequence[ChannelMaskedLayer]:
        diagonals = Diagonals(self.grid.height, self.grid.width)
        layers = []
        for _ in range(count):
            layers.append(DiagonalLayer(self.groups, self.hidden, diagonals, self.dropout))
        return layers

    def write_between_rows(
        self, step: ChannelGroupStep, layers: Sequence[SteppedLayer]
    ) -> Callable[[Runs, Truths], None]:
        diagonal = [layer for layer in layers if isinstance(layer, SteppedDiagonalLayer)]
        return RightToLeft(step, diagonal).add_runs

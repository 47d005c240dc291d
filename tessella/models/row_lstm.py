"""Row LSTM: LSTMs that go from row to row.

Van den Oord et al. 2016, "Pixel Recurrent Neural Networks", sec. 3.1, 3.3 to 3.5, Fig. 5 (right).

Every layer is an LSTM that goes from row to row (``tessella.nn.row_lstm_layers``). A 1 x 1
convolution restores ``2 h`` features, and the layer's input is added. The class adds a bias to the
gates.

A pixel sees a triangle of the rows above, one pixel wider on each side with each row up, plus what
the first layer and the convolutions along rows see (:meth:`RowLSTM.receptive_field`).

Sizes of the paper: ``layers=7, hidden=16, last=32`` for MNIST, ``layers=12, hidden=128, last=1024``
for CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Sequence

from tessella.models.channel_masked import ChannelMasked
from tessella.nn.channel_masked_layers import ChannelMaskedLayer
from tessella.nn.row_lstm_layers import RowLayer


class RowLSTM(ChannelMasked):
    """``row-lstm``: LSTMs from row to row, which see a triangle of the rows above.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        layers: number of LSTM layers.
        hidden: features of a state; there are twice as many between layers.
        last: features of the last two layers.
        dropout: dropout rate of each layer's states.

    Raises:
        ConfigError: for sizes out of range.
    """

    name = "row-lstm"

    def create_layers(self, count: int) -> Sequence[ChannelMaskedLayer]:
        return [RowLayer(self.groups, self.hidden, self.dropout) for _ in range(count)]

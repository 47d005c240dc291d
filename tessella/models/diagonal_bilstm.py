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

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tessella.models.channel_masked import ChannelMasked, ChannelMaskedLayer, SteppedLayer
from tessella.nn.channel_groups import ChannelGroups, ChannelGroupStep
from tessella.nn.lstm_cell import GATES, cell_dtype, lstm_cell
from tessella.nn.stepping.program import Operand, OperationWriter, Places, Program


class Diagonals(nn.Module):
    """The order of pixels by diagonals, and within a diagonal from the top, for both directions.

    Args:
        height, width: of the grid.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.width = width
        rows = torch.arange(height)[:, None]
        columns = torch.arange(width)
        # Numbers that grow along a diagonal, and from one diagonal to the next.
        number = (rows + columns) * height + rows
        order = torch.stack([number.flatten().argsort(), number.flip(1).flatten().argsort()])
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("place", order.argsort(1), persistent=False)
        self.order: torch.Tensor
        """The pixels in this order, ``int64 [directions, pixels]``."""
        self.place: torch.Tensor
        """The places of the pixels in it, ``int64 [directions, pixels]``."""
        self.first_rows: list[int] = []
        """The topmost row of each diagonal."""
        self.lengths: list[int] = []
        """Its pixels."""
        for diagonal in range(height + width - 1):
            first = max(0, diagonal - width + 1)
            self.first_rows.append(first)
            self.lengths.append(min(height - 1, diagonal) - first + 1)


class DiagonalLayer(ChannelMaskedLayer):
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
        self.groups = groups
        self.hidden = hidden
        self.biases = 2 * GATES * hidden
        self.diagonals = diagonals
        self.left = groups.linear(2 * hidden, hidden, GATES)
        """From the inputs to the gates of the direction from left to right."""
        self.right = groups.linear(2 * hidden, hidden, GATES)
        """From the inputs to the gates of the direction from right to left."""
        bound = (2 * hidden) ** -0.5
        weight = torch.empty(2, 2 * hidden, GATES * hidden).uniform_(-bound, bound)
        self.state = nn.Parameter(weight)
        """From the states above and beside, in this order, to the gates, for each direction."""
        self.restore = groups.linear(hidden, 2 * hidden, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        width = self.diagonals.width
        left, right = self.states(x, bias)
        # From right to left a pixel has seen pixels after it, so its state serves the row below.
        moved_down = F.pad(right[:-width], (0, 0, 0, 0, width, 0))
        out = self.restore(self.dropout(left + moved_down))
        return x + out.transpose(0, 1).view_as(x)

    def states(
        self, x: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The states of each pixel in both directions, ``[pixels, batch, hidden]`` each."""
        # [pixels, batch, 2 * hidden]: the pixels first, to be sorted by diagonals.
        pixels = x.flatten(1, 2).transpose(0, 1)
        order = self.diagonals.order
        # [2, pixels, batch, gates], diagonal by diagonal
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
        """The states ``[2, pixels, batch, hidden]``, from what the inputs add to the gates,
        diagonal by diagonal ``[2, pixels, batch, gates]``."""
        batch = gates.shape[2]
        # Of the diagonal before, [2, its pixels + 2, batch, hidden]: a row of zeros at both ends.
        hidden = gates.new_zeros(2, 2, batch, self.hidden)
        cell = hidden.to(cell_dtype(gates))
        states = []
        # The diagonal before the first one is a place of zeros.
        first_before = 0
        parts = gates.split(self.diagonals.lengths, dim=1)
        for first, part in zip(self.diagonals.first_rows, parts, strict=True):
            rows = part.shape[1]
            # On the diagonal before, the pixel above is one place up from the pixel beside.
            above = slice(first - first_before, first - first_before + rows)
            beside = slice(above.start + 1, above.stop + 1)
            seen = torch.cat([hidden[:, above], hidden[:, beside]], dim=-1)
            sums = torch.baddbmm(part.flatten(1, 2), seen.flatten(1, 2), self.state).view_as(part)
            state, cell = lstm_cell(sums, cell[:, beside])
            states.append(state)
            hidden = F.pad(state, (0, 0, 0, 0, 1, 1))
            cell = F.pad(cell, (0, 0, 0, 0, 1, 1))
            first_before = first
        return torch.cat(states, dim=1)

    def start(self, step: ChannelGroupStep, bias: torch.Tensor | None) -> SteppedLayer:
        return SteppedDiagonalLayer(self, step, bias)

    def field(self, field: torch.Tensor) -> torch.Tensor:
        # From right to left is from left to right on the mirrored map.
        inside = self.groups.field_within(field)
        right = _field_from_the_left(inside.flip(-1)).flip(-1)
        moved_down = torch.zeros_like(right)
        moved_down[:, :, 1:] = right[:, :, :-1]
        return field | self.groups.field_within(_field_from_the_left(inside) | moved_down)


class SteppedDiagonalLayer(SteppedLayer):
    """A :class:`DiagonalLayer` on the memory of a step."""

    def __init__(
        self, layer: DiagonalLayer, step: ChannelGroupStep, bias: torch.Tensor | None
    ) -> None:
        groups = layer.groups
        hidden = layer.hidden
        memory = step.memory
        self.layer = layer
        self._wide = groups.slices(2 * hidden)
        self._narrow = groups.slices(hidden)
        self._gates = groups.slices(hidden, GATES)
        # [batch, 1, 2 * gates], both directions side by side
        gates_bias = layer.bias().expand(memory.batch, 1, -1)
        if bias is not None:
            gates_bias = bias + gates_bias
        left_bias, right_bias = gates_bias.split(GATES * hidden, dim=-1)
        left_bias = memory.keep(groups.arranged(left_bias, GATES))
        self.right_bias = memory.keep(right_bias)
        """``[batch, 1, gates]``."""
        # For each place the left-to-right state to its left, zeros at the first, then the input.
        # This row up to the pixel; from the pixel on, still the row above.
        self._row = step.places(3 * hidden, right=1)
        self._inputs = self._row.features(slice(hidden, 3 * hidden))
        self._states = self._row.features(slice(0, hidden)).delayed()
        self.cells = memory.zeros(hidden, dtype=cell_dtype(memory.like))
        """Cell states of the pixel to the left, or of this pixel for the groups known; between rows
        those of the other direction: ``[batch, hidden]``."""
        self.right = step.places(hidden, right=1)
        """Right-to-left states in the row above, zeros at the right."""
        self._both = memory.zeros(hidden)  # the sum of both directions at this pixel
        self._above = step.places(GATES * hidden)
        # [direction, above or beside, hidden, gates]
        state = layer.state.detach().unflatten(1, (2, hidden))
        above_weight = groups.arranged(state[0, 0], GATES).contiguous()
        self._here = step.products(groups.products(layer.left.weight, GATES, before=state[0, 1]))
        self._restore = step.products(groups.products(layer.restore.weight))
        # Of the right-to-left direction all groups are computed at once.
        self.right_inputs = memory.matrix(layer.right.kernel().T)
        self.right_above = memory.matrix(state[1, 0])
        self.right_beside = memory.matrix(state[1, 1])
        step.row.linear(
            self._states.row, memory.matrix(above_weight), self._above.row, add=left_bias
        )

    def group_input(self, group: int) -> Operand:
        return self._inputs.features(self._wide[group]).at("column")

    @property
    def row_inputs(self) -> torch.Tensor:
        """The inputs of the row, ``[batch, width, 2 * hidden]``."""
        return self._inputs.row

    def write_group(
        self, program: OperationWriter, group: int, out: Operand, activation: str
    ) -> None:
        narrow = self._narrow[group]
        hidden = self.layer.hidden
        gates = program.zeros(GATES * (narrow.stop - narrow.start))
        # The state to the left and, of the inputs, the groups up to this one: neighbours in memory.
        seen = self._row.at("column").first(hidden + self._wide[group].stop)
        above = self._above.features(self._gates[group]).at("column")
        program.linear(seen, self._here[group], gates, add=above)
        state = self._states.features(narrow).at("column")
        program.cell(gates, self.cells[:, narrow], state)
        from_right = self.right.features(narrow).at("column")
        program.add(state, from_right, self._both[:, narrow])
        known = self._both[:, : narrow.stop]
        x = self.group_input(group)
        program.linear(known, self._restore[group], out, add=x, activation=activation)


class RightToLeft:
    """The right-to-left states of a row that has become complete, in place of those above it.

    Args:
        step: where the layers are written.
        layers: all of them; each column is computed in all layers by one program.
    """

    def __init__(self, step: ChannelGroupStep, layers: Sequence[SteppedDiagonalLayer]) -> None:
        batch = step.memory.batch
        like = step.memory.like
        self._width = step.width
        self._cells = [layer.cells for layer in layers]
        self._gates = Program(batch, (), like, places=step.width)
        self._states = Program(batch, ("column",), like)
        # Scratch of one layer at a time.
        sums = self._states.zeros(self._cells[0].shape[1] * GATES)
        for layer in layers:
            # What inputs and the states above give the gates of the row.
            gates = self._gates.zeros(sums.shape[1])
            self._gates.linear(layer.row_inputs, layer.right_inputs, gates, add=layer.right_bias)
            self._gates.linear(layer.right.row, layer.right_above, gates, add=gates)
            # One column after the other from the right.
            here = Places(gates).at("column")
            beside = layer.right.delayed().at("column")
            self._states.linear(beside, layer.right_beside, sums, add=here)
            self._states.cell(sums, layer.cells, layer.right.at("column"))

    def run(self) -> None:
        """Compute the states of the row."""
        self._gates.run()
        self._clear_cells()
        for column in reversed(range(self._width)):
            self._states.run(column)
        # The direction from left to right begins the next row with empty cells.
        self._clear_cells()

    def _clear_cells(self) -> None:
        for cells in self._cells:
            cells.zero_()


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

    def create_layers(self, count: int) -> Sequence[ChannelMaskedLayer]:
        diagonals = Diagonals(self.grid.height, self.grid.width)
        layers = []
        for _ in range(count):
            layers.append(DiagonalLayer(self.groups, self.hidden, diagonals, self.dropout))
        return layers

    def write_between_rows(
        self, step: ChannelGroupStep, layers: Sequence[SteppedLayer]
    ) -> Callable[[], None]:
        diagonal = [layer for layer in layers if isinstance(layer, SteppedDiagonalLayer)]
        return RightToLeft(step, diagonal).run


def _field_from_the_left(inside: torch.Tensor) -> torch.Tensor:
    """Which sources reach the states from left to right, given those that reach the inputs:
    ``bool [sources, groups, height, width]``."""
    # Everything above and to the left, and the pixel.
    every = inside.any(1).cummax(1).values.cummax(2).values
    before = torch.zeros_like(every)
    before[:, 1:] |= every[:, :-1]
    before[:, :, 1:] |= every[:, :, :-1]
    return inside | before[:, None]

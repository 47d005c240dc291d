"""LSTMs along the diagonals of an image in two directions, with channel groups.

Van den Oord et al. 2016, "Pixel Recurrent Neural Networks", sec. 3.2, Fig. 3 and Fig. 5 (right).

From left to right, the state of a pixel depends on the states of the pixel to its left and of the
pixel above, and on its own input under mask B. (In the paper this is a column-wise convolution of
size 2 on the *skewed* map, whose row ``r`` is shifted ``r`` places to the right, so that a diagonal
of the image becomes a column.) From right to left, it depends on the pixel to its right and the
pixel above. All pixels of a diagonal are computed at once. The right-to-left map is shifted down by
one row before it is added, so that no pixel sees a later one.

In a step, the left-to-right states are computed with each group. Those from right to left need a
complete row, so they are computed between two rows (:class:`RightToLeft`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.channel_groups import ChannelGroups, ChannelGroupStep
from tessella.nn.channel_masked_layers import ChannelMaskedLayer, SteppedLayer
from tessella.nn.lstm_cell import GATES, cell_dtype, lstm_cell
from tessella.nn.stepping.program import Operand, OperationWriter, Places, Program
from tessella.nn.stepping.runs import Runs, Truths
from tessella.nn.stepping.step import clearing_program


class Diagonals(nn.Module):
    """Sorts pixels by diagonal, and within a diagonal from the top, for both directions.

    Args:
        height, width: size of the grid.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.width = width
        rows = torch.arange(height)[:, None]
        columns = torch.arange(width)
        # A sort key that grows along a diagonal, and from one diagonal to the next.
        number = (rows + columns) * height + rows
        order = torch.stack([number.flatten().argsort(), number.flip(1).flatten().argsort()])
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("place", order.argsort(1), persistent=False)
        self.order: torch.Tensor
        """The pixels in this order, in each direction: ``int64 [2, pixels]``."""
        self.place: torch.Tensor
        """The inverse of :attr:`order`, the position of each pixel: ``int64 [2, pixels]``."""
        self.first_rows: list[int] = []
        """The topmost row of each diagonal."""
        self.lengths: list[int] = []
        """The number of pixels in each diagonal."""
        for diagonal in range(height + width - 1):
            first = max(0, diagonal - width + 1)
            self.first_rows.append(first)
            self.lengths.append(min(height - 1, diagonal) - first + 1)


class DiagonalLayer(ChannelMaskedLayer):
    """LSTMs in both directions, and a 1 x 1 convolution that restores the number of features.

    Args:
        groups: how features are split.
        hidden: features of a state.
        diagonals: the order of the grid's pixels.
        dropout: dropout rate of the states before the 1 x 1 convolution.
    """

    matrices = ("state",)

    def __init__(
        self, groups: ChannelGroups, hidden: int, diagonals: Diagonals, dropout: float
    ) -> None:
        super().__init__()
        self.groups = groups
        self.hidden = hidden
        self.biases = 2 * GATES * hidden
        self.diagonals = diagonals
        self.left = groups.linear(2 * hidden, hidden, GATES)
        """Weights from the inputs to the gates, left to right."""
        self.right = groups.linear(2 * hidden, hidden, GATES)
        """Weights from the inputs to the gates, right to left."""
        bound = (2 * hidden) ** -0.5
        weight = torch.empty(2, 2 * hidden, GATES * hidden).uniform_(-bound, bound)
        self.state = nn.Parameter(weight)
        """Weights from the states above and beside, in this order, to the gates, in each
        direction."""
        self.restore = groups.linear(hidden, 2 * hidden, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        width = self.diagonals.width
        left, right = self.states(x, bias)
        # A right-to-left state has seen later pixels of its row, so only the row below may use it.
        moved_down = F.pad(right[:-width], (0, 0, 0, 0, width, 0))
        out = self.restore(self.dropout(left + moved_down))
        return x + out.transpose(0, 1).view_as(x)

    def states(
        self, x: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states of all pixels, left to right and right to left.

        Args:
            x: ``[batch, height, width, 2 * hidden]``.
            bias: bias of each image's class, ``[batch, 1, 1, biases]``.

        Returns:
            ``[pixels, batch, hidden]`` for each direction.
        """
        # [pixels, batch, 2 * hidden]: pixels come first, because they are reordered.
        pixels = x.flatten(1, 2).transpose(0, 1)
        order = self.diagonals.order
        # [2, pixels, batch, gates], diagonal by diagonal
        gates = torch.stack([self.left(pixels[order[0]]), self.right(pixels[order[1]])])
        if bias is not None:
            gates = gates + bias[:, 0, 0].unflatten(-1, (2, 1, -1)).movedim(0, 2)
        left, right = self._walk(gates)
        return left[self.diagonals.place[0]], right[self.diagonals.place[1]]

    def bias(self) -> torch.Tensor:
        """The biases of the gates in both directions, concatenated, ``[2 * 4 * hidden]``."""
        assert self.left.bias is not None
        assert self.right.bias is not None
        return torch.cat([self.left.bias, self.right.bias])

    def _walk(self, gates: torch.Tensor) -> torch.Tensor:
        """Run the LSTMs over all diagonals.

        Args:
            gates: contribution of the inputs to the gates, sorted by diagonal,
                ``[2, pixels, batch, 4 * hidden]``.

        Returns:
            The hidden states in the same order, ``[2, pixels, batch, hidden]``.
        """
        batch = gates.shape[2]
        # States of the previous diagonal, with a zero at both ends: [2, pixels + 2, batch, hidden].
        hidden = gates.new_zeros(2, 2, batch, self.hidden)
        cell = hidden.to(cell_dtype(gates))
        states = []
        # Before the first diagonal, these are zeros only.
        first_before = 0
        parts = gates.split(self.diagonals.lengths, dim=1)
        for first, part in zip(self.diagonals.first_rows, parts, strict=True):
            rows = part.shape[1]
            # On the previous diagonal, the pixel above comes one place before the pixel beside.
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

    def bind(self, step: ChannelGroupStep, bias: torch.Tensor | None) -> SteppedLayer:
        return SteppedDiagonalLayer(self, step, bias)

    def field(self, field: torch.Tensor) -> torch.Tensor:
        # Right to left is left to right on the mirrored map.
        inside = self.groups.field_within(field)
        right = _field_from_the_left(inside.flip(-1)).flip(-1)
        moved_down = torch.zeros_like(right)
        moved_down[:, :, 1:] = right[:, :, :-1]
        return field | self.groups.field_within(_field_from_the_left(inside) | moved_down)


class SteppedDiagonalLayer(SteppedLayer):
    """A :class:`DiagonalLayer` bound to the memory of a step."""

    def __init__(
        self, layer: DiagonalLayer, step: ChannelGroupStep, bias: torch.Tensor | None
    ) -> None:
        groups = layer.groups
        hidden = layer.hidden
        memory = step.memory
        self.layer = layer
        self._input_slices = groups.slices(2 * hidden)
        self._hidden_slices = groups.slices(hidden)
        self._gates = groups.slices(hidden, GATES)
        # [batch, 1, 2 * 4 * hidden], both directions concatenated.
        gates_bias = layer.bias().expand(memory.batch, 1, -1)
        if bias is not None:
            gates_bias = bias + gates_bias
        left_bias, right_bias = gates_bias.split(GATES * hidden, dim=-1)
        left_bias = memory.keep(groups.arranged(left_bias, GATES))
        self.right_bias = memory.keep(right_bias)
        """Bias of the right-to-left gates: ``[batch, 1, 4 * hidden]``."""
        # For each place, the left-to-right state of the place to its left (zero at the first) and
        # then the input of the place. From the current pixel on, this is still the row above.
        self._row = step.places(3 * hidden, right=1)
        self._inputs = self._row.features(slice(hidden, 3 * hidden))
        self._states = self._row.features(slice(0, hidden)).delayed()
        self.cells = memory.zeros(hidden, dtype=cell_dtype(memory.like))
        """Cell states ``[batch, hidden]``: those of the pixel to the left or, for groups already
        computed, of this pixel. Between rows, the right-to-left direction uses this memory."""
        self.right = step.places(hidden, right=1)
        """Right-to-left states of the row above, ``[batch, width, hidden]``, and a zero after
        them."""
        # The sum of both directions at this pixel.
        self._both = memory.zeros(hidden)
        self._above = step.places(GATES * hidden)
        # [direction, above or beside, hidden, gates]
        state = layer.state.detach().unflatten(1, (2, hidden))
        above_weight = groups.arranged(state[0, 0], GATES).contiguous()
        self._here = step.products(groups.products(layer.left.weight, GATES, before=state[0, 1]))
        self._restore = step.products(groups.products(layer.restore.weight))
        # The right-to-left direction computes all groups at once.
        self.right_inputs = memory.matrix(layer.right.kernel().T)
        self.right_above = memory.matrix(state[1, 0])
        self.right_beside = memory.matrix(state[1, 1])
        step.row.linear(
            self._states.row, memory.matrix(above_weight), self._above.row, add=left_bias
        )

    def group_input(self, group: int) -> Operand:
        return self._inputs.features(self._input_slices[group]).at("column")

    @property
    def row_inputs(self) -> torch.Tensor:
        """The inputs of the row, ``[batch, width, 2 * hidden]``."""
        return self._inputs.row

    def write_group(
        self, program: OperationWriter, group: int, out: Operand, activation: str
    ) -> None:
        hidden_slice = self._hidden_slices[group]
        hidden = self.layer.hidden
        gates = program.zeros(GATES * (hidden_slice.stop - hidden_slice.start))
        # The state to the left, and the inputs of the groups up to this one, contiguous in memory.
        seen = self._row.at("column").first(hidden + self._input_slices[group].stop)
        above = self._above.features(self._gates[group]).at("column")
        program.linear(seen, self._here[group], gates, add=above)
        state = self._states.features(hidden_slice).at("column")
        program.cell(gates, self.cells[:, hidden_slice], state)
        from_right = self.right.features(hidden_slice).at("column")
        program.add(state, from_right, self._both[:, hidden_slice])
        known = self._both[:, : hidden_slice.stop]
        x = self.group_input(group)
        program.linear(known, self._restore[group], out, add=x, activation=activation)


class RightToLeft:
    """Computes the right-to-left states of a complete row, replacing those of the row above it.

    Args:
        step: the step to which the layers belong.
        layers: all layers; one program computes a column in all of them.
    """

    def __init__(self, step: ChannelGroupStep, layers: Sequence[SteppedDiagonalLayer]) -> None:
        batch = step.memory.batch
        like = step.memory.like
        self._width = step.width
        cells = [layer.cells for layer in layers]
        # Of a single place.
        self._clearing = clearing_program(step.memory, [cell[:, None] for cell in cells])
        self._gates = Program(batch, (), like, places=step.width)
        self._states = Program(batch, ("column",), like)
        # Scratch memory that all layers share, because they run one after the other.
        sums = self._states.zeros(cells[0].shape[1] * GATES)
        for layer in layers:
            # The contribution of inputs and states above to the gates of the row.
            gates = self._gates.zeros(sums.shape[1])
            self._gates.linear(layer.row_inputs, layer.right_inputs, gates, add=layer.right_bias)
            self._gates.linear(layer.right.row, layer.right_above, gates, add=gates)
            # Then one column after the other, from the right.
            here = Places(gates).at("column")
            beside = layer.right.delayed().at("column")
            self._states.linear(beside, layer.right_beside, sums, add=here)
            self._states.cell(sums, layer.cells, layer.right.at("column"))

    def add_runs(self, runs: Runs, when: Truths) -> None:
        """Add the work that computes the states of the row."""
        runs.add(self._gates, when=when)
        runs.add(self._clearing, when=when)
        for column in reversed(range(self._width)):
            runs.add(self._states, column, when=when)
        # The left-to-right direction starts the next row with zero cell states.
        runs.add(self._clearing, when=when)


def _field_from_the_left(inside: torch.Tensor) -> torch.Tensor:
    """Receptive field of the left-to-right states, given that of the inputs.

    Both are ``bool [sources, groups, height, width]``.
    """
    # Everything above and to the left, including the pixel itself.
    every = inside.any(1).cummax(1).values.cummax(2).values
    before = torch.zeros_like(every)
    before[:, 1:] |= every[:, :-1]
    before[:, :, 1:] |= every[:, :, :-1]
    return inside | before[:, None]

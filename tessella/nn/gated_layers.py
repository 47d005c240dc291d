"""The layers of a Gated PixelCNN: two stacks of gated convolutions (van den Oord et al. 2016,
"Conditional Image Generation with PixelCNN Decoders", section 2.2 and figure 2).

The vertical stack sees the rows above a pixel, the horizontal one the pixels to its left and the
vertical stack. A layer has ``forward`` over whole maps ``[batch, hidden, height, width]``, and
``write``, which appends its work to the programs of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tessella.nn.convolution import CausalConvolution, pointwise, pointwise_matrix
from tessella.nn.gate import gate
from tessella.nn.stepping.program import Operand, Places, Plane
from tessella.nn.stepping.step import GridStep


@dataclass(frozen=True)
class SteppedCondition:
    """What is added to the gates of a layer, as a step has it; see :meth:`GatedLayer.forward`."""

    position: Plane | None
    """``[height, width, 4 * hidden]``."""
    class_bias: torch.Tensor | None
    """``[batch, 4 * hidden]``."""
    codes: Plane | None
    """``[batch, height, width, hidden]``."""


@dataclass(frozen=True)
class SteppedStacks:
    """A row of each stack, as a step has it."""

    v: Places
    """The vertical stack, known as a whole when a row begins."""
    h: Places
    """The horizontal stack, known up to the pixel."""


class GatedLayer(nn.Module):
    """One layer of both stacks.

    Args:
        hidden: width of the stacks.
        kernel: odd size of the convolution; the vertical stack sees ``kernel // 2`` rows up, the
            horizontal one as many pixels left.
        dropout: share of the horizontal gate's outputs that is dropped in training.
        first: the first layer must not see its own row (vertical) or pixel (horizontal).
        last: the last layer's horizontal output goes to the skip connection only.
        codes: whether features of codes come in.
    """

    def __init__(
        self, hidden: int, kernel: int, dropout: float, first: bool, last: bool, codes: bool
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.side = kernel // 2
        self.first = first
        # With the place itself a window is one longer.
        reach = self.side if first else self.side + 1
        self.widen = nn.Conv2d(hidden, hidden, (1, kernel), padding=(0, self.side))
        # Both stacks have outputs a and b for the gate, side by side.
        self.up = CausalConvolution(hidden, 2 * hidden, reach, "rows", exclusive=first)
        self.left = CausalConvolution(hidden, 2 * hidden, reach, "columns", exclusive=first)
        self.link = nn.Conv2d(hidden, 2 * hidden, 1, bias=False)
        self.skip = nn.Conv2d(hidden, hidden, 1)
        self.residual = None if last else nn.Conv2d(hidden, hidden, 1, bias=False)
        self.codes = nn.Linear(hidden, 4 * hidden, bias=False) if codes else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        v: torch.Tensor,
        h: torch.Tensor,
        position: torch.Tensor | None,
        class_bias: torch.Tensor | None,
        codes: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Both stacks one layer on, and the layer's skip output.

        Args:
            v, h: the vertical and the horizontal stack, ``[batch, hidden, height, width]``.
            position: added to the gates of both, ``[1, 4 * hidden, height, width]``.
            class_bias: what the class adds to them, ``[batch, 4 * hidden]``.
            codes: features of the codes, ``[batch, height, width, hidden]``.
        """
        v_bias, h_bias = self._gate_biases(position, class_bias, codes)
        rows = gate(_add(self.up(self.widen(v)), v_bias))
        # The first layer's input is the pixel itself, which its output must not hold.
        v = rows if self.first else v + rows
        # The horizontal gates see the vertical stack after its gate.
        sums = pointwise(self.link, v, add=self.left(h), spend=True)
        gated = self.dropout(gate(_add(sums, h_bias)))
        if self.residual is not None:
            h = pointwise(self.residual, gated, add=None if self.first else h)
        return v, h, pointwise(self.skip, gated)

    def _gate_biases(
        self,
        position: torch.Tensor | None,
        class_bias: torch.Tensor | None,
        codes: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What position, class and codes add to the gates of the vertical and the horizontal
        stack."""
        total = position
        if class_bias is not None:
            total = _add(class_bias[..., None, None], total)
        if self.codes is not None:
            total = _add(self.codes(codes).movedim(-1, 1), total)
        if total is None:
            return None, None
        # [batch, 4 * hidden, height, width], the vertical stack first.
        v_bias, h_bias = total.split(2 * self.hidden, dim=1)
        return v_bias, h_bias

    def skip_bias(self) -> torch.Tensor:
        """Bias of the skip output, ``[hidden]``."""
        assert self.skip.bias is not None
        return self.skip.bias

    def write(
        self,
        step: GridStep,
        stacks: SteppedStacks,
        given: SteppedCondition,
        gated: torch.Tensor,
        next_side: int,
    ) -> SteppedStacks:
        """Append the layer.

        Args:
            step: where it is written.
            stacks: what comes in. Of the first layer both are the pixels: the vertical stack takes
                in the row that is complete, the horizontal one the row that grows.
            given: position, class and codes.
            gated: where the horizontal gate's output goes, ``[batch, hidden]``.
            next_side: places that the next layer sees to either side.

        Returns:
            What goes out.
        """
        v = step.places(self.hidden, next_side, next_side)
        self._write_vertical(step, stacks.v, given, v)
        # What vertical stack, position, class and codes add to the horizontal gates of this row.
        links = step.places(2 * self.hidden)
        added = self._write_gate_bias(step, 1, given, links.row)
        step.row.linear(v.row, pointwise_matrix(step, self.link), links.row, add=added)
        # What is left of the horizontal gate for the pixel: one product with the row.
        self.left.write_place(step, stacks.h, gated, links.at(step.column), "gate")
        if self.residual is None:
            return SteppedStacks(v, stacks.h)
        # The next layer's window reads what the pixels before have written here.
        h = step.places(self.hidden, left=next_side)
        residual = pointwise_matrix(step, self.residual)
        before = None if self.first else stacks.h.at(step.column)
        step.pixel.linear(gated, residual, h.at(step.column), add=before)
        return SteppedStacks(v, h)

    def _write_vertical(
        self, step: GridStep, v: Places, given: SteppedCondition, out: Places
    ) -> None:
        rows = self.up.start_rows(step)
        # [kernel * hidden, hidden]: the places of a window are side by side.
        taps = self.widen.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1)
        assert self.widen.bias is not None
        bias = self.widen.bias.detach()
        # The first layer sees the row before its own, so it takes in what has become complete: in
        # the first row there is nothing to take in, not even the bias.
        program = step.advance if self.first else step.row
        windows = v.windows(self.side, self.side)
        program.linear(windows, step.memory.matrix(taps), rows.newest, add=bias)
        added = self._write_gate_bias(step, 0, given, step.row.zeros(2 * self.hidden))
        rows.write_row(out.row, added, "gate", residual=None if self.first else v.row)

    def _write_gate_bias(
        self, step: GridStep, stack: int, given: SteppedCondition, sums: torch.Tensor
    ) -> Operand:
        """Append what bias, position, class and codes add to the gates of the vertical (0) or
        horizontal (1) stack in a row; ``sums`` is memory for it."""
        part = slice(2 * self.hidden * stack, 2 * self.hidden * (stack + 1))
        own = self.left.bias if stack else self.up.bias
        # [batch, 1, 2 * hidden]; kept, as it depends on the class.
        bias = own.expand(step.memory.batch, 1, -1)
        if given.class_bias is not None:
            bias = given.class_bias[:, None, part] + bias
        added: Operand = step.memory.keep(bias)
        if given.position is not None:
            # The row of the grid, for all images.
            row = given.position.row("row").features(part)
            step.row.add(row.moving_row(), added, sums)
            added = sums
        if given.codes is not None:
            assert self.codes is not None
            weight = step.memory.matrix(self.codes.weight[part].T)
            step.row.linear(given.codes.row("row").moving_row(), weight, sums, add=added)
            added = sums
        return added


def _add(x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    return x if y is None else x + y

"""The layers of a Gated PixelCNN: two stacks of gated convolutions.

Van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", section 2.2 and
figure 2.

The vertical stack sees the rows above a pixel. The horizontal stack sees the pixels to its left,
and the vertical stack. A layer has ``forward`` over whole maps ``[batch, hidden, height, width]``,
and ``write``, which appends its work to the programs of a step.
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
    """Position, class and codes in the form a step needs; see :meth:`GatedLayer.forward`."""

    position: Plane | None
    """Bias of each pixel, ``[height, width, 4 * hidden]``."""
    class_bias: torch.Tensor | None
    """Bias of each image's class, ``[batch, 4 * hidden]``."""
    codes: Plane | None
    """Features of the codes, ``[batch, height, width, hidden]``."""


@dataclass(frozen=True)
class SteppedStacks:
    """The current row of each stack, in the memory of a step."""

    v: Places
    """The vertical stack; the whole row is known when the row begins."""
    h: Places
    """The horizontal stack; known up to the current pixel."""


class GatedLayer(nn.Module):
    """One layer of both stacks.

    Args:
        hidden: width of the stacks.
        kernel: odd size of the convolution; the vertical stack sees ``kernel // 2`` rows up, the
            horizontal stack as many pixels to the left.
        dropout: dropout rate of the horizontal gate's outputs.
        first: whether this is the first layer, which must not see its own row (vertical stack) or
            its own pixel (horizontal stack).
        last: whether this is the last layer, whose horizontal output goes to the skip connection
            only.
        codes: whether the layer is conditioned on features of codes.
    """

    def __init__(
        self, hidden: int, kernel: int, dropout: float, first: bool, last: bool, codes: bool
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.side = kernel // 2
        self.first = first
        # A window that includes the place itself is one longer.
        reach = self.side if first else self.side + 1
        self.widen = nn.Conv2d(hidden, hidden, (1, kernel), padding=(0, self.side))
        # Each stack makes both halves of its gate, a and b, in one convolution.
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
        """Apply the layer to both stacks.

        Args:
            v, h: the vertical and the horizontal stack, ``[batch, hidden, height, width]``.
            position: bias of the gates at each pixel, ``[1, 4 * hidden, height, width]``.
            class_bias: bias of the gates for each image's class, ``[batch, 4 * hidden]``.
            codes: features of the codes, ``[batch, height, width, hidden]``.

        Returns:
            The new ``v``, the new ``h`` and the skip output, of the same shape each.
        """
        v_bias, h_bias = self._gate_biases(position, class_bias, codes)
        rows = gate(_add(self.up(self.widen(v)), v_bias))
        # The first layer's input is the pixel itself, so a residual connection would leak it.
        v = rows if self.first else v + rows
        # The horizontal gates see the output of the vertical stack.
        sums = pointwise(self.link, v, add=self.left(h))
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
        """Sum of all conditions, split by stack: ``[batch, 2 * hidden, height, width]`` each."""
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
        condition: SteppedCondition,
        gated: torch.Tensor,
        next_side: int,
    ) -> SteppedStacks:
        """Append the layer to a step.

        Args:
            step: the step to write to.
            stacks: the input. For the first layer both are the pixels: the vertical stack reads the
                row that is complete, the horizontal stack the row that is being filled.
            condition: position, class and codes.
            gated: receives the output of the horizontal gate, ``[batch, hidden]``.
            next_side: how far the next layer sees to either side.

        Returns:
            The output of both stacks.
        """
        v = step.places(self.hidden, next_side, next_side)
        self._write_vertical(step, stacks.v, condition, v)
        # Contribution of vertical stack, position, class and codes to this row's horizontal gates.
        links = step.places(2 * self.hidden)
        added = self._write_gate_bias(step, 1, condition, links.row)
        step.row.linear(v.row, pointwise_matrix(step, self.link), links.row, add=added)
        # All that remains to be done at each pixel is one product with the pixels to the left.
        self.left.write_place(step, stacks.h, gated, links.at(step.column), "gate")
        if self.residual is None:
            return SteppedStacks(v, stacks.h)
        # The next layer reads from here what earlier pixels of the row have written.
        h = step.places(self.hidden, left=next_side)
        residual = pointwise_matrix(step, self.residual)
        before = None if self.first else stacks.h.at(step.column)
        step.pixel.linear(gated, residual, h.at(step.column), add=before)
        return SteppedStacks(v, h)

    def _write_vertical(
        self, step: GridStep, v: Places, condition: SteppedCondition, out: Places
    ) -> None:
        rows = self.up.bind_rows(step)
        # [kernel * hidden, hidden]: the places of a window, concatenated.
        taps = self.widen.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1)
        assert self.widen.bias is not None
        bias = step.memory.table(self.widen.bias)
        # The first layer reads the row above, so its work belongs to `advance`, which is skipped
        # in the first row: there is no row above, and not even the bias may be added.
        program = step.advance if self.first else step.row
        windows = v.windows(self.side, self.side)
        program.linear(windows, step.memory.matrix(taps), rows.newest, add=bias)
        added = self._write_gate_bias(step, 0, condition, step.row.zeros(2 * self.hidden))
        rows.write_row(out.row, added, "gate", residual=None if self.first else v.row)

    def _write_gate_bias(
        self, step: GridStep, stack: int, condition: SteppedCondition, sums: torch.Tensor
    ) -> Operand:
        """Append the sum of bias and conditions for the gates of one stack.

        Args:
            step: the step to write to.
            stack: 0 for the vertical stack, 1 for the horizontal stack.
            condition: position, class and codes.
            sums: memory for the sum, ``[batch, width, 2 * hidden]``.

        Returns:
            The sum: ``sums``, or a constant if there is only a bias.
        """
        part = slice(2 * self.hidden * stack, 2 * self.hidden * (stack + 1))
        layer_bias = self.left.bias if stack else self.up.bias
        # [batch, 1, 2 * hidden]; part of the state, because it depends on the class.
        bias = layer_bias.expand(step.memory.batch, 1, -1)
        if condition.class_bias is not None:
            bias = condition.class_bias[:, None, part] + bias
        added: Operand = step.memory.keep(bias)
        if condition.position is not None:
            # The biases of this row, the same for all images.
            row = condition.position.row("row").features(part)
            step.row.add(row.moving_row(), added, sums)
            added = sums
        if condition.codes is not None:
            assert self.codes is not None
            weight = step.memory.matrix(self.codes.weight[part].T)
            step.row.linear(condition.codes.row("row").moving_row(), weight, sums, add=added)
            added = sums
        return added


def _add(x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    return x if y is None else x + y

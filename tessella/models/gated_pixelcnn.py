"""Gated PixelCNN (van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders").

Two stacks of convolutions see everything before a pixel without a blind spot: the *vertical* stack
all rows above, the *horizontal* stack the pixels to the left in the row and, through a 1x1
convolution in every layer, the vertical stack. Both pass through gates ``tanh(a) * sigmoid(b)``
(eq. 2), to which the class adds a bias (eq. 4) and a grid of codes a 1 x 1 convolution of its
features (eq. 5). As usual in later work there are skip connections to the output, the vertical
stack is residual too, and its k x k convolution is factored into 1 x k and k' x 1. A learned bias
for each row and column tells the first layer where it is.

The channels of a pixel are not ordered here but by the output stage
(``tessella.models.channel_output``), so the backbone runs once a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.channel_output import create_output
from tessella.models.condition import UNCONDITIONAL, Condition, Conditioning
from tessella.models.density_model import symbol_field
from tessella.models.pixel_model import PixelModel, SteppedFeatures
from tessella.nn.condition_embedding import ClassEmbedding, CodeEmbedding
from tessella.nn.convolution import CausalConvolution, channels_last, field_along, pointwise
from tessella.nn.embedding import EmbeddedSymbols, SymbolEmbedding
from tessella.nn.gate import gate
from tessella.nn.stepping.program import Operand, Places, Plane
from tessella.nn.stepping.step import GridStep, PixelStep

FIRST_KERNEL = 7
"""Width of the first layer's convolution, as in the paper."""


@dataclass(frozen=True)
class SteppedCondition:
    """What is added to the gates of a layer, as a step has it; see :meth:`GatedLayer.forward`."""

    position: Plane | None
    """``[height, width, 4 * hidden]``."""
    class_bias: torch.Tensor | None
    """``[batch, 4 * hidden]``."""
    codes: Plane | None
    """``[batch, height, width, hidden]``."""


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
        reach = self.side if first else self.side + 1
        self.widen = nn.Conv2d(hidden, hidden, (1, kernel), padding=(0, self.side))
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
        sums = pointwise(self.link, v, plus=self.left(h), into=True)
        gated = self.dropout(gate(_add(sums, h_bias)))
        if self.residual is not None:
            h = pointwise(self.residual, gated, plus=None if self.first else h)
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
        v_bias, h_bias = total.split(2 * self.hidden, dim=1)
        return v_bias, h_bias

    def write(
        self,
        step: GridStep,
        v: Places,
        h: Places,
        given: SteppedCondition,
        gated: torch.Tensor,
        next_side: int,
    ) -> tuple[Places, Places]:
        """Append the layer.

        Args:
            step: where it is written.
            v, h: the stacks' rows. Of the first layer both are the pixels: for the vertical stack
                the row that is complete, for the horizontal one the row that grows.
            given: position, class and codes.
            gated: where the horizontal gate's output goes, ``[batch, hidden]``.
            next_side: places that the next layer sees to either side.

        Returns:
            The stacks' rows for the next layer.
        """
        v_next = step.places(self.hidden, next_side, next_side)
        self._write_vertical(step, v, given, v_next)
        # What vertical stack, position, class and codes add to the horizontal gates of this row.
        links = step.places(2 * self.hidden)
        added = self._write_gate_bias(step, 1, given, links.row)
        link = step.memory.matrix(_square(self.link))
        step.row.linear(v_next.row, link, links.row, add=added)

        window = h.window(step.column, left=self.side, right=-1 if self.first else 0)
        left = step.memory.matrix(self.left.packed())
        step.pixel.linear(window, left, gated, add=links.at(step.column), activation="gate")
        if self.residual is None:
            return v_next, h
        h_next = step.places(self.hidden, left=next_side)
        residual = step.memory.matrix(_square(self.residual))
        before = None if self.first else h.at(step.column)
        step.pixel.linear(gated, residual, h_next.at(step.column), add=before)
        return v_next, h_next

    def _write_vertical(
        self, step: GridStep, v: Places, given: SteppedCondition, v_next: Places
    ) -> None:
        # The rows still seen, after the 1 x k convolution, side by side and the newest last.
        above = step.places(self.up.taps * self.hidden)
        rows = above.row.split(self.hidden, dim=2)
        for older, newer in zip(rows[:-1], rows[1:], strict=True):
            step.advance.map(newer, older)
        # The first layer sees the row before its own, so it takes in what has become complete; the
        # first row has none.
        program = step.advance if self.first else step.row
        widen = self.widen.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1)
        program.linear(
            v.windows(self.side, self.side),
            step.memory.matrix(widen),
            rows[-1],
            add=_bias(self.widen),
        )
        sums = step.row.zeros(2 * self.hidden)
        added = self._write_gate_bias(step, 0, given, sums)
        step.row.linear(
            above.row,
            step.memory.matrix(self.up.packed()),
            v_next.row,
            add=added,
            activation="gate",
            residual=None if self.first else v.row,
        )

    def _write_gate_bias(
        self,
        step: GridStep,
        stack: int,
        given: SteppedCondition,
        sums: torch.Tensor,
    ) -> Operand:
        """Append what bias, position, class and codes add to the gates of the vertical (0) or
        horizontal (1) stack in a row; ``sums`` is memory for it."""
        part = slice(2 * self.hidden * stack, 2 * self.hidden * (stack + 1))
        own = self.left.bias if stack else self.up.bias
        bias = own.expand(step.memory.batch, 1, -1)
        if given.class_bias is not None:
            bias = given.class_bias[:, None, part] + bias
        added: Operand = step.memory.keep(bias)
        if given.position is not None:
            step.row.add(given.position.row("row").features(part).moving_row(), added, sums)
            added = sums
        if given.codes is not None:
            assert self.codes is not None
            weight = step.memory.matrix(self.codes.weight[part].T)
            step.row.linear(given.codes.row("row").moving_row(), weight, sums, add=added)
            added = sums
        return added


class GatedPixelCNN(PixelModel):
    """``gated-pixelcnn``: two stacks of gated convolutions, vertical and horizontal, without a
    blind spot.

    Args:
        grid, head, conditioning: see :class:`DensityModel`; codes are taken.
        layers: gated layers, the first with a 7 x 7 convolution.
        hidden: width of each stack.
        kernel: odd size of the later layers' convolutions.
        dropout: share of gate outputs dropped in training.

    Raises:
        ConfigError: for sizes that make no network.
    """

    name = "gated-pixelcnn"
    takes_codes = True

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        layers: int = 5,
        hidden: int = 64,
        kernel: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(grid, head, conditioning)
        if layers < 1 or hidden < 1 or kernel < 1 or kernel % 2 == 0 or not 0 <= dropout < 1:
            raise ConfigError(
                "gated-pixelcnn needs layers >= 1, hidden >= 1, an odd kernel and "
                f"0 <= dropout < 1, got layers={layers}, hidden={hidden}, kernel={kernel}, "
                f"dropout={dropout}"
            )
        self.hidden = hidden
        self.kernel = kernel
        self.dropout = dropout
        self.embedding = SymbolEmbedding(grid, hidden)
        self.row_bias = nn.Parameter(torch.randn(grid.height, 1, 4 * hidden) * 0.1)
        self.column_bias = nn.Parameter(torch.randn(grid.width, 4 * hidden) * 0.1)
        self.class_bias = None
        if self.classes:
            self.class_bias = ClassEmbedding(self.classes, layers * 4 * hidden)
        codes = conditioning.codes
        self.codes = CodeEmbedding(codes, grid, hidden) if codes else None
        self.layers = nn.ModuleList()
        for i in range(layers):
            self.layers.append(
                GatedLayer(
                    hidden,
                    kernel if i else FIRST_KERNEL,
                    dropout,
                    first=i == 0,
                    last=i == layers - 1,
                    codes=codes is not None,
                )
            )
        self.output = create_output(grid, head, hidden)
        channels_last(self)

    def symbol_embedding(self) -> EmbeddedSymbols:
        return self.embedding

    def code_features(self, codes: torch.Tensor) -> torch.Tensor:
        assert self.codes is not None
        features: torch.Tensor = self.codes(codes)
        return features

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        return self._forward(x, condition, 0)

    def forward_from(self, x: torch.Tensor, condition: Condition, row: int) -> torch.Tensor:
        reach = FIRST_KERNEL // 2 + (len(self.layers) - 1) * (self.kernel // 2)
        top = max(0, row - reach)
        return self._forward(x[:, top:], condition, top)[:, row - top :]

    def _forward(self, x: torch.Tensor, condition: Condition, top: int) -> torch.Tensor:
        """As :meth:`forward`, of the rows from ``top`` on as if there were none above."""
        v = h = self.embedding(x).movedim(-1, 1)
        position: torch.Tensor | None = self._positions()[top:].movedim(-1, 0)[None]
        codes = None
        if condition.codes is not None:
            codes = self.code_features(condition.codes)[:, top:]
        skips: torch.Tensor | None = None
        for layer, class_bias in zip(
            self.layers, self._class_biases(condition.labels), strict=True
        ):
            v, h, skip = self.recomputed(layer, v, h, position, class_bias, codes)
            skips = _add(skip, skips)
            position = None  # only the first layer is told where it is
        assert skips is not None
        return self.output(F.silu(skips).movedim(1, -1), x)

    def _positions(self) -> torch.Tensor:
        """What rows and columns add to the first layer's gates: ``[height, width, 4 * hidden]``."""
        return self.row_bias + self.column_bias

    def _class_biases(self, labels: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
        """What the class adds to the gates of each layer: ``[batch, 4 * hidden]``, vertical and
        then horizontal."""
        if labels is None:
            return [None] * len(self.layers)
        assert self.class_bias is not None
        return self.class_bias(labels).split(4 * self.hidden, dim=-1)

    def write(
        self, step: PixelStep, labels: torch.Tensor | None, codes: torch.Tensor | None
    ) -> SteppedFeatures:
        assert isinstance(step, GridStep)
        pixels = step.places(self.hidden, FIRST_KERNEL // 2, FIRST_KERNEL // 2)
        step.cleared.append(pixels.row)
        v = h = pixels
        position: Plane | None = Plane(step.memory.table(self._positions()))
        layers = [layer for layer in self.layers if isinstance(layer, GatedLayer)]
        gated = step.pixel.zeros(len(layers) * self.hidden)
        outs = gated.split(self.hidden, dim=1)
        plane = None if codes is None else Plane(codes)
        for layer, class_bias, out in zip(layers, self._class_biases(labels), outs, strict=True):
            given = SteppedCondition(position, class_bias, plane)
            v, h = layer.write(step, v, h, given, out, next_side=self.kernel // 2)
            position = None
        # The sum of all skip outputs is one product of the gates side by side.
        skip = step.memory.matrix(torch.cat([_square(layer.skip) for layer in layers]))
        bias = torch.stack([_bias(layer.skip) for layer in layers]).sum(0)
        features = step.pixel.zeros(self.hidden)
        step.pixel.linear(gated, skip, features, add=step.memory.table(bias), activation="silu")
        return SteppedFeatures(pixels.at(step.column), features)

    def sizes(self) -> dict[str, object]:
        return {
            "layers": len(self.layers),
            "hidden": self.hidden,
            "kernel": self.kernel,
            "dropout": self.dropout,
        }

    def receptive_field(self) -> torch.Tensor:
        pixels = self.grid.pixels
        v = h = torch.eye(pixels, dtype=torch.bool).view(pixels, self.grid.height, self.grid.width)
        for i in range(len(self.layers)):
            first = i == 0
            reach = FIRST_KERNEL // 2 if first else self.kernel // 2
            newest = -1 if first else 0
            rows = field_along(field_along(v, "columns", -reach, reach), "rows", -reach, newest)
            left = field_along(h, "columns", -reach, newest)
            v = rows if first else v | rows
            h = left | v if first else h | left | v
        return symbol_field(self.grid, h.flatten(1).T, inside=True)


def _add(x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    return x if y is None else x + y


def _bias(convolution: nn.Conv2d) -> torch.Tensor:
    assert convolution.bias is not None
    return convolution.bias.detach()


def _square(convolution: nn.Conv2d) -> torch.Tensor:
    """A 1 x 1 convolution's weights as ``[inputs, outputs]``."""
    return convolution.weight[:, :, 0, 0].T.contiguous()

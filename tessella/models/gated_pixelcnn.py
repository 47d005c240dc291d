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
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.channel_output import create_output
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.density_model import symbol_field
from tessella.models.pixel_model import PixelModel, Programs, Walk
from tessella.nn.condition_embedding import ClassEmbedding, CodeEmbedding
from tessella.nn.convolution import CausalConvolution, channels_last, field_along, pointwise
from tessella.nn.embedding import SymbolEmbedding
from tessella.nn.gate import gate
from tessella.nn.stepping.program import Matrix, Moving, Operand, Program, along, windows
from tessella.nn.stepping.state import State

FIRST_KERNEL = 7
"""Width of the first layer's convolution, as in the paper."""


class GatedLayer(nn.Module):
    """One layer of both stacks.

    Args:
        hidden: width of the stacks.
        kernel: odd size of the convolution; the vertical stack sees ``kernel // 2`` rows up, the
            horizontal one as many pixels left.
        first: the first layer must not see its own row (vertical) or pixel (horizontal).
        last: the last layer's horizontal output goes to the skip connection only.
        codes: whether features of codes come in.
    """

    def __init__(
        self, hidden: int, kernel: int, dropout: float, first: bool, last: bool, codes: bool
    ) -> None:
        super().__init__()
        self.hidden, self.first, self.last = hidden, first, last
        reach = kernel // 2 if first else kernel // 2 + 1
        self.widen = nn.Conv2d(hidden, hidden, (1, kernel), padding=(0, kernel // 2))
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
        of_class: torch.Tensor | None,
        codes: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Both stacks one layer on, and the layer's skip output.

        Args:
            v, h: the vertical and the horizontal stack, ``[batch, hidden, height, width]``.
            position: added to the gates of both, ``[1, 4 * hidden, height, width]``.
            of_class: the same of the class, ``[batch, 4 * hidden]``.
            codes: features of the codes, ``[batch, height, width, hidden]``.
        """
        v_bias, h_bias = self._biases(position, of_class, codes)
        rows = gate(_plus(self.up(self.widen(v)), v_bias))
        v = rows if self.first else v + rows
        sums = pointwise(self.link, v, plus=self.left(h), into=True)
        gated = self.dropout(gate(_plus(sums, h_bias)))
        if self.residual is not None:
            h = pointwise(self.residual, gated, plus=None if self.first else h)
        return v, h, pointwise(self.skip, gated)

    def _biases(
        self, *given: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What position, class and codes add to the gates of both stacks."""
        position, of_class, codes = given
        parts = [] if position is None else [position]
        if of_class is not None:
            parts.append(of_class[..., None, None])
        if self.codes is not None:
            parts.append(self.codes(codes).movedim(-1, 1))
        if not parts:
            return None, None
        vertical, horizontal = sum(parts[1:], start=parts[0]).split(2 * self.hidden, dim=1)
        return vertical, horizontal


@dataclass
class Weights:
    """Weights laid out for stepping, lists by layer; shared by all states of a model."""

    widen: list[Matrix]
    up: list[Matrix]
    link: list[Matrix]
    left: list[Matrix]
    residual: list[Matrix]
    codes: list[tuple[Matrix, Matrix]]
    """What the features of codes add to the gates of the vertical and of the horizontal stack."""
    skip: Matrix
    skip_bias: torch.Tensor
    positions: torch.Tensor
    """What rows and columns add to the gates of both stacks, ``[height, width, 4 * hidden]``."""


@dataclass
class Backbone:
    """Programs of the stacks: the first row, the other rows, a pixel."""

    first_row: Program
    row: Program
    pixel: Program


@dataclass
class GatedState(State):
    """Caches of the walk."""

    shared: ClassVar[frozenset[str]] = frozenset({"weights"})
    derived: ClassVar[frozenset[str]] = frozenset({"programs"})
    batch_dims: ClassVar[dict[str, int]] = {"biases": 1, "links": 1}

    weights: Weights
    biases: torch.Tensor
    """What bias and class add to the gates of the stacks, vertical and horizontal in turn:
    ``[2 * layers, batch, 1, 2 * hidden]``."""
    above: list[torch.Tensor]
    """For each layer the rows of the vertical stack still seen, after the 1 x k convolution, the
    newest last: ``[batch, width, taps * hidden]``."""
    links: torch.Tensor
    """What vertical stack, position, bias and class add to the gates of this row:
    ``[layers, batch, width, 2 * hidden]``."""
    inputs: list[torch.Tensor]
    """What the horizontal stack of each layer sees of this row, the first layer embedded pixels,
    with zeros at the left and, in the first layer, at the right:
    ``[batch, padded width, hidden]``."""
    codes: torch.Tensor | None
    """Features of the codes: ``[batch, height, width, hidden]``."""
    walk: Walk
    programs: Programs[Backbone] | None = None


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
                "gated-pixelcnn needs layers >= 1, hidden >= 1, an odd kernel and 0 <= dropout < 1, got "
                f"layers={layers}, hidden={hidden}, kernel={kernel}, dropout={dropout}"
            )
        self.hidden, self.kernel, self.dropout = hidden, kernel, dropout
        self.embedding = SymbolEmbedding(grid, hidden)
        self.row_bias = nn.Parameter(torch.randn(grid.height, 1, 4 * hidden) * 0.1)
        self.column_bias = nn.Parameter(torch.randn(grid.width, 4 * hidden) * 0.1)
        self.class_bias = (
            ClassEmbedding(self.classes, layers * 4 * hidden) if self.classes else None
        )
        codes = conditioning.codes
        self.codes = CodeEmbedding(codes, grid, hidden) if codes else None
        self.layers = nn.ModuleList(
            GatedLayer(
                hidden,
                kernel if i else FIRST_KERNEL,
                dropout,
                i == 0,
                i == layers - 1,
                codes is not None,
            )
            for i in range(layers)
        )
        self.output = create_output(grid, head, hidden)
        channels_last(self)

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        return self._forward(x, condition, 0)

    def forward_from(self, x: torch.Tensor, condition: Condition, row: int) -> torch.Tensor:
        reach = FIRST_KERNEL // 2 + (len(self.layers) - 1) * (self.kernel // 2)
        top = max(0, row - reach)
        return self._forward(x[:, top:], condition, top)[:, row - top :]

    def _forward(self, x: torch.Tensor, condition: Condition, top: int) -> torch.Tensor:
        """As :meth:`forward`, of the rows from ``top`` on as if there were none above."""
        v = h = self.embedding(x).movedim(-1, 1)
        position: torch.Tensor | None = (self.row_bias[top:] + self.column_bias).movedim(-1, 0)[
            None
        ]
        classes: Sequence[torch.Tensor | None] = [None] * len(self.layers)
        if condition.labels is not None:
            classes = self._class_bias(condition.labels).unflatten(1, (-1, 2)).flatten(2).unbind(1)
        codes = None if condition.codes is None else self._code_features(condition.codes)[:, top:]
        skips: torch.Tensor | None = None
        for layer, of_class in zip(self.layers, classes, strict=True):
            v, h, skip = self.recomputed(layer, v, h, position, of_class, codes)
            skips, position = skip if skips is None else skips + skip, None
        assert skips is not None
        return self.output(F.silu(skips).movedim(1, -1), x)

    def _code_features(self, codes: torch.Tensor) -> torch.Tensor:
        """Features of the codes for each pixel: ``[batch, height, width, hidden]``."""
        assert self.codes is not None
        features: torch.Tensor = self.codes(codes)
        return features

    def _class_bias(self, labels: torch.Tensor) -> torch.Tensor:
        """Gate biases of the classes ``[batch, 2 * layers, 2 * hidden]``, vertical and horizontal
        in turn."""
        assert self.class_bias is not None
        return self.class_bias(labels).unflatten(-1, (-1, 2 * self.hidden))

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> GatedState:
        condition = self.condition(cond, batch)
        make, width, hidden, layers = (
            self.row_bias.new_zeros,
            self.grid.width,
            self.hidden,
            self._layers(),
        )
        biases = make(2 * len(layers), batch, 1, 2 * hidden)
        if condition.labels is not None:
            biases += self._class_bias(condition.labels).movedim(1, 0)[:, :, None]
        for i, layer in enumerate(layers):
            biases[2 * i] += layer.up.bias
            biases[2 * i + 1] += layer.left.bias
        margin = FIRST_KERNEL // 2
        return GatedState(
            weights=self._weights(layers),
            biases=biases,
            above=[make(batch, width, layer.up.taps * hidden) for layer in layers],
            links=make(len(layers), batch, width, 2 * hidden),
            inputs=[make(batch, margin + width + margin, hidden)]
            + [make(batch, self.kernel // 2 + width, hidden) for _ in layers[1:]],
            codes=None if condition.codes is None else self._code_features(condition.codes),
            walk=self.walk(self.embedding.table(), batch),
        )

    def _layers(self) -> list[GatedLayer]:
        return [layer for layer in self.layers if isinstance(layer, GatedLayer)]

    def _weights(self, layers: list[GatedLayer]) -> Weights:
        of_codes = [
            layer.codes.weight.T.chunk(2, dim=1) for layer in layers if layer.codes is not None
        ]
        return Weights(
            widen=[
                Matrix(layer.widen.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1))
                for layer in layers
            ],
            up=[Matrix(layer.up.packed()) for layer in layers],
            link=[Matrix(_square(layer.link)) for layer in layers],
            left=[Matrix(layer.left.packed()) for layer in layers],
            residual=[
                Matrix(_square(layer.residual)) for layer in layers if layer.residual is not None
            ],
            codes=[(Matrix(vertical), Matrix(horizontal)) for vertical, horizontal in of_codes],
            skip=Matrix(torch.cat([_square(layer.skip) for layer in layers])),
            skip_bias=torch.stack([_bias(layer.skip) for layer in layers]).sum(0),
            positions=self.row_bias + self.column_bias,
        )

    def write(self, state: GatedState) -> Programs[Backbone]:
        backbone = Backbone(
            self._write_row(state, first=True),
            self._write_row(state, first=False),
            self._pixel(state),
        )
        return self.written(
            state.walk, along(state.inputs[0], "column", FIRST_KERNEL // 2), backbone
        )

    def start_row(self, row: int, state: GatedState, backbone: Backbone) -> None:
        (backbone.row if row else backbone.first_row).run(row)
        state.inputs[0].zero_()

    def start_pixel(self, row: int, column: int, backbone: Backbone) -> None:
        backbone.pixel.run(column)

    def _write_row(self, state: GatedState, first: bool) -> Program:
        """The vertical stack of all layers, and what it adds to the horizontal gates."""
        width, hidden, weights = self.grid.width, self.hidden, state.weights
        program = Program(len(state.walk.symbols), ("row",), state.links, places=width)
        below, sums = state.inputs[0], program.room(2 * hidden)
        for i, (layer, above) in enumerate(zip(self._layers(), state.above, strict=True)):
            for tap in range(layer.up.taps - 1):
                older, newer = above[:, :, tap * hidden :].split(hidden, dim=2)[:2]
                program.map(newer, older)
            if (
                i or not first
            ):  # the first layer sees the row before this one, and there is none before the first
                seen = windows(below, layer.widen.kernel_size[1])
                program.linear(
                    seen, weights.widen[i], above[:, :, -hidden:], plus=_bias(layer.widen).detach()
                )
            margin = self.kernel // 2
            next_below = state.links.new_zeros(len(below), margin + width + margin, hidden)
            middle = next_below[:, margin : margin + width]
            before = below[:, margin : margin + width] if i else None
            plus = self._write_biases(program, i, 0, sums, state)
            program.linear(above, weights.up[i], middle, plus=plus, then="gate", residual=before)
            plus = self._write_biases(program, i, 1, state.links[i], state)
            program.linear(middle, weights.link[i], state.links[i], plus=plus)
            below = next_below
        return program

    def _write_biases(
        self, program: Program, i: int, stack: int, sums: torch.Tensor, state: GatedState
    ) -> Operand:
        """What class, bias, position and codes add to the gates of a layer's vertical (0) or
        horizontal (1) stack in this row; ``sums`` is room for it."""
        plus, weights, size = state.biases[2 * i + stack], state.weights, 2 * self.hidden
        if i == 0:
            positions = weights.positions[0, :, stack * size : (stack + 1) * size]
            program.add(Moving(positions, "row", weights.positions.stride(0)), plus, sums)
            plus = sums
        if state.codes is not None:
            features = Moving(state.codes[:, 0], "row", state.codes.stride(1))
            program.linear(features, weights.codes[i][stack], sums, plus=plus)
            plus = sums
        return plus

    def _pixel(self, state: GatedState) -> Program:
        """The horizontal stack of all layers, and the output stage."""
        weights, hidden, margin = state.weights, self.hidden, self.kernel // 2
        program = Program(len(state.walk.symbols), ("column",), state.links)
        gated, features = program.room(len(self.layers) * hidden), program.room(hidden)
        for i, layer in enumerate(self._layers()):
            window = along(state.inputs[i], "column", count=layer.left.taps)
            own = gated[:, i * hidden : (i + 1) * hidden]
            program.linear(
                window, weights.left[i], own, plus=along(state.links[i], "column"), then="gate"
            )
            if layer.residual is not None:
                out, before = (
                    along(inputs, "column", margin)
                    for inputs in (state.inputs[i + 1], state.inputs[i])
                )
                program.linear(own, weights.residual[i], out, plus=before if i else None)
        program.linear(gated, weights.skip, features, plus=weights.skip_bias, then="silu")
        self.output.write(program, features, state.walk.output)
        return program

    def sizes(self) -> dict[str, Any]:
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
            reach = FIRST_KERNEL // 2 if i == 0 else self.kernel // 2
            newest = -1 if i == 0 else 0
            rows = field_along(field_along(v, "columns", -reach, reach), "rows", -reach, newest)
            v = rows if i == 0 else v | rows
            left = field_along(h, "columns", -reach, newest)
            h = left | v if i == 0 else h | left | v
        return symbol_field(self.grid, h.flatten(1).T, inside=True)


def _plus(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x if bias is None else x + bias


def _bias(convolution: nn.Conv2d) -> torch.Tensor:
    assert convolution.bias is not None
    return convolution.bias


def _square(convolution: nn.Conv2d) -> torch.Tensor:
    """A 1x1 convolution's weights as ``[inputs, outputs]``."""
    return convolution.weight[:, :, 0, 0].T.contiguous()

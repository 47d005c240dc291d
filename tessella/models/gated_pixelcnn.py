"""Gated PixelCNN (van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders").

Two stacks of convolutions see everything before a pixel without a blind spot: the *vertical* stack all rows above, the
*horizontal* stack the pixels to the left in the row and, through a 1x1 convolution in every layer, the vertical
stack. Both pass through gates ``tanh(a) * sigmoid(b)`` (eq. 2), to which the class adds a bias (eq. 4) and a grid of
codes a 1 x 1 convolution of its features (eq. 5). As usual in later work there are skip connections to the output, the
vertical stack is residual too, and its k x k convolution is factored into 1 x k and k' x 1. A learned bias for each
row and column tells the first layer where it is.

The channels of a pixel are not ordered here but by the output stage (``tessella.models.output``), so the backbone runs
once a pixel.
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
from tessella.models.base import DensityModel, symbol_field
from tessella.models.condition import UNCONDITIONAL, Cond, Condition, Conditioning
from tessella.models.output import create_output
from tessella.nn.condition import ClassEmbedding, CodeEmbedding
from tessella.nn.convolution import CausalConvolution, channels_last, field_along, pointwise
from tessella.nn.embedding import SymbolEmbedding
from tessella.nn.gate import gate
from tessella.nn.state import State

FIRST_KERNEL = 7
"""Width of the first layer's convolution, as in the paper."""


class GatedLayer(nn.Module):
    """One layer of both stacks.

    Args:
        hidden: width of the stacks.
        kernel: odd size of the convolution; the vertical stack sees ``kernel // 2`` rows up, the horizontal one as
            many pixels left.
        first: the first layer must not see its own row (vertical) or pixel (horizontal).
        last: the last layer's horizontal output goes to the skip connection only.
        codes: whether features of codes come in.
    """

    def __init__(self, hidden: int, kernel: int, dropout: float, first: bool, last: bool, codes: bool) -> None:
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

    def _biases(self, *given: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
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
    """Weights laid out for stepping, ``[inputs, outputs]`` each, lists by layer; shared by all states of a model."""

    table: torch.Tensor
    widen: list[torch.Tensor]
    up: list[torch.Tensor]
    link: list[torch.Tensor]
    left: list[torch.Tensor]
    residual: list[torch.Tensor]
    skip: torch.Tensor
    skip_bias: torch.Tensor


@dataclass
class Slots:
    """Where the work on a pixel reads and writes: views of a state's tensors, one a layer, and room for sums."""

    windows: list[torch.Tensor]
    """What a layer sees, ``[batch, taps * hidden]``."""
    newest: list[torch.Tensor]
    """Where a layer's output goes, the newest place of the next layer's window: ``[batch, hidden]``."""
    gated: list[torch.Tensor]
    """Where a layer's gate goes: ``[batch, hidden]``."""
    sums: torch.Tensor
    """Room for what enters a gate: ``[batch, 2 * hidden]``."""


@dataclass
class GatedState(State):
    """Caches of the walk. ``taps`` is how many places a layer sees; the newest is the last."""

    shared: ClassVar[frozenset[str]] = frozenset({"weights"})
    derived: ClassVar[frozenset[str]] = frozenset({"slots"})
    batch_dims: ClassVar[dict[str, int]] = {"windows": 1, "biases": 1, "links": 1}

    weights: Weights
    biases: torch.Tensor
    """What bias and class add to the gates of the stacks, vertical and horizontal in turn: ``[2 * layers, batch, 1, 2 *
    hidden]``."""
    above: list[torch.Tensor]
    """For each layer the rows of the vertical stack still seen, after the 1 x k convolution: ``[batch, taps, width,
    hidden]``."""
    links: torch.Tensor
    """What vertical stack, position, bias and class add to the gates of this row: ``[layers, batch, width, 2 *
    hidden]``."""
    row: torch.Tensor
    """Embedded pixels of this row: ``[batch, width, hidden]``."""
    first: torch.Tensor
    """The first layer's window: ``[batch, taps, hidden]``."""
    windows: torch.Tensor
    """Windows of the later layers: ``[layers - 1, batch, taps, hidden]``."""
    gated: torch.Tensor
    """Gate outputs of all layers at this pixel: ``[batch, layers * hidden]``."""
    codes: torch.Tensor | None
    """Features of the codes: ``[batch, height, width, hidden]``."""
    pixel: Any = None
    """The output stage's state within the pixel."""
    slots: Slots | None = None
    """Made when they are first needed."""

    def places(self) -> Slots:
        """The state's slots."""
        if self.slots is None:
            batch, _, hidden = self.first.shape
            self.slots = Slots(
                windows=[self.first.flatten(1), *(window.flatten(1) for window in self.windows)],
                newest=[window[:, -1] for window in self.windows],
                gated=list(self.gated.split(hidden, dim=1)),
                sums=self.gated.new_empty(batch, 2 * hidden),
            )
        return self.slots


class GatedPixelCNN(DensityModel):
    """``gated-pixelcnn``: two stacks of gated convolutions, vertical and horizontal, without a blind spot.

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
        self.class_bias = ClassEmbedding(self.classes, layers * 4 * hidden) if self.classes else None
        codes = conditioning.codes
        self.codes = CodeEmbedding(codes, grid, hidden) if codes else None
        self.layers = nn.ModuleList(
            GatedLayer(hidden, kernel if i else FIRST_KERNEL, dropout, i == 0, i == layers - 1, codes is not None)
            for i in range(layers)
        )
        self.output = create_output(grid, head, hidden)
        channels_last(self)

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        v = h = self.embedding(x).movedim(-1, 1)
        position: torch.Tensor | None = (self.row_bias + self.column_bias).movedim(-1, 0)[None]
        classes: Sequence[torch.Tensor | None] = [None] * len(self.layers)
        if condition.labels is not None:
            classes = self._class_bias(condition.labels).unflatten(1, (-1, 2)).flatten(2).unbind(1)
        codes = None if condition.codes is None else self._code_features(condition.codes)
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
        """Gate biases of the classes ``[batch, 2 * layers, 2 * hidden]``, vertical and horizontal in turn."""
        assert self.class_bias is not None
        return self.class_bias(labels).unflatten(-1, (-1, 2 * self.hidden))

    @torch.no_grad()
    def init_state(self, batch: int, cond: Cond = None) -> GatedState:
        condition = self.condition(cond, batch)
        make, width, hidden = self.row_bias.new_zeros, self.grid.width, self.hidden
        layers = [layer for layer in self.layers if isinstance(layer, GatedLayer)]
        biases = make(2 * len(layers), batch, 1, 2 * hidden)
        if condition.labels is not None:
            biases += self._class_bias(condition.labels).movedim(1, 0)[:, :, None]
        for i, layer in enumerate(layers):
            biases[2 * i] += layer.up.bias
            biases[2 * i + 1] += layer.left.bias
        return GatedState(
            weights=self._weights(layers),
            biases=biases,
            above=[make(batch, layer.up.taps, width, hidden) for layer in layers],
            links=make(len(layers), batch, width, 2 * hidden),
            row=make(batch, width, hidden),
            first=make(batch, layers[0].left.taps, hidden),
            windows=make(len(layers) - 1, batch, self.kernel // 2 + 1, hidden),
            gated=make(batch, len(layers) * hidden),
            codes=None if condition.codes is None else self._code_features(condition.codes),
        )

    def _weights(self, layers: list[GatedLayer]) -> Weights:
        return Weights(
            table=self.embedding.table(),
            widen=[layer.widen.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1).contiguous() for layer in layers],
            up=[layer.up.packed() for layer in layers],
            link=[_square(layer.link) for layer in layers],
            left=[layer.left.packed() for layer in layers],
            residual=[_square(layer.residual) for layer in layers if layer.residual is not None],
            skip=torch.cat([_square(layer.skip) for layer in layers]),
            skip_bias=torch.stack([_bias(layer.skip) for layer in layers]).sum(0),
        )

    @torch.no_grad()
    def step(self, previous: torch.Tensor, index: int, state: GatedState) -> tuple[torch.Tensor, GatedState]:
        row, column, channel = self.grid.place(index)
        if index:
            _, before, last_channel = self.grid.place(index - 1)
            state.row[:, before] += state.weights.table[last_channel, previous]
        if channel == 0:
            if column == 0:
                self._row(row, state)
            features = self._pixel(column, state)
            state.pixel = self.output.start(features)
        parameters, state.pixel = self.output.step(previous, channel, state.pixel)
        return parameters, state

    def _row(self, row: int, state: GatedState) -> None:
        """Once a row: the vertical stack of all layers, and what it adds to the horizontal gates."""
        positions = (self.row_bias[row] + self.column_bias).chunk(2, dim=-1)
        below, weights = state.row, state.weights
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, GatedLayer)
            reach = layer.widen.kernel_size[1] // 2
            wide = F.pad(below, (0, 0, reach, reach)).unfold(1, 2 * reach + 1, 1).transpose(2, 3).flatten(2)
            above = state.above[i]
            above[:, :-1] = above[:, 1:].clone()
            if i or row:  # the first layer sees the row before this one, and there is none before the first
                above[:, -1] = torch.addmm(_bias(layer.widen), wide.flatten(0, 1), weights.widen[i]).view_as(below)
            sums = above.transpose(1, 2).flatten(2) @ weights.up[i] + state.biases[2 * i]
            if i == 0:
                sums += positions[0]
            if state.codes is not None:
                assert layer.codes is not None
                of_codes = layer.codes(state.codes[:, row]).chunk(2, dim=-1)
                sums += of_codes[0]
            below = gate(sums, dim=-1) if i == 0 else below + gate(sums, dim=-1)
            torch.add(below @ weights.link[i], state.biases[2 * i + 1], out=state.links[i])
            if state.codes is not None:
                state.links[i] += of_codes[1]
        state.links[0] += positions[1]
        for spent in (state.row, state.first, state.windows):
            spent.zero_()

    def _pixel(self, column: int, state: GatedState) -> torch.Tensor:
        """Once a pixel: the horizontal stack. Returns the features ``[batch, hidden]``."""
        weights, slots = state.weights, state.places()
        if column:
            state.first[:, :-1] = state.first[:, 1:].clone()
            state.first[:, -1] = state.row[:, column - 1]
            state.windows[:, :, :-1] = state.windows[:, :, 1:].clone()
        signal, strength = slots.sums.chunk(2, dim=1)
        links = state.links[:, :, column].unbind()
        for i, (link, window, left, gated) in enumerate(
            zip(links, slots.windows, weights.left, slots.gated, strict=True)
        ):
            torch.addmm(link, window, left, out=slots.sums)
            torch.mul(signal.tanh_(), strength.sigmoid_(), out=gated)
            if i == 0 and weights.residual:
                torch.mm(gated, weights.residual[0], out=slots.newest[0])
            elif i < len(weights.residual):
                torch.addmm(slots.newest[i - 1], gated, weights.residual[i], out=slots.newest[i])
        return F.silu(torch.addmm(weights.skip_bias, state.gated, weights.skip))

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

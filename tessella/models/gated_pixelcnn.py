"""Gated PixelCNN (van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders").

Two stacks of convolutions see everything before a pixel, without a blind spot. The *vertical* stack
sees all rows above. The *horizontal* stack sees the pixels to the left and, through a 1 x 1
convolution in every layer, the vertical stack. Both use gates ``tanh(a) * sigmoid(b)`` (eq. 2), to
which the class adds a bias (eq. 4) and a grid of codes a 1 x 1 convolution of its features (eq. 5).
As is common in later work, there are skip connections to the output, the vertical stack is residual
as well, and its k x k convolution is factored into 1 x k and k' x 1. Learned biases for each row
and column tell the first layer where it is.

The channels of a pixel are ordered by the output stage (``tessella.models.channel_output``), so the
backbone runs once per pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.heads import Head
from tessella.models.channel_output import create_output
from tessella.models.condition import UNCONDITIONAL, Condition, Conditioning
from tessella.models.pixel_model import PixelModel, SteppedFeatures
from tessella.models.receptive_fields import symbol_field
from tessella.nn.condition_embedding import ClassEmbedding, CodeEmbedding
from tessella.nn.convolution import channels_last, field_along
from tessella.nn.embedding import EmbeddedSymbols, SymbolEmbedding
from tessella.nn.gated_layers import GatedLayer, SteppedCondition, SteppedStacks
from tessella.nn.stepping.program import Plane
from tessella.nn.stepping.step import GridStep, PixelStep

FIRST_KERNEL = 7
"""Size of the first layer's convolution, as in the paper."""


class GatedPixelCNN(PixelModel):
    """``gated-pixelcnn``: two stacks of gated convolutions, without a blind spot.

    Args:
        grid, head, conditioning: see :class:`DensityModel`; can be conditioned on codes.
        layers: number of gated layers; the first has a 7 x 7 convolution.
        hidden: width of each stack.
        kernel: size of the later layers' convolutions, odd.
        dropout: dropout rate of the gates' outputs.

    Raises:
        ConfigError: for sizes out of range.
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
        # 4 * hidden, because each of the two stacks has a gate with two halves.
        self.row_bias = nn.Parameter(torch.randn(grid.height, 1, 4 * hidden) * 0.1)
        self.column_bias = nn.Parameter(torch.randn(grid.width, 4 * hidden) * 0.1)
        self.class_bias = None
        if self.classes:
            self.class_bias = ClassEmbedding(self.classes, layers * 4 * hidden)
        codes = conditioning.codes
        # Features of the codes are computed once; each layer multiplies them by its own weights.
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
        # 1 x 1 convolutions are fastest if the channels of a pixel are contiguous.
        channels_last(self)

    def symbol_embedding(self) -> EmbeddedSymbols:
        return self.embedding

    def code_features(self, codes: torch.Tensor) -> torch.Tensor:
        assert self.codes is not None
        features: torch.Tensor = self.codes(codes)
        return features

    def blocks_to_recompute(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        return self._forward(x, condition, 0)

    def forward_from(self, x: torch.Tensor, condition: Condition, row: int) -> torch.Tensor:
        # The stacks see at most this many rows up, so rows above that can be skipped.
        reach = FIRST_KERNEL // 2 + (len(self.layers) - 1) * (self.kernel // 2)
        top = max(0, row - reach)
        return self._forward(x[:, top:], condition, top)[:, row - top :]

    def _forward(self, x: torch.Tensor, condition: Condition, top: int) -> torch.Tensor:
        """Parameters of the rows ``x``, which start at row ``top``, ignoring all rows above."""
        # [batch, hidden, height, width]. Both stacks start from the pixels; the masks of the first
        # layer make this causal.
        v = h = self.embedding(x).movedim(-1, 1)
        # [1, 4 * hidden, height, width]
        position: torch.Tensor | None = self._positions()[top:].movedim(-1, 0)[None]
        codes = None
        if condition.codes is not None:
            codes = self.code_features(condition.codes)[:, top:]
        total: torch.Tensor | None = None
        for layer, bias in zip(self.layers, self._class_biases(condition.labels), strict=True):
            v, h, skip = self.recomputed(layer, v, h, position, bias, codes)
            total = skip if total is None else total + skip
            # Only the first layer gets the position.
            position = None
        assert total is not None
        return self.output(F.silu(total).movedim(1, -1), x)

    def _positions(self) -> torch.Tensor:
        """The first layer's bias at each pixel: ``[height, width, 4 * hidden]``."""
        return self.row_bias + self.column_bias

    def _class_biases(self, labels: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
        """Bias of the class for the gates of each layer: ``[batch, 4 * hidden]``, or None.

        The gates of the vertical stack come first.
        """
        if labels is None:
            return [None] * len(self.layers)
        assert self.class_bias is not None
        return self.class_bias(labels).split(4 * self.hidden, dim=-1)

    def write(
        self, step: PixelStep, labels: torch.Tensor | None, codes: torch.Tensor | None
    ) -> SteppedFeatures:
        assert isinstance(step, GridStep)
        # Zero margins stand for the padding on both sides of the image.
        pixels = step.places(self.hidden, FIRST_KERNEL // 2, FIRST_KERNEL // 2)
        # The vectors of symbols are added to their pixel, so each row must start from zero.
        step.cleared.append(pixels.row)
        stacks = SteppedStacks(pixels, pixels)
        position: Plane | None = Plane(step.memory.table(self._positions()))
        plane = None if codes is None else Plane(codes)
        layers = [layer for layer in self.layers if isinstance(layer, GatedLayer)]
        # The gates of all layers, concatenated, so that one product makes all skip outputs.
        gated = step.pixel.zeros(len(layers) * self.hidden)
        outs = gated.split(self.hidden, dim=1)
        for layer, bias, out in zip(layers, self._class_biases(labels), outs, strict=True):
            condition = SteppedCondition(position, bias, plane)
            stacks = layer.write(step, stacks, condition, out, next_side=self.kernel // 2)
            position = None
        return SteppedFeatures(pixels.at(step.column), self._write_skips(step, layers, gated))

    def _write_skips(
        self, step: GridStep, layers: Sequence[GatedLayer], gated: torch.Tensor
    ) -> torch.Tensor:
        """Append the sum of all skip outputs, and return the memory for it, ``[batch, hidden]``.

        ``gated`` holds the gates of all layers, ``[batch, layers * hidden]``.
        """
        weights = torch.cat([layer.skip.weight[:, :, 0, 0].T for layer in layers])
        biases = torch.stack([layer.skip_bias() for layer in layers])
        features = step.pixel.zeros(self.hidden)
        step.pixel.linear(
            gated,
            step.memory.matrix(weights),
            features,
            add=step.memory.table(biases.sum(0)),
            activation="silu",
        )
        return features

    def sizes(self) -> dict[str, object]:
        return {
            "layers": len(self.layers),
            "hidden": self.hidden,
            "kernel": self.kernel,
            "dropout": self.dropout,
        }

    def receptive_field(self) -> torch.Tensor:
        pixels = self.grid.pixels
        # [sources, height, width]: at first each pixel reaches only itself.
        v = h = torch.eye(pixels, dtype=torch.bool).view(pixels, self.grid.height, self.grid.width)
        for i in range(len(self.layers)):
            first = i == 0
            reach = FIRST_KERNEL // 2 if first else self.kernel // 2
            newest = -1 if first else 0
            # The vertical stack sees k columns, and rows up to its own (exclusive in the first
            # layer).
            rows = field_along(field_along(v, "columns", -reach, reach), "rows", -reach, newest)
            left = field_along(h, "columns", -reach, newest)
            v = rows if first else v | rows
            # The horizontal stack sees pixels to the left, the vertical stack and, except in the
            # first layer, its own input.
            h = left | v if first else h | left | v
        return symbol_field(self.grid, h.flatten(1).T, inside=True)

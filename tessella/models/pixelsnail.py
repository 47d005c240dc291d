"""PixelSNAIL: causal convolutions and attention to all earlier pixels.

Chen, Mishra, Rohaninejad, Abbeel 2018, "PixelSNAIL: An Improved Autoregressive Generative Model",
sections 3 and 4.

Each block has gated residual blocks of causal convolutions, and then attention from a pixel to all
pixels strictly before it. Queries are made from the pixel's own features; keys and values from the
features of the other pixels *and the pixels themselves*. The first pixel has nothing to attend to
and gets zeros. Queries and keys also contain row and column. The design follows the widely used
implementation over VQ-VAE-2 codes (Razavi et al. 2019): two convolutions in a residual block, with
a kernel whose last row is shifted to the left instead of being masked. In each of these blocks the
class adds a bias, and a grid of codes a linear map of its features.

A step computes the contribution of the rows above to each convolution once per row, for the whole
row. At each pixel it computes the products with the row itself, the keys and values of the previous
pixel, and the attention of the new pixel.
"""

from __future__ import annotations

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
from tessella.nn.embedding import EmbeddedSymbols, SymbolEmbedding
from tessella.nn.pixelsnail_layers import AttentionBlock
from tessella.nn.shifted_convolution import ShiftedConvolution, delayed
from tessella.nn.stepping.program import Plane, Vectors
from tessella.nn.stepping.step import GridStep, PixelStep

OUTPUT_SHARE = 0.1
"""Factor on the initial weights of the last layer, so that a fresh model starts near the head's
preferred distribution."""


class PixelSNAIL(PixelModel):
    """``pixelsnail``: causal convolutions and attention to all earlier pixels.

    Args:
        grid, head, conditioning: see :class:`DensityModel`; can be conditioned on codes.
        blocks: number of blocks of convolutions and attention.
        residual_blocks: number of convolution blocks in each block.
        channels: width of the features; divisible by ``2 * heads``.
        residual_channels: width between the two convolutions of a convolution block.
        kernel: size of the convolutions, odd, at least 3.
        heads: number of attention heads.
        dropout: dropout rate inside a residual block.

    Raises:
        ConfigError: for sizes out of range, or that do not fit each other.
    """

    name = "pixelsnail"
    takes_codes = True

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        blocks: int = 2,
        residual_blocks: int = 2,
        channels: int = 32,
        residual_channels: int = 32,
        kernel: int = 3,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(grid, head, conditioning)
        if (
            min(blocks, residual_blocks, channels, residual_channels, heads) < 1
            or not 0 <= dropout < 1
        ):
            raise ConfigError(
                "pixelsnail needs blocks, residual_blocks, channels, residual_channels and heads "
                f">= 1 and 0 <= dropout < 1, got blocks={blocks}, "
                f"residual_blocks={residual_blocks}, channels={channels}, "
                f"residual_channels={residual_channels}, heads={heads}, dropout={dropout}"
            )
        if kernel < 3 or kernel % 2 == 0 or channels % (2 * heads):
            raise ConfigError(
                "pixelsnail needs an odd kernel of at least 3 and channels that divide by "
                f"2 * heads, got kernel={kernel}, channels={channels}, heads={heads}"
            )
        self.residual_blocks = residual_blocks
        self.channels = channels
        self.residual_channels = residual_channels
        self.kernel = kernel
        self.heads = heads
        self.dropout = dropout
        side = kernel // 2
        codes = conditioning.codes
        self.embedding = SymbolEmbedding(grid, channels)
        # Together they see the rows above, equally far to both sides, and the pixels to the left.
        self.first_above = ShiftedConvolution(channels, channels, side, side, side)
        self.first_left = ShiftedConvolution(channels, channels, side + 1, side - 1, 0)
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            self.blocks.append(
                AttentionBlock(
                    channels,
                    residual_channels,
                    kernel,
                    dropout,
                    codes is not None,
                    residual_blocks,
                    heads,
                )
            )
        # In each convolution block, the class adds a bias to both halves of the gate.
        count = blocks * residual_blocks
        self.class_bias = None
        if self.classes:
            self.class_bias = ClassEmbedding(self.classes, count * 2 * channels)
        self.codes = CodeEmbedding(codes, grid, channels) if codes else None
        self.output = create_output(grid, head, channels, direct=True)
        self.output.last.weight.data.mul_(OUTPUT_SHARE)
        self.register_buffer("places", _places(grid), persistent=False)
        self.places: torch.Tensor

    def _blocks(self) -> list[AttentionBlock]:
        return [block for block in self.blocks if isinstance(block, AttentionBlock)]

    def symbol_embedding(self) -> EmbeddedSymbols:
        return self.embedding

    def code_features(self, codes: torch.Tensor) -> torch.Tensor:
        assert self.codes is not None
        features: torch.Tensor = self.codes(codes)
        return features

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        pixels = self.embedding(x)
        # [batch, height, width, 2]
        places = self.places.to(pixels.dtype).expand(x.shape[0], -1, -1, -1)
        codes = None if condition.codes is None else self.code_features(condition.codes)
        biases = iter(self._biases(condition.labels))
        # Shifted down by a row, and right by a column, so that no pixel sees itself.
        features = self.first_above(delayed(pixels, 1)) + self.first_left(delayed(pixels, 2))
        for block in self._blocks():
            # With checkpointing, these are the parts that are computed again.
            for convolution in block.convolutions:
                features = self.recomputed(convolution, features, next(biases), codes)
            features = self.recomputed(block.attend, features, pixels, places)
        return self.output(F.elu(features), x)

    def _biases(self, labels: torch.Tensor | None) -> list[torch.Tensor | None]:
        """Bias of the class for each convolution block: ``[batch, 2 * channels]``, or None."""
        if labels is None or self.class_bias is None:
            return [None] * (len(self.blocks) * self.residual_blocks)
        return list(self.class_bias(labels).split(2 * self.channels, dim=-1))

    def write(
        self, step: PixelStep, labels: torch.Tensor | None, codes: torch.Tensor | None
    ) -> SteppedFeatures:
        assert isinstance(step, GridStep)
        # Pixels are stored one place to the right of where they stand. After the row comes the last
        # pixel of the row above, which attention needs at the start of a row.
        left = self.first_left.bind(step, margin=2)
        pixels = left.input.delayed()
        above = self.first_above.bind(step)
        step.advance.map(pixels.row, above.input.row)
        step.advance.map(pixels.memory[:, -2:-1], pixels.memory[:, -1:])
        step.cleared.append(pixels.row)
        # Both convolutions see rows above, and their sum is computed for the whole row. The part of
        # first_left that sees the row itself follows pixel by pixel.
        above.write_row(above.sums.row)
        step.row.add(left.sums.row, above.sums.row, left.sums.row)
        x = step.pixel.zeros(self.channels)
        left.write_place(x)
        places = Vectors(step.memory.table(self.places.flatten(0, 1).to(x.dtype)))
        biases = iter(self._biases(labels))
        plane = None if codes is None else Plane(codes)
        for block in self._blocks():
            block.write(step, x, pixels, places, biases, plane)
        features = step.pixel.zeros(self.channels)
        step.pixel.map(x, features, "elu")
        return SteppedFeatures(pixels.at(step.column), features)

    def sizes(self) -> dict[str, object]:
        return {
            "blocks": len(self.blocks),
            "residual_blocks": self.residual_blocks,
            "channels": self.channels,
            "residual_channels": self.residual_channels,
            "kernel": self.kernel,
            "heads": self.heads,
            "dropout": self.dropout,
        }

    def receptive_field(self) -> torch.Tensor:
        # Attention reaches every earlier pixel.
        everything = torch.ones(self.grid.pixels, self.grid.pixels, dtype=torch.bool).tril(-1)
        return symbol_field(self.grid, everything, inside=True)


def _places(grid: Grid) -> torch.Tensor:
    """Row and column of each pixel, scaled to [-1/2, 1/2): ``[height, width, 2]``."""
    rows = torch.arange(grid.height) / grid.height - 0.5
    columns = torch.arange(grid.width) / grid.width - 0.5
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)

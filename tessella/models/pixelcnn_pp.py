"""PixelCNN++: two streams of features through several resolutions.

Salimans, Karpathy, Chen, Kingma 2017, "PixelCNN++: Improving the PixelCNN with Discretized Logistic
Mixture Likelihood and Other Modifications", sections 2.1 to 2.5 and figure 2.

Two streams of features: the *vertical* one sees the rows above a pixel, the *horizontal* one the
pixels to its left and, in every block, the vertical stream. Both run down through resolutions, each
half as high and wide as the one before, and up again; a block on the way up sees, besides its
input, the map that lies opposite on the way down (section 2.4). A block is ``x + a * sigmoid(b)``
with ``a, b`` from two shifted convolutions of concatenated ELUs. The class adds a bias to ``a`` and
``b`` of every block (section 2.3 of van den Oord et al. 2016b).

A step does what its place in the grid makes possible: the vertical stream of a resolution that is
reduced ``2^s`` times, once every ``2^s`` rows, for a whole row; its horizontal stream, at every
``2^s``-th pixel of these rows. What the rows above add to a place of the horizontal stream is
computed with the vertical stream, so that only products with the row itself are left for the pixel.
This is the idea of Ramachandran et al. 2017 ("Fast Generation for Convolutional Autoregressive
Models"), the state being an explicit value.
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
from tessella.models.density_model import symbol_field
from tessella.models.pixel_model import PixelModel, SteppedFeatures
from tessella.nn.condition_embedding import ClassEmbedding
from tessella.nn.embedding import EmbeddedSymbols, Intensities, SymbolEmbedding
from tessella.nn.pixelcnn_pp_layers import (
    GatedBlock,
    PyramidStep,
    Resize,
    SteppedSkip,
    start_streams,
)
from tessella.nn.shifted_convolution import ShiftedConvolution, SteppedConvolution, delayed
from tessella.nn.stepping.program import Operand, Places
from tessella.nn.stepping.step import MemoryAllocator, PixelStep

OUTPUT_SHARE = 0.1
"""The last layer starts with this share of its usual weights, so that a fresh model is near the
head's own start."""

Biases = list[list[torch.Tensor | None]]
"""Biases of the class in each block, lists by resolution: ``[batch, 4 * filters]``."""


class ResolutionBlocks(nn.Module):
    """The blocks of one resolution.

    Args:
        filters, dropout: see :class:`GatedResidual`.
        blocks: blocks on the way down.
        last: whether it is the smallest resolution. The others have a block more on the way up,
            opposite to the map they start with.
    """

    def __init__(self, filters: int, dropout: float, blocks: int, last: bool) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        for _ in range(blocks):
            self.down.append(GatedBlock(filters, dropout, mirrored=False))
        self.resize = None if last else Resize(filters)
        self.up = nn.ModuleList()
        for _ in range(blocks if last else blocks + 1):
            self.up.append(GatedBlock(filters, dropout, mirrored=True))

    def blocks(self) -> list[GatedBlock]:
        """All blocks, those on the way down first."""
        return [block for block in [*self.down, *self.up] if isinstance(block, GatedBlock)]


class PixelCNNpp(PixelModel):
    """``pixelcnn++``: two streams through several resolutions with short-cuts.

    Sides that do not divide by ``2^(scales - 1)`` are padded at the right and below.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        blocks: blocks of each resolution, on the way down and again on the way up; the paper has 5.
        filters: width of each stream; the paper has 160.
        scales: number of resolutions; the paper has 3.
        embedding: width of the vectors that symbols are looked up in; 0 feeds intensities on [-1,
            1] and a one instead, as the paper does.
        dropout: share of the features inside a block that is dropped in training; the paper has
            0.5.

    Raises:
        ConfigError: for sizes that make no network.
    """

    name = "pixelcnn++"

    def __init__(
        self,
        grid: Grid,
        head: Head,
        conditioning: Conditioning,
        blocks: int = 1,
        filters: int = 32,
        scales: int = 2,
        embedding: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(grid, head, conditioning)
        if min(blocks, filters, scales) < 1 or scales > 8 or embedding < 0 or not 0 <= dropout < 1:
            raise ConfigError(
                "pixelcnn++ needs blocks >= 1, filters >= 1, 1 <= scales <= 8, embedding >= 0 and "
                f"0 <= dropout < 1, got blocks={blocks}, filters={filters}, scales={scales}, "
                f"embedding={embedding}, dropout={dropout}"
            )
        self.blocks = blocks
        self.filters = filters
        self.embedding_width = embedding
        self.dropout = dropout
        self.input = SymbolEmbedding(grid, embedding) if embedding else Intensities(grid)
        inputs = embedding or grid.channels + 1
        # The vertical stream starts from the rows above; the horizontal one from the row above and
        # the pixels to the left, in two convolutions that are added (figure 2 of the paper).
        self.first_v = ShiftedConvolution(inputs, filters, 2, 1, 1)
        self.first_above = ShiftedConvolution(inputs, filters, 1, 1, 1)
        self.first_left = ShiftedConvolution(inputs, filters, 2, 0, 0)
        self.scales = nn.ModuleList()
        for s in range(scales):
            self.scales.append(ResolutionBlocks(filters, dropout, blocks, s == scales - 1))
        # A class adds to both halves of the gates of both streams in every block.
        count = sum(len(scale.blocks()) for scale in self._scales())
        self.class_bias = None
        if self.classes:
            self.class_bias = ClassEmbedding(self.classes, count * 4 * filters)
        self.output = create_output(grid, head, filters, direct=True)
        self.output.last.weight.data.mul_(OUTPUT_SHARE)

    def _scales(self) -> list[ResolutionBlocks]:
        return [scale for scale in self.scales if isinstance(scale, ResolutionBlocks)]

    def padded(self) -> tuple[int, int]:
        """Height and width, rounded up so that they divide as often as there are resolutions."""
        # Each resolution but the first halves both sides.
        unit = 2 ** (len(self.scales) - 1)
        height = -(-self.grid.height // unit) * unit
        width = -(-self.grid.width // unit) * unit
        return height, width

    def symbol_embedding(self) -> EmbeddedSymbols:
        return self.input

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        pixels = F.pad(self.input(x), (0, 0, *self._padding()))
        # One row down and one column to the right: a pixel then sees those before it, and never
        # itself.
        above = delayed(pixels, 1)
        left = delayed(pixels, 2)
        h = self.first_above(above) + self.first_left(left)
        _, h = self._through(0, self.first_v(above), h, self._biases(condition.labels))
        # Beyond the grid's own sides there is padding.
        return self.output(F.elu(h)[:, : self.grid.height, : self.grid.width], x)

    def _padding(self) -> tuple[int, int, int, int]:
        """Columns of zeros at the left and right, then rows above and below."""
        height, width = self.padded()
        return (0, width - self.grid.width, 0, height - self.grid.height)

    def _through(
        self, index: int, v: torch.Tensor, h: torch.Tensor, biases: Biases
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams through resolution ``index`` and all smaller ones."""
        scale = self._scales()[index]
        layers = list(zip(scale.blocks(), biases[index], strict=True))
        skips = []
        for block, bias in layers[: self.blocks]:
            skips.append((v, h))
            v, h = self.recomputed(block, v, h, None, None, bias)
        if scale.resize is not None:
            skips.append((v, h))
            # All smaller resolutions, and back up to this one.
            smaller = self._through(index + 1, *scale.resize.shrink(v, h), biases)
            v, h = scale.resize.grow(*smaller)
        for block, bias in layers[self.blocks :]:
            # The last map on the way down lies opposite to the first block on the way up.
            v, h = self.recomputed(block, v, h, *skips.pop(), bias)
        return v, h

    def _biases(self, labels: torch.Tensor | None) -> Biases:
        each: list[torch.Tensor | None] = []
        if labels is not None and self.class_bias is not None:
            # [batch, 4 * filters] for each block, in the order of the resolutions.
            each.extend(self.class_bias(labels).split(4 * self.filters, dim=-1))
        biases: Biases = []
        start = 0
        for scale in self._scales():
            count = len(scale.blocks())
            biases.append(each[start : start + count] or [None] * count)
            start += count
        return biases

    def create_step(self, memory: MemoryAllocator) -> PyramidStep:
        return PyramidStep(memory, self.padded()[1], len(self.scales))

    def write(
        self, step: PixelStep, labels: torch.Tensor | None, codes: torch.Tensor | None
    ) -> SteppedFeatures:
        assert isinstance(step, PyramidStep)
        pixels, v_entry, h_entry = start_streams(
            step, self.first_v, self.first_above, self.first_left
        )
        # Only the horizontal stream reaches the output: the vertical one sees rows above only.
        _, h = self._write_through(0, step, v_entry, h_entry, self._biases(labels))
        features = step.pixel.zeros(self.filters)
        step.pixel.map(h, features, "elu")
        return SteppedFeatures(pixels.at("column"), features)

    def _write_through(
        self,
        index: int,
        step: PyramidStep,
        v_entry: SteppedConvolution,
        h_entry: SteppedConvolution,
        biases: Biases,
    ) -> tuple[Places, Operand]:
        """Append :meth:`_through`, from the convolutions whose outputs the streams start with."""
        scale = self._scales()[index]
        down, up = step.down[index], step.up[index]
        layers = list(zip(scale.blocks(), biases[index], strict=True))
        if scale.resize is None:
            # The way up reads a place and the one to its right; to the right of the last one stands
            # a zero.
            v = down.places(self.filters, right=1)
            h: Operand = down.pixel.zeros(self.filters)
        else:
            # Streams are changed in place, so they run in the memory from which they shrink.
            v_shrink, h_shrink = scale.resize.start_shrink(down, step.down[index + 1])
            v = v_shrink.input
            h = h_shrink.input.at(down.column)
        v_entry.write_row(v.row)
        h_entry.write_place(h)
        skips = []
        for block, bias in layers[: self.blocks]:
            # A block on the way down sees no other; what it saw is kept for the one opposite.
            skips.append(block.write(down, v, h, None, bias))
        if scale.resize is not None:
            skips.append(SteppedSkip.write(down, v, h))
            smaller = self._write_through(index + 1, step, v_shrink, h_shrink, biases)
            v, h = scale.resize.write_grow(
                step.up[index + 1], *smaller, parity="parity", place=f"grown{index}"
            )
        for block, bias in layers[self.blocks :]:
            block.write(up, v, h, skips.pop(), bias)
        return v, h

    def sizes(self) -> dict[str, object]:
        return {
            "blocks": self.blocks,
            "filters": self.filters,
            "scales": len(self.scales),
            "embedding": self.embedding_width,
            "dropout": self.dropout,
        }

    def receptive_field(self) -> torch.Tensor:
        # [sources, height, width]: each pixel reaches itself.
        pixels = self.grid.pixels
        own = torch.eye(pixels, dtype=torch.bool).view(pixels, self.grid.height, self.grid.width)
        own = F.pad(own, self._padding())
        above = delayed(own, 1)
        left = delayed(own, 2)
        h = self.first_above.field(above) | self.first_left.field(left)
        _, h = self._field(0, self.first_v.field(above), h)
        # The padding is dropped; then [sources, pixels] is turned to [pixels, sources].
        h = h[:, : self.grid.height, : self.grid.width]
        return symbol_field(self.grid, h.flatten(1).T, inside=True)

    def _field(
        self, index: int, v: torch.Tensor, h: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which sources reach a place after :meth:`_through`: ``bool [sources, height, width]``."""
        scale = self._scales()[index]
        skips = []
        for block in scale.blocks()[: self.blocks]:
            skips.append((v, h))
            v, h = block.field(v, h, None, None)
        if scale.resize is not None:
            skips.append((v, h))
            v, h = self._field(index + 1, *scale.resize.shrink_field(v, h))
            v, h = scale.resize.grow_field(v, h)
        for block in scale.blocks()[self.blocks :]:
            v, h = block.field(v, h, *skips.pop())
        return v, h

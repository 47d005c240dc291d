"""PixelCNN++: two streams of features through several resolutions.

Salimans, Karpathy, Chen, Kingma 2017, "PixelCNN++: Improving the PixelCNN with Discretized Logistic
Mixture Likelihood and Other Modifications", sections 2.1 to 2.5 and figure 2.

The *vertical* stream sees the rows above a pixel. The *horizontal* stream sees the pixels to its
left and, in every block, the vertical stream. As in a U-Net, both go down through resolutions, each
half as high and wide as the one before, and up again. A block on the way up also sees its mirror,
the map of the same resolution on the way down (section 2.4). A block is ``x + a * sigmoid(b)`` with
``a, b`` from two shifted convolutions of concatenated ELUs. The class adds a bias to ``a`` and
``b`` of every block (section 2.3 of van den Oord et al. 2016b).

A step computes only what is due at its place in the grid. At resolution ``s``, which is smaller by
``2^s``, the vertical stream is computed once every ``2^s`` rows, for a whole row, and the
horizontal stream at every ``2^s``-th pixel of these rows. The contribution of the rows above to the
horizontal stream is computed together with the vertical stream, so that each pixel needs only the
products with its own row. This is the idea of Ramachandran et al. 2017 ("Fast Generation for
Convolutional Autoregressive Models"), here with an explicit state.
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
from tessella.nn.condition_embedding import ClassEmbedding
from tessella.nn.embedding import EmbeddedSymbols, Intensities, SymbolEmbedding
from tessella.nn.pixelcnn_pp_layers import (
    GatedBlock,
    PyramidStep,
    Resize,
    SteppedSkip,
    bind_streams,
)
from tessella.nn.shifted_convolution import ShiftedConvolution, SteppedConvolution, delayed
from tessella.nn.stepping.program import Operand, Places
from tessella.nn.stepping.step import MemoryAllocator, PixelStep

OUTPUT_SHARE = 0.1
"""Factor on the initial weights of the last layer, so that a fresh model starts near the head's
preferred distribution."""

Biases = list[list[torch.Tensor | None]]
"""Bias of the class for each block of each resolution: ``[batch, 4 * filters]``, or None."""


class ResolutionBlocks(nn.Module):
    """The blocks of one resolution.

    Args:
        filters, dropout: see :class:`GatedResidual`.
        blocks: number of blocks on the way down.
        last: whether this is the smallest resolution. All others have one more block on the way up,
            whose mirror is the map from which the resolution shrinks.
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
    """``pixelcnn++``: two streams through several resolutions with skip connections.

    Sides that do not divide by ``2^(scales - 1)`` are padded on the right and at the bottom.

    Args:
        grid, head, conditioning: see :class:`DensityModel`.
        blocks: blocks per resolution on the way down, and again on the way up; the paper has 5.
        filters: width of each stream; the paper has 160.
        scales: number of resolutions; the paper has 3.
        embedding: width of the vectors of symbols. With 0 the input is intensities on [-1, 1] and a
            constant one instead, as in the paper.
        dropout: dropout rate inside a block; the paper has 0.5.

    Raises:
        ConfigError: for sizes out of range.
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
        # The vertical stream starts from the rows above. The horizontal stream starts from the row
        # above and the pixels to the left, as a sum of two convolutions (figure 2 of the paper).
        self.first_v = ShiftedConvolution(inputs, filters, 2, 1, 1)
        self.first_above = ShiftedConvolution(inputs, filters, 1, 1, 1)
        self.first_left = ShiftedConvolution(inputs, filters, 2, 0, 0)
        self.scales = nn.ModuleList()
        for s in range(scales):
            self.scales.append(ResolutionBlocks(filters, dropout, blocks, s == scales - 1))
        # In every block, the class adds a bias to both halves of the gates of both streams.
        count = sum(len(scale.blocks()) for scale in self._scales())
        self.class_bias = None
        if self.classes:
            self.class_bias = ClassEmbedding(self.classes, count * 4 * filters)
        self.output = create_output(grid, head, filters, direct=True)
        self.output.last.weight.data.mul_(OUTPUT_SHARE)

    def _scales(self) -> list[ResolutionBlocks]:
        return [scale for scale in self.scales if isinstance(scale, ResolutionBlocks)]

    def padded(self) -> tuple[int, int]:
        """Height and width of the padded grid, whose sides can be halved for every resolution."""
        # Each resolution except the first halves both sides.
        unit = 2 ** (len(self.scales) - 1)
        height = -(-self.grid.height // unit) * unit
        width = -(-self.grid.width // unit) * unit
        return height, width

    def symbol_embedding(self) -> EmbeddedSymbols:
        return self.input

    def forward(self, x: torch.Tensor, condition: Condition = UNCONDITIONAL) -> torch.Tensor:
        pixels = F.pad(self.input(x), (0, 0, *self._padding()))
        # Shifted down by a row, and right by a column: a pixel sees earlier ones, never itself.
        above = delayed(pixels, 1)
        left = delayed(pixels, 2)
        h = self.first_above(above) + self.first_left(left)
        _, h = self._through(0, self.first_v(above), h, self._biases(condition.labels))
        # Crop the padding.
        return self.output(F.elu(h)[:, : self.grid.height, : self.grid.width], x)

    def _padding(self) -> tuple[int, int, int, int]:
        """Numbers of zero columns on the left and right, and of zero rows above and below."""
        height, width = self.padded()
        return (0, width - self.grid.width, 0, height - self.grid.height)

    def _through(
        self, index: int, v: torch.Tensor, h: torch.Tensor, biases: Biases
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pass both streams through resolution ``index`` and, recursively, all smaller ones.

        Args:
            index: 0 for the largest resolution.
            v, h: vertical and horizontal stream, ``[batch, height, width, filters]``.
            biases: see :data:`Biases`.

        Returns:
            Both streams after the way up, of the same shape.
        """
        scale = self._scales()[index]
        layers = list(zip(scale.blocks(), biases[index], strict=True))
        skips = []
        for block, bias in layers[: self.blocks]:
            skips.append((v, h))
            v, h = self.recomputed(block, v, h, None, None, bias)
        if scale.resize is not None:
            skips.append((v, h))
            # Down to all smaller resolutions, and back up to this one.
            smaller = self._through(index + 1, *scale.resize.shrink(v, h), biases)
            v, h = scale.resize.grow(*smaller)
        for block, bias in layers[self.blocks :]:
            # The last map on the way down is the mirror of the first block on the way up.
            v, h = self.recomputed(block, v, h, *skips.pop(), bias)
        return v, h

    def _biases(self, labels: torch.Tensor | None) -> Biases:
        """Bias of the class for each block of each resolution, see :data:`Biases`."""
        block_biases: list[torch.Tensor | None] = []
        if labels is not None and self.class_bias is not None:
            # [batch, 4 * filters] for each block, in the order of the resolutions.
            block_biases.extend(self.class_bias(labels).split(4 * self.filters, dim=-1))
        biases: Biases = []
        start = 0
        for scale in self._scales():
            count = len(scale.blocks())
            biases.append(block_biases[start : start + count] or [None] * count)
            start += count
        return biases

    def create_step(self, memory: MemoryAllocator) -> PyramidStep:
        return PyramidStep(memory, self.padded()[1], len(self.scales))

    def write(
        self, step: PixelStep, labels: torch.Tensor | None, codes: torch.Tensor | None
    ) -> SteppedFeatures:
        assert isinstance(step, PyramidStep)
        pixels, v_entry, h_entry = bind_streams(
            step, self.first_v, self.first_above, self.first_left
        )
        # The output reads only the horizontal stream, which has seen the vertical one.
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
        """Append :meth:`_through` to a step.

        Args:
            index: 0 for the largest resolution.
            step: the step to write to.
            v_entry, h_entry: the convolutions that make the streams of this resolution.
            biases: see :data:`Biases`.

        Returns:
            A row of the vertical stream, and a place of the horizontal stream.
        """
        scale = self._scales()[index]
        down = step.down[index]
        up = step.up[index]
        layers = list(zip(scale.blocks(), biases[index], strict=True))
        if scale.resize is None:
            # The way up also reads the place to the right, so there is a zero after the last one.
            v = down.places(self.filters, right=1)
            h: Operand = down.pixel.zeros(self.filters)
        else:
            # The blocks update the streams in place, in the memory that the shrinking convolutions
            # read.
            v_shrink, h_shrink = scale.resize.bind_shrink(down, step.down[index + 1])
            v = v_shrink.input
            h = h_shrink.input.at(down.column)
        v_entry.write_row(v.row)
        h_entry.write_place(h)
        skips = []
        for block, bias in layers[: self.blocks]:
            # Blocks on the way down have no mirror; they return their input for the way up.
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
        reach = torch.eye(pixels, dtype=torch.bool).view(pixels, self.grid.height, self.grid.width)
        reach = F.pad(reach, self._padding())
        above = delayed(reach, 1)
        left = delayed(reach, 2)
        h = self.first_above.field(above) | self.first_left.field(left)
        _, h = self._field(0, self.first_v.field(above), h)
        # Crop the padding, and transpose [sources, pixels] to [pixels, sources].
        h = h[:, : self.grid.height, : self.grid.width]
        return symbol_field(self.grid, h.flatten(1).T, inside=True)

    def _field(
        self, index: int, v: torch.Tensor, h: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Receptive fields after :meth:`_through`: ``bool [sources, height, width]`` each."""
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

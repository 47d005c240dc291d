"""The layers of PixelSNAIL: gated residual blocks, and attention to all earlier pixels.

Chen, Mishra, Rohaninejad, Abbeel 2018, sections 3 and 4.

Each layer has ``forward`` over whole maps ``[batch, height, width, channels]``, and ``write``,
which appends its work to the programs of a step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tessella.nn.attention import attend_causally
from tessella.nn.pixelcnn_pp_layers import RESIDUAL_GAIN, UNIT_GAIN
from tessella.nn.shifted_convolution import CausalKernel, NormedLinear
from tessella.nn.stepping.program import Operand, Places, Plane, Vectors
from tessella.nn.stepping.step import GridStep


class ConvolutionBlock(nn.Module):
    """``x + a * sigmoid(b)`` with ``a, b`` from two causal convolutions of ELUs.

    Args:
        channels: width of the features.
        hidden: width between the convolutions.
        kernel: see :class:`CausalKernel`.
        dropout: dropout rate between the convolutions.
        codes: whether the block is conditioned on features of codes.
    """

    def __init__(
        self, channels: int, hidden: int, kernel: int, dropout: float, codes: bool
    ) -> None:
        super().__init__()
        # k x k kernels whose last row is shifted to the left.
        self.inner = CausalKernel(channels, hidden, kernel, UNIT_GAIN)
        self.outer = CausalKernel(hidden, 2 * channels, kernel, RESIDUAL_GAIN)
        self.codes = nn.Linear(channels, 2 * channels, bias=False) if codes else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor | None, codes: torch.Tensor | None
    ) -> torch.Tensor:
        """Apply the block; the result has the shape of ``x``.

        Args:
            x: ``[batch, height, width, channels]``.
            bias: bias of the gate for each image's class, ``[batch, 2 * channels]``.
            codes: features of the codes, of the shape of ``x``.
        """
        gates = self.outer(self.dropout(F.elu(self.inner(F.elu(x)))))
        if bias is not None:
            gates = gates + bias[:, None, None]
        if self.codes is not None:
            gates = gates + self.codes(codes)
        return x + F.glu(gates, dim=-1)

    def write(
        self,
        step: GridStep,
        x: Operand,
        out: Operand,
        bias: torch.Tensor | None,
        codes: Plane | None,
    ) -> None:
        """Append the block for one place.

        Args:
            step: the step to write to.
            x: input, ``[batch, channels]``.
            out: receives the output, ``[batch, channels]``; may be ``x``.
            bias: as in :meth:`forward`.
            codes: features of the codes, ``[batch, height, width, channels]``.
        """
        inner = self.inner.bind(step)
        # This appends the contribution of class and rows above to the gates of a whole row.
        outer = self.outer.bind(step, bias)
        if self.codes is not None:
            assert codes is not None
            weight = step.memory.matrix(self.codes.weight.T)
            features = codes.row("row").moving_row()
            step.row.linear(features, weight, outer.sums.row, add=outer.sums.row)
        step.pixel.map(x, inner.input.at(step.column), "elu")
        inner.write_place(outer.input.at(step.column), "elu")
        # x + a * sigmoid(b)
        outer.write_place(out, "glu", residual=x)


class PointBlock(nn.Module):
    """``x + a * sigmoid(b)`` with ``a, b`` from two linear layers within a pixel.

    Args:
        channels: width of the features.
        hidden: width between the layers.
        dropout: dropout rate between the layers.
        extra: width of a second input, which is added before the second layer; 0 for none.
    """

    def __init__(self, channels: int, hidden: int, dropout: float, extra: int = 0) -> None:
        super().__init__()
        self.inner = NormedLinear(channels, hidden, UNIT_GAIN)
        # Saved models know the layer of the second input by this name.
        self.beside = NormedLinear(extra, hidden, UNIT_GAIN) if extra else None
        self.outer = NormedLinear(hidden, 2 * channels, RESIDUAL_GAIN)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, extra: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the block to ``x [..., channels]`` and the second input ``extra [..., extra]``.

        The result has the shape of ``x``.
        """
        sums = self.inner(F.elu(x))
        if self.beside is not None and extra is not None:
            sums = sums + self.beside(F.elu(extra))
        return x + F.glu(self.outer(self.dropout(F.elu(sums))), dim=-1)

    def write(self, step: GridStep, active: Operand, x: Operand, out: Operand) -> None:
        """Append the block for ``x [batch, channels]``.

        Args:
            step: the step to write to.
            active: ``elu`` of ``x`` and the second input, concatenated,
                ``[batch, channels + extra]``.
            x: input, ``[batch, channels]``.
            out: receives the output, ``[batch, channels]``; may be ``x``.
        """
        weight = self.inner.weight()
        bias: torch.Tensor = self.inner.bias
        if self.beside is not None:
            # The inputs are concatenated, so both layers become one product.
            weight = torch.cat([weight, self.beside.weight()], dim=1)
            bias = bias + self.beside.bias
        hidden = step.pixel.zeros(len(bias))
        inner = step.memory.matrix(weight.T)
        step.pixel.linear(active, inner, hidden, step.memory.table(bias), activation="elu")
        outer = step.memory.matrix(self.outer.weight().T)
        outer_bias = step.memory.table(self.outer.bias)
        step.pixel.linear(hidden, outer, out, outer_bias, activation="glu", residual=x)


class AttentionBlock(nn.Module):
    """Convolution blocks, then attention to all earlier pixels, then a block that merges the two.

    Args:
        channels, hidden, kernel, dropout, codes: see :class:`ConvolutionBlock`.
        count: number of convolution blocks.
        heads: attention heads; together they are half as wide as the features.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel: int,
        dropout: float,
        codes: bool,
        count: int,
        heads: int,
    ) -> None:
        super().__init__()
        half = channels // 2
        self.channels = channels
        self.heads = heads
        self.convolutions = nn.ModuleList()
        for _ in range(count):
            self.convolutions.append(ConvolutionBlock(channels, hidden, kernel, dropout, codes))
        # Keys and values are made from pixel, features, row and column. Queries lack the pixel,
        # which is not known yet.
        self.key_block = PointBlock(2 * channels + 2, channels, dropout)
        self.query_block = PointBlock(channels + 2, channels, dropout)
        self.query = nn.Linear(channels + 2, half)
        self.keys_values = nn.Linear(2 * channels + 2, 2 * half, bias=False)
        self.merge = PointBlock(channels, channels, dropout, extra=half)

    def attend(self, x: torch.Tensor, pixels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Attend to all earlier pixels; the result has the shape of ``x``.

        Args:
            x: features after the convolutions, ``[batch, height, width, channels]``.
            pixels: embedded pixels, of the shape of ``x``.
            places: row and column of each pixel, ``[batch, height, width, 2]``.
        """
        # [batch, height, width, channels / 2]
        queries = self.query(self.query_block(torch.cat([x, places], dim=-1)))
        content = self.key_block(torch.cat([pixels, x, places], dim=-1))
        keys, values = self.keys_values(content).chunk(2, dim=-1)
        seen = strictly_before(
            self._split_heads(queries), self._split_heads(keys), self._split_heads(values)
        )
        # [batch, heads, pixels, size] to [batch, height, width, channels / 2].
        seen = seen.transpose(1, 2).flatten(2).unflatten(1, x.shape[1:3])
        return self.merge(x, seen)

    def _split_heads(self, maps: torch.Tensor) -> torch.Tensor:
        """``[batch, height, width, heads * size]`` to ``[batch, heads, pixels, size]``."""
        return maps.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def write(
        self,
        step: GridStep,
        x: torch.Tensor,
        pixels: Places,
        places: Vectors,
        biases: Iterator[torch.Tensor | None],
        codes: Plane | None,
    ) -> None:
        """Append the block for one place.

        Args:
            step: the step to write to.
            x: features of the place, ``[batch, channels]``, updated in place.
            pixels: the embedded pixels of this row, and after them the last pixel of the row above.
            places: row and column of each pixel, ``[pixels, 2]``.
            biases: for each convolution block, the bias of the class, ``[batch, 2 * channels]``.
            codes: features of the codes, ``[batch, height, width, channels]``.
        """
        channels = self.channels
        half = channels // 2
        pixel = step.pixel
        # Embedded pixel, features, row and column. The keys of a pixel need the pixel itself, so
        # they are computed one step later, when it is known.
        content = step.memory.zeros(2 * channels + 2)
        keys, values = self._write_keys(step, content, pixels, len(places.table))
        features = content[:, channels : 2 * channels]
        query_input = content[:, channels:]
        convolutions = [c for c in self.convolutions if isinstance(c, ConvolutionBlock)]
        for convolution in convolutions[:-1]:
            convolution.write(step, x, x, next(biases), codes)
        convolutions[-1].write(step, x, features, next(biases), codes)
        pixel.map(places.at("position"), content[:, 2 * channels :])

        # `active` starts with elu(features). After that it holds elu(row and column) while the
        # query is computed, and then elu(attention output) for the merge.
        active = pixel.zeros(channels + max(2, half))
        pixel.map(query_input, active[:, : channels + 2], "elu")
        mixed = pixel.zeros(channels + 2)
        self.query_block.write(step, active[:, : channels + 2], query_input, mixed)
        query = pixel.zeros(half)
        weight = step.memory.matrix(self.query.weight.T)
        pixel.linear(mixed, weight, query, add=step.memory.table(self.query.bias))
        seen = active[:, channels : channels + half]
        pixel.attend(query, keys, values, seen, "position", self.heads)
        pixel.map(seen, seen, "elu")
        self.merge.write(step, active[:, : channels + half], features, x)

    def _write_keys(
        self, step: GridStep, content: torch.Tensor, pixels: Places, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values of the previous pixel, which has just become known.

        Args:
            step: the step to write to.
            content: features, row and column of the previous pixel; the pixel itself is filled in
                here, ``[batch, 2 * channels + 2]``.
            pixels: as in :meth:`write`.
            count: number of pixels of the grid.

        Returns:
            Keys and values of all pixels, ``[batch, count, channels / 2]`` each.
        """
        pixel = step.pixel
        half = self.query.out_features
        pixel.map(pixels.at("previous"), content[:, : self.channels])
        active = pixel.zeros(content.shape[1])
        pixel.map(content, active, "elu")
        mixed = pixel.zeros(content.shape[1])
        self.key_block.write(step, active, content, mixed)
        sequences = []
        for weight in self.keys_values.weight.split(half):
            # The first pixel has no previous one: its step writes to an extra place in front.
            memory = Places(step.memory.zeros(1 + count, half))
            pixel.linear(mixed, step.memory.matrix(weight.T), memory.at("position"))
            sequences.append(memory.memory[:, 1:])
        return sequences[0], sequences[1]


def strictly_before(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Attention of each position to the positions strictly before it; the first gets zeros.

    Inputs and result are ``[batch, heads, positions, size]``.
    """
    first = torch.zeros_like(values[:, :, :1])
    if queries.shape[2] == 1:
        return first
    # Shifted by one, "strictly before" becomes the usual causal mask, which has a fast kernel.
    others = attend_causally(
        queries[:, :, 1:].contiguous(),
        keys[:, :, :-1].contiguous(),
        values[:, :, :-1].contiguous(),
    )
    return torch.cat([first, others], dim=2)

"""VQ-VAE-2 (Razavi et al. 2019): two grids of codes.

A coarse grid encodes the content of an image, and a fine one adds the details.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.tokenizers.autoencoder import AutoencoderBlock, Decoder
from tessella.tokenizers.construction import PlainValues, check_count
from tessella.tokenizers.quantizers import QuantizerOutput
from tessella.tokenizers.reconstructing import (
    MAX_BLOCKS,
    MAX_WIDTH,
    CodebookOptions,
    Quantized,
    ReconstructingTokenizer,
    check_downsample,
    check_weights,
    pad_images,
)

LEVELS = ("top", "bottom")


class VQVAE2(ReconstructingTokenizer):
    """Images to two grids of codes, and back to nearly the same images.

    The bottom grid is ``downsample`` times smaller than the image, the top grid has half its sides
    (section 3.1, fig. 2a). The top codes are found first; the bottom codes are found from the image
    and the decoded top codes. The decoder takes both. Training minimizes the loss of
    :class:`~tessella.tokenizers.vqvae.VQVAE`, with the terms of both quantizers.

    Sides that twice ``downsample`` does not divide are padded by repeating the last row and column,
    and cropped after decoding. Images may have any size, whatever ``image_size`` says.

    Args:
        image_size: height and width that :meth:`grids` assumes, in pixels.
        channels: colour channels, 1 to 4.
        hidden: channels of the convolutions at the lower resolutions.
        downsample: pixels along each side that a bottom code stands for: a power of two, at least
            2.
        residual_blocks: number of blocks in each encoder and in each decoder.
        residual_hidden: channels inside a residual block.
        codes: number and length of the codes of each level, and the quantizer, which must give one
            code per vector; :func:`~tessella.tokenizers.create_tokenizer` takes its fields as
            arguments.
        likelihood: see :class:`~tessella.tokenizers.vqvae.VQVAE`.

    Raises:
        ConfigError: when an argument is out of range.

    >>> codes = CodebookOptions(code_dim=4)
    >>> tokenizer = VQVAE2((30, 20), channels=1, hidden=8, residual_hidden=4, codes=codes)
    >>> [grid.shape for grid in tokenizer.grids()]
    [(4, 3, 1), (8, 6, 1)]
    >>> tokenizer.decode(tokenizer.encode(torch.zeros(2, 30, 20, 1, dtype=torch.uint8))).shape
    torch.Size([2, 30, 20, 1])
    """

    name = "vqvae2"

    def __init__(
        self,
        image_size: tuple[int, int] = (32, 32),
        channels: int = 3,
        hidden: int = 128,
        downsample: int = 4,
        residual_blocks: int = 2,
        residual_hidden: int = 32,
        codes: CodebookOptions = CodebookOptions(),  # noqa: B008 - it is frozen
        likelihood: Literal["", "mse", "logistic"] = "",
    ) -> None:
        super().__init__(image_size, channels, codes, likelihood)
        # All sizes are checked before anything is built, which may take much memory.
        stages = check_downsample(downsample, least=2)
        check_count("hidden", hidden, 2, MAX_WIDTH)
        check_count("residual_hidden", residual_hidden, 1, MAX_WIDTH)
        check_count("residual_blocks", residual_blocks, 0, MAX_BLOCKS)
        # Two encoders and two decoders; the decoder's input has twice the length of a code.
        widest = max(hidden, residual_hidden, 2 * codes.code_dim)
        check_weights(widest, 2 * stages + 4 * residual_blocks + 8)
        self.hidden = hidden
        self.downsample = downsample
        self.residual_blocks = residual_blocks
        self.residual_hidden = residual_hidden
        code_dim = codes.code_dim
        blocks = (residual_blocks, residual_hidden)
        # The order of construction determines the random weights, and the order of saved tensors.
        self.encode_bottom = _encoder(channels, hidden, stages, *blocks)
        self.encode_top = _encoder(hidden, hidden, 1, *blocks)
        self.to_top = nn.Conv2d(hidden, code_dim, 1)
        self.decode_top = Decoder(code_dim, hidden, code_dim, 1, *blocks)
        self.to_bottom = nn.Conv2d(hidden + code_dim, code_dim, 1)
        self.enlarge_top = nn.ConvTranspose2d(code_dim, code_dim, 4, stride=2, padding=1)
        self.decoder = Decoder(self.outputs, hidden, 2 * code_dim, stages, *blocks)
        self.top = codes.build()
        self.bottom = codes.build()
        if self.top.depth > 1:
            raise ConfigError(
                "vqvae2 needs a quantizer with one code per vector, such as 'vq-ema'; "
                f"{codes.quantizer!r} gives {self.top.depth}"
            )

    @property
    def stride(self) -> int:
        return self.downsample

    def grids(self, height: int | None = None, width: int | None = None) -> tuple[Grid, ...]:
        """The top grid, with ``ceil(height / (2 downsample))`` rows, and the bottom grid.

        The bottom grid has twice as many rows and columns.
        """
        height, width = self._size(height, width)
        # Whole cells of the top grid, so that the bottom grid has exactly twice the sides.
        rows = -(-height // (2 * self.downsample))
        columns = -(-width // (2 * self.downsample))
        top = Grid(rows, columns, 1, self.top.levels)
        bottom = Grid(2 * rows, 2 * columns, 1, self.bottom.levels)
        return (top, bottom)

    def network_config(self) -> PlainValues:
        return {
            "hidden": self.hidden,
            "downsample": self.downsample,
            "residual_blocks": self.residual_blocks,
            "residual_hidden": self.residual_hidden,
            "likelihood": self.likelihood_kind,
        }

    def quantize(self, images: torch.Tensor) -> Quantized:
        outs: list[QuantizerOutput] = []

        def quantized_top(z: torch.Tensor) -> torch.Tensor:
            outs.append(self.top(z))
            return outs[0].z

        # The top is quantized along the way, because the bottom features depend on its codes.
        _, bottom = self._features(images, quantized_top)
        outs.append(self.bottom(bottom))
        losses: dict[str, torch.Tensor] = {}
        stats: dict[str, torch.Tensor] = {}
        for level, out in zip(LEVELS, outs, strict=True):
            for name, loss in out.losses.items():
                losses[f"{name}/{level}"] = loss
            for name, figure in out.stats.items():
                stats[f"{name}/{level}"] = figure
        features = (outs[0].z, outs[1].z)
        symbols = (outs[0].symbols, outs[1].symbols)
        return Quantized(features, symbols, losses, stats)

    def look_up(
        self, symbols: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.top.decode(symbols[0]), self.bottom.decode(symbols[1])

    def encode_float(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float images ``[n, h, w, channels]`` in 0..1 to the features that are quantized.

        They are ``[n, h', w', code_dim]`` of both grids. The bottom's depend on the top's codes,
        through which gradients pass.
        """

        def quantized_top(z: torch.Tensor) -> torch.Tensor:
            codes = self.top.decode(self.top.encode(z))
            # Straight through: the values of the codes, the gradient of the features.
            return z + (codes - z).detach()

        return self._features(images, quantized_top)

    def parameters_of(self, features: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        top = features[0].permute(0, 3, 1, 2)  # [n, code_dim, h / 2, w / 2]
        bottom = features[1].permute(0, 3, 1, 2)  # [n, code_dim, h, w]
        # A transposed convolution brings the top to the bottom's size.
        both = torch.cat([self.enlarge_top(top), bottom], 1)
        return self.decoder(both).permute(0, 2, 3, 1)

    def _features(
        self, images: torch.Tensor, quantized_top: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of both levels before quantization.

        Args:
            quantized_top: quantizes the features of the top.
        """
        # [n, hidden, h, w] of the bottom's grid
        fine = self.encode_bottom(pad_images(images, 2 * self.downsample))
        top = self.to_top(self.encode_top(fine)).permute(0, 2, 3, 1)
        decoded_top = self.decode_top(quantized_top(top).permute(0, 3, 1, 2))
        bottom = self.to_bottom(torch.cat([decoded_top, fine], 1)).permute(0, 2, 3, 1)
        return top, bottom


def _encoder(channels: int, hidden: int, stages: int, blocks: int, inner: int) -> nn.Sequential:
    """``[n, channels, h, w]`` to ``[n, hidden, h / 2^stages, w / 2^stages]``, not negative.

    The first stage has half the channels of the others.
    """
    layers: list[nn.Module] = []
    for stage in range(stages):
        width = hidden if stage else max(1, hidden // 2)
        layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.ReLU()]
        channels = width
    layers.append(nn.Conv2d(channels, hidden, 3, padding=1))
    for _ in range(blocks):
        layers.append(AutoencoderBlock(hidden, inner))
    layers.append(nn.ReLU())
    return nn.Sequential(*layers)

"""VQGAN (Esser et al. 2021, "Taming Transformers"): a VQ-VAE with a deep encoder and decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.tokenizers.convnet import Decoder, Encoder
from tessella.tokenizers.reconstruction import (
    Quantized,
    ReconstructingTokenizer,
    fresh_quantizer,
    pad_images,
)


class VQGAN(ReconstructingTokenizer):
    """Images to a grid of codes ``2^(m - 1)`` times smaller, for m multipliers, and back.

    By itself it minimizes ``mse(2x - 1, decoder(e))`` plus the quantizer's losses, the first over
    pixels on the scale -1..1. (The paper writes the square, too; its code takes the absolute
    difference, with which small models were seen to stay at the median image.) The perceptual and
    the adversarial term, which make a VQGAN of it, belong to the
    training: a recipe's table ``[adversarial]``.

    Sides that the stride does not divide are extended by their last row or column, and cropped
    after decoding. Any size of image will do, whatever ``image_size`` says; attention at the lowest
    resolution looks at all of it, so that codes depend on the whole image.

    Where weights are averaged over training, average the parameters and take the quantizer's
    buffers as they are.

    Args:
        image_size: height and width that :meth:`grids` assumes.
        channels: colour channels, 1 to 4.
        codebook_size: number of codes K.
        hidden: channels of the convolutions at the highest resolution.
        multipliers: channels of each resolution, from the highest, in units of ``hidden``; (1, 1,
            2, 2, 4) makes codes of 16 x 16 pixels ("f16"), (1, 2, 2, 4) of 8 x 8.
        residual_blocks: of each resolution in the encoder; the decoder has one more.
        latent: channels between the convolutions and the 1x1 projections to and from ``code_dim``.
        code_dim: length of a code's vector.
        quantizer: one of :data:`~tessella.tokenizers.quantizers.QUANTIZERS`.
        options: further arguments of the quantizer, such as ``{"beta": 0.25}``.

    Raises:
        ConfigError: when an argument is out of range.

    >>> tokenizer = VQGAN((30, 20), channels=1, hidden=8, multipliers=(1, 2), latent=8, code_dim=4)
    >>> tokenizer.grid()
    Grid(height=15, width=10, channels=1, levels=1024)
    >>> tokenizer.decode(tokenizer.encode(torch.zeros(2, 30, 20, 1, dtype=torch.uint8))).shape
    torch.Size([2, 30, 20, 1])
    """

    name = "vqgan"

    def __init__(
        self,
        image_size: tuple[int, int] = (256, 256),
        channels: int = 3,
        codebook_size: int = 1024,
        hidden: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        residual_blocks: int = 2,
        latent: int = 256,
        code_dim: int = 256,
        quantizer: str = "vq-ema",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(image_size, channels, likelihood="")
        if not multipliers or min(hidden, latent, code_dim, residual_blocks, *multipliers) < 1:
            raise ConfigError(
                "hidden, latent, code_dim, residual_blocks and multipliers must be 1 or more, "
                f"got {hidden}, {latent}, {code_dim}, {residual_blocks} and {tuple(multipliers)}"
            )
        self.hidden, self.multipliers, self.residual_blocks = (
            hidden,
            tuple(multipliers),
            residual_blocks,
        )
        self.options = dict(options or {})
        self.codebook_size = codebook_size
        self.quantizer = fresh_quantizer(
            quantizer, self.options, dim=code_dim, codebook_size=codebook_size
        )
        self.encoder = Encoder(channels, hidden, multipliers, residual_blocks, latent)
        self.to_code = nn.Conv2d(latent, code_dim, 1)
        self.from_code = nn.Conv2d(code_dim, latent, 1)
        self.decoder = Decoder(channels, hidden, multipliers, residual_blocks, latent)

    @property
    def stride(self) -> int:
        return 2 ** (len(self.multipliers) - 1)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weights that make pixels, where the gradients of two losses are compared."""
        weight = self.decoder[-1].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def grids(self, height: int | None = None, width: int | None = None) -> tuple[Grid, ...]:
        """One grid of ``ceil(height / stride)`` by ``ceil(width / stride)`` codes."""
        height, width = self._size(height, width)
        quantizer = self.quantizer
        return (
            Grid(
                -(-height // self.stride),
                -(-width // self.stride),
                quantizer.depth,
                quantizer.levels,
            ),
        )

    def config(self) -> dict[str, Any]:
        return {
            "image_size": list(self.image_size),
            "channels": self.channels,
            "codebook_size": self.codebook_size,
            "hidden": self.hidden,
            "multipliers": list(self.multipliers),
            "residual_blocks": self.residual_blocks,
            "latent": self.to_code.in_channels,
            "code_dim": self.quantizer.dim,
            "quantizer": self.quantizer.name,
            "options": dict(self.options),
        }

    def quantize(self, images: torch.Tensor) -> Quantized:
        out = self.quantizer(self.encode_float(images))
        return Quantized(out.z, out.symbols, out.losses, out.stats)

    def look_up(self, symbols: torch.Tensor) -> torch.Tensor:
        return self.quantizer.decode(symbols)

    def encode_float(self, images: torch.Tensor) -> torch.Tensor:
        return self.to_code(self.encoder(pad_images(images, self.stride))).permute(0, 2, 3, 1)

    def parameters_of(self, features: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.from_code(features.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

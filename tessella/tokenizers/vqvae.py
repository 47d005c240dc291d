"""VQ-VAE (van den Oord et al. 2017): an encoder, a codebook and a decoder, trained together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.tokenizers.autoencoder import Decoder, Encoder
from tessella.tokenizers.reconstruction import (
    Quantized,
    ReconstructingTokenizer,
    fresh_quantizer,
    pad_images,
)


class VQVAE(ReconstructingTokenizer):
    """Images to a ``downsample`` times smaller grid of codes, and back to nearly the same images.

    Training minimizes ``mse(2x - 1, decoder(e)) + beta * mse(z, e)``, the first over pixels on the
    scale -1..1, the second over the encoder's output ``z`` and its nearest codes ``e``; gradients
    pass the codes straight through (eqs. 2 and 3, with moving averages for the codes). Sides that
    ``downsample`` does not divide are extended by their last row or column, and cropped after
    decoding. Any size of image will do, whatever ``image_size`` says.

    Where weights are averaged over training, average the parameters and take the quantizer's
    buffers as they are.

    Args:
        image_size: height and width that :meth:`grids` assumes.
        channels: colour channels, 1 to 4.
        codebook_size: number of codes K.
        hidden: channels of the convolutions at the lowest resolution.
        code_dim: length of a code's vector.
        downsample: pixels along each side of a code: a power of two, 1 to keep the size.
        residual_blocks: in the encoder, and in the decoder.
        beta: weight of the commitment loss; None for what the quantizer has by itself.
        quantizer: one of :data:`~tessella.tokenizers.quantizers.QUANTIZERS`; ``codebook_size`` and
            ``beta`` go to those that take them.
        options: further arguments of the quantizer, such as ``{"depth": 4}``.
        likelihood: ``mse`` or ``logistic`` to state probabilities of pixels, see
            :meth:`~tessella.tokenizers.reconstruction.ReconstructingTokenizer.log_likelihood`.

    Raises:
        ConfigError: when an argument is out of range.

    >>> tokenizer = VQVAE((30, 20), channels=1, hidden=8, code_dim=4)
    >>> tokenizer.grid()
    Grid(height=8, width=5, channels=1, levels=512)
    >>> tokenizer.decode(tokenizer.encode(torch.zeros(2, 30, 20, 1, dtype=torch.uint8))).shape
    torch.Size([2, 30, 20, 1])
    """

    name = "vqvae"

    def __init__(
        self,
        image_size: tuple[int, int] = (32, 32),
        channels: int = 3,
        codebook_size: int = 512,
        hidden: int = 128,
        code_dim: int = 64,
        downsample: int = 4,
        residual_blocks: int = 2,
        beta: float | None = None,
        quantizer: str = "vq-ema",
        options: Mapping[str, Any] | None = None,
        likelihood: Literal["", "mse", "logistic"] = "",
    ) -> None:
        super().__init__(image_size, channels, likelihood)
        if downsample < 1 or downsample & (downsample - 1):
            raise ConfigError(f"downsample must be a power of two, got {downsample}")
        if hidden < 2 or residual_blocks < 0:
            raise ConfigError(
                f"hidden must be at least 2 and residual_blocks at least 0, got {hidden} and {residual_blocks}"
            )
        self.codebook_size, self.options = codebook_size, dict(options or {})
        self.hidden, self.residual_blocks, self.beta = hidden, residual_blocks, beta
        stages = downsample.bit_length() - 1
        own = {"dim": code_dim, "codebook_size": codebook_size} | (
            {} if beta is None else {"beta": beta}
        )
        self.quantizer = fresh_quantizer(quantizer, self.options, **own)
        self.encoder = Encoder(channels, hidden, code_dim, stages, residual_blocks)
        self.decoder = Decoder(self.outputs, hidden, code_dim, stages, residual_blocks)
        self._stride = 2**stages

    @property
    def stride(self) -> int:
        return self._stride

    def grids(self, height: int | None = None, width: int | None = None) -> tuple[Grid, ...]:
        """One grid of ``ceil(height / downsample)`` by ``ceil(width / downsample)`` codes."""
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
            "code_dim": self.quantizer.dim,
            "downsample": self.stride,
            "residual_blocks": self.residual_blocks,
            "beta": self.beta,
            "quantizer": self.quantizer.name,
            "options": dict(self.options),
            "likelihood": self.likelihood.kind if self.likelihood is not None else "",
        }

    def quantize(self, images: torch.Tensor) -> Quantized:
        out = self.quantizer(self.encode_float(images))
        return Quantized(out.z, out.symbols, out.losses, out.stats)

    def look_up(self, symbols: torch.Tensor) -> torch.Tensor:
        return self.quantizer.decode(symbols)

    def encode_float(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(pad_images(images, self.stride)).permute(0, 2, 3, 1)

    def parameters_of(self, features: torch.Tensor) -> torch.Tensor:
        return self.decoder(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

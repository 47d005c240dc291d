"""VQ-VAE (van den Oord et al. 2017): an encoder, a codebook and a decoder, trained together."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.tokenizers.autoencoder import Decoder, Encoder
from tessella.tokenizers.base import Tokenizer, TokenizerOutput
from tessella.tokenizers.quantizers import create_quantizer


class VQVAE(Tokenizer):
    """Images to a ``downsample`` times smaller grid of codes, and back to nearly the same images.

    Training minimizes ``mse(2x - 1, decoder(e)) + beta * mse(z, e)``, the first over pixels on the scale -1..1, the
    second over the encoder's output ``z`` and its nearest codes ``e``; gradients pass the codes straight through (eqs.
    2 and 3, with moving averages for the codes). Sides that ``downsample`` does not divide are extended by their last
    row or column, and cropped after decoding. Any size of image will do, whatever ``image_size`` says.

    Where weights are averaged over training, average the parameters and take the quantizer's buffers as they are.

    Args:
        image_size: height and width that :meth:`grids` assumes.
        channels: colour channels, 1 to 4.
        codebook_size: number of codes K.
        hidden: channels of the convolutions at the lowest resolution.
        code_dim: length of a code's vector.
        downsample: pixels along each side of a code: a power of two, 1 to keep the size.
        residual_blocks: in the encoder, and in the decoder.
        beta: weight of the commitment loss.
        quantizer: one of :data:`~tessella.tokenizers.quantizers.QUANTIZERS`.

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
        beta: float = 0.25,
        quantizer: str = "vq-ema",
    ) -> None:
        super().__init__(image_size, channels)
        if downsample < 1 or downsample & (downsample - 1):
            raise ConfigError(f"downsample must be a power of two, got {downsample}")
        if hidden < 2 or residual_blocks < 0:
            raise ConfigError(
                f"hidden must be at least 2 and residual_blocks at least 0, got {hidden} and {residual_blocks}"
            )
        self.hidden, self.residual_blocks, self.beta = hidden, residual_blocks, beta
        stages = downsample.bit_length() - 1
        self.quantizer = create_quantizer(
            quantizer, dim=code_dim, codebook_size=codebook_size, beta=beta, seed=int(torch.randint(2**31, ()))
        )
        self.encoder = Encoder(channels, hidden, code_dim, stages, residual_blocks)
        self.decoder = Decoder(channels, hidden, code_dim, stages, residual_blocks)
        self._stride = 2**stages

    @property
    def lossless(self) -> bool:
        """False: what comes back is a reconstruction."""
        return False

    @property
    def stride(self) -> int:
        return self._stride

    def grids(self, height: int | None = None, width: int | None = None) -> tuple[Grid, ...]:
        """One grid of ``ceil(height / downsample)`` by ``ceil(width / downsample)`` codes."""
        height, width = self._size(height, width)
        quantizer = self.quantizer
        return (Grid(-(-height // self.stride), -(-width // self.stride), quantizer.depth, quantizer.levels),)

    def config(self) -> dict[str, Any]:
        return {
            "image_size": list(self.image_size),
            "channels": self.channels,
            "codebook_size": self.quantizer.levels,
            "hidden": self.hidden,
            "code_dim": self.quantizer.dim,
            "downsample": self.stride,
            "residual_blocks": self.residual_blocks,
            "beta": self.beta,
            "quantizer": self.quantizer.name,
        }

    def forward(self, images: torch.Tensor) -> TokenizerOutput:
        """A pass over a batch; in training mode the codebook learns from it.

        Args:
            images: ``[n, h, w, channels]``, uint8, or floats in 0..1.

        Returns:
            With the losses ``loss`` (to optimize), ``mse`` of the reconstruction on the scale 0..1, and ``commitment``.
        """
        target = self._unit(images)
        quantized = self.quantizer(self.encode_float(target))
        reconstruction = self.decode_float(quantized.z)[:, : target.shape[1], : target.shape[2]]
        mse = F.mse_loss(reconstruction.to(target.dtype), target)
        losses = {"loss": 4 * mse + torch.stack(list(quantized.losses.values())).sum(), "mse": mse.detach()}
        losses |= {name: loss.detach() for name, loss in quantized.losses.items()}
        return TokenizerOutput(reconstruction, quantized.symbols, losses, quantized.stats)

    def encode_float(self, images: torch.Tensor) -> torch.Tensor:
        x = (2 * images - 1).permute(0, 3, 1, 2)
        x = F.pad(x, (0, -x.shape[3] % self.stride, 0, -x.shape[2] % self.stride), mode="replicate")
        return self.encoder(x).permute(0, 2, 3, 1)

    def decode_float(self, features: torch.Tensor) -> torch.Tensor:
        return (self.decoder(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + 1) / 2

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.quantizer.encode(self.encode_float(self._unit(images)))

    def _decode(self, symbols: torch.Tensor) -> torch.Tensor:
        images = self.decode_float(self.quantizer.decode(symbols))
        return (images.clamp(0, 1) * 255).round().to(torch.uint8)

    def _unit(self, images: torch.Tensor) -> torch.Tensor:
        """Images on the scale 0..1, in the type of the weights."""
        dtype = next(self.parameters()).dtype
        return images.to(dtype) if images.is_floating_point() else images.to(dtype) / 255

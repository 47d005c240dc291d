"""VQ-VAE-2 (Razavi et al. 2019): codes on two levels, a coarse grid and a fine one that completes
it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.tokenizers.autoencoder import Decoder, ResidualBlock
from tessella.tokenizers.quantizers import Quantizer, QuantizerOutput
from tessella.tokenizers.reconstruction import (
    Quantized,
    ReconstructingTokenizer,
    fresh_quantizer,
    pad_images,
)

LEVELS = ("top", "bottom")


class VQVAE2(ReconstructingTokenizer):
    """Images to two grids of codes, and back to nearly the same images.

    The bottom grid is ``downsample`` times smaller than the image, the top grid half as large again
    (section 3.1, fig. 2a). The top codes are found first; the bottom's see the image and what the
    top's tell of it. The decoder takes both. Training minimizes what
    :class:`~tessella.tokenizers.vqvae.VQVAE` does, with the losses of both quantizers.

    Sides that twice ``downsample`` does not divide are extended by their last row or column, and
    cropped after decoding. Any size of image will do, whatever ``image_size`` says.

    Args:
        image_size: height and width that :meth:`grids` assumes.
        channels: colour channels, 1 to 4.
        codebook_size: number of codes K of each level.
        hidden: channels of the convolutions at the lower resolutions.
        code_dim: length of a code's vector.
        downsample: pixels along each side of a bottom code: a power of two, at least 2.
        residual_blocks: of each encoder, and of each decoder.
        residual_hidden: channels inside a residual block.
        quantizer: one of :data:`~tessella.tokenizers.quantizers.QUANTIZERS`, of one code a vector.
        options: further arguments of the quantizers, such as ``{"beta": 0.25}``.
        likelihood: as of :class:`~tessella.tokenizers.vqvae.VQVAE`.

    Raises:
        ConfigError: when an argument is out of range.

    >>> tokenizer = VQVAE2((30, 20), channels=1, hidden=8, code_dim=4, residual_hidden=4)
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
        codebook_size: int = 512,
        hidden: int = 128,
        code_dim: int = 64,
        downsample: int = 4,
        residual_blocks: int = 2,
        residual_hidden: int = 32,
        quantizer: str = "vq-ema",
        options: Mapping[str, Any] | None = None,
        likelihood: Literal["", "mse", "logistic"] = "",
    ) -> None:
        super().__init__(image_size, channels, likelihood)
        if downsample < 2 or downsample & (downsample - 1):
            raise ConfigError(f"downsample must be a power of two and at least 2, got {downsample}")
        if hidden < 2 or residual_hidden < 1 or residual_blocks < 0:
            raise ConfigError(
                "hidden must be at least 2, residual_hidden at least 1 and residual_blocks at least 0, "
                f"got {hidden}, {residual_hidden} and {residual_blocks}"
            )
        self.codebook_size, self.options = codebook_size, dict(options or {})
        self.hidden, self.code_dim, self.downsample = hidden, code_dim, downsample
        self.residual_blocks, self.residual_hidden = residual_blocks, residual_hidden
        stages, blocks = downsample.bit_length() - 1, (residual_blocks, residual_hidden)
        self.encode_bottom = _encoder(channels, hidden, stages, *blocks)
        self.encode_top = _encoder(hidden, hidden, 1, *blocks)
        self.to_top = nn.Conv2d(hidden, code_dim, 1)
        self.decode_top = Decoder(code_dim, hidden, code_dim, 1, *blocks)
        self.to_bottom = nn.Conv2d(hidden + code_dim, code_dim, 1)
        self.enlarge_top = nn.ConvTranspose2d(code_dim, code_dim, 4, stride=2, padding=1)
        self.decoder = Decoder(self.outputs, hidden, 2 * code_dim, stages, *blocks)
        own = {"dim": code_dim, "codebook_size": codebook_size}
        self.top, self.bottom = (fresh_quantizer(quantizer, self.options, **own) for _ in LEVELS)
        if self.top.depth > 1:
            raise ConfigError(
                f"vqvae2 takes quantizers of one code a vector; {quantizer!r} gives {self.top.depth}"
            )

    @property
    def stride(self) -> int:
        return self.downsample

    def grids(self, height: int | None = None, width: int | None = None) -> tuple[Grid, ...]:
        """The top grid, of ``ceil(height / (2 downsample))`` rows, and the bottom grid of twice as
        many."""
        sides = [-(-side // (2 * self.downsample)) for side in self._size(height, width)]
        return tuple(Grid(sides[0] * k, sides[1] * k, 1, self.top.levels) for k in (1, 2))

    def config(self) -> dict[str, Any]:
        return {
            "image_size": list(self.image_size),
            "channels": self.channels,
            "codebook_size": self.codebook_size,
            "hidden": self.hidden,
            "code_dim": self.code_dim,
            "downsample": self.downsample,
            "residual_blocks": self.residual_blocks,
            "residual_hidden": self.residual_hidden,
            "quantizer": self.top.name,
            "options": dict(self.options),
            "likelihood": self.likelihood.kind if self.likelihood is not None else "",
        }

    def quantize(self, images: torch.Tensor) -> Quantized:
        outs: list[QuantizerOutput] = []

        def follow(quantizer: Quantizer, z: torch.Tensor) -> torch.Tensor:
            outs.append(quantizer(z))
            return outs[-1].z

        follow(self.bottom, self._features(images, follow)[1])
        losses: dict[str, torch.Tensor] = {}
        stats: dict[str, torch.Tensor] = {}
        for level, out in zip(LEVELS, outs, strict=True):
            losses |= {f"{name}/{level}": value for name, value in out.losses.items()}
            stats |= {f"{name}/{level}": value for name, value in out.stats.items()}
        return Quantized(
            tuple(out.z for out in outs), tuple(out.symbols for out in outs), losses, stats
        )

    def look_up(
        self, symbols: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.top.decode(symbols[0]), self.bottom.decode(symbols[1])

    def encode_float(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float images ``[n, h, w, channels]`` in 0..1 to what the quantizers take,
        ``[n, h', w', code_dim]`` of both grids; the bottom's sees the top's codes, through which
        gradients pass."""
        return self._features(
            images, lambda quantizer, z: z + (quantizer.decode(quantizer.encode(z)) - z).detach()
        )

    def parameters_of(self, features: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        top, bottom = (part.permute(0, 3, 1, 2) for part in features)
        return self.decoder(torch.cat([self.enlarge_top(top), bottom], 1)).permute(0, 2, 3, 1)

    def _features(
        self, images: torch.Tensor, quantized: Callable[[Quantizer, torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of both levels before quantization; ``quantized`` makes codes' vectors of the
        top's."""
        fine = self.encode_bottom(pad_images(images, 2 * self.downsample))
        top = self.to_top(self.encode_top(fine)).permute(0, 2, 3, 1)
        told = self.decode_top(quantized(self.top, top).permute(0, 3, 1, 2))
        return top, self.to_bottom(torch.cat([told, fine], 1)).permute(0, 2, 3, 1)


def _encoder(channels: int, hidden: int, stages: int, blocks: int, inner: int) -> nn.Sequential:
    """``[n, channels, h, w]`` to ``[n, hidden, h / 2^stages, w / 2^stages]``, positive; half as
    wide at first."""
    layers: list[nn.Module] = []
    for stage in range(stages):
        width = hidden if stage else max(1, hidden // 2)
        layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.ReLU()]
        channels = width
    layers += [nn.Conv2d(channels, hidden, 3, padding=1)]
    return nn.Sequential(*layers, *(ResidualBlock(hidden, inner) for _ in range(blocks)), nn.ReLU())

"""VQGAN (Esser et al. 2021, "Taming Transformers"): a VQ-VAE with a deep encoder and decoder."""

from __future__ import annotations

import torch
from torch import nn

from tessella.errors import ConfigError
from tessella.tokenizers.construction import PlainValues, check_count
from tessella.tokenizers.convnet import DeepDecoder, DeepEncoder, DeepOptions
from tessella.tokenizers.reconstructing import (
    MAX_BLOCKS,
    MAX_DOWNSAMPLE,
    MAX_WIDTH,
    CodebookOptions,
    SingleGridTokenizer,
    check_weights,
    pad_images,
)

MAX_RESOLUTIONS = MAX_DOWNSAMPLE.bit_length()
"""Most resolutions, and so most entries of ``multipliers``."""


class VQGAN(SingleGridTokenizer):
    """Images to a grid of codes ``2^(m - 1)`` times smaller, for m multipliers, and back.

    The class itself minimizes ``mse(2x - 1, decoder(e))`` over pixels on the scale -1..1, plus the
    quantizer's losses. (So does the paper; its code uses the absolute difference, with which small
    models got stuck at the median image.) The perceptual and the adversarial loss of a VQGAN are
    part of training: see the table ``[adversarial]`` of a recipe.

    Sides that the stride does not divide are padded by repeating the last row and column, and
    cropped after decoding. Images may have any size, whatever ``image_size`` says; attention looks
    at all of it, so that codes depend on the whole image.

    If weights are averaged over training, average only the parameters, not the quantizer's buffers.

    Args:
        image_size: height and width that :meth:`grids` assumes, in pixels.
        channels: colour channels, 1 to 4.
        hidden: channels of the convolutions at the highest resolution.
        multipliers: channels at each resolution, highest first, in units of ``hidden``. With (1, 1,
            2, 2, 4), a code stands for 16x16 pixels ("f16"); with (1, 2, 2, 4), for 8x8.
        residual_blocks: blocks per resolution of the encoder; the decoder has one more.
        latent: channels between the convolutions and the 1x1 projections to and from ``code_dim``.
        codes: number and length of the codes, and the quantizer;
            :func:`~tessella.tokenizers.create_tokenizer` takes its fields as arguments.
        deep: where the networks attend, and how they normalize; its fields are arguments, too.

    Raises:
        ConfigError: when an argument is out of range.

    >>> codes = CodebookOptions(codebook_size=1024, code_dim=4)
    >>> tokenizer = VQGAN((30, 20), channels=1, hidden=8, multipliers=(1, 2), latent=8, codes=codes)
    >>> tokenizer.grid()
    Grid(height=15, width=10, channels=1, levels=1024)
    >>> tokenizer.decode(tokenizer.encode(torch.zeros(2, 30, 20, 1, dtype=torch.uint8))).shape
    torch.Size([2, 30, 20, 1])
    """

    name = "vqgan"

    decoder: DeepDecoder

    def __init__(
        self,
        image_size: tuple[int, int] = (256, 256),
        channels: int = 3,
        hidden: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        residual_blocks: int = 2,
        latent: int = 256,
        codes: CodebookOptions = CodebookOptions(codebook_size=1024, code_dim=256),  # noqa: B008
        deep: DeepOptions = DeepOptions(),  # noqa: B008 - it is frozen
    ) -> None:
        super().__init__(image_size, channels, codes, likelihood="")
        check_deep_sizes(hidden, multipliers, residual_blocks, max(latent, codes.code_dim))
        check_count("latent", latent, 1, MAX_WIDTH)
        self.hidden = hidden
        self.multipliers = tuple(multipliers)
        self.residual_blocks = residual_blocks
        self.deep = deep
        # The order of construction determines the random weights, and the order of saved tensors.
        self.quantizer = codes.build()
        self.encoder = DeepEncoder(channels, hidden, multipliers, residual_blocks, latent, deep)
        self.to_code = nn.Conv2d(latent, codes.code_dim, 1)
        self.from_code = nn.Conv2d(codes.code_dim, latent, 1)
        self.decoder = DeepDecoder(channels, hidden, multipliers, residual_blocks, latent, deep)

    @property
    def stride(self) -> int:
        # Height and width are halved between consecutive resolutions.
        return 2 ** (len(self.multipliers) - 1)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weights that produce pixels, at which the gradients of two losses are compared."""
        weight = self.decoder[-1].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def network_config(self) -> PlainValues:
        return {
            "hidden": self.hidden,
            "multipliers": list(self.multipliers),
            "residual_blocks": self.residual_blocks,
            "latent": self.to_code.in_channels,
            "attention": list(self.deep.attention),
            "groups": self.deep.groups,
        }

    def encode_float(self, images: torch.Tensor) -> torch.Tensor:
        # [n, latent, h', w'] is projected to code_dim before it is compared with codes.
        features = self.to_code(self.encoder(pad_images(images, self.stride)))
        return features.permute(0, 2, 3, 1)

    def parameters_of(self, features: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.from_code(features.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


def check_deep_sizes(
    hidden: int, multipliers: tuple[int, ...], residual_blocks: int, latent: int
) -> None:
    """Check the sizes of a deep encoder and decoder before they are built.

    Args:
        hidden, multipliers, residual_blocks: see :class:`VQGAN`.
        latent: channels between the networks and the codes.

    Raises:
        ConfigError: when one is out of range, or together they are too large.
    """
    check_count("hidden", hidden, 1, MAX_WIDTH)
    check_count("residual_blocks", residual_blocks, 1, MAX_BLOCKS)
    if not 1 <= len(multipliers) <= MAX_RESOLUTIONS:
        raise ConfigError(
            f"multipliers must be a list of 1 to {MAX_RESOLUTIONS} numbers, got {multipliers}"
        )
    for multiplier in multipliers:
        check_count("each of the multipliers", multiplier, 1, MAX_WIDTH)
    # Per resolution, encoder and decoder together have at most 4 residual_blocks + 4 convolutions.
    # Around the codes, each has up to a dozen more.
    layers = len(multipliers) * (4 * residual_blocks + 4) + 24
    check_weights(max(hidden * max(multipliers), latent), layers)

"""A VQ-VAE whose convolutions all work at the resolution of its codes."""

from __future__ import annotations

from typing import Literal

import torch

from tessella.tokenizers.autoencoder import Decoder, Encoder
from tessella.tokenizers.construction import PlainValues, check_count
from tessella.tokenizers.reconstructing import (
    MAX_BLOCKS,
    MAX_WIDTH,
    CodebookOptions,
    SingleGridTokenizer,
    check_weights,
    pad_images,
)

MAX_PATCH = 256
"""Longest side of a patch."""


class PatchVQVAE(SingleGridTokenizer):
    """A VQ-VAE on patches: images to a ``patch`` times smaller grid of codes, and back.

    Each square of ``patch`` by ``patch`` pixels becomes one place whose channels are its pixels,
    and the decoder makes those of a square at once (sub-pixel convolution, Shi et al. 2016).
    Between them are the layers of a :class:`~tessella.tokenizers.vqvae.VQVAE` at its lowest
    resolution. Strided convolutions at high resolutions take much of the time of that one and have
    few channels; here all time goes to wide layers that see many pixels. Kernels of 3x3 places let
    neighbouring patches see each other.

    The loss, the quantizers and the padding of images are those of
    :class:`~tessella.tokenizers.vqvae.VQVAE`, and images may have any size, whatever ``image_size``
    says.

    If weights are averaged over training, average only the parameters, not the quantizer's buffers.

    Args:
        image_size: height and width that :meth:`grids` assumes, in pixels.
        channels: colour channels, 1 to 4.
        hidden: channels of the convolutions.
        patch: pixels along each side that a code stands for.
        encoder_blocks: residual blocks of the encoder.
        decoder_blocks: residual blocks of the decoder.
        codes: number and length of the codes, and the quantizer;
            :func:`~tessella.tokenizers.create_tokenizer` takes its fields as arguments.
        likelihood: ``mse`` or ``logistic`` to assign probabilities to pixels, see
            :meth:`~tessella.tokenizers.reconstructing.ReconstructingTokenizer.log_likelihood`.

    Raises:
        ConfigError: when an argument is out of range.

    >>> tokenizer = PatchVQVAE((30, 20), channels=1, hidden=8, codes=CodebookOptions(code_dim=4))
    >>> tokenizer.grid()
    Grid(height=8, width=5, channels=1, levels=512)
    >>> tokenizer.decode(tokenizer.encode(torch.zeros(2, 30, 20, 1, dtype=torch.uint8))).shape
    torch.Size([2, 30, 20, 1])
    """

    name = "patch-vqvae"

    def __init__(
        self,
        image_size: tuple[int, int] = (32, 32),
        channels: int = 3,
        hidden: int = 128,
        patch: int = 4,
        encoder_blocks: int = 2,
        decoder_blocks: int = 4,
        codes: CodebookOptions = CodebookOptions(),  # noqa: B008 - it is frozen
        likelihood: Literal["", "mse", "logistic"] = "",
    ) -> None:
        super().__init__(image_size, channels, codes, likelihood)
        # All sizes are checked before anything is built, which may take much memory.
        check_count("hidden", hidden, 2, MAX_WIDTH)
        check_count("patch", patch, 1, MAX_PATCH)
        check_count("encoder_blocks", encoder_blocks, 0, MAX_BLOCKS)
        check_count("decoder_blocks", decoder_blocks, 0, MAX_BLOCKS)
        widest = max(hidden, codes.code_dim, self.outputs * patch**2)
        check_weights(widest, encoder_blocks + decoder_blocks + 4)
        self.hidden = hidden
        self.patch = patch
        self.encoder_blocks = encoder_blocks
        self.decoder_blocks = decoder_blocks
        # The order of construction determines the random weights, and the order of saved tensors.
        self.quantizer = codes.build()
        pixels = patch**2
        self.encoder = Encoder(
            channels * pixels, hidden, codes.code_dim, stages=0, blocks=encoder_blocks
        )
        self.decoder = Decoder(
            self.outputs * pixels, hidden, codes.code_dim, stages=0, blocks=decoder_blocks
        )

    @property
    def stride(self) -> int:
        return self.patch

    def network_config(self) -> PlainValues:
        return {
            "hidden": self.hidden,
            "patch": self.patch,
            "encoder_blocks": self.encoder_blocks,
            "decoder_blocks": self.decoder_blocks,
            "likelihood": self.likelihood_kind,
        }

    def encode_float(self, images: torch.Tensor) -> torch.Tensor:
        padded = pad_images(images, self.patch).permute(0, 2, 3, 1)  # [n, h, w, c]
        patches = as_patches(padded, self.patch)
        # Convolutions have channels first, quantizers take vectors along the last axis.
        features: torch.Tensor = self.encoder(patches.permute(0, 3, 1, 2))
        return features.permute(0, 2, 3, 1)

    def parameters_of(self, features: torch.Tensor) -> torch.Tensor:
        # [n, h', w', code_dim] to [n, h, w, outputs]
        decoded: torch.Tensor = self.decoder(features.permute(0, 3, 1, 2))
        return from_patches(decoded.permute(0, 2, 3, 1), self.patch)


def as_patches(images: torch.Tensor, side: int) -> torch.Tensor:
    """Squares of pixels as channels: ``[n, h, w, c]`` to ``[n, h / side, w / side, side^2 c]``.

    It is ``F.pixel_unshuffle`` for channels that come last, and takes no images, too.
    """
    n, height, width, channels = images.shape
    rows = height // side
    columns = width // side
    squares = images.reshape(n, rows, side, columns, side, channels).transpose(2, 3)
    return squares.reshape(n, rows, columns, side * side * channels)


def from_patches(patches: torch.Tensor, side: int) -> torch.Tensor:
    """The inverse of :func:`as_patches`."""
    n, rows, columns, values = patches.shape
    channels = values // side**2
    squares = patches.reshape(n, rows, columns, side, side, channels).transpose(2, 3)
    return squares.reshape(n, rows * side, columns * side, channels)

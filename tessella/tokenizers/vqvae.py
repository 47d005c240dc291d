"""VQ-VAE (van den Oord et al. 2017): an encoder, a codebook and a decoder, trained together."""

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
    check_downsample,
    check_weights,
    pad_images,
)


class VQVAE(SingleGridTokenizer):
    """Images to a ``downsample`` times smaller grid of codes, and back to nearly the same images.

    Training minimizes ``mse(2x - 1, decoder(e)) + beta * mse(z, e)``. The first term is over pixels
    on the scale -1..1, the second over the output ``z`` of the encoder and its nearest codes ``e``.
    Gradients pass straight through the codes (eqs. 2 and 3, with moving averages for the codes).
    Sides that ``downsample`` does not divide are padded by repeating the last row and column, and
    cropped after decoding. Images may have any size, whatever ``image_size`` says.

    If weights are averaged over training, average only the parameters, not the quantizer's buffers.

    Args:
        image_size: height and width that :meth:`grids` assumes, in pixels.
        channels: colour channels, 1 to 4.
        hidden: channels of the convolutions at the lowest resolution.
        downsample: pixels along each side that a code stands for: a power of two; 1 keeps the size.
        residual_blocks: in the encoder, and in the decoder.
        beta: weight of the commitment loss, for quantizers that have one; None for their default.
        codes: number and length of the codes, and the quantizer;
            :func:`~tessella.tokenizers.create_tokenizer` takes its fields as arguments.
        likelihood: ``mse`` or ``logistic`` to assign probabilities to pixels, see
            :meth:`~tessella.tokenizers.reconstructing.ReconstructingTokenizer.log_likelihood`.

    Raises:
        ConfigError: when an argument is out of range.

    >>> tokenizer = VQVAE((30, 20), channels=1, hidden=8, codes=CodebookOptions(code_dim=4))
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
        hidden: int = 128,
        downsample: int = 4,
        residual_blocks: int = 2,
        beta: float | None = None,
        codes: CodebookOptions = CodebookOptions(),  # noqa: B008 - it is frozen
        likelihood: Literal["", "mse", "logistic"] = "",
    ) -> None:
        super().__init__(image_size, channels, codes, likelihood)
        # All sizes are checked before anything is built, which may take much memory.
        stages = check_downsample(downsample, least=1)
        check_count("hidden", hidden, 2, MAX_WIDTH)
        check_count("residual_blocks", residual_blocks, 0, MAX_BLOCKS)
        check_weights(max(hidden, codes.code_dim), 2 * (stages + residual_blocks + 1))
        self.hidden = hidden
        self.residual_blocks = residual_blocks
        self.beta = beta
        # The order of construction determines the random weights, and the order of saved tensors.
        self.quantizer = codes.build(beta)
        self.encoder = Encoder(channels, hidden, codes.code_dim, stages, residual_blocks)
        self.decoder = Decoder(self.outputs, hidden, codes.code_dim, stages, residual_blocks)
        self._stride = downsample

    @property
    def stride(self) -> int:
        return self._stride

    def network_config(self) -> PlainValues:
        return {
            "hidden": self.hidden,
            "downsample": self.stride,
            "residual_blocks": self.residual_blocks,
            "beta": self.beta,
            "likelihood": self.likelihood_kind,
        }

    def encode_float(self, images: torch.Tensor) -> torch.Tensor:
        # Convolutions have channels first, quantizers take vectors along the last axis.
        return self.encoder(pad_images(images, self.stride)).permute(0, 2, 3, 1)

    def parameters_of(self, features: torch.Tensor) -> torch.Tensor:
        # [n, h', w', code_dim] to [n, h, w, outputs]
        return self.decoder(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

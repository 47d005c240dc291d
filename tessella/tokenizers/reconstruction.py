"""What learned tokenizers share: a decoder's images against the true ones, and the probability of
these."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from tessella.errors import InputError
from tessella.grid import LN2
from tessella.tokenizers.likelihood import PixelLikelihood
from tessella.tokenizers.quantizers import Quantizer, create_quantizer, quantizer_arguments
from tessella.tokenizers.tokenizer import (
    Symbols,
    Tokenizer,
    TokenizerOutput,
    check_images,
    evaluating,
    images_at_once,
)


@dataclass(frozen=True)
class Quantized:
    """Features of images after quantization.

    Args:
        features: ``[n, h', w', code_dim]``, one for each grid where there are several; gradients
            pass through.
        symbols: of the images.
        losses, stats: of the quantizers.
    """

    features: Any
    symbols: Symbols
    losses: dict[str, torch.Tensor]
    stats: dict[str, torch.Tensor]


class ReconstructingTokenizer(Tokenizer):
    """A tokenizer that is trained to reconstruct, and may state the probability of the pixels
    around that.

    A subclass sets ``decoder``'s outputs to ``self.outputs`` and supplies what is abstract here.
    Training minimizes the quantizers' losses plus ``mse(2x - 1, decoder(e))``, over pixels on the
    scale -1..1; with ``likelihood="logistic"`` instead of the squared error the nats per dimension
    of the discretized logistic.

    Args:
        image_size, channels: as of :class:`~tessella.tokenizers.tokenizer.Tokenizer`.
        likelihood: ``mse`` or ``logistic``, see
            :class:`~tessella.tokenizers.likelihood.PixelLikelihood`; empty for the squared error
            without a likelihood.
    """

    def __init__(self, image_size: tuple[int, int], channels: int, likelihood: str) -> None:
        super().__init__(image_size, channels)
        self.likelihood = PixelLikelihood(likelihood, channels) if likelihood else None

    @abstractmethod
    def quantize(self, images: torch.Tensor) -> Quantized:
        """Float images in 0..1 to quantized features; in training mode the codebooks learn."""

    @abstractmethod
    def look_up(self, symbols: Any) -> Any:
        """The features of symbols."""

    @abstractmethod
    def parameters_of(self, features: Any) -> torch.Tensor:
        """What the decoder makes of features: ``[n, h, w, outputs]``, means on the scale -1..1
        first, not cropped."""

    @property
    def outputs(self) -> int:
        """Numbers that the decoder gives for a pixel."""
        return self.likelihood.outputs if self.likelihood is not None else self.channels

    @property
    def lossless(self) -> bool:
        """False: what comes back is a reconstruction."""
        return False

    def forward(self, images: torch.Tensor) -> TokenizerOutput:
        """A pass over a batch; in training mode the codebook learns from it.

        Args:
            images: ``[n, h, w, channels]``, uint8, or floats in 0..1.

        Returns:
            With the losses ``loss`` (to optimize), ``mse`` of the reconstruction on the scale 0..1,
            those of the quantizer, and with a likelihood ``pixel_bits``: bits/dim of the pixels
            given their codes.
        """
        target = self._unit(images)
        quantized = self.quantize(target)
        decoded = self.parameters_of(quantized.features)[:, : target.shape[1], : target.shape[2]]
        reconstruction = self._images(decoded)
        mse = F.mse_loss(reconstruction.to(target.dtype), target)
        losses = {
            "loss": torch.stack(list(quantized.losses.values())).sum()
            if quantized.losses
            else 0 * mse
        }
        if self.likelihood is None or self.likelihood.kind == "mse":
            losses["loss"] = losses["loss"] + 4 * mse
        if self.likelihood is not None:
            nats = -self.likelihood((target * 255).round(), decoded).mean() / target[0].numel()
            losses["loss"] = losses["loss"] + nats
            losses["pixel_bits"] = nats.detach() / LN2
        losses |= {"mse": mse.detach()} | {
            name: loss.detach() for name, loss in quantized.losses.items()
        }
        return TokenizerOutput(reconstruction, quantized.symbols, losses, quantized.stats)

    @torch.no_grad()
    def log_likelihood(self, images: Any, symbols: Any) -> torch.Tensor:
        """Log-probability in nats of images given symbols: ``[n]``, on this tokenizer's device.

        With the probability of the symbols that :meth:`encode` gives under a prior,
        ``-log2 p(symbols) - log2 p(images | symbols)`` is an upper bound of the bits of the images
        under the two-stage
        model: other symbols could only add to their probability.

        Args:
            images: uint8 ``[n, h, w, channels]``.
            symbols: as :meth:`encode` gives them for images of this size.

        Raises:
            InputError: when the tokenizer has no likelihood, or images and symbols do not fit each
                other.
        """
        if self.likelihood is None:
            raise InputError(
                f"this {self.name} has no likelihood of pixels: train one with likelihood='mse' or 'logistic' "
                "(in a recipe tokenizer.likelihood)"
            )
        images, codes = check_images(images, self.channels), self._check_symbols(symbols)
        height, width = self._size_of(codes, (images.shape[1], images.shape[2]))
        if len(codes[0]) != len(images):
            raise InputError(
                f"give the symbols of all images: {len(images)} images, symbols of {len(codes[0])}"
            )
        each = images_at_once(height * width)
        nats = []
        with evaluating(self):
            for piece, *of_piece in zip(
                images.split(each), *(part.split(each) for part in codes), strict=True
            ):
                here = tuple(part.to(self.device) for part in of_piece)
                decoded = self.parameters_of(self.look_up(here if len(here) > 1 else here[0]))
                nats.append(self.likelihood(piece.to(self.device), decoded[:, :height, :width]))
        return torch.cat(nats)

    def decode_float(self, features: Any) -> torch.Tensor:
        return self._images(self.parameters_of(features))

    def _encode(self, images: torch.Tensor) -> Symbols:
        return self.quantize(self._unit(images)).symbols

    def _decode(self, symbols: Any) -> torch.Tensor:
        images = self.decode_float(self.look_up(symbols))
        return (images.clamp(0, 1) * 255).round().to(torch.uint8)

    def _images(self, decoded: torch.Tensor) -> torch.Tensor:
        return (decoded[..., : self.channels] + 1) / 2

    def _unit(self, images: torch.Tensor) -> torch.Tensor:
        """Images on the scale 0..1, in the type of the weights."""
        dtype = next(self.parameters()).dtype
        return images.to(dtype) if images.is_floating_point() else images.to(dtype) / 255


def pad_images(images: torch.Tensor, stride: int) -> torch.Tensor:
    """``[n, h, w, c]`` in 0..1 to ``[n, c, h', w']`` in -1..1, sides extended by their edge to
    multiples of ``stride``."""
    x = (2 * images - 1).permute(0, 3, 1, 2)
    return F.pad(x, (0, -x.shape[3] % stride, 0, -x.shape[2] % stride), mode="replicate")


def fresh_quantizer(name: str, options: Mapping[str, Any], **own: Any) -> Quantizer:
    """A quantizer with a seed drawn from the global generator.

    Args:
        options: arguments of its class.
        own: arguments of the tokenizer; those its class does not take are left out.

    Raises:
        ConfigError: for an unknown name or option, or a value of the wrong type or range.
    """
    own["seed"] = int(torch.randint(2**31, (), device="cpu"))
    taken = quantizer_arguments(name)
    return create_quantizer(
        name, **({key: value for key, value in own.items() if key in taken} | dict(options))
    )

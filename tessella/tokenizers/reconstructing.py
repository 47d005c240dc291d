"""Learned tokenizers, trained to reconstruct images and optionally to assign probabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError, InputError
from tessella.grid import LN2, Grid
from tessella.tokenizers.construction import PlainValues, check_count, construct
from tessella.tokenizers.likelihood import PixelLikelihood
from tessella.tokenizers.quantizers import QUANTIZERS, Quantizer, quantizer_arguments
from tessella.tokenizers.tokenizer import (
    Symbols,
    Tokenizer,
    TokenizerOutput,
    check_images,
    eval_mode,
    images_at_once,
)

MAX_WIDTH = 2**16
"""Most channels that a convolution may have."""

MAX_BLOCKS = 1024
"""Most residual blocks that a network may have."""

MAX_WEIGHTS = 2**32
"""Most weights that a network may have: 16 GiB in float32."""

MAX_DOWNSAMPLE = 2**12
"""Largest factor by which a grid may be smaller than the image."""


@dataclass(frozen=True)
class CodebookOptions:
    """The codes of a tokenizer: how many there are, how long, and the quantizer that finds them.

    Args:
        codebook_size: number of codes K.
        code_dim: length of a code's vector.
        quantizer: a name in :data:`~tessella.tokenizers.quantizers.QUANTIZERS`; ``codebook_size``
            is passed on if it takes one.
        options: further arguments of the quantizer, such as ``{"depth": 4}``.
    """

    codebook_size: int = 512
    code_dim: int = 64
    quantizer: str = "vq-ema"
    options: Mapping[str, Any] | None = field(default_factory=dict)

    def build(self, beta: float | None = None) -> Quantizer:
        """The quantizer, with a seed drawn from the global generator.

        Args:
            beta: weight of the commitment loss; None for the quantizer's default.

        Raises:
            ConfigError: for an unknown name or option, or a value of the wrong type or range.
        """
        wanted: PlainValues = {"dim": self.code_dim, "codebook_size": self.codebook_size}
        if beta is not None:
            wanted["beta"] = beta
        # Drawn even if the quantizer takes no seed, so that later weights do not depend on this.
        wanted["seed"] = int(torch.randint(2**31, (), device="cpu"))
        # Not every quantizer has a commitment loss, or draws anything.
        known = quantizer_arguments(self.quantizer)
        arguments = {name: value for name, value in wanted.items() if name in known}
        # Options come last, since the user wrote them for this quantizer.
        arguments.update(self.options or {})
        return construct("quantizer", QUANTIZERS, self.quantizer, arguments)

    def config(self) -> PlainValues:
        """The fields as JSON values."""
        return {
            "codebook_size": self.codebook_size,
            "code_dim": self.code_dim,
            "quantizer": self.quantizer,
            "options": dict(self.options or {}),
        }


@dataclass(frozen=True)
class Quantized:
    """Features of images after quantization.

    Args:
        features: ``[n, h', w', code_dim]``, or one such tensor per grid if there are several;
            gradients pass through.
        symbols: the symbols of the images.
        losses, stats: losses and statistics of the quantizers.
    """

    features: Any
    symbols: Symbols
    losses: dict[str, torch.Tensor]
    stats: dict[str, torch.Tensor]


class ReconstructingTokenizer(Tokenizer):
    """A tokenizer that is trained to reconstruct, and may state the probability of the pixels.

    A subclass sets ``decoder``'s outputs to ``self.outputs`` and supplies what is abstract here.
    Training minimizes the quantizers' losses plus ``mse(2x - 1, decoder(e))``, over pixels on the
    scale -1..1. With ``likelihood="logistic"``, the nats per dimension of the discretized logistic
    replace the squared error.

    Args:
        image_size, channels: see :class:`~tessella.tokenizers.tokenizer.Tokenizer`.
        codes: number and length of the codes, and the quantizer.
        likelihood: ``mse`` or ``logistic``, see
            :class:`~tessella.tokenizers.likelihood.PixelLikelihood`; empty for the squared error
            without a likelihood.
    """

    decoder: nn.Module
    """Ends with the layer that makes pixels."""

    def __init__(
        self, image_size: tuple[int, int], channels: int, codes: CodebookOptions, likelihood: str
    ) -> None:
        super().__init__(image_size, channels)
        self.codes = codes
        self.likelihood = PixelLikelihood(likelihood, channels) if likelihood else None

    @abstractmethod
    def network_config(self) -> PlainValues:
        """The constructor's arguments, except image size, channels and codes, as JSON values."""

    @abstractmethod
    def quantize(self, images: torch.Tensor) -> Quantized:
        """Quantize float images ``[n, h, w, channels]`` in 0..1; in training mode codes learn."""

    @abstractmethod
    def look_up(self, symbols: Any) -> Any:
        """The features that symbols stand for; see :class:`Quantized`."""

    @abstractmethod
    def parameters_of(self, features: Any) -> torch.Tensor:
        """The output of the decoder for features: ``[n, h, w, outputs]``, not cropped.

        Means on the scale -1..1 come first.
        """

    def config(self) -> PlainValues:
        return {
            "image_size": list(self.image_size),
            "channels": self.channels,
            **self.codes.config(),
            **self.network_config(),
        }

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The convolution kernels and matrices, without those of the layer that makes pixels.

        What moves them may rely on their being hidden (see
        :class:`tessella.training.optimizers.Muon`). Those of quantizers are left out: their outputs
        are compared with codes.
        """
        apart: set[nn.Module] = set()
        for module in self.modules():
            if isinstance(module, Quantizer):
                apart.update(module.modules())
        layers: list[nn.Module] = []
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                layers.append(module)
        # The decoder's last layer has means and scales of pixels as its outputs.
        apart.add([layer for layer in layers if layer in set(self.decoder.modules())][-1])
        found: list[nn.Parameter] = []
        for layer in layers:
            if layer not in apart:
                assert isinstance(layer.weight, nn.Parameter)
                found.append(layer.weight)
        return found

    @property
    def likelihood_kind(self) -> str:
        """The constructor's ``likelihood``."""
        return "" if self.likelihood is None else self.likelihood.kind

    @property
    def outputs(self) -> int:
        """Number of values that the decoder gives per pixel."""
        return self.channels if self.likelihood is None else self.likelihood.outputs

    @property
    def lossless(self) -> bool:
        """False: images come back as reconstructions."""
        return False

    def forward(self, images: torch.Tensor) -> TokenizerOutput:
        """A pass over a batch; in training mode the codebook learns from it.

        Args:
            images: ``[n, h, w, channels]``, uint8, or floats in 0..1.

        Returns:
            the reconstruction, and as losses ``loss`` (to optimize), ``mse`` of the reconstruction
            on the scale 0..1, those of the quantizer, and with a likelihood ``pixel_bits``:
            bits/dim of the pixels given their codes.
        """
        target = self._unit(images)  # [n, h, w, c] in 0..1
        quantized = self.quantize(target)
        # [n, h, w, outputs], cropped to the image, since the padding has no target.
        decoded = self.parameters_of(quantized.features)[:, : target.shape[1], : target.shape[2]]
        reconstruction = self._images(decoded)
        mse = F.mse_loss(reconstruction.to(target.dtype), target)
        loss = 0 * mse
        if quantized.losses:
            loss = torch.stack(list(quantized.losses.values())).sum()
        if self.likelihood_kind in ("", "mse"):
            # On the scale -1..1 errors are twice as large, and squares four times.
            loss = loss + 4 * mse
        losses = {"loss": loss}
        if self.likelihood is not None:
            dimensions = target[0].numel()
            # Images that were given as floats are rounded to the integers they stand for.
            nats = -self.likelihood((target * 255).round(), decoded).mean() / dimensions
            loss = loss + nats
            losses["pixel_bits"] = nats.detach() / LN2
        losses["loss"] = loss
        # Figures to log: only the sum has a gradient.
        losses["mse"] = mse.detach()
        for name, value in quantized.losses.items():
            losses[name] = value.detach()
        return TokenizerOutput(reconstruction, quantized.symbols, losses, quantized.stats)

    @torch.no_grad()
    def log_likelihood(self, images: object, symbols: object) -> torch.Tensor:
        """Log-probability in nats of images given symbols: ``[n]``, on this tokenizer's device.

        If a prior assigns a probability to the symbols from :meth:`encode`, then ``-log2 p(symbols)
        - log2 p(images | symbols)`` is an upper bound on the bits of the images under the two-stage
        model: other symbols could only add to their probability.

        Args:
            images: uint8 ``[n, h, w, channels]``.
            symbols: the result of :meth:`encode` for images of this size.

        Raises:
            InputError: when the tokenizer has no likelihood, or images and symbols do not fit each
                other.
        """
        if self.likelihood is None:
            raise InputError(
                f"this {self.name} has no likelihood of pixels: train one with likelihood='mse' "
                "or 'logistic' (in a recipe tokenizer.likelihood)"
            )
        checked = check_images(images, self.channels)
        codes = self._check_symbols(symbols)
        height, width = self._size_of(codes, (checked.shape[1], checked.shape[2]))
        if len(codes[0]) != len(checked):
            raise InputError(
                f"give the symbols of all images: got {len(checked)} images and the symbols of "
                f"{len(codes[0])}"
            )
        at_once = images_at_once(height * width)
        nats: list[torch.Tensor] = []
        with eval_mode(self):
            pieces = zip(checked.split(at_once), self._pieces(codes, at_once), strict=True)
            for piece, symbols_of_piece in pieces:
                decoded = self.parameters_of(self.look_up(symbols_of_piece))
                cropped = decoded[:, :height, :width]
                nats.append(self.likelihood(piece.to(self.device), cropped))
        return torch.cat(nats)

    def decode_float(self, features: Any) -> torch.Tensor:
        return self._images(self.parameters_of(features))

    def _encode(self, images: torch.Tensor) -> Symbols:
        return self.quantize(self._unit(images)).symbols

    def _decode(self, symbols: Any) -> torch.Tensor:
        images = self.decode_float(self.look_up(symbols))
        # A decoder can exceed the scale, and the conversion to uint8 would wrap around.
        return (images.clamp(0, 1) * 255).round().to(torch.uint8)

    def _images(self, decoded: torch.Tensor) -> torch.Tensor:
        """The means in the decoder's output, converted from the scale -1..1 to 0..1."""
        return (decoded[..., : self.channels] + 1) / 2

    def _unit(self, images: torch.Tensor) -> torch.Tensor:
        """Images on the scale 0..1, in the type of the weights."""
        dtype = next(self.parameters()).dtype
        return images.to(dtype) if images.is_floating_point() else images.to(dtype) / 255


class SingleGridTokenizer(ReconstructingTokenizer):
    """A tokenizer with one quantizer, and so with one grid.

    A subclass sets ``quantizer`` and supplies its networks.
    """

    quantizer: Quantizer

    def grids(self, height: int | None = None, width: int | None = None) -> tuple[Grid, ...]:
        """One grid of ``ceil(height / stride)`` by ``ceil(width / stride)`` codes."""
        height, width = self._size(height, width)
        # Rounded up: the last cells may extend beyond the image.
        rows = -(-height // self.stride)
        columns = -(-width // self.stride)
        return (Grid(rows, columns, self.quantizer.depth, self.quantizer.levels),)

    def quantize(self, images: torch.Tensor) -> Quantized:
        out = self.quantizer(self.encode_float(images))  # of vectors [n, h', w', code_dim]
        return Quantized(out.z, out.symbols, out.losses, out.stats)

    def look_up(self, symbols: torch.Tensor) -> torch.Tensor:
        return self.quantizer.decode(symbols)


def pad_images(images: torch.Tensor, stride: int) -> torch.Tensor:
    """``[n, h, w, c]`` in 0..1 to ``[n, c, h', w']`` in -1..1.

    Sides are padded to multiples of ``stride`` by repeating the last row and column.
    """
    x = (2 * images - 1).permute(0, 3, 1, 2)
    # Repeated edges look like images; zeros would be a grey border that wastes codes.
    return F.pad(x, (0, -x.shape[3] % stride, 0, -x.shape[2] % stride), mode="replicate")


def check_downsample(downsample: int, least: int) -> int:
    """How often ``downsample`` halves height and width: its base-2 logarithm.

    Raises:
        ConfigError: when it is not a power of two, below ``least``, or too large.
    """
    check_count("downsample", downsample, least, MAX_DOWNSAMPLE)
    # A power of two has one bit set.
    if downsample & (downsample - 1):
        raise ConfigError(f"downsample must be a power of two, got {downsample}")
    return downsample.bit_length() - 1


def check_weights(width: int, layers: int) -> None:
    """Refuse a network that is too large to be intended, before it is built.

    Args:
        width: channels of its widest convolution.
        layers: number of its convolutions, whose kernels are 4x4 at most.

    Raises:
        ConfigError: when it might have more than 2^32 weights.
    """
    # A bound that needs no network: as if all convolutions were as wide as the widest.
    most = 16 * width**2 * layers
    if most > MAX_WEIGHTS:
        raise ConfigError(
            f"these sizes make {layers} convolutions of up to {width} channels, which may need "
            f"{most:,} weights; at most {MAX_WEIGHTS:,} are allowed: take fewer channels or blocks"
        )

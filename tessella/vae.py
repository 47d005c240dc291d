"""A variational autoencoder: the continuous peer of a VQ-VAE.

It has latents that are real numbers, so it makes no codes, and no exact likelihood: what it states
are lower bounds of log-probabilities of images, in the units of every other model here (Kingma and
Welling 2014; Rezende et al. 2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, TypedDict, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError, InputError, check_integer
from tessella.grid import LN2, Grid
from tessella.names import check_sizes
from tessella.nn.outline import IN_PARTS, build_within_memory, check_drawn
from tessella.nn.pretrained import Pretrained
from tessella.noise import check_seed
from tessella.tokenizers.autoencoder import Decoder, Encoder
from tessella.tokenizers.construction import construct
from tessella.tokenizers.identity import IdentityTokenizer
from tessella.tokenizers.images import Images
from tessella.tokenizers.likelihood import INITIAL_LOG_SCALE, discretized_logistic
from tessella.tokenizers.reconstructing import pad_images
from tessella.tokenizers.tokenizer import check_images, eval_mode, images_at_once

SAMPLES = 16
"""Samples of the latents of each image in a bound unless another number is given."""

BATCH = 256
"""Images drawn at a time unless another number is given."""

LOG_VARIANCES = (-14.0, 6.0)
"""Least and greatest log-variance of a latent given an image."""


class VAE(Pretrained, nn.Module):
    """Images from Gaussian latents.

    ``p(x) = integral of p(x | z) N(z; 0, I) dz``, and ``q(z | x)`` is a diagonal Gaussian. Given
    latents, sub-pixels are independent: logistics integrated over the bins of the levels, with mean
    and scale of each from the decoder (a Bernoulli at two levels). Training maximizes :meth:`elbo`.

    Args:
        image_size: height and width of the images.
        channels: colour channels, 1 to 4.
        levels: values of a sub-pixel, 2 to 256; see
            :class:`~tessella.tokenizers.identity.IdentityTokenizer`.
        hidden: channels of the convolutions at the lowest resolution.
        latent: latents at each place of the grid, or of the image.
        downsample: pixels along each side of a place of the grid: a power of two.
        residual_blocks: in the encoder, and in the decoder.
        shape: latents on a ``grid``, or one ``vector`` for an image.

    Raises:
        ConfigError: when an argument is out of range.

    >>> vae = create_vae(image_size=(8, 8), channels=1, hidden=8, latent=2)
    >>> vae.sample(3, seed=0).shape, vae.bound(vae.sample(3, seed=0), samples=4).shape
    (torch.Size([3, 8, 8, 1]), torch.Size([3]))
    """

    name = "vae"
    kind = "vae"

    def __init__(
        self,
        image_size: tuple[int, int] = (32, 32),
        channels: int = 3,
        levels: int = 256,
        hidden: int = 128,
        latent: int = 32,
        downsample: int = 4,
        residual_blocks: int = 2,
        shape: Literal["grid", "vector"] = "grid",
    ) -> None:
        super().__init__()
        if downsample < 1 or downsample & (downsample - 1):
            raise ConfigError(f"downsample must be a power of two, got {downsample}")
        if hidden < 2 or residual_blocks < 0 or latent < 1 or shape not in ("grid", "vector"):
            raise ConfigError(
                "hidden must be at least 2, latent at least 1, residual_blocks at least 0 and "
                "shape 'grid' or 'vector', "
                f"got {hidden}, {latent}, {residual_blocks} and {shape!r}"
            )
        self.pixels = IdentityTokenizer(image_size, channels, levels)
        self.image_size = self.pixels.image_size
        self.channels = channels
        self.levels = levels
        self.hidden = hidden
        self.latent = latent
        self.downsample = downsample
        self.residual_blocks = residual_blocks
        self.shape: Literal["grid", "vector"] = shape
        # Height and width of the grid of latents; sides that do not divide are rounded up.
        self._places = [-(-side // downsample) for side in image_size]
        stages = downsample.bit_length() - 1
        # A mean and a log-scale of each sub-pixel; at two levels one logit.
        outputs = 2 * channels
        if levels == 2:
            outputs = channels
        self.to_vector: nn.Linear | None = None
        self.from_vector: nn.Linear | None = None
        if shape == "grid":
            # Mean and log-variance of each latent come straight from the convolutions.
            self.encoder = Encoder(channels, hidden, 2 * latent, stages, residual_blocks)
            self.decoder = Decoder(outputs, hidden, latent, stages, residual_blocks)
        else:
            self.encoder = Encoder(channels, hidden, hidden, stages, residual_blocks)
            self.decoder = Decoder(outputs, hidden, hidden, stages, residual_blocks)
            features = hidden * math.prod(self._places)
            self.to_vector = nn.Linear(features, 2 * latent)
            self.from_vector = nn.Linear(latent, features)

    @property
    def grid(self) -> Grid:
        """The grid of the pixels."""
        return self.pixels.grid()

    @property
    def image_grid(self) -> Grid:
        """The images as a grid of pixels with 256 levels."""
        return Grid(*self.image_size, self.channels, 256)

    @property
    def tokenizer(self) -> IdentityTokenizer:
        """Makes symbols of pixels, which are what this model describes."""
        return self.pixels

    def components(self) -> dict[str, nn.Module]:
        """The networks to save, by role."""
        return {"model": self}

    def __repr__(self) -> str:
        height, width = self.image_size
        count = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"VAE({height}x{width}x{self.channels} images of {self.levels} levels, "
            f"latents={list(self.latent_shape)}, hidden={self.hidden}, "
            f"parameters={count:,}, device={self.device})"
        )

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latents of an image."""
        if self.shape == "vector":
            return (self.latent,)
        return (*self._places, self.latent)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def config(self) -> VAEArguments:
        """The constructor's arguments as JSON values: ``create_vae(**config)`` rebuilds it."""
        return {
            "image_size": list(self.image_size),
            "channels": self.channels,
            "levels": self.levels,
            "hidden": self.hidden,
            "latent": self.latent,
            "downsample": self.downsample,
            "residual_blocks": self.residual_blocks,
            "shape": self.shape,
        }

    def encode_float(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance of ``q(z | x)``.

        Args:
            images: float ``[n, h, w, channels]`` in 0..1.

        Returns:
            ``[n, *latent_shape]`` twice.
        """
        # [n, h, w, c] -> [n, features, h', w']
        x = self.encoder(pad_images(images.to(self._dtype), self.downsample))
        # Channels last, so that both shapes of latents are halved along the last axis.
        if self.to_vector is None:
            both = x.permute(0, 2, 3, 1)
        else:
            both = self.to_vector(F.relu(x).flatten(1))
        mean, log_variance = both.chunk(2, dim=-1)
        # Bounds keep the divergence finite in the first steps of training.
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def decode_float(self, latents: torch.Tensor) -> torch.Tensor:
        """The means of images.

        Args:
            latents: ``[n, *latent_shape]``.

        Returns:
            ``[n, h, w, channels]`` on the scale 0..1, not clamped.
        """
        return self._mean(self.pixel_parameters(latents))

    def pixel_parameters(self, latents: torch.Tensor) -> torch.Tensor:
        """The parameters of ``p(x | z)``.

        Args:
            latents: ``[n, *latent_shape]``.

        Returns:
            ``[n, h, w, outputs]``: means and log-scales (from ``INITIAL_LOG_SCALE``) on the axis
            where the levels span [-1, 1], or logits at two levels.
        """
        z = latents.to(self._dtype)
        # [n, latent] -> [n, h', w', hidden]
        if self.from_vector is not None:
            z = self.from_vector(z).view(-1, *self._places, self.hidden)
        height, width = self.image_size
        # The grid of latents may cover more than the image.
        return self.decoder(z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[:, :height, :width]

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The two parts of the evidence lower bound of images.

        Args:
            images: uint8 ``[n, h, w, channels]``.
            noise: standard normal ``[n, *latent_shape]``; None draws it from torch's generator.

        Returns:
            ``log p(x | z)`` at one ``z`` of ``q(z | x)``, and the exact divergence
            ``KL(q(z | x) || p(z))``: nats ``[n]`` each.
        """
        # int64 [n, h, w, c]
        symbols = self._symbols(images)
        mean, log_variance = self._posterior(symbols)
        if noise is None:
            noise = torch.randn_like(mean)
        noise = noise.to(mean)
        # z = m + s * noise, so that gradients reach mean and variance.
        latents = mean + noise * (log_variance / 2).exp()
        pixels = self._log_likelihood(symbols, latents)
        # KL(N(m, v) || N(0, 1)) = (m^2 + v - 1 - log v) / 2, summed over latents.
        divergence = (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).sum(1) / 2
        return pixels, divergence

    @torch.no_grad()
    def elbo(self, images: object, seed: int = 0) -> torch.Tensor:
        """The evidence lower bound of log-probabilities: nats ``[n]``.

        It takes one sample of the latents of each image, and the exact divergence. Image ``i`` has
        noise of the seed ``seed + i``.
        """
        images = self._checked(images, seed)
        nats = [torch.zeros(0, device=self.device)]
        with eval_mode(self):
            for first, piece in self._pieces(images, 1):
                pixels, divergence = self(piece, self._noise(len(piece), seed + first).squeeze(1))
                nats.append(pixels - divergence)
        return torch.cat(nats)

    @torch.no_grad()
    def bound(self, images: object, samples: int = SAMPLES, seed: int = 0) -> torch.Tensor:
        """The importance-weighted lower bound of log-probabilities: nats ``[n]``.

        It is equation 8 of Burda et al. 2016. In expectation it grows with ``samples``, towards the
        log-probability. Image ``i`` has noise of the seed ``seed + i``, of which more samples take
        more.

        Args:
            images: uint8 ``[n, h, w, channels]``.
            samples: of the latents of each image.

        Raises:
            InputError: for other images, a seed out of range, or no samples.
        """
        check_integer("samples", samples, least=1)
        images = self._checked(images, seed)
        nats = [torch.zeros(0, device=self.device)]
        with eval_mode(self):
            # All samples of a piece pass through the networks together.
            for first, piece in self._pieces(images, samples):
                symbols = self._symbols(piece)
                mean, log_variance = self._posterior(symbols)
                # All samples of an image follow each other: [n * samples, ...].
                mean = mean.repeat_interleave(samples, 0)
                log_variance = log_variance.repeat_interleave(samples, 0)
                noise = self._noise(len(piece), seed + first, samples).flatten(0, 1).to(mean)
                latents = mean + noise * (log_variance / 2).exp()
                # log p(z) - log q(z | x); the normalizers of both Gaussians cancel.
                ratio = ((noise**2 - latents**2 + log_variance) / 2).flatten(1).sum(1)
                pixels = self._log_likelihoods(symbols.repeat_interleave(samples, 0), latents)
                # log of the mean over samples of p(x | z) p(z) / q(z | x)
                weights = (pixels + ratio).double().view(-1, samples)
                nats.append((weights.logsumexp(1) - math.log(samples)).float())
        return torch.cat(nats)

    def bits_per_dim(self, images: object, samples: int = SAMPLES, seed: int = 0) -> torch.Tensor:
        """:meth:`bound` as an upper bound of bits per sub-pixel: ``[n]``."""
        return -self.bound(images, samples, seed) / LN2 / self.grid.symbols

    @torch.no_grad()
    def reconstruct(self, images: object) -> Images:
        """Images through the latents and back: ``uint8 [n, h, w, channels]``.

        Latents are the means of ``q(z | x)``, pixels those of ``p(x | z)``.
        """
        images = self._checked(images)
        pieces = [images[:0].to(self.device)]
        with eval_mode(self):
            for _, piece in self._pieces(images, 1):
                mean, _ = self._posterior(self._symbols(piece))
                pieces.append(self._pixels(self.pixel_parameters(mean)))
        return Images.of(torch.cat(pieces))

    def sample(
        self,
        n: int = 16,
        seed: int = 0,
        batch: int = BATCH,
        start: int = 0,
        *,
        watch: Callable[[float], object] | None = None,
        pixels: Literal["mean", "draw"] = "mean",
    ) -> Images:
        """Draw images: ``uint8 [n, h, w, channels]``. Arguments as of :meth:`batches`."""
        count = check_integer("n", n, least=1) - check_integer("start", start)
        check_drawn(count, self.image_grid.symbols, IN_PARTS)
        batches = self.batches(n, seed, batch, start, watch=watch, pixels=pixels)
        return Images.of(torch.cat(list(batches)))

    @torch.no_grad()
    def batches(
        self,
        n: int = 16,
        seed: int = 0,
        batch: int = BATCH,
        start: int = 0,
        *,
        watch: Callable[[float], object] | None = None,
        pixels: Literal["mean", "draw"] = "mean",
    ) -> Iterator[torch.Tensor]:
        """Draw images batch by batch.

        Args:
            n, seed: image ``i`` of ``n`` depends on ``seed + i``.
            batch: images drawn at a time.
            start: the first image to draw.
            watch: called with the number of images drawn so far.
            pixels: ``mean``, the likely image of the drawn latents; ``draw``, every sub-pixel drawn
                too, which is a sample of ``p(x)`` and has its noise.

        Raises:
            InputError: for an argument that does not fit.
        """
        check_integer("n", n, least=1)
        check_integer("batch", batch, least=1)
        check_integer("start", start, 0, n - 1)
        if pixels not in ("mean", "draw"):
            raise InputError(f"pixels must be 'mean' or 'draw', got {pixels!r}")
        check_seed(seed, n)
        for first in range(start, n, batch):
            places = range(seed + first, seed + min(first + batch, n))
            with eval_mode(self):
                latents = self._noise(len(places), places.start).squeeze(1)
                parameters = self.pixel_parameters(latents)
            uniform = None
            if pixels == "draw":
                uniform = _uniform(places, self.grid.shape)
            yield self._pixels(parameters, uniform)
            if watch is not None:
                watch(places.stop - seed)

    def _symbols(self, images: torch.Tensor) -> torch.Tensor:
        """Symbols ``int64 [n, h, w, channels]`` of uint8 images, on this model's device."""
        return self.pixels.encode(images)

    def _posterior(self, symbols: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.encode_float(symbols.to(self._dtype) / (self.levels - 1))

    def _log_likelihood(self, symbols: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Nats ``[n]`` of symbols given latents, in float32 or wider."""
        parameters = self.pixel_parameters(latents)
        # Differences of nearly equal tails need at least the 24 bits of float32.
        wide = parameters
        if parameters.dtype != torch.float64:
            wide = parameters.float()
        if self.levels == 2:
            nats = -F.binary_cross_entropy_with_logits(wide, symbols.to(wide), reduction="none")
        else:
            mean, log_scale = wide.chunk(2, dim=-1)
            nats = discretized_logistic(symbols, mean, log_scale + INITIAL_LOG_SCALE, self.levels)
        return nats.flatten(1).sum(1)

    def _log_likelihoods(self, symbols: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """:meth:`_log_likelihood` in pieces, in the memory of one."""
        each = images_at_once(self.grid.height * self.grid.width)
        nats = []
        for x, z in zip(symbols.split(each), latents.split(each), strict=True):
            nats.append(self._log_likelihood(x, z))
        return torch.cat(nats)

    def _mean(self, parameters: torch.Tensor) -> torch.Tensor:
        """Means of sub-pixels, on the scale 0..1."""
        if self.levels == 2:
            return torch.sigmoid(parameters)
        return (parameters[..., : self.channels] + 1) / 2

    def _pixels(
        self, parameters: torch.Tensor, uniform: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Images ``uint8 [n, h, w, channels]`` of their parameters.

        Each sub-pixel is the level nearest to its mean, or drawn where uniform numbers
        ``[n, h, w, channels]`` are given.
        """
        # Double: the nearest level must not depend on rounding.
        values = self._mean(parameters).double()
        if uniform is not None:
            u = uniform.to(values)
            if self.levels == 2:
                values = (u < values).double()
            else:
                # The inverse of the logistic distribution; halved, as [-1, 1] becomes [0, 1].
                log_scale = parameters[..., self.channels :].double() + INITIAL_LOG_SCALE
                values = values + log_scale.exp() * torch.logit(u) / 2
        symbols = (values.clamp(0, 1) * (self.levels - 1)).round().long()
        return self.pixels.decode(symbols, self.image_size)

    def _noise(self, n: int, seed: int, samples: int = 1) -> torch.Tensor:
        """Standard normal numbers ``[n, samples, *latent_shape]``.

        Row ``i`` is made of ``seed + i`` alone, and begins alike however many samples it has.
        """
        rows = []
        for i in range(n):
            generator = np.random.Generator(np.random.Philox(key=seed + i))
            rows.append(generator.standard_normal((samples, *self.latent_shape), np.float32))
        return torch.from_numpy(np.stack(rows)).to(self.device)

    def _checked(self, images: object, seed: int = 0) -> torch.Tensor:
        images = check_images(images, self.channels)
        if tuple(images.shape[1:3]) != self.image_size:
            raise InputError(
                f"the model takes images of {self.image_size[0]}x{self.image_size[1]}, "
                f"got {images.shape[1]}x{images.shape[2]}"
            )
        # An empty batch has no last seed to check.
        check_seed(seed, max(1, len(images)))
        return images

    def _pieces(self, images: torch.Tensor, samples: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Images that pass through the networks at once, and where they begin."""
        # Each image counts as many times as it has samples.
        each = images_at_once(self.grid.height * self.grid.width * samples)
        for first in range(0, len(images), each):
            yield first, images[first : first + each]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class VAEArguments(TypedDict, total=False):
    """Arguments of :class:`VAE`."""

    image_size: tuple[int, int] | list[int]
    channels: int
    levels: int
    hidden: int
    latent: int
    downsample: int
    residual_blocks: int
    shape: Literal["grid", "vector"]


def create_vae(*, seed: int = 0, **config: Unpack[VAEArguments]) -> VAE:
    """Build a VAE with fresh weights, in eval mode.

    Args:
        seed: of the weights; the global generator is left alone.
        config: the arguments of :class:`VAE`.

    Raises:
        ConfigError: for an unknown argument (the known ones are listed), or a value of the wrong
            type or range.
    """
    check_sizes("", config)

    def build() -> VAE:
        torch.default_generator.manual_seed(seed)
        return construct("model", {"vae": VAE}, "vae", config)

    with torch.random.fork_rng(devices=[]):
        return build_within_memory(build).eval()


def _uniform(seeds: range, shape: tuple[int, ...]) -> torch.Tensor:
    """Uniform numbers inside (0, 1), ``[len(seeds), *shape]``, each row of its seed."""
    rows = []
    for seed in seeds:
        # Seeds have 64 bits: the next bit of the key sets these numbers apart from the latents'.
        generator = np.random.Philox(key=seed + (1 << 64))
        words = generator.random_raw(math.prod(shape)) >> np.uint64(12)
        # 52 bits and a half: neither 0 nor 1, whose logits are infinite.
        rows.append((words.astype(np.float64) + 0.5) * 2.0**-52)
    return torch.from_numpy(np.stack(rows).reshape(-1, *shape))

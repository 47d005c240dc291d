"""A variational autoencoder (Kingma and Welling 2014; Rezende et al. 2014): the continuous peer of
a VQ-VAE.

It is no tokenizer, since its latents are real numbers, and no density model whose likelihood is
exact: what it states are lower bounds of log-probabilities of images, in the units of every other
model here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError, InputError
from tessella.grid import LN2, Grid
from tessella.noise import check_seed
from tessella.tokenizers.autoencoder import Decoder, Encoder
from tessella.tokenizers.construction import construct
from tessella.tokenizers.identity import IdentityTokenizer
from tessella.tokenizers.likelihood import START, discretized_logistic
from tessella.tokenizers.reconstructing import pad_images
from tessella.tokenizers.tokenizer import check_images, evaluating, images_at_once

SAMPLES = 16
"""Samples of the latents of each image in a bound, unless told otherwise."""

BATCH = 256
"""Images drawn at a time unless another number is given."""

LOG_VARIANCES = (-14.0, 6.0)
"""Least and largest log-variance of a latent given an image."""


class VAE(nn.Module):
    """Images from Gaussian latents: ``p(x) = integral of p(x | z) N(z; 0, I)``, with ``q(z | x)`` a
    diagonal Gaussian.

    Given latents, sub-pixels are independent: logistics integrated over the bins of the levels,
    with mean and scale of each from the decoder (a Bernoulli at two levels). Training maximizes
    :meth:`elbo`.

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
                "hidden must be at least 2, latent at least 1, residual_blocks at least 0 and shape 'grid' or "
                f"'vector', got {hidden}, {latent}, {residual_blocks} and {shape!r}"
            )
        self.pixels = IdentityTokenizer(image_size, channels, levels)
        self.image_size, self.channels, self.levels = self.pixels.image_size, channels, levels
        self.hidden, self.latent, self.downsample, self.shape = hidden, latent, downsample, shape
        self.residual_blocks = residual_blocks
        stages, self._places = (
            downsample.bit_length() - 1,
            [-(-side // downsample) for side in image_size],
        )
        of_grid = 2 * latent if shape == "grid" else hidden
        self.encoder = Encoder(channels, hidden, of_grid, stages, residual_blocks)
        outputs = channels if levels == 2 else 2 * channels
        self.decoder = Decoder(
            outputs, hidden, latent if shape == "grid" else hidden, stages, residual_blocks
        )
        flat = hidden * math.prod(self._places)
        self.to_vector = nn.Linear(flat, 2 * latent) if shape == "vector" else None
        self.from_vector = nn.Linear(latent, flat) if shape == "vector" else None

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
        return (self.latent,) if self.shape == "vector" else (*self._places, self.latent)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values: ``create_vae(**config)`` rebuilds it."""
        names = ("channels", "levels", "hidden", "latent", "downsample", "residual_blocks", "shape")
        return {"image_size": list(self.image_size)} | {name: getattr(self, name) for name in names}

    def encode_float(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float images ``[n, h, w, channels]`` in 0..1 to mean and log-variance of ``q(z | x)``:
        ``[n, *latent_shape]`` each."""
        x = self.encoder(pad_images(images.to(self._dtype), self.downsample))
        told = (
            x.permute(0, 2, 3, 1)
            if self.to_vector is None
            else self.to_vector(F.relu(x).flatten(1))
        )
        mean, log_variance = told.chunk(2, dim=-1)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def decode_float(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents ``[n, *latent_shape]`` to the means of images: ``[n, h, w, channels]`` on the
        scale 0..1, not clamped."""
        return self._mean(self.parameters_of(latents))

    def parameters_of(self, latents: torch.Tensor) -> torch.Tensor:
        """The parameters of ``p(x | z)`` for ``[n, *latent_shape]``: ``[n, h, w, outputs]``, means
        and log-scales (from ``START``) on the axis where the levels span [-1, 1], or logits at two
        levels."""
        z = latents.to(self._dtype)
        if self.from_vector is not None:
            z = self.from_vector(z).view(-1, *self._places, self.hidden)
        height, width = self.image_size
        return self.decoder(z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[:, :height, :width]

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The two parts of the evidence lower bound of images, in nats: ``log p(x | z)`` at one
        ``z`` of ``q(z | x)``, and the divergence ``KL(q(z | x) || p(z))`` exactly: ``[n]`` each.

        Args:
            images: uint8 ``[n, h, w, channels]``.
            noise: standard normal ``[n, *latent_shape]``; None draws it from torch's generator.
        """
        symbols = self._symbols(images)
        mean, log_variance = self._posterior(symbols)
        noise = torch.randn_like(mean) if noise is None else noise.to(mean)
        pixels = self._log_likelihood(symbols, mean + noise * (log_variance / 2).exp())
        divergence = (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).sum(1) / 2
        return pixels, divergence

    @torch.no_grad()
    def elbo(self, images: Any, seed: int = 0) -> torch.Tensor:
        """The evidence lower bound of log-probabilities, with one sample of the latents and the
        exact divergence: nats ``[n]``. Image ``i`` has noise of the seed ``seed + i``."""
        images = self._checked(images, seed)
        nats = [torch.zeros(0, device=self.device)]
        with evaluating(self):
            for first, piece in self._pieces(images, 1):
                pixels, divergence = self(piece, self._noise(len(piece), seed + first).squeeze(1))
                nats.append(pixels - divergence)
        return torch.cat(nats)

    @torch.no_grad()
    def bound(self, images: Any, samples: int = SAMPLES, seed: int = 0) -> torch.Tensor:
        """The importance-weighted lower bound of log-probabilities (Burda et al. 2016, eq. 8): nats
        ``[n]``.

        In expectation it grows with ``samples``, towards the log-probability. Image ``i`` has noise
        of the seed ``seed + i``, of which more samples take more.

        Args:
            images: uint8 ``[n, h, w, channels]``.
            samples: of the latents of each image.

        Raises:
            InputError: for other images, a seed out of range, or no samples.
        """
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise InputError(f"samples must be a positive integer, got {samples!r}")
        images = self._checked(images, seed)
        nats = [torch.zeros(0, device=self.device)]
        with evaluating(self):
            for first, piece in self._pieces(images, samples):
                symbols = self._symbols(piece)
                mean, log_variance = (
                    part.repeat_interleave(samples, 0) for part in self._posterior(symbols)
                )
                noise = self._noise(len(piece), seed + first, samples).flatten(0, 1).to(mean)
                latents = mean + noise * (log_variance / 2).exp()
                # log p(z) - log q(z | x); the normalizers of both Gaussians cancel.
                ratio = ((noise**2 - latents**2 + log_variance) / 2).flatten(1).sum(1)
                each = images_at_once(self.grid.height * self.grid.width)
                pieces = zip(
                    symbols.repeat_interleave(samples, 0).split(each),
                    latents.split(each),
                    strict=True,
                )
                pixels = torch.cat([self._log_likelihood(x, z) for x, z in pieces])
                weights = (pixels + ratio).double().view(-1, samples)
                nats.append((weights.logsumexp(1) - math.log(samples)).float())
        return torch.cat(nats)

    def bits_per_dim(self, images: Any, samples: int = SAMPLES, seed: int = 0) -> torch.Tensor:
        """:meth:`bound` as an upper bound of bits per sub-pixel: ``[n]``."""
        return -self.bound(images, samples, seed) / LN2 / self.grid.symbols

    @torch.no_grad()
    def reconstruct(self, images: Any) -> torch.Tensor:
        """Images through the means of ``q(z | x)`` and of ``p(x | z)``:
        ``uint8 [n, h, w, channels]``."""
        images = self._checked(images)
        with evaluating(self):
            pieces = [
                self._pixels(self.parameters_of(self._posterior(self._symbols(piece))[0]))
                for _, piece in self._pieces(images, 1)
            ]
        return torch.cat(pieces) if pieces else images.to(self.device)

    def sample(
        self,
        n: int = 16,
        seed: int = 0,
        batch: int = BATCH,
        start: int = 0,
        *,
        watch: Callable[[float], object] | None = None,
        pixels: Literal["mean", "draw"] = "mean",
    ) -> torch.Tensor:
        """Draw images: ``uint8 [n, h, w, channels]``. Arguments as of :meth:`batches`."""
        return torch.cat(list(self.batches(n, seed, batch, start, watch=watch, pixels=pixels)))

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
        if min(n, batch) < 1 or not 0 <= start < n or pixels not in ("mean", "draw"):
            raise InputError(
                "n and batch must be at least 1, start lie in 0..n - 1, pixels be 'mean' or 'draw', "
                f"got {n}, {batch}, {start} and {pixels!r}"
            )
        check_seed(seed, n)
        for first in range(start, n, batch):
            places = range(seed + first, seed + min(first + batch, n))
            with evaluating(self):
                parameters = self.parameters_of(self._noise(len(places), places.start).squeeze(1))
            uniform = _uniform(places, self.grid.shape) if pixels == "draw" else None
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
        parameters = self.parameters_of(latents)
        wide = parameters if parameters.dtype == torch.float64 else parameters.float()
        if self.levels == 2:
            return (
                -F.binary_cross_entropy_with_logits(wide, symbols.to(wide), reduction="none")
                .flatten(1)
                .sum(1)
            )
        mean, log_scale = wide.chunk(2, dim=-1)
        return discretized_logistic(symbols, mean, log_scale + START, self.levels).flatten(1).sum(1)

    def _mean(self, parameters: torch.Tensor) -> torch.Tensor:
        """Means of sub-pixels, on the scale 0..1."""
        return (
            torch.sigmoid(parameters)
            if self.levels == 2
            else (parameters[..., : self.channels] + 1) / 2
        )

    def _pixels(
        self, parameters: torch.Tensor, uniform: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Uint8 images: the level nearest to the mean, or drawn where uniform numbers
        ``[n, h, w, channels]`` are given."""
        values = self._mean(parameters).double()
        if uniform is not None:
            u = uniform.to(values)
            if self.levels == 2:
                values = (u < values).double()
            else:
                log_scale = parameters[..., self.channels :].double() + START
                values = values + log_scale.exp() * torch.logit(u) / 2
        return self.pixels.decode(
            (values.clamp(0, 1) * (self.levels - 1)).round().long(), self.image_size
        )

    def _noise(self, n: int, seed: int, samples: int = 1) -> torch.Tensor:
        """Standard normal numbers ``[n, samples, *latent_shape]``: row ``i`` is made of
        ``seed + i`` alone, and begins alike however many samples it has."""
        drawn = [
            np.random.Generator(np.random.Philox(key=seed + i)).standard_normal(
                (samples, *self.latent_shape), np.float32
            )
            for i in range(n)
        ]
        return torch.from_numpy(np.stack(drawn)).to(self.device)

    def _checked(self, images: Any, seed: int = 0) -> torch.Tensor:
        images = check_images(images, self.channels)
        if tuple(images.shape[1:3]) != self.image_size:
            raise InputError(
                f"the model takes images of {self.image_size[0]}x{self.image_size[1]}, "
                f"got {images.shape[1]}x{images.shape[2]}"
            )
        check_seed(seed, max(1, len(images)))
        return images

    def _pieces(self, images: torch.Tensor, samples: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Images that pass through the networks at once, and where they begin."""
        each = images_at_once(self.grid.height * self.grid.width * samples)
        for first in range(0, len(images), each):
            yield first, images[first : first + each]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


def create_vae(*, seed: int = 0, **config: Any) -> VAE:
    """Build a VAE with fresh weights, in eval mode.

    Args:
        seed: of the weights; the global generator is left alone.
        config: what :class:`VAE` takes.

    Raises:
        ConfigError: for an unknown argument (the known ones are listed), or a value of the wrong
            type or range.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return construct("model", {"vae": VAE}, "vae", config).eval()


def _uniform(seeds: range, shape: tuple[int, ...]) -> torch.Tensor:
    """Uniform numbers inside (0, 1) ``[len(seeds), *shape]``, each row of its seed; apart from
    those of the latents."""
    drawn = []
    for seed in seeds:
        words = np.random.Philox(key=seed + (1 << 64)).random_raw(math.prod(shape)) >> np.uint64(12)
        drawn.append((words.astype(np.float64) + 0.5) * 2.0**-52)
    return torch.from_numpy(np.stack(drawn).reshape(-1, *shape))

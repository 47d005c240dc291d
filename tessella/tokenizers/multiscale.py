"""A VQGAN whose codes are grids of several scales, coarse to fine (Tian et al. 2024, "VAR").

Each scale has codes for what the coarser ones left of the features: the residual is pooled to the
size of the scale, every vector becomes its nearest code, and the codes, enlarged to the full size,
are subtracted (algorithms 1 and 2). All scales share one codebook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.nn.scales import enlarged, pooled
from tessella.tokenizers.construction import PlainValues, check_count
from tessella.tokenizers.convnet import DeepDecoder, DeepEncoder, DeepOptions
from tessella.tokenizers.quantizers.vq import GradientVectorQuantizer
from tessella.tokenizers.reconstructing import (
    MAX_DOWNSAMPLE,
    CodebookOptions,
    Quantized,
    ReconstructingTokenizer,
    pad_images,
)
from tessella.tokenizers.vqgan import check_deep_sizes

MAX_SCALES = 64
"""Most scales of a tokenizer."""

MAX_KERNEL = 15
"""Largest kernel of the convolutions around the codes."""


@dataclass(frozen=True)
class ScaleOptions:
    """The scales of the codes, and how codes are enlarged.

    Args:
        scales: sides of the code grids of a square image, coarse to fine. The last one is that of
            the features; for images of other sizes, the others are in the same proportion to it.
        blends: number of convolutions that enlarged codes pass through. Neighbouring scales share
            one where there are fewer than scales.
        blend: share of a convolution's result; the rest is its input.
        code_kernel: kernel of the convolutions before and after the codes, odd.
    """

    scales: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    blends: int = 4
    blend: float = 0.5
    code_kernel: int = 3

    def check(self) -> None:
        """Refuse scales that do not grow, and numbers out of range.

        Raises:
            ConfigError: naming the field.
        """
        if not 1 <= len(self.scales) <= MAX_SCALES:
            raise ConfigError(
                f"scales must be a list of 1 to {MAX_SCALES} sides, got {len(self.scales)}"
            )
        before = 0
        for side in self.scales:
            check_count("each of the scales", side, 1, MAX_DOWNSAMPLE)
            if side <= before:
                raise ConfigError(f"scales must grow from one to the next, got {self.scales}")
            before = side
        check_count("blends", self.blends, 1, MAX_SCALES)
        check_count("code_kernel", self.code_kernel, 1, MAX_KERNEL)
        if self.code_kernel % 2 == 0:
            raise ConfigError(f"code_kernel must be odd, got {self.code_kernel}")
        if not 0 <= self.blend <= 1:
            raise ConfigError(f"blend must lie in 0..1, got {self.blend}")

    def blend_of(self, scale: int) -> int:
        """Index of the convolution that the codes of a scale pass through.

        The convolutions stand at evenly spaced places between the coarsest and the finest scale,
        and a scale takes the nearest one, as in VAR.
        """
        margin = 1 / 3 if self.blends == 4 else 1 / 2
        places = np.linspace(margin / self.blends, 1 - margin / self.blends, self.blends)
        place = scale / max(1, len(self.scales) - 1)
        return int(np.abs(places - place).argmin())


class MultiscaleVQGAN(ReconstructingTokenizer):
    """``multiscale-vqgan``: images to grids of codes of several scales, and back.

    Encoder and decoder are those of :class:`~tessella.tokenizers.vqgan.VQGAN`. Training minimizes
    ``mse(2x - 1, decoder(e))`` and, averaged over scales, the distance between the features and the
    sum of the codes so far (VAR, eq. 5). The codebook is one ``vq``, which places and revives its
    codes.

    Sides that the stride does not divide are padded by repeating the last row and column, and
    cropped after decoding.

    Args:
        image_size, channels, hidden, multipliers, residual_blocks, deep: see
            :class:`~tessella.tokenizers.vqgan.VQGAN`.
        codes: number and length of the codes; the quantizer must be ``vq`` without ``code_dim`` in
            its options and without ``cosine``.
        sides: the scales, and how codes are enlarged; its fields are arguments.

    Raises:
        ConfigError: when an argument is out of range.

    >>> codes = CodebookOptions(codebook_size=32, code_dim=4, quantizer="vq")
    >>> sides = ScaleOptions(scales=(1, 2, 4))
    >>> tokenizer = MultiscaleVQGAN((8, 8), 1, 8, (1, 2), 1, codes, sides=sides)
    >>> [grid.shape for grid in tokenizer.grids()]
    [(1, 1, 1), (2, 2, 1), (4, 4, 1)]
    """

    name = "multiscale-vqgan"

    def __init__(
        self,
        image_size: tuple[int, int] = (256, 256),
        channels: int = 3,
        hidden: int = 64,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        residual_blocks: int = 2,
        codes: CodebookOptions = CodebookOptions(4096, 32, "vq"),  # noqa: B008 - it is frozen
        deep: DeepOptions = DeepOptions(),  # noqa: B008
        sides: ScaleOptions = ScaleOptions(),
    ) -> None:
        super().__init__(image_size, channels, codes, likelihood="")
        code_dim = codes.code_dim
        check_deep_sizes(hidden, multipliers, residual_blocks, code_dim)
        sides.check()
        self.hidden = hidden
        self.multipliers = tuple(multipliers)
        self.residual_blocks = residual_blocks
        self.deep = deep
        self.sides = sides
        # The order of construction determines the random weights, and the order of saved tensors.
        quantizer = codes.build()
        if not isinstance(quantizer, GradientVectorQuantizer) or quantizer.cosine:
            raise ConfigError(
                "multiscale-vqgan needs quantizer='vq' without cosine, "
                f"got {codes.quantizer!r} with {dict(codes.options or {})}"
            )
        if quantizer.code_dim != code_dim:
            raise ConfigError("multiscale-vqgan takes no code_dim in the options of its quantizer")
        self.quantizer = quantizer
        sizes = (channels, hidden, multipliers, residual_blocks, code_dim, deep)
        self.encoder = DeepEncoder(*sizes)
        padding = sides.code_kernel // 2
        self.to_code = nn.Conv2d(code_dim, code_dim, sides.code_kernel, padding=padding)
        self.blends = nn.ModuleList()
        for _ in range(sides.blends):
            self.blends.append(nn.Conv2d(code_dim, code_dim, 3, padding=1))
        self.from_code = nn.Conv2d(code_dim, code_dim, sides.code_kernel, padding=padding)
        self.decoder = DeepDecoder(*sizes)

    @property
    def stride(self) -> int:
        # Height and width are halved between consecutive resolutions.
        return 2 ** (len(self.multipliers) - 1)

    def grids(self, height: int | None = None, width: int | None = None) -> tuple[Grid, ...]:
        """One grid for each scale; the last has ``ceil(height / stride)`` rows."""
        height, width = self._size(height, width)
        rows = -(-height // self.stride)
        columns = -(-width // self.stride)
        sizes = self._scale_sizes(rows, columns)
        return tuple(Grid(*size, 1, self.quantizer.levels) for size in sizes)

    def network_config(self) -> PlainValues:
        return {
            "hidden": self.hidden,
            "multipliers": list(self.multipliers),
            "residual_blocks": self.residual_blocks,
            "attention": list(self.deep.attention),
            "groups": self.deep.groups,
            "scales": list(self.sides.scales),
            "blends": self.sides.blends,
            "blend": self.sides.blend,
            "code_kernel": self.sides.code_kernel,
        }

    def quantize(self, images: torch.Tensor) -> Quantized:
        features = self._features(images)
        total = torch.zeros_like(features)
        symbols: list[torch.Tensor] = []
        stats: dict[str, torch.Tensor] = {}
        fits: list[torch.Tensor] = []
        commitments: list[torch.Tensor] = []
        sizes = self._scale_sizes(features.shape[2], features.shape[3])
        for scale, size in enumerate(sizes):
            # No gradient passes from one scale to the next.
            left = (features - total).detach()
            out = self.quantizer(_pooled(left, size))
            symbols.append(out.symbols)
            # Revived codes of all scales count; the rest is that of the finest scale.
            revived = stats.get("revived", torch.zeros_like(out.stats["revived"]))
            stats = {**out.stats, "revived": revived + out.stats["revived"]}
            total = total + self._enlarged(self.quantizer.decode(out.symbols), scale, features)
            fits.append(F.mse_loss(total, features.detach()))
            commitments.append(F.mse_loss(features, total.detach()))
        losses = {
            "codebook": torch.stack(fits).mean(),
            "commitment": self.quantizer.beta * torch.stack(commitments).mean(),
        }
        # Straight through: the values of the codes, the gradient of the features.
        quantized = features + (total - features).detach()
        return Quantized(quantized.permute(0, 2, 3, 1), tuple(symbols), losses, stats)

    def look_up(self, symbols: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(self.quantizer.decode(part) for part in symbols)

    def encode_float(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The pooled residuals that become codes: ``[n, h', w', code_dim]`` of each scale.

        Those of a scale depend on the codes of the coarser ones.
        """

        def straight_through(z: torch.Tensor) -> torch.Tensor:
            codes = self.quantizer.decode(self.quantizer.encode(z))
            return z + (codes - z).detach()

        return self._residuals(self._features(images), straight_through)

    def parameters_of(self, features: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The output of the decoder: ``[n, h, w, channels]``.

        Args:
            features: vectors of each scale, or the sum of the enlarged codes of all scales,
                ``[n, h', w', code_dim]``.
        """
        if isinstance(features, torch.Tensor):
            total = features.permute(0, 3, 1, 2)
        else:
            finest = features[-1].permute(0, 3, 1, 2)
            total = torch.zeros_like(finest)
            for scale, vectors in enumerate(features):
                total = total + self._enlarged(vectors, scale, finest)
        return self.decoder(self.from_code(total)).permute(0, 2, 3, 1)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        """Features of float images before they are discretized: ``[n, code_dim, h', w']``."""
        return self.to_code(self.encoder(pad_images(images, self.stride)))

    def _residuals(
        self, features: torch.Tensor, quantized: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """The pooled residual of each scale.

        Args:
            features: ``[n, code_dim, h', w']``.
            quantized: turns pooled vectors ``[..., code_dim]`` into codes.
        """
        left = features
        residuals: list[torch.Tensor] = []
        for scale, size in enumerate(self._scale_sizes(features.shape[2], features.shape[3])):
            residuals.append(_pooled(left, size))
            left = left - self._enlarged(quantized(residuals[-1]), scale, features)
        return tuple(residuals)

    def _enlarged(self, vectors: torch.Tensor, scale: int, features: torch.Tensor) -> torch.Tensor:
        """Vectors of a scale at full size, blended with their convolution.

        Args:
            vectors: ``[n, rows, columns, code_dim]``.
            scale: index of the scale.
            features: a tensor ``[n, code_dim, h', w']`` of the full size.
        """
        rows, columns = features.shape[2:]
        maps = enlarged(vectors.permute(0, 3, 1, 2), (rows, columns))
        share = self.sides.blend
        convolved = self.blends[self.sides.blend_of(scale)](maps)
        return (1 - share) * maps + share * convolved

    def _scale_sizes(self, rows: int, columns: int) -> list[tuple[int, int]]:
        """Rows and columns of each scale, for features of a size."""
        last = self.sides.scales[-1]
        sizes: list[tuple[int, int]] = []
        for side in self.sides.scales:
            # In proportion, rounded to the nearest, and at least one.
            height = max(1, (2 * side * rows + last) // (2 * last))
            width = max(1, (2 * side * columns + last) // (2 * last))
            sizes.append((height, width))
        return sizes


def _pooled(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Averages over areas: ``[n, code_dim, h', w']`` to ``[n, rows, columns, code_dim]``."""
    return pooled(features, size).permute(0, 2, 3, 1)

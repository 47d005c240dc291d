"""One aspect of a model that can be measured.

Aspects are the cost of its symbols, the quality of its reconstructions, and bounds on its
likelihood. An aspect takes numbers of each image, batch by batch, and makes columns and figures of
them. Which aspects a model has follows from its capabilities, see
:mod:`tessella.evaluation.measurement`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tessella.files import JSONValue
from tessella.tokenizers.tokenizer import Symbols

Values = Mapping[str, torch.Tensor]
"""Numbers of each image by name, float64 ``[n]`` each."""


@dataclass(frozen=True)
class ImageBatch:
    """Images that are measured together.

    Args:
        images: uint8 ``[n, h, w, c]``, on the CPU.
        symbols: of the images, as the model's tokenizer makes them.
        cond: class of each image, or None.
    """

    images: torch.Tensor
    symbols: Symbols
    cond: torch.Tensor | None


@dataclass(frozen=True)
class Measured:
    """Numbers of each image, in the order of the images.

    Args:
        hashes, mirrored: of the pixels of each image, and of its mirror image: uint64 ``[n]``.
        values: float64 ``[n]`` each: ``nats`` (minus the log-probability of the symbols; of several
            grids also ``nats_0``, ``nats_1``, coarse to fine), ``baseline_nats`` (under independent
            symbols), ``mse`` (0..255 squared), ``ssim``, ``mean_image_mse``, ``pixel_nats`` (minus
            the log-likelihood of the pixels given their codes); those the model has. ``nats`` of a
            VAE are minus its bound.
        counts: how often each code was used, int64 ``[levels]``, for each channel of each grid,
            coarse to fine; none for pixel models.
        conditional: whether each image was scored given its class.
    """

    # Hashes find images again among those that a run was trained on.
    hashes: np.ndarray
    mirrored: np.ndarray
    values: Values
    counts: tuple[torch.Tensor, ...] = ()
    conditional: bool = False

    def __len__(self) -> int:
        return len(self.hashes)


class Aspect(ABC):
    """One aspect of a model; an instance measures the images of one evaluation."""

    @abstractmethod
    def values(self, batch: ImageBatch) -> dict[str, torch.Tensor]:
        """Numbers of each image of a batch, ``[n]`` each; see :class:`Measured`."""

    @abstractmethod
    def columns(self, values: Values) -> dict[str, torch.Tensor]:
        """Numbers of each image that people quote, named with their unit, float64 ``[n]`` each."""

    @abstractmethod
    def figures(self, measured: Measured) -> dict[str, JSONValue]:
        """Figures of all images: plain values."""

    def counts(self) -> tuple[torch.Tensor, ...]:
        """How often each code was used so far, see :class:`Measured`; nothing without codes."""
        return ()

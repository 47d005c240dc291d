"""The interface of quantizers: vectors to symbols, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn


@dataclass(frozen=True)
class QuantizerOutput:
    """The result of quantizing a batch of vectors.

    Args:
        symbols: ``int64 [..., depth]``.
        z: the quantized vectors ``[..., dim]``, in the type of the input, through which gradients
            pass.
        losses: scalars to add to the loss, already weighted.
        stats: scalars without gradient, to log.
    """

    symbols: torch.Tensor
    z: torch.Tensor
    losses: dict[str, torch.Tensor]
    stats: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Remedies:
    """Advice for the user of a quantizer whose codes are badly used, as clauses of a sentence.

    Args:
        collapse: when one code takes nearly all vectors.
        dead_codes: when many codes are never used. ``{fewer}`` stands for the advice to take a
            smaller codebook, which names a size.
    """

    collapse: str = "train at a lower learning rate or a smaller beta"
    dead_codes: str = "train longer, or {fewer}"


class Quantizer(nn.Module, ABC):
    """Vectors ``[..., dim]`` to ``depth`` symbols of ``levels`` values each, and back.

    A subclass

    * computes in the type of its tensors, also under autocast;
    * gives codes exactly, whatever gradient passes;
    * keeps all it learns in parameters and buffers, equal in all processes;
    * learns nothing from a batch without vectors, and gives it losses of 0;
    * learns nothing from a batch whose values are not finite, or whose squares are not, and gives
      it a loss (or vectors) that is not finite, so that the trainer notices. This holds for all
      processes when the part of one is such a batch.

    The class attributes say what the diagnosis of codebooks must know of a quantizer, and
    :meth:`examples` what the contract tests build. Nothing else has to be changed for a new one.
    """

    name: ClassVar[str]
    learns_codes: ClassVar[bool] = True
    """Whether codes are learned vectors. If not they are points of a fixed lattice, which do not
    move and of which no two are alike."""
    reversible: ClassVar[bool] = True
    """Whether a decoded symbol is encoded to itself where vectors are not projected."""
    healthy_perplexity: ClassVar[float] = 0.2
    """Perplexity as a share of the codes, below which the use of a trained codebook is uneven."""
    remedies: ClassVar[Remedies] = Remedies()

    dim: int
    """Length of a vector."""
    levels: int
    """Codes of each codebook: a symbol lies in ``[0, levels)``."""
    depth: int
    """Symbols a vector: the channels of a grid."""

    @abstractmethod
    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        """Quantize vectors ``[..., dim]``; in training mode also learn from them."""

    @abstractmethod
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        """Vectors ``[..., dim]`` to symbols ``int64 [..., depth]``. Learns nothing."""

    @abstractmethod
    def decode(self, symbols: torch.Tensor) -> torch.Tensor:
        """Symbols ``int64 [..., depth]`` to vectors ``[..., dim]``."""

    @classmethod
    def examples(cls) -> Mapping[str, Mapping[str, object]]:
        """Arguments of small quantizers, by a word for each; ``dim`` is 6 where it is not given.

        Between them they use every argument that changes what is computed.
        """
        return {"": {"codebook_size": 32}}

    @property
    def batches_seen(self) -> int | None:
        """Number of batches that the codes were learned from; None if that is not known."""
        # A buffer of this name is saved with the codes, so that resumed training goes on from it.
        steps = getattr(self, "steps", None)
        if not isinstance(steps, torch.Tensor):
            return None
        # Codes converted from another project have 1 here, which says only that they are placed.
        count = int(steps)
        return None if count == 1 else count

    @property
    def vectors_a_batch(self) -> float | None:
        """Number of vectors of a training batch, on average; None if that is not known."""
        # Running counts of each code add up to the size of a batch.
        counts = getattr(self, "counts", None)
        return float(counts.sum()) if isinstance(counts, torch.Tensor) else None

    def extra_repr(self) -> str:
        text = f"dim={self.dim}, levels={self.levels}"
        return text if self.depth == 1 else f"{text}, depth={self.depth}"

    # One line: parts such as the stages of a residual quantizer are not of interest.
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

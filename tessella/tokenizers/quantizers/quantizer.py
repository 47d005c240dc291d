"""The interface of quantizers, which turn vectors into symbols and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn


@dataclass(frozen=True)
class QuantizerOutput:
    """What a quantizer returns for a batch of vectors.

    Args:
        symbols: ``int64 [..., depth]``.
        z: the quantized vectors ``[..., dim]``, in the type of the input; gradients pass through.
        losses: scalars to add to the loss, already weighted.
        stats: scalars without gradient, to log.
    """

    symbols: torch.Tensor
    z: torch.Tensor
    losses: dict[str, torch.Tensor]
    stats: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Remedies:
    """Advice for a quantizer whose codes are badly used, as clauses of a sentence.

    Args:
        collapse: advice if one code takes nearly all vectors.
        dead_codes: advice if many codes are never used. ``{fewer}`` stands for the advice to take a
            smaller codebook, which names a size.
    """

    collapse: str = "train at a lower learning rate or a smaller beta"
    dead_codes: str = "train longer, or {fewer}"


class Quantizer(nn.Module, ABC):
    """Turns vectors ``[..., dim]`` into ``depth`` symbols of ``levels`` values each, and back.

    The contract of a subclass is that it

    * computes in the type of its tensors, even under autocast;
    * returns codes exactly, whatever gradient it uses;
    * keeps everything it learns in parameters and buffers, equal in all processes;
    * learns nothing from a batch without vectors, and returns losses of 0 for it;
    * learns nothing from a batch whose values or squares are not all finite, and returns a loss (or
      vectors) that is not finite, so that the trainer notices. If this happens in one process, it
      applies to all of them.

    The class attributes are for the codebook diagnosis, and :meth:`examples` is for the contract
    tests. A new quantizer needs no changes anywhere else.
    """

    name: ClassVar[str]
    learns_codes: ClassVar[bool] = True
    """Whether codes are learned vectors. Otherwise they are points of a fixed lattice, which never
    move or coincide."""
    reversible: ClassVar[bool] = True
    """Whether encoding a decoded symbol returns it, if vectors are not projected."""
    healthy_perplexity: ClassVar[float] = 0.2
    """Perplexity, as a share of the codes, below which a trained codebook is used unevenly."""
    remedies: ClassVar[Remedies] = Remedies()

    dim: int
    """Number of components of a vector."""
    levels: int
    """Number of codes per codebook: symbols are in ``[0, levels)``."""
    depth: int
    """Number of symbols per vector: the channels of a grid."""

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
        """Arguments of small quantizers for tests, by a name for each; ``dim`` is 6 by default.

        Together they cover every argument that changes what is computed.
        """
        return {"": {"codebook_size": 32}}

    @property
    def batches_seen(self) -> int | None:
        """Number of batches that the codes have learned from; None if unknown."""
        # A buffer of this name is saved with the codes, so that resumed training continues from it.
        steps = getattr(self, "steps", None)
        if not isinstance(steps, torch.Tensor):
            return None
        # Codes converted from another project have 1 here, which only says that they are
        # initialized.
        count = int(steps)
        return None if count == 1 else count

    @property
    def vectors_a_batch(self) -> float | None:
        """Average number of vectors in a training batch; None if unknown."""
        # The running counts of all codes add up to the size of a batch.
        counts = getattr(self, "counts", None)
        return float(counts.sum()) if isinstance(counts, torch.Tensor) else None

    def extra_repr(self) -> str:
        text = f"dim={self.dim}, levels={self.levels}"
        return text if self.depth == 1 else f"{text}, depth={self.depth}"

    # On one line, without parts such as the stages of a residual quantizer.
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

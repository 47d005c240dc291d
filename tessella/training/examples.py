"""What a training step sees: a pure function of the seed and the step, so that a resumed run sees
the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from tessella import data
from tessella.data.decoded_cache import StoredImages
from tessella.storage.code_set import CodeVariant as Codes

Variant = torch.Tensor | StoredImages | Codes
"""Images or symbols in memory, or on disk, where they are read as they are needed."""


@dataclass
class Examples:
    """Training images, or symbols made of them once.

    Args:
        variants: ``uint8 [n, h, w, c]`` images, in memory or on disk, or integer symbols
            ``[n, h, w, d]`` (of several grids ``[n, symbols]``, see
            :func:`tessella.models.hierarchy.pack`); where symbols of mirrored images were made too,
            they are the second variant.
        labels: ``int64 [n]``, or None.
        classes: number of classes; label ``classes`` is the null class.
        flip: mirror half of the images (or take the second variant).
        binarize: draw each pixel anew as Bernoulli(v/255), to 0 or 255.
        condition_dropout: share of labels replaced by the null class.
    """

    variants: list[Variant]
    labels: torch.Tensor | None = None
    classes: int = 0
    flip: bool = False
    binarize: bool = False
    condition_dropout: float = 0.0

    def __len__(self) -> int:
        return len(self.variants[0])

    @property
    def pixels(self) -> bool:
        """Whether they are images, not symbols."""
        return str(self.variants[0].dtype).removeprefix("torch.") == "uint8"

    def first(self, n: int, most_bytes: int) -> Examples:
        """The first ``n`` examples, fewer where they would take more than ``most_bytes``, in
        memory."""
        variant = self.variants[0]
        size = math.prod(variant.shape[1:]) * variant.dtype.itemsize
        n = min(n, max(1, most_bytes // size))
        here: list[Variant] = [torch.as_tensor(variant[:n])]
        return replace(self, variants=here, labels=None if self.labels is None else self.labels[:n])

    def plain(self, indices: torch.Tensor) -> torch.Tensor:
        """Images or symbols at ``indices [b]`` as they are."""
        return _at(self.variants[0], indices)

    def batch(
        self, indices: torch.Tensor, generator: torch.Generator, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images or symbols at ``indices [b]``, with random changes drawn from ``generator``, and
        their labels."""
        x = self.plain(indices)
        if len(self.variants) > 1:
            mirrored = torch.rand(len(indices), generator=generator) < 0.5
            x = torch.where(
                mirrored.view(-1, *[1] * (x.dim() - 1)), _at(self.variants[1], indices), x
            )
        elif self.flip or self.binarize:
            x = data.augment(x, generator, flip=self.flip, binarize=self.binarize)
        if x.dtype != torch.uint8:
            x = x.long()
        if self.labels is None:
            return x.to(device), None
        dropped = torch.rand(len(indices), generator=generator) < self.condition_dropout
        return x.to(device), self.labels[indices].masked_fill(dropped, self.classes).to(device)


def _at(variant: Variant, indices: torch.Tensor) -> torch.Tensor:
    return (
        variant[indices]
        if isinstance(variant, torch.Tensor)
        else torch.from_numpy(variant[indices.numpy()])
    )


class Order:
    """Which examples step ``step`` sees: passes over a new permutation of all of them each epoch.

    Args:
        n: examples.
        batch: examples of a step.
        seed: of the permutations.
    """

    def __init__(self, n: int, batch: int, seed: int) -> None:
        self.n, self.batch, self.seed = n, batch, seed
        self._epochs: dict[int, torch.Tensor] = {}

    def at(self, step: int) -> torch.Tensor:
        """Indices ``int64 [batch]``."""
        places = torch.arange(step * self.batch, (step + 1) * self.batch)
        epochs = places // self.n
        return torch.cat(
            [self._epoch(e)[places[epochs == e] % self.n] for e in epochs.unique().tolist()]
        )

    def _epoch(self, epoch: int) -> torch.Tensor:
        if epoch not in self._epochs:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self._epochs = {e: p for e, p in self._epochs.items() if e >= epoch - 1}
            self._epochs[epoch] = torch.randperm(self.n, generator=generator)
        return self._epochs[epoch]


def mix(*numbers: int) -> int:
    """One seed of several numbers (splitmix64 of each in turn)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1

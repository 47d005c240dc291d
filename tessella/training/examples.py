"""The examples that a training step sees: a pure function of the seed and the step.

So a resumed run sees what it would have seen, and nothing of a data loader needs saving.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from tessella import data
from tessella.data.lazy_images import LazyImages
from tessella.storage.code_set import CodeVariant as Codes

SAMPLE = 10_000
"""Images that a baseline is fitted to, at most, where all of them cannot be looked at."""

SAMPLE_BYTES = 1 << 28
"""Bytes of memory that they take, at most."""

Key = TypeVar("Key")
Value = TypeVar("Value")

Variant = torch.Tensor | LazyImages | Codes
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

    @property
    def example_shape(self) -> tuple[int, ...]:
        """``(h, w, c)`` of images or symbols, ``(symbols,)`` of those of several grids."""
        return tuple(self.variants[0].shape[1:])

    @property
    def example_bytes(self) -> int:
        """Memory of one example as it lies in ``variants``."""
        return math.prod(self.example_shape) * self.variants[0].dtype.itemsize

    def order(self, batch: int, seed: int) -> Order | GroupOrder:
        """Which examples each step sees."""
        groups = getattr(self.variants[0], "groups", None)
        if groups is not None:
            return GroupOrder(groups, batch, seed)
        return Order(len(self), batch, seed)

    def sample(self) -> Examples:
        """Examples that a baseline is fitted to: all, or the first where each must be decoded."""
        first = self.variants[0]
        if isinstance(first, LazyImages) and not first.hashed:
            return self.first(SAMPLE, SAMPLE_BYTES)
        return self

    def first(self, n: int, most_bytes: int) -> Examples:
        """The first ``n`` examples in memory; fewer where they take more than ``most_bytes``."""
        # One example at least, however large it is.
        n = min(n, max(1, most_bytes // self.example_bytes))
        here: list[Variant] = [torch.as_tensor(self.variants[0][:n])]
        labels = None if self.labels is None else self.labels[:n]
        return replace(self, variants=here, labels=labels)

    def plain(self, indices: torch.Tensor) -> torch.Tensor:
        """Images or symbols at ``indices [b]`` as they are."""
        return _at(self.variants[0], indices)

    @property
    def replaced(self) -> int:
        """Damaged images that were met so far, and that others stand for."""
        return len(getattr(self.variants[0], "damaged", ()))

    def read(self, indices: torch.Tensor) -> list[torch.Tensor]:
        """All variants of the examples at ``indices [b]``, as they are."""
        return [_at(variant, indices) for variant in self.variants]

    def batch(
        self,
        indices: torch.Tensor,
        generator: torch.Generator,
        device: torch.device,
        read: Sequence[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images or symbols at ``indices [b]`` with random changes, and their labels ``[b]``.

        Args:
            generator: the changes are drawn from it.
            read: what :meth:`read` gave for these indices, where that was done ahead.
        """
        if read is None:
            read = self.read(indices)
        x = read[0]
        if len(self.variants) > 1:
            # The codes of a mirrored image are no mirrored codes: they were made beforehand.
            mirrored = torch.rand(len(indices), generator=generator) < 0.5
            chosen = mirrored.view(-1, *[1] * (x.dim() - 1))  # [b, 1, ...]
            x = torch.where(chosen, read[1], x)
        elif self.flip or self.binarize:
            x = data.augment(x, generator, flip=self.flip, binarize=self.binarize)
        # Symbols lie in small types; models take int64.
        if x.dtype != torch.uint8:
            x = x.long()
        if self.labels is None:
            return x.to(device), None
        labels = drop_labels(self.labels[indices], self.classes, self.condition_dropout, generator)
        return x.to(device), labels.to(device)


def drop_labels(
    labels: torch.Tensor, classes: int, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Labels ``[b]`` with a random ``share`` of them replaced by the null class ``classes``."""
    dropped = torch.rand(len(labels), generator=generator) < share
    return labels.masked_fill(dropped, classes)


def _at(variant: Variant, indices: torch.Tensor) -> torch.Tensor:
    if isinstance(variant, torch.Tensor):
        return variant[indices]
    # On disk: numpy reads just these.
    return torch.from_numpy(variant[indices.numpy()])


class Order:
    """Which examples each step sees: passes over a new permutation of all of them each epoch.

    Args:
        n: examples.
        batch: examples of a step.
        seed: of the permutations.
    """

    def __init__(self, n: int, batch: int, seed: int) -> None:
        self.n = n
        self.batch = batch
        self.seed = seed
        self._permutations: dict[int, torch.Tensor] = {}

    def at(self, step: int) -> torch.Tensor:
        """Indices ``int64 [batch]`` of the examples of a step."""
        # Places on a line on which the epochs follow each other.
        places = torch.arange(step * self.batch, (step + 1) * self.batch)
        epochs = places // self.n
        parts: list[torch.Tensor] = []
        for epoch in epochs.unique().tolist():
            parts.append(self._permutation(epoch)[places[epochs == epoch] % self.n])
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> torch.Tensor:
        if epoch not in self._permutations:
            # A batch may reach into the next epoch, so the one before is kept too.
            for old in list(self._permutations):
                if old < epoch - 1:
                    del self._permutations[old]
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self._permutations[epoch] = torch.randperm(self.n, generator=generator)
        return self._permutations[epoch]


class GroupOrder:
    """Which examples each step sees, where those of a group are best read together.

    In each epoch the groups (the shards of a set) follow each other in a new order, and the
    examples of :data:`WINDOW` groups that are neighbours in it are mixed. So a step reads from a
    few shards, and memory holds the order of a few shards, however many there are.

    Args:
        groups: the number of the first example of each group, and how many examples there are.
        batch: examples of a step.
        seed: of the permutations.
    """

    def __init__(self, groups: Sequence[int], batch: int, seed: int) -> None:
        self.n = groups[-1]
        self.batch = batch
        self.seed = seed
        self._firsts = torch.tensor(groups[:-1])
        self._sizes = torch.tensor(groups).diff()
        self._epochs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._windows: dict[tuple[int, int], torch.Tensor] = {}

    def at(self, step: int) -> torch.Tensor:
        """Indices ``int64 [batch]`` of the examples of a step."""
        parts: list[torch.Tensor] = []
        # Places on a line on which the epochs follow each other.
        place = step * self.batch
        end = place + self.batch
        while place < end:
            epoch, within = divmod(place, self.n)
            _, starts = self._epoch(epoch)
            window = int(torch.searchsorted(starts, within, right=True)) - 1
            order = self._window(epoch, window)
            first = within - int(starts[window])
            part = order[first : first + end - place]
            parts.append(part)
            place += len(part)
        return torch.cat(parts)

    def _epoch(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The order of the groups in an epoch, and the place where each window begins."""
        if epoch not in self._epochs:
            _keep_last(self._epochs)
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            order = torch.randperm(len(self._sizes), generator=generator)
            ends = self._sizes[order].cumsum(0)
            starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])[::WINDOW]
            self._epochs[epoch] = (order, starts.contiguous())
        return self._epochs[epoch]

    def _window(self, epoch: int, window: int) -> torch.Tensor:
        """The examples of a window, mixed."""
        key = (epoch, window)
        if key not in self._windows:
            _keep_last(self._windows)
            order, _ = self._epoch(epoch)
            parts = []
            for group in order[window * WINDOW : (window + 1) * WINDOW].tolist():
                first = int(self._firsts[group])
                parts.append(torch.arange(first, first + int(self._sizes[group])))
            every = torch.cat(parts)
            generator = torch.Generator().manual_seed(mix(self.seed, epoch, window))
            self._windows[key] = every[torch.randperm(len(every), generator=generator)]
        return self._windows[key]


WINDOW = 4
"""Groups whose examples are mixed: more mix better, and are read from more places at once."""


def _keep_last(kept: dict[Key, Value]) -> None:
    """Make room for another entry: a batch may reach over an edge, so the one before is kept."""
    while len(kept) > 1:
        del kept[next(iter(kept))]


def mix(*numbers: int) -> int:
    """Make one seed of several numbers (splitmix64 of each in turn)."""
    # Neighbouring seeds and steps must give unrelated generators.
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1

"""Units of work: ranges of items, each of which makes one file.

A unit is known by its number, which decides its items and the name of its file. So whoever makes
it, and how often, the bytes are the same, and a job that was killed repeats only units that are
missing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from tessella.bulk.batches import Batch
from tessella.bulk.items import Items
from tessella.bulk.packing import Packing

AT_ONCE = 256
"""Items that a stage is given at a time."""


class Units(ABC):
    """All units of a job; it travels to the processes that make them.

    Args:
        images: images of the job.
        unit_images: images of a unit; the last one may have fewer.
    """

    def __init__(self, images: int, unit_images: int) -> None:
        self.images = images
        self.unit_images = unit_images

    def __len__(self) -> int:
        return -(-self.images // self.unit_images)

    def places(self, number: int) -> range:
        """The places of the images of a unit."""
        first = number * self.unit_images
        return range(first, min(first + self.unit_images, self.images))

    @abstractmethod
    def name(self, number: int) -> str:
        """Name of the file of a unit."""

    @abstractmethod
    def make(self, number: int) -> bytes:
        """The content of the file of a unit.

        Raises:
            TessellaError: when an item or the model does not allow it.
        """


@runtime_checkable
class RunsStage(Protocol):
    """A stage, or anything else that turns batches into others."""

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """The columns of the result."""


class StageUnits(Units):
    """Units whose items go through a stage, and into a file of some format.

    Args:
        stage: what is done.
        items: what it is done to.
        packing: the format.
        unit_images: items of a unit.
    """

    def __init__(self, stage: RunsStage, items: Items, packing: Packing, unit_images: int) -> None:
        super().__init__(len(items), unit_images)
        self.stage = stage
        self.items = items
        self.packing = packing

    def name(self, number: int) -> str:
        return f"{self.packing.stem}-{number:05d}{self.packing.ending}"

    def make(self, number: int) -> bytes:
        return self.packing.packed(self._results(self.places(number)))

    def _results(self, places: range) -> Iterator[Batch]:
        for start in range(places.start, places.stop, AT_ONCE):
            some = range(start, min(start + AT_ONCE, places.stop))
            yield self.stage(self.items.batch(some))


@dataclass(frozen=True)
class MadeUnit:
    """A unit that was made.

    Args:
        number: of the unit.
        data: the content of its file.
    """

    number: int
    data: bytes

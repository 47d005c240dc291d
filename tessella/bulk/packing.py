"""The files that units write: tables as lines of JSON, and archives of files in the tar format."""

from __future__ import annotations

import io
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from tessella import files
from tessella.bulk.batches import KEY, SEED, Batch
from tessella.files import pictures


class Packing(ABC):
    """A format of the files of units."""

    stem: str
    """What its files are named by, before their number."""

    ending: str
    """Ending of its files."""

    @abstractmethod
    def packed(self, batches: Iterable[Batch]) -> bytes:
        """A file of the rows of some batches."""


class TablePacking(Packing):
    """A line of JSON for each row, with all of its columns."""

    ending = ".jsonl"

    def __init__(self, stem: str) -> None:
        self.stem = stem

    def packed(self, batches: Iterable[Batch]) -> bytes:
        lines = []
        for batch in batches:
            for row in range(len(batch[KEY])):
                values = {name: values[row].item() for name, values in batch.items()}
                lines.append(files.json_text(values, indent=None) + "\n")
        return "".join(lines).encode()


class TarPacking(Packing):
    """A tar archive with a file for each row, named by its key; data sources read it as a shard."""

    ending = ".tar"

    def packed(self, batches: Iterable[Batch]) -> bytes:
        content = io.BytesIO()
        # No times, owners or paths of this machine: equal rows make equal bytes.
        with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for batch in batches:
                for name, data in self.members(batch):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        return content.getvalue()

    @abstractmethod
    def members(self, batch: Batch) -> Iterator[tuple[str, bytes]]:
        """The files of the rows of a batch: names and contents."""


class CompressedPacking(TarPacking):
    """Compressed files of one image each, ``KEY.tsl``."""

    stem = "files"

    def members(self, batch: Batch) -> Iterator[tuple[str, bytes]]:
        for key, data in zip(batch[KEY], batch["file"], strict=True):
            yield f"{key}.tsl", data


class DrawnPacking(TarPacking):
    """Drawn images as PNG files, ``SEED.png``, each with the words that say how it was made.

    Args:
        made: how the images are made, as plain values.
    """

    stem = "images"

    def __init__(self, made: Mapping[str, object]) -> None:
        self.made = dict(made)

    def members(self, batch: Batch) -> Iterator[tuple[str, bytes]]:
        for key, seed, image in zip(batch[KEY], batch[SEED], batch["image"], strict=True):
            # As tessella sample writes single pictures.
            made = self.made | {"seed": int(seed), "n": 1}
            yield f"{key}.png", pictures.png(np.asarray(image), made)

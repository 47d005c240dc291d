"""Shards of codes as units: each is encoded where an engine says, and stored as ever."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tessella import data, files
from tessella.bulk.engines import Engine
from tessella.bulk.stages import TokenizeStage
from tessella.bulk.units import Units
from tessella.config import DataConfig
from tessella.data.image_set import ImageSet
from tessella.errors import DataError
from tessella.storage.code_set import CodesRecord, shard_name
from tessella.storage.code_store import encoded_shard
from tessella.tokenizers.fixed_pieces import one_thread


class CodeUnits(Units):
    """The shards of a set of codes.

    Args:
        stage: holds the tokenizer.
        source: the data source, with paths that every process finds.
        split: of its images.
        record: what the codes are.
    """

    def __init__(
        self, stage: TokenizeStage, source: DataConfig, split: str, record: CodesRecord
    ) -> None:
        super().__init__(record["count"], record["shard_images"])
        self.stage = stage
        self.source = source
        self.split = split
        self.record = record
        self._images: ImageSet | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_images": None}

    def name(self, number: int) -> str:
        return shard_name(number)

    def make(self, number: int) -> bytes:
        # The plugins that the stage loads may define the data source.
        tokenizer = self.stage.loaded()
        with one_thread():
            tensors = encoded_shard(tokenizer, self._loaded(), self.places(number), self.record)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.name(number)
            files.write_tensors(path, tensors)
            return path.read_bytes()

    def _loaded(self) -> ImageSet:
        """The images, loaded when they are first asked for.

        Raises:
            DataError: when there are more or fewer than in the process that asked for the codes.
        """
        if self._images is None:
            images = data.load(self.source, self.split)
            if len(images) != self.images:
                raise DataError(
                    f"{self.source.source} has {len(images)} images here, and {self.images} where"
                    " the job began: every process must find the same files"
                )
            self._images = images
        return self._images


def absolute_source(source: DataConfig) -> DataConfig:
    """A data source for a process that works in another folder."""
    name, _, path = source.source.partition(":")
    if not path:
        return source
    location = Path(path).expanduser()
    # A name on the Hub is no path; a pattern of shards is one, though no such file exists.
    if name != "shards" and not location.exists():
        return source
    return replace(source, source=f"{name}:{location.absolute()}")


def shards_made_by(
    engine: Engine, stage: TokenizeStage, source: DataConfig, split: str
) -> Callable[[CodesRecord, Sequence[int]], Iterator[tuple[int, bytes]]]:
    """What :func:`tessella.storage.code_store.tokenize` asks for shards that are missing."""

    def make(record: CodesRecord, numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        units = CodeUnits(stage, absolute_source(source), split, record)
        for unit in engine.make(units, numbers):
            yield unit.number, unit.data

    return make

"""Stages that work with the exact twin of a run: bits of images, and files of one image each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tessella.bulk.batches import (
    BYTES,
    Batch,
    column,
    name_of,
    picture_of,
    rows_of,
    symbols_of,
    whole_picture,
)
from tessella.bulk.stages import Stage
from tessella.codec.archive_writer import CodedImage
from tessella.codec.container import HAS_FILES, IS_LIST, IS_LOSSY, IS_WIDE, TOKENIZER_BYTES
from tessella.codec.picture_files import check_losses
from tessella.codec.pictures_as_codes import as_codes
from tessella.codec.scoring import score_images
from tessella.codec.single_archives import compress_each
from tessella.errors import InputError
from tessella.exact import ExactModel
from tessella.pipeline import SavedModel, fingerprint, learned_tokenizer
from tessella.pipeline.kept_twin import exact_twin_of
from tessella.tokenizers import Tokenizer

TOGETHER = 64
"""Pieces that step together in a twin; changes memory and speed only."""


class ScoreStage(Stage[ExactModel]):
    """Images to their bits, as a compressed file would spend them.

    It adds ``height`` and ``width`` in pixels, ``bits``, and ``bits_per_dim``, which is bits for
    each symbol. The run must be a model of pixels.
    """

    def _load(self, model: SavedModel) -> ExactModel:
        if learned_tokenizer(model) is not None:
            raise InputError(f"{self.run} models codes, and scores are of pixels: name another run")
        return exact_twin_of(self.run, model, _nothing)

    def _results(self, loaded: ExactModel, batch: Mapping[str, np.ndarray]) -> Batch:
        images = (symbols_of(batch, row, loaded.grid.levels) for row in range(rows_of(batch)))
        scores = list(score_images(loaded, images, TOGETHER))
        shapes = [score.places.shape for score in scores]
        return {
            "height": np.array([height for height, _ in shapes], np.int64),
            "width": np.array([width for _, width in shapes], np.int64),
            "bits": np.array([score.bits for score in scores], np.float64),
            "bits_per_dim": np.array([score.bits_per_dim for score in scores], np.float64),
        }


@dataclass(frozen=True)
class Coder:
    """A twin, and the tokenizer before it in a two-stage run."""

    twin: ExactModel
    tokenizer: Tokenizer | None


class CompressStage(Stage[Coder]):
    """Images to compressed files of one image each.

    It adds ``file``, the bytes of a ``.tsl`` file as ``tessella compress`` writes it of that image
    alone. With a two-stage run it holds the codes of the image, not all of its pixels.

    Args:
        run, device, plugins: see :class:`~tessella.bulk.stages.Stage`.
        drop_metadata: go on where something of an image file cannot be kept, such as EXIF data.
    """

    def __init__(
        self,
        run: Path | str,
        *,
        device: str = "auto",
        plugins: Sequence[Path | str] = (),
        drop_metadata: bool = False,
    ) -> None:
        super().__init__(run, device=device, plugins=plugins)
        self.drop_metadata = drop_metadata

    def _load(self, model: SavedModel) -> Coder:
        twin = exact_twin_of(self.run, model, _nothing)
        return Coder(twin, learned_tokenizer(model))

    def _results(self, loaded: Coder, batch: Mapping[str, np.ndarray]) -> Batch:
        images = [self._coded(loaded, batch, row) for row in range(rows_of(batch))]
        flags = HAS_FILES | IS_LIST
        stored = b""
        if loaded.tokenizer is not None:
            flags |= IS_WIDE | IS_LOSSY
            stored = bytes.fromhex(fingerprint(loaded.tokenizer))[:TOKENIZER_BYTES]
        return {"file": column(compress_each(loaded.twin, images, flags, stored, TOGETHER))}

    def _coded(self, loaded: Coder, batch: Mapping[str, np.ndarray], row: int) -> CodedImage:
        if loaded.tokenizer is None:
            # It decodes the file once more, so it is left out where nobody asks for it.
            if BYTES in batch and not self.drop_metadata:
                check_losses([picture_of(batch, row)], drop=False)
            return symbols_of(batch, row, loaded.twin.grid.levels)
        picture = whole_picture(batch, row, loaded.tokenizer.channels)
        return as_codes(picture, loaded.tokenizer, name_of(batch, row))


def _nothing(line: str) -> None:
    """Take a line that nobody would see in a process of its own."""

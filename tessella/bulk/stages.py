"""Stages of bulk work: objects that turn a batch of rows into another, ready for many processes.

A stage is made of the name of a run. It holds names and options only until it is first called, so
it travels to another process, which then loads the model once::

    dataset.map_batches(ts.bulk.Tokenize, fn_constructor_args=("runs/vqvae",), concurrency=2)
    dataset.map_batches(ts.bulk.Tokenize("runs/vqvae"))

What it gives for an image depends neither on the batch that the image came in, nor on how many
processes there are. Networks compute with one thread an operation and in pieces of a fixed size
(:mod:`tessella.tokenizers.fixed_pieces`); the exact twins that score and compress are the same in
every batch by their construction. As everywhere, rounding may differ between processors.

Columns of a batch are described in :mod:`tessella.bulk.batches`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from tessella.bulk.batches import Batch, carried, column, prepared_image, rows_of
from tessella.pipeline import SavedModel, load_saved, pick_device, require_codes
from tessella.registry import load_plugin
from tessella.storage.code_set import smallest_type
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.fixed_pieces import encode_in_pieces, one_thread

Loaded = TypeVar("Loaded")


class Stage(ABC, Generic[Loaded]):
    """Turns batches of rows into others.

    Args:
        run: a run directory, or the name of a bundled model.
        device: where to compute: ``auto``, ``cpu`` or ``cuda``.
        plugins: Python files that register what the run needs.
    """

    def __init__(
        self, run: Path | str, *, device: str = "auto", plugins: Sequence[Path | str] = ()
    ) -> None:
        self.run = absolute_run(run)
        self.device = device
        self.plugins = tuple(str(Path(plugin).absolute()) for plugin in plugins)
        self._loaded: Loaded | None = None

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """The columns of a batch that are carried along, and the new ones.

        Raises:
            InputError, DataError: for columns or images that do not fit.
            ArtifactError: when the run cannot be loaded.
        """
        with one_thread():
            return {**carried(batch), **self._results(self.loaded(), batch)}

    def __getstate__(self) -> dict[str, object]:
        # A copy for another process has the options, and loads the model itself.
        return {**vars(self), "_loaded": None}

    def loaded(self) -> Loaded:
        """What the run holds, loaded when it is first asked for."""
        if self._loaded is None:
            for plugin in self.plugins:
                load_plugin(plugin)
            self._loaded = self._load(load_saved(self.run, pick_device(self.device)))
        return self._loaded

    @abstractmethod
    def _load(self, model: SavedModel) -> Loaded:
        """What the stage needs of the model of its run."""

    @abstractmethod
    def _results(self, loaded: Loaded, batch: Mapping[str, np.ndarray]) -> Batch:
        """The new columns of a batch."""


def absolute_run(run: Path | str) -> str:
    """A run for a process that works in another folder; the name of a bundled model stays."""
    if Path(run).exists():
        return str(Path(run).absolute())
    return str(run)


class TokenizeStage(Stage[Tokenizer]):
    """Images to codes.

    It adds ``codes``, ``[n, h, w, depth]`` in the smallest integer type; of a tokenizer with
    several grids ``codes.0``, ``codes.1`` and so on, coarse to fine. Image files are scaled and
    cropped to the size of the tokenizer; arrays keep theirs, and rows of several sizes give one
    object a row.
    """

    def _load(self, model: SavedModel) -> Tokenizer:
        return require_codes(model, self.run).eval()

    def _results(self, loaded: Tokenizer, batch: Mapping[str, np.ndarray]) -> Batch:
        images = []
        for row in range(rows_of(batch)):
            images.append(prepared_image(batch, row, loaded.image_size, loaded.channels))
        found: dict[str, list[np.ndarray]] = {}
        for places in _by_shape(images):
            pixels = np.stack([images[place] for place in places])
            for level, codes in enumerate(encode_in_pieces(loaded, pixels)):
                levels = loaded.grids()[level].levels
                rows = found.setdefault(_codes_name(loaded, level), [np.empty(0)] * len(images))
                array = codes.cpu().numpy().astype(smallest_type(levels))
                for place, one in zip(places, array, strict=True):
                    rows[place] = one
        return {name: stacked(rows) for name, rows in found.items()}


def _codes_name(tokenizer: Tokenizer, level: int) -> str:
    if len(tokenizer.grids()) == 1:
        return "codes"
    return f"codes.{level}"


def _by_shape(images: Sequence[np.ndarray]) -> list[list[int]]:
    """Places of the images of each shape."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault(image.shape, []).append(place)
    return list(places.values())


def stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays as a column: one array where they have one shape, else an object a row."""
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    return column(arrays)

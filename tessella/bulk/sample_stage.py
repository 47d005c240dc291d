"""The stage that draws images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from tessella.bulk.batches import SEED, Batch
from tessella.bulk.stages import Stage
from tessella.errors import InputError
from tessella.pipeline import CompletesImages, DrawsImages, SavedModel, require
from tessella.sampling import SamplingKeywords

BLOCK = 64
"""Images that are drawn together: the seeds from a multiple of this number on."""


class SampleStage(Stage[DrawsImages]):
    """Seeds to images.

    It takes a column ``seed`` and adds ``image``, ``uint8 [n, height, width, channels]``: of each
    seed the image that ``sample(n=1, seed=seed)`` draws. Seeds are drawn in blocks of 64 that begin
    at multiples of 64, so seeds that follow each other cost the least.

    Args:
        run, device, plugins: see :class:`~tessella.bulk.stages.Stage`.
        class_label: the class to draw, for a model with classes.
        options: ``method`` and the rule, see :func:`tessella.stream`.
    """

    def __init__(
        self,
        run: Path | str,
        *,
        device: str = "auto",
        plugins: Sequence[Path | str] = (),
        class_label: int | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> None:
        super().__init__(run, device=device, plugins=plugins)
        self.class_label = class_label
        self.options = options

    def _load(self, model: SavedModel) -> DrawsImages:
        takes_rules = isinstance(model, CompletesImages)
        if not takes_rules and (self.options or self.class_label is not None):
            raise InputError(
                f"{self.run} draws all pixels at once: leave out the class and the rules of symbols"
            )
        drawer: DrawsImages = require(model, DrawsImages, self.run)
        return drawer

    def _results(self, loaded: DrawsImages, batch: Mapping[str, np.ndarray]) -> Batch:
        if SEED not in batch:
            raise InputError(
                f"a batch to draw needs a column {SEED}; its columns are"
                f" {', '.join(batch) or 'none'}"
            )
        # As integers of Python, since seeds go up to 2^64 - 1.
        seeds = [int(seed) for seed in batch[SEED]]
        blocks: dict[int, np.ndarray] = {}
        images = []
        for seed in seeds:
            first = seed - seed % BLOCK
            if first not in blocks:
                blocks[first] = self._block(loaded, first)
            images.append(blocks[first][seed - first])
        return {"image": np.stack(images)}

    def _block(self, loaded: DrawsImages, seed: int) -> np.ndarray:
        """The images of a block, all of them: a shorter batch might be rounded differently."""
        if isinstance(loaded, CompletesImages):
            cond = None
            if self.class_label is not None:
                cond = torch.full((BLOCK,), self.class_label)
            [drawn] = loaded.batches(BLOCK, seed, BLOCK, cond=cond, **self.options)
        else:
            [drawn] = loaded.batches(BLOCK, seed, BLOCK)
        images: np.ndarray = drawn.cpu().numpy()
        return images

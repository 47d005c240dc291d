"""Samples and completions of a model as pictures of a page."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch

from tessella import data
from tessella.pipeline import CompletesImages, SavedModel, ScoresImages, learned_tokenizer
from tessella.report.svg import Picture, columns, sheet, some, which

MOST_SYMBOLS = 20_000
"""Grids with more symbols are not sampled for a page: each symbol is a step."""

WORK = 2e11
"""Multiplications that samples may take: about ten seconds on two cores."""

COMPLETED = 4
"""Images that are completed."""

COMPLETIONS = 3
"""Completions of each of them."""

GREY = 128
"""Value of the pixels that are to be drawn."""


@runtime_checkable
class DrawsSymbols(SavedModel, CompletesImages, ScoresImages, Protocol):
    """A model that draws images symbol by symbol: its samples and completions can be shown."""


def affordable(generator: DrawsSymbols, wanted: int) -> int:
    """How many images to draw so that it takes seconds.

    It is a function of the model alone, so that pages repeat.
    """
    if generator.symbols > MOST_SYMBOLS:
        return 0
    # Every symbol takes about one multiplication for each parameter.
    parameters = 0
    for role, network in generator.components().items():
        # The tokenizer decodes once, and is not part of a step.
        if role != "tokenizer":
            parameters += sum(parameter.numel() for parameter in network.parameters())
    work_of_an_image = generator.symbols * max(1, parameters)
    return min(wanted, max(1, int(WORK / work_of_an_image)))


def sample_pictures(
    generator: DrawsSymbols,
    images: data.ImageSet | None,
    samples: int,
    seed: int,
    notes: list[str],
) -> list[Picture]:
    """Samples, and completions where there are images to complete.

    Args:
        generator: draws.
        images: to complete; None for no completions.
        samples: images to draw; 0 for none.
        seed: of the first sample.
        notes: gets a line where samples are left out.
    """
    if not samples:
        return []
    n = affordable(generator, samples)
    classes = generator.classes
    if not n:
        finest = generator.grids[-1]
        notes.append(f"There are no samples: {finest} takes long; tessella sample draws them.")
        return []
    seeds = f"seed {seed}"
    if n > 1:
        seeds = f"seeds {seed} to {seed + n - 1}"
    note = f"{n} images, {seeds}, nothing adjusted"
    labels = None
    if classes:
        labels = torch.arange(n) % classes
        note += f", of classes 0 to {min(n, classes) - 1} in turn"
    # uint8 [n, h, w, c]
    drawn = torch.cat(list(generator.batches(n, seed, cond=labels))).cpu().numpy()
    pictures = [sheet("Samples", drawn, columns(drawn, n), f"{note}.")]
    # Completions take as long as that many samples, and a class would have to be chosen.
    enough = n >= COMPLETED * COMPLETIONS
    if images is not None and not classes and enough and generator.completes:
        pictures.append(_completed(generator, images, seed))
    return pictures


def _completed(generator: DrawsSymbols, images: data.ImageSet, seed: int) -> Picture:
    """Some images of which the upper half is kept, a few completions each."""
    given = some(images, COMPLETED)
    height, width = given.shape[1:3]
    known = torch.zeros(height, width, dtype=torch.bool)
    known[: height // 2] = True
    drawn = generator.complete(given.repeat(COMPLETIONS, axis=0), known, seed).cpu().numpy()
    # [images * completions, h, w, c] -> [images, completions, h, w, c]
    drawn = drawn.reshape(len(given), COMPLETIONS, *given.shape[1:])
    masked = np.where(known.numpy()[None, :, :, None], given, GREY).astype(np.uint8)
    rows = np.concatenate([given[:, None], masked[:, None], drawn], axis=1)
    how = "pixel by pixel"
    if learned_tokenizer(generator) is not None:
        how = "as reconstructions, since their codes are kept"
    note = f"Each row: an image of {which(images)}, what is kept of it ({how}), three completions."
    return sheet("Completions", rows.reshape(-1, *given.shape[1:]), 2 + COMPLETIONS, note)

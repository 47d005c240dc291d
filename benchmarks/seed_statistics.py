"""Means over images and seeds, with standard errors that hold both.

The figures of a model that was trained with S seeds and measured on the same I images are a matrix
``x[s, i]``. Think of it as a mean, an effect of each seed, an effect of each image, and the rest:

    x[s, i] = m + a[s] + b[i] + e[s, i]

Both seeds and images are samples of what might have been drawn, so the mean over all of them has
the variance

    var(a) / S + var(b) / I + var(e) / (S I)

The means over images, one for each seed, scatter with ``var(a) + var(e) / I``; the means over
seeds, one for each image, with ``var(b) + var(e) / S``. Each divided by its number and added, they
count the rest twice; it is taken off once, estimated from what is left in a table of two ways
(analysis of variance without replication, method of moments; Searle, Casella and McCulloch,
"Variance Components", 1992). The difference of two models is such a matrix too, for
the same seeds and the same images; effects that both models share cancel in it.

With one seed nothing is known of seeds, and the error holds images alone. With three seeds their
part rests on two degrees of freedom: it is an estimate that can be off by a factor of two.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over images and seeds."""

    mean: float
    se: float
    """Standard error over both."""
    se_images: float
    """Of the mean, were the seeds given: the scatter of images alone."""
    se_seeds: float | None
    """Of the mean, were the images given: the scatter of the seeds' means; None for one seed."""
    seeds: int
    images: int
    """Images, or groups of them (see :func:`estimate`)."""

    def facts(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def estimate(values: np.ndarray, groups: np.ndarray | None = None) -> Estimate:
    """The mean of figures over seeds and images, and its standard error.

    Args:
        values: a figure for each seed and image, ``[seeds, images]``.
        groups: the number of the photograph that each image is a tile of, ``[images]``. Tiles of a
            photograph are alike, so photographs take the place of images in the error; the mean
            stays that of all tiles.

    Raises:
        ValueError: for less than two images, or less than two photographs.

    >>> found = estimate(np.array([[1.0, 3.0], [2.0, 4.0]]))
    >>> found.mean, found.se_images, found.se_seeds
    (2.5, 1.0, 0.5)
    >>> round(found.se**2, 3)  # no rest: 1.0² + 0.5²
    1.25
    """
    units = values
    if groups is not None:
        units = group_means(values, groups)
    seeds, images = units.shape
    if images < 2:
        raise ValueError(f"a standard error needs two images or photographs, got {images}")
    mean = float(units.mean())
    of_images = float(units.mean(axis=0).var(ddof=1)) / images
    if seeds == 1:
        return Estimate(mean, math.sqrt(of_images), math.sqrt(of_images), None, 1, images)

    of_seeds = float(units.mean(axis=1).var(ddof=1)) / seeds
    rest = units - units.mean(axis=0) - units.mean(axis=1, keepdims=True) + mean
    of_rest = float((rest**2).sum()) / ((seeds - 1) * (images - 1)) / (seeds * images)
    # By chance the rest can come out larger than one of the two; the sum is never less than either,
    # which errs on the safe side where the rest is nearly all there is.
    variance = max(of_images + of_seeds - of_rest, of_images, of_seeds)
    return Estimate(
        mean, math.sqrt(variance), math.sqrt(of_images), math.sqrt(of_seeds), seeds, images
    )


def group_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """A figure for each seed and photograph, whose mean is that of all tiles.

    A photograph's figure is the mean of all tiles, plus what its own tiles sum to above that mean
    times photographs over tiles. So the mean stays that of the tiles where photographs have unequal
    numbers of them, and the scatter of the figures is that of a ratio estimate (Cochran, "Sampling
    Techniques", 1977, chapter 9A).

    Args:
        values: ``[seeds, tiles]``.
        groups: the photograph of each tile, ``[tiles]``.

    Returns:
        ``[seeds, photographs]``.
    """
    names, places = np.unique(groups, return_inverse=True)
    means = values.mean(axis=1, keepdims=True)  # [seeds, 1]
    sums = np.zeros((len(values), len(names)))
    for seed, row in enumerate(values - means):
        sums[seed] = np.bincount(places, weights=row, minlength=len(names))
    return means + sums * len(names) / values.shape[1]


def difference(ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray | None = None) -> Estimate:
    """The mean of ``ours - theirs``, paired by seed and image: see :func:`estimate`.

    Args:
        ours, theirs: figures of the same seeds on the same images, ``[seeds, images]``.
        groups: see :func:`estimate`.

    Raises:
        ValueError: for figures that are not of equally many seeds and images.
    """
    if ours.shape != theirs.shape:
        raise ValueError(
            "pairs need the same seeds and images, got figures of "
            f"{ours.shape[0]} seeds x {ours.shape[1]} images and "
            f"{theirs.shape[0]} x {theirs.shape[1]}"
        )
    return estimate(ours - theirs, groups)

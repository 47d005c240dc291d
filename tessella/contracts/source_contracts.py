"""The promises of every data source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tessella import data
from tessella.config import DataConfig
from tessella.contracts.contract import Contract, require
from tessella.data import ImageSet


@dataclass(frozen=True)
class SourceCase:
    """A data source with its place.

    Args:
        config: the source as it is named everywhere, ``name`` or ``name:PATH``, and its options.
    """

    config: DataConfig

    def load(self, split: str) -> ImageSet:
        """The images of a split."""
        return data.load(self.config, split)


def images_are_uint8(case: SourceCase) -> None:
    """Look at type and shape of the images of every split."""
    for split in data.SPLITS:
        # Some, since a folder on disk is read as it is indexed.
        images = np.asarray(case.load(split).images[:64])
        require(
            images.dtype == np.uint8 and images.ndim == 4 and 1 <= images.shape[3] <= 4,
            f"{split}: images are {images.dtype} {list(images.shape)}, "
            "right is uint8 [n, height, width, 1 to 4]",
        )
        require(len(images) > 0, f"{split} is empty")


def splits_are_disjoint(case: SourceCase) -> None:
    """Compare the hashes of the images of two splits.

    Exact copies within a data set can land in two splits; more than one in a hundred is a fault.
    """
    hashes = {}
    for split in data.SPLITS:
        # Each image once: copies within a split do no harm here.
        hashes[split] = np.unique(case.load(split).hashes())
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        shared = int(np.isin(hashes[one], hashes[other]).sum())
        # In proportion to the smaller split, which suffers most from copies.
        least = min(len(hashes[one]), len(hashes[other]))
        require(100 * shared <= least, f"{shared} images are in {one} and in {other} (of {least})")


def loading_repeats(case: SourceCase) -> None:
    """Load a split twice."""
    for split in data.SPLITS:
        # The identity holds the hash of all pixels in their order.
        first = case.load(split)
        second = case.load(split)
        require(
            first.identity() == second.identity(), f"{split}: a second loading gives other images"
        )


def labels_fit(case: SourceCase) -> None:
    """Compare the labels with the number of images and of classes."""
    names = []
    for split in data.SPLITS:
        images = case.load(split)
        if images.labels is None:
            continue
        labels = np.asarray(images.labels)
        require(
            labels.shape == (len(images),),
            f"{split}: {list(labels.shape)} labels of {len(images)} images",
        )
        require(
            labels.min() >= 0 and labels.max() < images.classes,
            f"{split}: labels lie in {labels.min()}..{labels.max()}, classes are {images.classes}",
        )
        # Numbers of classes mean the same in all splits only if the names are the same.
        names.append(tuple(images.label_names or ()))
    require(len(set(names)) <= 1, f"the splits name different classes: {names}")


CONTRACTS: tuple[Contract[SourceCase], ...] = (
    Contract("images are uint8 [n, height, width, channels]", images_are_uint8),
    Contract("splits share no images", splits_are_disjoint),
    Contract("loading again gives the same images", loading_repeats),
    Contract("labels fit the images and the classes", labels_fit),
)

"""The images of one split, and the facts that say exactly which images they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tessella.data.decoded_cache import StoredImages
from tessella.data.hashes import image_hashes

Images = np.ndarray | StoredImages
"""Images in memory, or in a file that is read piece by piece; indexed alike by a number, a slice,
numbers or a mask."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of a data source, ready to be made symbols.

    Args:
        images: ``uint8 [n, height, width, channels]``, values 0..255. For folders they are
            :class:`StoredImages`, which lie in a file (binarized ones excepted); ``images[i:j]``
            gives a numpy array of either.
        labels: ``int64 [n]``, or None.
        label_names: names of the classes in the order of the labels; ``()`` when unknown. Where a
            data set numbers its classes by sparse ids, the ids are the names.
        levels: values a pixel should take in a model: ``DataConfig.levels`` where that is set, else
            17 for the digits, 2 for binarized, boolean or bit-packed images, 256 otherwise.
        name: the source with the last part of its path, such as ``npz:mnist.npz``.
        split: ``train``, ``valid`` or ``test``.
        names: for folders, the path of each image relative to the folder, with ``/`` between its
            parts (and ``#top,left`` in pixels after the path of a tile); None for other sources.
        skipped: files left out, each as ``path: reason``.
        recipe: how the split was taken and the pixels prepared, as JSON values.
    """

    images: Images
    labels: np.ndarray | None = None
    label_names: tuple[str, ...] = ()
    levels: int = 256
    name: str = "array"
    split: str = "train"
    names: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> int:
        """Number of classes: that of ``label_names``, else one more than the greatest label here; 0
        without labels."""
        if self.label_names:
            return len(self.label_names)
        # Without names, every number up to the largest is a class, whether or not it occurs.
        if self.labels is None or not len(self.labels):
            return 0
        return int(self.labels.max()) + 1

    def numbered_by_ids(self) -> ImageSet:
        """The same images with the labels that the data set itself gives, and no names.

        Where labels are sparse ids, the names of the classes are the ids; other sets are returned
        as they are.
        """
        if self.labels is None or not all(name.isdecimal() for name in self.label_names):
            return self
        # By way of Python integers, as text of any length can be a name.
        ids = np.array(self.label_names, dtype=object).astype(np.int64)
        if np.array_equal(ids, np.arange(len(ids))):
            return self
        return replace(self, labels=ids[self.labels], label_names=())

    def hashes(self) -> np.ndarray:
        """:func:`tessella.data.hashes.image_hashes` of all images, ``uint64 [n]``: equal for equal
        images."""
        # Those of a file were computed when the images were stored, and reading all of it again
        # would take as long as an epoch.
        if isinstance(self.images, StoredImages):
            return self.images.hashes
        return image_hashes(self.images)

    def identity(self) -> dict[str, Any]:
        """JSON values that say what these images are: equal identities mean equal pixels in equal
        order.

        Holds the source (without its directory), the split and how it was taken, the number and
        shape ``[height, width, channels]`` of the images, the SHA-256 of their bytes in row-major
        order, the names of the classes, the preparation of the pixels, and the number of files
        skipped.
        """
        # How the split was taken is said beside its name, not among what was done to the pixels.
        preprocessing = dict(self.recipe)
        split_rule = preprocessing.pop("split_rule", "")
        preprocessing["levels"] = self.levels
        return {
            "source": self.name,
            "split": self.split,
            "split_rule": split_rule,
            "count": len(self),
            "shape": list(self.images.shape[1:]),
            "sha256": _sha256(self.images),
            "classes": list(self.label_names),
            "preprocessing": preprocessing,
            "skipped": len(self.skipped),
        }


def _sha256(images: Images) -> str:
    """Hexadecimal SHA-256 of the pixels in row-major order.

    Images in a file had theirs computed as they were stored.
    """
    if isinstance(images, StoredImages):
        return images.sha256
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()

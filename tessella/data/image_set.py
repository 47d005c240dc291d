"""The images of one split, and the facts that say exactly which images they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from tessella.data.hashes import image_hashes
from tessella.data.lazy_images import LazyImages
from tessella.files import JSONValue

Images = np.ndarray | LazyImages
"""Images in memory, or in a file that is read in pieces. Both are indexed in the same way, by an
integer, a slice, an array of integers or a mask."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of a data source, ready for a tokenizer.

    Args:
        images: ``uint8 [n, height, width, channels]``, values 0..255. For folders (unless
            binarized) they are :class:`LazyImages`, which are in a file; ``images[i:j]`` is a
            numpy array in either case.
        labels: ``int64 [n]``, or None.
        label_names: class names in the order of the labels; ``()`` when unknown. If a data set
            numbers its classes by sparse ids, the ids are the names.
        levels: number of values that a pixel takes in a model: ``DataConfig.levels`` if that is
            set; otherwise 17 for the digits, 2 for binarized, boolean or bit-packed images, and 256
            for all others.
        name: the source with the last part of its path, such as ``npz:mnist.npz``.
        split: ``train``, ``valid`` or ``test``.
        names: for folders, the path of each image relative to the folder, with ``/`` as separator
            (and ``#top,left``, in pixels, after the path of a tile); None for other sources.
        skipped: files left out, each as ``path: reason``.
        recipe: how the split was defined and the pixels prepared, as JSON values.
    """

    images: Images
    labels: np.ndarray | None = None
    label_names: tuple[str, ...] = ()
    levels: int = 256
    name: str = "array"
    split: str = "train"
    names: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    recipe: Mapping[str, JSONValue] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> int:
        """Number of classes; 0 without labels.

        It is the number of ``label_names``, or else the largest label plus one.
        """
        if self.label_names:
            return len(self.label_names)
        # Without names, every number up to the largest is a class, whether or not it occurs.
        if self.labels is None or not len(self.labels):
            return 0
        return int(self.labels.max()) + 1

    def numbered_by_ids(self) -> ImageSet:
        """These images with the data set's own numbers as labels, and no class names.

        This undoes the renumbering of sparse ids; all other sets are returned unchanged.
        """
        if self.labels is None or not all(name.isdecimal() for name in self.label_names):
            return self
        # Via Python integers, since a name can have any number of digits.
        ids = np.array(self.label_names, dtype=object).astype(np.int64)
        if np.array_equal(ids, np.arange(len(ids))):
            return self
        return replace(self, labels=ids[self.labels], label_names=())

    def hashes(self) -> np.ndarray:
        """A hash of each image, ``uint64 [n]``; see :func:`tessella.data.hashes.image_hashes`."""
        # Stored images were hashed when the file was written; reading it all again would take as
        # long as an epoch.
        if isinstance(self.images, LazyImages):
            return self.images.hashes
        return image_hashes(self.images)

    def identity(self) -> dict[str, JSONValue]:
        """JSON values that identify these images: if they are equal, so are all the pixels.

        They contain the source (without its directory), the split and the rule that defines it, the
        number and shape ``[height, width, channels]`` of the images, the SHA-256 of their bytes in
        row-major order, the class names, the preparation of the pixels, and the number of skipped
        files.
        """
        # The rule that defines the split belongs to the split, not to the preparation of the
        # pixels.
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

    For images in a file it was computed when the file was written.
    """
    if isinstance(images, LazyImages):
        return images.sha256
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()

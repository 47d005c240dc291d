"""Images in, ``uint8 [n, height, width, channels]`` out, always 0..255.

A source is named the same way everywhere: ``digits`` (bundled), ``mnist:PATH``, ``cifar10:PATH``,
``npz:PATH``, ``folder:PATH``. :func:`load` reads one split of it and does what the
:class:`~tessella.config.DataConfig` asks; :func:`augment` makes the random changes that are drawn
anew each epoch. Images of a folder stay in a file (:class:`StoredImages`), those of other sources
in memory. Importing this package does not import torch.

>>> from tessella.config import DataConfig
>>> train = load(DataConfig("digits"), "train")
>>> train.images.shape, train.levels
((1350, 8, 8, 1), 17)
"""

from __future__ import annotations

from tessella.data.augmentation import augment
from tessella.data.decoded_cache import StoredImages
from tessella.data.hashes import image_hashes
from tessella.data.image_set import Images, ImageSet
from tessella.data.sources import SOURCES, Source, load
from tessella.data.splits import SPLITS

__all__ = [
    "SOURCES",
    "SPLITS",
    "Images",
    "ImageSet",
    "Source",
    "StoredImages",
    "augment",
    "image_hashes",
    "load",
]

"""Images in, ``uint8 [n, height, width, channels]`` out, always 0..255.

A source is named the same way everywhere: ``digits`` (bundled), ``mnist:PATH``, ``cifar10:PATH``,
``npz:PATH``, ``folder:PATH``, ``shards:PATTERN``, ``hf:NAME``,
``archive:FILE``, or one that a plugin added
(:func:`register_source`). :func:`load` reads one split of it and prepares the pixels as the
:class:`~tessella.config.DataConfig` asks; :func:`augment` makes the random changes that differ from
epoch to epoch. Images of a folder stay in a file on disk (:class:`StoredImages`), those of other
sources in memory. Importing this package does not import torch.

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
from tessella.data.source_kinds import SOURCES, Source, register_source, source_forms
from tessella.data.sources import find_source, load
from tessella.data.splits import SPLITS
from tessella.data.transform import Part

# Each of these modules registers its source, in the order in which help texts list them.
# isort: off
from tessella.data import digits, idx, cifar, npz  # noqa: F401
from tessella.data import folder  # noqa: F401
from tessella.data import shards_source  # noqa: F401
from tessella.data import hugging_face  # noqa: F401
from tessella.data import compressed_source, stored_codes  # noqa: F401
# isort: on

__all__ = [
    "SOURCES",
    "SPLITS",
    "ImageSet",
    "Images",
    "Part",
    "Source",
    "StoredImages",
    "augment",
    "find_source",
    "image_hashes",
    "load",
    "register_source",
    "source_forms",
]

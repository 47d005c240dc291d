"""Images in, ``uint8 [n, height, width, channels]`` out, always 0..255.

A source is named the same way everywhere: ``digits`` (bundled), ``mnist:PATH``, ``cifar10:PATH``, ``npz:PATH``,
``folder:PATH``. :func:`load` reads one split of it and does what the :class:`~tessella.config.DataConfig` asks;
:func:`augment` makes the random changes that are drawn anew each epoch. Importing this package does not import torch.

>>> from tessella.config import DataConfig
>>> train = load(DataConfig("digits"), "train")
>>> train.images.shape, train.levels
((1350, 8, 8, 1), 17)
"""

from __future__ import annotations

from tessella.data.augmentation import augment
from tessella.data.image_set import ImageSet
from tessella.data.sources import SOURCES, Source, load
from tessella.data.splits import SPLITS

__all__ = ["SOURCES", "SPLITS", "ImageSet", "Source", "augment", "load"]

"""Refuse folders in which images of another kind would become classes, or training images.

Some published data sets keep masks beside their images, or splits inside each class. The rules for
sub-folders would take the masks for one more class, and divide test images anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tessella.data.paths import name_list, printable
from tessella.data.splits import FOLDERS, split_of_folder
from tessella.errors import DataError

IMAGE_FOLDERS = frozenset(
    ("image", "images", "img", "imgs", "jpegimages", "jpgimages", "photos", "pictures")
)
"""Folders of the images themselves, in lower case without separators."""
MASK_FOLDERS = frozenset(
    (
        "annotation",
        "annotations",
        "groundtruth",
        "groundtruths",
        "gt",
        "label",
        "labels",
        "mask",
        "masks",
        "segmentation",
        "segmentationclass",
        "segmentationobject",
        "segmentations",
        "trimaps",
    )
)
"""Folders of pictures that annotate other images."""


def refuse_masks(names: Sequence[str]) -> None:
    """Refuse masks beside images, as in ``JPEGImages`` and ``SegmentationClass``.

    Args:
        names: relative paths of images.

    Raises:
        DataError: when some folder has sub-folders of both kinds.
    """
    for parent, folders in _sub_folders(names).items():
        images = []
        masks = []
        for name in sorted(folders):
            # "Ground Truth", "ground_truth" and "groundtruth" are the same.
            plain = re.sub(r"[-_ ]", "", name.lower())
            if plain in IMAGE_FOLDERS:
                images.append(name)
            elif plain in MASK_FOLDERS:
                masks.append(name)
        if images and masks:
            raise DataError(
                f"the folders {_listed(parent, images + masks)} look like images and their masks, "
                "which would be read as classes: name the images alone, "
                f"folder:PATH/{_listed(parent, images[:1])}, or move the masks elsewhere"
            )


def refuse_other_splits(names: Sequence[str], top: str) -> None:
    """Refuse splits that :func:`tessella.data.splits.are_splits` does not recognize.

    These are ``trainA`` and ``testA``, ``train2017`` beside folders that are no splits, and splits
    inside of classes.

    Args:
        names: relative paths of images that are not divided by their folders.
        top: the folder whose sub-folders are the classes.

    Raises:
        DataError: when a folder has sub-folders of two such splits.
    """
    for parent, folders in _sub_folders(names).items():
        alike = []
        splits = set()
        for name in sorted(folders):
            split = _resembled_split(name)
            if split:
                alike.append(name)
                splits.add(split)
        if len(splits) < 2:
            continue
        found = _listed(parent, alike)
        one = _listed(parent, alike[:1])
        if parent != top:
            raise DataError(
                f"the folders {found} look like splits inside of a class, and their images would "
                "be divided anew: put the splits above the classes (train/CLASS, test/CLASS), or "
                f"name one folder, such as folder:PATH/{one}"
            )
        # Classes may be called "train" and "test" if others lie beside them; the rule says so.
        if not all(name.lower() in FOLDERS for name in alike):
            raise DataError(
                f"the folders {found} look like splits, but would be read as classes: rename them "
                "to train, valid and test and move other folders elsewhere, or name one of them, "
                f"such as folder:PATH/{one}"
            )


def _sub_folders(names: Sequence[str]) -> dict[str, set[str]]:
    """The sub-folders of each folder, ``""`` being the uppermost."""
    found: dict[str, set[str]] = {}
    for folder in {name.rpartition("/")[0] for name in names}:
        parent = ""
        for name in filter(None, folder.split("/")):
            found.setdefault(parent, set()).add(name)
            parent = _inside(parent, name)
    # In a fixed order, so that messages are always the same.
    return dict(sorted(found.items()))


def _inside(parent: str, name: str) -> str:
    """The path of a sub-folder."""
    if not parent:
        return name
    return f"{parent}/{name}"


def _listed(parent: str, names: Sequence[str]) -> str:
    """Paths of sub-folders, for messages."""
    paths = []
    for name in names:
        paths.append(printable(_inside(parent, name)))
    return name_list(paths)


def _resembled_split(name: str) -> str:
    """The split whose name a folder has, maybe with a number, a letter or a word behind it."""
    shorter = re.sub(r"[-_ ]?([ab]|images?|imgs?|set|data)$", "", name.lower())
    return split_of_folder(shorter)

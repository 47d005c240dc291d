"""How a folder of images is divided into splits and classes.

Usually the sub-folders decide: the upper ones are splits if they are named like splits, and those
below are classes. Splits inside of classes, and masks beside images, are refused
(:mod:`tessella.data.mixed_folders`). Some published data sets come with lists of splits and
classes instead. The layouts of Tiny ImageNet, CelebA, CUB-200-2011 and Omniglot are known here, and
so is a list of labels in a CSV file (:mod:`tessella.data.label_lists`). A list must be complete: an
image that it does not name is an error, since any guess about it may be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from tessella.data.label_lists import Table, find_label_list, read_table
from tessella.data.mixed_folders import refuse_masks, refuse_other_splits
from tessella.data.paths import name_list, printable
from tessella.data.splits import (
    ALL,
    FOLDERS,
    SPLITS,
    are_splits,
    by_folders,
    by_hash,
    fill_missing,
    split_of_folder,
)
from tessella.errors import DataError

HASH_RULE = (
    "SHA-256 of 'tessella split:' and the relative path: 5 % test, 5 % valid, the rest train"
)
LAYOUT_VERSION = 3
"""Version of the rules below. The cache stores labels with the pixels, and is rebuilt when this
changes."""


@dataclass(frozen=True)
class Listing:
    """The files of a folder.

    Args:
        images: relative paths of those that may be images, with ``/`` between their parts, sorted.
        unreadable: those of ``images`` whose format is not supported.
        others: relative paths of all other files.
        read_text: returns the text of a file, given its relative path.
    """

    images: Sequence[str]
    unreadable: frozenset[str] = frozenset()
    others: Sequence[str] = ()
    read_text: Callable[[str], str] | None = None

    def named(self, *names: str) -> list[str]:
        """Paths of the other files that have one of these names, in any folder."""
        return [path for path in self.others if PurePosixPath(path).name in names]

    def table(self, path: str) -> Table:
        """The rows of a list."""
        assert self.read_text is not None
        return read_table(path, self.read_text(path))


@dataclass(frozen=True)
class Division:
    """How the images of a folder are divided.

    Args:
        splits: the split of each image.
        classes: the class name of each image, empty if it has none.
        rule: the rule that defined the splits, as text.
        given: the splits that the data set itself defines, each with or without labels; empty if
            the splits are taken by a hash.
        notes: warnings for the user.
    """

    splits: list[str]
    classes: list[str]
    rule: str
    given: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, sorted; ``()`` if there are none."""
        if not self.given and not all(self.classes):
            return ()
        return tuple(sorted(set(self.classes) - {""}))

    def labels(self, split: str) -> list[int] | None:
        """The label of each image: the index of its class in :attr:`label_names`.

        Returns:
            one label for each image of every split (0 if it has no class); None if an image of this
            split has no class, or if any image has none and the data set does not define splits.
        """
        for part, name in zip(self.splits, self.classes, strict=True):
            # If the data set defines splits, train keeps its labels even if test has none.
            needs_class = not self.given or split in (part, ALL)
            if needs_class and not name:
                return None
        number = {name: label for label, name in enumerate(self.label_names)}
        return [number.get(name, 0) for name in self.classes]

    def classes_in(self, split: str) -> set[str]:
        """The names of the classes that occur in a split."""
        found = set()
        for part, name in zip(self.splits, self.classes, strict=True):
            if part == split and name:
                found.add(name)
        return found


def divide_listing(files: Listing, split: str) -> Division:
    """The splits and classes of the images in a folder.

    Args:
        files: the files in the folder.
        split: the split that is wanted; with ``all``, splits may have different classes.

    Raises:
        DataError: when there are images next to split folders, when a list does not match the
            images, when held-out images have classes that no training image has, or when the
            folders hold splits or masks that would be read as classes.
    """
    # Layouts with lists come first, because their folders would be misread, for example as a single
    # class "img_align_celeba".
    division = _celeba(files) or _cub(files) or _omniglot(files)
    if division is None:
        readable = _readable(files.images, files.unreadable)
        refuse_masks(readable)
        division = by_sub_folders(files.images, files.unreadable)
        if not division.given and split != ALL:
            shared = _count_shared([_folders_of(name) for name in readable])
            top = "/".join(_folders_of(readable[0])[:shared])
            refuse_other_splits(readable, top)
        # Annotations come before false classes: they name the classes of images in "val/images".
        division = _with_annotations(files, division)
        division = _without_false_classes(division)
        division = _with_label_list(files, division)
    if split != ALL:
        _check_same_classes(division)
    return division


def by_sub_folders(names: Sequence[str], unreadable: frozenset[str] = frozenset()) -> Division:
    """Divide images by their sub-folders. Files in unsupported formats do not count.

    If every image is in a sub-folder, the sub-folder is its class. That is the first part of its
    path, not counting leading folders that all images share, as long as another sub-folder follows.

    Raises:
        DataError: when there are images next to split folders.
    """
    readable = _readable(names, unreadable)
    shared = _count_shared([_folders_of(name) for name in readable])
    # The folders of each image below those that all images share.
    below = {}
    for name in names:
        below[name] = _folders_of(name)[shared:]
    top_folders = set()
    stray = []
    for name in readable:
        if below[name]:
            top_folders.add(below[name][0])
        else:
            stray.append(name)
    for name in unreadable:
        # An unsupported file is never decoded, so any folder will do for it.
        if not below[name] and top_folders:
            below[name] = [min(top_folders)]
    if not are_splits(top_folders):
        # If one image is in no sub-folder, then none of them has a class.
        classes = [""] * len(names)
        if not stray:
            classes = [below[name][0] for name in names]
        return Division(by_hash(names), classes, HASH_RULE + _not_splits(top_folders))
    if stray:
        raise DataError(
            f"the folders {', '.join(sorted(top_folders))} are splits, but {printable(stray[0])} "
            "is in none of them: move it into one of them, or out of this folder"
        )
    splits, rule = by_folders(names, [below[name][0] for name in names])
    # The class is the next folder below that of the split, again not counting folders that all
    # images share. Test images often have no classes, so splits may differ in this.
    inner = [below[name][1:] for name in names]
    shared = _count_shared(list(filter(None, inner)))
    classes = []
    for parts in inner:
        classes.append(parts[shared] if parts else "")
    # "val" and "validation" are the same split.
    given = set()
    for folder in top_folders:
        given.add(split_of_folder(folder))
    return Division(splits, classes, rule, frozenset(given))


def _readable(names: Sequence[str], unreadable: frozenset[str]) -> list[str]:
    """The images that decide about a folder: all, if none is of a supported format."""
    return [name for name in names if name not in unreadable] or list(names)


def _folders_of(name: str) -> list[str]:
    """The folders in a relative path, outermost first."""
    return name.split("/")[:-1]


def _count_shared(folders: list[list[str]]) -> int:
    """How many leading folders all these paths share, always leaving one more below."""
    if not folders:
        return 0
    first = min(folders)
    last = max(folders)
    shortest = min(map(len, folders))
    count = 0
    # Parts that the first and the last path in sorted order share are shared by all.
    while count + 1 < shortest and first[count] == last[count]:
        count += 1
    return count


def _not_splits(folders: set[str]) -> str:
    """An addition to the rule, for folders of which only some are named like splits."""
    alike = [name for name in sorted(folders) if name.lower() in FOLDERS]
    others = sorted(folders - set(alike))
    if len(alike) < 2 or not others:
        return ""
    return (
        f" (the folders {', '.join(alike)} are not splits but classes, since {others[0]} lies "
        "beside them)"
    )


def _with_annotations(files: Listing, division: Division) -> Division:
    """Classes of Tiny ImageNet's validation images, from ``val_annotations.txt`` beside them.

    Its lines are ``val_0.JPEG<tab>n03444034<tab>box``; the images are in ``val/images``, a folder
    that is not a class.
    """
    found = files.named("val_annotations.txt")
    if not found:
        return division
    classes = list(division.classes)
    for path in found:
        by_name = _pairs(files, path)
        folder = path.removesuffix("val_annotations.txt")
        for number, name in enumerate(files.images):
            if name.startswith(folder):
                classes[number] = _entry_of(by_name, PurePosixPath(name).name, name, path)
    return replace(division, classes=classes)


def _without_false_classes(division: Division) -> Division:
    """Remove the only class of a held-out split if no training image has it.

    Folders such as ``test/images`` and ``test/unknown`` are not classes.
    """
    if not division.given:
        return division
    classes = list(division.classes)
    rule = division.rule
    training = division.classes_in("train")
    # If training images have the class too, it is one.
    for split in ("valid", "test"):
        held_out = division.classes_in(split)
        if training and len(held_out) == 1 and not held_out & training:
            rule += f"; {split} has no classes (its only folder, {min(held_out)}, is none of train)"
            for number, part in enumerate(division.splits):
                if part == split:
                    classes[number] = ""
    return replace(division, classes=classes, rule=rule)


def _with_label_list(files: Listing, division: Division) -> Division:
    """Classes from a CSV file, for images that are not in sub-folders of classes."""
    in_one_folder = len(set(division.classes)) <= 1
    if not in_one_folder or files.read_text is None:
        return division
    # Splits that come from a hash say nothing about which images have labels.
    groups = [ALL] * len(files.images)
    if division.given:
        groups = division.splits
    label_list = find_label_list(files.images, files.others, files.read_text, groups)
    if label_list is None:
        return division
    notes = [*division.notes, *label_list.notes]
    if not label_list.classes:
        return replace(division, notes=notes)
    return replace(
        division,
        classes=label_list.classes,
        notes=notes,
        rule=f"{division.rule}; labels from {label_list.path}",
    )


def _celeba(files: Listing) -> Division | None:
    """CelebA: faces in one folder, and in ``list_eval_partition.txt`` the split of each (0, 1, 2).

    ``list_attr_celeba.txt`` has forty attributes for each face, so there are no classes.
    """
    partitions = files.named("list_eval_partition.txt", "list_eval_partition.csv")
    attributes = files.named("list_attr_celeba.txt", "list_attr_celeba.csv")
    no_classes = [""] * len(files.images)
    if not partitions:
        if not attributes:
            return None
        return Division(by_hash(files.images), no_classes, HASH_RULE)
    path = partitions[0]
    split_of: dict[str, str] = {}
    for row in files.table(path).rows:
        if len(row) == 2 and row[1] in ("0", "1", "2"):
            # The list names .jpg files, but the same pictures are also published as .png.
            stem = PurePosixPath(row[0]).stem
            named = SPLITS[int(row[1])]
            _check_one_meaning(split_of.setdefault(stem, named), named, row[0], path)
    splits = []
    for name in files.images:
        splits.append(_entry_of(split_of, PurePosixPath(name).stem, name, path))
    return Division(splits, no_classes, f"the list {path}", frozenset(SPLITS))


def _cub(files: Listing) -> Division | None:
    """CUB-200-2011: lists that refer to the images by number.

    ``images.txt`` numbers the images, ``train_test_split.txt`` and ``image_class_labels.txt`` use
    these numbers, ``classes.txt`` names the classes.
    """
    needed = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    found = {}
    for name in (*needed, "classes.txt"):
        for path in files.named(name):
            found[name] = path
    if not set(needed) <= set(found):
        return None
    images_list = found["images.txt"]
    labels_list = found["image_class_labels.txt"]
    splits_list = found["train_test_split.txt"]
    label_of = _pairs(files, labels_list)  # number of an image -> number of its class
    trains = _pairs(files, splits_list)  # number of an image -> "1" for training images
    class_names = {}  # number of a class -> its name
    if "classes.txt" in found:
        class_names = _pairs(files, found["classes.txt"])
    number_of = {}  # path of an image -> its number
    for number, path in _pairs(files, images_list).items():
        number_of[path] = number
    splits = []
    classes = []
    for name in files.images:
        # Paths in the list are relative to the folder "images" next to the list.
        inside = name.rpartition("images/")[2]
        number = _entry_of(number_of, inside, name, images_list)
        label = _entry_of(label_of, number, name, labels_list)
        in_training = _entry_of(trains, number, name, splits_list) == "1"
        if in_training:
            splits.append("train")
        else:
            splits.append("test")
        classes.append(class_names.get(label, label))
    rule = f"the list {splits_list}"
    rule += fill_missing(files.images, splits)
    return Division(splits, classes, rule, frozenset({"train", "test"}))


def _omniglot(files: Listing) -> Division | None:
    """Omniglot: a class is a character of an alphabet, ``ALPHABET/characterNN``.

    The drawings are in ``images_background`` or ``images_evaluation``.

    Raises:
        DataError: when both sets are there, since they have no character in common.
    """
    sets = set()
    classes = []
    for name in files.images:
        folders = _folders_of(name)
        # A single alphabet has one folder less, and is divided by its sub-folders.
        if len(folders) < 2 or not re.fullmatch(r"character\d+", folders[-1]):
            return None
        classes.append("/".join(folders[-2:]))
        sets.add("/".join(folders[:-2]))
    if not files.images:
        return None
    if len(sets) > 1:
        raise DataError(
            f"the sets {', '.join(sorted(sets))} of Omniglot have no character in common, so they "
            "are not splits of one data set: name one of them, such as "
            f"folder:PATH/{min(sets)}"
        )
    return Division(by_hash(files.images), classes, HASH_RULE)


def _pairs(files: Listing, path: str) -> dict[str, str]:
    """The first two columns of a list, as a mapping from the first to the second."""
    pairs: dict[str, str] = {}
    for row in files.table(path).rows:
        if len(row) >= 2:
            _check_one_meaning(pairs.setdefault(row[0], row[1]), row[1], row[0], path)
    return pairs


def _check_one_meaning(first: str, second: str, name: str, path: str) -> None:
    """Refuse a list that says two things of one name."""
    if first != second:
        raise DataError(
            f"the list {printable(path)} names {printable(name)} twice, with {first!r} and "
            f"{second!r}: keep one of the lines"
        )


def _entry_of(values: Mapping[str, str], key: str, name: str, path: str) -> str:
    """The entry for an image in a list.

    Raises:
        DataError: when the list does not name it.
    """
    try:
        return values[key]
    except KeyError:
        raise DataError(
            f"{printable(name)} is not in the list {printable(path)}, which names "
            f"{len(values):,}: add it there, or move the image elsewhere"
        ) from None


def _check_same_classes(division: Division) -> None:
    """Refuse held-out images of classes that no training image has; note missing classes.

    Raises:
        DataError: when a held-out split has classes that train lacks.
    """
    if not division.given:
        return
    training = division.classes_in("train")
    if not training:
        if division.label_names and "train" in division.splits:
            division.notes.append(
                "training images have no classes, but held-out images do: "
                f"{name_list(list(division.label_names))}"
            )
        return
    for split in ("valid", "test"):
        held_out = division.classes_in(split)
        foreign = sorted(held_out - training)
        if foreign:
            raise DataError(
                f"the split {split} has classes that train lacks ({name_list(foreign)}); train has "
                f"{name_list(sorted(training))}. A model cannot learn these: move their images "
                "elsewhere, or name the folder of one split, which is then divided by itself"
            )
        # The labels are fine, but figures on this split do not cover all classes. This is not worth
        # a note if the split was taken from train by a hash, since it may well lack a rare class.
        absent = sorted(training - held_out)
        if split in division.given and held_out and absent:
            division.notes.append(
                f"the split {split} has no images of {len(absent)} of the {len(training)} classes: "
                f"{name_list(absent)}"
            )

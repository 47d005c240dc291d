"""How a folder of images is divided into splits and classes.

Most folders say it by their sub-folders: splits first where they bear the names of splits, classes
below. Published data sets have layouts of their own, where lists beside the images say it. Those of
Tiny ImageNet, CelebA, CUB-200-2011 and Omniglot are known here, and so is a list of labels in a CSV
file (:mod:`tessella.data.label_lists`). A list is followed to the letter: an image that it does not
name is an error, since whatever could be guessed about it may be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from tessella.data.label_lists import Table, find_label_list, read_table
from tessella.data.paths import listing, printable
from tessella.data.splits import ALL, FOLDERS, SPLITS, by_folders, by_hash, divide, fill_missing
from tessella.errors import DataError

HASH_RULE = (
    "SHA-256 of 'tessella split:' and the relative path: 5 % test, 5 % valid, the rest train"
)
LAYOUT_VERSION = 2
"""Of the rules below. Decoded folders are kept with their labels, and made anew when it changes."""


@dataclass(frozen=True)
class Listing:
    """The files of a folder.

    Args:
        images: relative paths of those that may be images, with ``/`` between their parts, sorted.
        unreadable: those of them that are images of a kind that is not read.
        others: relative paths of all other files.
        read_text: the text of a file, by its relative path.
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
        splits: of each image.
        classes: the name of each image's class, empty where it has none.
        rule: how the splits were taken, in words.
        given: the splits that the data set itself says, each of which has labels or has none;
            empty where the splits are taken by a hash.
        notes: what the user should hear of.
    """

    splits: list[str]
    classes: list[str]
    rule: str
    given: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, sorted; ``()`` where there are none."""
        if not self.given and not all(self.classes):
            return ()
        return tuple(sorted(set(self.classes) - {""}))

    def labels(self, split: str) -> list[int] | None:
        """The class of each image, by its place in :attr:`label_names`.

        Returns:
            one label for each image, whatever its split (0 where it has no class); None when an
            image of this split (without given splits: any image) has no class.
        """
        for part, name in zip(self.splits, self.classes, strict=True):
            # Where the splits are given, test images without classes leave train its labels.
            concerned = not self.given or split in (part, ALL)
            if concerned and not name:
                return None
        number = {name: label for label, name in enumerate(self.label_names)}
        return [number.get(name, 0) for name in self.classes]

    def classes_in(self, split: str) -> set[str]:
        """The classes that occur in a split."""
        found = set()
        for part, name in zip(self.splits, self.classes, strict=True):
            if part == split and name:
                found.add(name)
        return found


def divide_listing(files: Listing, split: str) -> Division:
    """The splits and classes of the images in a folder.

    Args:
        files: what lies in the folder.
        split: the one that is wanted; with ``all``, splits may differ in their classes.

    Raises:
        DataError: when images lie beside folders that are splits, when a list does not fit the
            images, or when held-out images have classes that training images lack.
    """
    # The layouts that lists define come first: their folders would say something else, such as a
    # single class "img_align_celeba".
    division = _celeba(files) or _cub(files) or _omniglot(files)
    if division is None:
        division = by_sub_folders(files.images, files.unreadable)
        # Annotations before false classes: they name the class of images in "val/images".
        division = _with_annotations(files, division)
        division = _without_false_classes(division)
        division = _with_label_list(files, division)
    if split != ALL:
        _check_same_classes(division)
    return division


def by_sub_folders(names: Sequence[str], unreadable: frozenset[str] = frozenset()) -> Division:
    """The division that the sub-folders say. Files that cannot be read have no say in it.

    Where every image lies in a sub-folder, the sub-folder is its class: the first part of its path,
    after the parts that all images share with a further sub-folder below them.

    Raises:
        DataError: when images lie beside folders that are splits.
    """
    readable = [name for name in names if name not in unreadable] or list(names)
    shared = _count_shared([_folders_of(name) for name in readable])
    # The folders of each image below those that all images share.
    below = {name: _folders_of(name)[shared:] for name in names}
    top_folders = set()
    stray = []
    for name in readable:
        if below[name]:
            top_folders.add(below[name][0])
        else:
            stray.append(name)
    for name in unreadable:
        # What cannot be read is never labelled, so that any folder will do for it.
        if not below[name] and top_folders:
            below[name] = [min(top_folders)]
    if not divide(top_folders):
        # One image that lies in no folder, and none of them has a class.
        classes = [""] * len(names) if stray else [below[name][0] for name in names]
        return Division(by_hash(names), classes, HASH_RULE + _not_splits(top_folders))
    if stray:
        raise DataError(
            f"the folders {', '.join(sorted(top_folders))} are splits, and {printable(stray[0])} "
            "lies beside them: move it into one of them, or elsewhere"
        )
    splits, rule = by_folders(names, [below[name][0] for name in names])
    # Below the folder of its split, the next folder is an image's class; again without folders that
    # all images share. Splits may differ in this: test images often have no classes.
    inner = [below[name][1:] for name in names]
    shared = _count_shared(list(filter(None, inner)))
    classes = [parts[shared] if parts else "" for parts in inner]
    given = frozenset(FOLDERS[folder.lower()] for folder in top_folders)
    return Division(splits, classes, rule, given)


def _folders_of(name: str) -> list[str]:
    """The folders that a relative path leads through."""
    return name.split("/")[:-1]


def _count_shared(folders: list[list[str]]) -> int:
    """How many leading parts all these paths share, with a further folder below them."""
    if not folders:
        return 0
    first = min(folders)
    last = max(folders)
    shortest = min(map(len, folders))
    count = 0
    # In the order of sorting, what the first and the last path share, all share.
    while count + 1 < shortest and first[count] == last[count]:
        count += 1
    return count


def _not_splits(folders: set[str]) -> str:
    """The words for folders of which some, but not all, are named like splits."""
    alike = sorted(name for name in folders if name.lower() in FOLDERS)
    others = sorted(folders - set(alike))
    if len(alike) < 2 or not others:
        return ""
    return (
        f" (the folders {', '.join(alike)} are not splits but classes, since {others[0]} lies "
        "beside them)"
    )


def _with_annotations(files: Listing, division: Division) -> Division:
    """Classes of Tiny ImageNet's validation images, from ``val_annotations.txt`` beside them.

    Its lines are ``val_0.JPEG<tab>n03444034<tab>box``; the images lie in ``val/images``, a folder
    that is no class.
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
                classes[number] = _listed(by_name, PurePosixPath(name).name, name, path)
    return replace(division, classes=classes)


def _without_false_classes(division: Division) -> Division:
    """Take away the class of held-out images that all lie in one folder which training images do
    not have: ``test/images`` and ``test/unknown`` are folders, and no classes."""
    if not division.given:
        return division
    classes = list(division.classes)
    rule = division.rule
    training = division.classes_in("train")
    for split in ("valid", "test"):
        held_out = division.classes_in(split)
        if training and len(held_out) == 1 and not held_out & training:
            rule += f"; {split} has no classes (its only folder, {min(held_out)}, is none of train)"
            for number, part in enumerate(division.splits):
                if part == split:
                    classes[number] = ""
    return replace(division, classes=classes, rule=rule)


def _with_label_list(files: Listing, division: Division) -> Division:
    """Classes from a CSV file, for images that no sub-folders of classes hold."""
    in_one_folder = len(set(division.classes)) <= 1
    if not in_one_folder or files.read_text is None:
        return division
    # Splits that a hash took say nothing about which images have labels.
    groups = division.splits if division.given else [ALL] * len(files.images)
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

    The attributes of ``list_attr_celeba.txt`` are forty for each face, so there are no classes.
    """
    partitions = files.named("list_eval_partition.txt", "list_eval_partition.csv")
    attributes = files.named("list_attr_celeba.txt", "list_attr_celeba.csv")
    no_classes = [""] * len(files.images)
    if not partitions:
        if not attributes:
            return None
        return Division(by_hash(files.images), no_classes, HASH_RULE)
    path = partitions[0]
    split_of = {}
    for row in files.table(path).rows:
        if len(row) == 2 and row[1] in ("0", "1", "2"):
            # The list names .jpg files; the same pictures are published as .png too.
            split_of[PurePosixPath(row[0]).stem] = SPLITS[int(row[1])]
    splits = []
    for name in files.images:
        splits.append(_listed(split_of, PurePosixPath(name).stem, name, path))
    return Division(splits, no_classes, f"the list {path}", frozenset(SPLITS))


def _cub(files: Listing) -> Division | None:
    """CUB-200-2011: ``images.txt`` numbers the images, ``train_test_split.txt`` and
    ``image_class_labels.txt`` speak of these numbers, ``classes.txt`` names the classes."""
    needed = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
    found = {}
    for name in (*needed, "classes.txt"):
        for path in files.named(name):
            found[name] = path
    if not set(needed) <= set(found):
        return None
    images_list, labels_list, splits_list = (found[name] for name in needed)
    label_of = _pairs(files, labels_list)  # number of an image -> number of its class
    trains = _pairs(files, splits_list)  # number of an image -> "1" for training images
    class_names = _pairs(files, found["classes.txt"]) if "classes.txt" in found else {}
    number_of = {path: number for number, path in _pairs(files, images_list).items()}
    splits = []
    classes = []
    for name in files.images:
        # The list's paths begin below the folder "images", which lies beside the list.
        inside = name.rpartition("images/")[2]
        number = _listed(number_of, inside, name, images_list)
        label = _listed(label_of, number, name, labels_list)
        in_training = _listed(trains, number, name, splits_list) == "1"
        splits.append("train" if in_training else "test")
        classes.append(class_names.get(label, label))
    rule = f"the list {splits_list}"
    rule += fill_missing(files.images, splits)
    return Division(splits, classes, rule, frozenset({"train", "test"}))


def _omniglot(files: Listing) -> Division | None:
    """Omniglot: ``ALPHABET/characterNN/drawing.png``, within ``images_background`` or
    ``images_evaluation``; a class is a character of an alphabet.

    Raises:
        DataError: when both sets are there, which have no character in common.
    """
    sets = set()
    classes = []
    for name in files.images:
        folders = _folders_of(name)
        # A single alphabet has one folder less, and is read by its sub-folders.
        if len(folders) < 2 or not re.fullmatch(r"character\d+", folders[-1]):
            return None
        classes.append("/".join(folders[-2:]))
        sets.add(folders[-3] if len(folders) > 2 else "")
    if not files.images:
        return None
    if len(sets) > 1:
        raise DataError(
            f"the sets {', '.join(sorted(sets))} of Omniglot have no character in common, so they "
            "are no splits of one another: name one of them, such as "
            f"folder:PATH/{min(sets)}"
        )
    return Division(by_hash(files.images), classes, HASH_RULE)


def _pairs(files: Listing, path: str) -> dict[str, str]:
    """A list of two columns as a mapping."""
    pairs = {}
    for row in files.table(path).rows:
        if len(row) >= 2:
            pairs[row[0]] = row[1]
    return pairs


def _listed(values: Mapping[str, str], key: str, name: str, path: str) -> str:
    """The entry of an image in a list.

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
    """Refuse held-out images of classes that no training image has, and say which are missing.

    Raises:
        DataError: when a held-out split has classes of its own.
    """
    if not division.given:
        return
    training = division.classes_in("train")
    if not training:
        if division.label_names and "train" in division.splits:
            division.notes.append(
                "training images have no classes and held-out images have: "
                f"{listing(list(division.label_names))}"
            )
        return
    for split in ("valid", "test"):
        held_out = division.classes_in(split)
        foreign = sorted(held_out - training)
        if foreign:
            raise DataError(
                f"the split {split} has classes that train lacks ({listing(foreign)}); train has "
                f"{listing(sorted(training))}. A model cannot learn them: move these images "
                "elsewhere, or name the folder of one split, which is then divided by itself"
            )
        # Nothing is wrong with the labels here, but figures of the split are not of all classes. A
        # split that was cut from train by a hash may well lack a rare class.
        absent = sorted(training - held_out)
        if split in division.given and held_out and absent:
            division.notes.append(
                f"the split {split} has no images of {len(absent)} of the {len(training)} classes: "
                f"{listing(absent)}"
            )

"""Lists that come with images: text files of columns, and labels in a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from tessella.data.paths import printable
from tessella.errors import DataError

LIST_EXTENSIONS = (".csv", ".tsv")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target")
MAX_LISTS = 20
"""If there are more CSV files than this, they are something else and are not opened."""
LEAST_COVERAGE = 10
"""A list that names fewer than one in this many images is about something else."""
LEAST_IMAGES_PER_CLASS = 2
"""Least number of images per class, on average; captions and ids differ for every image."""

ReadText = Callable[[str], str]


@dataclass(frozen=True)
class Table:
    """The rows of a list, each of them a list of cells without surrounding blanks."""

    rows: list[list[str]]


@dataclass(frozen=True)
class LabelList:
    """The labels that a list gives to images.

    Args:
        path: the path of the list.
        classes: the class of each image, empty if its split has none; ``[]`` if the list names
            images, but it is not clear which labels they have.
        notes: warnings for the user, such as why there are no labels.
    """

    path: str
    classes: list[str]
    notes: list[str] = field(default_factory=list)


def read_table(path: str, text: str) -> Table:
    """The rows of a list.

    Cells are separated by commas or semicolons in ``.csv``, by tabs in ``.tsv``, and by blanks or
    tabs in any other file. Empty lines are left out.

    Args:
        path: the path of the list; its extension says how cells are separated.
        text: its content.

    Raises:
        DataError: when it is not a table.
    """
    extension = PurePosixPath(path).suffix.lower()
    lines = text.splitlines()
    rows = []
    if extension not in LIST_EXTENSIONS:
        # Lists of published data sets. If they use tabs, names can contain blanks.
        for line in lines:
            rows.append(line.split("\t") if "\t" in line else line.split())
    else:
        delimiter = ","
        if extension == ".tsv":
            delimiter = "\t"
        # Spreadsheets write semicolons if the comma is the decimal sign.
        if delimiter == "," and lines and "," not in lines[0] and ";" in lines[0]:
            delimiter = ";"
        try:
            rows.extend(csv.reader(lines, delimiter=delimiter))
        except csv.Error as error:
            raise DataError(f"{printable(path)} is not a table: {error}") from error
    # "a, b" is as common as "a,b", and names do not begin with a blank.
    cleaned = []
    for row in rows:
        if row:
            cleaned.append([cell.strip() for cell in row])
    return Table(cleaned)


def find_label_list(
    images: Sequence[str], others: Sequence[str], read_text: ReadText, groups: Sequence[str]
) -> LabelList | None:
    """Find the labels of images in a CSV or TSV file that names them.

    One column names the images by their paths, their file names, or their file names without
    extension. The labels are in the other of two columns, or in the column with one of the headers
    :data:`LABEL_COLUMNS`.

    Args:
        images: relative paths of the images.
        others: relative paths of the other files in the folder.
        read_text: returns the text of one of the other files, given its path.
        groups: a group for each image. Either all images of a group have labels, or none.

    Returns:
        the labels; None if no such file names images of the folder.

    Raises:
        DataError: when two lists name the same image, when a list names an image twice with
            different labels, or when it names only some images of a group.
    """
    lists = [path for path in others if PurePosixPath(path).suffix.lower() in LIST_EXTENSIONS]
    # One file per image, for example, is not a list of all images.
    if len(lists) > MAX_LISTS:
        return None
    usable: LabelList | None = None
    unclear: LabelList | None = None
    for path in lists:
        try:
            table = read_table(path, read_text(path))
        except DataError as error:
            # Any other table can be here, of any size and form; that does no harm to the images.
            unclear = LabelList(path, [], [f"no labels are taken from it: {error}"])
            continue
        labels = _labels_of(path, table, images, groups)
        if labels is None:
            continue
        if not labels.classes:
            unclear = labels
        elif usable is None:
            usable = labels
        else:
            usable = _joined(usable, labels, images)
    # A list of other facts about the images does no harm if there is one of labels.
    return usable or unclear


def _joined(first: LabelList, second: LabelList, images: Sequence[str]) -> LabelList:
    """The labels of two lists together, for example of training and test images."""
    path = f"{printable(first.path)}, {printable(second.path)}"
    classes = []
    for image, one, other in zip(images, first.classes, second.classes, strict=True):
        if one and other:
            raise DataError(f"{path} both give labels to {printable(image)}: keep one of them")
        classes.append(one or other)
    return LabelList(path, classes)


def _labels_of(
    path: str, table: Table, images: Sequence[str], groups: Sequence[str]
) -> LabelList | None:
    """The labels in one table; None if it is not about these images."""
    key, column = _column_of_names(table, images)
    if not column:
        return None
    label = _column_of_labels(table, key)
    shown = printable(path)
    if label < 0:
        return LabelList(
            path,
            [],
            [
                f"{shown} names the images, but it is unclear which column holds their labels, "
                f"so none are used; give it two columns (file, label), or call one of them "
                f"{LABEL_COLUMNS[0]}"
            ],
        )
    by_image: dict[str, str] = {}
    for row in table.rows:
        # Skips the header, short rows, and images that are elsewhere.
        if len(row) <= max(key, label) or row[key] not in column:
            continue
        image = column[row[key]]
        if by_image.setdefault(image, row[label]) != row[label]:
            raise DataError(
                f"{shown} gives {printable(image)} the labels {by_image[image]!r} and "
                f"{row[label]!r}: keep one of them"
            )
    # Captions and ids differ from image to image; classes repeat.
    distinct = set(by_image.values())
    if len(by_image) < LEAST_IMAGES_PER_CLASS * len(distinct) and len(distinct) > 10:
        return LabelList(
            path,
            [],
            [
                f"{shown} has {len(distinct):,} different values for {len(by_image):,} images, "
                "too many to be classes, so none are used"
            ],
        )
    return LabelList(path, _classes(by_image, images, groups, shown))


def _classes(
    by_image: dict[str, str], images: Sequence[str], groups: Sequence[str], shown: str
) -> list[str]:
    """The class of each image; empty for groups that the list does not mention."""
    classes = []
    labelled = set()
    unlisted: dict[str, str] = {}  # for each group, one image without a label
    for image, group in zip(images, groups, strict=True):
        name = by_image.get(image, "")
        classes.append(name)
        if name:
            labelled.add(group)
        else:
            unlisted.setdefault(group, image)
    for group in sorted(labelled & set(unlisted)):
        raise DataError(
            f"{shown} gives labels to some images, and none to {printable(unlisted[group])}: "
            "add it there, or move the image elsewhere"
        )
    return classes


def _column_of_names(table: Table, images: Sequence[str]) -> tuple[int, dict[str, str]]:
    """Find the column that names images, and the image that each cell means.

    Names without extension are only looked for in the first column: they are often plain numbers,
    which any column may hold.

    Returns:
        the index of the column, and a mapping from its cells to relative paths; -1 and an empty
        mapping if no column names images in half of its rows.
    """
    ways: list[dict[str, str]] = [{}, {}, {}]
    # From the strictest to the loosest: by path, by file name, by file name without extension.
    for image in images:
        path = PurePosixPath(image)
        for way, name in zip(ways, (image, path.name, path.stem), strict=True):
            # A name that two images share identifies neither.
            way[name] = "" if name in way else image
    # The cells of each column, without repetitions.
    columns: list[set[str]] = []
    for row in table.rows:
        for number, cell in enumerate(row):
            if number == len(columns):
                columns.append(set())
            columns[number].add(cell)
    for way in ways:
        # Removed only now, so that a third image of the same name is not added again.
        for name in [name for name, image in way.items() if not image]:
            del way[name]
    for number, cells in enumerate(columns):
        allowed = ways if number == 0 else ways[:2]
        for way in allowed:
            hits = len(cells & way.keys())
            # A list may include images that are elsewhere, or cover one split only.
            mostly_images = 2 * hits >= len(cells) - 1 and LEAST_COVERAGE * hits >= len(images)
            if hits and (mostly_images or 2 * hits >= len(images)):
                return number, way
    return -1, {}


def _column_of_labels(table: Table, names: int) -> int:
    """The index of the column of labels; -1 if it is unclear.

    Args:
        names: index of the column that names the images.
    """
    # Without a header this is a row like any other, and the number of columns decides.
    header = [cell.lower() for cell in table.rows[0]]
    # In the order of preference: "label" wins over "target" if there are both.
    for wanted in LABEL_COLUMNS:
        if wanted in header and header.index(wanted) != names:
            return header.index(wanted)
    if len(header) == 2:
        return 1 - names
    return -1

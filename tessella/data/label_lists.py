"""Lists that lie beside images: text files of columns, and labels in a CSV file."""

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
"""More CSV files than this are data of another kind, and are not opened."""
LEAST_COVERAGE = 10
"""A list names a tenth of the images, or is about something else."""
LEAST_IMAGES_PER_CLASS = 2
"""Images of an average class that labels have at least; captions and ids are different for each."""

ReadText = Callable[[str], str]


@dataclass(frozen=True)
class Table:
    """A list: its rows, each a list of cells without surrounding blanks."""

    rows: list[list[str]]


@dataclass(frozen=True)
class LabelList:
    """The labels that a list gives.

    Args:
        path: of the list.
        classes: the class of each image, empty if its split has none; ``[]`` when the list names
            images, but no labels of theirs could be made out.
        notes: why not.
    """

    path: str
    classes: list[str]
    notes: list[str] = field(default_factory=list)


def read_table(path: str, text: str) -> Table:
    """The rows of a list.

    Cells are separated by commas or semicolons in ``.csv``, by tabs in ``.tsv``, and by blanks or
    tabs in any other file. Empty lines are left out.

    Args:
        path: of the list; its extension says how cells are separated.
        text: its content.

    Raises:
        DataError: when it is no table.
    """
    extension = PurePosixPath(path).suffix.lower()
    lines = text.splitlines()
    rows = []
    if extension not in LIST_EXTENSIONS:
        # The lists of published data sets. Tabs, where there are any, allow blanks in names.
        for line in lines:
            rows.append(line.split("\t") if "\t" in line else line.split())
    else:
        delimiter = ","
        if extension == ".tsv":
            delimiter = "\t"
        # Spreadsheets write semicolons where the comma is the decimal sign.
        if delimiter == "," and lines and "," not in lines[0] and ";" in lines[0]:
            delimiter = ";"
        try:
            rows.extend(csv.reader(lines, delimiter=delimiter))
        except csv.Error as error:
            raise DataError(f"{printable(path)} is no table: {error}") from error
    # "a, b" is as common as "a,b", and no name begins with a blank.
    cleaned = []
    for row in rows:
        if row:
            cleaned.append([cell.strip() for cell in row])
    return Table(cleaned)


def find_label_list(
    images: Sequence[str], others: Sequence[str], read_text: ReadText, groups: Sequence[str]
) -> LabelList | None:
    """The labels of images in a CSV or TSV file that names them.

    A column names the images by their paths, their names or their names without extension. The
    labels are the other one of two columns, or the one whose header says so
    (:data:`LABEL_COLUMNS`).

    Args:
        images: relative paths.
        others: relative paths of the files beside them.
        read_text: the text of one of these.
        groups: a group for each image. A group is labelled as a whole or not at all.

    Returns:
        None when no such file names images of the folder.

    Raises:
        DataError: when two lists name an image, or one names an image twice with different labels,
            or some images of a group only.
    """
    lists = [path for path in others if PurePosixPath(path).suffix.lower() in LIST_EXTENSIONS]
    # One file for each image, for example, is something else than a list of all.
    if len(lists) > MAX_LISTS:
        return None
    usable: LabelList | None = None
    unclear: LabelList | None = None
    for path in lists:
        try:
            table = read_table(path, read_text(path))
        except DataError as error:
            # Tables of measurements can be of any size and form; images are none the worse for it.
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
    # A list that speaks of something else about the images does no harm beside one of labels.
    return usable or unclear


def _joined(first: LabelList, second: LabelList, images: Sequence[str]) -> LabelList:
    """The labels of two lists, of training and of test images for example."""
    path = f"{printable(first.path)}, {printable(second.path)}"
    classes = []
    for image, one, other in zip(images, first.classes, second.classes, strict=True):
        if one and other:
            raise DataError(f"{path} both give labels to {printable(image)}: leave one of them")
        classes.append(one or other)
    return LabelList(path, classes)


def _labels_of(
    path: str, table: Table, images: Sequence[str], groups: Sequence[str]
) -> LabelList | None:
    """The labels that one table gives; None when it is not about these images."""
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
                f"{shown} names the images, but which column holds their labels is unclear, so "
                f"none are taken; give it two columns (file, label), or one called "
                f"{LABEL_COLUMNS[0]}"
            ],
        )
    by_image: dict[str, str] = {}
    for row in table.rows:
        # The header, short rows, and images that lie elsewhere.
        if len(row) <= max(key, label) or row[key] not in column:
            continue
        image = column[row[key]]
        if by_image.setdefault(image, row[label]) != row[label]:
            raise DataError(
                f"{shown} gives {printable(image)} the labels {by_image[image]!r} and "
                f"{row[label]!r}: leave one of them"
            )
    # Captions and ids differ from image to image; classes come again and again.
    distinct = set(by_image.values())
    if len(by_image) < LEAST_IMAGES_PER_CLASS * len(distinct) and len(distinct) > 10:
        return LabelList(
            path,
            [],
            [
                f"{shown} has {len(distinct):,} different values for {len(by_image):,} images, "
                "which are no classes, so none are taken"
            ],
        )
    return LabelList(path, _classes(by_image, images, groups, shown))


def _classes(
    by_image: dict[str, str], images: Sequence[str], groups: Sequence[str], shown: str
) -> list[str]:
    """The class of each image; none for the images of a group that the list does not speak of."""
    classes = []
    labelled = set()
    unlisted: dict[str, str] = {}  # an image without a label of each group
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
    """The column that names images, and the image of each name.

    Names without extension are looked for in the first column only: there they are often bare
    numbers, which any other column may hold too.

    Returns:
        its number and a mapping from cells to relative paths; the mapping is empty if no column
        names images in half of its rows.
    """
    ways: list[dict[str, str]] = [{}, {}, {}]
    # From the strictest to the loosest: a path says more than a name, and a name more than a stem.
    for image in images:
        path = PurePosixPath(image)
        for way, name in zip(ways, (image, path.name, path.stem), strict=True):
            # A name that two images share names neither.
            way[name] = "" if name in way else image
    # The cells of each column, without repetitions.
    columns: list[set[str]] = []
    for row in table.rows:
        for number, cell in enumerate(row):
            if number == len(columns):
                columns.append(set())
            columns[number].add(cell)
    for way in ways:
        # Taken out only now: a third image of the same name must not come in again.
        for name in [name for name, image in way.items() if not image]:
            del way[name]
    for number, cells in enumerate(columns):
        for way in ways[: 3 if number == 0 else 2]:
            hits = len(cells & way.keys())
            # A list may speak of images that lie elsewhere, or of one split only.
            mostly_images = 2 * hits >= len(cells) - 1 and LEAST_COVERAGE * hits >= len(images)
            if hits and (mostly_images or 2 * hits >= len(images)):
                return number, way
    return -1, {}


def _column_of_labels(table: Table, names: int) -> int:
    """The column of the labels; -1 when it is unclear."""
    # Without a header these are cells like any other, and the number of columns decides.
    header = [cell.lower() for cell in table.rows[0]]
    # In the order of the table, so that "label" is preferred to "target" where both are there.
    for wanted in LABEL_COLUMNS:
        if wanted in header and header.index(wanted) != names:
            return header.index(wanted)
    if len(header) == 2:
        return 1 - names
    return -1

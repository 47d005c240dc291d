"""Which tar files a folder, a glob or a brace pattern means."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from tessella.data.paths import find, name_list
from tessella.errors import DataError

MOST_SHARDS = 100_000
"""Most files that a pattern may stand for."""
FORM = "shards:PATTERN"
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")


def shard_paths(pattern: str) -> list[Path]:
    """The tar files that a pattern stands for, in the order of their names.

    Args:
        pattern: a folder, a ``.tar`` file, a glob (``*.tar``), or a name with braces:
            ``{000000..000009}`` counts, and ``{train,valid}`` lists.

    Raises:
        DataError: when there is no such file, or one that the braces name is missing.
    """
    if not pattern:
        raise DataError(f"shards needs a path: {FORM}, a folder, or a name with * or braces")
    location = find(pattern)
    if location is not None:
        return _in_folder(location) if location.is_dir() else [_checked(location)]
    expanded = str(Path(pattern).expanduser()) if pattern.startswith("~") else pattern
    paths: list[Path] = []
    for name in expand_braces(expanded):
        paths += _matching(name, pattern)
        if len(paths) > MOST_SHARDS:
            raise DataError(f"{pattern} stands for more than {MOST_SHARDS:,} files")
    return paths


def expand_braces(pattern: str) -> list[str]:
    """All names that a pattern with braces stands for, in their order.

    >>> expand_braces("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    >>> expand_braces("{train,valid}.tar")
    ['train.tar', 'valid.tar']
    >>> expand_braces("plain.tar")
    ['plain.tar']

    Raises:
        DataError: when they are more than :data:`MOST_SHARDS`.
    """
    names = [pattern]
    # The braces of all names stand at the same place, so one pair goes at a time.
    while True:
        braces = _BRACES.search(names[0])
        if braces is None:
            return names
        choices = _choices(braces[1], pattern)
        if len(names) * len(choices) > MOST_SHARDS:
            raise DataError(f"{pattern} stands for more than {MOST_SHARDS:,} files")
        longer = []
        for name in names:
            before, _, rest = name.partition(braces[0])
            for choice in choices:
                longer.append(before + choice + rest)
        names = longer


def _choices(text: str, pattern: str) -> list[str]:
    counted = _RANGE.fullmatch(text)
    if counted is None:
        return text.split(",")
    first = int(counted[1])
    last = int(counted[2])
    if last - first >= MOST_SHARDS:
        raise DataError(f"{pattern} stands for more than {MOST_SHARDS:,} files")
    if last < first:
        raise DataError(f"{pattern}: {{{text}}} counts down; write the lower number first")
    # As many digits as the first number has, as a shell counts.
    width = len(counted[1])
    return [f"{number:0{width}}" for number in range(first, last + 1)]


def _in_folder(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    if not paths:
        there = name_list([path.name for path in folder.iterdir()])
        raise DataError(f"{folder} has no .tar files; it holds {there}")
    return [_checked(path) for path in paths]


def _matching(name: str, pattern: str) -> list[Path]:
    if not glob.has_magic(name):
        if not Path(name).exists():
            raise DataError(f"{FORM}: there is no file {name}, which {pattern} names")
        return [_checked(Path(name))]
    paths = sorted(glob.glob(name))  # noqa: PTH207
    if not paths:
        raise DataError(f"{FORM}: no file matches {name}")
    return [_checked(Path(path)) for path in paths]


def _checked(path: Path) -> Path:
    if path.name.lower().endswith((".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".tar.bz2")):
        raise DataError(
            f"{path} is compressed, and its images could only be read from the beginning:"
            " decompress it first (gunzip, unxz, unzstd)"
        )
    if not path.is_file():
        raise DataError(f"{path} is not a regular file: a shard is a .tar file")
    return path

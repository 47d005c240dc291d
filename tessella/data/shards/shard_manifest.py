"""``shards.json``, which says what ``tessella shards`` wrote into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from tessella import files
from tessella.errors import ArtifactError, DataError

MANIFEST = "shards.json"
"""Name of the file."""
FORMAT = 1


class ShardEntry(TypedDict):
    """One shard of a manifest; ``sha256`` is that of the whole file."""

    name: str
    count: int
    bytes: int
    sha256: str


class ShardSetRecord(TypedDict):
    """What is written into a folder: the same record gives the same bytes.

    ``identity`` is a hash of the images (of files: of their names and sizes), ``images`` and
    ``bytes`` bound a shard.
    """

    format: int
    kind: str
    name: str
    source: str
    identity: str
    images: int
    bytes: int
    classes: list[str]


class ShardManifest(ShardSetRecord):
    """The content of ``shards.json``; ``splits`` lists the shards of each split in order."""

    splits: dict[str, list[ShardEntry]]


def class_names(folder: Path) -> tuple[str, ...]:
    """The class names in the manifest of a folder; ``()`` where there are none.

    Raises:
        DataError: when the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return ()
    try:
        classes = files.read_json_object(path).get("classes", [])
    except ArtifactError as error:
        raise DataError(f"{error}; without the file, classes are numbers") from error
    if not isinstance(classes, list):
        raise DataError(f"{path} must have a list of classes; remove the file, or correct it")
    return tuple(map(str, classes))

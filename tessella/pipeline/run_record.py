"""``run.json``, the record of a run: which recipe, which data, which machine, how far it is.

A run directory can come from anywhere, so the types of its entries are checked before they are
used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tessella import files
from tessella.errors import ArtifactError

OBJECTS = ("recipe", "data", "task", "environment", "progress", "figures")
"""Entries that are JSON objects, where they are there."""


def read_run_record(run: Path) -> dict[str, Any]:
    """Read the record of a run directory; empty where there is none.

    Raises:
        ArtifactError: when it is damaged, or not ours.
    """
    path = run / "run.json"
    if not path.exists():
        return {}
    return check_record(files.read_json(path), path)


def check_record(record: object, path: Path) -> dict[str, Any]:
    """Check the types of the entries of ``run.json``.

    Args:
        record: parsed JSON.
        path: the file, for the message.

    Raises:
        ArtifactError: naming the entry that is wrong.
    """
    if not isinstance(record, dict):
        raise ArtifactError(f"{path} was not written by tessella: it must hold a JSON object")
    for name in OBJECTS:
        _check_object(record.get(name), name, path)
    for split, identity in (record.get("data") or {}).items():
        _check_object(identity, f"data.{split}", path)
        _check_classes(identity, split, path)
    for table in ("data", "train"):
        _check_object((record.get("recipe") or {}).get(table), f"recipe.{table}", path)
    sittings = record.get("sittings")
    if sittings is not None and not isinstance(sittings, list):
        raise _wrong(path, "sittings", "a list", sittings)
    for number, sitting in enumerate(sittings or []):
        _check_object(sitting, f"sittings[{number}]", path, needed=True)
        _check_object(sitting.get("environment"), f"sittings[{number}].environment", path)
    if not isinstance(record.get("status", ""), str):
        raise _wrong(path, "status", "a word", record["status"])
    return record


def _check_object(value: object, name: str, path: Path, needed: bool = False) -> None:
    if value is None and not needed:
        return
    if not isinstance(value, dict):
        raise _wrong(path, name, "an object", value)


def _check_classes(identity: dict[str, Any] | None, split: str, path: Path) -> None:
    classes = (identity or {}).get("classes")
    if classes is None:
        return
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise _wrong(path, f"data.{split}.classes", "a list of names", classes)


def _wrong(path: Path, name: str, wanted: str, value: object) -> ArtifactError:
    return ArtifactError(
        f"{path} is damaged, or was not written by tessella: {name} must be {wanted},"
        f" got {str(value)[:60]!r}"
    )

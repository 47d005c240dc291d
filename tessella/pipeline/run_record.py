"""The record of a run, ``run.json``: read with the type of every entry checked.

The record is written by training and read by evaluation, reports and resumed runs. It may come from
elsewhere, so whoever reads it can rely on what is said here: an entry is missing, null, or of the
type that :data:`ENTRIES` gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tessella
from tessella import files
from tessella.errors import ArtifactError

NAME = "run.json"

RUN_FORMAT = 1
"""Version of the record."""

NUMBER = (int, float)

EVERY = "*"
"""Stands for all names of an object."""

DATA: dict[str, Any] = {
    "source": str,
    "split": str,
    "split_rule": str,
    "count": int,
    "shape": [int],
    "sha256": str,
    "classes": [str],
    "preprocessing": {"levels": int},
    "skipped": int,
}
"""What is said of the images of a split."""

ENVIRONMENT: dict[str, Any] = {
    "tessella": str,
    "torch": str,
    "python": str,
    "system": str,
    "device": str,
    "cores": int,
    "threads": int,
    "world_size": int,
    "started": str,
    "command": [str],
}
"""What is said of the machine."""

ENTRIES: dict[str, Any] = {
    "recipe": {
        "about": str,
        "prior_of": str,
        "data": {"source": str},
        "train": {"steps": NUMBER, "epochs": NUMBER, "minutes": NUMBER},
    },
    "data": {EVERY: DATA},
    "task": {"kind": str, "model": {"name": str}, "tokenizer": str},
    "environment": ENVIRONMENT,
    "sittings": [{"step": int, "environment": ENVIRONMENT}],
    "status": str,
    "progress": {
        "step": int,
        "seconds": NUMBER,
        "validations": int,
        "best": NUMBER,
        "best_step": int,
        "figures": {},
    },
    "figures": {EVERY: {}},
    "overlap": int,
}
"""Types of the entries that are relied on: a type, entries of an object, or items of a list."""


def read_run_record(path: Path) -> dict[str, Any]:
    """The record of a run; empty where a saved model has none.

    Args:
        path: the directory of the run.

    Raises:
        ArtifactError: when it is damaged, of another version, or an entry has another type.
    """
    if not (path / NAME).exists():
        return {}
    return check_record(files.read_json(path / NAME), path / NAME)


def check_record(record: object, source: Path) -> dict[str, Any]:
    """Check the version of a record and the types of its entries, and return it.

    Args:
        record: as read from its file.
        source: the file, for messages.

    Raises:
        ArtifactError: naming the entry that is wrong.
    """
    if not isinstance(record, dict):
        raise ArtifactError(
            f"{source} was not written by tessella: it must hold a JSON object, {{...}}"
        )
    if record.get("format") != RUN_FORMAT:
        raise ArtifactError(
            f"{source} has format {record.get('format')!r:.40}; "
            f"tessella {tessella.__version__} reads format {RUN_FORMAT}"
        )
    _check(record, ENTRIES, source, "")
    return record


def _check(value: object, wanted: Any, source: Path, name: str) -> None:
    """Compare a value with a type, with the entries of an object, or with a list of one kind."""
    # Entries that do not apply are null, and records of early versions lack some.
    if value is None:
        return
    if isinstance(wanted, dict):
        fits = isinstance(value, Mapping)
    elif isinstance(wanted, list):
        fits = isinstance(value, list)
    else:
        # True is an int to Python, and never meant as a number here.
        fits = isinstance(value, wanted) and not isinstance(value, bool)
    if not fits:
        raise ArtifactError(
            f"{source}: {name} must be {_noun(wanted)}, got {value!r:.60}: "
            "the record is damaged, or was not written by tessella"
        )
    if isinstance(value, Mapping) and isinstance(wanted, dict):
        for key, entry in wanted.items():
            # `*` stands for whatever names there are, such as those of splits.
            for found in value if key == EVERY else [key]:
                _check(value.get(found), entry, source, f"{name}.{found}" if name else found)
    elif isinstance(value, list):
        for item in value:
            _check(item, wanted[0], source, f"an item of {name}")


def _noun(wanted: Any) -> str:
    if isinstance(wanted, dict):
        return "an object"
    if isinstance(wanted, list):
        return "a list"
    return {str: "text", int: "an integer", NUMBER: "a number"}[wanted]

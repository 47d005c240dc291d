"""The record of a run, ``run.json``: read with the type of every entry checked.

Training writes the record; evaluation, reports and resumed runs read it. A run may come from
somebody else, so every entry is checked: it is missing, null, or has the type that
:class:`RunRecord` gives it. Entries that are not listed there are not checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypedDict, cast, get_args, get_origin, get_type_hints, is_typeddict

import tessella
from tessella import files
from tessella.errors import ArtifactError

NAME = "run.json"

RUN_FORMAT = 1
"""Version of the record."""


class PreprocessingRecord(TypedDict, total=False):
    """How pixels were prepared."""

    levels: int | None


class SplitRecord(TypedDict, total=False):
    """The images of a split; see :meth:`tessella.data.ImageSet.identity`."""

    source: str | None
    split: str | None
    split_rule: str | None
    count: int | None
    shape: list[int] | None
    sha256: str | None
    classes: list[str] | None
    preprocessing: PreprocessingRecord | None
    skipped: int | None


class EnvironmentRecord(TypedDict, total=False):
    """The machine, and the versions of what runs on it."""

    tessella: str | None
    torch: str | None
    python: str | None
    system: str | None
    device: str | None
    cores: int | None
    threads: int | None
    world_size: int | None
    started: str | None
    command: list[str] | None


class SittingRecord(TypedDict, total=False):
    """Where and when a run was resumed."""

    step: int | None
    environment: EnvironmentRecord | None


class DataRecord(TypedDict, total=False):
    """The ``data`` of a recipe."""

    source: str | None


class TrainRecord(TypedDict, total=False):
    """The ``train`` of a recipe."""

    steps: float | None
    epochs: float | None
    minutes: float | None


class RecipeRecord(TypedDict, total=False):
    """The recipe of a run; ``data`` is missing where it was trained on arrays."""

    about: str | None
    prior_of: str | None
    data: DataRecord | None
    train: TrainRecord | None


class ModelRecord(TypedDict, total=False):
    """The model that is trained; its sizes are checked where it is built."""

    name: str | None


class TaskRecord(TypedDict, total=False):
    """The kind and the configuration of the model that is trained."""

    kind: str | None
    model: ModelRecord | None
    tokenizer: str | None


class ProgressRecord(TypedDict, total=False):
    """How far a run is, and its best validation."""

    step: int | None
    seconds: float | None
    validations: int | None
    best: float | None
    best_step: int | None
    figures: dict[str, object] | None


class RunRecord(TypedDict, total=False):
    """The entries of ``run.json`` that are relied on."""

    recipe: RecipeRecord | None
    data: dict[str, SplitRecord | None] | None
    task: TaskRecord | None
    environment: EnvironmentRecord | None
    sittings: list[SittingRecord] | None
    status: str | None
    progress: ProgressRecord | None
    figures: dict[str, dict[str, object] | None] | None
    overlap: int | None


def read_run_record(path: Path) -> RunRecord:
    """The record of a run; empty where a saved model has none.

    Args:
        path: the directory of the run.

    Raises:
        ArtifactError: when it is damaged, of another version, or an entry has another type.
    """
    if not (path / NAME).exists():
        return {}
    record = check_record(files.read_json(path / NAME), path / NAME)
    # A type checker cannot know that every entry has just been compared with its type.
    return cast(RunRecord, record)


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
    _check(record, RunRecord, source, "")
    return record


def train_split(record: RunRecord) -> SplitRecord:
    """The record of the training images; empty where there is none."""
    return (record.get("data") or {}).get("train") or {}


def _check(value: object, hint: object, source: Path, name: str) -> None:
    """Compare a value, and all that it holds, with a type of this module."""
    # Entries that do not apply are null, and records of early versions lack some.
    if value is None or hint is object:
        return
    # `int | None` is int here.
    wanted = get_args(hint)[0] if isinstance(hint, UnionType) else hint
    if not _fits(value, wanted):
        raise ArtifactError(
            f"{source}: {name} must be {_noun(wanted)}, got {value!r:.60}: "
            "the record is damaged, or was not written by tessella"
        )
    for key, item, item_hint in _inner(value, wanted):
        # The items of a list have no names.
        if not key:
            inner_name = f"an item of {name}"
        elif name:
            inner_name = f"{name}.{key}"
        else:
            inner_name = key
        _check(item, item_hint, source, inner_name)


def _fits(value: object, wanted: object) -> bool:
    """Whether a value is of a type, whatever it holds."""
    if is_typeddict(wanted) or get_origin(wanted) is dict:
        return isinstance(value, Mapping)
    if get_origin(wanted) is list:
        return isinstance(value, list)
    # True is an int to Python, and never meant as a number here.
    if isinstance(value, bool):
        return False
    # A whole number may be written without a point.
    if wanted is float:
        return isinstance(value, (int, float))
    assert isinstance(wanted, type)
    return isinstance(value, wanted)


def _inner(value: object, wanted: object) -> Iterator[tuple[str, object, object]]:
    """The parts of a value: the name of each (empty in lists), its value and its type."""
    if isinstance(value, list):
        for item in value:
            yield "", item, get_args(wanted)[0]
    elif isinstance(value, Mapping) and is_typeddict(wanted):
        for key, hint in get_type_hints(wanted).items():
            yield key, value.get(key), hint
    elif isinstance(value, Mapping):
        # Whatever names there are, such as those of splits.
        for key, item in value.items():
            yield key, item, get_args(wanted)[1]


def _noun(wanted: object) -> str:
    if is_typeddict(wanted) or get_origin(wanted) is dict:
        return "an object"
    if get_origin(wanted) is list:
        return "a list"
    nouns: dict[object, str] = {str: "text", int: "an integer", float: "a number"}
    return nouns[wanted]

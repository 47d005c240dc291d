"""Find the exact twin with which a file was made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from tessella import files
from tessella.codec.container import MODEL_BYTES
from tessella.codec.group_walk import Twin
from tessella.errors import ArtifactError

TWIN_FILE = "exact.json"
"""The file by which a directory with an exact twin is known."""

PARTS = ("", "prior")
"""Directories in a run that can hold a twin: the run itself, and the prior of a two-stage model."""


def find_twin(model: bytes, given: str = "", beside: Path | None = None) -> Twin:
    """The exact twin of an id.

    Args:
        model: the first bytes of its id, as a file has them.
        given: a run directory, or a folder of them, where it must be; empty to look in the usual
            places: models that ship, the cache, ``runs``, and the folder of the file.
        beside: the folder of the file.

    Raises:
        ArtifactError: when it is not there; the message has the id.
    """
    wanted = model.hex()
    looked: list[str] = []
    for place in _places(given, beside):
        looked.append(str(place))
        for folder in _runs_in(place):
            twin = twin_of(folder)
            if twin.id[: 2 * MODEL_BYTES] == wanted:
                return twin
    where = ", ".join(looked) or "no folder"
    raise ArtifactError(
        f"the file needs the model {wanted}, which is not in {where}: get its run directory, and"
        " name it with --model (a run, or a folder of runs)"
    )


def twin_of(folder: Path) -> Twin:
    """The exact twin in a directory of a run.

    Raises:
        ArtifactError: when there is none.
    """
    from tessella.exact import load_twin

    for part in PARTS:
        if (folder / part / TWIN_FILE).is_file():
            return load_twin(folder / part)
    # Its message says how to make one.
    return load_twin(folder)


def _places(given: str, beside: Path | None) -> Iterator[Path]:
    if given:
        yield Path(given)
        return
    yield Path(str(resources.files("tessella") / "bundle"))
    yield files.cache_folder() / "models"
    if beside is not None:
        yield beside
    yield Path("runs")


def _runs_in(place: Path) -> Iterator[Path]:
    """The directories with a twin: a folder itself, or those in it."""
    if not place.is_dir():
        return
    folders: Sequence[Path] = [place, *sorted(item for item in place.iterdir() if item.is_dir())]
    for folder in folders:
        if any((folder / part / TWIN_FILE).is_file() for part in PARTS):
            yield folder

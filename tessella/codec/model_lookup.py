"""Find the exact twin with which a file was made."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from tessella import files
from tessella.codec.container import MODEL_BYTES
from tessella.codec.group_walk import Twin
from tessella.errors import ArtifactError
from tessella.exact import load_twin

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
    for place in places(given, beside):
        looked.append(str(place))
        for folder in _twins_in(place):
            # Twins are only loaded, and checked, where their description has the id.
            described = files.read_json_object(folder / TWIN_FILE).get("id")
            if str(described)[: 2 * MODEL_BYTES] == wanted:
                return load_twin(folder)
    where = ", ".join(looked) or "no folder"
    raise ArtifactError(
        f"the file needs the model {wanted}, which is not in {where}: get its run directory, and"
        " name it with --model (a run, or a folder of runs)"
    )


def places(given: str, beside: Path | None) -> Iterator[Path]:
    """Folders in which a model can be: runs, or folders of runs."""
    bundle = Path(str(resources.files("tessella") / "bundle"))
    if given:
        # A twin that does not ship with its model is in the cache: the package may be read-only.
        yield Path(given)
        if (bundle / given).is_dir():
            yield bundle / given
            yield files.cache_folder() / "models"
        return
    yield bundle
    yield files.cache_folder() / "models"
    if beside is not None:
        yield beside
    yield Path("runs")


def _twins_in(place: Path) -> Iterator[Path]:
    """The directories with a twin: a folder itself, a run in it, or a part of such a run."""
    if not place.is_dir():
        return
    folders = [place, *sorted(item for item in place.iterdir() if item.is_dir())]
    for folder in folders:
        for part in PARTS:
            if (folder / part / TWIN_FILE).is_file():
                yield folder / part

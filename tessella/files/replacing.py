"""Rules for outputs whose name is taken.

Files that this package wrote may be replaced, others only with ``force``; links are never followed.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from tessella.errors import ArtifactError, InputError
from tessella.files.reading import byte_count, parse_json, read_json

HTML_MARK = '<meta name="generator" content="tessella'
"""Beginning of the tag by which an HTML page of this package is recognised."""

PNG_KEY = "tessella"
"""Key of the PNG text chunk that says how a picture was made."""


COMPRESSED_MARK = b"\x89TSL"
"""First bytes of a file of compressed images."""


def check_replaceable(path: Path | str, force: bool = False) -> None:
    """Refuse an output that would destroy something that this package did not write.

    The rule for all outputs: a free name may be used; what this package wrote may be replaced;
    anything else is refused, unless ``force`` is given. A link is always refused, because writing
    would replace the link, not the file that it points to. A file never replaces a directory, nor a
    directory a file. Nothing is created here.

    Args:
        path: the file or the saved model to be written.
        force: allow replacing a foreign file, or writing into a foreign directory.

    Raises:
        InputError: when there is something that must not be replaced.
    """
    # The annotation says the same; at run time nothing enforces it.
    if not isinstance(path, (str, Path)):
        raise InputError(f"an output is named by its path, got {type(path).__name__}")
    path = Path(path)
    if path.is_symlink():
        target = path.readlink()
        raise InputError(f"{path} is a link, which would be replaced: name {target}, or a new file")
    if not path.exists():
        return
    if not path.is_dir() and not path.is_file():
        raise InputError(f"{path} is not a regular file: name another output")
    if force or made_here(path):
        return
    raise InputError(
        f"{path} exists and was not made by tessella: name another output, or give --force"
        " (in Python force=True) to replace it"
    )


def made_here(path: Path | str) -> bool:
    """Return whether this package wrote a file or a directory, judging by its content.

    PNG files have a text chunk, ``.npz`` files an archive comment, HTML pages a ``generator`` tag,
    JSON files the environment or a format number, tables of images certain columns, and compressed
    images their first bytes. A directory
    counts if it is empty, or contains a saved model, a run, codes, drawn images or a demo.
    """
    path = Path(path)
    if path.is_dir():
        return _made_directory(path)
    # The extension says what to look for, the content decides.
    recognise = _RECOGNISERS.get(path.suffix.lower())
    if recognise is None:
        return False
    try:
        return recognise(path)
    except (OSError, ArtifactError, zipfile.BadZipFile):
        return False


def _made_directory(path: Path) -> bool:
    # Any of these files makes a directory one of ours; what each holds is checked below.
    records = ("config.json", "run.json", "made.json", "demo.json")
    if not any(path.iterdir()):
        return True
    return any(_made_json(path / name) for name in records if (path / name).is_file())


def _made_png(path: Path) -> bool:
    """Search the chunks before the pixels for the text of this package."""
    with path.open("rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return False
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[:4], "big")
            kind = head[4:]
            # The package writes its text before the pixels.
            if kind == b"IDAT":
                return False
            if kind in (b"tEXt", b"iTXt", b"zTXt"):
                key = file.read(min(length, len(PNG_KEY) + 1))
                if key == PNG_KEY.encode() + b"\0":
                    return True
                length -= len(key)
            file.seek(length + 4, os.SEEK_CUR)  # the rest of the chunk and its checksum
    return False


def _made_archive(path: Path) -> bool:
    """Whether the comment of an ``.npz`` file is the record of drawn images."""
    with zipfile.ZipFile(path) as archive:
        record = parse_json(archive.comment, str(path))
    return isinstance(record, dict) and {"model", "seed", "n"} <= record.keys()


def _made_json(path: Path) -> bool:
    record = read_json(path)
    if not isinstance(record, dict):
        return False
    # Each kind of record is recognised by keys that it always has.
    is_saved_model = {"format", "kind"} <= record.keys()
    is_run = {"format", "status"} <= record.keys()
    is_series = {"model", "seed", "n"} <= record.keys()
    is_demo = path.name == "demo.json" and "status" in record
    environment = record.get("made")
    is_measurement = isinstance(environment, dict) and "tessella" in environment
    return is_saved_model or is_run or is_series or is_demo or is_measurement


def _made_page(path: Path) -> bool:
    with path.open("rb") as file:
        return HTML_MARK.encode() in file.read(4096)


def _made_table(path: Path) -> bool:
    """Whether a CSV file has the columns of an evaluation, or of scores."""
    with path.open("rb") as file:
        columns = file.read(4096).split(b"\n")[0].strip().split(b",")
    if columns == [b"name", b"height", b"width", b"bits", b"bits/dim"]:
        return True
    return columns[:1] == [b"index"] and {b"hash", b"in_training"} <= set(columns)


def _made_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(COMPRESSED_MARK)) == COMPRESSED_MARK


# Files of any other kind are never taken for ours.
_RECOGNISERS: dict[str, Callable[[Path], bool]] = {
    ".png": _made_png,
    ".npz": _made_archive,
    ".json": _made_json,
    ".html": _made_page,
    ".csv": _made_table,
    ".tsl": _made_compressed,
}


def check_free_space(path: Path | str, needed: int, what: str) -> None:
    """Refuse an output that the disk cannot hold.

    Args:
        path: the output; it and its parent folders need not exist.
        needed: size of the output in bytes.
        what: description of the output, for the message.

    Raises:
        ArtifactError: when the file system of ``path`` has less space.
    """
    folder = existing_parent(path)
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return  # unknown for this file system; writing will show
    if needed > free:
        raise ArtifactError(
            f"{what} takes about {byte_count(needed)}, but {folder} has {byte_count(free)} free:"
            " ask for less, or name an output on another disk"
        )


def existing_parent(path: Path | str) -> Path:
    """Return the nearest existing directory: the path itself, or one above it."""
    folder = Path(path).absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def check_writable(path: Path | str) -> None:
    """Refuse an output whose folder cannot be written to, without creating anything.

    Raises:
        ArtifactError: when it cannot be written to.
    """
    path = Path(path)
    folder = existing_parent(path.parent)
    # A file in the place of a parent folder.
    blocked = [part for part in path.parents if part.exists() and not part.is_dir()]
    if blocked:
        raise ArtifactError(
            f"cannot write to {path.parent}: {blocked[0]} is a file; name another output"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write to {path.parent}: no permission to write in {folder}")

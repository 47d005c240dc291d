"""Write files completely or not at all.

A file is written under a temporary name next to the target, flushed to disk and renamed. If the
process is killed, :func:`sweep` cleans up later.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from tessella.errors import ArtifactError
from tessella.files.reading import reason


def write_bytes(path: Path | str, data: bytes, private: bool = False) -> None:
    """Write a file atomically.

    Args:
        private: only the user may read or write the file, whatever the umask.

    Raises:
        ArtifactError: naming the file and the reason; an old file, if any, is unchanged.
    """
    with atomic_file(path, private) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 text file atomically.

    File names in the text that are not UTF-8 are escaped. See :func:`write_bytes`.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path | str, value: object) -> None:
    """Write plain values as indented JSON, atomically. See :func:`write_bytes`."""
    write_text(path, json_text(value) + "\n")


def json_text(value: object, indent: int | None = 2, sort_keys: bool = False) -> str:
    """Encode plain values as strict JSON: NaN and infinities become ``null``.

    Args:
        indent: spaces per level; None gives a single line.
        sort_keys: sort the keys of objects, so that equal values give equal text.

    >>> json_text({"loss": float("inf"), "step": 3}, indent=None)
    '{"loss": null, "step": 3}'
    """
    finite = _without_infinities(value)
    text = json.dumps(
        finite, indent=indent, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False
    )
    try:
        text.encode()
    except UnicodeEncodeError:
        # A file name that is not UTF-8 contains lone surrogates, which must be escaped.
        return json.dumps(finite, indent=indent, sort_keys=sort_keys, allow_nan=False)
    return text


def append_line(path: Path | str, line: str) -> None:
    """Append a line of text. If the process is killed, an incomplete line may remain.

    Raises:
        ArtifactError: naming the file and the reason.
    """
    try:
        with Path(path).open("ab") as file:
            file.write(line.encode() + b"\n")
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {reason(error)}") from error


@contextlib.contextmanager
def atomic_file(path: Path | str, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; the file moves to ``path`` when the block ends.

    Args:
        private: only the user may read or write the file, whatever the umask.

    Raises:
        ArtifactError: when the block or the move fails; an old file, if any, is unchanged.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # The temporary file has a directory to itself, because some writers leave further temporary
        # files next to it if they are killed.
        partial.mkdir(parents=True, exist_ok=True)
        temporary = partial / path.name
        yield temporary
        # Some writers create files that only the owner may read; the new directory has the
        # permissions that the umask asks for.
        permissions = 0o600 if private else partial.stat().st_mode & 0o666
        temporary.chmod(permissions)
        _flush(temporary)
        temporary.replace(path)
        if not path.parent.name.endswith(".partial"):
            # Inside atomic_directory() and atomic_batch() this is done once for all files.
            _flush(path.parent)
    except Exception as error:
        # Writers built on native code report a full disk with error classes of their own.
        raise ArtifactError(f"cannot write {path}: {reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def atomic_batch(folder: Path | str) -> Iterator[Path]:
    """Yield a directory to write files to; they all move to ``folder`` when the block ends.

    They move in the order of their names, so that a series of numbered files has no gap if the
    process is killed. Files inside must be written with the functions of this module, which wait
    until each file is on disk.

    Raises:
        OSError: when a file cannot be moved.
    """
    folder = Path(folder)
    partial = folder / ".batch.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    try:
        partial.mkdir()
        yield partial
        # Shorter names first, since nine digits come after eight.
        for file in sorted(partial.iterdir(), key=lambda file: (len(file.name), file.name)):
            file.replace(folder / file.name)
        _flush(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def atomic_directory(path: Path | str) -> Iterator[Path]:
    """Yield a directory to fill, which replaces the one at ``path`` when the block ends.

    Files inside must be written with the functions of this module, which wait until each is on
    disk.

    Raises:
        ArtifactError: when something in it could not be written; what was at ``path`` is unchanged.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        # The files are on disk already; the lists of names in folders are not.
        for item in partial.rglob("*"):
            if item.is_dir():
                _flush(item)
        _flush(partial)
        _replace_directory(path, partial)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_directory(path: Path | str) -> None:
    """Remove a directory; if the process is killed, no half of it is left under its name.

    Whatever cannot be removed stays, without an error.
    """
    path = Path(path)
    gone = path.with_name(f".{path.name}.partial")
    with contextlib.suppress(OSError):
        path.rename(gone)
        shutil.rmtree(gone)


def sweep(folder: Path | str, name: str = "*") -> None:
    """Remove what a killed process left half-written, and restore what it was replacing.

    Args:
        folder: where to look; it need not exist.
        name: a pattern for the files or directories that were being written. Removed are
            ``.NAME.partial``, ``.NAME.PID.partial`` and the directory ``.NAME.old``; nothing else
            is touched.

    Raises:
        ArtifactError: when something cannot be removed or restored.
    """
    folder = Path(folder)
    try:
        for old in list(folder.glob(f".{name}.old")):
            if not old.is_dir():
                continue
            original = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
            # The kill came after both renames, or between them.
            if original.exists():
                shutil.rmtree(old)
            else:
                old.rename(original)
        leftovers = {*folder.glob(f".{name}.partial"), *folder.glob(f".{name}.*.partial")}
        for partial in leftovers:
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink()
    except OSError as error:
        raise ArtifactError(f"cannot clear {folder}: {reason(error)}") from error


def flush(path: Path | str) -> None:
    """Wait until a file, or the list of files in a directory, is on disk.

    Raises:
        ArtifactError: when it cannot be written to disk.
    """
    try:
        _flush(Path(path))
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {reason(error)}") from error


def make_directory(path: Path | str) -> Path:
    """Create a directory and check that it can be written to.

    Raises:
        ArtifactError: when it cannot be created or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Permissions alone do not tell: the file system may be read-only.
        probe = path / f".probe.{os.getpid()}.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ArtifactError(f"cannot write to {path}: {reason(error)}") from error
    return path


def cache_folder() -> Path:
    """Return the folder for data that can be recomputed.

    It is ``$TESSELLA_CACHE``, or else ``$XDG_CACHE_HOME/tessella``, or else ``~/.cache/tessella``.
    """
    # os.path.expanduser, unlike Path.expanduser, does not raise if there is no home directory.
    chosen = os.environ.get("TESSELLA_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen))  # noqa: PTH111
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(base) / "tessella"


def _without_infinities(value: object) -> object:
    """Copy plain values with None in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(item) for item in value]
    return value


def _replace_directory(path: Path, partial: Path) -> None:
    """Rename a directory to ``path`` and remove what was there.

    This takes two renames. If the process is killed in between, :func:`sweep` restores the old one.
    """
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

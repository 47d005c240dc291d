"""Outputs that are written piece by piece and go on where they were stopped.

Codes and drawn images follow one protocol:

1. While pieces are missing, the file ``made.json`` in the output's folder says what is being made.
2. Every piece appears whole (see :mod:`tessella.files`), so what is there can be counted.
3. The same command finds the same record and goes on after the last piece; a different record is
   refused, because its pieces would be mixed.
4. An output is finished when its pieces have been counted, never because a record says so.

One process at a time writes to an output; the others are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from tessella import files
from tessella.errors import ArtifactError

RECORD = "made.json"
"""Name of the file that says what is being made."""


@contextlib.contextmanager
def exclusive(folder: Path, output: Path, doing: str, temporary: bool = False) -> Iterator[None]:
    """Hold an output for this process, in a folder that is created if need be.

    The lock goes at the end, and so do folders that were created here and hold nothing: a command
    that is refused leaves nothing.

    Args:
        folder: holds the record and the lock.
        output: what the user named, for messages.
        doing: what another process would be doing, for the message: ``writes codes``.
        temporary: the folder goes too when it holds nothing at the end.

    Raises:
        ArtifactError: when another process writes there, or the disk does not take it.
    """
    created = []
    for place in (folder, *folder.parents):
        if not place.exists():
            created.append(place)
    # What is to be removed at the end, from the inside out.
    removable = list(created)
    if temporary and not created:
        removable = [folder]
    # The operating system frees the lock of a process that is killed.
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Whoever finds it taken does not wait: the other process may need hours.
        with lock.acquire(timeout=0):
            try:
                yield
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout as error:
        raise ArtifactError(
            f"another process {doing} to {output}: wait for it, or name another --out"
        ) from error
    except OSError as error:
        raise ArtifactError(
            f"cannot write {output}: {files.reason(error)}; the same command goes on from there"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # the first folder that holds something stops it
            for place in removable:
                place.rmdir()


def read_record(folder: Path) -> dict[str, object] | None:
    """Return the record of an output that is being made, None where there is none.

    Raises:
        ArtifactError: when it is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    return files.read_json_object(path)


def write_record(folder: Path, record: Mapping[str, object]) -> None:
    """Say what is being made, before the first piece is written."""
    files.write_json(folder / RECORD, dict(record))


def remove_record(folder: Path) -> None:
    """Forget what is being made, when it is finished."""
    (folder / RECORD).unlink(missing_ok=True)


def differing(
    found: Mapping[str, object], wanted: Mapping[str, object], ignored: Collection[str] = ()
) -> list[str]:
    """Return the keys in which two records differ, in the order of ``wanted``.

    Args:
        ignored: keys that change no piece.
    """
    different = []
    # A dictionary keeps the order of its keys, and holds each of them once.
    for key in {**wanted, **found}:
        if key not in ignored and found.get(key) != wanted.get(key):
            different.append(key)
    return different

"""Opening what a source names, with an error of our own where that fails."""

from __future__ import annotations

import contextlib
import difflib
import errno
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tessella.errors import DataError

READ_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,  # an encrypted member of a zip file, or one packed in an unknown way
    ValueError,  # damaged numbers and names in the headers of archives
    OverflowError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
)
"""What reading damaged, cut or encrypted files and archives raises."""

_OF_THE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.EINVAL)
"""Errors of the system that a file itself is the reason for; the last is a place that a damaged
archive names."""


def passing(error: BaseException) -> bool:
    """Whether reading failed for want of memory, disk or open files, or by a fault of the device:
    not by the file."""
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in _OF_THE_FILE
    return isinstance(error, MemoryError)


@contextlib.contextmanager
def passing_ends(title: str) -> Iterator[None]:
    """Make a :func:`passing` failure a :class:`DataError` with the ``title`` of what was read."""
    try:
        yield
    except (OSError, MemoryError) as error:
        if not passing(error):
            raise
        raise DataError(
            f"{title}: cannot be read at present: {reason(error)}; load it again once that is over"
        ) from error


def reason(error: BaseException) -> str:
    """Why something could not be read, in the words of the system where it has some."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    return getattr(error, "strerror", None) or one_line(error)


def existing(path: str, form: str) -> Path:
    """The path a source names.

    Args:
        path: as the user wrote it; ``~`` is the home folder.
        form: how the source is written, such as ``npz:PATH``.

    Raises:
        DataError: when the path is missing from the source, or nothing is there.
    """
    if not path:
        raise DataError(f"{form.partition(':')[0]} needs a path: {form}")
    place = find(path)
    if place is None:
        raise DataError(f"{form}: there is no file or folder {path}{_near_name(path)}")
    return place


def _near_name(path: str) -> str:
    """The words for a file or folder of nearly the same name beside a missing one; empty where
    there is none."""
    wanted = Path(path)
    folder = find(str(wanted.parent))
    if folder is None or not folder.is_dir():
        return ""
    try:
        names = [file.name for file in folder.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(wanted.name, names, n=1)
    if not near:
        # Letters of another case are far apart for the comparison above.
        near = [name for name in names if name.lower() == wanted.name.lower()]
    return f"; did you mean {wanted.parent / near[0]}?" if near else ""


def find(path: str) -> Path | None:
    """The file or folder at a path as the user wrote it, or None when nothing can be found
    there."""
    try:
        place = Path(path).expanduser()
        return place if place.exists() else None
    except (
        OSError,
        RuntimeError,
        ValueError,
    ):  # no access, no such home folder, not a possible name
        return None


def last_name(path: Path) -> str:
    """The last part of a path as it is written; of ``.`` and ``..`` the name of the folder that is
    meant."""
    return path.name if path.name not in ("", "..") else path.resolve().name


def one_line(error: BaseException) -> str:
    """An error's text on one line, or its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def listing(names: list[str], most: int = 8) -> str:
    """Names on one line, sorted, the first few where there are many."""
    names = sorted(names)
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "nothing"


def printable(name: str) -> str:
    """A path as text that can be printed and written as UTF-8: bytes of other encodings as
    ``\\xff``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

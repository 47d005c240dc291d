"""Paths that data sources name: finding them, and errors that say why they cannot be read."""

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
"""Errors that reading damaged, cut or encrypted files and archives ends in."""

_CAUSED_BY_THE_FILE = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.EINVAL,  # seeking to an impossible place that a damaged archive names
)
"""Errors of the system for which a file itself is to blame."""


def is_transient(error: BaseException) -> bool:
    """Whether reading failed for a reason outside of the file.

    Such reasons are want of memory, disk or open files, and faults of the device.
    """
    if isinstance(error, OSError):
        # Errors that Pillow raises about a file's content have no number.
        return error.errno is not None and error.errno not in _CAUSED_BY_THE_FILE
    return isinstance(error, MemoryError)


@contextlib.contextmanager
def transient_as_data_error(title: str) -> Iterator[None]:
    """Make a :func:`is_transient` failure a :class:`DataError` with the ``title`` of what was read."""
    try:
        yield
    except (OSError, MemoryError) as error:
        if not is_transient(error):
            raise
        raise DataError(
            f"{title}: cannot be read at present: {reason(error)}; load it again once that is over"
        ) from error


def reason(error: BaseException) -> str:
    """The reason why something could not be read, in the words of the system where it has any."""
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
    location = find(path)
    if location is None:
        raise DataError(f"{form}: there is no file or folder {path}{_near_name(path)}")
    return location


def _near_name(path: str) -> str:
    """The words for a file or folder of nearly the same name beside a missing one; empty if
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
    """The file or folder at a path as the user wrote it, or None if there is none."""
    try:
        location = Path(path).expanduser()
        if location.exists():
            return location
    except (OSError, RuntimeError, ValueError):
        pass  # no access, no such home folder, not a possible name
    return None


def last_name(path: Path) -> str:
    """The last part of a path as it is written; for ``.`` and ``..`` the name of that folder."""
    if path.name in ("", ".."):
        return path.resolve().name
    return path.name


def one_line(error: BaseException) -> str:
    """An error's text on one line, or its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def name_list(names: list[str], most: int = 8) -> str:
    """Names on one line, sorted, the first few where there are many."""
    if not names:
        return "nothing"
    names = sorted(names)
    shown = ", ".join(names[:most])
    if len(names) > most:
        shown += f" and {len(names) - most} more"
    return shown


def printable(name: str) -> str:
    """A path as text that can be printed and written as UTF-8.

    Bytes of other encodings become escapes like ``\\xff``.
    """
    # Python keeps such bytes of file names as lone surrogates.
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

"""Find the paths of data sources, and explain why they cannot be read."""

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
"""Errors that damaged, truncated or encrypted files and archives can cause."""

_CAUSED_BY_THE_FILE = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.EINVAL,  # seeking to an impossible place that a damaged archive names
)
"""System errors that are the fault of the file itself."""


def is_transient(error: BaseException) -> bool:
    """Whether reading failed for a reason that has nothing to do with the file.

    Such reasons are a lack of memory, disk space or file handles, and device errors. Reading may
    succeed later.
    """
    if isinstance(error, OSError):
        # Errors that Pillow raises about a file's content have no number.
        return error.errno is not None and error.errno not in _CAUSED_BY_THE_FILE
    return isinstance(error, MemoryError)


@contextlib.contextmanager
def transient_as_data_error(title: str) -> Iterator[None]:
    """Raise :class:`DataError` for a :func:`is_transient` failure inside the block.

    Args:
        title: what was read, for the message.
    """
    try:
        yield
    except (OSError, MemoryError) as error:
        if not is_transient(error):
            raise
        raise DataError(
            f"{title}: cannot be read at present: {reason(error)}; solve that, and load it again"
        ) from error


def reason(error: BaseException) -> str:
    """The reason why something could not be read, in the words of the system if possible."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    return getattr(error, "strerror", None) or one_line(error)


def existing(path: str, form: str) -> Path:
    """The existing file or folder that a source names.

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
    """A suggestion of a file or folder with nearly the same name; empty if there is none."""
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
        # The comparison above treats upper and lower case as different letters.
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
    """The last part of a path as written; for ``.`` and ``..``, the name of that folder."""
    if path.name in ("", ".."):
        return path.resolve().name
    return path.name


def one_line(error: BaseException) -> str:
    """The text of an error on one line, or the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def name_list(names: list[str], most: int = 8) -> str:
    """Names on one line, sorted; only the first ``most`` if there are more."""
    if not names:
        return "nothing"
    names = sorted(names)
    shown = ", ".join(names[:most])
    if len(names) > most:
        shown += f" and {len(names) - most} more"
    return shown


def printable(name: str) -> str:
    """A path as text that can be printed and encoded as UTF-8.

    Bytes of other encodings become escapes like ``\\xff``.
    """
    # Python keeps such bytes of file names as lone surrogates.
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

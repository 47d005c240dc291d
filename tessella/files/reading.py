"""Read untrusted files: everything is checked before it is used.

A downloaded run or an edited record can contain anything. JSON is only read from regular files of
bounded size, with bounded nesting and finite numbers; anything else raises
:class:`~tessella.errors.ArtifactError`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from tessella.errors import ArtifactError

JSON_BYTES = 1 << 24
"""Largest JSON file that is read unless the caller allows more: 16 MiB."""

JSON_NESTING = 64
"""Deepest nesting of JSON that is read; the package itself writes eight levels at most."""


def read_bytes(path: Path | str, limit: int) -> bytes:
    """Read a regular file (or a link to one) of at most ``limit`` bytes.

    Raises:
        ArtifactError: when it is missing, not a regular file, larger, or unreadable.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ArtifactError(
                    f"{path} is not a regular file: devices, pipes and directories are not read"
                )
            with open(handle, "rb", closefd=False) as file:
                # One byte more than allowed shows whether the file is larger.
                data = file.read(limit + 1)
        finally:
            os.close(handle)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {reason(error)}") from error
    if len(data) > limit:
        raise ArtifactError(
            f"{path} has more than {byte_count(limit)}, the most that is read;"
            " is it the right file?"
        )
    return data


def read_json(path: Path | str, limit: int = JSON_BYTES) -> Any:
    """Read a JSON file and check its size, its nesting and its numbers.

    Args:
        limit: the largest size in bytes.

    Raises:
        ArtifactError: when it is missing, not a regular file, too large, or not strict JSON.
    """
    return parse_json(read_bytes(path, limit), str(path))


def read_json_object(path: Path | str, limit: int = JSON_BYTES) -> dict[str, Any]:
    """Read a JSON file that must contain an object; see :func:`read_json`.

    Raises:
        ArtifactError: as there, and when the file contains anything else.
    """
    value = read_json(path, limit)
    if not isinstance(value, dict):
        raise ArtifactError(
            f"{path} must hold a JSON object, {{...}}, but holds {_kind(value)}: restore the file"
        )
    return value


def parse_json(text: bytes | str, source: str) -> Any:
    """Parse strict JSON: finite numbers, and nesting of at most ``JSON_NESTING`` levels.

    Args:
        source: name of the file or other origin, for the message.

    Raises:
        ArtifactError: when the text is anything else.
    """
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        value = json.loads(
            decoded, parse_float=_finite_float, parse_int=_bounded_int, parse_constant=_no_constant
        )
    except RecursionError:  # nested too deeply even for the parser
        raise ArtifactError(_too_deep(source)) from None
    except ValueError as error:
        raise ArtifactError(f"{source} cannot be read as JSON: {error}") from error
    if _nesting(value) > JSON_NESTING:
        raise ArtifactError(_too_deep(source))
    return value


def _finite_float(text: str) -> float:
    # float() turns 1e999 into infinity without an error.
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is beyond the range of floats")
    return value


def _bounded_int(text: str) -> int:
    # 300 digits still fit into a float; for more, Python's parser takes quadratic time.
    if len(text) > 300:
        raise ValueError(f"an integer has {len(text)} digits")
    return int(text)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _too_deep(source: str) -> str:
    return (
        f"{source} is nested more than {JSON_NESTING} levels deep:"
        " it is damaged, or not from tessella"
    )


def _nesting(value: object) -> int:
    """Nesting of lists and objects, without recursion; stops one level past the limit."""
    depth = 0
    # Level by level, since recursion could itself be too deep.
    level = [value]
    while level and depth <= JSON_NESTING:
        containers = [item for item in level if isinstance(item, (dict, list))]
        level = []
        for container in containers:
            level.extend(container.values() if isinstance(container, dict) else container)
        depth += bool(containers)
    return depth


def _kind(value: object) -> str:
    # Objects never come here, so whatever is not in this table is a number.
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def read_beginning(path: Path | str, count: int) -> bytes:
    """Read the first ``count`` bytes of a regular file; fewer if it is shorter.

    Raises:
        ArtifactError: when it is missing, not a regular file, or unreadable.
    """
    # Checked by name first: opening a pipe would wait for a writer.
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            raise ArtifactError(f"{path} is not a regular file")
        with Path(path).open("rb") as file:
            return file.read(count)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {reason(error)}") from error


def sha256(path: Path | str) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error: BaseException) -> str:
    """Return why something failed, without the path that the text of an OSError repeats."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def byte_count(count: int) -> str:
    """A number of bytes as readable text.

    >>> byte_count(2_500_000_000)
    '2.3 GiB'
    """
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"

"""Names of files in an archive: kept bit for bit, and refused where they would lead outside."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tessella.codec.varints import ByteReader, varint
from tessella.errors import BitstreamError

MOST_BYTES = 4096
"""Most bytes of a name."""


def written_names(names: Sequence[str]) -> bytes:
    """Names as bytes, each as what it has in common with the one before and what is between."""
    parts = []
    before = b""
    for name in names:
        encoded = os.fsencode(name)
        start = _common(before, encoded)
        end = _common(before[start:][::-1], encoded[start:][::-1])
        rest = encoded[start : len(encoded) - end]
        parts += [varint(start), varint(end), varint(len(rest)), rest]
        before = encoded
    return b"".join(parts)


def _common(one: bytes, other: bytes) -> int:
    """How many bytes two names begin with in common."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def read_names(reader: ByteReader, count: int) -> list[str]:
    """The names of ``count`` files.

    Raises:
        BitstreamError: when they are damaged, or a name is not allowed.
    """
    # Each name takes three bytes or more.
    if 3 * count > reader.left:
        raise BitstreamError("the file is damaged: names are missing")
    names = []
    before = b""
    for _ in range(count):
        start = reader.number("the beginning of a name", 0, len(before))
        end = reader.number("the end of a name", 0, len(before) - start)
        length = reader.number("the length of a name", 0, MOST_BYTES - start - end)
        between = reader.take(length, "a name")
        before = before[:start] + between + before[len(before) - end :]
        names.append(os.fsdecode(before))
    problem = names_problem(names)
    if problem:
        raise BitstreamError(f"the archive is refused: {problem}")
    return names


def names_problem(names: Sequence[str]) -> str:
    """Why names cannot be those of files in one folder; empty if they can.

    >>> names_problem(["a/b.png", "../c.png"])
    "the name '../c.png' leads out of the folder"
    """
    seen: set[str] = set()
    folders: set[str] = set()
    for name in names:
        parts = name.split("/")
        # On Windows a backslash and a drive lead elsewhere too.
        if {"", ".", ".."} & set(parts) or "\\" in name or "\0" in name or name[1:2] == ":":
            return f"the name {name!r} leads out of the folder"
        if len(os.fsencode(name)) > MOST_BYTES:
            return f"a name has more than {MOST_BYTES} bytes: {name[:40]!r}..."
        if name in seen:
            return f"the name {name!r} is there twice"
        seen.add(name)
        for length in range(1, len(parts)):
            folders.add("/".join(parts[:length]))
    both = seen & folders
    if both:
        return f"the name {min(both)!r} is that of a file and of a folder"
    return ""

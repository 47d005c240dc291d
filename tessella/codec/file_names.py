"""Names of files in an archive: kept bit for bit, and refused where they would lead outside."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tessella.codec.varints import ByteReader, varint
from tessella.errors import BitstreamError

MOST_BYTES = 4096
"""Most bytes of a name."""


def written_names(names: Sequence[str]) -> bytes:
    """Names as bytes, each as what it shares with the one before and what follows."""
    parts = []
    before = b""
    for name in names:
        encoded = os.fsencode(name)
        shared = 0
        while shared < min(len(before), len(encoded) - 1) and before[shared] == encoded[shared]:
            shared += 1
        rest = encoded[shared:]
        parts += [varint(shared), varint(len(rest)), rest]
        before = encoded
    return b"".join(parts)


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
        shared = reader.number("the beginning of a name", 0, len(before))
        length = reader.number("the length of a name", 1, MOST_BYTES - shared)
        before = before[:shared] + reader.take(length, "a name")
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

"""Zip archives, checked as a whole before anything in them is read.

:mod:`zipfile` searches for the directory of an archive from the end of the file and accepts it
wherever it finds it. If an archive that contains another one is cut off after the inner one,
zipfile finds the inner directory and lists the inner files. So the records are read here too, and
must be consistent with each other and with the file. Section numbers are those of PKWARE's
APPNOTE.TXT, version 6.3.10.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tessella.errors import DataError

_END = b"PK\5\6"
_END_LENGTH = 22
_LOCATOR = b"PK\6\7"  # says where the end record of a Zip64 archive is
_LOCATOR_LENGTH = 20
_END64 = b"PK\6\6"
_END64_LENGTH = 56
_LOCAL = b"PK\3\4"
_LOCAL_LENGTH = 30
_MAX_COMMENT = 0xFFFF
_IN_END64_2 = 0xFFFF  # these values mean "see the Zip64 record"
_IN_END64_4 = 0xFFFFFFFF


@dataclass(frozen=True)
class _Directory:
    """The central directory as the record at the end of an archive describes it.

    Args:
        start: its offset in the file, in bytes.
        length: its length in bytes.
        entries: number of files in it.
        end: offset of the record that follows it.
    """

    start: int
    length: int
    entries: int
    end: int


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip file, which must be exactly one complete archive.

    Raises:
        DataError: when the directory is not at the end of the file or not where the archive says,
            when it names files that overlap or are elsewhere, or when the file holds anything else.
        OSError: when the file cannot be read. zipfile.BadZipFile: when it is not an archive at all,
            or its directory is damaged; :data:`tessella.data.paths.READ_ERRORS` lists the other
            errors that damage can cause.
    """
    archive = zipfile.ZipFile(path)
    try:
        with path.open("rb") as file:
            problem = _why_refused(file, archive.infolist())
        if problem:
            raise DataError(
                f"{path} is damaged, or not one whole zip archive: {problem};"
                " copy or download it again"
            )
    except BaseException:
        archive.close()
        raise
    return archive


def _why_refused(file: BinaryIO, members: list[zipfile.ZipInfo]) -> str:
    """The reason why an archive is refused; empty if it is consistent."""
    directory = _find_directory(file)
    if directory is None:
        return "it does not end with the directory of an archive"
    if directory.start + directory.length != directory.end:
        return "its directory does not lie where it says, as in an archive that lost its beginning"
    if directory.entries != len(members):
        return f"its directory has {len(members)} files, and its end says {directory.entries}"
    return _check_members(file, members, directory)


def _find_directory(file: BinaryIO) -> _Directory | None:
    """The description of the directory at the very end of a file (sections 4.3.14 to 4.3.16)."""
    size = file.seek(0, 2)
    # The record is followed by a comment only, so it starts no further back than this.
    start = max(0, size - _END_LENGTH - _MAX_COMMENT)
    file.seek(start)
    tail = file.read()
    # The record ends with a comment of a given length, which must end where the file ends. Its
    # mark may occur within the comment; the last mark that fits is the one zipfile takes.
    offset = tail.rfind(_END)
    while offset >= 0:
        record = tail[offset : offset + _END_LENGTH]
        if len(record) == _END_LENGTH:
            comment = int.from_bytes(record[20:22], "little")
            if offset + _END_LENGTH + comment == len(tail):
                return _read_end(file, record, start + offset)
        offset = tail.rfind(_END, 0, offset)
    return None


def _read_end(file: BinaryIO, record: bytes, offset: int) -> _Directory | None:
    """The directory that an end record at ``offset`` describes, or the Zip64 record before it."""
    _, disk, first_disk, here, entries, length, start, _ = struct.unpack("<4s4H2LH", record)
    if _IN_END64_2 in (disk, first_disk, here, entries) or _IN_END64_4 in (length, start):
        found = _read_end64(file, offset)
        if found is not None:
            return found
    if disk or first_disk or here != entries:
        return None  # one volume of several
    return _Directory(start, length, entries, offset)


def _read_end64(file: BinaryIO, end: int) -> _Directory | None:
    """The directory of a Zip64 archive, whose end record is at ``end``."""
    if end < _LOCATOR_LENGTH + _END64_LENGTH:
        return None
    file.seek(end - _LOCATOR_LENGTH)
    mark, _, offset, disks = struct.unpack("<4sLQL", file.read(_LOCATOR_LENGTH))
    if mark != _LOCATOR or disks != 1 or offset > end - _LOCATOR_LENGTH - _END64_LENGTH:
        return None
    file.seek(offset)
    fields = struct.unpack("<4sQ2H2L4Q", file.read(_END64_LENGTH))
    if fields[0] != _END64:
        return None
    entries, length, start = fields[7:]
    return _Directory(start, length, entries, offset)


def _check_members(file: BinaryIO, members: list[zipfile.ZipInfo], directory: _Directory) -> str:
    """The reason why the files cannot be where the directory says; empty if they can.

    Their headers must follow one another from the start of the file, none inside another file.
    """
    reached = 0
    for number, member in enumerate(sorted(members, key=lambda each: each.header_offset)):
        start = member.header_offset
        if number == 0 and start != 0:
            return f"{start:,} bytes before its first file belong to nothing"
        if start < reached:
            return f"{member.filename!r} overlaps another file"
        file.seek(start)
        header = file.read(_LOCAL_LENGTH)
        if len(header) < _LOCAL_LENGTH or header[:4] != _LOCAL:
            return f"{member.filename!r} is not where its directory says"
        name, extra = struct.unpack_from("<2H", header, 26)
        # What follows is not checked: a data descriptor, or a gap that a removed file left.
        reached = start + _LOCAL_LENGTH + name + extra + member.compress_size
        if reached > directory.start:
            return f"{member.filename!r} is cut, or runs into the directory"
    if not members and directory.start:
        return "it has no files, and something lies before its directory"
    return ""

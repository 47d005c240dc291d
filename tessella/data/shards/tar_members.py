"""Walk the headers of a tar file that nobody vouches for.

Nothing is extracted and no link is followed: a member is a name and a range of bytes. Python's
``tarfile`` reads the headers and checks their checksums; it does not walk the file itself, since it
would keep every member in memory and read an extended header of any size.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tessella.errors import DataError

BLOCK = tarfile.BLOCKSIZE
"""Bytes of a header; every member begins at a multiple of it."""
MAX_EXTENDED = 1 << 16
"""Largest extended header that is read, in bytes: a name of 4 KiB is the longest of any system."""
ReadAt = Callable[[int, int], bytes]
"""Bytes of a file by offset and size; fewer at its end."""
_CHUNK = 1 << 20  # bytes of the padding after the last member that are looked at together
_LONG_NAME = (tarfile.GNUTYPE_LONGNAME,)
_SKIPPED = (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)


@dataclass(frozen=True)
class TarMember:
    """One member of a tar file.

    Args:
        name: as the file states it; it can be any text and is never used as a path.
        start: where its first header begins, in bytes.
        offset: where its content begins, in bytes.
        size: bytes of its content.
        kind: ``file``, ``folder``, or in words what else it is.
    """

    name: str
    start: int
    offset: int
    size: int
    kind: str

    @property
    def after(self) -> int:
        """Where the next header begins."""
        return self.offset + -(-self.size // BLOCK) * BLOCK


def walk(read: ReadAt, length: int, title: str) -> Iterator[TarMember]:
    """Every member of a tar file, in order.

    Args:
        read: reads the file.
        length: bytes of the file.
        title: the file, for messages.

    Raises:
        DataError: when the file is cut short, damaged, or goes on after its end.
    """
    place = 0
    while True:
        member = read_member(read, place, title)
        if member is None:
            break
        # The last member may lack its padding, but never a byte of its content.
        if member.offset + member.size > length:
            raise DataError(
                f"{title} is cut short: {member.name!r} needs {member.size:,} bytes, and"
                f" {max(0, length - member.offset):,} are there; copy the file again"
            )
        yield member
        place = member.after
    _check_end(read, place, title)


def read_member(read: ReadAt, start: int, title: str) -> TarMember | None:
    """The member whose first header is at ``start``; None at the end of the archive.

    Raises:
        DataError: when there is no whole header.
    """
    place = start
    name = ""
    size = None
    # Extended headers come before the header that they add to.
    while True:
        if place - start > 4 * MAX_EXTENDED:
            raise DataError(
                f"{title} has more than {4 * MAX_EXTENDED:,} bytes of headers at byte {start:,},"
                " which is more than are read"
            )
        info = _header(read, place, title)
        if info is None:
            return None
        place += BLOCK
        if info.size < 0:
            raise DataError(f"{title} is damaged: {info.name!r} states a size of {info.size} bytes")
        if info.type not in (*_PAX, *_LONG_NAME, *_SKIPPED):
            break
        content = _extended(read, place, info.size, title)
        if info.type in _LONG_NAME:
            name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type in _PAX:
            records = _pax_records(content)
            name = records.get("path", name)
            size = _pax_size(records, title) or size
        place += -(-info.size // BLOCK) * BLOCK
    content_size = info.size if size is None else size
    # Links and folders have no content, whatever size they state.
    if info.isdir() or info.issym() or info.islnk():
        content_size = 0
    return TarMember(name or info.name, start, place, content_size, _kind(info))


def _kind(info: tarfile.TarInfo) -> str:
    if info.isdir():
        return "folder"
    if info.issym() or info.islnk():
        return "a link, which is not followed"
    if info.type == tarfile.GNUTYPE_SPARSE:
        return "a file with holes, which is not read"
    if info.isfile():
        return "file"
    return "no file"


def _header(read: ReadAt, place: int, title: str) -> tarfile.TarInfo | None:
    """The header at a place; None for the block of zeros that ends the archive."""
    block = read(place, BLOCK)
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return None
    except tarfile.HeaderError as error:
        if len(block) < BLOCK:
            raise DataError(
                f"{title} is cut short: it ends at byte {place + len(block):,} without the block of"
                " zeros that ends a tar file; copy the file again"
            ) from error
        raise DataError(
            f"{title} is damaged, or no tar file: there is no header at byte {place:,}"
        ) from error


def _extended(read: ReadAt, place: int, size: int, title: str) -> bytes:
    if size > MAX_EXTENDED:
        raise DataError(
            f"{title} has a header of {size:,} bytes at byte {place:,}; at most {MAX_EXTENDED:,}"
            " are read"
        )
    content = read(place, size)
    if len(content) < size:
        raise DataError(f"{title} is cut short at byte {place:,}; copy the file again")
    return content


def _pax_records(content: bytes) -> dict[str, str]:
    """The records of an extended header: ``LENGTH KEY=VALUE`` and a new line each."""
    records = {}
    place = 0
    while place < len(content):
        digits, space, _ = content[place : place + 12].partition(b" ")
        if not space or not digits.isdigit() or int(digits) <= len(digits) + 1:
            break  # padding, or damage, which the checksum of the header does not cover
        record = content[place + len(digits) + 1 : place + int(digits)].rstrip(b"\n")
        key, _, value = record.partition(b"=")
        decoded = value.decode("utf-8", "surrogateescape")
        records[key.decode("utf-8", "surrogateescape")] = decoded
        place += int(digits)
    return records


def _pax_size(records: dict[str, str], title: str) -> int | None:
    text = records.get("size")
    if text is None:
        return None
    # More digits than a 64-bit number has are no size of a file.
    if not text.isdecimal() or len(text) > 19:
        raise DataError(f"{title} is damaged: it states a size of {text[:20]!r} bytes")
    return int(text)


def _check_end(read: ReadAt, place: int, title: str) -> None:
    """Refuse anything but zeros after the end: joined files would lose what comes second."""
    while True:
        piece = read(place, _CHUNK)
        if not piece:
            return
        if piece.strip(b"\0"):
            raise DataError(
                f"{title} goes on after its end, at about byte {place:,}: several tar files were"
                " joined; keep each as a file of its own"
            )
        place += len(piece)

"""The index of a shard: where each of its images lies, so that any of them is read at once.

It is made by walking the headers of the tar file once, and kept in the sub-folder ``shards/`` of
the cache folder (:func:`tessella.files.cache_folder`). An entry consists of two files,
``KEY.index``, an array of :data:`RECORD` (48 bytes an image), and ``KEY.json``, which is written
last; KEY is a hash of the path, the size and the modification time of the tar file. Everything
there can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tessella import files
from tessella.data.decode import MAX_BYTES
from tessella.data.decoded_cache import digest
from tessella.data.folder import looks_like_image
from tessella.data.paths import printable, reason
from tessella.data.shards.open_files import OpenFiles
from tessella.data.shards.tar_members import ReadAt, TarMember, walk
from tessella.data.splits import hash_position
from tessella.errors import ArtifactError, DataError

VERSION = 1
"""Version of the format of an index."""
RECORD = np.dtype(
    [
        ("start", "<u8"),  # of the first header of the image, in bytes from the start of the file
        ("offset", "<u8"),  # of its content
        ("size", "<u4"),  # of its content, in bytes
        ("facts_size", "<u4"),  # of the content of the .json member; 0 where there is none
        ("facts_offset", "<u8"),
        ("label", "<i8"),  # NO_LABEL where there is none
        ("position", "<f8"),  # of its key, see tessella.data.splits.hash_position
    ]
)
"""What an index says of one image."""
_ROW = struct.Struct("<QQIIQqd")  # the same, of which it makes a million faster than numpy
NO_LABEL = -1
MAX_FACTS = 1 << 20
"""Largest ``.json`` member that is read, in bytes."""
MAX_LABEL = 32
"""Largest ``.cls`` member, in bytes: a whole number."""
MOST_NAMED = 100
"""Members left out that are named one by one; of further ones only their number is known."""
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
"""Key and extension of a member: the first dot of the last part of its name divides them."""


@dataclass(frozen=True)
class ShardIndex:
    """What is known of one shard without reading its images.

    Args:
        records: the file of the array of :data:`RECORD`.
        count: images.
        sha256: see :class:`~tessella.data.shards.Shard`.
        left_out: members that are not read, each as ``name: reason``, the first of them.
        left_out_count: how many there are.
    """

    records: Path
    count: int
    sha256: str
    left_out: tuple[str, ...] = ()
    left_out_count: int = 0


def index_of(path: Path, opened: OpenFiles) -> ShardIndex:
    """The index of a tar file, made now if the cache has none.

    Args:
        path: the file.
        opened: reads it.

    Raises:
        DataError: when the file is cut short, damaged or unreadable, or the cache cannot be
            written.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error
    where = printable(str(path.resolve()))
    key = digest("shard", VERSION, where, facts.st_size, facts.st_mtime_ns)
    folder = files.cache_folder() / "shards"
    found = _found(folder, key)
    if found is not None:
        return found

    def read(offset: int, size: int) -> bytes:
        return opened.read(path, offset, size)

    made = _Maker(read, str(path)).make(facts.st_size)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.atomic_file(folder / f"{key}.index") as temporary:
            made.records.tofile(temporary)
        record = {
            "version": VERSION,
            "count": len(made.records),
            "sha256": made.sha256,
            "left_out": made.left_out,
            "left_out_count": made.left_out_count,
            "path": where,
        }
        files.write_json(folder / f"{key}.json", record)
    except (OSError, ArtifactError) as error:
        raise DataError(
            f"cannot store the index of {path} in {folder}: {reason(error.__cause__ or error)};"
            " set TESSELLA_CACHE to a writable folder on a disk with enough space"
        ) from error
    found = _found(folder, key)
    assert found is not None
    return found


def _found(folder: Path, key: str) -> ShardIndex | None:
    """An entry, or None if it is missing or incomplete."""
    records = folder / f"{key}.index"
    try:
        facts = files.read_json_object(folder / f"{key}.json")
        count = int(facts["count"])
        if records.stat().st_size != count * RECORD.itemsize:
            return None
        left_out = tuple(map(str, facts["left_out"]))
        return ShardIndex(records, count, facts["sha256"], left_out, facts["left_out_count"])
    except (OSError, ValueError, KeyError, TypeError, ArtifactError):
        return None


@dataclass
class _Made:
    records: np.ndarray
    sha256: str
    left_out: list[str]
    left_out_count: int


@dataclass
class _Sample:
    """Members that share a key."""

    key: str
    members: list[str] = field(default_factory=list)
    image: TarMember | None = None
    label: int = NO_LABEL
    facts: TarMember | None = None


class _Maker:
    """Gathers the members of a tar file into samples, and keeps those that have an image.

    Args:
        read: reads the file.
        title: the file, for messages.
    """

    def __init__(self, read: ReadAt, title: str) -> None:
        self._read = read
        self._title = title
        self._rows = bytearray()
        self._keys = hashlib.sha256()
        self._seen: set[bytes] = set()
        self._sample = _Sample("")
        self._left_out: list[str] = []
        self._left_out_count = 0

    def make(self, length: int) -> _Made:
        """Walk a file of ``length`` bytes."""
        for member in walk(self._read, length, self._title):
            self._add(member)
        self._finish_sample()
        records = np.frombuffer(bytes(self._rows), RECORD)
        self._keys.update(records.tobytes())
        self._keys.update(str(length).encode())
        return _Made(records, self._keys.hexdigest(), self._left_out, self._left_out_count)

    def _add(self, member: TarMember) -> None:
        if member.kind == "folder":
            return
        parts = _NAME.fullmatch(member.name)
        if member.kind != "file":
            self._leave_out(member.name, member.kind)
        elif parts is None:
            # Hidden files, such as those that macOS adds, and names without an extension.
            self._leave_out(member.name, "hidden, or without an extension")
        else:
            if parts[1] != self._sample.key:
                self._finish_sample()
                self._sample = _Sample(parts[1])
            self._add_to_sample(member, parts[2].lower())

    def _add_to_sample(self, member: TarMember, extension: str) -> None:
        sample = self._sample
        if extension in sample.members:
            self._leave_out(member.name, "the second member of this name")
            return
        sample.members.append(extension)
        if extension == "cls":
            sample.label = self._label(member)
        elif extension == "json":
            if member.size <= MAX_FACTS:
                sample.facts = member
            else:
                self._leave_out(member.name, f"more than {MAX_FACTS:,} bytes of facts")
        elif looks_like_image(f"image.{extension}"):
            self._add_image(member)

    def _add_image(self, member: TarMember) -> None:
        if self._sample.image is not None:
            self._leave_out(member.name, f"{self._sample.image.name} is the image of this key")
        elif member.size > MAX_BYTES:
            self._leave_out(member.name, f"larger than {MAX_BYTES >> 20} MiB")
        else:
            self._sample.image = member

    def _label(self, member: TarMember) -> int:
        if member.size <= MAX_LABEL:
            text = self._read(member.offset, member.size).strip()
            if text.isdigit() and int(text) <= np.iinfo(np.int64).max:
                return int(text)
        self._leave_out(member.name, "no label: a .cls member holds a whole number from 0")
        return NO_LABEL

    def _finish_sample(self) -> None:
        """Keep the sample that is complete now."""
        sample = self._sample
        self._sample = _Sample("")
        image = sample.image
        if image is None:
            if sample.members:
                self._leave_out(sample.key, f"no image, only {', '.join(sorted(sample.members))}")
            return
        # Half a hash is enough to notice a repeated key, and takes less memory than the key.
        mark = hashlib.sha256(sample.key.encode("utf-8", "surrogateescape")).digest()[:16]
        if mark in self._seen:
            self._leave_out(image.name, "the key was there before; members of a key stand together")
            return
        self._seen.add(mark)
        self._keys.update(mark)
        facts_size = 0
        facts_offset = 0
        if sample.facts is not None:
            facts_size = sample.facts.size
            facts_offset = sample.facts.offset
        self._rows += _ROW.pack(
            image.start,
            image.offset,
            image.size,
            facts_size,
            facts_offset,
            sample.label,
            hash_position(sample.key),
        )

    def _leave_out(self, name: str, why: str) -> None:
        self._left_out_count += 1
        if len(self._left_out) < MOST_NAMED:
            self._left_out.append(f"{printable(name)}: {why}")


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, which an index lists."""
    parts = _NAME.fullmatch(name)
    assert parts is not None
    return parts[1], parts[2].lower()

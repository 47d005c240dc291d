"""Write images into shards, tar files of the WebDataset convention.

Writing follows the protocol of :mod:`tessella.storage.resumable`: each shard appears whole, so a
command that was killed goes on after the last one, and ends with the same bytes.
:mod:`tessella.data.shards` reads them.
"""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tessella import files
from tessella.data.image_files import MAX_FAILURES, TOLERATED_FAILURES, worker_count
from tessella.data.shards import open_shards
from tessella.data.shards.shard_manifest import (
    FORMAT,
    MANIFEST,
    ShardEntry,
    ShardManifest,
    ShardSetRecord,
)
from tessella.data.unusable_image import UnusableImage
from tessella.errors import DataError, InputError, check_integer
from tessella.storage import resumable
from tessella.storage.shard_input import ShardInput, ShardSplit

SHARD_IMAGES = 1000
"""Images of a shard unless the caller says otherwise."""
SHARD_BYTES = 1 << 28
"""Bytes of the images of a shard, at most (but one image at least): a thread holds one of them."""
KIND = "shards"


@dataclass(frozen=True)
class _Planned:
    """A shard to be written: places ``start`` to ``stop`` of a split, numbered from ``first``."""

    name: str
    split: str
    start: int
    stop: int
    first: int


def write_shards(
    given: ShardInput,
    out: Path | str,
    *,
    name: str = "",
    images: int = SHARD_IMAGES,
    most_bytes: int = SHARD_BYTES,
    workers: int = 0,
    watch: Callable[[float], object] | None = None,
    say: Callable[[str], object] | None = None,
) -> ShardManifest:
    """Write shards ``NAME-SPLIT-000000.tar`` and ``shards.json`` into a folder.

    A shard has the members ``00000000.jpg`` (or ``.png``), ``.cls`` with the number of the class,
    and ``.json`` with the name of the image. Equal images give equal bytes, whenever and by however
    many threads they are written.

    Args:
        given: the images.
        out: the folder; shards that an earlier, stopped call wrote there are kept.
        name: the beginning of the names; that of the source where it is empty.
        images: of a shard, at most.
        most_bytes: of the images of a shard, at most (of arrays: before they are compressed).
        workers: threads that each write other shards; 0 for one a processor.
        watch: called with the number of images that are done.
        say: called with a line for each image that is left out because it is damaged.

    Raises:
        InputError: when the folder holds something else, or shards of other images.
        DataError: when more than 20 % of the images (and at least three) are unusable.
        ArtifactError: when it cannot be written, or another process writes there.
    """
    path = Path(out)
    record: ShardSetRecord = {
        "format": FORMAT,
        "kind": KIND,
        "name": _checked_name(name or given.source.partition(":")[2] or given.source),
        "source": given.source,
        "identity": given.identity,
        "images": check_integer("images", images, least=1),
        "bytes": check_integer("most_bytes", most_bytes, least=1),
        "classes": list(given.classes),
    }
    workers = check_integer("workers", workers, most=1024) or worker_count()
    files.check_writable(path / MANIFEST)
    # Before anything is created: a refused command leaves nothing behind.
    _check_place(path, record)
    with resumable.exclusive(path, path, "writes shards"):
        _check_place(path, record)  # again: another process may have been faster
        planned = list(_plan(given, record))
        if (path / MANIFEST).exists():
            _drop_damaged(path)
        resumable.write_record(path, cast(Mapping[str, object], record))
        files.sweep(path)
        _Writing(given, path, watch, say).run(planned, workers)
        return _finish(path, record, planned)


def _checked_name(name: str) -> str:
    """A name without what file names cannot hold, or what divides their parts."""
    kept = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in name)
    kept = kept.strip("-.").removesuffix(".zip").removesuffix(".npz")
    if not kept:
        raise InputError(f"the name of the shards must have a letter or a digit, got {name!r}")
    return kept


def _plan(given: ShardInput, record: ShardSetRecord) -> Iterator[_Planned]:
    """The shards of all splits. Numbers go on from split to split, so that keys are unique."""
    first = 0
    for split, part in given.splits.items():
        start = 0
        size = 0
        number = 0
        for place, image_size in enumerate(part.sizes):
            is_full = place - start >= record["images"] or size + image_size > record["bytes"]
            if is_full and place > start:
                yield _Planned(_shard_name(record, split, number), split, start, place, first)
                start = place
                size = 0
                number += 1
            size += image_size
        yield _Planned(_shard_name(record, split, number), split, start, len(part.sizes), first)
        first += len(part.sizes)


def _shard_name(record: ShardSetRecord, split: str, number: int) -> str:
    return f"{record['name']}-{split}-{number:06}.tar"


class _Writing:
    """Writes the shards that are missing.

    Args:
        given: the images.
        path: the folder.
        watch, say: see :func:`write_shards`.
    """

    def __init__(
        self,
        given: ShardInput,
        path: Path,
        watch: Callable[[float], object] | None,
        say: Callable[[str], object] | None,
    ) -> None:
        self._given = given
        self._path = path
        self._watch = watch
        self._say = say
        self._count = sum(len(split.sizes) for split in given.splits.values())
        # Threads finish in any order: whoever is done takes the next number.
        self._done = itertools.count(1)
        self._damaged = itertools.count(1)

    def run(self, planned: list[_Planned], workers: int) -> None:
        """Write every shard that is not there yet."""
        with ThreadPoolExecutor(workers, "shards") as pool:
            for _ in pool.map(self._write, planned):
                pass  # raises what a thread raised

    def _write(self, planned: _Planned) -> None:
        part = self._given.splits[planned.split]
        target = self._path / planned.name
        if target.exists():
            for _ in range(planned.start, planned.stop):
                next(self._done)
            return
        # In memory first, so that errors of images are not taken for those of writing.
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for place in range(planned.start, planned.stop):
                self._add(tar, part, place, planned.first + place)
                done = next(self._done)
                if self._watch is not None:
                    self._watch(done)
        with files.atomic_file(target) as temporary:
            temporary.write_bytes(content.getbuffer())

    def _add(self, tar: tarfile.TarFile, part: ShardSplit, place: int, number: int) -> None:
        """Add the members of one image, unless it is damaged."""
        facts = part.facts(place)
        try:
            image, extension = part.encoded(place)
        except UnusableImage as error:
            self._leave_out(f"{facts.get('name', place)}: {error}")
            return
        key = f"{number:08}"
        if part.labels is not None:
            _add_member(tar, f"{key}.cls", str(part.labels[place]).encode())
        _add_member(tar, f"{key}.{extension}", image)
        _add_member(tar, f"{key}.json", files.json_text(facts, indent=None).encode())

    def _leave_out(self, what: str) -> None:
        count = next(self._damaged)
        if self._say is not None:
            self._say(f"left out: {what}")
        if count > max(TOLERATED_FAILURES, MAX_FAILURES * self._count):
            raise DataError(
                f"at least {count} of {self._count} images of {self._given.source} are unusable"
                f" (more than 20 %); repair, convert or remove them; the last: {what}"
            )


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # A fresh header has no owner and the date 0, so that the same images give the same bytes.
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _check_place(path: Path, record: ShardSetRecord) -> None:
    """Refuse a folder that holds something else than these shards, whole or in part."""
    if (path / MANIFEST).exists():
        found: Mapping[str, object] | None = files.read_json_object(path / MANIFEST)
    else:
        found = resumable.read_record(path)
    if found is None:
        occupied = path.is_dir() and any(entry.name != ".lock" for entry in path.iterdir())
        if occupied or (path.exists() and not path.is_dir()):
            raise InputError(f"{path} holds something else than shards: name another --out")
        return
    if found.get("kind") != KIND:
        raise InputError(f"{path} was not written by tessella shards: name another --out")
    wanted = cast(Mapping[str, object], record)
    differences = resumable.differing(found, wanted, ignored={"splits"})
    if differences:
        raise InputError(
            f"{path} holds shards of something else (they differ in {', '.join(differences)}):"
            f" name another --out, or delete {path} to start over"
        )


def _drop_damaged(path: Path) -> None:
    """Remove the finished shards that are not what their manifest says, to be made again."""
    manifest = cast(ShardManifest, files.read_json_object(path / MANIFEST))
    for entries in manifest["splits"].values():
        for entry in entries:
            shard = path / Path(entry["name"]).name
            if shard.exists() and files.sha256(shard) != entry["sha256"]:
                shard.unlink()


def _finish(path: Path, record: ShardSetRecord, planned: list[_Planned]) -> ShardManifest:
    """Write what the shards are, now that every one is there."""
    splits: dict[str, list[ShardEntry]] = {}
    for each in planned:
        shard = path / each.name
        entry: ShardEntry = {
            "name": each.name,
            "count": len(open_shards(str(shard))),
            "bytes": shard.stat().st_size,
            "sha256": files.sha256(shard),
        }
        splits.setdefault(each.split, []).append(entry)
    manifest: ShardManifest = {**record, "splits": splits}
    # Last: from now on the shards count as finished.
    files.write_json(path / MANIFEST, manifest)
    resumable.remove_record(path)
    return manifest

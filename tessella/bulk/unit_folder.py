"""A folder with the file of every unit of a job, which goes on where it was stopped.

It follows the protocol of :mod:`tessella.storage.resumable`. While units are missing, ``made.json``
says what is being made, and ``units.jsonl`` has a line for each file that is there: its name, its
size and its SHA-256. A file without a line, or other than its line says, is made again. When all
are there, ``config.json`` says so, with the lines of all units.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tessella import files
from tessella.bulk.engines import Engine
from tessella.bulk.units import MadeUnit, Units
from tessella.errors import ArtifactError, InputError
from tessella.storage import resumable
from tessella.storage.code_set import INDEX_BYTES

FORMAT = 1
"""Version of the layout."""

CONFIG = "config.json"
JOURNAL = "units.jsonl"

FREE = ("units",)
"""What a record has and the wanted one does not: the units that were made."""


@dataclass(frozen=True)
class UnitFile:
    """The file of a unit.

    Args:
        name: of the file.
        images: that it holds.
        bytes: its size.
        sha256: of its content.
    """

    name: str
    images: int
    bytes: int
    sha256: str


def make_folder(
    out: Path,
    kind: str,
    made: Mapping[str, object],
    units: Units,
    engine: Engine,
    watch: Callable[[float], object] | None = None,
) -> list[UnitFile]:
    """Make the units that are missing in a folder, and finish it.

    Args:
        out: the folder.
        kind: what it holds, in a word.
        made: how it is made, as plain values; a folder that was made in another way is refused.
        units: all units.
        engine: makes them.
        watch: called with the number of images that are done.

    Returns:
        the files, in the order of their numbers.

    Raises:
        InputError: when the folder holds something else.
        ArtifactError: when it cannot be written, or another process writes there.
        TessellaError: what making a unit raised.
    """
    folder = _UnitFolder(out, units, _record(kind, made, units))
    files.check_writable(out / CONFIG)
    # Before anything is created: a refused command leaves nothing behind.
    folder.check()
    with resumable.exclusive(out, out, f"writes {kind}"):
        folder.check()  # again: another process may have been faster
        folder.make(engine, watch)
    return [folder.there[number] for number in range(len(units))]


def _record(kind: str, made: Mapping[str, object], units: Units) -> dict[str, object]:
    """Say as JSON values what a folder holds."""
    record = {
        "format": FORMAT,
        "kind": kind,
        "made": dict(made),
        "images": units.images,
        "unit_images": units.unit_images,
    }
    # Through JSON and back: what is read from a file is compared with this.
    plain = files.parse_json(files.json_text(record), "the record of a job")
    assert isinstance(plain, dict)
    return dict(plain)


class _UnitFolder:
    """The state of a folder: which units are there.

    Args:
        path: the folder.
        units: all units.
        record: what it is to hold.
    """

    def __init__(self, path: Path, units: Units, record: dict[str, object]) -> None:
        self.path = path
        self.units = units
        self.record = record
        self.there: dict[int, UnitFile] = {}

    def check(self) -> None:
        """Refuse a place that holds something else.

        Raises:
            InputError: saying in what it differs.
        """
        if self.path.is_symlink():
            files.check_replaceable(self.path)  # which refuses links
        found = self._found()
        is_free = not self.path.exists()
        if self.path.is_dir():
            is_free = not _holds_something(self.path)
        if found is None and is_free:
            return
        if found is None or found.get("kind") != self.record["kind"]:
            raise InputError(f"{self.path} holds something else: name another --out")
        different = resumable.differing(found, self.record, FREE)
        if different:
            raise InputError(
                f"{self.path} holds another job, which differs in {_in_words(found, self.record)}:"
                f" name another --out, or delete {self.path} to start over"
            )

    def make(self, engine: Engine, watch: Callable[[float], object] | None) -> None:
        """Make what is missing."""
        files.sweep(self.path)
        self._find_files()
        missing = [number for number in range(len(self.units)) if number not in self.there]
        if not missing and (self.path / CONFIG).exists():
            return
        self._begin()
        done = sum(file.images for file in self.there.values())
        for unit in engine.make(self.units, missing):
            # A unit that two actors made has one content, and is written once.
            if unit.number in self.there:
                continue
            self._write(unit)
            done += self.there[unit.number].images
            if watch is not None:
                watch(done)
        self._finish()

    def _found(self) -> dict[str, object] | None:
        """The record of what is there; None where there is none."""
        # A finished folder has a configuration, one that is being made a record.
        if (self.path / CONFIG).exists():
            return dict(files.read_json_object(self.path / CONFIG, INDEX_BYTES))
        return resumable.read_record(self.path)

    def _find_files(self) -> None:
        """Look for the files of units that are there and undamaged."""
        for number, line in self._lines().items():
            path = self.path / self.units.name(number)
            if line.name != path.name or not path.is_file():
                continue
            if path.stat().st_size == line.bytes and files.sha256(path) == line.sha256:
                self.there[number] = line

    def _lines(self) -> dict[int, UnitFile]:
        """What is recorded of units, by their numbers."""
        entries: list[object] = []
        if (self.path / CONFIG).exists():
            listed = files.read_json_object(self.path / CONFIG, INDEX_BYTES).get("units")
            entries = listed if isinstance(listed, list) else []
        elif (self.path / JOURNAL).exists():
            for line in (self.path / JOURNAL).read_text(encoding="utf-8").splitlines():
                # A kill can leave a part of a line at the end.
                try:
                    entries.append(json.loads(line))
                except ValueError:
                    continue
        numbers = {self.units.name(number): number for number in range(len(self.units))}
        found = {}
        for entry in entries:
            file = _unit_file(entry)
            if file is not None and file.name in numbers:
                found[numbers[file.name]] = file
        return found

    def _begin(self) -> None:
        """Say what is being made, and which units are there."""
        resumable.write_record(self.path, self.record)
        lines = []
        for _, file in sorted(self.there.items()):
            lines.append(files.json_text(asdict(file), indent=None) + "\n")
        files.write_text(self.path / JOURNAL, "".join(lines))
        # From now on the folder counts as unfinished.
        (self.path / CONFIG).unlink(missing_ok=True)

    def _write(self, unit: MadeUnit) -> None:
        name = self.units.name(unit.number)
        files.write_bytes(self.path / name, unit.data)
        digest = hashlib.sha256(unit.data).hexdigest()
        images = len(self.units.places(unit.number))
        file = UnitFile(name, images, len(unit.data), digest)
        files.append_line(self.path / JOURNAL, files.json_text(asdict(file), indent=None))
        self.there[unit.number] = file

    def _finish(self) -> None:
        """Write which files there are, now that all of them are."""
        missing = len(self.units) - len(self.there)
        if missing:
            raise ArtifactError(
                f"{self.path} is not finished, {missing} of {len(self.units)} units are missing:"
                " the same command goes on"
            )
        entries = [asdict(self.there[number]) for number in range(len(self.units))]
        # Last: from now on the folder counts as finished.
        files.write_json(self.path / CONFIG, {**self.record, "units": entries})
        resumable.remove_record(self.path)
        (self.path / JOURNAL).unlink(missing_ok=True)


def _unit_file(entry: object) -> UnitFile | None:
    """A recorded line as a file; None where it is damaged."""
    if not isinstance(entry, dict):
        return None
    try:
        return UnitFile(
            name=str(entry["name"]),
            images=int(entry["images"]),
            bytes=int(entry["bytes"]),
            sha256=str(entry["sha256"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _in_words(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    """In what two records differ, with both values."""
    differences = []
    for name in resumable.differing(found, wanted, FREE):
        before = found.get(name)
        now = wanted.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            for key in resumable.differing(before, now):
                differences.append(f"{key} {before.get(key)} (now {now.get(key)})")
        else:
            differences.append(f"{name} {before} (now {now})")
    return "; ".join(differences)


def _holds_something(folder: Path) -> bool:
    return any(entry.name != ".lock" for entry in folder.iterdir())

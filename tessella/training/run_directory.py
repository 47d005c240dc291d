"""A run directory while it is trained: the log, the record ``run.json``, the lock."""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import tessella
from tessella import files
from tessella.errors import ArtifactError, TrainingError
from tessella.pipeline import FORMAT
from tessella.pipeline.run_record import check_record
from tessella.training import boards

FOLDERS = (".", "checkpoints", "baseline", "tokenizer", "prior")
"""Folders of a run, which a killed process may leave half-written files in."""

LOCK = ".lock"
"""Held by the process that trains."""

EARLY = (
    "baseline",
    "tensorboard",
    "wandb",
    "wandb-id",
    "report.html",
    "skipped.txt",
    "log.jsonl",
    "run.json",
)
"""Files and folders of a run before its first checkpoint; run.json makes the directory a run."""


class RunDirectory:
    """Writes the files of a run. Only the first process of several writes.

    Args:
        path: the directory.
        writes: whether this process is the one.
        board: who shows the run, as ``train.board`` has it.
    """

    def __init__(self, path: Path | str, writes: bool = True, board: str = "none") -> None:
        self.path = Path(path)
        self.writes = writes
        self._board_name = board
        self._lock = FileLock(self.path / LOCK)

    def lock(self) -> None:
        """Keep other processes from training here until :meth:`close`.

        Raises:
            TrainingError: when one does already.
            ArtifactError: when the directory cannot be written.
        """
        if not self.writes:
            return
        files.make_directory(self.path)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise TrainingError(
                f"another process is training in {self.path}: wait until it has ended,"
                " or give another --out"
            ) from None
        except (OSError, NotImplementedError):
            # A file system without locks; two trainers in one directory are rarer than those.
            pass

    def refuse_taken(self) -> None:
        """Check that a new run can begin here.

        Raises:
            TrainingError: when there is a run, or anything else.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise TrainingError(f"{self.path} is a file: give another --out")
        # A run that was stopped before it had anything to keep may be begun anew.
        there = {item.name for item in self.path.iterdir()} - {LOCK}
        # A start that was killed leaves these.
        begun = {name for name in there if name.startswith((".run.json.", ".probe."))}
        if "run.json" in there:
            if not there <= {*EARLY, *begun}:
                raise TrainingError(
                    f"{self.path} holds a run already: resume it with --resume,"
                    " or give another --out"
                )
        elif there - begun:
            raise TrainingError(
                f"{self.path} exists and is not an empty directory: give another --out"
            )

    def start(self, record: Mapping[str, object]) -> None:
        """Begin in a new directory, or in that of a run that was stopped before it kept anything.

        Raises:
            TrainingError: when there is a run in it already, or another process trains there.
            ArtifactError: when it cannot be written.
        """
        if not self.writes:
            return
        self.refuse_taken()
        self.lock()
        # Another process may have trained here before the lock was ours.
        self.refuse_taken()
        for name in ("run.json", "probe"):
            files.sweep(self.path, name)
        self._clear()
        files.write_json(self.path / "run.json", {"format": FORMAT, **record, "status": "running"})

    def facts(self) -> dict[str, Any]:
        """Read ``run.json`` and check its entries.

        Raises:
            ArtifactError: when there is no run here, one of another format, or a damaged record.
        """
        path = self.path / "run.json"
        if not path.exists():
            raise ArtifactError(f"{self.path} holds no run: it has no run.json")
        # Another version's record may have other entries; what is read of it must have our types.
        record = check_record(files.read_json(path), path)
        if record.get("format") != FORMAT:
            raise ArtifactError(
                f"{self.path} has format {record.get('format')}; tessella {tessella.__version__}"
                f" reads format {FORMAT}"
            )
        return record

    def update(self, **changes: object) -> None:
        """Change entries of ``run.json``."""
        if self.writes:
            files.write_json(self.path / "run.json", self.facts() | changes)

    def log(self, entry: Mapping[str, object]) -> None:
        """Append one line of JSON to ``log.jsonl``, and show its numbers on the board.

        Figures that are not finite become null: JSON has no word for them.

        Raises:
            ArtifactError: when it cannot be written.
        """
        if not self.writes:
            return
        # One write of one line: a reader never sees half of it but at the very end.
        files.append_line(self.path / "log.jsonl", files.json_text(entry, indent=None))
        step = entry["step"]
        if self.board is None or not isinstance(step, int):
            return
        figures = {}
        for name, value in entry.items():
            if isinstance(value, (int, float)) and name != "step":
                figures[name] = value
        self.board.figures(step, figures)

    def cut_log(self, step: int) -> None:
        """Drop the lines after ``step``: these steps will be trained, and logged, again."""
        # A reader of the log should not find a step twice.
        log = self.path / "log.jsonl"
        if not self.writes or not log.exists():
            return
        # As bytes: a crash can leave half a character.
        lines = log.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _step_of_line(line) <= step]
        if kept != lines:
            files.write_bytes(log, b"".join(kept))

    def flush(self) -> None:
        """Wait until the log is on disk: a checkpoint must not be ahead of it.

        Raises:
            ArtifactError: when it cannot be written.
        """
        if self.writes and (self.path / "log.jsonl").exists():
            files.flush(self.path / "log.jsonl")

    def sweep(self) -> None:
        """Clear away what a killed process left unfinished.

        Raises:
            ArtifactError: when it cannot be removed.
        """
        if self.writes:
            for name in FOLDERS:
                files.sweep(self.path / name)

    def close(self) -> None:
        """Flush what is buffered, and let others train here."""
        self._lock.release()
        # The property would open a board that nothing was shown on.
        board = vars(self).get("board")
        if board is not None:
            board.close()

    def _clear(self) -> None:
        """Remove the files of a run that was stopped before it had anything to keep."""
        try:
            for name in EARLY:
                item = self.path / name
                if item.is_dir():
                    shutil.rmtree(item)
                else:
                    item.unlink(missing_ok=True)
        except OSError as error:
            raise ArtifactError(f"cannot clear {self.path}: {error.strerror or error}") from error

    @functools.cached_property
    def board(self) -> boards.Board | None:
        """Who shows the run: opened with the first figures, and None where nobody does."""
        if not self.writes:
            return None
        return boards.opened(self._board_name, self.path, self.facts())


def environment(device: torch.device, world_size: int) -> dict[str, object]:
    """Versions, machine and command of a run. A resumed run is exact only in an equal one."""
    name = device.type
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "tessella": tessella.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "world_size": world_size,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(sys.argv),
    }


def command_line(argv: Sequence[str]) -> list[str]:
    """The command that started this process, in words that start another one.

    >>> command_line(["/lib/tessella/__main__.py", "train", "digits"])
    ['tessella', 'train', 'digits']
    """
    program = Path(argv[0])
    name = program.name
    if name == "__main__.py":
        # python -m PACKAGE
        name = program.parent.name
    return [name, *argv[1:]]


def _step_of_line(line: bytes) -> int:
    """The step of a log line; a line cut short by a crash counts as late."""
    if not line.endswith(b"\n"):
        return sys.maxsize
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return sys.maxsize

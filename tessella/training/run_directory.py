"""A run directory while it is trained: the log, the facts, the best model, the checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import tessella
from tessella import files
from tessella.errors import ArtifactError, TrainingError
from tessella.pipeline import FORMAT

FOLDERS = (".", "checkpoints", "baseline", "tokenizer", "prior")
"""Folders of a run that something is written to."""

LOCK = ".lock"
"""Held by the process that trains."""

EARLY = ("baseline", "tensorboard", "report.html", "skipped.txt", "log.jsonl", "run.json")
"""What a run has before its first checkpoint; the last one makes the directory a run."""


@dataclass
class Progress:
    """How far a run is; kept in every checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Wall-clock seconds of training, validation and saving, over all sittings."""
    validations: int = 0
    validating: float = 0.0
    """Seconds of them that validations took."""
    best: float = float("inf")
    """Least value of the task's metric so far."""
    best_step: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    """All validation figures of the best weights."""


class RunDirectory:
    """Writes what a run leaves behind. Only the first process of several writes.

    Args:
        path: the directory.
        writes: whether this process is the one.
    """

    def __init__(self, path: Path | str, writes: bool = True) -> None:
        self.path, self.writes = Path(path), writes
        self._board: Any = None
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
                f"another process is training in {self.path}: wait until it has ended, or give another --out"
            ) from None
        except (OSError, NotImplementedError):  # a file system without locks
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
        there = {item.name for item in self.path.iterdir()} - {LOCK}
        begun = [
            name for name in there if name.startswith((".run.json.", ".probe."))
        ]  # a start that was killed
        if "run.json" in there and not there <= {*EARLY, *begun}:
            raise TrainingError(
                f"{self.path} holds a run already: resume it with --resume, or give another --out"
            )
        if "run.json" not in there and there - {*begun}:
            raise TrainingError(
                f"{self.path} exists and is not an empty directory: give another --out"
            )

    def start(self, facts: Mapping[str, Any]) -> None:
        """Begin in a new directory, or in that of a run which was stopped before it had anything to
        keep.

        Raises:
            TrainingError: when there is a run in it already, or another process trains there.
            ArtifactError: when it cannot be written.
        """
        if not self.writes:
            return
        self.refuse_taken()
        self.lock()
        self.refuse_taken()  # another process may have trained in between
        for name in ("run.json", "probe"):
            files.sweep(self.path, name)
        self._clear()
        files.write_json(self.path / "run.json", {"format": FORMAT, **facts, "status": "running"})

    def facts(self) -> dict[str, Any]:
        """The contents of ``run.json``.

        Raises:
            ArtifactError: when there is no run here, or one of another format.
        """
        if not (self.path / "run.json").exists():
            raise ArtifactError(f"{self.path} holds no run: it has no run.json")
        facts: dict[str, Any] = files.read_json(self.path / "run.json")
        if not isinstance(facts, dict):
            raise ArtifactError(f"{self.path}/run.json was not written by tessella")
        if facts.get("format") != FORMAT:
            raise ArtifactError(
                f"{self.path} has format {facts.get('format')}; tessella {tessella.__version__} reads format {FORMAT}"
            )
        return facts

    def update(self, **changes: Any) -> None:
        """Change entries of ``run.json``."""
        if self.writes:
            files.write_json(self.path / "run.json", self.facts() | changes)

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one line of JSON to ``log.jsonl``, and to TensorBoard where it is installed.

        Raises:
            ArtifactError: when it cannot be written.
        """
        if not self.writes:
            return
        files.append_line(self.path / "log.jsonl", json.dumps(entry))
        board = self._tensorboard()
        if board:
            for name, value in entry.items():
                if isinstance(value, (int, float)) and name != "step":
                    board.add_scalar(name, value, entry["step"])

    def cut_log(self, step: int) -> None:
        """Drop what was logged after ``step``: it will be trained, and logged, again."""
        log = self.path / "log.jsonl"
        if self.writes and log.exists():
            lines = log.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if _step(line) <= step]
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
        """Clear away what a killed process left half written.

        Raises:
            ArtifactError: when it cannot be removed.
        """
        if self.writes:
            for name in FOLDERS:
                files.sweep(self.path / name)

    def close(self) -> None:
        """Flush what is buffered, and let others train here."""
        self._lock.release()
        if self._board:
            with contextlib.suppress(OSError):  # the same figures are in the log
                self._board.close()

    def _clear(self) -> None:
        """Remove what a run has that was stopped before it had anything to keep."""
        try:
            for item in [self.path / name for name in EARLY]:
                shutil.rmtree(item) if item.is_dir() else item.unlink(missing_ok=True)
        except OSError as error:
            raise ArtifactError(f"cannot clear {self.path}: {error.strerror or error}") from error

    def _tensorboard(self) -> Any:
        if self._board is None:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self.path / "tensorboard"))
            except ImportError:
                self._board = False
        return self._board


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """What the run was made with: versions, machine, threads. A resumed run is exact only in the
    same one."""
    return {
        "tessella": tessella.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "world_size": world_size,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _step(line: bytes) -> int:
    """The step of a log line; a line cut short by a crash counts as late."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else sys.maxsize
    except (ValueError, KeyError, TypeError):
        return sys.maxsize

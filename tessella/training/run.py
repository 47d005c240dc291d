"""A run directory while it is trained: the log, the facts, the best model, the checkpoints."""

from __future__ import annotations

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

import tessella
from tessella import files
from tessella.errors import ArtifactError, TrainingError
from tessella.pipeline import FORMAT


@dataclass
class Progress:
    """How far a run is; kept in every checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Wall-clock seconds of training, validation and saving, over all sittings."""
    validations: int = 0
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

    def start(self, facts: Mapping[str, Any]) -> None:
        """Begin in a new directory.

        Raises:
            TrainingError: when there is a run in it already.
            ArtifactError: when it cannot be written.
        """
        if not self.writes:
            return
        kept = any((self.path / name).exists() for name in ("config.json", "checkpoints"))
        if (self.path / "run.json").exists() and not kept:
            shutil.rmtree(self.path)  # a run that was stopped before it had anything to keep
        if (self.path / "run.json").exists():
            raise TrainingError(f"{self.path} holds a run already: resume it with --resume, or give another --out")
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise TrainingError(f"{self.path} exists and is not an empty directory: give another --out")
        files.make_directory(self.path)
        files.write_json(self.path / "run.json", {"format": FORMAT, **facts, "status": "running"})

    def facts(self) -> dict[str, Any]:
        """The contents of ``run.json``.

        Raises:
            ArtifactError: when there is no run here, or one of another format.
        """
        if not (self.path / "run.json").exists():
            raise ArtifactError(f"{self.path} holds no run: it has no run.json")
        facts: dict[str, Any] = files.read_json(self.path / "run.json")
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
        """Append one line of JSON to ``log.jsonl``, and to TensorBoard where it is installed."""
        if not self.writes:
            return
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        board = self._tensorboard()
        if board:
            for name, value in entry.items():
                if isinstance(value, (int, float)) and name != "step":
                    board.add_scalar(name, value, entry["step"])

    def cut_log(self, step: int) -> None:
        """Drop what was logged after ``step``: it will be trained, and logged, again."""
        log = self.path / "log.jsonl"
        if self.writes and log.exists():
            lines = [line for line in log.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            files.write_text(log, "".join(line + "\n" for line in lines))

    def close(self) -> None:
        """Flush what is buffered."""
        if self._board:
            self._board.close()

    def _tensorboard(self) -> Any:
        if self._board is None:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self.path / "tensorboard"))
            except ImportError:
                self._board = False
        return self._board


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """What the run was made with: versions, machine, threads. A resumed run is exact only in the same one."""
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


def _step(line: str) -> int:
    """The step of a log line; a line cut short by a crash counts as late."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return sys.maxsize

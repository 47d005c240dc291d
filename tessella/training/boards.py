"""Boards: programs that show the figures and pictures of a run while it trains.

They are extras. ``log.jsonl`` holds the figures in any case.
"""

from __future__ import annotations

import contextlib
import importlib
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tessella.errors import TrainingError


@runtime_checkable
class Board(Protocol):
    """Where a run is shown."""

    shows_pictures: bool
    """Whether pictures are to be made for it, which takes time of the run."""

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Show numbers of a step."""

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Show a picture, ``uint8 [h, w, c]``."""

    def close(self) -> None:
        """Write what is buffered."""


class TensorBoard:
    """TensorBoard, whose files lie in the folder ``tensorboard`` of the run.

    Args:
        path: of the run.
        shows_pictures: whether it was asked for, rather than found installed.
    """

    library = "tensorboard"

    def __init__(self, path: Path, shows_pictures: bool) -> None:
        # Imported late: it takes a second.
        from torch.utils.tensorboard import SummaryWriter

        self.shows_pictures = shows_pictures
        self._writer: Any = SummaryWriter(str(path / "tensorboard"))

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        # A full disk must not end a run whose figures are in the log as well.
        with contextlib.suppress(OSError):
            self._writer.close()


class WeightsAndBiases:
    """Weights & Biases; its own settings (``WANDB_PROJECT``, ``WANDB_MODE``) hold.

    A resumed run goes on under the name that the run directory keeps.

    Args:
        path: of the run.
        facts: its record, shown as the configuration.
    """

    library = "wandb"
    shows_pictures = True

    def __init__(self, path: Path, facts: Mapping[str, object]) -> None:
        wandb = importlib.import_module("wandb")
        self._wandb: Any = wandb
        kept = path / "wandb-id"
        if not kept.exists():
            kept.write_text(uuid.uuid4().hex, encoding="utf-8")
        self._run: Any = wandb.init(
            id=kept.read_text(encoding="utf-8"),
            name=path.name,
            dir=str(path),
            config=dict(facts),
            resume="allow",
        )

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()


def check_installed(name: str) -> None:
    """Refuse a board that was asked for and is not there, before the data are read.

    Raises:
        TrainingError: with the way to install it.
    """
    if name in (TensorBoard.library, WeightsAndBiases.library) and find_spec(name) is None:
        raise TrainingError(f"train.board={name} needs {name}: pip install {name}")


def opened(name: str, path: Path, facts: Mapping[str, object]) -> Board | None:
    """The board that a run is shown on.

    Args:
        name: as ``train.board`` has it.
        path: the run directory.
        facts: what the run is, for boards that show it.

    Returns:
        None for no board, and for ``auto`` where TensorBoard is not installed.

    Raises:
        TrainingError: for a board that was asked for and is not installed.
    """
    check_installed(name)
    if name == "wandb":
        return WeightsAndBiases(path, facts)
    if name == "tensorboard":
        return TensorBoard(path, shows_pictures=True)
    if name == "auto" and find_spec("tensorboard") is not None:
        return TensorBoard(path, shows_pictures=False)
    return None

"""Boards that show a run while it trains: figures, pictures, and what is refused."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessella as ts
from tessella import Grid
from tessella.errors import ConfigError, TrainingError
from tessella.training import boards

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)


class FakeRun:
    """What a run of Weights & Biases is asked to do."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = False

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """Runs that were begun with a stand-in for the library."""
    begun: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        begun.append(FakeRun(**options))
        return begun[-1]

    library = types.ModuleType("wandb")
    library.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    library.init = init  # type: ignore[attr-defined]
    library.Image = lambda image: image  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", library)
    return begun


def density() -> ts.DensityModel:
    return ts.create("gated-pixelcnn", Grid(8, 8, 1, levels=256), layers=1, hidden=4)


def vqvae() -> ts.Tokenizer:
    return ts.create_tokenizer(
        "vqvae", image_size=(8, 8), channels=1, codebook_size=4, hidden=4, code_dim=2
    )


@pytest.mark.parametrize(("make", "name"), [(density, "samples"), (vqvae, "reconstructions")])
def test_figures_and_pictures_of_a_run(
    make: Any, name: str, wandb: list[FakeRun], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ts.train(make(), IMAGES, steps=3, batch=4, out=out, board="wandb", say=lambda line: None)
    (run,) = wandb
    assert run.options["id"] == (out / "wandb-id").read_text()
    assert run.options["name"] == "run"
    assert run.finished
    named = {key for _, values in run.logged for key in values}
    assert {"loss", "learning_rate", name} <= named
    assert "step" not in named, "it is the argument of that name"
    # One with each model that was the best so far.
    pictures = [values[name] for step, values in run.logged if name in values]
    picture = pictures[-1]
    assert picture.dtype == np.uint8
    assert picture.shape[-1] == 1
    assert picture.std() > 0
    # The figures are those of the log, each with its step.
    assert [step for step, _ in run.logged] == sorted(step for step, _ in run.logged)


def test_a_resumed_run_keeps_its_name(wandb: list[FakeRun], tmp_path: Path) -> None:
    out = tmp_path / "run"
    options: dict[str, Any] = {"batch": 4, "out": out, "board": "wandb", "say": lambda line: None}
    ts.train(density(), IMAGES, steps=2, **options)
    (out / "wandb-id").write_text("kept")
    board = boards.opened("wandb", out, {})
    assert board is not None
    assert wandb[-1].options["id"] == "kept"
    assert wandb[-1].options["resume"] == "allow"


def test_a_board_changes_nothing_of_the_run(wandb: list[FakeRun], tmp_path: Path) -> None:
    weights = []
    for board in ("none", "wandb"):
        out = tmp_path / board
        options: dict[str, Any] = {"board": board, "say": lambda line: None, "validate_every": 2}
        ts.train(density(), IMAGES, steps=5, batch=4, out=out, **options)
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_tensorboard_gets_pictures_when_it_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra logs is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for board, pictures in (("auto", []), ("tensorboard", ["samples"])):
        out = tmp_path / board
        ts.train(density(), IMAGES, steps=3, batch=4, out=out, board=board, say=lambda line: None)
        events = EventAccumulator(str(out / "tensorboard"))
        events.Reload()
        assert "loss" in events.Tags()["scalars"]
        assert events.Tags()["images"] == pictures


def test_a_board_that_is_not_there_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match="pip install wandb"):
        ts.train(density(), IMAGES, steps=1, out=tmp_path / "run", board="wandb")
    assert not (tmp_path / "run").exists()
    assert boards.opened("auto", tmp_path, {}) is None


def test_an_unknown_board_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be one of"):
        ts.train(density(), IMAGES, steps=1, out=tmp_path / "run", board="wandbb")  # type: ignore[arg-type]

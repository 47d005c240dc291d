"""How long a run takes: its minutes with all that belongs to them, warm-up, forecasts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessella as ts
from tessella.config import TrainConfig
from tessella.training import loop, schedule, trainer
from tessella.training.forecast import Forecast
from tessella.training.progress import Progress

GRID = ts.Grid(4, 4, 1, 4)


class Clock:
    """A clock that only the work of a run moves, in place of this machine's.

    Args:
        patch: puts it in place.
        step: seconds of a step.
        validation: seconds of a validation.
        saving: seconds of a checkpoint.
        preparation: seconds of reading and encoding the images.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        step: float,
        validation: float = 0.0,
        saving: float = 0.0,
        preparation: float = 0.0,
    ) -> None:
        self.now = 1000.0
        patch.setattr(loop.time, "monotonic", lambda: self.now)
        self._delay(patch, loop, "_step", step)
        self._delay(patch, loop, "validate", validation)
        self._delay(patch, loop.checkpoint, "save", saving)
        self._delay(patch, trainer, "_save_baseline", preparation)

    def _delay(self, patch: pytest.MonkeyPatch, owner: Any, name: str, seconds: float) -> None:
        act = getattr(owner, name)

        def delayed(*arguments: Any, **options: Any) -> Any:
            self.now += seconds
            return act(*arguments, **options)

        patch.setattr(owner, name, delayed)


def images(n: int = 40) -> np.ndarray:
    generator = np.random.default_rng(0)
    return (generator.integers(0, 4, (n, 4, 4, 1)) * 85).astype(np.uint8)


def train(out: Path, **options: Any) -> tuple[trainer.Run, list[str]]:
    """Train a tiny model. Returns the run and what was said."""
    said: list[str] = []
    model = ts.create("gated-pixelcnn", GRID, layers=1, hidden=4)
    run = ts.train(model, images(), out=out, batch=4, device="cpu", say=said.append, **options)
    return run, said


@pytest.mark.parametrize(
    ("minutes", "seconds"),
    [
        (3.0, {"step": 2.0, "validation": 12.0, "saving": 3.0}),
        (1.5, {"step": 0.7, "validation": 9.0, "saving": 9.0, "preparation": 8.0}),
        (1.0, {"step": 4.0, "validation": 1.0, "saving": 0.1, "preparation": 20.0}),
    ],
)
def test_minutes_hold_for_the_whole_run_within_a_tenth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, seconds: dict[str, float]
) -> None:
    clock = Clock(monkeypatch, **seconds)
    run, _ = train(tmp_path / "run", minutes=minutes)
    assert clock.now - 1000.0 == pytest.approx(60 * minutes, rel=0.1)
    assert run.progress.seconds == pytest.approx(clock.now - 1000.0)
    assert not run.interrupted


def test_a_finished_run_of_minutes_stays_finished_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch, step=2.0, validation=12.0, saving=3.0)
    run, _ = train(tmp_path / "run", minutes=3.0)
    again, said = train(tmp_path / "run", minutes=3.0, resume=True)
    assert again.progress.step == run.progress.step
    assert any("is finished" in line for line in said)
    more, _ = train(tmp_path / "run", minutes=4.0, resume=True)
    assert more.progress.step > run.progress.step


def test_preparation_leaves_half_of_the_minutes_to_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch, step=1.0, preparation=600.0)
    run, said = train(tmp_path / "run", minutes=1.0)
    assert run.progress.step == 30
    assert any("preparing the images took 10:00 min of the 1:00 min" in line for line in said)


def test_a_short_run_reaches_its_rate_and_a_long_one_warms_up_as_asked() -> None:
    short = [schedule.rate_factor(step / 15, step, 50) for step in range(15)]
    assert max(short) > 0.9
    assert short[0] < 0.1
    long = [schedule.rate_factor(step / 10_000, step, 50) for step in range(60)]
    assert long[24] == pytest.approx(0.5, abs=0.01)
    assert min(long[50:]) > 0.99


def test_warm_up_by_the_clock_where_steps_are_few() -> None:
    """Two minutes of slow steps: the limit is a time, and the share of it counts."""
    config = TrainConfig(minutes=2.0)
    progress = Progress(step=1, seconds=6.0)
    share = schedule.limits_of(config, 100).passed(progress)
    assert schedule.rate_factor(share, progress.step, config.warmup) > 0.9


def test_too_few_steps_are_said_before_training_with_what_would_help(tmp_path: Path) -> None:
    _, said = train(tmp_path / "few", steps=3)
    warning = next(line for line in said if line.startswith("warning: about 3 steps"))
    assert "train.batch" in warning
    assert "data.size" in warning
    _, said = train(tmp_path / "enough", steps=schedule.FEW_STEPS)
    assert not any(line.startswith("warning") for line in said)


def test_the_warning_counts_the_steps_that_fit_into_minutes() -> None:
    limits = schedule.limits_of(TrainConfig(minutes=2.0), 1000)
    warning = limits.few_steps_warning(Progress(), step_seconds=8.0)
    assert warning is not None
    assert "about 15 steps of 8 s" in warning
    assert "about 67 min" in warning
    assert limits.few_steps_warning(Progress(), step_seconds=0.5) is None


def test_the_forecast_follows_the_pace() -> None:
    pace = schedule.Pace()
    for _ in range(10):
        pace.update(0.2)
    assert pace.step_seconds == pytest.approx(0.2)
    for _ in range(100):
        pace.update(0.6)
    assert pace.step_seconds == pytest.approx(0.6, rel=0.02)
    limits = schedule.limits_of(TrainConfig(steps=1000), 100)
    left = limits.seconds_left(Progress(step=400), pace.step_seconds)
    assert left == pytest.approx(360, rel=0.02)


def test_steps_much_slower_than_forecast_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch, step=3.0)
    forecast = trainer.forecast

    def too_hopeful(*given: Any) -> Any:
        measured = forecast(*given)
        return Forecast(measured.parameters, 1.0, 10.0, measured.memory_bytes)

    monkeypatch.setattr(trainer, "forecast", too_hopeful)
    _, said = train(tmp_path / "run", steps=40)
    assert "steps take 3 s, not 1 s as forecast: about 1:00 min left" in said


def test_the_bar_says_what_is_left_and_never_infinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    text = loop._bar_text

    def keep(*given: Any) -> str:
        shown.append(text(*given))
        return shown[-1]

    monkeypatch.setattr(loop, "_bar_text", keep)
    train(tmp_path / "run", steps=25, validate_every=8)
    assert "no validation yet" in shown[0]
    assert "best valid bits_per_dim" in shown[-1]
    assert all(" left, " in line and "inf" not in line for line in shown)


def test_a_run_without_a_limit_that_counts_steps_has_no_warning() -> None:
    assert schedule.limits_of(TrainConfig(), 10).expected_steps(Progress(), 1.0) == math.inf

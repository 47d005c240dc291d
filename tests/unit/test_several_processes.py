"""Runs on several processes: the curve of one, one answer to signals, weights in parts."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
import torch

import tessella as ts
from tessella.config import TrainConfig
from tessella.errors import ConfigError
from tessella.files import read_json, read_tensors
from tessella.training import (
    bad_steps,
    batch_size,
    checkpoint,
    launching,
    loop,
    signals,
    train_recipe,
)
from tessella.training.examples import BatchPart, Examples
from tessella.training.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
PLACE = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
KINDS = ["density", "vq-ema", "residual-vq", "rotation", "vqgan", "hierarchy"]
SHARDED = ["transformer-sharded", "vq-sharded", "hierarchy-sharded"]


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("several_processes")


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The differences of curves on two processes from those of one, by kind."""
    out = tmp_path_factory.mktemp("curves") / "rows.json"
    script = [sys.executable, str(ROOT / "benchmarks" / "several_processes.py")]
    options = ["--ranks", "2", "--steps", "5", "--chain", "2", "1", "--json", str(out)]
    options += ["--kinds", *KINDS, *SHARDED]
    shown = subprocess.run(
        [*script, *options], capture_output=True, text=True, env=PLACE, timeout=900
    )
    assert out.exists(), shown.stderr
    return {row["kind"]: row for row in json.loads(out.read_text())["rows"]}


@pytest.mark.parametrize("kind", KINDS + SHARDED)
def test_two_processes_give_the_curve_of_one(curves: dict[str, dict[str, Any]], kind: str) -> None:
    # The first loss knows nothing of the optimizer: only the order of sums differs.
    assert curves[kind]["difference_of_first_loss"] < 1e-6
    assert curves[kind]["largest_difference"] < 1e-3


def test_a_run_in_parts_is_handed_on_bit_for_bit(curves: dict[str, dict[str, Any]]) -> None:
    row = curves["handed on"]
    assert row["chain"] == [2, 1]
    assert row["tensors"] > 50
    assert row["tensors_that_differ"] == 0
    assert row["weights_of_the_model_that_differ"] == 0


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What two processes did together, and the folder of their runs."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, str(ROOT / "tests" / "two_ranks.py"), str(folder)]
    shown = subprocess.run(command, capture_output=True, text=True, env=PLACE, timeout=900)
    assert shown.returncode == 0, shown.stderr
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_a_bad_step_of_one_process_ends_both(two: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, found = two
    for of_rank in found:
        assert "the loss became nan" in of_rank["stop"]["error"]
        assert "at step 4" in of_rank["stop"]["error"]
    assert checkpoint.found(folder / "stop")[-1].name == "step-00000003"


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_both_processes_go_on_after_a_bad_step_of_one(
    two: tuple[Path, list[dict[str, Any]]], policy: str
) -> None:
    _, found = two
    for of_rank in found:
        assert of_rank[policy]["bad_steps"] == 1
        assert of_rank[policy]["step"] == 6
    (line,) = [line for line in found[0][policy]["said"] if "not finite" in line]
    assert ("left out" if policy == "skip" else "back to the weights of step 2") in line


def test_a_signal_to_one_process_ends_both_at_one_step(
    two: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, found = two
    for of_rank in found:
        assert of_rank["signal"] == {"status": 75, "step": 3, "interrupted": True}
    assert checkpoint.found(folder / "signalled")[-1].name == "step-00000003"
    assert read_json(folder / "signalled" / "run.json")["status"] == "interrupted"


def test_two_machines_train_as_two_devices_of_one(
    two: tuple[Path, list[dict[str, Any]]],
) -> None:
    states = []
    for run in ("together", "machines", "tasks"):
        newest = checkpoint.found(two[0] / run)[-1]
        states.append(read_tensors(newest / "state.safetensors"))
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])
        assert torch.equal(tensor, states[2][name])


def test_divided_weights_are_saved_whole_and_resumed_on_one_process(
    two: tuple[Path, list[dict[str, Any]]], several: ModuleType
) -> None:
    assert all(of_rank["share_of_weights"] < 0.6 for of_rank in two[1])
    out = two[0] / "divided"
    before = read_tensors(checkpoint.found(out)[-1] / "state.safetensors")
    settings = several.TRAIN | {"steps": 8, "checkpoint_every": 2, "learning_rate": 3e-3}
    recipe = several.recipe_of("density", settings | {"sharding": "full"})
    run = train_recipe(recipe, out, resume=True, say=lambda line: None)
    assert run.progress.step == 8
    # The checkpoint of step 6 is still there, and says what the run went on from.
    after = read_tensors(checkpoint.found(out)[-1] / "state.safetensors")
    assert before.keys() == after.keys()
    assert {name: tensor.shape for name, tensor in before.items()} == {
        name: tensor.shape for name, tensor in after.items()
    }
    assert np.isfinite(ts.evaluate(out)["bits_per_dim"])


@pytest.mark.parametrize("name", ts.MODELS)
def test_every_model_computes_the_same_in_parts(
    two: tuple[Path, list[dict[str, Any]]], name: str
) -> None:
    for of_rank in two[1]:
        loss, norm, loss_in_parts, norm_in_parts = of_rank["models"][name]
        assert loss_in_parts == pytest.approx(loss, rel=1e-5)
        assert norm_in_parts == pytest.approx(norm, rel=1e-4)


def test_what_does_not_go_with_divided_weights_is_refused(
    tmp_path: Path, several: ModuleType
) -> None:
    for changes in ({"optimizer": "muon"}, {"compile": True}):
        settings = several.TRAIN | {"steps": 1, "sharding": "full"} | changes
        recipe = several.recipe_of("density", settings)
        with pytest.raises(ConfigError, match="sharding"):
            train_recipe(recipe, tmp_path / "run", say=lambda line: None)


def test_processes_are_those_that_a_launcher_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launching.layout_of(2) == launching.ProcessLayout(2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert launching.layout_of(1) == launching.ProcessLayout(4, 2, "torchrun")
    assert launching.layout_of(4).processes == 8
    with pytest.raises(ConfigError, match="torchrun started 4"):
        launching.layout_of(2)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "6")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "3")
    with pytest.raises(ConfigError, match="ntasks-per-node"):
        launching.layout_of(1)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    assert launching.layout_of(1) == launching.ProcessLayout(2, 3, "srun")


def test_a_run_goes_on_by_itself_after_a_restart_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert not launching.goes_on_by_itself(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert launching.goes_on_by_itself(tmp_path)
    assert not launching.goes_on_by_itself(tmp_path / "other")


@pytest.mark.parametrize(
    ("settings", "ends_after"),
    [
        ({"on_nonfinite": "stop"}, 1),
        ({"on_nonfinite": "skip", "nonfinite_in_a_row": 2}, 3),
        ({"on_nonfinite": "rollback", "nonfinite_in_all": 3}, 4),
    ],
)
def test_too_many_bad_steps_end_a_run(settings: dict[str, Any], ends_after: int) -> None:
    config = TrainConfig(steps=9, **settings)
    progress = Progress()
    for _ in range(ends_after - 1):
        bad_steps.count_bad_step(progress)
        assert bad_steps.goes_on(config, progress)
    bad_steps.count_bad_step(progress)
    assert not bad_steps.goes_on(config, progress)
    error = bad_steps.bad_step_error(config, progress, loss=7.0, norm=float("nan"), rate=0.3)
    assert "train.learning_rate=0.1" in str(error)


def test_a_batch_is_chosen_and_kept(
    tmp_path: Path, several: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"steps": 2, "batch": 0}
    said: list[str] = []
    recipe = several.recipe_of("density", several.TRAIN | changes)
    train_recipe(recipe, tmp_path / "run", say=said.append)
    # More memory than 64 small images need: all of the split fits, in a power of two.
    batch = read_json(tmp_path / "run" / "run.json")["recipe"]["train"]["batch"]
    assert batch == 64
    assert f"train.batch={batch} is the largest that fits" in said
    # Another day there is less memory: the run keeps the batch that it began with.
    monkeypatch.setattr(batch_size, "machine_memory", lambda: 4 * 10**6)
    longer = several.recipe_of("density", several.TRAIN | changes | {"steps": 3})
    run = train_recipe(longer, tmp_path / "run", resume=True, say=lambda line: None)
    assert run.progress.step == 3
    assert read_json(tmp_path / "run" / "run.json")["recipe"]["train"]["batch"] == batch


def test_random_changes_follow_the_place_in_the_batch() -> None:
    x = torch.randint(0, 256, (8, 2, 3, 1), dtype=torch.uint8)
    examples = Examples(
        [x], torch.arange(8) % 2, classes=2, flip=True, binarize=True, condition_dropout=0.5
    )
    cpu = torch.device("cpu")
    whole = examples.batch(torch.arange(8), torch.Generator().manual_seed(5), cpu)
    for start in (0, 2, 6):
        place = torch.arange(start, start + 2)
        part = examples.batch(place, torch.Generator().manual_seed(5), cpu, BatchPart(start, 8))
        assert torch.equal(part[0], whole[0][place])
        assert torch.equal(part[1], whole[1][place])  # type: ignore[index, arg-type]


def test_a_signal_after_the_exchange_counts_at_the_next_step() -> None:
    stop = signals.StopFlag()

    class LateSignal:
        """Two processes, of which this one gets a signal just after they have compared theirs."""

        world_size = 2
        device = torch.device("cpu")

        def all_reduce(self, status: torch.Tensor, reduce_op: str) -> torch.Tensor:
            most = status.clone()
            stop.set(signals.TRY_AGAIN)
            return most

    session = loop.Session.__new__(loop.Session)
    session.stop = stop
    session.fabric = cast("Any", LateSignal())
    # The other process takes this step, and so must this one.
    assert not loop._stopped(session)
    assert loop._stopped(session)
    assert session.stop.status == signals.TRY_AGAIN

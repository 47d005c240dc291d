"""The training loop: what it sees, what it leaves, that it goes on exactly where it stopped."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tessella as ts
from tessella import data
from tessella.config import DataConfig, Recipe, TrainConfig, from_dict
from tessella.data.source_kinds import SourceImages
from tessella.errors import (
    ArtifactError,
    ConfigError,
    InputError,
    TessellaWarning,
    TrainingError,
)
from tessella.files import read_json
from tessella.training import checkpoint, loop, schedule, train_recipe
from tessella.training.averaging import Average
from tessella.training.examples import Examples, Order
from tessella.training.progress import Progress
from tessella.training.tasks import DensityTask, TokenizerTask

GRID = ts.Grid(4, 4, 1, 4)
OPTIONS: dict[str, Any] = {
    "steps": 12,
    "batch": 8,
    "warmup": 2,
    "validate_every": 4,
    "say": lambda line: None,
}


def images(n: int = 40, seed: int = 0) -> np.ndarray:
    """Bright and dark halves with a little noise, at four levels: easy to learn something about."""
    generator = np.random.default_rng(seed)
    x = np.where(np.arange(4)[None, :, None, None] < generator.integers(1, 4, (n, 1, 1, 1)), 255, 0)
    return np.where(
        generator.random((n, 4, 4, 1)) < 0.1, 85, np.broadcast_to(x, (n, 4, 4, 1))
    ).astype(np.uint8)


def model(**sizes: Any) -> ts.DensityModel:
    return ts.create("gated-pixelcnn", GRID, **({"layers": 2, "hidden": 8, "dropout": 0.2} | sizes))


def small_tokenizer() -> ts.Tokenizer:
    return ts.create_tokenizer(
        "vqvae",
        image_size=(4, 4),
        channels=1,
        codebook_size=8,
        hidden=8,
        code_dim=4,
        downsample=2,
        residual_blocks=1,
    )


def log(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "seconds" not in key} for line in lines]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, how: Any) -> None:
    """Call ``how(session)`` when so many steps have been taken in this sitting."""
    taken, step = [0], loop._step

    def counted(session: Any, *rest: Any) -> Any:
        taken[0] += 1
        if taken[0] == steps:
            how(session)
        return step(session, *rest)

    monkeypatch.setattr(loop, "_step", counted)


def test_every_epoch_is_a_permutation_of_all_examples() -> None:
    order = Order(10, 4, seed=3)
    seen = torch.cat([order.at(step) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert not torch.equal(seen[:10], seen[10:])
    assert torch.equal(Order(10, 4, seed=3).at(4), order.at(4)), (
        "a step's examples depend on the step alone"
    )
    assert len(Order(3, 8, seed=0).at(1)) == 8, "a batch may be larger than the data"


def test_a_batch_is_a_function_of_its_generator() -> None:
    x = torch.arange(24, dtype=torch.uint8).view(2, 3, 4, 1)
    examples = Examples([x], torch.tensor([0, 1]), classes=2, flip=True, condition_dropout=0.5)
    indices = torch.tensor([0, 1, 0, 1] * 8)
    a, b = (
        examples.batch(indices, torch.Generator().manual_seed(1), torch.device("cpu"))
        for _ in range(2)
    )
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])  # type: ignore[arg-type]
    mirrored = (a[0] == x[indices].flip(2)).flatten(1).all(1)
    assert (mirrored | (a[0] == x[indices]).flatten(1).all(1)).all()
    assert 0 < mirrored.sum() < 32
    assert set(a[1].tolist()) == {0, 1, 2}  # type: ignore[union-attr]


def test_the_schedule_warms_up_and_ends_at_a_hundredth() -> None:
    assert [schedule.rate_factor(0.0, step, 4) for step in (0, 1, 3, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert schedule.rate_factor(1.0, 99, 4) == pytest.approx(0.01)
    assert schedule.rate_factor(0.5, 99, 4) == pytest.approx(0.505)


def test_a_run_ends_at_the_first_of_its_limits() -> None:
    progress = Progress(step=30, seconds=60)
    assert schedule.limits_of(TrainConfig(steps=60), 100).passed(progress) == 0.5
    assert schedule.limits_of(TrainConfig(steps=60, minutes=1.25), 100).passed(progress) == 0.8
    assert schedule.limits_of(TrainConfig(epochs=3, batch=10), 100).passed(progress) == 1.0


def test_validations_take_a_tenth_of_the_minutes_at_most() -> None:
    slow = {"validations": 1, "validating": 6.0}
    assert not schedule.validation_due(
        TrainConfig(minutes=2), Progress(seconds=59, **slow), 59 / 120
    )  # type: ignore[arg-type]
    assert schedule.validation_due(TrainConfig(minutes=2), Progress(seconds=60, **slow), 60 / 120)  # type: ignore[arg-type]
    assert schedule.validation_due(TrainConfig(steps=100), Progress(seconds=59, **slow), 0.1)  # type: ignore[arg-type]
    asked = TrainConfig(minutes=2, validate_every=5)
    assert schedule.validation_due(asked, Progress(step=10, seconds=59, **slow), 59 / 120)  # type: ignore[arg-type]


def test_the_time_of_validations_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, validate = [0.0], loop.validate

    def late(session: loop.Session, log: bool = True) -> bool:
        clock[0] += 10
        return validate(session, log)

    def step(*given: Any) -> dict[str, float]:
        clock[0] += 1
        return {"loss": 1.0}

    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(loop, "validate", late)
    monkeypatch.setattr(loop, "_step", step)
    run = ts.train(
        model(), images(), out=tmp_path / "run", minutes=5, say=lambda line: None, device="cpu"
    )
    seen = [line["step"] for line in log(tmp_path / "run") if "valid/bits_per_dim" in line]
    # At 15, 100, 200 and 290 seconds; the last one ends with the run.
    assert seen == [15, 90, 180, 260]
    assert run.progress.validating == 40
    # 260 steps of a second each; the log has them up to each validation.
    assert run.progress.training == 260
    text = (tmp_path / "run" / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    trained = [line["training_seconds"] for line in lines if "training_seconds" in line]
    assert trained == seen


def test_the_average_follows_slowly_and_copies_buffers() -> None:
    module = torch.nn.BatchNorm1d(1)
    average = Average(module, decay=0.9)
    values, expected = [3.0, 5.0, -1.0], 1.0
    for step, value in enumerate(values):
        module.weight.data.fill_(value)
        module.running_mean.fill_(value)  # type: ignore[union-attr]
        average.update(module, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(average.module.weight) == pytest.approx(expected)
    assert float(average.module.running_mean) == -1.0


def test_training_learns_and_leaves_a_run(tmp_path: Path) -> None:
    net, x = model(dropout=0.0), images(200)
    before = float(net.bits_per_dim(torch.from_numpy(x // 85)).mean())
    state = torch.get_rng_state()
    run = ts.train(net, x, out=tmp_path / "run", **(OPTIONS | {"steps": 60, "learning_rate": 1e-2}))
    assert torch.equal(state, torch.get_rng_state()), "the global generator is left alone"
    figures = ts.evaluate(run.path, x)
    assert figures["bits_per_dim"] < figures["baseline_bits_per_dim"] < before
    assert figures["bits_per_dim"] == pytest.approx(
        float(net.bits_per_dim(torch.from_numpy(x // 85)).mean()), abs=1e-6
    )
    assert not net.training
    assert {p.name for p in run.path.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "README.md",
        "run.json",
        "log.jsonl",
    }
    assert len(checkpoint.found(run.path)) == checkpoint.KEEP
    facts = json.loads((run.path / "run.json").read_text())
    assert facts["status"] == "finished"
    assert facts["progress"]["step"] == 60
    assert any("valid/bits_per_dim" in line for line in log(run.path))


def test_the_kept_weights_are_those_of_the_best_validation(tmp_path: Path) -> None:
    net, x = model(), images()
    run = ts.train(
        net, x, valid=images(seed=9), out=tmp_path / "run", learning_rate=0.05, **OPTIONS
    )
    validated = {
        line["step"]: line["valid/bits_per_dim"]
        for line in log(run.path)
        if "valid/bits_per_dim" in line
    }
    assert set(validated) == {4, 8, 12}
    assert run.progress.best == min(validated.values())
    assert validated[run.progress.best_step] == run.progress.best
    now = float(net.bits_per_dim(torch.from_numpy(images(seed=9) // 85)).double().mean())
    assert now == pytest.approx(run.progress.best, abs=1e-6)


def test_weights_of_a_worse_validation_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([3.0, 2.0, 2.5])
    keep = loop.keep
    saved = []

    def validate(*_: Any, **__: Any) -> dict[str, float]:
        return {"bits_per_dim": next(figures)}

    def watched(session: loop.Session) -> None:
        saved.append(session.progress.step)
        keep(session)

    monkeypatch.setattr(DensityTask, "validate", validate)
    monkeypatch.setattr(loop, "keep", watched)
    run = ts.train(model(), images(), out=tmp_path / "run", **OPTIONS)
    assert saved == [4, 8]
    assert run.progress.best_step == 8


def any_order() -> ts.DensityModel:
    """A model whose steps draw random orders."""
    return ts.create("any-order", GRID, layers=1, width=8, heads=2)


@pytest.mark.parametrize("make", ["density", "any-order", "tokenizer"])
@pytest.mark.parametrize(("steps", "every"), [(3, 4), (6, 4), (8, 4), (1, 0), (7, 0)])
def test_a_resumed_run_equals_one_that_was_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, every: int, make: str
) -> None:
    create, options = (
        {"density": model, "any-order": any_order, "tokenizer": small_tokenizer}[make],
        OPTIONS | {"validate_every": every},
    )
    x, straight, broken = images(), create(), create()
    kept = ts.train(straight, x, out=tmp_path / "straight", **options)
    with monkeypatch.context() as patch:
        stop_after(patch, steps, lambda session: session.stop.set())
        run = ts.train(broken, x, out=tmp_path / "broken", **options)
    assert run.interrupted
    assert run.progress.step == steps
    again = ts.train(create(), x, out=tmp_path / "broken", resume=True, **options)
    assert not again.interrupted
    assert (again.progress.best, again.progress.best_step) == (
        kept.progress.best,
        kept.progress.best_step,
    )
    weights = [
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "broken")
    ]
    assert weights[0] == weights[1]
    extra = [line for line in log(tmp_path / "broken") if line not in log(tmp_path / "straight")]
    assert all(
        any(key.startswith("valid/") for key in line) and line["step"] == steps for line in extra
    ), extra
    assert [line for line in log(tmp_path / "broken") if line not in extra] == log(
        tmp_path / "straight"
    )
    states = [checkpoint.newest(tmp_path / name)[0] for name in ("straight", "broken")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_validations_tell_how_the_use_of_codes_changed(tmp_path: Path) -> None:
    ts.train(small_tokenizer(), images(), out=tmp_path / "run", **OPTIONS)
    told = [line for line in log(tmp_path / "run") if "valid/mse" in line]
    assert ["valid/usage_drift" in line for line in told] == [False, True, True]
    assert all(0 <= line["valid/usage_drift"] <= 1 for line in told[1:])
    counts = json.loads(
        (tmp_path / "run" / "checkpoints" / "step-00000012" / "state.json").read_text()
    )["memory"]
    assert [len(book) for book in counts["counts"]] == [8]


def test_sigterm_saves_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop_after(monkeypatch, 5, lambda session: os.kill(os.getpid(), signal.SIGTERM))
    run = ts.train(model(), images(), out=tmp_path / "run", **OPTIONS)
    assert run.interrupted
    assert checkpoint.found(tmp_path / "run")[-1].name == "step-00000005"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(session: Any) -> None:
        forward = session.task.forward
        session.task.forward = lambda x, labels: {"loss": forward(x, labels)["loss"] * math.nan}

    stop_after(monkeypatch, 7, poison)
    with pytest.raises(TrainingError, match=r"nan \(gradient norm nan\) at step 7;.*learning_rate"):
        ts.train(model(), images(), out=tmp_path / "run", **OPTIONS)
    tensors, state, _ = checkpoint.newest(tmp_path / "run")
    assert state["progress"]["step"] == 6
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert isinstance(ts.load(tmp_path / "run"), ts.Generator)


def test_a_codebook_does_not_keep_what_a_bad_batch_taught_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(session: Any) -> None:
        with torch.no_grad():
            next(session.task.module.encoder.parameters()).fill_(math.nan)

    stop_after(monkeypatch, 7, poison)
    with pytest.raises(TrainingError, match="at step 7"):
        ts.train(small_tokenizer(), images(), out=tmp_path / "run", **OPTIONS)
    tensors, _, _ = checkpoint.newest(tmp_path / "run")
    assert all(
        tensors[name].isfinite().all() for name in tensors if name.startswith("module/quantizer")
    )


def test_a_run_does_not_go_on_with_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 3, lambda session: session.stop.set())
    out = tmp_path / "run"
    assert ts.train(model(), images(), out=out, **OPTIONS).interrupted
    with pytest.raises(TrainingError, match=r"other images than there are now \(train sha256 was"):
        ts.train(model(), images(seed=1), out=out, resume=True, **OPTIONS)


def test_a_codebook_forgets_a_good_batch_whose_loss_was_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(session: Any) -> None:
        forward = session.task.forward

        def spoilt(x: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
            figures = forward(x, labels)
            return figures | {"loss": figures["loss"] * math.nan}

        session.task.forward = spoilt

    stop_after(monkeypatch, 7, poison)
    with pytest.raises(TrainingError, match="at step 7"):
        ts.train(small_tokenizer(), images(), out=tmp_path / "run", **OPTIONS)
    tensors, _, _ = checkpoint.newest(tmp_path / "run")
    # The quantizer counts the batches that it has learned from.
    assert int(tensors["module/quantizer.steps"]) == 6


def test_a_mixture_trains_on_mirrored_images(tmp_path: Path) -> None:
    x = images(200)
    np.savez(tmp_path / "x.npz", train=x, valid=images(40, 1), test=images(40, 2))
    values = {
        "data": {"source": f"npz:{tmp_path}/x.npz", "levels": 4, "flip": True},
        "model": {"head": "logistic-mixture", "components": 3, "layers": 2, "hidden": 8},
        "train": {"steps": 60, "batch": 16, "learning_rate": 1e-2, "warmup": 2},
    }
    run = train_recipe(from_dict(Recipe, values), tmp_path / "run", say=lambda line: None)
    figures = ts.evaluate(run.path)
    assert figures["bits_per_dim"] < figures["baseline_bits_per_dim"]


@pytest.mark.parametrize("kind", ["density", "prior"])
def test_images_binarized_anew_each_epoch(tmp_path: Path, kind: str) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", train=grey, valid=grey[:20], test=grey[20:40])
    values = {
        "data": {"source": f"npz:{tmp_path}/x.npz", "binarize": "dynamic"},
        "model": {"layers": 1, "hidden": 4},
        "train": {"steps": 3, "batch": 16},
    }
    recipe = from_dict(Recipe, values)
    if kind == "prior":
        with pytest.raises(ConfigError, match="fixed"):
            train_recipe(dataclasses.replace(recipe, prior_of="x"), tmp_path / "run")
        return
    run = train_recipe(recipe, tmp_path / "run", say=lambda line: None)
    baseline = ts.evaluate(run.path)["baseline_bits_per_dim"]
    # Uniform grey makes fair coins, of which half-grey pixels cut at 128 would know the outcome.
    assert 0.9 < baseline < 1.1


@pytest.mark.slow
def test_two_processes_train_as_one_run(tmp_path: Path) -> None:
    words = [
        "train",
        "digits",
        "model.layers=1",
        "model.hidden=4",
        "train.batch=8",
        "--steps",
        "6",
        "--device",
        "cpu",
    ]
    command = [
        sys.executable,
        "-m",
        "tessella",
        *words,
        "--devices",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr
    assert [line["step"] for line in log(tmp_path / "run") if "loss" in line] == [1]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["environment"]["world_size"] == 2


@pytest.mark.slow
def test_processes_that_begin_at_different_times_stay_together(tmp_path: Path) -> None:
    """The first one is late by more than the time between two validations; none may wait for a step
    the other skips."""
    script = tmp_path / "late.py"
    script.write_text(
        "import sys, time\n"
        "from tessella.training import trainer\n"
        "keep = trainer._save_baseline\n"
        "trainer._save_baseline = lambda *given: (time.sleep(1.5), keep(*given))\n"
        "from tessella.cli.entry import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = [
        "train",
        "digits",
        "model.layers=1",
        "model.hidden=4",
        "--minutes",
        "0.06",
        "--device",
        "cpu",
    ]
    command = [
        sys.executable,
        str(script),
        *words,
        "--devices",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    place = {**os.environ, "PYTHONPATH": str(Path(ts.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, env=place)
    assert shown.returncode == 0, shown.stderr
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, env=place)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1, again.stderr


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_taken(tmp_path: Path) -> None:
    ts.train(model(), images(), out=tmp_path / "run", **OPTIONS)
    newest, said = checkpoint.found(tmp_path / "run")[-1], []
    payload = bytearray((newest / "state.safetensors").read_bytes())
    payload[-1] ^= 1
    (newest / "state.safetensors").write_bytes(payload)
    with pytest.raises(ArtifactError, match="damaged"):
        checkpoint.verify(newest)
    run = ts.train(
        model(), images(), out=tmp_path / "run", resume=True, **(OPTIONS | {"say": said.append})
    )
    assert run.progress.step == 12
    assert any("damaged" in line for line in said)


def test_a_prior_is_trained_on_codes_and_saved_with_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    ts.train(tokenizer, images(), out=tmp_path / "tokenizer", **OPTIONS)
    prior = ts.create("gated-pixelcnn", tokenizer.grid(), layers=2, hidden=8)
    run = ts.train(prior, images(), tokenizer=tokenizer, out=tmp_path / "prior", **OPTIONS)
    # Records have the name of every density model, which would say too much of codes here.
    assert "bits_per_dim" in run.figures
    assert "bits_per_code=" in repr(run)
    assert "bits_per_dim" not in repr(run)
    generator = run.load()
    assert isinstance(generator, ts.Generator)
    assert generator.sample(3).shape == (3, 4, 4, 1)
    assert torch.equal(generator.tokenizer.encode(images()), tokenizer.encode(images()))
    figures = ts.evaluate(run.path, images())
    assert figures["bits_per_image"] == pytest.approx(figures["bits_per_code"] * 4)
    assert {"psnr_db", "ssim", "codebook_used", "baseline_bits_per_dim"} <= set(figures)


def test_classes_are_learned_and_the_null_class_needs_dropout(tmp_path: Path) -> None:
    x, net = images(), ts.create("gated-pixelcnn", GRID, classes=2, layers=1, hidden=4)
    labels = (x[:, 2, 0, 0] > 100).astype(np.int64)
    run = ts.train(net, x, labels=labels, out=tmp_path / "run", condition_dropout=0.0, **OPTIONS)
    generator = run.load()
    assert isinstance(generator, ts.Generator)
    with pytest.raises(InputError, match="give cond"):
        generator.sample(2)
    assert generator.sample(2, cond=torch.tensor([0, 1])).shape == (2, 4, 4, 1)


def test_symbols_train_without_a_tokenizer(tmp_path: Path) -> None:
    run = ts.train(model(), (images() // 85).astype(np.int64), out=tmp_path / "run", **OPTIONS)
    assert isinstance(run.load(), ts.Generator)


def test_passes_over_parts_of_a_batch_give_the_gradient_of_the_whole(tmp_path: Path) -> None:
    x, runs = images(), []
    for accumulate in (1, 4):
        net = model(dropout=0.0)
        ts.train(
            net,
            x,
            out=tmp_path / str(accumulate),
            **(OPTIONS | {"steps": 3, "accumulate": accumulate}),
        )
        runs.append(net.log_prob(torch.from_numpy(x // 85)))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-4)
    # Steps of Adam do not depend on the length of a gradient, so that is compared by itself.
    norms = [log(tmp_path / str(accumulate))[0]["gradient_norm"] for accumulate in (1, 4)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_the_penalty_pulls_matrices_and_nothing_else(tmp_path: Path) -> None:
    moments, net = [], ts.create("fvsbn", GRID)
    for l2 in (0.0, 0.5):
        options = OPTIONS | {"steps": 1, "l2": l2, "clip": 0.0}
        ts.train(ts.create("fvsbn", GRID), images(), out=tmp_path / str(l2), **options)
        moments.append(checkpoint.newest(tmp_path / str(l2))[0])
    matrices = [p for name, p in net.named_parameters() if p.dim() > 1 and name != "bias"]
    others = [p for name, p in net.named_parameters() if p.dim() <= 1 or name == "bias"]
    assert net.regression.weight in set(matrices)
    assert others
    for number, parameter in enumerate([*matrices, *others]):  # the optimizer's own order
        before, after = (tensors[f"optimizer/{number}/exp_avg"] for tensors in moments)
        wanted = 0.5 * parameter.detach() * (number < len(matrices))
        torch.testing.assert_close((after - before) / (1 - 0.9), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["model", "tokenizer", "vae"])
def test_compiled_networks_train_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, backend: str
) -> None:
    compile, kept, calls = torch.compile, [], []
    vae = {
        "image_size": (4, 4),
        "channels": 1,
        "hidden": 8,
        "latent": 2,
        "downsample": 2,
        "residual_blocks": 1,
    }
    makers: dict[str, Any] = {"tokenizer": small_tokenizer, "vae": lambda: ts.create_vae(**vae)}
    makers["model"] = lambda: model(dropout=0.0)  # a compiled network draws other dropout

    def compiling(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return compile(*args, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", compiling)
    for on in (False, True):
        torch.manual_seed(0)
        net = makers[kind]()
        ts.train(net, images(), out=tmp_path / str(on), **OPTIONS | {"steps": 4, "compile": on})
        assert bool(calls) == on
        assert all(part._compiled_call_impl is None for part in net.modules()), (
            "training leaves the model as it was"
        )
        kept.append(net.state_dict())
    for name, tensor in kept[0].items():
        torch.testing.assert_close(kept[1][name], tensor, rtol=1e-4, atol=1e-5)


def test_checkpointing_trains_the_same_weights_in_less_memory(tmp_path: Path) -> None:
    nets, kept = [model(layers=3), model(layers=3)], []
    for net, checkpointing in zip(nets, (False, True), strict=True):
        options = OPTIONS | {"steps": 4, "checkpointing": checkpointing}
        ts.train(net, images(), out=tmp_path / str(checkpointing), **options)
        kept.append(0)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[-1] += tensor.numel()
            return tensor

        assert not net.checkpointing, "training leaves the model as it was"
        net.checkpointing = checkpointing
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            net.train().distribution(torch.from_numpy(images() // 85).long())
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": images().astype(np.float32)}, InputError, "astype"),
        ({"minutes": -1}, ConfigError, "at least 0"),
        ({"minutes": math.nan}, ConfigError, "minutes"),
        ({"accumulate": 0}, ConfigError, "at least 1"),
        ({"learning_rate": 0.0}, ConfigError, "above 0"),
        ({"images": images()[:, :2]}, InputError, "2x4x1"),
        ({"images": images()[:0]}, InputError, "at least 2 images"),
        ({"steps": 0}, ConfigError, "limit"),
        ({"step": 5}, ConfigError, "did you mean 'steps'"),
        ({"labels": np.zeros(40, np.int64)}, InputError, "no classes"),
        ({"batch": 9, "accumulate": 2}, ConfigError, "divisible"),
        ({"device": "cuda"}, ConfigError, "CUDA"),
        ({"precision": "16"}, ConfigError, "precision"),
        ({"resume": True}, ArtifactError, "no run"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = OPTIONS | {"images": images()} | change
    x = arguments.pop("images")
    with pytest.raises(error, match=message):
        ts.train(model(), x, out=tmp_path / "run", **arguments)


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    ts.train(model(), images(), out=tmp_path / "run", **OPTIONS)
    with pytest.raises(TrainingError, match="--resume"):
        ts.train(model(), images(), out=tmp_path / "run", **OPTIONS)
    with pytest.raises(TrainingError, match="other images"):
        ts.train(model(), images(30), out=tmp_path / "run", resume=True, **OPTIONS)
    with pytest.raises(TrainingError, match="another model"):
        ts.train(model(hidden=4), images(), out=tmp_path / "run", resume=True, **OPTIONS)


def test_an_image_set_is_trained_on_as_it_comes(tmp_path: Path) -> None:
    train, valid = (
        data.load(DataConfig("digits", limit=20), split) for split in ("train", "valid")
    )
    net = ts.create("gated-pixelcnn", ts.Grid(8, 8, 1, 17), layers=1, hidden=4)
    run = ts.train(
        net, train, valid=valid, out=tmp_path / "run", steps=2, batch=4, say=lambda line: None
    )
    assert read_json(run.path / "run.json")["data"]["train"] == train.identity()
    assert ts.evaluate(run.path, train)["overlap"]["identical"] == 20
    with pytest.raises(InputError, match="valid="):
        ts.train(net, train, out=tmp_path / "other", steps=2)


def test_images_on_disk_are_trained_on_and_not_divided(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for i in range(40):
        Image.new("L", (8, 8), i).save(tmp_path / "folder" / f"{i}.png")
    config = DataConfig(f"folder:{tmp_path}/folder", channels=1, levels=16)
    train, valid = (data.load(config, split).images for split in ("train", "valid"))
    net = ts.create("gated-pixelcnn", ts.Grid(8, 8, 1, 16), layers=1, hidden=4)
    run = ts.train(
        net, train, valid=valid, out=tmp_path / "run", steps=2, batch=4, say=lambda line: None
    )
    assert ts.evaluate(run.path, train)["overlap"]["identical"] == len(train)
    with pytest.raises(InputError, match="valid="):
        ts.train(net, train, out=tmp_path / "other", steps=2)


@pytest.mark.parametrize("name", ["fsq", "lfq"])
def test_codes_that_are_not_learned_are_judged_once_the_run_has_taken_enough_steps(
    name: str,
) -> None:
    tokenizer = ts.create_tokenizer(
        "vqvae",
        image_size=(8, 8),
        channels=1,
        hidden=8,
        downsample=8,
        code_dim=8 if name == "lfq" else 4,
        codebook_size=256,
        quantizer=name,
    )
    task = TokenizerTask(tokenizer)
    # One code an image; images that are all alike get the same one.
    alike = Examples([torch.full((1000, 8, 8, 1), 128, dtype=torch.uint8)])
    for _ in range(3):
        task.validate(tokenizer, alike, 500, steps=10)
    # The first look may come too early; the second one warns.
    task.validate(tokenizer, alike, 500, steps=10**6)
    with pytest.warns(TessellaWarning, match="collapsed"):
        task.validate(tokenizer, alike, 500, steps=10**6)


def test_a_source_that_holds_codes_is_for_priors_whatever_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ts.SOURCES, "_entries", dict(ts.SOURCES))

    class Stored(ts.Source):
        about = "codes of another program"
        holds_codes = True

        def read(self, path: str, split: str, config: DataConfig) -> SourceImages:
            raise NotImplementedError

    ts.register_source("stored")(Stored)
    recipe = from_dict(
        Recipe, {"data": {"source": "stored:x"}, "train": {"steps": 1}, "model": {"name": "made"}}
    )
    with pytest.raises(ConfigError, match="codes are for a prior"):
        train_recipe(recipe, "unused")

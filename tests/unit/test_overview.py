"""What a run is: the facts of runs of every kind and in every state, and how they look in a
terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import tessella as ts
from tessella import config as configs
from tessella import files
from tessella.errors import ArtifactError
from tessella.pipeline import fingerprint, locate
from tessella.report import curves, run_summary
from tessella.training import train_recipe

SMALL = {
    "pixels": ("digits", ["model.layers=2", "model.hidden=8"]),
    "vqvae": ("digits-vqvae", ["tokenizer.hidden=8", "tokenizer.code_dim=4"]),
    "codes": ("digits-prior", ["model.layers=2", "model.hidden=8", "prior_of=digits-vqvae"]),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind, of 25 steps."""
    folder = tmp_path_factory.mktemp("runs")
    for name, (recipe, changes) in SMALL.items():
        changes = [
            *changes,
            "train.minutes=0",
            "train.steps=25",
            "train.batch=16",
            "train.validate_every=10",
        ]
        train_recipe(configs.load_recipe(recipe, changes), folder / name, say=lambda line: None)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the pixel run, to be damaged."""
    return Path(shutil.copytree(trained / "pixels", tmp_path / "run"))


def change(run: Path, **values: Any) -> None:
    files.write_json(run / "run.json", files.read_json(run / "run.json") | values)


def shown(run: Path | str, width: int = 100) -> str:
    return run_summary.render(run_summary.describe(run), width)


def test_the_facts_are_those_of_the_run(trained: Path) -> None:
    path = trained / "pixels"
    facts, model, stored = (
        run_summary.describe(path),
        ts.load(path),
        files.read_json(path / "run.json"),
    )
    assert isinstance(model, ts.Generator)
    assert (facts["kind"], facts["status"], facts["problems"]) == ("density-model", "finished", [])
    assert facts["weights"] == fingerprint(model)
    assert facts["model"]["parameters"] == sum(p.numel() for p in model.prior.parameters())
    assert facts["model"]["grid"] == {"height": 8, "width": 8, "channels": 1, "levels": 17}
    assert facts["tokenizer"] is None
    assert [facts["data"][split]["count"] for split in ("train", "valid")] == [1350, 150]
    assert facts["training"]["recipe"] == "digits"
    assert facts["training"]["steps"] == 25
    assert facts["validation"]["figures"] == {"bits_per_dim": stored["progress"]["best"]}
    assert facts["curves"]["loss"]["step"] == [1, 11, 21]
    assert facts["curves"]["valid/bits_per_dim"]["step"] == [10, 20, 25]
    assert facts["bytes"] == sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


@pytest.mark.parametrize(("name", "kind"), [("vqvae", "tokenizer"), ("codes", "generator")])
def test_tokenizers_and_two_stage_models_have_their_parts(
    trained: Path, name: str, kind: str
) -> None:
    facts = run_summary.describe(trained / name)
    assert facts["kind"] == kind
    assert facts["tokenizer"]["maps"] == "images of 8x8x1 to 4x4x1 of 64 levels"
    assert (facts["model"] is None) == (kind == "tokenizer")
    assert "4x4x1 of 64 levels" in shown(trained / name)


@pytest.mark.parametrize("name", SMALL)
def test_the_facts_are_plain_values_and_nothing_is_written(trained: Path, name: str) -> None:
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    assert (
        json.loads(json.dumps(run_summary.describe(trained / name), allow_nan=False))["name"]
        == name
    )
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*")} == before


def test_measured_figures_stand_with_errors_units_and_data(run: Path) -> None:
    change(
        run,
        figures={
            "digits, test": {"images": 297, "bits_per_dim": 1.76312, "bits_per_dim_se": 0.0142}
        },
    )
    text = shown(run)
    assert "digits, test" in text
    assert "1.763 ± 0.014 bits/dim" in text
    assert f"tessella eval {run}" not in text


def test_figures_of_other_weights_are_marked(run: Path) -> None:
    now = run_summary.describe(run)["weights"]
    change(
        run,
        figures={
            "a": {"images": 1, "weights": now},
            "b": {"images": 1, "weights": "0123456789abcdef"},
        },
    )
    text = shown(run)
    assert "b (with other weights, 0123456789abcdef: measure again)" in text
    assert "a (with" not in text


def test_validation_images_that_were_trained_on_are_told(run: Path) -> None:
    change(run, overlap=3)
    assert "3 validation images are, pixel for pixel, training images too" in shown(run)
    change(run, overlap=0)
    assert "pixel for pixel" not in shown(run)


def test_text_is_aligned_fits_the_terminal_and_shows_no_json(trained: Path) -> None:
    for name in SMALL:
        lines = run_summary.render(run_summary.describe(trained / name), 60).splitlines()
        assert max(map(len, lines)) <= 60 or any(
            len(word) > 40 for line in lines for word in line.split()
        )
        assert not any(c in line for line in lines for c in "{}[]\x1b")


def test_a_run_that_is_training_is_told_from_its_log(run: Path) -> None:
    change(run, status="running", progress={})
    with FileLock(run / ".lock"):
        facts = run_summary.describe(run)
        assert facts["training"]["steps"] == 25
        assert facts["validation"]["figures"]["bits_per_dim"] == min(
            facts["curves"]["valid/bits_per_dim"]["value"]
        )
        assert "the last line of its log is" in shown(run)
        assert not any("--resume" in line for line in facts["next"])


def test_a_run_that_was_killed_says_so_at_once(run: Path) -> None:
    change(run, status="running", progress={})
    text = shown(run)
    assert "killed, 25 steps" in text
    assert f"tessella train --resume {run}\n" in text


def test_a_run_whose_process_is_gone_says_how_to_go_on(run: Path) -> None:
    change(run, status="running", progress={})
    os.utime(run / "log.jsonl", (time.time() - 7200,) * 2)
    (run / ".lock").unlink()  # as of a run on a file system without locks
    text = shown(run)
    assert "2 h 0 min old" in text
    assert f"tessella train --resume {run}\n" in text


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_run_that_stopped_says_how_to_go_on(run: Path, status: str) -> None:
    change(run, status=status)
    facts = run_summary.describe(run)
    assert facts["next"][0].startswith(f"tessella train --resume {run}")
    assert ("learning_rate" in facts["next"][0]) == (status == "failed")


def test_a_cut_line_and_one_that_is_no_entry_are_counted(run: Path) -> None:
    with (run / "log.jsonl").open("a") as log:
        log.write('[1]\n{"step": 26, "loss": NaN, "learning_rate": 0.1}\n{"step": 31, "lo')
    facts = run_summary.describe(run)
    assert facts["log"]["unreadable"] == 2
    assert facts["curves"]["loss"]["step"] == [1, 11, 21]
    assert facts["curves"]["learning_rate"]["step"][-1] == 26
    assert "2 lines of the log cannot be read" in shown(run)


@pytest.mark.parametrize("name", ["log.jsonl", "run.json"])
def test_a_run_without_log_or_record_is_described(run: Path, name: str) -> None:
    (run / name).unlink()
    facts = run_summary.describe(run)
    assert facts["weights"]
    assert bool(facts["curves"]) == (name != "log.jsonl")
    assert facts["status"] == ("finished" if name == "log.jsonl" else "saved")
    assert run_summary.render(facts)


def test_a_damaged_record_is_told_and_the_rest_described(run: Path) -> None:
    (run / "run.json").write_text('{"status": "fin')
    facts = run_summary.describe(run)
    assert facts["weights"]
    assert "cannot be read as JSON" in facts["problems"][0]


@pytest.mark.parametrize("name", SMALL)
def test_a_model_without_weights_is_described_without_them(
    trained: Path, tmp_path: Path, name: str
) -> None:
    copy = Path(shutil.copytree(trained / name, tmp_path / "copy"))
    for weights in copy.glob("**/model.safetensors"):
        weights.unlink()
    facts, whole = run_summary.describe(copy), run_summary.describe(trained / name)
    assert facts["weights"] is None
    assert "model.safetensors does not exist" in facts["problems"][0]
    assert (facts["model"], facts["tokenizer"]) == (whole["model"], whole["tokenizer"])
    assert "model.safetensors" in shown(copy)


def test_a_run_that_has_saved_no_model_yet_is_described(run: Path) -> None:
    (run / "config.json").unlink()
    (run / "model.safetensors").unlink()
    facts = run_summary.describe(run)
    assert facts["kind"] == "density-model"
    assert facts["model"]["name"] == "gated-pixelcnn"
    assert facts["problems"] == ["training has not saved a model yet"]


def test_bundled_models_are_described_with_and_without_a_record(tmp_path: Path) -> None:
    assert "ships with the package" in shown("digits")
    shutil.copytree(locate("digits"), tmp_path / "alone")
    (tmp_path / "alone" / "run.json").unlink(missing_ok=True)
    assert "without a record of its training" in shown(tmp_path / "alone")


def test_sittings_are_listed(run: Path) -> None:
    made = files.read_json(run / "run.json")["environment"]
    change(run, sittings=[{"step": 12, "environment": made}])
    assert "resumed at step 12" in shown(run)


def test_names_cannot_steer_the_terminal(run: Path) -> None:
    change(run, figures={"\x1b[2J\x07evil": {"images": 1}})
    assert "?[2J?evil" in shown(run)
    assert "\x1b" not in shown(run)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"config\.json"):
        run_summary.describe(tmp_path)


def long_curves() -> dict[str, dict[str, list[float]]]:
    steps = [float(step) for step in range(1, 2001, 10)]
    return {
        "loss": {"step": steps, "value": [5 / step + 1 for step in steps]},
        "valid/bits_per_dim": {
            "step": steps[9::10],
            "value": [1.5 + 1 / step for step in steps[9::10]],
        },
    }


def test_curves_are_drawn_without_colours_unless_asked() -> None:
    pytest.importorskip("plotext")
    plain, coloured = (curves.draw(long_curves(), 80, colour) for colour in (False, True))
    assert "\x1b" not in plain
    assert "\x1b" in coloured
    assert "bits/dim by step" in plain
    assert "1,000" in plain
    assert max(map(len, plain.splitlines())) <= 80


def test_without_plotext_a_table_stands_for_the_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotext", None)
    said, empty, head, *rows = curves.draw(long_curves()).splitlines()
    assert 'pip install "tessella[plots]"' in said
    assert not empty
    assert head.split() == ["step", "loss", "bits_per_dim"]
    assert len(rows) == curves.ROWS
    assert rows[0].split() == ["91", "1.0549", "1.5110"]
    assert rows[-1].split() == ["1,991", "1.0025", "1.5005"]


@pytest.mark.parametrize("given", [{}, {"loss": {"step": [1.0], "value": [2.0]}}])
def test_too_few_points_are_no_curve(given: dict[str, Any]) -> None:
    assert curves.draw(given) == ""


def test_a_long_curve_keeps_its_mean_and_few_points() -> None:
    curve = long_curves()["loss"]
    few = curves.thinned(curve, 20)
    assert len(few["step"]) == len(few["value"]) == 20
    assert sum(few["value"]) / 20 == pytest.approx(sum(curve["value"]) / 200)

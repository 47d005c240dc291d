"""Expected curves: read with a recipe, compared with its runs and no others, made by a script."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tessella.config import ExpectedConfig, Recipe, from_dict, load_recipe, recipe_names, to_dict
from tessella.errors import ConfigError
from tessella.training import train_recipe
from tessella.training.expectation import (
    Expectation,
    expectation_of,
    grid_text,
    settings_hash,
)
from tessella.training.progress import Progress

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CURVE = ((100, 1.0, 3.0), (1000, 5.0, 2.0), (10000, 50.0, 1.5))
TABLE = ExpectedConfig(machine="a lamp", tolerance=0.1, curve=CURVE)
TINY = """
about = "a tiny model of digits"

[data]
source = "digits"
limit = 60

[model]
name = "gated-pixelcnn"
layers = 1
hidden = 8

[train]
steps = 12
batch = 20
validate_every = 3
threads = 1
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("expected_curve")


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path / "tiny.toml"


def trained(recipe: Recipe, out: Path) -> list[str]:
    """What a run of a recipe says."""
    said: list[str] = []
    train_recipe(recipe, out, say=said.append)
    return said


def test_between_rows_the_curve_is_straight_over_the_logarithm_of_the_step() -> None:
    curve = Expectation(TABLE, timed=False)
    assert curve.at(99) is None
    assert curve.at(100) == pytest.approx(3.0)
    assert curve.at(316) == pytest.approx(2.5, abs=1e-3)
    assert curve.at(1000) == pytest.approx(2.0)
    assert curve.at(3162) == pytest.approx(1.75, abs=1e-3)
    assert curve.at(10**6) == 1.5


@pytest.mark.parametrize(
    ("step", "best", "remark"),
    [
        (99, 4.0, ""),
        (1000, float("inf"), ""),
        (1000, 2.03, "0.030 bits/dim above what the recipe expects after 1,000 steps (2)"),
        (1000, 1.5, "0.500 bits/dim below what the recipe expects after 1,000 steps (2)"),
        (
            20000,
            1.75,
            "0.250 bits/dim above what the recipe expects at its end, step 10,000 (1.5)",
        ),
    ],
)
def test_a_remark_says_how_far_a_run_is(step: int, best: float, remark: str) -> None:
    assert Expectation(TABLE, timed=False).remark(step, best) == remark


@pytest.mark.parametrize(
    ("best", "track"), [(2.09, "on track"), (1.91, "on track"), (2.2, "behind"), (1.8, "ahead")]
)
def test_the_verdict_says_whether_a_run_is_on_track(best: float, track: str) -> None:
    # At the pace of the curve: 10,000 steps in 50 minutes.
    progress = Progress(step=1000, seconds=300.0, best=best)
    verdict = Expectation(TABLE, timed=True).verdict(progress)
    assert verdict.startswith(f"{track}: 0.")
    assert verdict.endswith("within 0.100 is on track")


@pytest.mark.parametrize(
    ("seconds", "timed", "words"),
    [
        (150.0, True, "2.0 times as fast as on a lamp: more steps fit .* falls later"),
        (900.0, True, "3.0 times as slowly as on a lamp: fewer steps fit .* falls sooner"),
        (900.0, False, "3.0 times as slowly as on a lamp$"),
    ],
)
def test_another_pace_is_told(seconds: float, timed: bool, words: str) -> None:
    progress = Progress(step=1000, seconds=seconds, best=2.0)
    verdict = Expectation(TABLE, timed=timed).verdict(progress)
    assert verdict.startswith("on track")
    assert re.search(words, verdict)


def test_a_run_with_another_schedule_is_not_judged() -> None:
    progress = Progress(step=1000, seconds=900.0, best=2.5)
    assert Expectation(TABLE, timed=True).verdict(progress).startswith("off the curve, as another")
    # The schedule of so many steps is the same at every pace.
    assert Expectation(TABLE, timed=False).verdict(progress).startswith("behind")


def test_nothing_is_said_before_the_first_row() -> None:
    progress = Progress(step=10, seconds=1.0, best=4.0)
    assert Expectation(TABLE, timed=True).verdict(progress) == ""


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "two rows"),
        ([[1, 1.0, 2.0]], "two rows"),
        ([[0, 1.0, 2.0], [2, 2.0, 1.0]], r"a row of expected\.curve"),
        ([[1, 0.0, 2.0], [2, 2.0, 1.0]], r"a row of expected\.curve"),
        ([[1, 1.0, 2.0], [1, 2.0, 1.0]], "must rise"),
        ([[1, 1.0, 2.0], [2, 1.0, 1.0]], "must rise"),
        ([[1, 1.0], [2, 2.0]], "list of 3"),
        ([[1.5, 1.0, 2.0], [2, 2.0, 1.0]], "type int"),
        ("falls", "must be a list"),
    ],
)
def test_a_curve_that_is_none_is_refused(rows: object, message: str) -> None:
    given = {"model": {}, "train": {"steps": 1}, "expected": {"curve": rows}}
    with pytest.raises(ConfigError, match=message):
        from_dict(Recipe, given)


Change = Callable[[Recipe], Recipe]


def with_train(**changes: object) -> Change:
    return lambda recipe: replace(recipe, train=replace(recipe.train, **changes))


@pytest.mark.parametrize(
    "change",
    [
        with_train(seed=3),
        with_train(threads=2, device="cpu"),
        with_train(validate_every=7, compile=True),
        lambda recipe: replace(recipe, about="other words"),
        lambda recipe: replace(recipe, data=replace(recipe.data, source="npz:here.npz")),
        lambda recipe: replace(recipe, expected=TABLE),
    ],
)
def test_settings_that_train_the_same_have_one_hash(change: Change) -> None:
    recipe = load_recipe("digits")
    assert settings_hash(change(recipe)) == settings_hash(recipe)


@pytest.mark.parametrize(
    "override",
    [
        "train.minutes=2",
        "train.batch=32",
        "train.learning_rate=1e-3",
        "train.weight_decay=0.2",
        "model.layers=5",
        "model.conditional=true",
        "model.name=made",
        "data.limit=100",
        "data.flip=true",
    ],
)
def test_settings_that_train_something_else_have_another(override: str) -> None:
    assert settings_hash(load_recipe("digits", [override])) != settings_hash(load_recipe("digits"))


def test_the_grids_of_a_task_are_told() -> None:
    grid = {"height": 4, "width": 3, "channels": 1, "levels": 64}
    assert grid_text({"model": {"grid": grid}}) == "4x3x1 of 64 levels"
    assert grid_text({"model": {"priors": [{"grid": grid}] * 2}}).count("4x3x1") == 2
    assert grid_text({"model": {"name": "vqvae"}}) == ""
    assert grid_text({}) == ""


def test_a_curve_holds_for_its_metric_settings_images_and_grid() -> None:
    recipe = load_recipe("digits")
    task = {"model": {"grid": {"height": 1, "width": 2, "channels": 1, "levels": 3}}}
    images = {"sha256": "ab" * 32}
    table = replace(TABLE, settings=settings_hash(recipe), data="ab" * 8, grid="1x2x1 of 3 levels")
    measured = replace(recipe, expected=table)
    assert expectation_of(measured, images, task, "bits_per_dim") is not None
    assert expectation_of(replace(recipe, expected=None), images, task, "bits_per_dim") is None
    assert expectation_of(measured, images, task, "mse") is None
    assert expectation_of(measured, {"sha256": "cd" * 32}, task, "bits_per_dim") is None
    assert expectation_of(measured, {}, task, "bits_per_dim") is None
    assert expectation_of(measured, images, {}, "bits_per_dim") is None
    changed = replace(measured, train=replace(recipe.train, batch=32))
    assert expectation_of(changed, images, task, "bits_per_dim") is None


@pytest.mark.parametrize("name", recipe_names())
def test_the_curve_of_a_recipe_that_ships_is_of_its_settings(name: str) -> None:
    recipe = load_recipe(name)
    if recipe.expected is None:
        return
    assert recipe.expected.settings == settings_hash(recipe), "the recipe changed: measure again"
    assert len(recipe.expected.data) == 16
    assert recipe.expected.machine
    assert recipe.expected.tolerance > 0
    figures = [figure for _, _, figure in recipe.expected.curve]
    assert figures == sorted(figures, reverse=True)


def test_a_run_is_compared_with_the_curve_of_its_recipe(
    script: ModuleType, recipe_file: Path, tmp_path: Path
) -> None:
    silent = trained(load_recipe(str(recipe_file)), tmp_path / "a")
    assert not any("expects" in line for line in silent)
    script.main([str(recipe_file), str(tmp_path / "a"), "--machine", "a lamp", "--gigaflops", "5"])
    recipe = load_recipe(str(recipe_file))
    assert recipe.expected is not None
    assert (recipe.expected.machine, recipe.expected.gigaflops) == ("a lamp", 5.0)
    assert [row[0] for row in recipe.expected.curve] == [3, 6, 9, 12]
    # The same run again is where the curve is.
    said = trained(recipe, tmp_path / "b")
    remarks = [line for line in said if "expects after" in line]
    assert [re.search(r"after (\d+) steps", line)[1] for line in remarks] == ["3", "6", "9", "12"]
    assert remarks[0].startswith("best bits_per_dim ")
    assert remarks[-1].startswith("on track: ")
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    assert record["recipe"]["expected"]["machine"] == "a lamp"
    # Other settings, other curve: nothing is said.
    other = load_recipe(str(recipe_file), ["train.batch=10"])
    assert not any("expects" in line for line in trained(other, tmp_path / "c"))
    # A resumed run that goes on for longer is another run, too.
    longer = replace(recipe, train=replace(recipe.train, steps=15))
    said = []
    train_recipe(longer, tmp_path / "b", resume=True, say=said.append)
    assert not any("expects" in line for line in said)


def test_the_script_replaces_a_table_and_keeps_the_rest(
    script: ModuleType, recipe_file: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(str(recipe_file))
    trained(recipe, tmp_path / "a")
    trained(replace(recipe, train=replace(recipe.train, seed=1)), tmp_path / "b")
    script.main([str(recipe_file), str(tmp_path / "a")])
    once = recipe_file.read_text()
    script.main([str(recipe_file), str(tmp_path / "a"), str(tmp_path / "b")])
    twice = recipe_file.read_text()
    assert once.count("[expected]") == twice.count("[expected]") == 1
    assert twice.startswith(TINY.rstrip())
    before = load_recipe(str(recipe_file))
    assert to_dict(replace(before, expected=None)) == to_dict(recipe)
    # With a second seed the tolerance is measured.
    assert before.expected is not None
    (tmp_path / "once.toml").write_text(once)
    alone = load_recipe(str(tmp_path / "once.toml")).expected
    assert alone is not None
    assert alone.tolerance == pytest.approx(0.02 * alone.curve[-1][2], abs=1e-3)
    assert before.expected.tolerance != alone.tolerance
    # A table between others is replaced where it is found.
    text = "[expected]\ncurve = []\n\n[train]\nsteps = 1\n"
    assert script.written(text, alone).startswith("[train]\nsteps = 1\n\n[expected]\n")


def test_the_script_refuses_runs_of_another_recipe(
    script: ModuleType, recipe_file: Path, tmp_path: Path
) -> None:
    trained(load_recipe(str(recipe_file), ["train.batch=10"]), tmp_path / "a")
    with pytest.raises(SystemExit, match="other settings"):
        script.main([str(recipe_file), str(tmp_path / "a")])
    with pytest.raises(SystemExit, match="adversarial"):
        script.main(["digits-vqgan", str(tmp_path / "a")])


def test_a_long_curve_is_thinned_to_its_ends(script: ModuleType) -> None:
    points = [(step, step / 60, 1 + 1 / step) for step in range(10, 10_001, 10)]
    kept = script.thinned(points)
    assert len(kept) <= script.ROWS
    assert (kept[0][0], kept[-1][0]) == (10, 10_000)

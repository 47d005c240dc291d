"""The benchmark of likelihoods: its cells, that they go on where they were left, and the tables
made of them."""

from __future__ import annotations

import importlib
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import tessella as ts
from tessella.config import Recipe, from_dict
from tessella.errors import ConfigError, InputError
from tessella.pipeline import pixel_generator
from tessella.training import train_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def likelihood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("likelihood")
    cells = importlib.import_module("likelihood_cells")
    monkeypatch.setattr(cells, "RUNS", tmp_path / "runs")
    speed = importlib.import_module("machine").Machine({1: 10.0}, 100.0, 1.0, 1.0, 1)
    monkeypatch.setattr(module.machine, "measure", lambda sets, sweeps: speed)
    monkeypatch.setattr(
        module.harness, "results_path", lambda name, out="": Path(out or tmp_path / f"{name}.json")
    )
    return module


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("likelihood_tables")


def likelihood_cells() -> ModuleType:
    return importlib.import_module("likelihood_cells")


def tiny(module: ModuleType, steps: int = 12) -> Any:
    settings = {
        "data": {"source": "digits"},
        "model": {"name": "fvsbn"},
        "train": {"steps": steps, "batch": 16},
    }
    return module.Cell("digits", "tiny", from_dict(Recipe, settings), each_image=True)


def interrupted(recipe: Recipe, out: Path, **options: Any) -> Any:
    """Half of a training, as an interruption leaves it."""
    train_recipe(
        replace(recipe, train=replace(recipe.train, steps=recipe.train.steps // 2)), out, **options
    )
    facts = json.loads((out / "run.json").read_text())
    facts["recipe"]["train"]["steps"], facts["status"] = recipe.train.steps, "interrupted"
    (out / "run.json").write_text(json.dumps(facts))
    return type("Cut", (), {"interrupted": True})()


def test_every_family_has_a_cell_and_no_two_cells_share_a_name(likelihood: ModuleType) -> None:
    cells = likelihood_cells().every_cell()
    assert len({cell.id for cell in cells}) == len(cells)
    # gpt is there for checkpoints of others, and was not measured; any-order has its own table,
    # and masked states no exact bits.
    families = set(ts.MODELS) - {"independent", "gpt", "any-order", "masked"}
    for table in ("binary-mnist", "digits", "speed-mnist-fixed", "speed-mnist-dynamic"):
        assert {cell.recipe.model.name for cell in cells if cell.table == table} == families
    heads = [cell for cell in cells if cell.table.startswith("heads-")]
    for table in {cell.table for cell in heads}:
        networks = {
            json.dumps(dict(cell.recipe.model.sizes)) for cell in heads if cell.table == table
        }
        budgets = {cell.recipe.train for cell in heads if cell.table == table}
        assert len(networks) == 1
        assert len(budgets) == 1


def test_a_cell_goes_from_new_to_done_and_is_refused_when_its_settings_change(
    likelihood: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = tiny(likelihood)
    assert likelihood.state(cell) == "new"
    assert likelihood.run(cell, again=False)
    assert likelihood.state(cell) == "done"
    row = json.loads(cell.result.read_text())["rows"][0]
    assert row["steps"] == 12
    assert row["epochs"] == pytest.approx(12 * 16 / 1350)
    assert row["test"]["images"] == 297
    assert statistics.mean(row["each_image"]["bits_per_dim"]) == pytest.approx(
        row["test"]["bits_per_dim"], abs=1e-5
    )
    seconds = [point["seconds"] for point in row["curve"]]
    assert seconds == sorted(seconds)
    last = row["curve"][-1]
    assert last["bits_per_dim"] == pytest.approx(row["valid"]["bits_per_dim"])
    assert last["images"] == row["images_seen"] == 12 * 16
    assert 0 < last["training_seconds"] < last["seconds"]
    assert set(row["seconds_an_image"]) == {"1", "16"}
    changed = tiny(likelihood, steps=14)
    assert likelihood.state(changed) == "changed"
    with pytest.raises(ConfigError, match="digits/tiny have changed"):
        likelihood.run(changed, again=False)
    moved = replace(
        changed, recipe=replace(changed.recipe, data=replace(changed.recipe.data, limit=300))
    )
    assert likelihood.state(moved) == "changed"
    assert likelihood.run(changed, again=True)
    assert likelihood.state(changed) == "done"
    train = likelihood.train_recipe
    monkeypatch.setattr(likelihood, "train_recipe", interrupted)
    assert not likelihood.run(changed, again=True)
    assert likelihood.state(changed) == "begun"  # not done, by the file of the run before
    monkeypatch.setattr(likelihood, "train_recipe", train)
    assert likelihood.run(changed, again=False)
    assert likelihood.state(changed) == "done"


def test_cells_of_codes_train_on_the_tokenizer_of_another_and_are_told_in_bits_of_pixels(
    likelihood: ModuleType, tables: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, train = (
        {"source": "digits", "limit": 64, "bits": "", "size": ""},
        {"steps": 4, "batch": 8},
    )
    sizes = {"codebook_size": 8, "hidden": 8, "code_dim": 4, "downsample": 2, "residual_blocks": 1}
    table = {
        "in_bounds": True,
        "data": data,
        "train": train,
        "cells": {
            "pixels": {"model": {"name": "fvsbn"}},
            "tokenizer": {"tokenizer": {"name": "vqvae", "likelihood": "logistic", **sizes}},
            "codes": {
                "prior_of": "codes-mnist/tokenizer",
                "model": {"name": "made"},
                "train": {"steps": 2},
            },
        },
    }
    cells = list(likelihood_cells().cells_of_table("codes-mnist", {"codes-mnist": table}))
    assert [cell.recipe.train.steps for cell in cells] == [4, 4, 2]
    monkeypatch.setattr(importlib.import_module("bounds"), "LEVELS", 17)
    for cell in cells:
        assert likelihood.run(cell, again=False)
        assert likelihood.state(cell) == "done"
    found = {cell.name: json.loads(cell.result.read_text())["rows"][0] for cell in cells}
    assert found["pixels"]["exact"]
    assert found["pixels"]["symbols"] == 64
    assert found["pixels"]["train_images"] <= 64
    assert found["pixels"]["images"] == 297
    assert found["codes"]["symbols"] == 16
    parts = found["codes"]["code_bits"] + found["codes"]["pixel_bits"]
    assert found["codes"]["bits_per_dim"] == pytest.approx(parts)
    assert found["codes"]["all_minutes"] == pytest.approx(
        found["codes"]["minutes"] + found["tokenizer"]["minutes"]
    )
    monkeypatch.setattr(
        tables, "CELLS", likelihood.harness.results_path("likelihood").with_suffix("")
    )
    assert "| codes | vqvae, made | 16 |" in tables.codes()


def test_an_interrupted_cell_goes_on_where_it_was_left(
    likelihood: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, train = tiny(likelihood), likelihood.train_recipe

    monkeypatch.setattr(likelihood, "train_recipe", interrupted)
    assert not likelihood.run(cell, again=False)
    assert likelihood.state(cell) == "begun"
    assert not cell.result.exists()
    # A kill can leave half a line in the log.
    log = cell.run / "log.jsonl"
    whole = log.read_text()
    seconds = json.loads(whole.splitlines()[-1])["seconds"]
    log.write_text(whole + '{"step": 7, "seco')
    assert likelihood_cells().minutes_of(cell) == pytest.approx(seconds / 60)
    log.write_text(whole)
    monkeypatch.setattr(likelihood, "train_recipe", train)
    assert likelihood.run(cell, again=False)
    sittings = json.loads((cell.run / "run.json").read_text())["sittings"]
    assert sittings[0]["step"] == 6


def test_neighbours_are_the_levels_beside_the_true_one(likelihood: ModuleType) -> None:
    model = ts.create("independent", ts.Grid(3, 3, 1, 256), seed=1)
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 3, 1)).astype(np.uint8)
    with torch.no_grad():
        model.table.mul_(10)
    chances = model.table[0].detach().double().softmax(-1).numpy()
    measuring = importlib.import_module("likelihood_measure")
    near = measuring.neighbours(pixel_generator(model), images)
    assert len(near) == 2 * measuring.REACH + 1
    for distance in (-24, -1, 0, 3):
        expected = [
            chances[y, x, 0, level + distance]
            for image in images.astype(int)
            for (y, x, _), level in np.ndenumerate(image)
            if 0 <= level + distance < 256
        ]
        assert near[distance + measuring.REACH] == pytest.approx(np.mean(expected), abs=2e-6)


def row(bits: list[float], files: list[str]) -> dict[str, Any]:
    return {"test": {"sha256": "0"}, "each_image": {"bits_per_dim": bits, "of": files}}


def test_differences_are_of_images_or_of_the_files_they_are_tiles_of(tables: ModuleType) -> None:
    one, other = [3.0, 3.5, 4.0, 5.0], [3.1, 3.4, 4.4, 5.2]
    mean, error = tables.paired(row(one, []), row(other, []))
    differences = [-0.1, 0.1, -0.4, -0.2]
    assert mean == pytest.approx(-0.15)
    assert error == pytest.approx(statistics.stdev(differences) / 2)
    mean, error = tables.paired(row(one, ["a", "a", "b", "b"]), row(other, ["a", "a", "b", "b"]))
    assert mean == pytest.approx((0.0 - 0.3) / 2)
    assert error == pytest.approx(statistics.stdev([0.0, -0.3]) / math.sqrt(2))
    mean, error = tables.paired(row(one, ["a", "b", "b", "b"]), row(other, ["a", "b", "b", "b"]))
    assert mean == pytest.approx((-0.1 - 0.5 / 3) / 2)
    assert error == pytest.approx(statistics.stdev([-0.1, -0.5 / 3]) / math.sqrt(2))


def head_row(head: str, bits: list[float], near: float) -> dict[str, Any]:
    reach = 24
    neighbours = [near] * reach + [2 * near] + [near] * reach
    return {
        "table": "heads-kodak",
        "cell": f"{head}-few",
        "settings": {
            "model": {"name": "gated-pixelcnn", "head": head, "sizes": {}},
            "train": {"minutes": 2.5},
        },
        "train_images": 384,
        "steps": 200,
        "best_step": 150,
        "epochs": 8.0,
        "test": {
            "images": 4,
            "sha256": "1",
            "bits_per_dim": statistics.mean(bits),
            "bits_per_dim_se": 9.0,
        },
        "each_image": {"bits_per_dim": bits, "of": ["a.png", "a.png", "b.png", "b.png"]},
        "neighbours": neighbours,
        "machine_gigaflops": 60.0,
    }


def test_the_table_of_heads(
    tables: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tables, "CELLS", tmp_path)
    assert tables.heads() == tables.NOTHING
    (tmp_path / "heads-kodak").mkdir()
    hardware = {"cpu": "a processor", "instructions": "AVX2", "threads": 2, "torch": "2"}
    made = [head_row("logistic-mixture", [3.0, 3.2, 4.0, 4.2], 0.02)]
    made += [head_row("categorical", [4.0, 4.0, 4.4, 4.4], 0.01)]
    for found in made:
        file = {"rows": [found], "hardware": hardware, "commit": "abc"}
        (tmp_path / "heads-kodak" / f"{found['cell']}.json").write_text(json.dumps(file))
    first, second = tables.heads().splitlines()[2:4]
    kodak = "| Kodak, 32x32 tiles | 384 | "
    assert (
        first == kodak + "`categorical` | 8.0 (6.0) | 4.200 ± 0.200 | – | 2.00 % | 2.00 % | 8.0 % |"
    )
    # means of the photographs 3.1 and 4.1; differences -0.9 and -0.3
    figures = "3.600 ± 0.500 | -0.6000 ± 0.3000 | 4.00 % | 4.00 % | 16.0 % |"
    assert second == f"{kodak}`logistic-mixture` | 8.0 (6.0) | {figures}"
    assert (
        "4 tiles of 2 photographs; 2 threads of a processor with AVX2, torch 2 (60 GFLOP/s"
        in tables.heads()
    )
    made[0]["test"]["sha256"] = "2"
    (tmp_path / "heads-kodak" / "logistic-mixture-few.json").write_text(
        json.dumps({"rows": [made[0]], "hardware": hardware, "commit": "abc"})
    )
    with pytest.raises(AssertionError):
        tables.heads()


def test_rows_come_in_the_order_of_the_list(tables: ModuleType) -> None:
    found = [row["cell"] for row in tables.rows("binary-mnist")]
    assert (
        found.index("fvsbn")
        < found.index("made")
        < found.index("pixelcnn++")
        < found.index("transformer")
    )
    listed = ["made", "made-masks", "pixelcnn"]
    assert [
        tables.position(listed, cell) for cell in ("made-masks", "made", "pixelcnn-0.25", "none")
    ] == [1, 0, 2, 3]


def test_combinations_of_a_probe(likelihood: ModuleType) -> None:
    found = likelihood.combinations(["model.hidden=8,16", "train.batch=4"])
    assert found == [["model.hidden=8", "train.batch=4"], ["model.hidden=16", "train.batch=4"]]


LISTED = """
[t]
seeds = [0, 1]
data = { source = "digits" }
train = { steps = 6, batch = 8, learning_rate = 1e-2, threads = 1 }
variants = { "a" = {}, "b" = { seeds = [4], train = { steps = 3 } } }
[t.cells]
fvsbn = { model = { name = "fvsbn" } }
made = { model = { name = "made", hidden = 8 } }

[more]
cells_of = "t"
data = { source = "npz:grey.npz", binarize = "dynamic" }
draws = 3
train = { steps = 5, batch = 8, threads = 1 }
"""


@pytest.fixture
def listed(likelihood: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    (tmp_path / "listed.toml").write_text(LISTED)
    monkeypatch.setattr(likelihood_cells(), "LISTED", tmp_path / "listed.toml")
    monkeypatch.setattr(importlib.import_module("likelihood_data"), "DATA", tmp_path)
    return likelihood


def test_seeds_are_cells_of_their_own_and_compared_ones_run_close_together(
    listed: ModuleType,
) -> None:
    cells = likelihood_cells().every_cell()
    assert [cell.id for cell in cells] == [
        "t/fvsbn-a-seed0",
        "t/made-a-seed0",
        "t/fvsbn-a-seed1",
        "t/made-a-seed1",
        "t/fvsbn-b-seed4",
        "t/made-b-seed4",
        "more/fvsbn",
        "more/made",
    ]
    assert [(c.recipe.train.seed, c.recipe.model.seed) for c in cells[2:6]] == [(1, 1)] * 2 + [
        (4, 4)
    ] * 2
    assert [cell.recipe.train.steps for cell in cells] == [6, 6, 6, 6, 3, 3, 5, 5]
    # Of another table's cells their models count, not its data.
    assert cells[6].recipe.data.binarize == "dynamic"
    assert cells[6].draws == 3
    find = likelihood_cells().find_cells
    assert [cell.seed for cell in find(["t/made-a"])] == [0, 1]
    assert [cell.id for cell in find(["t/*-seed1"])] == ["t/fvsbn-a-seed1", "t/made-a-seed1"]
    with pytest.raises(SystemExit, match="the tables t, more"):
        find(["nothing"])


def test_keys_and_seeds_of_a_table_are_checked(listed: ModuleType) -> None:
    of_table = likelihood_cells().cells_of_table
    table = {"model": {"name": "fvsbn"}, "train": {"steps": 1}, "cells": {"one": {}}}
    assert [cell.seed for cell in of_table("x", {"x": table})] == [None]
    with pytest.raises(ConfigError, match=r"\[x\] has no key 'seed'"):
        list(of_table("x", {"x": {**table, "seed": [1]}}))
    with pytest.raises(ConfigError, match="different numbers"):
        list(of_table("x", {"x": {**table, "seeds": [1, 1]}}))


def test_cells_with_seeds_are_summed_up_and_compared(
    listed: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="nothing to compare"):
        listed.compare("t/fvsbn-a", "t/made-a")
    cells = likelihood_cells().find_cells(["t/*-a"])
    listed.run_cells(cells, again=False)
    row = listed.compare("t/fvsbn-a", "t/made-a")
    found = {cell.id: listed.harness.read_rows(cell.result)[0] for cell in cells}
    means = {name: each["test"]["bits_per_dim"] for name, each in found.items()}
    assert means["t/fvsbn-a-seed0"] != means["t/fvsbn-a-seed1"]
    ours = (means["t/fvsbn-a-seed0"] + means["t/fvsbn-a-seed1"]) / 2
    theirs = (means["t/made-a-seed0"] + means["t/made-a-seed1"]) / 2
    assert row["bits_per_dim"]["mean"] == pytest.approx(ours - theirs, abs=1e-6)
    assert row["seeds"] == [0, 1]
    assert row["bits_per_dim"]["images"] == 297
    assert row["nats"]["mean"] == pytest.approx(64 * math.log(2) * (ours - theirs), abs=1e-4)
    told = listed.describe_difference(row)
    assert "t/fvsbn-a minus t/made-a" in told
    assert "GFLOP/s" not in told
    unequal = row | {"machine_gigaflops": [50.0, 60.0, 50.0, 60.0]}
    assert "50 to 60 GFLOP/s" in listed.describe_difference(unequal)

    summaries = listed.harness.read_rows(listed.harness.results_path("likelihood/summaries"))
    by_cell = {each["cell"]: each for each in summaries}
    assert by_cell["fvsbn-a"]["seeds"] == [0, 1]
    assert by_cell["fvsbn-a"]["bits_per_dim"]["mean"] == pytest.approx(ours, abs=1e-6)

    # Nothing is trained again; a summary that is missing is made up for, another is left alone.
    path = listed.harness.results_path("likelihood/summaries")
    file = json.loads(path.read_text())
    file["rows"] = [by_cell["made-a"] | {"kept": True}]
    path.write_text(json.dumps(file))
    capsys.readouterr()
    listed.run_cells(cells, again=False)
    assert capsys.readouterr().out.count(": done") == 4
    again = {each["cell"]: each for each in listed.harness.read_rows(path)}
    assert again["made-a"]["kept"]
    assert again["fvsbn-a"]["bits_per_dim"] == by_cell["fvsbn-a"]["bits_per_dim"]
    lines = listed.list_cells(likelihood_cells().find_cells(["t/*"])).splitlines()
    assert sum("done" in line for line in lines) == 5  # four cells, and the sum
    assert sum("to do" in line for line in lines) == 3


def test_the_start_is_the_model_before_its_first_step(listed: ModuleType) -> None:
    cell = likelihood_cells().find_cells(["t/fvsbn-a-seed1"])[0]
    start = importlib.import_module("likelihood_measure").measure_start(cell)
    # The regressions of an FVSBN begin near zero, at uniform levels.
    assert start["test"]["bits_per_dim"] == pytest.approx(math.log2(17), abs=0.2)
    model = ts.create("fvsbn", ts.Grid(8, 8, 1, 17), seed=1)
    valid = ts.data.load(cell.recipe.data, "valid")
    assert start["valid"]["images"] == len(valid) == 150
    assert start["valid"]["bits_per_dim"] == ts.evaluate(model, valid)["bits_per_dim"]


def test_dynamic_binarization_is_tested_on_the_mean_of_its_draws(
    listed: ModuleType, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 60), ("valid", 20), ("test", 30)):
        arrays[split] = rng.integers(0, 256, (count, 4, 4)).astype(np.uint8)
    np.savez(tmp_path / "grey.npz", **arrays)
    cell = likelihood_cells().find_cells(["more/fvsbn"])[0]
    assert listed.run(cell, again=False)
    test = listed.harness.read_rows(cell.result)[0]["test"]
    assert (test["images"], test["draws"], test["identical"]) == (30, 3, None)

    model, draws = ts.load(cell.run), []
    for seed in range(3):
        config = replace(cell.located_recipe().data, binarize_seed=seed)
        images = ts.data.load(config, "test").images
        draws.append(model.prior.log_prob(model.encode(images)).detach().double().numpy())
    assert not np.array_equal(draws[0], draws[1])
    nats = -np.mean(draws, axis=0)
    assert test["nats_per_image"] == pytest.approx(nats.mean(), rel=1e-5)
    assert test["nats_per_image_se"] == pytest.approx(nats.std(ddof=1) / 30**0.5, rel=1e-4)

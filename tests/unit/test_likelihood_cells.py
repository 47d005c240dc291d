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
from tessella.errors import ConfigError
from tessella.pipeline import pixel_generator
from tessella.training import train_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def likelihood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("likelihood")
    monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(module.machine, "gigaflops", lambda side: 100.0)
    monkeypatch.setattr(
        module.harness, "results_path", lambda name, out="": Path(out or tmp_path / f"{name}.json")
    )
    return module


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("likelihood_tables")


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
    cells = likelihood.cells()
    assert len({cell.id for cell in cells}) == len(cells)
    families = set(ts.MODELS) - {"independent"}
    for table in ("binary-mnist", "digits"):
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
    seconds = [at for at, _ in row["curve"]]
    assert seconds == sorted(seconds)
    assert row["curve"][-1][1] == pytest.approx(row["valid"]["bits_per_dim"])
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
    cells = list(likelihood.cells_of_table("codes-mnist", table))
    assert [cell.recipe.train.steps for cell in cells] == [4, 4, 2]
    monkeypatch.setattr(likelihood.bounds, "LEVELS", 17)
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
    monkeypatch.setattr(likelihood, "train_recipe", train)
    assert likelihood.run(cell, again=False)
    sittings = json.loads((likelihood.RUNS / cell.id / "run.json").read_text())["sittings"]
    assert sittings[0]["step"] == 6


def test_neighbours_are_the_levels_beside_the_true_one(likelihood: ModuleType) -> None:
    model = ts.create("independent", ts.Grid(3, 3, 1, 256), seed=1)
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 3, 1)).astype(np.uint8)
    with torch.no_grad():
        model.table.mul_(10)
    chances = model.table[0].detach().double().softmax(-1).numpy()
    near = likelihood.neighbours(pixel_generator(model), images)
    assert len(near) == 2 * likelihood.REACH + 1
    for distance in (-24, -1, 0, 3):
        expected = [
            chances[y, x, 0, level + distance]
            for image in images.astype(int)
            for (y, x, _), level in np.ndenumerate(image)
            if 0 <= level + distance < 256
        ]
        assert near[distance + likelihood.REACH] == pytest.approx(np.mean(expected), abs=2e-6)


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

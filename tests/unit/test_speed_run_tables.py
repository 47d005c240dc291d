"""The tables of docs/likelihood.md: budgets, seeds and curves of made-up cells."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LISTED = """
[speed]
variants = { "1" = { train = { minutes = 1 } }, "5" = { train = { minutes = 5 } } }
cells = { made = { }, made-masks = { }, lstm = { } }

[old]
cells = { lstm = { }, made = { } }
"""


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    module = importlib.import_module("speed_run_tables")
    cells = importlib.import_module("likelihood_tables")
    (tmp_path / "listed.toml").write_text(LISTED)
    monkeypatch.setattr(cells, "LISTED", tmp_path / "listed.toml")
    monkeypatch.setattr(cells, "CELLS", tmp_path)
    return module


def row(cell: str, minutes: float, seed: int, bits: float) -> dict[str, Any]:
    train = {"minutes": minutes, "seed": seed, "batch": 8}
    return {
        "table": "speed",
        "cell": cell,
        "settings": {"model": {"name": "made"}, "train": train},
        "parameters": 1234,
        "steps": 100 + 10 * seed,
        "machine_gigaflops": 60.0,
        "start": {"valid": {"bits_per_dim": 8.0}},
        "curve": [
            {"seconds": 30.0, "bits_per_dim": 4.0},
            {"seconds": 58.0 * minutes, "bits_per_dim": bits},
        ],
        "test": {
            "images": 50,
            "bits_per_dim": bits,
            "bits_per_dim_se": 0.25,
            "nats_per_image": 10 * bits,
        },
    }


def write(folder: Path, table: str, rows: list[dict[str, Any]]) -> None:
    (folder / table).mkdir(exist_ok=True)
    hardware = {"cpu": "a processor", "instructions": "AVX2", "threads": 2, "torch": "2"}
    for each in rows:
        seed = each["settings"]["train"]["seed"]
        file = {"rows": [each | {"table": table}], "hardware": hardware, "commit": "abc"}
        (folder / table / f"{each['cell']}-seed{seed}.json").write_text(json.dumps(file))


def summary(cell: str, seeds: list[int], mean: float, error: float) -> dict[str, Any]:
    return {
        "table": "speed",
        "cell": cell,
        "seeds": seeds,
        "bits_per_dim": {"mean": mean, "se": error},
    }


def test_a_line_has_every_budget_best_first_and_older_cells_stand_in(
    tables: ModuleType, tmp_path: Path
) -> None:
    section = tables.Section("speed", "nats", older="old", minutes=(0, 1, 5))
    assert tables.speed_run(section) == tables.NOTHING
    made = [row("made-1", 1, 0, 3.0), row("made-1", 1, 1, 3.5), row("made-masks-1", 1, 0, 2.0)]
    write(tmp_path, "speed", [*made, row("made-5", 5, 0, 1.5)])
    # Another budget than those of the table says nothing here.
    write(tmp_path, "old", [row("lstm", 1, 0, 2.5), row("made", 7, 0, 0.5)])
    with pytest.raises(AssertionError, match="speed/made-1 has 2 seeds and no summary"):
        tables.speed_run(section)
    summaries = {"rows": [summary("made-1", [0, 1], 3.25, 0.5)]}
    (tmp_path / "summaries.json").write_text(json.dumps(summaries))

    titles, _, *lines = tables.speed_run(section).splitlines()
    assert titles.count("test nats ± se (seeds)") == 2
    masks = "| `made-masks` | 1,234 | 20.00 ± 2.50 (1) | 800 | – | – | 80.00 | 20.00 | – |"
    assert lines[0] == masks
    assert lines[1].startswith("| `lstm` | 1,234 | 25.00 ± 2.50 (1) | 800 | – | – |")
    made_line = "| `made` | 1,234 | 32.50 ± 5.00 (2) | 840 | 15.00 ± 2.50 (1) | 800 | 80.00 |"
    assert lines[2].startswith(made_line)
    assert "![speed](images/speed.png)" in lines


def test_a_curve_is_read_between_its_validations(tables: ModuleType) -> None:
    found = row("made-5", 5, 0, 2.0)
    assert tables.curve_value(found, 0) == 8.0
    assert tables.curve_value(found, 0.25) == pytest.approx(6.0)
    assert tables.curve_value(found, 0.5) == 4.0
    # From 30 to 290 seconds it falls by 2.
    assert tables.curve_value(found, 1) == pytest.approx(4 - 2 * 30 / 260)
    # The last validation stands for the end of the budget, not for what comes after it.
    assert tables.curve_value(found, 5) == 2.0
    assert tables.curve_value(found, 20) is None
    del found["start"]
    assert tables.curve_value(found, 0) is None
    found["curve"] = [[30.0, 4.0], [290.0, 2.0]]
    assert tables.curve_value(found, 0.5) == 4.0


def test_comparisons_are_told_with_their_seeds(tables: ModuleType, tmp_path: Path) -> None:
    assert tables.comparisons() == tables.NOTHING
    difference = {
        "ours": "a/b",
        "theirs": "a/c",
        "seeds": [0, 1, 2],
        "bits_per_dim": {"mean": -0.01234, "se": 0.00567, "images": 10000},
        "nats": {"mean": -6.5, "se": 2.5},
    }
    (tmp_path / "comparisons.json").write_text(json.dumps({"rows": [difference]}))
    line = tables.comparisons().splitlines()[2]
    assert line == "| `a/b` | `a/c` | -0.0123 ± 0.0057 | -6.50 ± 2.50 | 3 | 10,000 |"


def test_pictures_are_drawn_of_what_was_measured(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(tables.cells_tables, "IMAGES", tmp_path)
    monkeypatch.setattr(tables, "SECTIONS", (tables.Section("speed", "nats"),))
    assert "nothing was measured" in tables.draw_pictures()
    write(tmp_path, "speed", [row("made-1", 1, 0, 3.0)])
    assert tables.draw_pictures() == str(tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 1000

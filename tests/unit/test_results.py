"""Tables in the documents are those of the files under results/."""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import tessella as ts

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_of_the_models_are_the_measured_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    filled = runpy.run_path(str(ROOT / "scripts" / "model_tables.py"))["filled"]
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert "±" in text
    assert filled(text) == text, "run python scripts/model_tables.py"


def test_the_tables_of_likelihood_are_the_measured_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    filled = runpy.run_path(str(ROOT / "scripts" / "speed_run_tables.py"))["filled"]
    text = (ROOT / "docs" / "likelihood.md").read_text(encoding="utf-8")
    assert filled(text) == text, "run python scripts/speed_run_tables.py"


def performance(name: str) -> Any:
    return runpy.run_path(str(ROOT / "scripts" / "performance_tables.py"))[name]


def test_the_tables_of_performance_are_the_measured_ones() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert performance("filled")(text) == text, "run python scripts/performance_tables.py"


def test_the_tables_of_tokenizers_are_the_measured_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    filled = runpy.run_path(str(ROOT / "scripts" / "tokenizer_tables.py"))["filled"]
    text = (ROOT / "docs" / "tokenizers.md").read_text(encoding="utf-8")
    assert filled(text) == text, "run python scripts/tokenizer_tables.py"


def test_the_tables_of_compression_are_the_measured_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    filled = runpy.run_path(str(ROOT / "scripts" / "compression_tables.py"))["filled"]
    text = (ROOT / "docs" / "compression.md").read_text(encoding="utf-8")
    assert "Tessella" in text
    assert filled(text) == text, "run python scripts/compression_tables.py"


def test_the_tables_of_scale_are_the_measured_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    filled = runpy.run_path(str(ROOT / "scripts" / "planning_tables.py"))["filled"]
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert filled(text) == text, "run python scripts/planning_tables.py"


def test_the_table_of_times_says_what_was_measured() -> None:
    row = {
        "work": "nade",
        "model": "nade",
        "batch": 16,
        "commit": "abc",
        "ms_a_step": {"naive": 12.5, "plain": 0.25},
    }
    row |= {
        "symbols_a_second": 64_000.0,
        "pixels_a_second": 64_000.0,
        "seconds_an_image": 0.01225,
        "naive_over_ours": 50,
    }
    row |= {"symbols_replayed": 12_544, "symbols_that_differ": {"plain": 1}}
    hardware = {"threads": 2, "cpu": "one of its kind", "torch": "2"}
    lines = performance("sampling")(
        {"rows": [row], "hardware": hardware, "commit": "abc"}
    ).splitlines()
    assert (
        lines[2]
        == "| `nade` | 16 | 12.5 | 0.250 | – | 64,000 | 64,000 | 0.012 | 50.0x | 1 of 12,544 |"
    )


@pytest.fixture
def floor(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("floor")


def test_the_floor_counts_a_product_and_its_weights_once(floor: ModuleType) -> None:
    weight, x = torch.ones(3, 4), torch.ones(2, 3)
    with floor.Counter([weight]) as counter:
        for _ in range(2):
            (x @ weight).t().tanh()
    assert counter.counts() == floor.Counts(bytes=48, flops=96, products=2, calls=4)


def test_the_floor_counts_the_cache_that_attention_reads(floor: ModuleType) -> None:
    cache = torch.ones(2, 1, 1, 16, 8)
    with floor.Counter([cache]) as counter:
        torch.nn.functional.scaled_dot_product_attention(
            torch.ones(1, 1, 1, 8), cache[0, ..., :5, :], cache[1, ..., :5, :]
        )
    assert counter.counts().bytes == 2 * 5 * 8 * 4
    assert counter.counts().flops == 2 * 2 * 5 * 8


def test_the_floor_finds_the_weights_of_a_state(
    floor: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSELLA_KERNEL", "0")  # the floor is counted where torch does the products
    model = ts.create("pixelcnn", ts.Grid(4, 4, 1, 2), layers=2, hidden=8)
    state = model.init_state(1)
    with floor.Counter(floor.tensors_of([model, state])) as counter:
        model.step(torch.zeros(1, dtype=torch.int64), 0, state)
    assert counter.counts().bytes > 0.5 * 4 * model.parameter_count()


def test_bandwidth_lies_between_the_sizes_measured(floor: ModuleType) -> None:
    machine = importlib.import_module("machine").Machine({1: 100.0, 4: 50.0}, 1.0, 1.0, 1.0, 1)
    sizes = [2**19, 2**20, 2**21, 2**22, 2**30]
    assert [machine.bandwidth(size) / 1e9 for size in sizes] == [100, 100, 75, 50, 50]


def test_a_step_is_timed_between_the_training_lines_of_a_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    codebooks = importlib.import_module("codebooks")
    log: list[dict[str, Any]] = [
        {"step": 1, "seconds": 2.0, "loss": 1.0},
        {"step": 11, "seconds": 7.0, "loss": 1.0},
        {"step": 21, "seconds": 12.0, "loss": 1.0},
        {"step": 21, "seconds": 12.0, "valid/mse": 0.5},
    ]
    assert codebooks.seconds_of_a_step(log) == 0.5

"""``tessella info --models``: every family and every head, with sizes."""

from __future__ import annotations

import json

import pytest

import tessella as ts
from tessella.cli.entry import main


def test_every_model_and_head_is_listed_with_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in (*ts.MODELS, *ts.HEADS):
        assert sum(line.split()[:1] == [name] for line in lines) == 1
    for name in ("gated-pixelcnn", "transformer"):
        count = ts.create(name, ts.Grid(28, 28, 1, 2)).parameter_count()
        assert f" {count:,} " in next(line for line in lines if line.startswith(f"  {name} "))


def test_the_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--models", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["models"]["independent"]["parameters"] == {
        "28x28x1 of 2 levels": 28 * 28 * 2,
        "32x32x3 of 256 levels": 32 * 32 * 3 * 256,
    }
    assert (set(facts["models"]), set(facts["heads"])) == (set(ts.MODELS), set(ts.HEADS))
    assert all(entry["about"] for part in facts.values() for entry in part.values())


def test_the_list_is_about_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "digits", "--models"]) == 2
    assert "--models is about no run" in capsys.readouterr().err

"""Families on the command line: another model than the recipe's, activation checkpointing,
mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

import tessella as ts
from tessella.cli.entry import main
from tessella.files import read_json

FEW = ["--steps", "2", "train.batch=8"]


def test_another_model_takes_the_place_of_the_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "train",
        "digits",
        "--model",
        "nade",
        "--checkpointing",
        "model.hidden=8",
        "model.conditional=true",
        *FEW,
    ]
    assert main(words) == 0
    generator = ts.load("runs/digits-nade")
    assert isinstance(generator, ts.Generator)
    assert (generator.prior.name, generator.prior.sizes()["hidden"]) == ("nade", 8)
    assert read_json(Path("runs/digits-nade/run.json"))["recipe"]["train"]["checkpointing"] in (
        True,
        1,
    )
    drawn = [
        "sample",
        "runs/digits-nade",
        "--n",
        "2",
        "--class-label",
        "3",
        "--guidance",
        "2",
        "--out",
        "threes.png",
    ]
    assert main(drawn) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits", "--model", "nada"], "did you mean 'nade'"),
        (["digits-vqvae", "--model", "nade"], "trains a tokenizer"),
        (["digits", "--model", "nade", "model.name=made"], "say the same"),
        (["digits", "--model", "nade", "model.layers=3"], "size of nade"),
        (["digits", "model.codes=3"], "model.codes follows from the data"),
        (["digits-vqvae", "--checkpointing", *FEW], "density models"),
        (["digits", "--model", "transformer", "model.width=30"], "heads"),
        (
            ["digits", "--model", "made", "model.masks=3", "model.head=logistic-mixture"],
            "do not divide by masks=3",
        ),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert message in told[0]
    assert not (tmp_path / "run" / "config.json").exists()

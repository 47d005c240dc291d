"""``tessella compress`` and what belongs to it with the exact twin of a real run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tessella as ts
from tessella import data, files
from tessella.cli.entry import main
from tessella.config import DataConfig
from tessella.pipeline import locate

pytest.importorskip("constriction", reason="the entropy coder is an optional library")


def test_digits_through_every_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(files.cache_folder() / "models", ignore_errors=True)
    monkeypatch.chdir(tmp_path)
    images = np.asarray(data.load(DataConfig("digits"), "test").images[:6])
    Path("in").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[:, :, 0]).save(f"in/{number:02d}.png")
    # The twin ships with the model, and is found by its id.
    assert main(["compress", "digits", "in", "--out", "x.tsl"]) == 0
    assert "making" not in capsys.readouterr().out
    assert not (files.cache_folder() / "models").exists()
    assert main(["decompress", "x.tsl", "--out", "back"]) == 0
    for number, image in enumerate(images):
        with Image.open(f"back/{number:02d}.png") as opened:
            assert np.array_equal(np.asarray(opened), image[:, :, 0])
    assert main(["score", "digits", "in"]) == 0
    capsys.readouterr()
    assert main(["eval", "digits", "--data", "archive:x.tsl", "--split", "all"]) == 0
    assert "6" in capsys.readouterr().out

    # The twin of a run goes to its directory; of another run it is not taken.
    shutil.copytree(locate("digits"), "runs/mine", ignore=shutil.ignore_patterns("exact.*"))
    assert main(["compress", "runs/mine", "in", "--out", "y.tsl"]) == 0
    assert "making the exact twin of runs/mine" in capsys.readouterr().out
    assert Path("runs/mine/exact.json").is_file()
    assert main(["decompress", "y.tsl", "--out", "again", "--model", "runs/mine"]) == 0
    Path("elsewhere").mkdir()
    assert main(["decompress", "y.tsl", "--out", "third", "--model", "elsewhere"]) == 2
    assert "needs the model" in capsys.readouterr().err
    assert main(["compress", "digits-vqvae", "in", "--out", "z.tsl"]) == 2
    assert "no density model" in capsys.readouterr().err


def test_a_two_stage_run_keeps_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.asarray(data.load(DataConfig("digits"), "test").images[:4])
    Path("in").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[: 8 - number, : 5 + number, 0]).save(f"in/{number}.png")
    # This twin does not ship: it goes to the cache, and is found there by its id.
    shutil.rmtree(files.cache_folder() / "models", ignore_errors=True)
    assert main(["compress", "digits-codes", "in", "--out", "x.tsl"]) == 0
    told = capsys.readouterr()
    assert "making the exact twin of digits-codes" in told.out
    assert "codes, not all pixels" in told.err
    assert main(["compress", "digits-codes", "in", "--out", "x.tsl"]) == 0
    assert "making" not in capsys.readouterr().out
    assert main(["decompress", "x.tsl", "--out", "back", "--model", "digits-codes"]) == 0
    tokenizer = ts.load("digits-codes").tokenizer
    for number, image in enumerate(images):
        part = image[None, : 8 - number, : 5 + number]
        expected = tokenizer.decode(tokenizer.encode(part), part.shape[1:3])
        with Image.open(f"back/{number}.png") as opened:
            assert np.array_equal(np.asarray(opened), expected[0, :, :, 0].numpy())
    assert main(["eval", "digits", "--data", "archive:x.tsl"]) == 2
    assert "codes of a tokenizer" in capsys.readouterr().err
    assert main(["score", "digits-codes", "in"]) == 2
    assert "scores are of pixels" in capsys.readouterr().err

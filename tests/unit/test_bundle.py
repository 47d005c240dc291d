"""The models that ship, whichever they are, and the script that puts them into the package."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import tessella as ts
from tessella import files
from tessella.cli.entry import main
from tessella.config import load_recipe
from tessella.errors import ConfigError
from tessella.exact import has_twin, load_twin
from tessella.exact.twin_files import source_of
from tessella.pipeline import bundled, fingerprint, loading, locate
from tessella.training import train_recipe

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
HEADINGS = ("What it is for", "What it cannot do", "Data and their terms", "Training", "Figures")
SMALL = ["train.minutes=0", "train.steps=3", "data.limit=40", "train.threads=1"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, which writes to a folder of the test."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("bundle")
    monkeypatch.setattr(module, "BUNDLE", tmp_path / "bundle")
    (tmp_path / "bundle").mkdir()
    return module


@pytest.fixture(scope="module")
def pixel_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of digits after three steps."""
    out = tmp_path_factory.mktemp("runs") / "pixels"
    recipe = load_recipe("digits", [*SMALL, "model.layers=1", "model.hidden=8"])
    train_recipe(recipe, out, say=lambda line: None)
    return out


@pytest.mark.parametrize("name", bundled())
def test_a_model_that_ships_says_what_it_is(script: ModuleType, name: str) -> None:
    folder = locate(name)
    text = (folder / "README.md").read_text(encoding="utf-8")
    for heading in HEADINGS:
        assert f"## {heading}\n" in text
    assert f'ts.load("{name}")' in text
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert len(facts["data"]["train"]["sha256"]) == 64
    assert facts["data"]["train"]["sha256"] in text
    assert facts["status"] == "finished"
    script.refuse_traces(folder)


@pytest.mark.parametrize("name", bundled())
def test_a_pixel_model_that_ships_has_its_twin(name: str) -> None:
    model = ts.load(name)
    if not isinstance(model, ts.Generator) or model.two_stage:
        return
    assert has_twin(locate(name))
    # Otherwise every machine would make a twin of its own.
    assert source_of(locate(name)) == fingerprint(model.priors[0])
    assert load_twin(locate(name)).grid == model.priors[0].grid


def test_info_lists_the_models_with_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    told = capsys.readouterr().out.partition("bundled models:\n")[2].partition("recipes:")[0]
    lines = told.splitlines()
    assert [line.split()[0] for line in lines] == bundled()
    assert any(line.endswith("VQ-VAE on the bundled 8x8 digits") for line in lines)


def test_the_models_that_ship_are_small_enough(script: ModuleType) -> None:
    folder = locate("digits").parent
    assert script.bytes_of(folder) < script.LIMIT == 12_000_000


def test_names_of_models_are_the_folders_of_the_bundle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = locate("digits")
    monkeypatch.setattr(loading.resources, "files", lambda package: tmp_path)
    assert bundled() == []
    shutil.copytree(shipped, tmp_path / "bundle" / "another")
    (tmp_path / "bundle" / "__pycache__").mkdir()
    assert bundled() == ["another"]
    assert locate("another") == tmp_path / "bundle" / "another"


def test_a_run_becomes_a_model_that_ships(
    script: ModuleType, pixel_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main([str(pixel_run), "digits"])
    told = capsys.readouterr().out
    assert "model.safetensors as float16: bits_per_dim" in told
    assert "exact twin takes" in told
    assert "together" in told
    model = script.BUNDLE / "digits"
    names = {file.name for file in model.iterdir()}
    assert names >= {"config.json", "exact.json", "log.jsonl", "README.md", "run.json"}
    assert not names & {"checkpoints", ".lock", "tensorboard"}
    assert not (model / "baseline" / "images.safetensors").exists()
    stored = files.read_tensors(model / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    kept = json.loads((model / "log.jsonl").read_text().splitlines()[-1])
    assert "valid/bits_per_dim" in kept
    assert "## Learning curve" in (model / "README.md").read_text()
    # It is the model that was trained, and its twin is that of the weights that ship.
    images = np.zeros((3, 8, 8, 1), np.uint8)
    before = ts.load(pixel_run, expect=ts.Generator).bits_per_dim(images)
    loaded = ts.load(model, expect=ts.Generator)
    assert torch.allclose(loaded.bits_per_dim(images), before, atol=1e-2)
    assert source_of(model) == fingerprint(loaded.priors[0])
    # Once more, from the bundle itself.
    script.main([str(model), "digits"])
    assert (
        ts.load(model, expect=ts.Generator).bits_per_dim(images).equal(loaded.bits_per_dim(images))
    )


def test_weights_stay_float32_where_rounding_costs_too_much(
    script: ModuleType,
    pixel_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "TOLERANCE", {"bits_per_dim": -1.0})
    script.main([str(pixel_run), "digits"])
    assert "it stays float32" in capsys.readouterr().out
    model = script.BUNDLE / "digits" / "model.safetensors"
    assert model.read_bytes() == (pixel_run / "model.safetensors").read_bytes()


def test_what_float16_cannot_hold_stays_float32(script: ModuleType) -> None:
    given = {"large": torch.tensor([1e6]), "small": torch.tensor([0.5]), "n": torch.tensor([3])}
    kinds = {name: tensor.dtype for name, tensor in script.halved(given).items()}
    assert kinds == {"large": torch.float32, "small": torch.float16, "n": torch.int64}


def test_a_prior_ships_with_its_tokenizer_and_its_story(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = load_recipe("digits-vqvae", [*SMALL, "tokenizer.hidden=8"])
    train_recipe(stage, tmp_path / "vqvae", say=lambda line: None)
    sizes = ["model.layers=1", "model.hidden=8", f'prior_of="{tmp_path / "vqvae"}"']
    prior = load_recipe("digits-prior", [*SMALL, *sizes])
    train_recipe(prior, tmp_path / "codes", say=lambda line: None)
    script.bundle(tmp_path / "codes", "digits-codes", float32=True)
    model = script.BUNDLE / "digits-codes"
    facts = json.loads((model / "run.json").read_text())
    assert facts["recipe"]["prior_of"] == "vqvae"
    assert facts["tokenizer_run"]["progress"]["step"] == 3
    assert "- Tokenizer: 3 steps" in (model / "README.md").read_text()
    assert not has_twin(model)
    assert not has_twin(model / "prior")
    assert ts.load(model, expect=ts.Generator).sample(1).shape == (1, 8, 8, 1)
    # A tokenizer that ships itself is named by its place in the bundle.
    script.bundle(tmp_path / "vqvae", "digits-vqvae", float32=True)
    script.bundle(tmp_path / "codes", "digits-codes", float32=True)
    facts = json.loads((model / "run.json").read_text())
    assert facts["recipe"]["prior_of"] == "digits-vqvae"


def test_a_model_without_notes_or_too_large_does_not_ship(
    script: ModuleType, pixel_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"no entry \[numbers\]"):
        script.bundle(pixel_run, "numbers")
    monkeypatch.setattr(script, "LIMIT", 1000)
    with pytest.raises(SystemExit, match="together more than 1,000"):
        script.bundle(pixel_run, "digits", float32=True)
    assert not (script.BUNDLE / "digits").exists()


def test_a_model_without_a_twin_ships_without(
    script: ModuleType,
    pixel_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(self: object) -> None:
        raise ConfigError("no twin of this")

    monkeypatch.setattr(ts.DensityModel, "exact", refuse)
    script.bundle(pixel_run, "digits", float32=True)
    assert "without an exact twin: no twin of this" in capsys.readouterr().out
    assert not has_twin(script.BUNDLE / "digits")


@pytest.mark.parametrize(
    ("value", "cleaned"),
    [
        ("/home/me/data/mnist.npz", "mnist.npz"),
        ("npz:/data/mnist.npz", "npz:mnist.npz"),
        ("--data=npz:/data/mnist.npz", "--data=npz:mnist.npz"),
        ("folder:~/photos/", "folder:photos"),
        ("C:\\data\\x.npz", "x.npz"),
        ("runs/mine", "runs/mine"),
        ("digits", "digits"),
        ("PATH", "PATH"),
        (["train", "/a/b"], ["train", "b"]),
        ({"a": {"b": "/x/y"}}, {"a": {"b": "y"}}),
        (3, 3),
    ],
)
def test_paths_lose_their_folders(script: ModuleType, value: Any, cleaned: Any) -> None:
    assert script.without_folders(value) == cleaned


@pytest.mark.parametrize("text", ["made in /home/me/runs", "on the host called nobody7"])
def test_traces_of_a_machine_are_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(script.platform, "node", lambda: "nobody7")
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(SystemExit, match=r"run\.json names"):
        script.refuse_traces(tmp_path)
    (tmp_path / "run.json").write_text("see https://example.org/a/b, 3 bits/dim, nobody70")
    script.refuse_traces(tmp_path)

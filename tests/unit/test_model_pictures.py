"""Pictures of models that ship: what is on them, and how large they are."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tessella as ts
from tessella.data import ImageSet
from tessella.files import pictures
from tessella.pipeline import fingerprint

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, which writes to a folder of the test."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("model_pictures")
    monkeypatch.setattr(module, "FOLDER", tmp_path / "models")
    return module


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("digits", ["samples", "nearest", "completions"]),
        ("digits-vqvae", ["reconstructions"]),
    ],
)
def test_a_model_has_its_pictures(
    script: ModuleType, capsys: pytest.CaptureFixture[str], name: str, kinds: list[str]
) -> None:
    script.main([name])
    written = {path.stem for path in script.FOLDER.iterdir()}
    assert written == {f"{name}-{kind}" for kind in kinds}
    assert capsys.readouterr().out.count(" bytes") == len(kinds)
    for path in script.FOLDER.iterdir():
        assert path.stat().st_size <= script.LARGEST
        assert pictures.read_made(path)["model"] == fingerprint(ts.load(name))


def test_fewer_images_are_shown_where_they_take_too_much(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noise(count: int) -> list[tuple[str, np.ndarray]]:
        asked.append(count)
        image = np.random.default_rng(0).integers(0, 256, (count * 8, 64, 3))
        return [("noise", image.astype(np.uint8))]

    model = ts.load("digits")
    monkeypatch.setattr(script, "LARGEST", 30_000)
    path = script.draw("x", "noise", noise, model)
    assert asked == [36, 24, 16]
    assert path.stat().st_size <= 30_000
    monkeypatch.setattr(script, "LARGEST", 10)
    with pytest.raises(SystemExit, match="even with four images"):
        script.draw("x", "noise", noise, model)


def test_the_nearest_of_all_chunks_is_among_the_candidates(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    training = generator.integers(0, 256, (23, 3, 2, 1)).astype(np.uint8)
    images = generator.integers(0, 256, (6, 3, 2, 1)).astype(np.uint8)
    monkeypatch.setattr(script, "CHUNK", 5)
    found = script.nearest_candidates(images, ImageSet(training, name="numbers"))
    for image in images.astype(float):
        distances = ((training - image) ** 2).sum((1, 2, 3))
        wanted = training[distances.argmin()]
        assert any(np.array_equal(wanted, candidate) for candidate in found)


def test_images_that_moved_are_looked_for(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = script.data_config(script.locate("digits"))
    moved = script.replace(config, source="npz:mine.npz")
    monkeypatch.setattr(script, "data_config", lambda path: moved)
    monkeypatch.setenv("TESSELLA_TEST_DATA", str(tmp_path))
    assert script.images_of("digits", "").source == "npz:mine.npz"
    (tmp_path / "mine.npz").touch()
    assert script.images_of("digits", "").source == f"npz:{tmp_path / 'mine.npz'}"
    assert script.images_of("digits", "npz:x").source == "npz:x"

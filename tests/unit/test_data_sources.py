"""The table of sources: adding one from outside, naming the wrong one, misspelling a path."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tessella as ts
from tessella import data
from tessella.config import DataConfig
from tessella.data import SOURCES, ImageSet, Part, Source, find_source, load, source_forms
from tessella.errors import ConfigError, DataError, InputError

RANDOM = np.random.default_rng(7)
IMAGES = RANDOM.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def only_the_sources_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SOURCES, "_entries", dict(SOURCES))


def test_a_class_from_outside_is_a_source_like_any_other() -> None:
    @ts.register_source("mine")
    class Mine(ts.Source):
        about = "images of mine"

        def read(self, path: str, split: str, config: DataConfig) -> Part:
            assert path == "some/where"
            return Part(IMAGES, None, (), 256, f"mine, {split}")

    assert ts.SOURCES["mine"] is Mine
    assert (Mine.name, Mine.form) == ("mine", "mine:PATH")
    part = load(DataConfig("mine:some/where"), "valid")
    assert (part.name, part.recipe["split_rule"]) == ("mine:where", "mine, valid")
    np.testing.assert_array_equal(part.images, IMAGES)
    assert "mine:PATH" in source_forms()
    with pytest.raises(DataError, match=r"did you mean 'mine'.*mine:PATH \(images of mine\)"):
        load(DataConfig("mien:x"), "train")


def test_a_function_may_return_plain_arrays() -> None:
    @ts.register_source("plain")
    def read(path: str, split: str, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
        """Images as they are.

        More about them.
        """
        return IMAGES, np.arange(30) * 1000

    assert SOURCES["plain"].about == "Images as they are"
    part = load(DataConfig("plain", channels=1, size="4", limit=7), "train")
    assert part.images.shape == (7, 4, 4, 1)
    assert part.classes == 30
    assert part.label_names[:3] == ("0", "1000", "2000")


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (IMAGES / 255, r"the array of bad is float64 with values 0\.\.1"),
        ((IMAGES > 128).astype(np.uint8), r"values 0\.\.1"),
        (IMAGES.transpose(0, 3, 1, 2), "channels first"),
    ],
)
def test_arrays_of_a_source_from_outside_are_judged_like_those_of_files(
    images: np.ndarray, says: str
) -> None:
    ts.register_source("bad")(lambda path, split, config: images)
    with pytest.raises(InputError, match=says):
        load(DataConfig("bad"), "train")


@pytest.mark.parametrize("name", ["", "a:b", " mine", "npz", 3])
def test_names_that_cannot_be_given_to_a_source(name: object) -> None:
    with pytest.raises(ConfigError, match=r"data source|without ':'"):
        ts.register_source(name)(lambda path, split, config: IMAGES)  # type: ignore[arg-type]


def test_what_is_no_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a class derived from Source or a function"):
        ts.register_source("mine")(5)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="must be a class derived from Source or a function"):
        ts.register_source("mine")(int)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="must define read"):

        @ts.register_source("mine")
        class Unfinished(Source):
            about = "nothing yet"


def test_a_source_says_what_it_allows() -> None:
    allowing = [name for name, kind in SOURCES.items() if kind.allows_all]
    assert allowing == ["folder", "shards", "hf", "archive"]
    with pytest.raises(
        DataError, match=r"digits comes .*\(all is for folder, shards, hf, archive\)"
    ):
        load(DataConfig("digits"), "all")
    with pytest.raises(ConfigError, match=r"data\.bits is for npz:PATH only"):
        load(DataConfig("digits", bits="8x8"), "train")
    for kind in SOURCES.values():
        assert kind.about
        assert kind.form.startswith(kind.name)


def test_codes_are_a_source_that_holds_no_images() -> None:
    kind, path = find_source("codes:codes/photos")
    assert kind.holds_codes
    assert path == "codes/photos"
    with pytest.raises(DataError, match="holds the codes of a tokenizer and no images"):
        load(DataConfig("codes:codes/photos"), "train")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    np.savez(tmp_path / "a.npz", images=IMAGES)
    (tmp_path / "photos").mkdir()
    Image.fromarray(IMAGES[0]).save(tmp_path / "photos/1.png")
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx/train-images-idx3-ubyte").write_bytes(b"")
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar/test_batch").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "right"),
    [("a.npz", "npz"), ("photos", "folder"), ("idx", "mnist"), ("cifar", "cifar10")],
)
def test_a_path_of_another_kind_names_the_source_that_reads_it(
    files: Path, path: str, right: str
) -> None:
    line = re.escape(f"--data {right}:{files / path}")
    for wrong in {"npz", "folder", "mnist", "cifar10"} - {right}:
        with pytest.raises(DataError, match=line):
            load(DataConfig(f"{wrong}:{files / path}"), "train")
    with pytest.raises(DataError, match=re.escape(f"write {right}:{files / path}")):
        load(DataConfig(str(files / path)), "train")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("photo", "photos"), ("phtos", "photos"), ("PHOTOS", "photos"), ("b.npz", "a.npz")],
)
def test_a_path_of_nearly_the_right_name_names_the_near_one(
    files: Path, given: str, meant: str
) -> None:
    if (files / given).exists():
        pytest.skip("this disk knows no case")
    with pytest.raises(DataError, match=re.escape(f"did you mean {files / meant}?")):
        load(DataConfig(f"folder:{files / given}"), "train")


def test_values_that_no_source_can_honour_are_refused_as_they_are_given() -> None:
    for options, says in (
        ({"size": "6x"}, "data.size must be"),
        ({"crop": "tiles"}, "needs data.size"),
        ({"levels": 300}, "data.levels"),
        ({"channels": 2}, "one of 0, 1, 3, 4"),
        ({"limit": "x"}, "data.limit must be a whole number"),
        ({"source": 5}, "data.source must be text"),
    ):
        with pytest.raises(ConfigError, match=says):
            DataConfig(**options)  # type: ignore[arg-type]


def test_sources_are_listed_without_torch() -> None:
    lines = "import sys, tessella; print(*tessella.SOURCES, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*SOURCES, "False"]


def test_an_image_set_is_what_load_gives() -> None:
    assert isinstance(load(DataConfig("digits"), "test"), ImageSet)
    assert set(data.__all__) <= set(dir(data))

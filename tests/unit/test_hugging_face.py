"""The source ``hf:``: Parquet files and saved data sets, without any network."""

from __future__ import annotations

import io
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessella import data
from tessella.config import DataConfig
from tessella.errors import ConfigError, DataError, TessellaWarning

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and no way out."""

    def refuse(*_: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)


def png(number: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels(number)).save(content, "PNG")
    return content.getvalue()


def table(numbers: range, image: str = "image", label: str = "label") -> Any:
    rows = {
        image: [{"bytes": png(number), "path": f"{number}.png"} for number in numbers],
        label: [number % 3 for number in numbers],
    }
    made = datasets.Dataset.from_dict(rows)
    return made.cast_column(image, datasets.Image()).cast_column(
        label, datasets.ClassLabel(names=["red", "green", "blue"])
    )


def load(path: Path, split: str = "train", **options: object) -> data.ImageSet:
    return data.load(DataConfig(f"hf:{path}", **options), split)  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["parquet folder", "saved"])
def test_splits_classes_and_pixels(tmp_path: Path, kind: str, stream: bool) -> None:
    parts = {
        "train": table(range(12)),
        "validation": table(range(12, 16)),
        "test": table(range(16, 19)),
    }
    place = tmp_path / "set"
    if kind == "saved":
        datasets.DatasetDict(parts).save_to_disk(place)
    else:
        place.mkdir()
        for split, part in parts.items():
            part.to_parquet(place / f"{split}-00000-of-00001.parquet")
    for split, numbers in {
        "train": range(12),
        "valid": range(12, 16),
        "test": range(16, 19),
    }.items():
        found = load(place, split, stream=stream)
        assert np.array_equal(np.asarray(found.images), [pixels(number) for number in numbers])
        assert found.labels is not None
        assert found.labels.tolist() == [number % 3 for number in numbers]
        assert found.label_names == ("red", "green", "blue")
    assert len(load(place, "all", stream=stream)) == 19


def test_one_file_is_divided_by_its_rows(tmp_path: Path) -> None:
    table(range(60)).to_parquet(tmp_path / "a.parquet")
    parts = [load(tmp_path / "a.parquet", split) for split in data.SPLITS]
    assert sum(map(len, parts)) == 60
    assert "and the row: 5 % test" in str(parts[0].recipe["split_rule"])


def test_a_table_without_splits(tmp_path: Path) -> None:
    table(range(60)).save_to_disk(tmp_path / "saved")
    lengths = [len(load(tmp_path / "saved", split)) for split in data.SPLITS]
    assert sum(lengths) == 60
    assert min(lengths) >= 1


def test_columns_that_must_be_named(tmp_path: Path) -> None:
    made = table(range(40), "left", "fine")
    made = made.add_column("extra", list(range(40)))
    right = table(range(40, 80), "right", "coarse")
    both = datasets.concatenate_datasets([made, right], axis=1)
    both.save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"2 columns that may hold images; .*data\.columns="):
        load(tmp_path / "saved")
    found = load(tmp_path / "saved", "all", columns="right,coarse")
    assert np.array_equal(found.images[0], pixels(40))
    assert found.labels is not None
    assert found.labels.tolist() == [number % 3 for number in range(40, 80)]
    # Without a name, no label is guessed from several.
    assert load(tmp_path / "saved", "all", columns="left").labels is None
    with pytest.raises(ConfigError, match="names 'middle'; the columns of hf:saved are left"):
        load(tmp_path / "saved", columns="middle")
    with pytest.raises(ConfigError, match=r"data\.columns is for hf:PATH_OR_NAME only"):
        data.load(DataConfig("digits", columns="left"), "train")


def test_labels_that_are_words(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": png(number), "path": None} for number in range(30)],
            "label": ["cat" if number % 2 else "ape" for number in range(30)],
        }
    )
    made.save_to_disk(tmp_path / "saved")
    found = load(tmp_path / "saved", "all")
    assert found.label_names == ("ape", "cat")
    assert found.labels is not None
    assert found.labels.tolist() == [number % 2 for number in range(30)]


def test_rows_that_are_damaged(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict(
        {
            "image": [
                {"bytes": None, "path": "https://example.org/0.png"},
                {"bytes": png(1)[:-20], "path": None},
                *[{"bytes": png(number), "path": None} for number in range(2, 20)],
            ]
        }
    )
    made.save_to_disk(tmp_path / "saved")
    found = load(tmp_path / "saved", "all")
    assert len(found) == 18
    assert found.skipped[0] == "all/00000000: the row holds no image file"
    with pytest.warns(TessellaWarning, match="another image takes its place"):
        streamed = load(tmp_path / "saved", "all", stream=True)
    assert np.array_equal(streamed.images[0], pixels(2))


def test_a_changed_file_is_decoded_again(tmp_path: Path) -> None:
    table(range(8)).to_parquet(tmp_path / "a.parquet")
    first = load(tmp_path / "a.parquet", "all")
    table(range(1, 9)).to_parquet(tmp_path / "a.parquet")
    second = load(tmp_path / "a.parquet", "all")
    assert np.array_equal(first.images[1], second.images[0])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "needs a path"),
        ("./missing/place", "there is no file or folder"),
        ("a/b/c", "there is no file or folder"),
        ("empty", "has no Parquet files"),
        ("note.txt", "is no Parquet file"),
    ],
)
def test_what_is_no_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("hello")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=says):
        data.load(DataConfig(f"hf:{name}"), "train")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install .tessella\[data\]"):
        load(tmp_path)

"""Bulk work in this process: stages, units, what they write, and how they go on."""

from __future__ import annotations

import io
import json
import pickle
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

import tessella as ts
from tessella import bulk
from tessella.bulk.batches import Batch
from tessella.bulk.code_units import CodeUnits
from tessella.bulk.engines import Engine, LocalEngine
from tessella.bulk.items import PictureItems, SeedItems
from tessella.bulk.packing import CompressedPacking, DrawnPacking, TablePacking
from tessella.bulk.ray_engine import RayEngine
from tessella.bulk.unit_folder import make_folder
from tessella.bulk.units import MadeUnit, StageUnits, Units
from tessella.config import DataConfig
from tessella.errors import ArtifactError, ConfigError, DataError, InputError
from tessella.files import pictures
from tessella.storage.code_set import CodesRecord
from tessella.tokenizers.fixed_pieces import encode_in_pieces
from tessella.tokenizers.tokenizer import Symbols

IMAGES = 11


def digits(n: int = IMAGES) -> np.ndarray:
    """Images that a model of the digits can code, ``uint8 [n, 8, 8, 1]``."""
    symbols = np.random.default_rng(0).integers(0, 17, (n, 8, 8, 1))
    return ((510 * symbols + 16) // 32).astype(np.uint8)


def batch_of(images: np.ndarray) -> Batch:
    keys = np.array([f"{number:02d}.png" for number in range(len(images))])
    return {"key": keys, "image": images, "label": np.arange(len(images))}


def in_batches(
    stage: Callable[[Mapping[str, np.ndarray]], Batch], batch: Batch, sizes: Sequence[int]
) -> Batch:
    """What a stage gives for a batch that is cut into others."""
    parts = []
    start = 0
    for size in sizes:
        some = {name: values[start : start + size] for name, values in batch.items()}
        parts.append(stage(some))
        start += size
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


STAGES = {
    "tokenize": bulk.Tokenize("digits-codes"),
    "score": bulk.Score("digits"),
    "compress": bulk.Compress("digits"),
    "compress codes": bulk.Compress("digits-codes"),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_result_does_not_depend_on_the_batch(name: str) -> None:
    stage = STAGES[name]
    batch = batch_of(digits())
    together = stage(batch)
    backwards = {column: values[::-1] for column, values in batch.items()}
    # Another process has the stage without its model.
    again = in_batches(pickle.loads(pickle.dumps(stage)), backwards, (1, 3, 7))
    assert together.keys() == again.keys() >= {"key", "label"}
    for column, values in together.items():
        assert np.array_equal(values[::-1], again[column]), column


def test_a_stage_travels_without_its_model() -> None:
    stage = STAGES["tokenize"]
    stage.loaded()
    assert len(pickle.dumps(stage)) < 1000


def test_codes_are_those_of_the_tokenizer() -> None:
    images = digits()
    model = ts.load("digits-codes", expect=ts.Generator)
    codes = STAGES["tokenize"](batch_of(images))["codes"]
    assert np.array_equal(codes, model.encode(images).numpy())
    assert codes.dtype == np.uint8


def test_images_are_encoded_in_pieces_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ts.load("digits-codes", expect=ts.Generator).tokenizer
    sizes = []
    encode = tokenizer.encode

    def watched(images: np.ndarray) -> Symbols:
        sizes.append(len(images))
        return encode(images)

    monkeypatch.setattr(tokenizer, "encode", watched)
    images = digits(70)
    [codes] = encode_in_pieces(tokenizer, images)
    assert sizes == [64, 64]
    assert np.array_equal(codes.numpy(), encode(images).numpy())


def test_files_and_arrays_give_the_same() -> None:
    images = digits(3)
    contents = np.empty(3, object)
    for number, image in enumerate(images):
        contents[number] = pictures.png(image)
    batch = batch_of(images)
    of_files = {"key": batch["key"], "bytes": contents}
    for stage in STAGES.values():
        from_files = stage(of_files)
        from_arrays = stage(batch)
        for column in from_files:
            assert np.array_equal(from_files[column], from_arrays[column]), column


def test_a_file_is_that_of_the_image_alone() -> None:
    images = digits(3)
    twin = ts.load("digits", expect=ts.Generator).prior.exact()
    files = STAGES["compress"](batch_of(images))["file"]
    for image, data in zip(images, files, strict=True):
        [back] = ts.decompress(data, twin)
        assert np.array_equal(back.numpy(), image)


def test_a_seed_draws_its_image_wherever_it_stands() -> None:
    stage = bulk.Sample("digits", temperature=0.9)
    model = ts.load("digits", expect=ts.Generator)
    seeds = np.array([70, 3, 2**63 + 5], np.uint64)
    drawn = stage({"seed": seeds})["image"]
    for seed, image in zip(seeds.tolist(), drawn, strict=True):
        assert np.array_equal(image, model.sample(1, seed=seed, temperature=0.9)[0].numpy())


def test_batches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="one column of images"):
        STAGES["score"]({"key": np.array(["a"])})
    with pytest.raises(InputError, match="a column seed"):
        bulk.Sample("digits")({"key": np.array(["a"])})
    with pytest.raises(InputError, match="models codes"):
        bulk.Score("digits-codes")(batch_of(digits(1)))
    damaged = np.empty(1, object)
    damaged[0] = b"no image"
    with pytest.raises(DataError, match=r"a\.png"):
        STAGES["tokenize"]({"key": np.array(["a.png"]), "bytes": damaged})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of image files."""
    path = tmp_path / "digits"
    path.mkdir()
    for number, image in enumerate(digits()):
        (path / f"{number:02d}.png").write_bytes(pictures.png(image))
    return path


def contents(out: Path) -> dict[str, bytes]:
    """The files of a folder by name."""
    return {path.name: path.read_bytes() for path in out.iterdir()}


def score_units(folder: Path) -> StageUnits:
    return StageUnits(STAGES["score"], PictureItems([str(folder)]), TablePacking("scores"), 4)


class Stopping(Engine):
    """Makes some units, the last first, and then stops."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked: list[int] = []

    def make(self, units: Units, numbers: Sequence[int]) -> Iterator[MadeUnit]:
        self.asked = list(numbers)
        for number in list(numbers)[::-1][: self.count]:
            yield MadeUnit(number, units.make(number))
        if self.count < len(numbers):
            raise KeyboardInterrupt


def test_resumed_is_uninterrupted(folder: Path, tmp_path: Path) -> None:
    units = score_units(folder)
    straight = make_folder(tmp_path / "straight", "scores", {"model": "a"}, units, LocalEngine())
    assert [file.images for file in straight] == [4, 4, 3]
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        make_folder(out, "scores", {"model": "a"}, units, Stopping(1))
    assert {path.name for path in out.iterdir()} == {
        "made.json",
        "units.jsonl",
        "scores-00002.jsonl",
    }
    done: list[float] = []
    rest = Stopping(2)
    make_folder(out, "scores", {"model": "a"}, units, rest, done.append)
    assert rest.asked == [0, 1]
    assert done == [7, 11]
    assert contents(out) == contents(tmp_path / "straight")


def test_a_damaged_unit_is_made_again(folder: Path, tmp_path: Path) -> None:
    units = score_units(folder)
    out = tmp_path / "out"
    make_folder(out, "scores", {}, units, LocalEngine(1))
    before = contents(out)
    broken = out / "scores-00001.jsonl"
    broken.write_bytes(broken.read_bytes()[:-2] + b" \n")
    again = Stopping(1)
    make_folder(out, "scores", {}, units, again)
    assert again.asked == [1]
    assert contents(out) == before
    # Nothing is left to do.
    nothing = Stopping(0)
    make_folder(out, "scores", {}, units, nothing)
    assert nothing.asked == []


def test_another_job_in_the_same_place_is_refused(folder: Path, tmp_path: Path) -> None:
    units = score_units(folder)
    out = tmp_path / "out"
    make_folder(out, "scores", {"model": "a"}, units, LocalEngine(1))
    with pytest.raises(InputError, match=r"model a \(now b\)"):
        make_folder(out, "scores", {"model": "b"}, units, LocalEngine(1))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="holds something else"):
        make_folder(foreign, "scores", {"model": "a"}, units, LocalEngine(1))
    assert [path.name for path in foreign.iterdir()] == ["letter.txt"]
    with pytest.raises(InputError, match="holds something else"):
        make_folder(out, "compressed files", {"model": "a"}, units, LocalEngine(1))


def test_a_unit_that_nobody_made_is_missed(folder: Path, tmp_path: Path) -> None:
    class Lazy(Engine):
        def make(self, units: Units, numbers: Sequence[int]) -> Iterator[MadeUnit]:
            yield MadeUnit(0, units.make(0))

    with pytest.raises(ArtifactError, match="2 of 3 units are missing"):
        make_folder(tmp_path / "out", "scores", {}, score_units(folder), Lazy())


def test_processes_make_the_same_units(folder: Path, tmp_path: Path) -> None:
    units = score_units(folder)
    make_folder(tmp_path / "one", "scores", {}, units, LocalEngine(1))
    make_folder(tmp_path / "two", "scores", {}, units, LocalEngine(2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_files_that_changed_are_noticed_in_another_process(folder: Path) -> None:
    items = pickle.loads(pickle.dumps(PictureItems([str(folder)])))
    assert len(items.batch(range(2))["bytes"]) == 2
    (folder / "99.png").write_bytes(pictures.png(digits(1)[0]))
    elsewhere = pickle.loads(pickle.dumps(items))
    with pytest.raises(DataError, match="are not those that the job began with"):
        elsewhere.batch(range(2))


def test_codes_of_other_images_are_refused() -> None:
    record: CodesRecord = {"count": 7, "shard_images": 4}
    units = CodeUnits(STAGES["tokenize"], DataConfig("digits", limit=5), "test", record)
    with pytest.raises(DataError, match="5 images here, and 7 where"):
        units.make(0)


def test_archives_hold_each_image_once(folder: Path) -> None:
    units = StageUnits(STAGES["compress"], PictureItems([str(folder)]), CompressedPacking(), 8)
    names = []
    for number in range(len(units)):
        with tarfile.open(fileobj=io.BytesIO(units.make(number))) as archive:
            names += archive.getnames()
    assert names == [f"{number:02d}.png.tsl" for number in range(IMAGES)]


def test_drawn_pictures_are_those_of_a_folder(tmp_path: Path) -> None:
    made = {"model": "a", "seed": 60, "n": 9}
    units = StageUnits(bulk.Sample("digits"), SeedItems(9, 60), DrawnPacking(made), 9)
    with tarfile.open(fileobj=io.BytesIO(units.make(0))) as archive:
        assert archive.getnames()[0] == "00000060.png"
        archive.extractall(tmp_path, filter="data")
    assert pictures.read_made(tmp_path / "00000068.png") == {"model": "a", "seed": 68, "n": 1}


def test_a_line_of_a_table_is_an_object(folder: Path) -> None:
    [first, *_] = score_units(folder).make(0).splitlines()
    values = json.loads(first)
    assert list(values) == ["key", "height", "width", "bits", "bits_per_dim"]
    assert values["bits"] / 64 == pytest.approx(values["bits_per_dim"])


def test_ray_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'pip install "tessella\[ray\]"'):
        RayEngine()

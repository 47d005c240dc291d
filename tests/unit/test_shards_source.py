"""The source ``shards:``: splits, the cache, images decoded as they are needed, and their order."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tessella import data
from tessella.config import DataConfig, Recipe, from_dict
from tessella.data.shards_source import split_of_shard
from tessella.data.streamed_images import StreamedImages
from tessella.errors import ConfigError, DataError, InputError, TessellaWarning
from tessella.training import loop, train_recipe
from tessella.training.examples import WINDOW, Examples, GroupOrder
from tessella.training.read_ahead import ReadAhead


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))


def pixels(number: int, size: int = 4) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)


def png(number: int, size: int = 4) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels(number, size)).save(content, "PNG")
    return content.getvalue()


def write_shard(
    path: Path, numbers: Iterable[int], labels: bool = True, damaged: Iterable[int] = ()
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            content = png(number)
            if number in damaged:
                content = content[:-20]
            members = {"png": content}
            if labels:
                members["cls"] = str(number % 2).encode()
            for extension, member in members.items():
                info = tarfile.TarInfo(f"{number:06}.{extension}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))


def named_set(folder: Path) -> Path:
    """Three shards of train, one each of valid and test."""
    for number in range(3):
        write_shard(folder / f"set-train-{number:06}.tar", range(10 * number, 10 * number + 10))
    write_shard(folder / "set-val-000000.tar", range(100, 104))
    write_shard(folder / "set-test-000000.tar", range(200, 203))
    return folder


def load(path: Path, split: str = "train", **options: object) -> data.ImageSet:
    return data.load(DataConfig(f"shards:{path}", **options), split)  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", [False, True])
def test_shards_named_by_split(tmp_path: Path, stream: bool) -> None:
    folder = named_set(tmp_path / "set")
    for split, numbers in {
        "train": range(30),
        "valid": range(100, 104),
        "test": range(200, 203),
    }.items():
        images = load(folder, split, stream=stream)
        wanted = np.stack([pixels(number) for number in numbers])
        assert np.array_equal(np.asarray(images.images), wanted)
        assert images.labels is not None
        assert images.labels.tolist() == [number % 2 for number in numbers]
        assert images.recipe["split_rule"] == "the names of the shards (test, train, valid)"
        assert np.array_equal(images.hashes(), data.image_hashes(wanted))
    assert len(load(folder, "all", stream=stream)) == 37


@pytest.mark.parametrize("stream", [False, True])
def test_streams_and_the_cache_give_the_same_pixels(tmp_path: Path, stream: bool) -> None:
    folder = named_set(tmp_path / "set")
    images = load(folder, stream=stream, size="3x2", channels=1, limit=7)
    (tmp_path / "files").mkdir()
    for number in range(7):
        (tmp_path / "files" / f"{number}.png").write_bytes(png(number))
    config = DataConfig(f"folder:{tmp_path / 'files'}", size="3x2", channels=1)
    assert np.array_equal(np.asarray(images.images), np.asarray(data.load(config, "all").images))


def test_names_and_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = named_set(tmp_path / "set")
    first = load(folder, "test")
    assert first.names == tuple(f"set-test-000000/{number:06}.png" for number in range(200, 203))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("tessella.data.encoded_split.decode_files", refuse)
    assert load(folder, "test").identity() == first.identity()
    # A changed shard is decoded again, and so is another split of the same size.
    with pytest.raises(AssertionError, match="decoded again"):
        load(folder, "train")
    write_shard(folder / "set-test-000000.tar", range(201, 204))
    with pytest.raises(AssertionError, match="decoded again"):
        load(folder, "test")


def test_splits_by_key_are_those_of_a_folder(tmp_path: Path) -> None:
    write_shard(tmp_path / "set" / "a.tar", range(40))
    write_shard(tmp_path / "set" / "b.tar", range(40, 90))
    keys = [f"{number:06}" for number in range(90)]
    for split in data.SPLITS:
        wanted = [n for n, part in enumerate(data.splits.by_hash(keys)) if part == split]
        images = load(tmp_path / "set", split, stream=True)
        assert np.array_equal(np.asarray(images.images), [pixels(number) for number in wanted])


def test_valid_is_taken_from_train_where_it_is_missing(tmp_path: Path) -> None:
    for number in range(3):
        write_shard(tmp_path / f"a-train-{number}.tar", range(30 * number, 30 * number + 30))
    train = load(tmp_path, "train", stream=True)
    valid = load(tmp_path, "valid", stream=True)
    assert len(train) + len(valid) == 90
    assert len(valid) > 0
    assert not np.isin(train.hashes(), valid.hashes()).any()
    assert "valid: 10% of train" in str(train.recipe["split_rule"])
    with pytest.raises(DataError, match="no images for split 'test'"):
        load(tmp_path, "test")


def test_only_some_names_with_a_split(tmp_path: Path) -> None:
    named_set(tmp_path)
    write_shard(tmp_path / "more.tar", range(3))
    with pytest.raises(DataError, match=r"that of .*more\.tar does not"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("imagenet-train-000001", "train"),
        ("test-set-validation-000001", "valid"),
        ("coco_val2017_0001", "valid"),
        ("mytest-000", ""),
        ("00000", ""),
    ],
)
def test_split_of_a_name(name: str, split: str) -> None:
    assert split_of_shard(name) == split


def test_class_names_come_from_the_manifest(tmp_path: Path) -> None:
    folder = named_set(tmp_path)
    (folder / "shards.json").write_text(json.dumps({"classes": ["even", "odd"]}))
    assert load(folder).label_names == ("even", "odd")
    (folder / "shards.json").write_text(json.dumps({"classes": ["even"]}))
    with pytest.raises(DataError, match=r"names 1 classes"):
        load(folder)


def test_damaged_images_in_a_stream(tmp_path: Path) -> None:
    write_shard(tmp_path / "a-train-0.tar", range(30), damaged=(0, 3, 5, 29))
    write_shard(tmp_path / "a-valid-0.tar", range(30, 34))
    write_shard(tmp_path / "a-test-0.tar", range(34, 36))
    with pytest.warns(TessellaWarning, match=r"another image takes its place"):
        images = load(tmp_path, stream=True)
    found = np.asarray(images.images)
    # The next whole one of the same label, around the end.
    for damaged, other in {0: 2, 3: 7, 5: 7, 29: 1}.items():
        assert np.array_equal(found[damaged], pixels(other)), damaged
    assert isinstance(images.images, StreamedImages)
    assert set(images.images.damaged) == {f"a-train-0/{number:06}.png" for number in (0, 3, 5, 29)}
    # Whatever the order in which they are read.
    with pytest.warns(TessellaWarning):
        again = load(tmp_path, stream=True).images
    with ThreadPoolExecutor(4) as pool:
        backwards = list(pool.map(again.__getitem__, range(29, -1, -1)))
    assert np.array_equal(np.stack(backwards[::-1]), found)
    cached = load(tmp_path)
    assert len(cached) == 26
    assert len(cached.skipped) == 4


@pytest.mark.filterwarnings("ignore:.*another image takes its place")
@pytest.mark.parametrize("stream", [False, True])
def test_too_many_damaged_images(tmp_path: Path, stream: bool) -> None:
    write_shard(tmp_path / "a-train-0.tar", range(20), damaged=range(10, 15))

    def read_all() -> np.ndarray:
        return np.asarray(load(tmp_path, "all", stream=stream).images)

    with pytest.raises(DataError, match="at least 5 of 20 .* are unusable"):
        read_all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"crop": "tiles", "size": "2"}, r"leave out data\.stream"),
        ({"binarize": "dynamic"}, r"data\.binarize does not go with"),
        ({"source": "digits"}, r"is for shards:PATTERN"),
    ],
)
def test_what_streams_refuse(tmp_path: Path, options: dict[str, str], says: str) -> None:
    named_set(tmp_path)
    with pytest.raises(ConfigError, match=says):
        data.load(DataConfig(**({"source": f"shards:{tmp_path}"} | options), stream=True), "train")


def test_sizes_that_differ_in_a_stream(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(4):
            content = png(number, size=4 + number // 3)
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    images = load(tmp_path, "all", stream=True)
    with pytest.raises(InputError, match=r"a/3\.png 5 wide and 5 high; set data\.size"):
        images.images[:]


def test_a_stream_survives_pickling(tmp_path: Path) -> None:
    images = load(named_set(tmp_path), stream=True).images
    again = pickle.loads(pickle.dumps(images))
    assert np.array_equal(again[3:5], images[3:5])
    assert again.sha256 == images.sha256


def groups_of(sizes: Iterable[int]) -> list[int]:
    return [0, *np.cumsum(list(sizes)).tolist()]


@pytest.mark.parametrize("batch", [1, 7, 64, 500])
@pytest.mark.parametrize("sizes", [[10], [3, 50, 1, 20, 20, 7], [25] * 9])
def test_every_example_once_an_epoch(sizes: list[int], batch: int) -> None:
    n = sum(sizes)
    order = GroupOrder(groups_of(sizes), batch, seed=3)
    seen = torch.cat([order.at(step) for step in range(-(-3 * n // batch))])
    assert len({len(order.at(step)) for step in range(4)}) == 1
    epochs = [seen[epoch * n : (epoch + 1) * n].tolist() for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    assert epochs[0] != epochs[1]
    # A pure function of the step: a resumed run asks for the last one first.
    fresh = GroupOrder(groups_of(sizes), batch, seed=3)
    step = len(seen) // batch - 1
    assert fresh.at(step).tolist() == seen[step * batch : (step + 1) * batch].tolist()
    other = GroupOrder(groups_of(sizes), n, seed=4)
    assert other.at(0).tolist() != epochs[0]


def test_a_batch_comes_from_a_few_shards() -> None:
    order = GroupOrder(groups_of([100] * 50), 50, seed=0)
    shards: Counter[int] = Counter()
    for step in range(2 * WINDOW):
        touched = set((order.at(step) // 100).tolist())
        assert len(touched) <= WINDOW
        shards.update(touched)
    assert len(shards) == WINDOW
    # Mixed, not one shard after another.
    assert len(set((order.at(0) // 100).tolist())) == WINDOW


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_ranks_and_workers_share_one_order(workers: int, world: int) -> None:
    images = torch.arange(90, dtype=torch.uint8).view(90, 1, 1, 1)
    examples = Examples([images])
    readers = []
    for rank in range(world):
        order = GroupOrder(groups_of([30, 50, 10]), 12, seed=0)
        reader = ReadAhead(examples, order, passes=3, rank=rank, world=world, workers=workers)
        readers.append(reader)
    wanted = GroupOrder(groups_of([30, 50, 10]), 12, seed=0)
    # From the middle of an epoch, as a resumed run does, and past its end.
    for step in range(5, 12):
        seen = []
        for reader in readers:
            for indices, read in reader.step(step):
                x, _ = examples.batch(indices, torch.Generator(), torch.device("cpu"), read=read)
                assert (read is None) == (workers == 0)
                seen += x.flatten().tolist()
        assert seen == images.flatten()[wanted.at(step)].tolist()
    for reader in readers:
        reader.close()


def test_a_fault_while_reading_ahead_stops_the_step_that_needs_it() -> None:
    class Broken(Examples):
        def read(self, indices: torch.Tensor) -> list[torch.Tensor]:
            if 7 in indices:
                raise DataError("the disk is gone")
            return super().read(indices)

    class Rising:
        def at(self, step: int) -> torch.Tensor:
            return torch.arange(2 * step, 2 * step + 2)

    broken = Broken([torch.zeros(20, 1, 1, 1, dtype=torch.uint8)])
    reader = ReadAhead(broken, Rising(), passes=1, rank=0, world=1, workers=2)
    for step in range(3):
        list(reader.step(step))
    with pytest.raises(DataError, match="the disk is gone"):
        list(reader.step(3))
    reader.close()


def recipe(folder: Path, **options: object) -> Recipe:
    values = {
        "data": {"source": f"shards:{folder}", "stream": True, "flip": True},
        "model": {"name": "gated-pixelcnn", "layers": 1, "hidden": 6},
        "train": {"steps": 9, "batch": 8, "validate_every": 3, "device": "cpu", **options},
    }
    return from_dict(Recipe, values)


def test_training_on_a_stream_with_any_number_of_workers_and_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = named_set(tmp_path / "set")

    def quiet(line: str) -> None:
        del line

    train_recipe(recipe(folder), tmp_path / "a", say=quiet)
    train_recipe(recipe(folder, workers=2), tmp_path / "b", say=quiet)
    # Stopped in the middle of an epoch, and resumed with another number of threads.
    report = loop._report_step

    def stop(session: loop.Session, *rest: object) -> None:
        if session.progress.step == 5:
            session.stop.set()
        report(session, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_report_step", stop)
        train_recipe(recipe(folder, workers=1), tmp_path / "c", say=quiet)
    train_recipe(recipe(folder, workers=2), tmp_path / "c", resume=True, say=quiet)
    wanted = (tmp_path / "a" / "model.safetensors").read_bytes()
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == wanted
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == wanted


def test_what_is_as_long_as_the_set_lies_on_the_disk(tmp_path: Path) -> None:
    images = load(named_set(tmp_path), stream=True)
    assert isinstance(images.labels, np.memmap)
    assert images.names is None
    # A change of the array in memory does not reach the file.
    images.labels[0] = 7
    again = load(tmp_path, stream=True)
    assert again.labels is not None
    assert again.labels[0] == 0

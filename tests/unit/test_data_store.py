"""Decoded images in a file: indexing as numpy does it, entries that are whole or not there, one
maker among many."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessella.config import DataConfig
from tessella.data import ImageSet, decoded_cache, load
from tessella.data.decoded_cache import StoredImages, Writer, cache_folder, cached_images, digest
from tessella.data.hashes import image_hashes
from tessella.errors import DataError

IMAGES = np.random.default_rng(7).integers(0, 256, (11, 4, 5, 3), dtype=np.uint8)
NAMES = [f"{i:02}.png" for i in range(12)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def make(writer: Writer) -> dict[str, Any]:
    for image in IMAGES:
        writer.append(image)
    return {"note": "kept"}


def images() -> StoredImages:
    return cached_images("request", "contents", make)[0]


def fill(root: Path, names: list[str] = NAMES) -> dict[str, np.ndarray]:
    random = np.random.default_rng(len(names))
    pixels = {name: random.integers(0, 256, (4, 5, 3), dtype=np.uint8) for name in names}
    root.mkdir(parents=True, exist_ok=True)
    for name, image in pixels.items():
        Image.fromarray(image).save(root / name)
    return pixels


def of(root: Path, **options: Any) -> ImageSet:
    return load(DataConfig(f"folder:{root}", **options), "train")


MASK = np.arange(11) % 3 == 1
INDICES: list[Any] = [
    0,
    -1,
    np.int64(4),
    slice(None),
    slice(2, 5),
    slice(-3, None),
    slice(None, None, -1),
    slice(9, 1, -3),
    slice(5, 2),
    slice(0, 100),
    [],
    [3],
    [4, 5, 6, 0, -1, -1, 2],
    np.array([10, 9, 8]),
    np.array([[0, 1], [-2, 5]], np.int32),
    np.array([], np.int64),
    MASK,
    MASK.tolist(),
    np.zeros(11, bool),
    range(1, 9, 2),
]


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_every_index_gives_what_numpy_gives(index: Any) -> None:
    expected = IMAGES[
        index if not isinstance(index, (list, range)) or len(index) else np.array([], int)
    ]
    found = images()[index]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    found[...] = 0  # fresh memory, not the file
    np.testing.assert_array_equal(images()[:], IMAGES)


@pytest.mark.parametrize(
    "index", [11, -12, [0, 11], [-12], np.zeros(10, bool), 1.0, [0.5], None, ..., True, (0, 1)]
)
def test_other_indices_are_refused(index: Any) -> None:
    with pytest.raises(IndexError):
        images()[index]


def test_it_looks_like_an_array() -> None:
    there = images()
    assert (there.shape, there.dtype, there.ndim, len(there)) == (IMAGES.shape, np.uint8, 4, 11)
    np.testing.assert_array_equal(np.asarray(there), IMAGES)
    assert np.asarray(there, dtype=np.float32).dtype == np.float32
    assert [image.shape for image in there] == [(4, 5, 3)] * 11  # type: ignore[attr-defined]
    assert str(there.path) in repr(there)


def test_digest_and_hashes_are_those_of_the_pixels() -> None:
    there = images()
    assert there.sha256 == hashlib.sha256(IMAGES.tobytes()).hexdigest()
    np.testing.assert_array_equal(there.hashes, image_hashes(IMAGES))
    expected = [
        int.from_bytes(hashlib.blake2b(i.tobytes(), digest_size=8).digest(), "little")
        for i in IMAGES
    ]
    assert image_hashes(IMAGES[:, :, ::-1][:, :, ::-1]).tolist() == expected
    assert image_hashes(IMAGES[:0]).shape == (0,)


def test_neighbours_are_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    there, lengths, read = images(), [], os.preadv

    def counted(file: int, views: list[memoryview], offset: int) -> int:
        lengths.append(len(views[0]))
        return read(file, views, offset)

    monkeypatch.setattr(os, "preadv", counted)
    there[2:9]
    there[[7, 8, 9, 0, 1, 5]]
    assert lengths == [7 * 60, 3 * 60, 2 * 60, 60]


def test_reads_of_any_length_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_cache, "CHUNK", 7)
    np.testing.assert_array_equal(images()[[3, 4, 9]], IMAGES[[3, 4, 9]])


def test_threads_read_at_once() -> None:
    there = images()
    orders = [np.random.default_rng(seed).permutation(11) for seed in range(64)]
    with ThreadPoolExecutor(4) as pool:
        for order, found in zip(orders, pool.map(there.__getitem__, orders), strict=True):
            np.testing.assert_array_equal(found, IMAGES[order])


def test_it_survives_pickling_and_forking() -> None:
    there = images()
    again = pickle.loads(pickle.dumps(there))
    assert len(pickle.dumps(there)) < 1000
    np.testing.assert_array_equal(again[[1, 10]], IMAGES[[1, 10]])
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
    else:
        os._exit(int((there[:] != IMAGES).any()))
    np.testing.assert_array_equal(there[:], IMAGES)


def test_files_are_closed() -> None:
    for _ in range(3):
        images()
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for _ in range(20):
        images()[0]
    after = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    assert after <= before + 1


def test_a_file_that_is_cut_while_open_is_named() -> None:
    there = images()
    os.truncate(there.path, 300)
    np.testing.assert_array_equal(there[:5], IMAGES[:5])
    with pytest.raises(DataError, match=rf"{there.path} .*delete it"):
        there[4:7]


def test_a_missing_file_is_named_when_it_is_reopened() -> None:
    there = images()
    kept = pickle.dumps(there)
    there.path.unlink()
    np.testing.assert_array_equal(there[0], IMAGES[0])  # still open
    with pytest.raises(DataError, match=str(there.path)):
        pickle.loads(kept)


def test_an_entry_is_made_once() -> None:
    calls = []

    def counted(writer: Writer) -> Mapping[str, Any]:
        calls.append(1)
        return make(writer)

    for _ in range(3):
        found, facts = cached_images("request", "contents", counted)
        assert facts["note"] == "kept"
        np.testing.assert_array_equal(found[:], IMAGES)
    assert len(calls) == 1


def spoil(cache: Path, how: str) -> None:
    pixels, facts = next(cache.glob("*.u8")), next(cache.glob("*.json"))
    if how == "cut":
        os.truncate(pixels, 500)
    elif how == "longer":
        pixels.write_bytes(pixels.read_bytes() + b"x")
    elif how == "no pixels":
        pixels.unlink()
    elif how == "no facts":
        facts.unlink()
    elif how == "half facts":
        facts.write_text(facts.read_text()[:40])
    else:
        facts.write_text(json.dumps({"shape": [1]}))


@pytest.mark.parametrize(
    "how", ["cut", "longer", "no pixels", "no facts", "half facts", "other facts"]
)
def test_an_entry_that_is_not_whole_is_made_anew(cache: Path, how: str) -> None:
    images()
    spoil(cache, how)
    np.testing.assert_array_equal(images()[:], IMAGES)
    assert sorted(path.suffix for path in cache.iterdir() if path.suffix != ".lock") == [
        ".json",
        ".u8",
    ]


def test_a_maker_that_fails_leaves_nothing(cache: Path) -> None:
    def fail(writer: Writer) -> dict[str, Any]:
        writer.append(IMAGES[0])
        raise DataError("as it comes")

    with pytest.raises(DataError, match="as it comes"):
        cached_images("request", "contents", fail)
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_a_full_disk_is_named_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=rf"{cache}: No space left on device; set TESSELLA_CACHE"):
        images()
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=rf"{tmp_path / 'file'}.*TESSELLA_CACHE"):
        images()


def test_what_a_killed_process_left_is_swept(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / ".request-old.u8.partial").write_bytes(b"half")
    images()
    assert not list(cache.glob("*.partial")) + list(cache.glob(".*.partial"))


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", "~/here")
    assert cache_folder() == Path.home() / "here" / "images"
    monkeypatch.delenv("TESSELLA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/tessella/images")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "tessella" / "images"


def test_threads_and_processes_wait_for_the_one_that_makes(cache: Path) -> None:
    calls = []

    def slow(writer: Writer) -> dict[str, Any]:
        calls.append(threading.get_ident())
        time.sleep(0.1)
        return make(writer)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: cached_images("request", "contents", slow)[0][:], range(4)))
    assert len(calls) == 1
    for each in found:
        np.testing.assert_array_equal(each, IMAGES)


def test_two_processes_decode_once(tmp_path: Path) -> None:
    fill(tmp_path / "x")
    code = """
import sys, time
from tessella.config import DataConfig
from tessella.data import image_files, load

open_image = image_files.open_image

def noted(file):
    open(sys.argv[2], "a").write(".")
    time.sleep(0.01)
    return open_image(file)

image_files.open_image = noted
print(load(DataConfig("folder:" + sys.argv[1]), "train").identity()["sha256"])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "x"), str(tmp_path / "calls")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0] == said[1] != ""
    assert len((tmp_path / "calls").read_text()) == len(of(tmp_path / "x"))


def test_a_folder_is_read_from_its_file(tmp_path: Path) -> None:
    pixels = fill(tmp_path / "x")
    first, second = of(tmp_path / "x"), of(tmp_path / "x")
    assert isinstance(first.images, StoredImages)
    assert isinstance(second.images, StoredImages)
    assert first.images.path == second.images.path
    assert (first.names, first.identity()) == (second.names, second.identity())
    np.testing.assert_array_equal(second.images[:], [pixels[name] for name in second.names or ()])
    assert first.identity()["sha256"] == hashlib.sha256(first.images[:].tobytes()).hexdigest()
    np.testing.assert_array_equal(first.hashes(), image_hashes(first.images[:]))
    np.testing.assert_array_equal(ImageSet(first.images[:]).hashes(), first.hashes())


def test_labels_and_skipped_files_come_back(tmp_path: Path) -> None:
    fill(tmp_path / "x" / "a")
    fill(tmp_path / "x" / "b")
    (tmp_path / "x" / "a" / "notes.txt").write_text("no image")
    first, second = of(tmp_path / "x"), of(tmp_path / "x")
    assert first.labels is not None
    assert second.labels is not None
    assert first.labels.tolist() == second.labels.tolist()
    assert second.labels.dtype == np.int64
    assert second.label_names == ("a", "b")
    assert first.skipped == second.skipped == ("a/notes.txt: not an image",)


@pytest.mark.parametrize("change", ["added", "removed", "rewritten", "touched", "foreign"])
def test_a_change_of_the_folder_makes_a_new_entry_and_drops_the_old(
    tmp_path: Path, cache: Path, change: str
) -> None:
    root = tmp_path / "x"
    fill(root)
    before = of(root)
    file = root / (before.names or ())[0]
    if change == "added":
        fill(root, ["new.png"])
    elif change == "removed":
        file.unlink()
    elif change == "rewritten":
        Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(file)
    elif change == "touched":
        os.utime(file, ns=(1, 1))
    else:
        (root / "notes.txt").write_text("no image")
    after = of(root)
    assert isinstance(before.images, StoredImages)
    assert isinstance(after.images, StoredImages)
    assert before.images.path != after.images.path
    assert [path.name for path in cache.glob("*.u8")] == [after.images.path.name]
    before.images[0]  # whoever has the old one open keeps it
    if change == "rewritten":
        assert not after.images[0].any()


@pytest.mark.parametrize("options", [{"size": "4"}, {"channels": 1}, {"limit": 3}])
def test_other_pixels_are_another_entry(
    tmp_path: Path, cache: Path, options: dict[str, Any]
) -> None:
    fill(tmp_path / "x")
    plain, other = of(tmp_path / "x"), of(tmp_path / "x", **options)
    assert plain.images.shape != other.images.shape
    assert len(list(cache.glob("*.u8"))) == 2


def test_options_that_leave_the_pixels_alone_share_an_entry(tmp_path: Path, cache: Path) -> None:
    fill(tmp_path / "x")
    for options in ({}, {"flip": True}, {"levels": 16}, {"crop": "squash"}, {"channels": 3}):
        of(tmp_path / "x", **options)
    assert len(list(cache.glob("*.u8"))) == 1


def test_a_binarized_folder_is_an_array(tmp_path: Path) -> None:
    fill(tmp_path / "x")
    drawn = of(tmp_path / "x", binarize="fixed")
    assert isinstance(drawn.images, np.ndarray)
    assert set(np.unique(drawn.images)) == {0, 255}
    assert isinstance(of(tmp_path / "x", binarize="dynamic").images, StoredImages)


def test_digests_tell_facts_apart() -> None:
    assert digest("a", 1) == digest("a", 1) != digest("a1")

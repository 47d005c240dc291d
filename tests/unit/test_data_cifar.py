"""CIFAR-10's python batches, written here in the official layout, and pickles that must not run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella.config import DataConfig
from tessella.data import load
from tessella.data.cifar import NAMES, TRAIN_FILES, read_batch
from tessella.errors import DataError

RANDOM = np.random.default_rng(3)


def batch(count: int, keys: type = bytes) -> dict[Any, Any]:
    fields = {
        "batch_label": b"training batch 1 of 5",
        "labels": [int(i % 10) for i in range(count)],
        "data": RANDOM.integers(0, 256, (count, 3072), dtype=np.uint8),
        "filenames": [b"a.png"] * count,
    }
    return {(key.encode() if keys is bytes else key): value for key, value in fields.items()}


def pixels(data: np.ndarray) -> np.ndarray:
    """The layout in words: 1,024 red values row by row, then green, then blue."""
    images = np.empty((len(data), 32, 32, 3), np.uint8)
    for channel in range(3):
        for row in range(32):
            start = 1024 * channel + 32 * row
            images[:, row, :, channel] = data[:, start : start + 32]
    return images


BATCHES = {name: batch(8) for name in (*TRAIN_FILES, "test_batch")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("cifar")
    inside = parent / "cifar-10-batches-py"
    inside.mkdir()
    for name, content in BATCHES.items():
        (inside / name).write_bytes(pickle.dumps(content, protocol=2))
    with tarfile.open(parent / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(inside, "cifar-10-batches-py")
    return parent


@pytest.mark.parametrize("path", ["", "cifar-10-batches-py", "cifar-10-python.tar.gz"])
def test_folder_parent_and_archive(folder: Path, path: str) -> None:
    config = DataConfig(f"cifar10:{folder / path}")
    parts = {split: load(config, split) for split in ("train", "valid", "test")}
    train = pixels(np.concatenate([BATCHES[name][b"data"] for name in TRAIN_FILES]))
    np.testing.assert_array_equal(parts["train"].images, train[:36])
    np.testing.assert_array_equal(parts["valid"].images, train[36:])
    np.testing.assert_array_equal(parts["test"].images, pixels(BATCHES["test_batch"][b"data"]))
    assert parts["test"].labels is not None
    assert parts["test"].labels.tolist() == BATCHES["test_batch"][b"labels"]
    assert parts["test"].label_names == NAMES
    assert parts["test"].levels == 256


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("keys", [bytes, str])
def test_every_old_protocol(protocol: int, keys: type) -> None:
    content = batch(3, keys)
    data = content[b"data" if keys is bytes else "data"]
    images, labels = read_batch(pickle.dumps(content, protocol=protocol), "x")
    np.testing.assert_array_equal(images, pixels(data))
    assert labels.tolist() == [0, 1, 2]


def test_a_pickle_as_python_2_wrote_it() -> None:
    """The opcodes of the official files, by hand: byte strings are ``U``/``T``, numpy is
    ``numpy.core``."""
    data = RANDOM.integers(0, 256, (2, 3072), dtype=np.uint8)
    raw = data.tobytes()
    content = (
        b"\x80\x02}(U\x06labels](K\x06K\x09eU\x04data"
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tbu."
    )
    images, labels = read_batch(content, "data_batch_1")
    np.testing.assert_array_equal(images, pixels(data))
    assert labels.tolist() == [6, 9]


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps({b"data": Bomb(tmp_path / "ran"), b"labels": []}, protocol=protocol)
    with pytest.raises(DataError, match=r"refused.*\.system"):
        read_batch(content, "data_batch_1")
    assert not (tmp_path / "ran").exists()
    pickle.loads(content)  # the same bytes do run elsewhere, so the refusal above means something
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(S'x'\ntR.",
        b"c_codecs\nencode\n(S'x'\nS'zlib'\ntR.",
        b"c_codecs\ndecode\n(S'x'\nS'zlib'\ntR.",
        b"Pid\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"",
        b"garbage",
        b"\x80\x02}q\x01(U\x06",
    ],
)
def test_other_pickles_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="refused or damaged"):
        read_batch(content, "x")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({b"data": np.zeros((3, 3072), np.int64)}, "unsigned bytes"),
        ({b"data": np.zeros((3, 3071), np.uint8)}, r"\[n, 3072\]"),
        ({b"data": np.asfortranarray(np.zeros((3, 3072), np.uint8))}, "row-major"),
        ({b"data": np.array([None] * 3)}, "unsigned bytes"),
        ({b"data": [1, 2]}, "uint8 array"),
        ({b"labels": [0, 1]}, "labels must be a list of 3"),
        ({b"labels": [0, 1, 10]}, "labels must be"),
        ({b"labels": [0, 1, "x"]}, "labels must be"),
    ],
)
def test_wrong_contents(change: dict[bytes, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_batch(pickle.dumps(batch(3) | change, protocol=2), "x")


def test_other_data_sets_list_their_keys() -> None:
    with pytest.raises(DataError, match="holds a list, not a dict"):
        read_batch(pickle.dumps([1], protocol=2), "x")
    with pytest.raises(DataError, match="has data, fine_labels"):
        read_batch(
            pickle.dumps({b"fine_labels": [0], b"data": np.zeros((1, 3072), np.uint8)}, protocol=2),
            "x",
        )


def test_missing_and_damaged(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(b"x")
    with pytest.raises(DataError, match=r"has no data_batch_2, .*it holds data_batch_1"):
        load(DataConfig(f"cifar10:{tmp_path}"), "train")
    content = (folder / "cifar-10-python.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="not an intact"):
        load(DataConfig(f"cifar10:{tmp_path / 'cut.tar.gz'}"), "test")
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("readme"), io.BytesIO())
    with pytest.raises(DataError, match="holds no test_batch"):
        load(DataConfig(f"cifar10:{tmp_path / 'other.tar.gz'}"), "test")
    with pytest.raises(DataError, match="not an intact"):
        load(DataConfig(f"cifar10:{tmp_path / 'data_batch_1'}"), "train")

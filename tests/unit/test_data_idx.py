"""The idx files of MNIST, written here byte by byte."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from tessella.config import DataConfig
from tessella.data import load
from tessella.errors import DataError, InputError

RANDOM = np.random.default_rng(2)
TRAIN, TEST = (
    RANDOM.integers(0, 256, (40, 5, 6), dtype=np.uint8),
    RANDOM.integers(0, 256, (9, 5, 6), dtype=np.uint8),
)
TRAIN_LABELS, TEST_LABELS = np.arange(40) % 10, np.arange(9)


def idx(array: np.ndarray) -> bytes:
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def flipped(content: bytes, place: int) -> bytes:
    """The content with one bit changed."""
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def files() -> dict[str, bytes]:
    return {
        "train-images-idx3-ubyte": idx(TRAIN),
        "train-labels-idx1-ubyte": idx(TRAIN_LABELS),
        "t10k-images-idx3-ubyte": idx(TEST),
        "t10k-labels-idx1-ubyte": idx(TEST_LABELS),
    }


def write(folder: Path, contents: dict[str, bytes]) -> DataConfig:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return DataConfig(f"mnist:{folder}")


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_the_four_files(tmp_path: Path, dotted: bool, zipped: bool) -> None:
    contents = {
        name.replace("-idx", ".idx" if dotted else "-idx")
        + (".gz" if zipped else ""): gzip.compress(content) if zipped else content
        for name, content in files().items()
    }
    config = write(tmp_path, contents)
    parts = {split: load(config, split) for split in ("train", "valid", "test")}
    np.testing.assert_array_equal(parts["train"].images, TRAIN[:36, ..., None])
    np.testing.assert_array_equal(parts["valid"].images, TRAIN[36:, ..., None])
    np.testing.assert_array_equal(parts["test"].images, TEST[..., None])
    assert [part.labels.tolist() for part in parts.values() if part.labels is not None] == [
        TRAIN_LABELS[:36].tolist(),
        TRAIN_LABELS[36:].tolist(),
        TEST_LABELS.tolist(),
    ]
    assert parts["train"].label_names == tuple("0123456789")


def test_valid_is_the_last_5000(tmp_path: Path) -> None:
    contents = files() | {
        "train-images-idx3-ubyte": idx(np.zeros((60_000, 1, 1))),
        "train-labels-idx1-ubyte": idx(np.arange(60_000) % 10),
    }
    config = write(tmp_path, contents)
    assert [len(load(config, split)) for split in ("train", "valid")] == [55_000, 5_000]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t10k-images-idx3-ubyte", idx(TEST)[:-1], "should hold 270 values .9x5x6.*only 269"),
        ("t10k-images-idx3-ubyte", idx(TEST) + b"x", "should hold 270 values .*has more"),
        ("t10k-images-idx3-ubyte", idx(TEST)[:9], "cut short"),
        ("t10k-images-idx3-ubyte", b"", "cut short"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((2, 2, 2, 2))), "magic number 0x00000804"),
        (
            "t10k-images-idx3-ubyte",
            idx(TEST_LABELS) + bytes(8),
            r"magic number 0x00000801 \(labels\), expected 0x00000803",
        ),
        ("t10k-images-idx3-ubyte", idx(np.zeros((9, 0, 6))), "without pixels"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(8)), "9 t10k images have 8 labels"),
        ("t10k-images-idx3-ubyte", gzip.compress(idx(TEST), mtime=0)[:-12], "damaged"),
        ("t10k-images-idx3-ubyte", flipped(gzip.compress(idx(TEST), mtime=0), 100), "damaged.*CRC"),
    ],
    ids=[
        "cut",
        "long",
        "cut-head",
        "empty",
        "dimensions",
        "labels",
        "no-pixels",
        "counts",
        "gz-cut",
        "gz-flipped",
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says):
        load(write(tmp_path, files() | {name: content}), "test")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    config = write(
        tmp_path, {name: content for name, content in files().items() if name.startswith("train")}
    )
    assert len(load(config, "train")) == 36
    with pytest.raises(DataError, match=r"no file t10k-images-idx3-ubyte.*train-images-idx3-ubyte"):
        load(config, "test")
    with pytest.raises(DataError, match="takes the folder"):
        load(DataConfig(f"mnist:{tmp_path / 'train-images-idx3-ubyte'}"), "train")
    with pytest.raises(DataError, match="there is no file or folder"):
        load(DataConfig(f"mnist:{tmp_path / 'missing'}"), "train")


def test_binary_images_stored_as_0_and_1_are_refused(tmp_path: Path) -> None:
    binary = RANDOM.integers(0, 2, (40, 5, 6), dtype=np.uint8)
    config = write(tmp_path, files() | {"train-images-idx3-ubyte": idx(binary)})
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte is uint8 with values 0\.\.1"):
        load(config, "train")
    meant = DataConfig(config.source, levels=256)
    np.testing.assert_array_equal(load(meant, "valid").images, binary[36:, ..., None])


def test_test_labels_that_training_lacks_are_refused(tmp_path: Path) -> None:
    contents = files() | {"t10k-labels-idx1-ubyte": idx(np.arange(9) + 4)}
    config = write(tmp_path, contents)
    for split in ("train", "valid", "test"):
        with pytest.raises(InputError, match="split test has labels that train lacks.*10, 11, 12"):
            load(config, split)
    # The training files alone can still be read.
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    assert len(load(config, "train")) == 36

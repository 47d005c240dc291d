"""Files and requests that claim more memory than they justify are refused before it is taken."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tessella.config import DataConfig
from tessella.data import cifar, limits, load
from tessella.data.cifar import read_batch
from tessella.data.idx import read_idx
from tessella.errors import ConfigError, DataError, InputError

MEGABYTE = 1 << 20


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Fails where more than ``size`` bytes were held at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= size, f"{peak:,} bytes"


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits at which a bomb is made quickly."""
    monkeypatch.setattr(limits, "FREE_BYTES", MEGABYTE)


def test_an_npz_bomb_is_refused_by_the_directory_of_its_archive(
    tmp_path: Path, small_limits: None
) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((50, MEGABYTE, 1, 1), np.uint8))
    with (
        at_most(2 * MEGABYTE),
        pytest.raises(DataError, match=r"52,428,928 bytes of memory, out of a file of \d\d,"),
    ):
        load(DataConfig(f"npz:{tmp_path / 'x.npz'}"), "train")


def test_well_compressed_images_below_the_limit_are_read(tmp_path: Path) -> None:
    images = np.zeros((40, 64, 64), np.uint8)
    images[:, 0, 0] = 255
    np.savez_compressed(tmp_path / "x.npz", images=images)
    assert len(load(DataConfig(f"npz:{tmp_path / 'x.npz'}"), "train")) == 36


def test_a_header_that_declares_more_than_its_member_holds(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 100, 100, 1)}
    np.lib.format.write_array_header_1_0(buffer, header)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", buffer.getvalue() + bytes(1000))
    with (
        at_most(2 * MEGABYTE),
        pytest.raises(DataError, match=r"cut short: its header declares 10,000,000,000 bytes"),
    ):
        load(DataConfig(f"npz:{tmp_path / 'x.npz'}"), "train")


def test_compressions_that_numpy_does_not_write_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((9, 8, 8), np.uint8))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images.npy", buffer.getvalue())
    with pytest.raises(DataError, match="compressed in a way that numpy does not write"):
        load(DataConfig(f"npz:{tmp_path / 'x.npz'}"), "train")


def header(*shape: int) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)


@pytest.mark.parametrize("zipped", [False, True])
def test_an_idx_header_of_gigabytes_over_little_data(tmp_path: Path, zipped: bool) -> None:
    content = header(60_000, 1000, 1000) + bytes(31_000)
    (tmp_path / "x").write_bytes(gzip.compress(content) if zipped else content)
    says = "would take 60,000,000,000 bytes" if zipped else "but has only 31,000"
    with at_most(2 * MEGABYTE), pytest.raises(DataError, match=says):
        read_idx(tmp_path / "x", 3)


def test_a_gzipped_idx_takes_memory_for_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(header(400, 1000, 1000) + bytes(31_000)))
    with at_most(40 * MEGABYTE), pytest.raises(DataError, match="but has only 31,000"):
        read_idx(tmp_path / "x", 3)


def test_a_gzip_bomb_behind_an_idx_header(tmp_path: Path, small_limits: None) -> None:
    size = 50 * MEGABYTE
    (tmp_path / "x").write_bytes(gzip.compress(header(50, 1024, 1024) + bytes(size)))
    with at_most(2 * MEGABYTE), pytest.raises(DataError, match="would take 52,428,800 bytes"):
        read_idx(tmp_path / "x", 3)


@pytest.mark.parametrize(
    "content",
    [
        b"Nr\xff\xff\xff\x0f",  # the largest place of the memo takes 4.3 GB
        b"Np268435455\n.",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b".",  # a bytearray of 8 GB
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 33) + b".",
        b"\x8b" + struct.pack("<i", 1 << 30) + b".",
        b"\x8b" + struct.pack("<i", -5) + b".",
        b"\x80\x04" + b"]\x94" * 501_000 + b".",
    ],
    ids=["long-binput", "put", "bytearray8", "bytes8", "long4", "negative", "many"],
)
def test_a_pickle_that_asks_for_memory_is_refused_before_it_runs(content: bytes) -> None:
    with at_most(2 * MEGABYTE), pytest.raises(DataError, match="refused or damaged"):
        read_batch(content, "x")


def test_text_that_is_encoded_over_and_over_is_refused() -> None:
    text = b"X" + struct.pack("<I", MEGABYTE) + bytes(MEGABYTE) + b"q\x00"
    once = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    with at_most(6 * MEGABYTE), pytest.raises(DataError, match="more text than the file holds"):
        read_batch(text + once * 100 + b".", "x")


def test_an_archive_that_holds_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "MAX_ARCHIVE_BYTES", 10 * MEGABYTE)
    # The name of a member can be as long as its header says.
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type = tarfile.GNUTYPE_LONGNAME
    long_name.size = 50 * MEGABYTE
    content = long_name.tobuf(tarfile.GNU_FORMAT) + b"a" * long_name.size
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(content))
    with (
        at_most(40 * MEGABYTE),
        pytest.raises(DataError, match="holds more than 10,485,760 bytes, too many for CIFAR-10"),
    ):
        load(DataConfig(f"cifar10:{tmp_path / 'x.tar.gz'}"), "train")


def test_an_honest_pickle_passes_the_check_of_its_instructions() -> None:
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2], b"names": [b"a"] * 9}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        if protocol != 5:  # in which numpy writes arrays by another function
            assert read_batch(pickle.dumps(batch, protocol=protocol), "x")[1].tolist() == [1, 2]


def test_sizes_beyond_any_image_are_refused_before_the_data_are_read(tmp_path: Path) -> None:
    missing = f"npz:{tmp_path / 'missing.npz'}"
    with pytest.raises(ConfigError, match=r"10,000,000,000 pixels an image; at most 67,108,864"):
        load(DataConfig(missing, size="100000x100000"), "train")
    with pytest.raises(ConfigError, match=r"data.bits=100000x100000"):
        load(DataConfig(missing, bits="100000x100000"), "train")
    with pytest.raises(ConfigError, match="data.size must be a number of pixels"):
        load(DataConfig(missing, size="64by64"), "train")


@pytest.mark.parametrize("crop", ["center", "squash"])
def test_many_large_images_are_refused_before_they_are_made(crop: str) -> None:
    with at_most(8 * MEGABYTE), pytest.raises(InputError, match="1,350 images of 8000x8000x1"):
        load(DataConfig("digits", size="8000", crop=crop), "train")
    assert len(load(DataConfig("digits", size="80", crop=crop, limit=2), "train")) == 2

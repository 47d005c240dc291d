"""Zip archives as a source of images: whole, or refused."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella.config import DataConfig
from tessella.data import archive as archive_module
from tessella.data import load
from tessella.data.archive import open_archive
from tessella.errors import DataError

IMAGE = np.random.default_rng(5).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def image_file(image: np.ndarray = IMAGE) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def packed(files: dict[str, bytes], comment: bytes = b"", kind: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.comment = comment
    return buffer.getvalue()


def opened(tmp_path: Path, content: bytes) -> list[str]:
    (tmp_path / "a.zip").write_bytes(content)
    with open_archive(tmp_path / "a.zip") as archive:
        return archive.namelist()


INNER = packed({"inner.png": image_file(255 - IMAGE)})
OUTER = packed({"first.png": image_file(), "pack.zip": INNER, "last.png": image_file()})


@pytest.mark.parametrize(
    "content",
    [
        packed({"a.png": b"a", "b/c.png": b"b"}),
        packed({"a.png": b"a" * 999}, kind=zipfile.ZIP_DEFLATED),
        packed({"a.png": b"a"}, comment=b"a comment of more bytes than the record it ends"),
        packed({}),
        OUTER,
    ],
    ids=["plain", "deflate", "comment", "empty", "nested"],
)
def test_whole_archives_open(tmp_path: Path, content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert opened(tmp_path, content) == archive.namelist()


def test_files_written_to_a_stream_and_zip64_open(tmp_path: Path) -> None:
    """Sizes behind the data (a stream cannot go back), and in records of 64 bits."""

    class Stream(io.RawIOBase):
        def __init__(self) -> None:
            self.content = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            self.content += bytes(data)  # type: ignore[call-overload]
            return len(bytes(data))  # type: ignore[call-overload]

    stream = Stream()
    with zipfile.ZipFile(stream, "w") as archive:  # type: ignore[arg-type]
        archive.writestr("a.png", b"a" * 99)
        with archive.open("b.png", "w", force_zip64=True) as file:
            file.write(b"b" * 99)
    assert opened(tmp_path, bytes(stream.content)) == ["a.png", "b.png"]


def test_an_archive_of_more_than_65535_files_opens(tmp_path: Path) -> None:
    names = [f"{i}" for i in range(65_600)]
    assert opened(tmp_path, packed(dict.fromkeys(names, b""))) == names


def test_an_archive_cut_behind_an_inner_archive_is_refused(tmp_path: Path) -> None:
    """Python's zipfile finds the directory of the inner one and shows its picture."""
    cut = OUTER[: OUTER.index(INNER) + len(INNER)]
    with zipfile.ZipFile(io.BytesIO(cut)) as archive:
        assert archive.namelist() == ["inner.png"]
    (tmp_path / "photos.zip").write_bytes(cut)
    with pytest.raises(DataError, match=r"photos\.zip is damaged, or not one whole zip archive"):
        load(DataConfig(f"folder:{tmp_path / 'photos.zip'}"), "all")


def test_arrays_of_an_inner_archive_are_not_taken_for_those_of_a_cut_one(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, images=IMAGE[None])
    outer = packed({"first.npy": b"x", "inner.npz": buffer.getvalue(), "last.npy": b"x"})
    cut = outer[: outer.index(buffer.getvalue()) + len(buffer.getvalue())]
    (tmp_path / "a.npz").write_bytes(cut)
    with pytest.raises(DataError, match="not one whole zip archive"):
        load(DataConfig(f"npz:{tmp_path / 'a.npz'}"), "train")


def test_a_cut_archive_that_begins_with_the_inner_one_is_refused(tmp_path: Path) -> None:
    outer = packed({"pack.zip": INNER, "last.png": image_file()})
    with pytest.raises(DataError, match="lost its beginning"):
        opened(tmp_path, outer[: outer.index(INNER) + len(INNER)])


@pytest.mark.parametrize("length", range(1, len(OUTER), 37))
def test_no_cut_archive_opens(tmp_path: Path, length: int) -> None:
    with pytest.raises((DataError, zipfile.BadZipFile)):
        opened(tmp_path, OUTER[:length])


def test_bytes_before_or_behind_an_archive_are_refused(tmp_path: Path) -> None:
    plain = packed({"a.png": b"a"})
    with pytest.raises(DataError, match="lost its beginning"):
        opened(tmp_path, b"#!/bin/sh\n" + plain)
    with pytest.raises(DataError, match="does not end with the directory"):
        opened(tmp_path, plain + b"more")


def with_offset(content: bytes, number: int, offset: int) -> bytes:
    """The archive whose file of a number is said to lie elsewhere."""
    place = -1
    for _ in range(number + 1):
        place = content.index(b"PK\1\2", place + 1)
    return content[: place + 42] + struct.pack("<I", offset) + content[place + 46 :]


@pytest.mark.parametrize(
    ("number", "offset", "reason"),
    [(1, 0, "overlaps another"), (1, 20, "overlaps another"), (0, 36, "before its first file")],
)
def test_files_that_share_or_leave_bytes_are_refused(
    tmp_path: Path, number: int, offset: int, reason: str
) -> None:
    content = packed({"a.png": b"a", "b.png": b"b"})
    assert content[36:40] == b"PK\3\4"
    with pytest.raises(DataError, match=reason):
        opened(tmp_path, with_offset(content, number, offset))


def test_a_file_that_runs_into_the_directory_is_refused(tmp_path: Path) -> None:
    content = packed({"a.png": b"a"})
    place = content.index(b"PK\1\2")
    longer = content[: place + 20] + struct.pack("<I", 2) + content[place + 24 :]
    with pytest.raises(DataError, match="runs into the directory"):
        opened(tmp_path, longer)


def test_a_wrong_number_of_files_is_refused(tmp_path: Path) -> None:
    content = bytearray(packed({"a.png": b"a"}))
    content[-14:-10] = struct.pack("<2H", 2, 2)
    with pytest.raises(DataError, match="its directory has 1 files, and its end says 2"):
        opened(tmp_path, bytes(content))


def test_refused_archives_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    close = zipfile.ZipFile.close

    def noted(archive: zipfile.ZipFile) -> None:
        closed.append(True)
        close(archive)

    monkeypatch.setattr(archive_module.zipfile.ZipFile, "close", noted)  # type: ignore[attr-defined]
    with pytest.raises(DataError):
        opened(tmp_path, b"x" + packed({"a.png": b"a"}))
    assert closed

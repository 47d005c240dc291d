"""Reading image files when something else goes wrong: no memory, no space, a damaged stream, a busy
cache."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import tiff
from PIL import Image

from tessella.config import DataConfig
from tessella.data import ImageSet, decoded_cache, image_files, load
from tessella.data import decode as decode_module
from tessella.data.decode import UnusableImage, decode
from tessella.data.formats import tiff as tiff_format
from tessella.data.memory_budget import Budget, Closed
from tessella.errors import DataError

GREY = np.random.default_rng(3).integers(0, 256, (6, 8), dtype=np.uint8)
PASSING = [
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ENOSPC, "No space left on device"),
    MemoryError(),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.fromarray(GREY + np.uint8(i)).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def of(root: Path, **options: Any) -> ImageSet:
    return load(DataConfig(f"folder:{root}", **options), "all")


@pytest.mark.parametrize("error", PASSING, ids=str)
@pytest.mark.parametrize("step", ["open_image", "decode_pixels"])
def test_a_passing_failure_ends_loading_and_is_not_stored(
    photos: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, step: str
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(image_files, step, fail)
        with pytest.raises(
            DataError,
            match=r"0\.png: cannot be read at present: (Too many|Input|No space|not enough)",
        ):
            of(photos)
    assert len(of(photos)) == 8


@pytest.mark.parametrize("name", ["load", "frombytes"])
def test_a_passing_failure_within_decoding_is_no_damage(
    photos: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """While pixels are decoded, and where the temporary file of a large image has no space."""

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    if name == "load":
        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    else:
        monkeypatch.setattr(decode_module, "_memory", lambda image, size, facts: 1)
        monkeypatch.setattr(decode_module, "MAX_MEMORY", 2)
        monkeypatch.setattr("tempfile.TemporaryFile", fail)
    with pytest.raises(DataError, match="No space left"):
        of(photos)


def test_a_passing_failure_while_contents_are_looked_at_ends_loading(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "0.png").rename(photos / "0")

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", fail)
        with pytest.raises(DataError, match="0: cannot be read at present: Input/output error"):
            of(photos)
    assert len(of(photos)) == 8


def test_a_file_that_vanishes_is_skipped(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanished(*_: Any) -> Any:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(image_files, "open_image", vanished)
    with pytest.raises(
        DataError, match=f"3 of 8 files .*cannot be read: {os.strerror(errno.ENOENT)}"
    ):
        of(photos)


def packed(**tile: Any) -> bytes:
    halves = [GREY[:3].tobytes(), GREY[3:].tobytes()]
    if tile:
        halves = [np.pad(GREY, ((0, 10), (0, 8))).tobytes()]
    return tiff(
        8, 6, 8, [zlib.compress(half, 0) for half in halves], compression=8, rows=3, **tile
    ).read()


@pytest.mark.parametrize("tile", [{}, {"tile": (16, 16)}], ids=["strips", "tiles"])
def test_deflate_in_tiff_must_match_its_checksum(tile: dict[str, Any]) -> None:
    content = packed(**tile)
    np.testing.assert_array_equal(np.asarray(decode(io.BytesIO(content), 1)), GREY)
    place = content.index(GREY[:1].tobytes())
    with pytest.raises(UnusableImage, match="damaged: .*incorrect data check"):
        decode(io.BytesIO(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]), 1)


def test_deflate_in_tiff_unpacks_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_format, "MAX_UNPACKED", 1 << 20)
    started, bomb = time.process_time(), zlib.compress(bytes(50 << 20))
    with pytest.raises(UnusableImage, match="do not end where they should"):
        decode(tiff(8, 6, 8, [bomb], compression=8), 1)
    assert time.process_time() - started < 2


def test_a_budget_is_served_in_order_and_never_exceeded() -> None:
    budget, guard, held, most, order = Budget(10), threading.Lock(), [0], [0], []

    def use(turn: int) -> None:
        taken = budget.take(turn, 1 + turn * 7 % 13)
        with guard:
            order.append(turn)
            held[0] += taken
            most[0] = max(most[0], held[0])
        time.sleep(0.0005)
        with guard:
            held[0] -= taken
        budget.give_back(taken)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(use, range(60)))
    assert sorted(order) == list(range(60))
    assert most[0] <= 10


def test_more_than_a_budget_is_all_of_it() -> None:
    budget = Budget(10)
    assert budget.take(0, 99) == 10
    budget.give_back(10)
    assert budget.take(1, 4) == 4


def test_a_closed_budget_sends_waiters_away() -> None:
    budget = Budget(10)
    budget.take(0, 10)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(budget.take, 1, 1)
        budget.close()
        with pytest.raises(Closed):
            waiting.result(timeout=5)


@pytest.mark.parametrize("total", [1, 300, 700])
@pytest.mark.parametrize(
    "options", [{}, {"limit": 3}, {"size": "3x4", "crop": "tiles", "limit": 5}], ids=str
)
def test_waiting_outcomes_count_and_never_block(
    photos: Path, monkeypatch: pytest.MonkeyPatch, total: int, options: dict[str, Any]
) -> None:
    """All budgets end with the images that a large one gives, also where whoever takes them stops
    early."""
    expected = of(photos, **options)
    monkeypatch.setattr(image_files, "worker_count", lambda: 6)
    monkeypatch.setattr(image_files, "MAX_TOGETHER", total)
    (photos / "note.txt").write_text("another entry")
    assert of(photos, **options).identity()["sha256"] == expected.identity()["sha256"]


def test_finished_images_hold_their_share_until_they_are_taken(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one image, nothing is decoded while the one before it has not been taken
    over."""
    finished: list[int] = []
    decode_pixels = decode_module.decode_pixels

    def noted(opened: decode_module.Opened, channels: int) -> Image.Image:
        finished.append(1)
        return decode_pixels(opened, channels)

    monkeypatch.setattr(image_files, "decode_pixels", noted)
    monkeypatch.setattr(image_files, "worker_count", lambda: 4)
    monkeypatch.setattr(image_files, "MAX_TOGETHER", 1)
    seen: list[int] = []

    def keep(image: np.ndarray) -> None:
        time.sleep(0.01)
        seen.append(len(finished))

    names = [f"{i}.png" for i in range(8)]
    files = image_files.ImageFiles(names, lambda index: (photos / names[index]).open("rb"))
    image_files.decode_files(files, DataConfig("folder:x"), keep, channels=3, title="x")
    assert seen == list(range(1, 9))


@pytest.mark.parametrize("changed", [{"MANY_FILES": 7}, {"PATIENCE": -1.0}], ids=str)
def test_long_decoding_says_one_line_where_there_is_no_terminal(
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    changed: dict[str, Any],
) -> None:
    for name, value in changed.items():
        monkeypatch.setattr(image_files, name, value)
    of(photos)
    assert capfd.readouterr() == ("", "decoding 8 files of folder:photos, all\n")
    of(photos)
    assert capfd.readouterr() == ("", "")


def test_waiting_for_another_process_is_said(
    photos: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    of(photos)
    entry = next(cache.glob("*.json"))
    lock = cache / f"{entry.name.partition('-')[0]}.lock"
    entry.unlink()
    code = (
        "import sys, time, filelock\n"
        "with filelock.FileLock(sys.argv[1]):\n    print('held', flush=True); time.sleep(1.3)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert len(of(photos)) == 8
    assert capfd.readouterr().err == "waiting for another process that decodes folder:photos\n"


def test_an_entry_says_what_it_is_of(photos: Path, cache: Path) -> None:
    of(photos, size="4x5", crop="squash", limit=2)
    facts = json.loads(next(cache.glob("*.json")).read_text())
    assert facts["source"] == str(photos.resolve())
    assert [facts[key] for key in ("split", "size", "crop", "limit", "version")] == [
        "all",
        "4x5",
        "squash",
        2,
        decoded_cache.VERSION,
    ]

"""Runs of images on disk: stopped anywhere, they end as if nothing had happened; nothing else is
taken for theirs."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessella.errors import ArtifactError, InputError
from tessella.files.pictures import read_made
from tessella.storage import image_writer

SHAPE = (3, 2, 3)
MADE = {
    "tessella": "1",
    "model": "0123",
    "run": "x",
    "seed": 7,
    "class": None,
    "method": "cached",
    "temperature": 1.0,
}
NAMES = ["pictures", "samples.npz"]


def image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, SHAPE, np.uint8)


def batches(n: int, first: int, batch: int) -> Iterator[np.ndarray]:
    for start in range(first, n, batch):
        yield np.stack([image(i) for i in range(start, min(start + batch, n))])


def draw(path: Path, n: int, stop: int | None = None, batch: int = 4, **made: Any) -> int:
    """A run, stopped before image ``stop``; returns the first image that was drawn."""
    with image_writer.opened(path, {**MADE, "n": n, **made}, SHAPE) as run:
        first = run.resume(batch)
        for images in batches(n, first, batch):
            if stop is not None and run.next >= stop:
                raise KeyboardInterrupt
            run.append(images)
        run.finish()
    return first


def stopped(path: Path, n: int, stop: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        draw(path, n, stop)


def contents(path: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def straight(tmp_path: Path, name: str) -> dict[str, bytes]:
    """What eleven images leave when nothing happens to them."""
    (tmp_path / "straight").mkdir()
    assert draw(tmp_path / "straight" / name, 11) == 0
    return contents(tmp_path / "straight")


@pytest.fixture
def path(tmp_path: Path, name: str) -> Path:
    """Where a run is drawn; its folder is empty."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / name


@pytest.mark.parametrize("stop", [0, 4, 8])
def test_a_stopped_run_goes_on_and_ends_as_an_undisturbed_one(
    path: Path, straight: dict[str, bytes], stop: int
) -> None:
    stopped(path, 11, stop)
    assert draw(path, 11) == stop
    assert contents(path.parent) == straight


def test_what_a_kill_left_half_written_is_drawn_again(
    path: Path, straight: dict[str, bytes]
) -> None:
    stopped(path, 11, 8)
    if path.suffix:
        with path.with_name("samples.npz.part").joinpath(image_writer.PIXELS).open("ab") as pixels:
            pixels.write(b"\x01" * 40)  # two images and a part of one
    else:
        whole = (path / "00000007.png").read_bytes()
        half = path / ".batch.partial" / ".00000015.png.99.partial"
        half.mkdir(parents=True)
        (half / "00000015.png").write_bytes(whole[:30])
        (path / "00000015.png").write_bytes(whole)  # of the batch that was being named
    assert draw(path, 11) == 8
    assert contents(path.parent) == straight


def test_a_picture_that_has_gone_is_drawn_again(tmp_path: Path) -> None:
    draw(tmp_path / "x", 11)
    whole = contents(tmp_path)
    (tmp_path / "x" / "00000012.png").unlink()
    assert draw(tmp_path / "x", 11) == 4
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("name", ["samples.npz"])
def test_a_run_killed_while_it_was_packed_draws_nothing(
    path: Path, straight: dict[str, bytes]
) -> None:
    stopped(path, 11, 8)
    folder = path.with_name("samples.npz.part")
    (folder / image_writer.PIXELS).write_bytes(b"".join(image(i).tobytes() for i in range(11)))
    (folder / ".samples.npz.partial").write_bytes(b"PK half of it")
    assert draw(path, 11) == 11
    assert contents(path.parent) == straight


def test_a_larger_n_adds_to_a_finished_run(path: Path, straight: dict[str, bytes]) -> None:
    draw(path, 6)
    assert draw(path, 11) == 4  # the second batch was a short one
    assert contents(path.parent) == straight


def test_a_run_that_was_added_to_can_be_stopped(path: Path, straight: dict[str, bytes]) -> None:
    draw(path, 6)
    stopped(path, 11, 8)
    assert draw(path, 11) == 8
    assert contents(path.parent) == straight


def test_a_finished_run_is_left_alone(path: Path) -> None:
    draw(path, 5)
    before = {file: file.stat().st_mtime_ns for file in path.parent.rglob("*") if file.is_file()}
    assert draw(path, 5) == 5
    assert {
        file: file.stat().st_mtime_ns for file in path.parent.rglob("*") if file.is_file()
    } == before


@pytest.mark.parametrize("stop", [4, None])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 8}, r"seed 7 \(now 8\)"),
        ({"model": "ffff"}, r"model 0123 \(now ffff\)"),
        ({"temperature": 0.5}, r"temperature 1.0 \(now 0.5\)"),
        ({"class": 3}, r"class None \(now 3\)"),
        ({"n": 10}, "a run of 11 images"),
    ],
)
def test_another_run_in_its_place_is_refused(
    path: Path, stop: int | None, other: dict[str, Any], message: str
) -> None:
    if stop is None:
        draw(path, 11)
    else:
        stopped(path, 11, stop)
    before = contents(path.parent)
    with pytest.raises(InputError, match=f"{message}.*name another --out, or delete"):
        draw(path, **{"n": 11, **other})
    assert contents(path.parent) == before


def test_another_method_and_version_go_on_with_a_run(path: Path) -> None:
    stopped(path, 11, 8)
    assert draw(path, 11, method="naive", tessella="2", run="y") == 8


def test_what_is_not_a_run_of_images_is_left_alone(path: Path) -> None:
    if path.suffix:
        np.savez(path, arr_0=np.zeros(3))
    else:
        path.mkdir()
        (path / "holiday.png").write_bytes(b"x")
    before = contents(path.parent)
    with pytest.raises(InputError, match="something else"):
        draw(path, 11)
    assert contents(path.parent) == before


def test_a_damaged_archive_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="something else"):
        draw(tmp_path / "x.npz", 11)


def test_the_archive_is_what_numpy_reads(tmp_path: Path) -> None:
    draw(tmp_path / "x.npz", 11)
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays.files == ["arr_0"]
        images = arrays["arr_0"]
    assert images.dtype == np.uint8
    assert np.array_equal(images, np.stack([image(i) for i in range(11)]))
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        assert json.loads(archive.comment) == {**MADE, "n": 11}


def test_pictures_are_named_by_their_seeds(tmp_path: Path) -> None:
    draw(tmp_path / "x", 11)
    names = sorted(file.name for file in (tmp_path / "x").iterdir())
    assert names == [*(f"{seed:08d}.png" for seed in range(7, 18)), "made.json"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x/00000012.png")), image(5))
    assert read_made(tmp_path / "x/00000012.png") == {**MADE, "seed": 12, "n": 1}


def test_a_directory_may_be_named_as_an_archive(tmp_path: Path) -> None:
    (tmp_path / "x.npz").mkdir()
    draw(tmp_path / "x.npz", 2)
    assert (tmp_path / "x.npz" / "00000008.png").is_file()


def test_a_failure_before_the_first_image_leaves_no_file(path: Path) -> None:
    stopped(path, 11, 0)
    assert contents(path.parent) == {}


def test_two_processes_do_not_draw_to_one_place(path: Path) -> None:
    with (
        image_writer.opened(path, {**MADE, "n": 11}, SHAPE),
        pytest.raises(ArtifactError, match="another process"),
    ):
        draw(path, 11)


def test_a_full_disk_is_told_with_the_way_out(path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="No space left on device; the same command goes on"),
        image_writer.opened(path, {**MADE, "n": 11}, SHAPE),
    ):
        raise OSError(28, "No space left on device")


def peak(path: Path, n: int) -> int:
    """Bytes that Python and numpy hold at most while ``n`` images of 64 KiB are drawn and
    packed."""
    tracemalloc.start()
    try:
        with image_writer.opened(path, {**MADE, "n": n}, (256, 256, 1)) as run:
            for _ in range(0, n, 4):
                run.append(np.zeros((4, 256, 256, 1), np.uint8))
            run.finish()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_images(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_writer, "CHUNK", 1 << 16)
    few, many = peak(tmp_path / f"few-{name}", 8), peak(tmp_path / f"many-{name}", 80)
    assert many < few + 4 * (256 * 256)  # of the 72 images more


def test_progress_is_a_line_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(image_writer, "EVERY", 0.0)
    with image_writer.progress(2000, 500) as tell:
        tell(1250.4)
    told = capsys.readouterr().err
    assert told.startswith("1,250 of 2,000 images, ")
    assert "images/s, 00:00 left\n" in told


def test_progress_says_nothing_of_what_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    with image_writer.progress(2) as tell:
        tell(1)
        tell(2)
    assert not capsys.readouterr().err


def test_what_was_not_written_does_not_count_as_finished(path: Path) -> None:
    with image_writer.opened(path, {**MADE, "n": 11}, SHAPE) as run:
        run.append(next(batches(11, 0, 4)))
        with pytest.raises(ArtifactError, match="4 of 11 images"):
            run.finish()
    assert draw(path, 11) == 4


def test_a_record_that_promises_more_than_there_is_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    draw(path, 11)
    good = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:  # its record says 11 images, finished
        archive.comment = json.dumps({**MADE, "n": 11}).encode()
        with archive.open("arr_0.npy", "w") as packed:
            np.lib.format.write_array(packed, np.zeros((0, *SHAPE), np.uint8))
    assert draw(path, 11) == 0
    assert path.read_bytes() == good


@pytest.mark.parametrize("batch", [0, -3, True])
def test_a_batch_that_is_no_number_of_images_is_refused(path: Path, batch: Any) -> None:
    with (
        pytest.raises(InputError, match="batch must be an integer of at least 1"),
        image_writer.opened(path, {**MADE, "n": 11}, SHAPE) as run,
    ):
        run.resume(batch)
    assert contents(path.parent) == {}


def test_images_of_another_shape_or_too_many_are_refused(path: Path) -> None:
    with image_writer.opened(path, {**MADE, "n": 2}, SHAPE) as run:
        with pytest.raises(InputError, match="uint8"):
            run.append(np.zeros((1, *SHAPE)))
        with pytest.raises(InputError, match="n is 2"):
            run.append(np.zeros((3, *SHAPE), np.uint8))


def test_more_than_the_disk_holds_is_refused_before_it_begins(path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="free"),
        image_writer.opened(path, {**MADE, "n": 10**13}, SHAPE),
    ):
        raise AssertionError("it began")
    assert list(path.parent.iterdir()) == []


def test_a_refused_run_leaves_nothing(path: Path) -> None:
    draw(path, 3)
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(InputError, match="another run"):
        draw(path, 3, seed=8)
    assert sorted(path.parent.rglob("*")) == before


def test_force_begins_anew_and_keeps_what_is_not_ours(path: Path) -> None:
    draw(path, 11, seed=100)
    if not path.suffix:
        (path / "holiday.png").write_bytes(b"mine")
    with image_writer.opened(path, {**MADE, "n": 4}, SHAPE, force=True) as run:
        assert run.resume(4) == 0
        run.append(next(batches(4, 0, 4)))
        run.finish()
    assert draw(path, 4) == 4
    if not path.suffix:
        assert sorted(file.name for file in path.iterdir()) == [
            *(f"{seed:08d}.png" for seed in range(7, 11)),
            "holiday.png",
            "made.json",
        ]


def test_a_link_to_an_archive_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.npz").write_bytes(b"mine")
    (tmp_path / "x.npz").symlink_to("real.npz")
    for force in (False, True):
        with (
            pytest.raises(InputError, match="is a link"),
            image_writer.opened(tmp_path / "x.npz", {**MADE, "n": 2}, SHAPE, force),
        ):
            raise AssertionError("it began")
    assert (tmp_path / "real.npz").read_bytes() == b"mine"

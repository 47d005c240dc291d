"""``tessella shards`` and ``tessella data verify``: bytes kept, equal bytes again, nothing half
written; damage, copies and classes found."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella import data
from tessella.cli.entry import main
from tessella.config import DataConfig
from tessella.data.shards import open_shards
from tessella.data.verification import verify_source
from tessella.errors import DataError, InputError
from tessella.storage import shard_writer
from tessella.storage.shard_input import shard_input
from tessella.storage.shard_writer import write_shards


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (6, 5, 3), np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 15 images each: JPEG, PNG and BMP."""
    for number in range(30):
        folder = tmp_path / "photos" / ("cats" if number % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        extension = ("jpg", "png", "bmp")[number % 3]
        Image.fromarray(pixels(number)).save(folder / f"{number:02}.{extension}")
    return tmp_path / "photos"


def write(source: str, out: Path, **options: object):
    with shard_input(DataConfig(source)) as given:
        return write_shards(given, out, **options)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_files_are_kept_byte_for_byte(photos: Path, tmp_path: Path) -> None:
    manifest = write(f"folder:{photos}", tmp_path / "out", images=4)
    assert manifest["classes"] == ["cats", "dogs"]
    assert list(manifest["splits"]) == ["train", "valid", "test"]
    names = set()
    keys = []
    for split, entries in manifest["splits"].items():
        for number, entry in enumerate(entries):
            assert entry["name"] == f"photos-{split}-{number:06}.tar"
            assert 1 <= entry["count"] <= 4
        shards = open_shards(str(tmp_path / "out" / f"photos-{split}-*.tar"))
        for item in (shards.item(number) for number in range(len(shards))):
            original = photos / item.facts["name"]
            names.add(item.facts["name"])
            keys.append(item.key)
            assert item.facts["class"] == original.parent.name
            assert item.label == ["cats", "dogs"].index(original.parent.name)
            if original.suffix == ".bmp":
                assert item.extension == "png"
                decoded = np.asarray(Image.open(io.BytesIO(item.data)))
                assert np.array_equal(decoded, np.asarray(Image.open(original)))
            else:
                assert item.data == original.read_bytes()
                assert f".{item.extension}" == original.suffix
    assert len(names) == 30
    assert len(set(keys)) == 30


def test_shards_give_the_images_of_their_folder(photos: Path, tmp_path: Path) -> None:
    write(f"folder:{photos}", tmp_path / "out", images=7)
    for split in data.SPLITS:
        wanted = data.load(DataConfig(f"folder:{photos}"), split)
        for stream in (False, True):
            found = data.load(DataConfig(f"shards:{tmp_path / 'out'}", stream=stream), split)
            assert np.array_equal(np.asarray(found.images), np.asarray(wanted.images))
            assert found.label_names == wanted.label_names
            assert np.array_equal(found.labels, wanted.labels)  # type: ignore[arg-type]


def test_the_same_bytes_by_any_number_of_threads(photos: Path, tmp_path: Path) -> None:
    write(f"folder:{photos}", tmp_path / "a", images=3, workers=1)
    write(f"folder:{photos}", tmp_path / "b", images=3, workers=4)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    with tarfile.open(tmp_path / "a" / "photos-train-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
            assert member.uname == member.gname == ""


def test_a_stopped_command_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(f"folder:{photos}", tmp_path / "whole", images=5)
    out = tmp_path / "out"
    written = []
    original = shard_writer._Writing._add

    def stop(self, tar, part, place: int, number: int) -> None:
        if len(written) == 12:
            raise KeyboardInterrupt
        written.append(number)
        original(self, tar, part, place, number)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer._Writing, "_add", stop)
        with pytest.raises(KeyboardInterrupt):
            write(f"folder:{photos}", out, images=5, workers=1)
    assert sorted(file.name for file in out.iterdir()) == [
        "made.json",
        "photos-train-000000.tar",
        "photos-train-000001.tar",
    ]
    # Other options would mix with what is there.
    with pytest.raises(InputError, match="they differ in images"):
        write(f"folder:{photos}", out, images=6)
    write(f"folder:{photos}", out, images=5)
    assert content(out) == content(tmp_path / "whole")
    # A finished shard that was damaged is made again.
    damaged = out / "photos-train-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-700])
    write(f"folder:{photos}", out, images=5)
    assert content(out) == content(tmp_path / "whole")


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="something else than shards"):
        write("digits", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_shard_ends_where_its_bytes_do(photos: Path, tmp_path: Path) -> None:
    sizes = [file.stat().st_size for file in photos.rglob("*.*")]
    manifest = write(f"folder:{photos}", tmp_path / "out", most_bytes=max(sizes))
    counts = [entry["count"] for entry in manifest["splits"]["train"]]
    assert min(counts) == 1
    assert max(counts) <= 3


def test_damaged_files_are_left_out_and_named(photos: Path, tmp_path: Path) -> None:
    damaged = photos / "cats" / "01.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    said: list[str] = []
    manifest = write(f"folder:{photos}", tmp_path / "out", say=said.append)
    assert sum(entry["count"] for part in manifest["splits"].values() for entry in part) == 29
    assert said == ["left out: cats/01.png: damaged: the file ends within a chunk"]
    for number in range(1, 30, 2):
        (photos / "cats" / f"{number:02}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"more than 20 %"):
        write(f"folder:{photos}", tmp_path / "more")
    assert not list((tmp_path / "more").glob("shards.json"))


def test_digits_as_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "digits", "--out", str(tmp_path / "out"), "data.limit=60"]) == 0
    assert "train: 60 images in 1 shards" in capsys.readouterr().out
    config = DataConfig(f"shards:{tmp_path / 'out'}", channels=1)
    wanted = data.load(DataConfig("digits", limit=60), "valid")
    found = data.load(config, "valid")
    assert np.array_equal(np.asarray(found.images), np.asarray(wanted.images))
    assert np.array_equal(found.labels, wanted.labels)  # type: ignore[arg-type]


def test_what_webdataset_reads(photos: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    write(f"folder:{photos}", tmp_path / "out", images=6)
    urls = sorted(str(path) for path in (tmp_path / "out").glob("*-train-*.tar"))
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    shards = open_shards(str(tmp_path / "out" / "*-train-*.tar"))
    assert [sample["__key__"] for sample in read] == [
        shards.item(number).key for number in range(len(shards))
    ]
    for number, sample in enumerate(read):
        assert sample["cls"] == shards.item(number).label
        assert sample["json"] == shards.item(number).facts


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_verify_finds_damage_and_copies(photos: Path, tmp_path: Path, kind: str) -> None:
    shards = tmp_path / "set-train-0.tar"
    (photos / "cats" / "copy.png").write_bytes((photos / "dogs" / "04.png").read_bytes())
    damaged = photos / "cats" / "01.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with tarfile.open(shards, "w") as tar:
        for file in sorted(photos.rglob("*.*")):
            tar.add(file, file.name)
        tar.add(photos / "cats" / "copy.png", "notes.txt")
    source = f"folder:{photos}" if kind == "folder" else f"shards:{shards}"
    found = verify_source(DataConfig(source))
    assert found.images.total() == 30
    assert found.sizes == {"5x6": 30}
    assert found.damage == {"damaged: the file ends within a chunk": 1}
    assert [line.partition(": ")[0][-6:] for line in found.damaged] == ["01.png"]
    assert found.copied == 1
    assert {Path(name).name for name in found.copies[0]} == {"04.png", "copy.png"}
    if kind == "folder":
        counts: dict[str, int] = {}
        for classes in found.classes.values():
            for name, count in classes.items():
                counts[name] = counts.get(name, 0) + count
        assert counts == {"cats": 15, "dogs": 15}
    else:
        assert found.left_out == ["set-train-0.tar: notes: no image, only txt"]


def test_verify_prints_a_table_and_writes_everything(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert main(["data", "verify", f"folder:{photos}", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "damaged               0" in printed
    assert "size                 30  5x6" in printed
    written = json.loads(out.read_text())
    assert written["source"] == "folder:photos"
    assert sum(written["images"].values()) == 30
    (photos / "cats" / "01.png").write_bytes(b"")
    assert main(["data", "verify", f"folder:{photos}"]) == 1
    assert "cats/01.png: the file is empty" in capsys.readouterr().out


def test_verify_of_arrays(tmp_path: Path) -> None:
    images = np.stack([pixels(number) for number in (1, 2, 3, 1)])
    np.savez(tmp_path / "a.npz", train_images=images, test_images=images[:1])
    found = verify_source(DataConfig(f"npz:{tmp_path / 'a.npz'}"))
    assert found.copied >= 2
    assert found.copied_across_splits >= 1
    assert any(len(group) == 3 for group in found.copies)

"""Shards of the WebDataset convention: the walk over a tar file, the index, and the images."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella.data.shards import open_shards
from tessella.data.shards.shard_patterns import expand_braces
from tessella.errors import DataError, InputError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))


def picture(number: int, size: int = 4) -> bytes:
    """A PNG of one colour."""
    content = io.BytesIO()
    Image.new("RGB", (size, size), (number % 256, number // 256, 7)).save(content, "PNG")
    return content.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(numbers: Iterable[int], labels: bool = True):
    for number in numbers:
        yield f"{number:08}.png", picture(number)
        if labels:
            yield f"{number:08}.cls", str(number % 3).encode()
        yield f"{number:08}.json", json.dumps({"number": number}).encode()


def two_shards(folder: Path) -> Path:
    write_tar(folder / "set-train-000000.tar", samples(range(5)))
    write_tar(folder / "set-train-000001.tar", samples(range(5, 8)))
    return folder


def test_every_image_with_label_and_facts(tmp_path: Path) -> None:
    shards = open_shards(str(two_shards(tmp_path / "set")))

    assert [shard.count for shard in shards.shards] == [5, 3]
    assert [shard.name for shard in shards.shards] == ["set-train-000000", "set-train-000001"]
    assert len(shards) == 8
    every = [*shards.items(0), *shards.items(1)]
    assert every == [shards.item(number) for number in range(8)]
    for number, item in enumerate(every):
        assert item.key == f"{number:08}"
        assert item.data == picture(number)
        assert item.extension == "png"
        assert item.label == number % 3
        assert item.facts == {"number": number}
    labels = shards.labels()
    assert labels is not None
    assert labels.tolist() == [number % 3 for number in range(8)]
    assert shards.name(6) == "set-train-000001/00000006.png"


@pytest.mark.parametrize("number", [-1, 8, 1.5])
def test_numbers_out_of_range(tmp_path: Path, number: float) -> None:
    shards = open_shards(str(two_shards(tmp_path / "set")))
    with pytest.raises(InputError, match=r"0\.\.7"):
        shards.item(number)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pattern",
    ["set", "set/*.tar", "set/set-train-{000000..000001}.tar", "set/set-{train}-00000{0,1}.tar"],
)
def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    two_shards(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    assert len(open_shards(pattern)) == 8


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("", "needs a path"),
        ("set/set-train-{000000..000003}.tar", "there is no file set/set-train-000002.tar"),
        ("set/*.tgz", "no file matches"),
        ("empty", "has no .tar files"),
        ("set/{0..99999999}.tar", "more than 100,000"),
        ("set/{2..1}.tar", "counts down"),
    ],
)
def test_patterns_without_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, says: str
) -> None:
    two_shards(tmp_path / "set")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=says):
        open_shards(pattern)


def test_braces_multiply() -> None:
    assert expand_braces("{a,b}-{8..10}") == ["a-8", "a-9", "a-10", "b-8", "b-9", "b-10"]


def test_index_is_made_once_and_again_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = two_shards(tmp_path / "set")
    first = open_shards(str(folder))
    walked: list[str] = []
    import tessella.data.shards.shard_index as module

    original = module.walk

    def counted(read, length: int, title: str):
        walked.append(Path(title).name)
        return original(read, length, title)

    monkeypatch.setattr(module, "walk", counted)
    again = open_shards(str(folder))
    assert not walked
    assert again.shards == first.shards
    write_tar(folder / "set-train-000001.tar", samples(range(5, 9)))
    assert len(open_shards(str(folder))) == 9
    assert walked == ["set-train-000001.tar"]


def test_a_shard_that_changes_while_it_is_open(tmp_path: Path) -> None:
    folder = two_shards(tmp_path / "set")
    before = open_shards(str(folder))
    write_tar(folder / "set-train-000000.tar", samples(range(1, 3), labels=False))
    with pytest.raises(DataError, match="changed while it was open"):
        before.item(3)


def test_identity_follows_the_content(tmp_path: Path) -> None:
    folder = two_shards(tmp_path / "set")
    twin = two_shards(tmp_path / "twin")
    os.utime(twin / "set-train-000000.tar", (1, 1))
    before = [shard.sha256 for shard in open_shards(str(folder)).shards]
    assert before == [shard.sha256 for shard in open_shards(str(twin)).shards]
    write_tar(folder / "set-train-000001.tar", samples(range(6, 9)))
    after = [shard.sha256 for shard in open_shards(str(folder)).shards]
    assert after[0] == before[0]
    assert after[1] != before[1]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path: Path, form: int) -> None:
    names = ["a/" * 40 + "b" * 60, "ä-ß", "x.y/z"]
    if form != tarfile.USTAR_FORMAT:
        names.append("n" * 240)
    members = []
    for number, name in enumerate(names):
        members.append((f"{name}.PNG", picture(number)))
    shards = open_shards(str(write_tar(tmp_path / "a.tar", members, form)))
    assert [item.key for item in shards.items(0)] == names
    assert shards.name(1) == "a/ä-ß.png"
    assert shards.item(2).data == picture(2)


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:

        def add(name: str, content: bytes = b"", **facts: object) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in facts.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))

        add("folder", type=tarfile.DIRTYPE)
        add("0.png", picture(0))
        add("0.seg.png", picture(9))
        add("0.cls", b"many")
        add("1.txt", b"no picture")
        add("._2.png", b"macOS")
        add("3.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("../../4.png", picture(4))
        add("4.json", b"x" * (1 << 21))
        add("0.png", picture(5))
        add("6.png", picture(6))
        add("6.png", picture(7))
        add("6.json", b"[1]")
    shards = open_shards(str(path))
    assert [item.key for item in shards.items(0)] == ["0", "../../4", "6"]
    assert shards.item(2).facts == {}
    left_out = "\n".join(shards.shards[0].left_out)
    assert shards.shards[0].left_out_count == len(shards.shards[0].left_out) == 9
    for words in (
        "0.cls: no label",
        "1: no image, only txt",
        "._2.png: hidden",
        "3.png: a link",
        "4.json: more than",
        "0.png: the key was there before",
        "6.png: the second member",
    ):
        assert words in left_out


def test_labels_of_some_images_only(tmp_path: Path) -> None:
    members = [*samples([0, 1]), *samples([2], labels=False)]
    shards = open_shards(str(write_tar(tmp_path / "a.tar", members)))
    with pytest.raises(DataError, match=r"1 of 3 images have no label.*a/00000002\.png"):
        shards.labels()
    without = open_shards(str(write_tar(tmp_path / "b.tar", samples([0], labels=False))))
    assert without.labels() is None


def test_any_cut_is_noticed(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", samples(range(3))).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for length in range(0, end, 97):
        cut = tmp_path / "cut.tar"
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match="cut short"):
            open_shards(str(cut))


def test_damage_and_joined_files(tmp_path: Path) -> None:
    whole = bytearray(write_tar(tmp_path / "a.tar", samples(range(3))).read_bytes())
    joined = tmp_path / "joined.tar"
    joined.write_bytes(whole + whole)
    with pytest.raises(DataError, match="several tar files were joined"):
        open_shards(str(joined))
    whole[1024 + 3] ^= 0xFF  # the second header
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(whole)
    with pytest.raises(DataError, match="no header at byte 1,024"):
        open_shards(str(damaged))
    text = tmp_path / "text.tar"
    text.write_bytes(b"no tar file " * 100)
    with pytest.raises(DataError, match="no tar file"):
        open_shards(str(text))


def test_sizes_that_a_header_only_claims(tmp_path: Path) -> None:
    info = tarfile.TarInfo("0.png")
    info.size = 1 << 60
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)
    with pytest.raises(DataError, match="cut short"):
        open_shards(str(path))
    extended = tarfile.TarInfo("x")
    extended.type = tarfile.XHDTYPE
    extended.size = 1 << 30
    path.write_bytes(extended.tobuf() + b"\0" * 2048)
    with pytest.raises(DataError, match="a header of 1,073,741,824 bytes"):
        open_shards(str(path))


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match="decompress it first"):
        open_shards(str(tmp_path / "a.tar.gz"))


def test_a_set_survives_pickling_and_threads(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    shards = pickle.loads(pickle.dumps(open_shards(str(two_shards(tmp_path / "set")))))
    numbers = np.random.default_rng(0).integers(0, 8, 400).tolist()
    with ThreadPoolExecutor(8) as pool:
        for number, item in zip(numbers, pool.map(shards.item, numbers), strict=True):
            assert item.data == picture(number)


def test_more_shards_than_files_that_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tessella.data.shards.open_files.MOST_OPEN", 3)
    for number in range(8):
        write_tar(tmp_path / "set" / f"a-{number}.tar", samples([number]))
    shards = open_shards(str(tmp_path / "set"))
    for _ in range(2):
        assert [shards.item(number).label for number in range(8)] == [n % 3 for n in range(8)]
    descriptors = Path("/proc/self/fd")
    if descriptors.exists():
        open_tars = 0
        for descriptor in descriptors.iterdir():
            open_tars += str(descriptor.resolve()).startswith(str(tmp_path / "set"))
        assert open_tars <= 3


def test_what_webdataset_writes(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(4):
            pixels = np.full((4, 4, 3), number, np.uint8)
            writer.write(
                {"__key__": f"{number:06}", "png": pixels, "cls": number, "json": {"n": number}}
            )
    shards = open_shards(str(path))
    assert [item.label for item in shards.items(0)] == [0, 1, 2, 3]
    assert shards.item(3).facts == {"n": 3}
    assert np.asarray(Image.open(io.BytesIO(shards.item(3).data))).max() == 3

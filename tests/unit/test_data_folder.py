"""Folders and zip files of images."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tessella.config import DataConfig
from tessella.data import SPLITS, ImageSet, decode, folder, load
from tessella.data.folder_layouts import HASH_RULE, Division, by_sub_folders
from tessella.data.splits import by_hash
from tessella.errors import DataError, InputError

RANDOM = np.random.default_rng(5)


def image(height: int = 6, width: int = 8) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)


def fill(root: Path, names: list[str], height: int = 6, width: int = 8) -> dict[str, np.ndarray]:
    images = {name: image(height, width) for name in names}
    for name, pixels in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name, "PNG")
    return images


def zipped(root: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(root).as_posix())
    return target


def division_of(names: list[str]) -> Division:
    """How sub-folders divide images of these names."""
    return by_sub_folders(names, folder._unsupported(names))


def every(root: Path, **options: Any) -> list[ImageSet]:
    return [load(DataConfig(f"folder:{root}", **options), split) for split in SPLITS]


NAMES = [f"{'cat' if i % 3 else 'dog'}/{i:02}.png" for i in range(40)]


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_and_a_zip_file(tmp_path: Path, packed: bool) -> None:
    images = fill(tmp_path / "pets", NAMES)
    parts = every(zipped(tmp_path / "pets", tmp_path / "pets.zip") if packed else tmp_path / "pets")
    rule = dict(zip(sorted(NAMES), by_hash(sorted(NAMES)), strict=True))
    for split, part in zip(SPLITS, parts, strict=True):
        assert part.names == tuple(name for name in sorted(NAMES) if rule[name] == split)
        np.testing.assert_array_equal(part.images, [images[name] for name in part.names])
        assert part.label_names == ("cat", "dog")
        assert part.labels is not None
        assert part.labels.tolist() == [("cat", "dog").index(name[:3]) for name in part.names]
        assert (part.levels, part.skipped) == (256, ())
        assert part.name == ("folder:pets.zip" if packed else "folder:pets")


def test_only_the_split_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, NAMES)
    calls: list[int] = []

    def counted(file: io.BufferedIOBase) -> decode.Opened:
        calls.append(1)
        return decode.open_image(file)

    monkeypatch.setattr("tessella.data.image_files.open_image", counted)
    part = load(DataConfig(f"folder:{tmp_path}"), "valid")
    assert len(calls) == len(part) < 10
    calls.clear()
    assert len(load(DataConfig(f"folder:{tmp_path}", limit=3), "train")) == len(calls) == 3


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["1.png", "2.png"], ()),
        (["a/1.png", "2.png"], ()),
        (["a/1.png", "a/2.png"], ("a",)),
        (["top/b/1.png", "top/a/x/2.png"], ("a", "b")),
        (["top/a/1.png", "top/2.png"], ("top",)),
        (["cat/1.png", "dog/2.png", "logo.svg"], ("cat", "dog")),
        (["train/a/1.png", "train/b/2.png", "test/3.png"], ("a", "b")),
        (["all/train/a/1.png", "all/test/b/2.png", "all/x.heic"], ("a", "b")),
    ],
)
def test_sub_folders_are_labels(names: list[str], labels: tuple[str, ...]) -> None:
    assert division_of(names).label_names == labels


def test_a_split_without_classes_has_no_labels_and_leaves_the_others_theirs() -> None:
    division = division_of(["test/1.png", "train/a/2.png", "train/b/3.png", "valid/b/4.png"])
    assert division.splits == ["test", "train", "train", "valid"]
    assert division.labels("test") is None
    assert division.labels("all") is None
    assert division.labels("train") == [0, 0, 1, 1]


def test_images_beside_folders_that_are_splits_are_refused() -> None:
    with pytest.raises(DataError, match=r"preview\.png is in none of them"):
        division_of(["test/1.png", "train/2.png", "preview.png"])
    assert division_of(["test/1.png", "train/2.png", "logo.svg"]).splits[:2] == [
        "test",
        "train",
    ]


def test_folders_named_like_splits_are_the_splits(tmp_path: Path) -> None:
    kinds = {"Train": "ab", "val": "ab", "test": "b"}
    fill(
        tmp_path,
        [
            f"top/{folder}/{kind}/{i}.png"
            for folder in kinds
            for kind in kinds[folder]
            for i in range(30)
        ],
    )
    parts = [*every(tmp_path), load(DataConfig(f"folder:{tmp_path}"), "all")]
    for part, folder_name in zip(parts, kinds, strict=False):
        assert {name.split("/")[1] for name in part.names or ()} == {folder_name}
        assert part.recipe["split_rule"] == "the folders Train, test, val"
        assert part.label_names == ("a", "b")
        assert part.labels is not None
        assert ["ab"[label] for label in part.labels] == [
            name.split("/")[2] for name in part.names or ()
        ]
    assert [len(part) for part in parts] == [60, 60, 30, 150]


def test_where_only_some_folders_are_named_like_splits_they_are_classes(tmp_path: Path) -> None:
    fill(tmp_path, [f"{folder}/{i}.png" for folder in ("train", "test", "cat") for i in range(20)])
    parts = every(tmp_path)
    assert parts[0].label_names == ("cat", "test", "train")
    assert parts[0].recipe["split_rule"].startswith(HASH_RULE)
    assert (
        "test, train are not splits but classes, since cat lies beside"
        in parts[0].recipe["split_rule"]
    )
    assert {name.split("/")[0] for name in parts[0].names or ()} == {"train", "test", "cat"}


def test_a_split_that_a_divided_folder_lacks_comes_from_train(tmp_path: Path) -> None:
    fill(tmp_path, [f"{folder}/{i}.png" for folder in ("train", "test") for i in range(20)])
    train, valid, test = every(tmp_path)
    assert {name.split("/")[0] for name in (*(train.names or ()), *(valid.names or ()))} == {
        "train"
    }
    assert len(valid) > 0
    assert len(train) + len(valid) == len(test) == 20
    assert train.recipe["split_rule"].startswith(
        "the folders test, train; valid: 10% of train by SHA-256"
    )
    assert train.label_names == ()


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, ["1.png", ".2.png", ".git/3.png", "a/.b/4.png"])
    part = load(DataConfig(f"folder:{tmp_path}"), "train")
    assert part.names == ("1.png",)
    assert load(DataConfig(f"folder:{zipped(tmp_path, tmp_path / '.x.zip')}"), "train").names == (
        "1.png",
    )


def test_content_decides(tmp_path: Path) -> None:
    images = fill(tmp_path, ["photo", "photo.txt", "photo.jpg"])
    (tmp_path / "notes.txt").write_text("hello")
    part = load(DataConfig(f"folder:{tmp_path}"), "train")
    assert part.names == tuple(sorted(images))
    np.testing.assert_array_equal(part.images, [images[name] for name in sorted(images)])
    assert part.skipped == ("notes.txt: not an image",)


def test_damaged_files_are_named_and_skipped(tmp_path: Path) -> None:
    names = [f"{i:02}.png" for i in range(19)]
    images = fill(tmp_path, names)
    train = [name for name, split in zip(names, by_hash(names), strict=True) if split == "train"]
    (tmp_path / train[0]).write_bytes((tmp_path / train[0]).read_bytes()[:60])
    Image.fromarray(np.zeros((6, 8), np.float32)).save(tmp_path / train[1], "TIFF")
    part = load(DataConfig(f"folder:{tmp_path}"), "train")
    assert part.names == tuple(train[2:])
    np.testing.assert_array_equal(part.images, [images[name] for name in train[2:]])
    assert part.skipped[0].startswith(f"{train[0]}: damaged: ")
    assert part.skipped[1] == f"{train[1]}: floating-point pixels; scale them to 8 bits first"
    assert part.identity()["skipped"] == 2
    for name in train[2:5]:
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(
        DataError, match=rf"at least 4 of {len(train)} files .*more than 20 %.*{train[0]}"
    ):
        load(DataConfig(f"folder:{tmp_path}"), "train")


def test_damaged_members_of_a_zip_file(tmp_path: Path) -> None:
    names = [f"{i:02}.png" for i in range(19)]
    fill(tmp_path / "x", names)
    target = zipped(tmp_path / "x", tmp_path / "x.zip")
    content = bytearray(target.read_bytes())
    first = next(
        name for name, split in zip(names, by_hash(names), strict=True) if split == "train"
    )
    place = content.find(first.encode()) + len(first) + 20
    content[place] ^= 255
    target.write_bytes(content)
    part = load(DataConfig(f"folder:{target}"), "train")
    assert [line.partition(":")[0] for line in part.skipped] == [first]


def test_sizes_must_be_one_or_asked_for(tmp_path: Path) -> None:
    fill(tmp_path, ["1.png", "2.png"])
    fill(tmp_path, ["3.png"], 8, 6)
    with pytest.raises(
        InputError,
        match=r"1.png is 8 pixels wide and 6 high, 3.png 6 wide and 8 high; set .*data.size=64",
    ):
        load(DataConfig(f"folder:{tmp_path}"), "train")
    assert load(DataConfig(f"folder:{tmp_path}", size="4"), "train").images.shape == (3, 4, 4, 3)


def test_orientation_counts_before_sizes_are_compared(tmp_path: Path) -> None:
    fill(tmp_path, ["1.png"])
    exif = Image.Exif()
    exif[274] = 6
    turned = image(8, 6)
    Image.fromarray(turned).save(tmp_path / "2.png", exif=exif)
    part = load(DataConfig(f"folder:{tmp_path}"), "train")
    np.testing.assert_array_equal(part.images[1], np.rot90(turned, -1))


@pytest.mark.parametrize("crop", ["center", "squash"])
def test_size_and_crop(tmp_path: Path, crop: str) -> None:
    images = fill(tmp_path, ["1.png"], 60, 40)
    part = load(DataConfig(f"folder:{tmp_path}", size="20x10", crop=crop), "train")
    source = Image.fromarray(images["1.png"])
    expected = (
        source.resize((10, 20), Image.Resampling.LANCZOS)
        if crop == "squash"
        else source.resize((10, 20), Image.Resampling.LANCZOS, box=(5, 0, 35, 60))
    )
    np.testing.assert_array_equal(part.images[0], np.asarray(expected))
    assert part.recipe["resampling"].startswith("lanczos (Pillow ")
    if crop == "center":
        np.testing.assert_array_equal(
            part.images[0], ImageOps.fit(source, (10, 20), Image.Resampling.LANCZOS)
        )


def test_tiles_are_cut_without_resampling(tmp_path: Path) -> None:
    images = fill(tmp_path, ["1.png"], 9, 14)
    fill(tmp_path, ["2.png"], 3, 14)
    part = load(DataConfig(f"folder:{tmp_path}", size="4x5", crop="tiles"), "train")
    assert part.names == ("1.png#0,0", "1.png#0,5", "1.png#4,0", "1.png#4,5")
    whole = images["1.png"]
    np.testing.assert_array_equal(part.images[1], whole[:4, 5:10])
    np.testing.assert_array_equal(part.images[2], whole[4:8, :5])
    assert part.skipped == ("2.png: smaller than a tile",)
    assert part.recipe["resampling"] == ""
    assert (
        len(load(DataConfig(f"folder:{tmp_path}", size="4x5", crop="tiles", limit=3), "train")) == 3
    )


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_channels(tmp_path: Path, channels: int) -> None:
    images = fill(tmp_path, ["1.png"])
    part = load(DataConfig(f"folder:{tmp_path}", channels=channels), "train")
    assert part.images.shape == (1, 6, 8, channels or 3)
    if channels in (0, 3):
        np.testing.assert_array_equal(part.images[0], images["1.png"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_links_are_followed_once_and_pipes_ignored(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", ["1.png"])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root", target_is_directory=True)
    os.mkfifo(tmp_path / "root" / "pipe.png")
    (tmp_path / "root" / "broken.png").symlink_to(tmp_path / "missing.png")
    assert load(DataConfig(f"folder:{tmp_path / 'root'}"), "train").names == ("linked/1.png",)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images; it holds nothing"):
        load(DataConfig(f"folder:{tmp_path}"), "train")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"has no images; it holds notes\.txt"):
        load(DataConfig(f"folder:{tmp_path}"), "train")
    with pytest.raises(DataError, match=r"takes a folder or a \.zip file"):
        load(DataConfig(f"folder:{tmp_path / 'notes.txt'}"), "train")
    with pytest.raises(DataError, match="there is no file or folder"):
        load(DataConfig(f"folder:{tmp_path / 'missing'}"), "train")
    with pytest.raises(DataError, match="folder needs a path"):
        load(DataConfig("folder:"), "train")


def test_a_split_that_a_small_folder_lacks(tmp_path: Path) -> None:
    fill(tmp_path, ["a.png", "b.png"])
    assert by_hash(["a.png", "b.png"]) == ["train", "train"]
    with pytest.raises(DataError, match=r"no images for split 'test'.*at least 20 images"):
        load(DataConfig(f"folder:{tmp_path}"), "test")


def test_encrypted_members_are_skipped(tmp_path: Path) -> None:
    """The flag of encryption set by hand, in the local header and in the directory."""
    fill(tmp_path / "x", ["1.png"])
    target = zipped(tmp_path / "x", tmp_path / "x.zip")
    content = bytearray(target.read_bytes())
    content[6] |= 1
    content[content.find(b"PK\x01\x02") + 8] |= 1
    target.write_bytes(content)
    with pytest.raises(DataError, match=r"no images for split 'train'.*encrypted"):
        load(DataConfig(f"folder:{target}"), "train")
    assert zipfile.ZipFile(io.BytesIO(content)).namelist() == ["1.png"]

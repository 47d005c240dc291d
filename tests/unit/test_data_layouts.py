"""Folders in the layouts of published data sets: read as they are meant, or refused with the way
out."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella.config import DataConfig
from tessella.data import ImageSet, load
from tessella.errors import DataError, TessellaWarning

RANDOM = np.random.default_rng(6)
SPLITS = ("train", "valid", "test")


def fill(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = RANDOM.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)


def read(root: Path, split: str = "train") -> ImageSet:
    return load(DataConfig(f"folder:{root}"), split)


def named_labels(part: ImageSet) -> dict[str, str]:
    """The class of each image by the image's path."""
    assert part.names is not None
    assert part.labels is not None
    return {
        name: part.label_names[label]
        for name, label in zip(part.names, part.labels.tolist(), strict=True)
    }


@pytest.fixture
def tiny_imagenet(tmp_path: Path) -> Path:
    names = [f"train/n0{c}/images/n0{c}_{i}.png" for c in range(3) for i in range(10)]
    names += [f"val/images/val_{i}.png" for i in range(12)]
    names += [f"test/images/test_{i}.png" for i in range(6)]
    fill(tmp_path, names)
    lines = [f"val_{i}.png\tn0{i % 3}\t0\t0\t3\t3\n" for i in range(12)]
    (tmp_path / "val/val_annotations.txt").write_text("".join(lines))
    return tmp_path


def test_tiny_imagenet_takes_validation_classes_from_its_annotations(tiny_imagenet: Path) -> None:
    parts = [read(tiny_imagenet, split) for split in SPLITS]
    assert [part.label_names for part in parts] == [("n00", "n01", "n02")] * 3
    assert [len(part) for part in parts] == [30, 12, 6]
    for name, label in named_labels(parts[0]).items():
        assert name.split("/")[1] == label
    for name, label in named_labels(parts[1]).items():
        assert label == f"n0{int(re.findall(r'[0-9]+', name)[0]) % 3}"
    assert parts[2].labels is None


def test_layouts_are_known_in_zip_files_and_below_another_folder(
    tiny_imagenet: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path_factory.mktemp("zip") / "tiny.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(tiny_imagenet.rglob("*.*")):
            archive.write(file, f"tiny-imagenet-200/{file.relative_to(tiny_imagenet).as_posix()}")
    assert read(target, "valid").label_names == ("n00", "n01", "n02")
    assert named_labels(read(target, "valid"))["tiny-imagenet-200/val/images/val_4.png"] == "n01"
    assert read(target, "test").labels is None


def test_tiny_imagenet_without_annotations_has_no_classes_held_out(tiny_imagenet: Path) -> None:
    (tiny_imagenet / "val/val_annotations.txt").unlink()
    assert read(tiny_imagenet).label_names == ("n00", "n01", "n02")
    valid = read(tiny_imagenet, "valid")
    assert valid.labels is None
    assert "valid has no classes (its only folder, images" in valid.recipe["split_rule"]


def test_the_validation_folder_of_tiny_imagenet_alone(tiny_imagenet: Path) -> None:
    part = read(tiny_imagenet / "val", "all")
    assert part.label_names == ("n00", "n01", "n02")
    assert named_labels(part)["images/val_4.png"] == "n01"


def test_an_image_that_the_annotations_leave_out_is_named(tiny_imagenet: Path) -> None:
    fill(tiny_imagenet, ["val/images/val_99.png"])
    with pytest.raises(DataError, match=r"val_99\.png is not in the list val/val_annotations\.txt"):
        read(tiny_imagenet)


@pytest.mark.parametrize("ending", ["txt", "csv"])
def test_celeba_is_divided_by_its_list_and_has_no_classes(tmp_path: Path, ending: str) -> None:
    fill(tmp_path, [f"img_align_celeba/{i:06}.jpg" for i in range(12)])
    separator = "," if ending == "csv" else " "
    lines = [f"{i:06}.jpg{separator}{i % 3}\n" for i in range(12)]
    header = "image_id,partition\n" if ending == "csv" else ""
    (tmp_path / f"list_eval_partition.{ending}").write_text(header + "".join(lines))
    (tmp_path / f"list_attr_celeba.{ending}").write_text("12\n5_o_Clock_Shadow Young\n")
    for number, split in enumerate(SPLITS):
        part = read(tmp_path, split)
        assert part.labels is None
        assert part.label_names == ()
        assert {int(Path(name).stem) % 3 for name in part.names or ()} == {number}
        assert len(part) == 4
    fill(tmp_path, ["img_align_celeba/000099.jpg"])
    with pytest.raises(DataError, match=r"000099\.jpg is not in the list list_eval_partition"):
        read(tmp_path)


def test_celeba_without_its_partition_has_no_class_called_after_its_folder(tmp_path: Path) -> None:
    fill(tmp_path, [f"img_align_celeba/{i:06}.jpg" for i in range(30)])
    (tmp_path / "list_attr_celeba.txt").write_text("30\nYoung\n")
    assert read(tmp_path).labels is None


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    root = tmp_path / "CUB_200_2011"
    names = [f"{c:03}.Bird_{c}/Bird_{i}.jpg" for c in (1, 2, 3) for i in range(20)]
    fill(root / "images", names)
    lists: dict[str, list[str]] = {
        "images": names,
        "image_class_labels": [str(int(name[:3])) for name in names],
        "train_test_split": [str(number % 2) for number in range(len(names))],
    }
    for name, values in lists.items():
        lines = [f"{number + 1} {value}\n" for number, value in enumerate(values)]
        (root / f"{name}.txt").write_text("".join(lines))
    (root / "classes.txt").write_text("1 001.Bird_1\n2 002.Bird_2\n3 003.Bird_3\n")
    return tmp_path


def test_cub_is_divided_and_labelled_by_its_lists(cub: Path) -> None:
    train, valid, test = (read(cub / "CUB_200_2011", split) for split in SPLITS)
    assert len(train) + len(valid) == len(test) == 30
    assert 0 < len(valid) < 10
    for part, parity in ((train, 1), (valid, 1), (test, 0)):
        for name, label in named_labels(part).items():
            assert name.split("/")[1] == label
            assert int(re.findall(r"_(\d+)\.jpg", name)[0]) % 2 == parity
    assert read(cub, "test").names == tuple(f"CUB_200_2011/{name}" for name in test.names or ())


def test_an_image_that_the_lists_of_cub_leave_out_is_named(cub: Path) -> None:
    fill(cub, ["CUB_200_2011/images/001.Bird_1/more.jpg"])
    with pytest.raises(DataError, match=r"more\.jpg is not in the list CUB_200_2011/images\.txt"):
        read(cub)


def test_classes_of_omniglot_are_characters(tmp_path: Path) -> None:
    names = [
        f"images_{part}/{alphabet}/character{c:02}/{i}.png"
        for part, alphabets in (("background", ("Greek", "Latin")), ("evaluation", ("Tengwar",)))
        for alphabet in alphabets
        for c in (1, 2)
        for i in range(10)
    ]
    fill(tmp_path, names)
    with pytest.raises(DataError, match=r"no character in common.*folder:PATH/images_background"):
        read(tmp_path)
    part = read(tmp_path / "images_background")
    characters = (
        "Greek/character01",
        "Greek/character02",
        "Latin/character01",
        "Latin/character02",
    )
    assert part.label_names == characters
    for name, label in named_labels(part).items():
        assert name.startswith(label)
    assert read(tmp_path / "images_background/Greek").label_names == ("character01", "character02")


@pytest.mark.parametrize(
    ("list_name", "content"),
    [
        ("labels.csv", "file,label\n{i}.png,{c}\n"),
        ("labels.csv", "{i}.png,{c}\n"),
        ("train.csv", "id,breed\n{i},{c}\n"),
        ("labels.csv", "x,filename,width,class\n1,{i}.png,4,{c}\n"),
        ("labels.tsv", "file\tlabel\n{i}.png\t{c}\n"),
        ("labels.csv", "file;label\n{i}.png;{c}\n"),
        ("labels.csv", "file,label\n./elsewhere.png,dog\n{i}.png,{c}\n"),
    ],
)
@pytest.mark.parametrize("folder", ["", "images/"])
def test_a_list_of_labels_beside_a_flat_folder(
    tmp_path: Path, list_name: str, content: str, folder: str
) -> None:
    fill(tmp_path, [f"{folder}{i}.png" for i in range(40)])
    *head, line = content.splitlines(keepends=True)
    rows = [line.format(i=i, c="cat" if i % 3 else "dog") for i in range(40)]
    (tmp_path / list_name).write_text("".join([*head, *rows]))
    for split in SPLITS:
        for name, label in named_labels(read(tmp_path, split)).items():
            assert label == ("cat" if int(Path(name).stem) % 3 else "dog")


def test_a_list_may_label_the_training_images_only(tmp_path: Path) -> None:
    fill(tmp_path, [f"{part}/{part[:2]}{i}.png" for part in ("train", "test") for i in range(40)])
    rows = [f"tr{i},{'ab'[i % 2]}\n" for i in range(40)]
    (tmp_path / "train_labels.csv").write_text("id,label\n" + "".join(rows))
    assert set(named_labels(read(tmp_path)).values()) == {"a", "b"}
    assert read(tmp_path, "test").labels is None


def test_each_split_may_have_a_list_of_its_own(tmp_path: Path) -> None:
    fill(tmp_path, [f"{part}/{part[:2]}{i}.png" for part in ("train", "test") for i in range(40)])
    for part in ("train", "test"):
        rows = [f"{part[:2]}{i}.png,{'ab'[i % 2]}\n" for i in range(40)]
        (tmp_path / f"{part}.csv").write_text("file,label\n" + "".join(rows))
    for split in ("train", "test"):
        for name, label in named_labels(read(tmp_path, split)).items():
            assert label == "ab"[int(re.findall(r"[0-9]+", name)[0]) % 2]


def test_a_table_that_cannot_be_read_does_no_harm(tmp_path: Path) -> None:
    fill(tmp_path, [f"{i}.png" for i in range(30)])
    (tmp_path / "big.csv").write_text("a" * 200_000)
    with pytest.warns(
        TessellaWarning, match=r"no labels are taken from it: big\.csv is not a table"
    ):
        assert read(tmp_path).labels is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("file,width,height\n{i}.png,3,4\n", "unclear which column holds their labels"),
        ("file,caption\n{i}.png,picture {i}\n", "40 different values for 40 images"),
    ],
)
def test_a_list_without_classes_is_spoken_of_and_not_followed(
    tmp_path: Path, content: str, says: str
) -> None:
    fill(tmp_path, [f"{i}.png" for i in range(40)])
    header, line = content.splitlines(keepends=True)
    (tmp_path / "x.csv").write_text(header + "".join(line.format(i=i) for i in range(40)))
    for _ in range(2):  # the second time the images come from the cache
        with pytest.warns(TessellaWarning, match=says):
            assert read(tmp_path).labels is None


def test_lists_that_contradict_or_leave_out_images_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, [f"{i}.png" for i in range(40)])
    rows = [f"{i}.png,{'ab'[i % 2]}\n" for i in range(40)]
    (tmp_path / "x.csv").write_text("".join(rows[:-1]))
    with pytest.raises(DataError, match=r"x\.csv gives labels to some images, and none to 39\.png"):
        read(tmp_path)
    (tmp_path / "x.csv").write_text("".join([*rows, "3.png,a\n"]))
    with pytest.raises(DataError, match=r"x\.csv gives 3\.png the labels 'b' and 'a'"):
        read(tmp_path)
    (tmp_path / "x.csv").write_text("".join(rows))
    (tmp_path / "y.csv").write_text("".join(rows))
    with pytest.raises(DataError, match=r"x\.csv, y\.csv both give labels"):
        read(tmp_path)


def test_a_table_of_other_things_is_no_list_of_labels(tmp_path: Path) -> None:
    fill(tmp_path, [f"{i}.png" for i in range(40)])
    (tmp_path / "results.csv").write_text("epoch,loss\n1,0.5\n2,0.25\n3,0.125\n")
    assert read(tmp_path).labels is None


def test_held_out_classes_that_training_lacks_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, [f"train/{c}/{i}.png" for c in "ab" for i in range(10)])
    fill(tmp_path, [f"test/{c}/{i}.png" for c in "ac" for i in range(10)])
    for split in SPLITS:
        with pytest.raises(DataError, match=r"test has classes that train lacks \(c\)"):
            read(tmp_path, split)
    assert read(tmp_path, "all").label_names == ("a", "b", "c")


def test_held_out_splits_that_lack_a_class_say_so(tmp_path: Path) -> None:
    fill(tmp_path, [f"train/{c}/{i}.png" for c in "abc" for i in range(10)])
    fill(tmp_path, [f"test/{c}/{i}.png" for c in "ac" for i in range(10)])
    with pytest.warns(TessellaWarning, match="test has no images of 1 of the 3 classes: b"):
        part = read(tmp_path, "test")
    assert part.label_names == ("a", "b", "c")
    assert set(named_labels(part).values()) == {"a", "c"}


@pytest.mark.parametrize("kind", ["folder", "npz", "mnist"])
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "binarized_mnist_train.amat",
            b"0 1 1 0\n",
            r"np\.loadtxt\(f'binarized_mnist_\{s\}\.amat'",
        ),
        ("train_32x32.mat", b"MATLAB 5.0 MAT-file" + bytes(300), r"scipy\.io\.loadmat"),
        ("digits.mat", b"MATLAB 7.3 MAT-file" + bytes(300), r"h5py\.File\('digits\.mat'\)"),
        ("x.h5", b"\x89HDF\r\n\x1a\n" + bytes(300), r"h5py"),
        ("train-0.parquet", b"PAR1" + bytes(300), r"--data hf:"),
        ("images.npy", b"\x93NUMPY" + bytes(300), r"images=np\.load\('images\.npy'\)"),
        ("images.tar", bytes(1024), r"--data shards:"),
        ("train.tfrecord", bytes(300), "TFRecord"),
        ("data.mdb", bytes(300), "LMDB"),
        ("images.pkl", b"\x80\x04." + bytes(300), "can run any code"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_formats_are_refused_with_the_line_that_converts_them(
    tmp_path: Path, kind: str, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(DataError, match=says):
            load(DataConfig(f"{kind}:{path}"), "train")


def test_the_line_for_binarized_mnist_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = {}
    for split in SPLITS:
        written[split] = RANDOM.integers(0, 2, (5, 784))
        np.savetxt(f"binarized_mnist_{split}.amat", written[split], "%d")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    line = re.search(r"np\.savez.*", str(caught.value))
    assert line
    exec(line[0], {"np": np})
    for split in SPLITS:
        part = load(DataConfig("npz:new.npz"), split)
        np.testing.assert_array_equal(part.images.reshape(5, -1), written[split] * 255)
        assert part.levels == 2


def test_a_folder_of_downsampled_imagenet_says_how_its_batches_are_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = RANDOM.integers(0, 256, (40, 3072), dtype=np.uint8)
    for number in (1, 2):
        np.savez(f"train_data_batch_{number}.npz", data=rows, labels=np.arange(40) + 1)
    with pytest.raises(DataError) as caught:
        load(DataConfig(f"npz:{tmp_path}"), "train")
    line = re.search(r"p = .*", str(caught.value))
    assert line
    exec(line[0], {"np": np})
    assert len(load(DataConfig("npz:imagenet.npz"), "train")) == 72


def test_years_behind_the_names_of_splits_do_no_harm(tmp_path: Path) -> None:
    fill(tmp_path, [f"{folder}2017/{i}.png" for folder in ("train", "val") for i in range(30)])
    for split, folder in (("train", "train2017"), ("valid", "val2017"), ("test", "train2017")):
        part = read(tmp_path, split)
        assert {name.split("/")[0] for name in part.names or ()} == {folder}
        assert part.labels is None
    assert len(read(tmp_path, "valid")) == 30


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (["trainA", "trainB", "testA", "testB"], "look like splits, .*rename them"),
        (["train_images", "test_images"], "look like splits, .*rename them"),
        (["train2017", "val2017", "unlabeled2017"], "look like splits, .*rename them"),
        (
            ["A/train", "A/test", "B/train", "B/test"],
            "A/test, A/train look like splits inside of a class",
        ),
        (["A/train", "A/test", "B"], "A/test, A/train look like splits inside of a class"),
        (["JPEGImages", "SegmentationClass"], "their masks, .*folder:PATH/JPEGImages"),
        (["images", "masks"], "their masks, .*folder:PATH/images"),
        (["Images", "Ground Truth"], "their masks, .*folder:PATH/Images"),
        (["train/images", "train/labels", "val/images"], "their masks, .*PATH/train/images"),
        (["images/train", "images/val", "annotations/train"], "their masks, .*PATH/images,"),
    ],
)
def test_splits_and_masks_are_no_classes(tmp_path: Path, folders: list[str], says: str) -> None:
    fill(tmp_path, [f"{folder}/{i}.png" for folder in folders for i in range(3)])
    with pytest.raises(DataError, match=says):
        read(tmp_path)


def test_every_image_of_splits_inside_of_classes_can_be_asked_for(tmp_path: Path) -> None:
    fill(tmp_path, [f"{c}/{split}/1.png" for c in "AB" for split in ("train", "test")])
    assert read(tmp_path, "all").label_names == ("A", "B")


def test_a_face_with_two_splits_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, [f"img_align_celeba/{i:06}.jpg" for i in range(12)])
    lines = "".join(f"{i:06}.jpg {i % 3}\n" for i in range(12))
    file = tmp_path / "list_eval_partition.txt"
    file.write_text(f"{lines}000001.jpg 1\n")
    assert len(read(tmp_path)) == 4
    file.write_text(f"{lines}000000.jpg 2\n")
    with pytest.raises(DataError, match=r"names 000000\.jpg twice, with 'train' and 'test'"):
        read(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_labels_in_utf_16_are_read(tmp_path: Path, encoding: str) -> None:
    fill(tmp_path, [f"{i}.png" for i in range(20)])
    lines = "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(20))
    (tmp_path / "labels.csv").write_bytes(f"id,label\n{lines}".encode(encoding) + b"\n")
    part = read(tmp_path)
    assert part.label_names == ("a", "b")
    assert named_labels(part)["4.png"] == "a"

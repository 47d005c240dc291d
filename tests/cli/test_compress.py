"""``tessella compress``, ``decompress`` and ``score``: folders of files come back, bit for bit."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_twin import FakeTwin
from PIL import Image

import tessella as ts
from tessella.cli.entry import main
from tessella.cli.verbs import compress, decompress, score
from tessella.codec.group_walk import Twin
from tessella.errors import ArtifactError

pytest.importorskip("constriction", reason="the entropy coder is an optional library")

TWINS = {"digits": FakeTwin(ts.Grid(6, 6, 3, 256)), "levels": FakeTwin(ts.Grid(6, 6, 1, 16))}


@pytest.fixture(autouse=True)
def fake_models(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Runs have fake twins; the value of ``run`` chooses one."""
    chosen = {"run": "digits"}

    def find(model: bytes, given: str, beside: Path) -> Twin:
        for twin in TWINS.values():
            if twin.id.startswith(model.hex()):
                return twin
        raise ArtifactError(f"no model {model.hex()} in {given}, {beside}")

    monkeypatch.setattr(compress, "twin_of_run", lambda run: TWINS[chosen["run"]])
    monkeypatch.setattr(score, "twin_of_run", lambda run: TWINS[chosen["run"]])
    monkeypatch.setattr(decompress, "find_twin", find)
    return chosen


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    """Smooth pixels."""
    dice = np.random.default_rng(seed)
    steps = dice.integers(-2, 3, shape).cumsum(axis=1).cumsum(axis=0)
    return (128 + steps).clip(0, 255).astype(np.uint8)


def save(path: Path, mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Write an image of a mode; returns it."""
    height, width = size
    channels = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode, 1)
    values = pixels(height, width, channels, seed=seed)
    kind = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    if mode == "CMYK":
        kind = "CMYK"
    image = Image.frombytes(kind, (width, height), values.tobytes())
    if mode == "1":
        image = image.convert("1")
    if mode == "P":
        image = image.convert("RGB").quantize(9)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return image


def same(path: Path, image: Image.Image) -> bool:
    """Whether a file is an image, bit for bit, in mode and palette too."""
    with Image.open(path) as back:
        back.load()
        same_palette = (back.getpalette() or [])[:27] == (image.getpalette() or [])[:27]
        is_same = back.mode == image.mode and back.size == image.size
        return is_same and same_palette and back.tobytes() == image.tobytes()


def test_a_folder_of_all_modes_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    images = {}
    names = {
        "grey.png": "L",
        "b/bits.png": "1",
        "b/colours é.png": "RGB",
        "b/c/alpha.png": "RGBA",
        "palette.png": "P",
        "two.png": "LA",
        "print.tif": "CMYK",
        "map.bmp": "RGB",
        "map.ppm": "RGB",
    }
    for seed, (name, mode) in enumerate(names.items()):
        images[name] = save(folder / name, mode, (1 + 3 * seed, 14 - seed), seed)
    file = tmp_path / "photos.tsl"
    assert main(["compress", "digits", str(folder), "--out", str(file)]) == 0
    out = tmp_path / "back"
    assert main(["decompress", str(file), "--out", str(out)]) == 0
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == set(names)
    for name, image in images.items():
        assert same(out / name, image), name


@pytest.mark.slow
def test_a_thousand_images_come_back(tmp_path: Path) -> None:
    modes = ("L", "RGB", "1", "P", "LA", "RGBA")
    images = {}
    for number in range(1000):
        name = f"{number % 7}/{'ab' * (number % 3)}{number:04d}.png"
        size = (1 + number % 9, 1 + number % 11)
        images[name] = save(tmp_path / "in" / name, modes[number % 6], size, number)
    file = tmp_path / "all.tsl"
    words = ["compress", "digits", str(tmp_path / "in"), "--out", str(file), "--group", "200"]
    assert main([*words, "--batch", "200"]) == 0
    out = tmp_path / "back"
    assert main(["decompress", str(file), "--out", str(out), "--batch", "200"]) == 0
    assert len([path for path in out.rglob("*") if path.is_file()]) == 1000
    for name, image in images.items():
        assert same(out / name, image), name


def test_a_name_that_is_not_unicode_is_kept(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "odd")
    os.mkdir(folder)  # noqa: PTH102 - a name of bytes
    image = save(tmp_path / "x.png", "L", (5, 4))
    name = b"\xff\xfe \xe9.png"
    Path(os.fsdecode(folder + b"/" + name)).write_bytes((tmp_path / "x.png").read_bytes())
    file = tmp_path / "odd.tsl"
    assert main(["compress", "digits", str(tmp_path / "odd"), "--out", str(file)]) == 0
    assert main(["decompress", str(file), "--out", str(tmp_path / "back")]) == 0
    assert [os.fsencode(path.name) for path in (tmp_path / "back").iterdir()] == [name]
    assert same(tmp_path / "back" / os.fsdecode(name), image)


def test_files_that_lose_pixels_come_back_as_png(tmp_path: Path) -> None:
    save(tmp_path / "in" / "photo.jpg", "RGB", (9, 8))
    with Image.open(tmp_path / "in" / "photo.jpg") as opened:
        opened.load()
        save(tmp_path / "in" / "photo.jpg.png", "L", (2, 2))
        file = tmp_path / "x.tsl"
        assert main(["compress", "digits", str(tmp_path / "in"), "--out", str(file)]) == 0
        assert main(["decompress", str(file), "--out", str(tmp_path / "back")]) == 0
        assert same(tmp_path / "back" / "photo.jpg.png.png", opened)
    assert len(list((tmp_path / "back").iterdir())) == 2


def losing_files(folder: Path) -> dict[str, str]:
    """Files that cannot be kept as they are, and what is said of each."""
    folder.mkdir()
    image = Image.fromarray(pixels(6, 7, 3))
    exif = Image.Exif()
    exif[0x010E] = "a description"
    image.save(folder / "exif.jpg", exif=exif)
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    image.save(folder / "profile.png", icc_profile=b"profile")
    image.save(folder / "clear.png", transparency=(1, 2, 3))
    Image.fromarray(pixels(6, 7, 1)[:, :, 0].astype(np.uint16) * 257).save(folder / "wide.png")
    image.quantize(4).save(folder / "frames.gif", save_all=True, append_images=[image.quantize(3)])
    Image.fromarray(pixels(6, 7, 1)[:, :, 0].astype(np.float32)).save(folder / "float.tif")
    (folder / "grey.pgm").write_bytes(b"P5\n# wide\n2 1\n1023\n\0\1\2\3")
    return {
        "exif.jpg": "EXIF",
        "turned.jpg": "orientation",
        "profile.png": "colour profile",
        "clear.png": "transparent colour",
        "wide.png": "16 bits",
        "frames.gif": "1 further frames",
        "float.tif": "32 bits",
        "grey.pgm": "bits of each value",
    }


def test_what_cannot_be_kept_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = losing_files(tmp_path / "in")
    for name, words in expected.items():
        command = ["compress", "digits", str(tmp_path / "in" / name)]
        assert main([*command, "--out", str(tmp_path / "x.tsl")]) == 2
        said = capsys.readouterr().err
        assert words in said, name
        assert "--drop-metadata" in said
        assert not list(tmp_path.glob("*.tsl"))
    command = ["compress", "digits", str(tmp_path / "in"), "--drop-metadata"]
    assert main([*command, "--out", str(tmp_path / "x.tsl")]) == 0
    assert "not kept" in capsys.readouterr().err
    assert main(["decompress", str(tmp_path / "x.tsl"), "--out", str(tmp_path / "back")]) == 0
    with Image.open(tmp_path / "back" / "turned.jpg.png") as turned:
        assert turned.size == (6, 7)
    with Image.open(tmp_path / "back" / "wide.png") as wide:
        assert np.array_equal(np.asarray(wide), pixels(6, 7, 1)[:, :, 0])


def test_a_model_of_few_levels_takes_what_it_draws(
    tmp_path: Path, fake_models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_models["run"] = "levels"
    values = (pixels(9, 7, 1)[:, :, 0] // 16) * 17
    (tmp_path / "in").mkdir()
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "in" / "a.png")
    file = tmp_path / "x.tsl"
    words = ["compress", "levels", str(tmp_path / "in"), "--out", str(file)]
    monkey = words[:1] + ["digits"] + words[2:]
    assert main(monkey) == 0
    assert main(["decompress", str(file), "--out", str(tmp_path / "back")]) == 0
    with Image.open(tmp_path / "back" / "a.png") as back:
        assert np.array_equal(np.asarray(back), values)
    Image.fromarray(pixels(5, 5, 1)[:, :, 0]).save(tmp_path / "in" / "b.png")
    assert main(monkey) == 2
    assert "b.png: images must have values 0..15" in capsys.readouterr().err


def test_arrays_become_numbered_files(tmp_path: Path) -> None:
    import torch

    values = torch.from_numpy(np.stack([pixels(6, 6, 3, seed=seed) for seed in range(3)]))
    file = tmp_path / "x.tsl"
    file.write_bytes(ts.compress(values, TWINS["digits"]))
    assert main(["decompress", str(file), "--out", str(tmp_path / "back")]) == 0
    names = sorted(path.name for path in (tmp_path / "back").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]
    with Image.open(tmp_path / "back" / names[2]) as back:
        assert np.array_equal(np.asarray(back), values[2].numpy())


def test_mistakes_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "in" / "a.png", "L", (4, 4))
    file = tmp_path / "x.tsl"
    assert main(["compress", "digits", str(tmp_path / "in"), "--out", str(file)]) == 0
    damaged = tmp_path / "damaged.tsl"
    damaged.write_bytes(file.read_bytes()[:-1])
    (tmp_path / "text.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    mistakes = {
        f"compress digits --out {file}": "name the image files",
        f"compress digits {tmp_path}/none --out {file}": "there is no file or folder",
        f"compress digits {tmp_path}/empty --out {file}": "no images",
        f"compress digits {tmp_path}/text.png --out {file}": "cannot be read as an image",
        f"compress digits {tmp_path}/in --out {tmp_path}/x.zip": "must end in .tsl",
        f"compress digits {tmp_path}/in/a.png {tmp_path}/in/a.png --out {file}": "there twice",
        f"decompress {tmp_path}/none.tsl": "there is no file",
        f"decompress {damaged} --out {tmp_path}/back": "checksum differs",
        f"decompress {file} --out {tmp_path}/in": "is not empty",
        f"decompress {file} --out {tmp_path}/back --max-pixels 15": "--max-pixels",
        f"decompress {tmp_path}/in/a.png --out {tmp_path}/back": "no compressed file",
        f"score digits {tmp_path}/in --out {tmp_path}/x.csv --heat-maps {tmp_path}": "not empty",
    }
    before = file.read_bytes()
    for words, message in mistakes.items():
        assert main(words.split()) == 2, words
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert file.read_bytes() == before
    assert not (tmp_path / "back").exists()


def test_scores_are_what_a_file_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(12):
        save(tmp_path / "in" / f"{seed}.png", "RGB" if seed % 2 else "L", (7 + seed, 9), seed)
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "in" / "noise.png")
    out = tmp_path / "scores.csv"
    maps = tmp_path / "maps"
    words = ["score", "digits", str(tmp_path / "in"), "--out", str(out), "--heat-maps", str(maps)]
    assert main([*words, "--batch", "5"]) == 0
    said = capsys.readouterr().out
    assert "13 images" in said
    assert "±" in said
    assert said.index("least expected") < said.rindex("noise.png")
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    bits = {row["name"]: float(row["bits"]) for row in rows}
    assert float(rows[-1]["bits/dim"]) == pytest.approx(bits["noise.png"] / 192, abs=1e-5)
    # The file of one image takes its bits, and a stream and a header.
    for name in ("3.png", "4.png"):
        file = tmp_path / "one.tsl"
        assert main(["compress", "digits", str(tmp_path / "in" / name), "--out", str(file)]) == 0
        assert 0 <= 8 * file.stat().st_size - bits[name] < 8 * 70
    with Image.open(maps / "noise.png.png") as drawn:
        assert drawn.size == (8, 8)
    assert len(list(maps.iterdir())) == 13
    capsys.readouterr()
    # The table is ours, so it may be replaced; the folder of maps is not empty.
    assert main(words[:-2]) == 0


KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}]
from fake_twin import FakeTwin
import tessella as ts
from tessella import files
from tessella.cli.verbs import compress
from tessella.cli.entry import main
compress.twin_of_run = lambda run: FakeTwin(ts.Grid(6, 6, 3, 256))
write = Path.write_bytes
def slowly(path, data):
    write(path, data[:len(data) // 2])
    print("writing", flush=True)
    time.sleep(60)
Path.write_bytes = slowly
main(["compress", "digits", {folder!r}, "--out", {out!r}])
"""


def test_killed_while_writing_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", "RGB", (20, 20))
    out = tmp_path / "x.tsl"
    code = KILLED.format(
        tests=str(Path(__file__).resolve().parents[1]), folder=str(tmp_path / "in"), out=str(out)
    )
    before = b"\x89TSL, the file of before"
    out.write_bytes(before)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        child.send_signal(signal.SIGKILL)
    assert out.read_bytes() == before
    assert list(tmp_path.glob("*.tsl")) == [out]

"""Verbs whose work is divided into units, as a user types them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tessella.cli.entry import main
from tessella.files import pictures

IMAGES = 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of image files that a model of the digits can code."""
    path = tmp_path / "digits"
    path.mkdir()
    symbols = np.random.default_rng(0).integers(0, 17, (IMAGES, 8, 8, 1))
    for number, image in enumerate(((510 * symbols + 16) // 32).astype(np.uint8)):
        (path / f"{number:02d}.png").write_bytes(pictures.png(image))
    return path


@pytest.fixture
def shards(folder: Path, tmp_path: Path) -> Path:
    """The same files in two tar files."""
    path = tmp_path / "shards"
    path.mkdir()
    for number, files in enumerate(np.array_split(sorted(folder.iterdir()), 2)):
        with tarfile.open(path / f"set-{number:06d}.tar", "w") as archive:
            for file in files:
                archive.add(file, file.name)
    return path


def test_the_table_of_units_is_the_table_of_one_command(
    folder: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "scores.csv"
    assert main(["score", "digits", str(folder), "--out", str(table)]) == 0
    said = capsys.readouterr().out.partition("table:")[0]
    out = tmp_path / "scores"
    words = ["score", "digits", str(folder), "--units", "3", "--actors", "1", "--out", f"{out}/"]
    assert main(words) == 0
    assert capsys.readouterr().out.partition("table:")[0] == said
    assert (out / "scores.csv").read_bytes() == table.read_bytes()
    # The same command has nothing to do, and says the same.
    assert main(words) == 0
    assert capsys.readouterr().out.partition("table:")[0] == said
    of_shards = tmp_path / "of-shards"
    words = ["score", "digits", f"shards:{shards}", "--units", "3", "--actors", "1"]
    assert main([*words, "--out", f"{of_shards}/"]) == 0
    lines = (of_shards / "scores.csv").read_text().splitlines()
    assert lines[1].startswith("set-000000/00.png,8,8,")
    # The bits are the same, and only the names differ.
    bits = [line.split(",")[1:] for line in table.read_text().splitlines()]
    assert [line.split(",")[1:] for line in lines] == bits


def test_compressed_files_are_those_of_single_images(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "files"
    words = ["compress", "digits", str(folder), "--units", "4", "--actors", "1"]
    assert main([*words, "--out", f"{out}/"]) == 0
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
    assert len(found) == IMAGES
    alone = tmp_path / "alone.tsl"
    assert main(["compress", "digits", str(folder / "03.png"), "--out", str(alone)]) == 0
    assert found["03.png.tsl"] == alone.read_bytes()


def test_drawn_units_are_the_pictures_of_a_folder(tmp_path: Path) -> None:
    words = ["sample", "digits", "--n", "5", "--seed", "62"]
    assert main([*words, "--out", f"{tmp_path}/pictures/"]) == 0
    assert main([*words, "--units", "3", "--actors", "1", "--out", f"{tmp_path}/units/"]) == 0
    found = {}
    for path in sorted((tmp_path / "units").glob("*.tar")):
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "pictures").glob("*.png")}


def test_codes_are_the_same_from_processes(tmp_path: Path) -> None:
    words = ["tokenize", "digits-codes", "--data", "digits", "--split", "test"]
    assert main([*words, "--out", str(tmp_path / "threads")]) == 0
    assert main([*words, "--actors", "2", "--out", str(tmp_path / "processes")]) == 0
    for path in (tmp_path / "threads").iterdir():
        assert (tmp_path / "processes" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--units", "4"], "name a folder with a / at its end"),
        (["--actors", "2"], "--actors is for work in units"),
        (["--units", "4", "--out", "x/", "--address", "auto"], "--address is for --engine ray"),
        (["--units", "4", "--out", "x/", "--heat-maps", "maps"], "leave out --heat-maps"),
        (["--out", "x/"], "is a folder, for --units"),
        (["shards:nowhere"], "is read in units"),
    ],
    ids=" ".join,
)
def test_options_that_do_not_fit_are_told_in_one_line(
    words: list[str],
    said: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["score", "digits", str(folder), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]

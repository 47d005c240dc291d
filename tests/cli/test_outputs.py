"""What the verbs write: never over what they did not make, counted, and shown on any terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import tessella as ts
from tessella import files
from tessella.cli.entry import main
from tessella.pipeline import save_model
from tessella.storage import code_store

WRITERS = {
    "sample digits --n 1 --out {out}": "x.png",
    "complete digits --n 1 --variants 1 --out {out}": "x.png",
    "eval digits --json {out} data.limit=20": "x.json",
    "eval digits --per-image {out} data.limit=20": "x.csv",
    "info digits --samples 0 --report {out}": "x.html",
}
every_writer = pytest.mark.parametrize("words", WRITERS)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@every_writer
def test_a_foreign_file_is_refused_and_forced(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / WRITERS[words]
    out.write_bytes(b"somebody's work")
    command = words.format(out=out).split()
    assert main(command) == 2
    assert "--force" in capsys.readouterr().err
    assert listing(tmp_path) == {out.name: b"somebody's work"}
    assert main([*command, "--force"]) == 0
    assert out.read_bytes() != b"somebody's work"
    assert main(command) == 0, "what tessella made may be replaced"


@every_writer
def test_a_link_is_refused(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"somebody's work")
    out = tmp_path / "folder" / WRITERS[words]
    out.parent.mkdir()
    out.symlink_to(target)
    for more in ([], ["--force"]):
        assert main([*words.format(out=out).split(), *more]) == 2
        assert "is a link" in capsys.readouterr().err
    assert out.is_symlink()
    assert target.read_bytes() == b"somebody's work"


@pytest.mark.parametrize(
    "words",
    [
        "sample digits --n 0 --out {tmp}/new/x.png",
        "sample digits --class-label 3 --out {tmp}/new/x.npz",
        "sample digits --guidance 2 --out {tmp}/new/pictures/",
        "sample nowhere --out {tmp}/new/x.npz",
        "complete digits --keep 2 --out {tmp}/new/x.png",
        "eval digits data.levels=256 --json {tmp}/new/x.json",
        "tokenize digits --out {tmp}/new",
        "detokenize digits-vqvae {tmp}/none --out {tmp}/new/x.npz",
        "detokenize digits-vqvae {tmp}/none --batch -3 --out {tmp}/new/x.npz",
        "train digits train.minuts=3 --out {tmp}/new",
    ],
)
def test_a_refused_command_leaves_nothing(words: str, tmp_path: Path) -> None:
    assert main(words.format(tmp=tmp_path).split()) == 2
    assert not list(tmp_path.iterdir())


def test_a_refused_tokenize_leaves_no_lock(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("x")
    words = ["tokenize", "digits-vqvae", "--split", "valid", "--out", str(tmp_path)]
    assert main(words) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


@pytest.fixture
def codes(tmp_path: Path) -> tuple[Path, Path]:
    """A tokenizer's run, and codes of the 150 validation digits."""
    run = tmp_path / "tokenizer"
    sizes = {"hidden": 8, "code_dim": 4, "downsample": 2}
    save_model(ts.create_tokenizer("vqvae", image_size=(8, 8), channels=1, **sizes), run)
    words = ["tokenize", str(run), "--data", "digits", "--split", "valid"]
    assert main([*words, "--out", str(tmp_path / "codes")]) == 0
    return run, tmp_path / "codes"


@pytest.mark.parametrize("out", ["x.npz", "x.png", "x/"])
@pytest.mark.parametrize("batch", ["-3", "0"])
def test_detokenize_refuses_a_batch_that_is_none(
    codes: tuple[Path, Path], tmp_path: Path, out: str, batch: str
) -> None:
    words = ["detokenize", str(codes[0]), str(codes[1]), "--out", f"{tmp_path}/{out}"]
    assert main([*words, "--batch", batch]) == 2
    assert not (tmp_path / out).exists()
    assert main(words) == 0
    if out == "x.npz":
        assert np.load(tmp_path / out)["arr_0"].shape == (150, 8, 8, 1)


def test_an_archive_whose_record_lies_is_written_again(
    codes: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "x.npz"
    words = ["detokenize", str(codes[0]), str(codes[1]), "--out", str(out)]
    assert main(words) == 0
    good = out.read_bytes()
    with zipfile.ZipFile(out) as archive:
        record = archive.comment
    with zipfile.ZipFile(out, "w") as archive:
        archive.comment = record
        with archive.open("arr_0.npy", "w") as member:
            np.lib.format.write_array(member, np.zeros((0, 8, 8, 1), np.uint8))
    assert main(words) == 0
    assert out.read_bytes() == good


def test_damaged_codes_are_refused_by_every_verb_that_reads_them(
    codes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, place = codes
    (place.parent / "split" / "train").parent.mkdir()
    for split in ("train", "valid"):
        words = ["tokenize", str(run), "--data", "digits", "--split", split]
        assert main([*words, "--out", str(tmp_path / "split" / split)]) == 0
    shard = tmp_path / "split" / "train" / "codes-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-2000:] = bytes(2000)
    shard.write_bytes(content)
    capsys.readouterr()
    words = ["train", "digits-prior", "--tokenizer", str(run), "--steps", "1"]
    words += ["--data", f"codes:{tmp_path}/split", "--out", str(tmp_path / "prior")]
    assert main(words) == 2
    assert "codes-00000.safetensors is missing or damaged" in capsys.readouterr().err
    words = ["detokenize", str(run), str(shard.parent), "--out", str(tmp_path / "x.npz")]
    assert main(words) == 2
    assert "codes-00000.safetensors is missing or damaged" in capsys.readouterr().err
    assert main(["check", str(shard.parent)]) == 1
    assert main(["check", str(place)]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sample digits --n 1000000000000 --out {tmp}/x.npz", "free"),
        ("sample digits --n 1000000000000 --out {tmp}/x/", "free"),
        ("sample digits --n 1000000000000 --out {tmp}/x.png", "more than 134,217,728 pixels"),
        ("complete digits --variants 1000000000 --out {tmp}/x.png", "pixels"),
        ("complete digits --n 1000000000 --variants 1000000000 --out {tmp}/x.png", "pixels"),
    ],
)
def test_more_than_the_machine_has_is_refused_before_it_is_drawn(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.format(tmp=tmp_path).split()) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_with_a_bad_record_is_refused_before_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ts.load("digits").save(tmp_path / "run")
    files.write_json(tmp_path / "run" / "run.json", {"format": 99, "status": "finished"})
    assert main(["eval", str(tmp_path / "run"), "--data", "digits"]) == 2
    said = capsys.readouterr()
    assert "format 99" in said.err
    assert not said.out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_a_terminal_that_is_not_utf8_gets_escapes(encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    # One process for all, since each would import torch for seconds.
    code = """
from tessella.cli import main
for words in ("eval digits data.limit=20", "info digits", "info --models"):
    assert main(words.split()) == 0
"""
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert shown.returncode == 0, shown.stderr.decode(errors="replace")
    assert b"Error" not in shown.stderr
    shown.stdout.decode(encoding)


def test_figures_on_disk_are_strict_json(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert main(["eval", "digits", "--json", str(out), "data.limit=20"]) == 0
    json.loads(out.read_text(), parse_constant=lambda word: pytest.fail(word))


def test_codes_are_counted_by_check(
    codes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (codes[1] / "codes-00000.safetensors").unlink()
    capsys.readouterr()
    assert main(["check", str(codes[1])]) == 1
    assert "BROKEN" in capsys.readouterr().out
    assert len(code_store.open_codes(codes[1])) == 150

"""``tessella sample`` into arrays and directories: stopped and gone on with, refused where it does
not belong."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import tessella as ts
from tessella.cli.entry import main
from tessella.files.pictures import read_made
from tessella.models.weight_storage import WeightKind
from tessella.pipeline import save_model


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    status = main(words)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("name", ["x.npz", "x/"])
def test_a_stopped_sample_goes_on_and_ends_as_an_undisturbed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    words = ["sample", "digits", "--n", "7", "--batch", "2", "--seed", "5", "--out"]
    assert run(capsys, *words, f"{tmp_path}/straight/{name}")[0] == 0
    drawing = ts.Generator.batches

    def stops(*arguments: object, **options: object) -> Iterator[torch.Tensor]:
        yield from itertools.islice(drawing(*arguments, **options), 2)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ts.Generator, "batches", stops)
        assert run(capsys, *words, f"{tmp_path}/stopped/{name}")[0] == 130
    status, said, err = run(capsys, *words, f"{tmp_path}/stopped/{name}")
    assert (status, err) == (0, "")
    assert said.startswith("resuming at image 4 of 7\n7 images of 8x8, seed 5: ")
    files = [
        sorted(f for f in (tmp_path / end).rglob("*") if f.is_file())
        for end in ("straight", "stopped")
    ]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    assert run(capsys, *words, f"{tmp_path}/stopped/{name}")[1].startswith(
        "nothing to do, there are 7 images"
    )


@pytest.mark.parametrize("name", ["x.npz", "x/"])
def test_a_sample_in_the_place_of_another_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = ["--n", "2", "--out", f"{tmp_path}/{name}"]
    assert run(capsys, "sample", "digits", *out)[0] == 0
    others = [
        ["digits-codes", *out],
        ["digits", *out, "--seed", "1"],
        ["digits", *out, "--top-k", "3"],
        ["digits", *out, "--guidance", "2"],
    ]
    for words, differs in zip(others, ("model", "seed 0", "top_k 0", "guidance 1.0"), strict=True):
        status, _, err = run(capsys, "sample", *words)
        assert status == 2
        assert f"holds another run of images, of {differs}" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_rounded_weights_are_another_model_in_a_series_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: WeightKind
) -> None:
    words = ["sample", "digits", "--n", "3", "--out", f"{tmp_path}/x.npz"]
    status, said, _ = run(capsys, *words, "--weights", kind)
    assert status == 0
    note, _, wrote = said.partition("\n")
    assert note.startswith(f"note: digits with weights rounded to {kind} is another model")
    assert wrote.startswith("3 images of 8x8")
    generator = ts.load("digits")
    rounded = ts.Generator(generator.tokenizer, ts.quantize_weights(generator.prior, kind))
    assert np.array_equal(np.load(tmp_path / "x.npz")["arr_0"], rounded.sample(3).numpy())
    status, _, err = run(capsys, *words)
    assert status == 2
    assert "holds another run of images, of model" in err
    assert f"weights {kind}" in err


def test_a_completion_may_be_of_rounded_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["complete", "digits", "--n", "1", "--variants", "1", "--out", f"{tmp_path}/x.png"]
    status, said, _ = run(capsys, *words, "--weights", "int8")
    assert status == 0
    assert said.startswith("note: digits with weights rounded to int8")
    assert read_made(tmp_path / "x.png")["weights"] == "int8"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("fvsbn", "int8", "this fvsbn has no weights to keep as int8"),
        ("pixelcnn++", "bfloat16", "are normalized"),
    ],
)
def test_weights_that_cannot_be_rounded_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str, message: str
) -> None:
    options = {"filters": 8} if name == "pixelcnn++" else {}
    save_model(ts.create(name, ts.Grid(4, 4, 1, 8), **options), tmp_path / "run")
    words = ["sample", f"{tmp_path}/run", "--out", f"{tmp_path}/x.png", "--weights", kind]
    status, _, err = run(capsys, *words)
    assert status == 2
    assert err.startswith(f"tessella: --weights {kind}: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", ["sample --n 4 --batch 2", "complete --n 4 --variants 1"])
def test_drawing_tells_how_far_it_is_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr("tessella.storage.image_writer.EVERY", 0.0)
    status, _, err = run(capsys, *words.split(), "digits", "--out", f"{tmp_path}/x.png")
    assert status == 0
    assert re.search(r"^4 of 4 images, .* images/s, 00:00 left$", err, re.MULTILINE)

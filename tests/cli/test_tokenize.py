"""``tessella tokenize`` and ``detokenize``, and a prior trained on codes from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tessella as ts
from tessella.cli.entry import main
from tessella.pipeline import save_model
from tessella.storage import code_store


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer"
    save_model(
        ts.create_tokenizer(
            "vqvae", image_size=(8, 8), channels=1, hidden=8, code_dim=4, downsample=2
        ),
        path,
    )
    return path


def test_the_chain_over_codes_on_disk(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "codes"
    assert (
        main(["tokenize", str(run), "--data", "digits", "--out", str(out), "--workers", "2"]) == 0
    )
    assert f"297 images, test, 4x4x1 of 512 levels: {out}/test" in capsys.readouterr().out
    assert len(code_store.open_codes(out / "train")) == 1350
    archive = tmp_path / "decoded.npz"
    assert main(["detokenize", str(run), str(out / "valid"), "--out", str(archive)]) == 0
    tokenizer = ts.load(run)
    assert isinstance(tokenizer, ts.Tokenizer)
    back = tokenizer.decode(code_store.open_codes(out / "valid")[:]).numpy()
    assert np.array_equal(np.load(archive)["arr_0"], back)
    trained = [
        "train",
        "digits-prior",
        "--data",
        f"codes:{out}",
        "--tokenizer",
        str(run),
        "--steps",
        "3",
    ]
    assert main([*trained, "--out", str(tmp_path / "prior")]) == 0
    assert (
        main(["sample", str(tmp_path / "prior"), "--n", "2", "--out", str(tmp_path / "drawn.png")])
        == 0
    )


def test_what_does_not_fit_is_told_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "codes"
    assert main(["tokenize", "digits", "--out", str(out)]) == 2
    assert "without a learned tokenizer" in capsys.readouterr().err
    assert (
        main(["tokenize", str(run), "--data", "digits", "--split", "valid", "--out", str(out)]) == 0
    )
    other = tmp_path / "other"
    save_model(
        ts.create_tokenizer("vqvae", seed=1, image_size=(8, 8), channels=1, hidden=8, code_dim=4),
        other,
    )
    capsys.readouterr()
    assert (
        main(["tokenize", str(other), "--data", "digits", "--split", "valid", "--out", str(out)])
        == 2
    )
    assert "holds other codes" in capsys.readouterr().err
    assert main(["detokenize", str(other), str(out), "--out", str(tmp_path / "x.npz")]) == 2
    assert "do not mix" in capsys.readouterr().err
    assert main(["detokenize", str(run), str(out), "--n", "999"]) == 2
    assert "0..150" in capsys.readouterr().err
    assert (
        main(
            [
                "train",
                "digits",
                "--data",
                f"codes:{out}",
                "--steps",
                "1",
                "--out",
                str(tmp_path / "y"),
            ]
        )
        == 2
    )
    assert "--tokenizer" in capsys.readouterr().err

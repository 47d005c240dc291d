"""``tessella import``: runs that tokenize, evaluate and draw; mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tessella as ts
from tessella.cli.entry import main
from tessella.cli.option_types import ImportKind
from tessella.exchange.layouts import LAYOUTS
from tessella.files import read_tensors

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def parity(data_dir: Path, name: str) -> Path:
    path = data_dir.parent / "parity" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"no file {path} with reference weights")
    return path


def photos(folder: Path, size: int) -> Path:
    """A file of random images."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, size, size, 3), dtype=np.uint8)
    np.savez(folder / "photos.npz", images=pixels)
    return folder / "photos.npz"


def test_the_kinds_of_the_command_line_are_the_layouts_there_are() -> None:
    assert list(ImportKind.__args__) == list(LAYOUTS)


def test_a_tokenizer_of_others_tokenizes_and_evaluates(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = parity(data_dir, "taming_vqgan")
    run = str(tmp_path / "run")
    assert main(["import", "taming-vqgan", str(file), "--prefix", "state.", "--out", run]) == 0
    assert "tokenizer: vqgan" in capsys.readouterr().out
    assert "Converted from VQModel of taming" in (tmp_path / "run" / "README.md").read_text()
    tokenizer = ts.load(run, expect=ts.Tokenizer)
    height, width = tokenizer.image_size
    data = f"npz:{photos(tmp_path, height)}"
    codes = str(tmp_path / "codes")
    assert height == width
    assert main(["tokenize", run, "--data", data, "--split", "test", "--out", codes]) == 0
    assert main(["eval", run, "--data", data, "--split", "test"]) == 0
    assert "PSNR" in capsys.readouterr().out


def test_a_prior_of_others_draws_images_with_its_tokenizer(data_dir: Path, tmp_path: Path) -> None:
    vqgan = read_tensors(parity(data_dir, "taming_vqgan"))
    gpt = read_tensors(parity(data_dir, "taming_gpt"))
    both = {}
    for prefix, tensors in (("first_stage_model.", vqgan), ("transformer.", gpt)):
        for name, tensor in tensors.items():
            if name.startswith("state."):
                both[prefix + name.removeprefix("state.")] = tensor
    save_file(both, tmp_path / "both.safetensors")
    # 8x8 codes of a tokenizer that halves twice.
    words = ["import", "taming-gpt", str(tmp_path / "both.safetensors")]
    stated = ["n_head=2", "n_classes=10"]
    if gpt["state.tok_emb.weight"].shape[0] != vqgan["state.quantize.embedding.weight"].shape[0]:
        pytest.skip("these two models have different numbers of codes")
    run = str(tmp_path / "run")
    assert main([*words, *stated, "--out", run]) == 0
    drawn = ["sample", run, "--n", "2", "--class-label", "3", "--out", str(tmp_path / "x.npz")]
    assert main(drawn) == 0
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (2, 32, 32, 3)


def test_pixel_models_of_others_draw_and_score(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    file = GOLDEN / "pixel_cnn_pp_grey.safetensors"
    words = ["import", "pixel-cnn-pp", str(file), "image_size=[4,8]", "--prefix", "state."]
    assert main([*words, "--out", run]) == 0
    generator = ts.load(run, expect=ts.Generator)
    assert generator.bits_per_dim(generator.sample(2)).shape == (2,)


def test_a_prior_alone_says_what_it_lacks(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = parity(data_dir, "taming_gpt")
    run = str(tmp_path / "run")
    words = ["import", "taming-gpt", str(file), "n_classes=2", "--prefix", "state.", "--out", run]
    assert main(words) == 0
    assert "--tokenizer RUN" in capsys.readouterr().out
    assert main(["sample", run, "--out", str(tmp_path / "x.png")]) == 2
    assert "import it with its tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["taming", "x.pt"], "taming-vqgan"),
        (["taming-vqgan", "none.pt"], "there is no checkpoint none.pt"),
        (["taming-vqgan", "x.safetensors", "n_head=2"], "unknown fact about taming-vqgan"),
        (["taming-vqgan", "x.safetensors", "--tokenizer", "digits-vqvae"], "no prior on codes"),
        (["taming-vqgan", "x.safetensors"], "encoder.conv_in.weight, which shows a size"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.ones(2)}, "x.safetensors")
    assert main(["import", *words]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert message in told[0]
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]

"""``save_pretrained`` and ``from_pretrained`` of everything registered, in local folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tessella as ts
from tessella.errors import ArtifactError, InputError
from tessella.models import Hierarchy, create_prior
from tessella.tokenizers.tokenizer import as_tuple

GRID = ts.Grid(3, 4, 2, 5)

MODELS: dict[str, dict[str, Any]] = {
    "made": {"hidden": 8, "layers": 1},
    "nade": {"hidden": 8},
    "lstm": {"hidden": 8},
    "transformer": {"layers": 1, "width": 16, "heads": 2},
    "any-order": {"layers": 1, "width": 8, "heads": 2},
    "masked": {"layers": 1, "width": 8, "heads": 2},
    "gpt": {"layers": 1, "width": 8, "heads": 2},
    "pixelsnail": {"blocks": 1, "residual_blocks": 1, "channels": 8, "residual_channels": 8},
    "pixelcnn++": {"filters": 4},
    "gated-pixelcnn": {"layers": 1, "hidden": 8},
    "pixelcnn": {"layers": 1, "hidden": 8, "last": 8},
    "row-lstm": {"layers": 1, "hidden": 8, "last": 8},
    "diagonal-bilstm": {"layers": 1, "hidden": 8, "last": 8},
}
"""Small sizes of the families whose defaults are not."""

TOKENIZERS: dict[str, dict[str, Any]] = {
    "identity": {"levels": 7},
    "vqvae": {"hidden": 8, "code_dim": 4, "codebook_size": 16},
    "patch-vqvae": {"hidden": 8, "code_dim": 4, "codebook_size": 16},
    "vqvae2": {"hidden": 8, "code_dim": 4, "codebook_size": 16, "residual_hidden": 4},
    "vqgan": {"hidden": 8, "multipliers": (1, 2), "latent": 4, "code_dim": 4},
    "multiscale-vqgan": {"hidden": 8, "multipliers": (1, 2), "code_dim": 4, "scales": (1, 2, 4)},
}
for _name in ("vqgan", "multiscale-vqgan"):
    TOKENIZERS[_name] |= {"codebook_size": 16, "residual_blocks": 1}


def tokenizer_of(name: str) -> ts.Tokenizer:
    return ts.create_tokenizer(name, image_size=(8, 8), channels=1, seed=3, **TOKENIZERS[name])


def some_images(n: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 8, 8, 1), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("head", ts.HEADS)
@pytest.mark.parametrize("name", [name for name in ts.MODELS if name != "masked"])
def test_a_model_comes_back_bit_for_bit(name: str, head: str, tmp_path: Path) -> None:
    model = ts.create(name, GRID, head, classes=2, seed=3, **MODELS.get(name, {}))
    model.save_pretrained(tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model")
    assert type(again) is type(model)
    x = torch.randint(5, (4, *GRID.shape), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 0])
    assert torch.equal(again.log_prob(x, labels), model.log_prob(x, labels))
    assert again.config() == model.config()


@pytest.mark.parametrize("name", ts.TOKENIZERS)
def test_a_tokenizer_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(name)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = ts.Tokenizer.from_pretrained(tmp_path / "tokenizer")
    codes = tokenizer.encode(some_images())
    for one, other in zip(as_tuple(codes), as_tuple(again.encode(some_images())), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(again.decode(codes), tokenizer.decode(codes))


def test_a_vae_comes_back_bit_for_bit(tmp_path: Path) -> None:
    vae = ts.create_vae(image_size=(8, 8), channels=1, hidden=8, latent=2)
    vae.save_pretrained(tmp_path / "vae")
    assert torch.equal(ts.VAE.from_pretrained(tmp_path / "vae").sample(2), vae.sample(2))


@pytest.mark.parametrize("name", ["vqvae", "vqvae2"])
def test_a_two_stage_model_is_a_folder_with_both_parts(name: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(name)
    sizes: dict[str, Any] = {"layers": 1, "hidden": 8}
    prior = create_prior("gated-pixelcnn", tokenizer.grids(), **sizes)
    generator = ts.Generator(tokenizer, prior)
    generator.save_pretrained(tmp_path / "both")
    again = ts.Generator.from_pretrained(tmp_path / "both")
    assert torch.equal(again.log_prob(some_images()), generator.log_prob(some_images()))
    assert torch.equal(again.sample(2, seed=4), generator.sample(2, seed=4))
    # Each class takes its part.
    assert isinstance(ts.Tokenizer.from_pretrained(tmp_path / "both"), type(tokenizer))
    part = type(prior).from_pretrained(tmp_path / "both")
    codes = tokenizer.encode(some_images())
    assert torch.equal(part.log_prob(codes), prior.log_prob(codes))


def test_the_prior_of_several_grids_comes_back_alone(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("vqvae2")
    sizes: dict[str, Any] = {"layers": 1, "hidden": 8}
    prior = create_prior("gated-pixelcnn", tokenizer.grids(), **sizes)
    assert isinstance(prior, Hierarchy)
    prior.save_pretrained(tmp_path / "prior")
    codes = tokenizer.encode(some_images())
    again = Hierarchy.from_pretrained(tmp_path / "prior")
    assert torch.equal(again.log_prob(codes), prior.log_prob(codes))


def test_a_pixel_model_is_a_generator_as_well(tmp_path: Path) -> None:
    model = ts.create("independent", ts.Grid(4, 4, 1, 3))
    model.save_pretrained(tmp_path / "model")
    generator = ts.Generator.from_pretrained(tmp_path / "model")
    assert generator.sample(1).shape == (1, 4, 4, 1)
    generator.save_pretrained(tmp_path / "model")
    assert isinstance(ts.DensityModel.from_pretrained(tmp_path / "model"), type(model))


def test_a_model_of_another_class_is_refused(tmp_path: Path) -> None:
    tokenizer_of("vqvae").save_pretrained(tmp_path / "x")
    with pytest.raises(InputError, match=r"is a VQVAE, not a DensityModel"):
        ts.DensityModel.from_pretrained(tmp_path / "x")
    with pytest.raises(InputError, match=r"is a VQVAE, not a Generator"):
        ts.Generator.from_pretrained(tmp_path / "x")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear all")
    with pytest.raises(InputError, match="was not made by tessella"):
        tokenizer_of("identity").save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    tokenizer_of("identity").save_pretrained(tmp_path, force=True)
    assert (tmp_path / "config.json").exists()


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tokenizer_of("vqvae").save_pretrained(tmp_path / "x")
    wider = {**TOKENIZERS["vqvae"], "hidden": 16}
    other = ts.create_tokenizer("vqvae", image_size=(8, 8), channels=1, **wider)
    other.save_pretrained(tmp_path / "y")
    (tmp_path / "x" / "config.json").write_bytes((tmp_path / "y" / "config.json").read_bytes())
    with pytest.raises(ArtifactError, match="tensors of a wrong shape"):
        ts.Tokenizer.from_pretrained(tmp_path / "x")

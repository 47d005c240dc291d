"""VAE: bounds that are bounds, seeds, training, saving, and words for what it cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tessella as ts
from tessella.config import Recipe, from_dict
from tessella.errors import ArtifactError, ConfigError, InputError
from tessella.files import read_json, write_json
from tessella.grid import LN2
from tessella.pipeline import CompletesImages, load, require, save_model
from tessella.training import train
from tessella.training.vae_task import VAETask
from tessella.vae import VAE, create_vae

SHAPES = ["grid", "vector"]
LEVELS = [2, 17, 256]


def tiny(**config: Any) -> VAE:
    small: dict[str, Any] = {
        "image_size": (6, 5),
        "channels": 2,
        "hidden": 8,
        "latent": 3,
        "residual_blocks": 1,
    }
    return create_vae(**small | config)


def some(n: int = 5, channels: int = 2) -> torch.Tensor:
    return torch.randint(256, (n, 6, 5, channels), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )


def one_pixel() -> tuple[VAE, torch.Tensor]:
    """A model of one sub-pixel whose latents matter, with a poor posterior, and every image it
    knows."""
    model = tiny(image_size=(1, 1), channels=1, levels=16, latent=2, downsample=1, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.8)
    return model, torch.arange(0, 256, 17).to(torch.uint8).view(16, 1, 1, 1)


@torch.no_grad()
def exact(model: VAE, values: torch.Tensor) -> torch.Tensor:
    """Log-probabilities by a fine grid over the two latents."""
    line = torch.linspace(-6, 6, 161)
    z = torch.cartesian_prod(line, line)
    prior = -(z**2).sum(1) / 2 - np.log(2 * np.pi) + 2 * np.log(12 / 160)
    symbols = model.pixels.encode(values)
    told = [
        model._log_likelihood(x.expand(len(z), 1, 1, 1), z.view(-1, *model.latent_shape))
        for x in symbols
    ]
    return torch.stack([(nats + prior).logsumexp(0) for nats in told])


def test_the_bound_with_many_samples_is_the_log_probability() -> None:
    model, values = one_pixel()
    truth = exact(model, values)
    assert float(truth.exp().sum()) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(model.bound(values, 20_000).exp(), truth.exp(), rtol=0, atol=0.01)


def test_bounds_stay_below_the_log_probability_and_grow_with_samples() -> None:
    model, values = one_pixel()
    truth, repeated = exact(model, values), values.repeat(30, 1, 1, 1)
    means = [model.bound(repeated, k).view(30, 16).mean(0) for k in (1, 4, 32)]
    assert all(mean.mean() < truth.mean() for mean in means)
    assert means[0].mean() + 0.05 < means[1].mean() < means[2].mean() - 0.03


def test_the_elbo_is_the_bound_of_one_sample_on_average() -> None:
    model, values = one_pixel()
    repeated = values.repeat(60, 1, 1, 1)
    assert float(model.bound(repeated, 1).mean()) == pytest.approx(
        float(model.elbo(repeated).mean()), abs=0.08
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", LEVELS)
def test_an_image_depends_on_its_seed_alone(shape: str, levels: int) -> None:
    model = tiny(shape=shape, levels=levels).double()
    for pixels in ("mean", "draw"):
        first = model.sample(5, seed=7, pixels=pixels)
        assert first.shape == (5, 6, 5, 2)
        assert first.dtype == torch.uint8
        assert torch.equal(first[2:], model.sample(3, seed=9, pixels=pixels))
        assert torch.equal(first, model.sample(5, seed=7, batch=2, pixels=pixels))
        later = torch.cat(list(model.batches(5, 7, start=3, pixels=pixels)))
        assert torch.equal(first[3:], later)


def test_drawn_pixels_follow_their_probabilities() -> None:
    model = tiny(image_size=(1, 1), channels=1, levels=4, latent=1, downsample=1)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
        list(model.decoder.parameters())[-1].copy_(torch.tensor([0.3, 1.0]))
    told = model._log_likelihood(
        torch.arange(4).view(4, 1, 1, 1), torch.zeros(4, *model.latent_shape)
    ).exp()
    drawn = model.pixels.encode(model.sample(20_000, pixels="draw")).flatten()
    torch.testing.assert_close(
        torch.bincount(drawn, minlength=4) / 20_000, told.detach(), rtol=0, atol=0.015
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", LEVELS)
def test_bounds_do_not_depend_on_the_batch(shape: str, levels: int) -> None:
    model, images = tiny(shape=shape, levels=levels).double(), some()
    whole = model.bound(images, 5, seed=3)
    each = torch.cat([model.bound(images[i : i + 1], 5, seed=3 + i) for i in range(5)])
    torch.testing.assert_close(whole, each)
    torch.testing.assert_close(model.bits_per_dim(images, 5, seed=3), -whole / LN2 / 60)


def test_no_images_have_no_bounds() -> None:
    model = tiny()
    assert model.elbo(some(0)).shape == model.bound(some(0)).shape == (0,)
    assert model.reconstruct(some(0)).shape == (0, 6, 5, 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_training_pass_reaches_every_weight(shape: str) -> None:
    model = tiny(shape=shape).train()
    losses = VAETask(model)(some(), None)
    losses["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    torch.testing.assert_close(
        losses["loss"].detach(), losses["pixel_bits"] + losses["latent_bits"]
    )


def test_a_saved_model_comes_back(tmp_path: Path) -> None:
    model, images = tiny(shape="vector"), some()
    save_model(model, tmp_path / "vae", {"bits": 1.0})
    again = load(tmp_path / "vae")
    assert isinstance(again, VAE)
    assert again.config() == model.config()
    assert torch.equal(again.bound(images, 3), model.bound(images, 3))
    assert "ts.load(PATH)" in (tmp_path / "vae" / "README.md").read_text()


def test_a_configuration_of_another_version_is_refused(tmp_path: Path) -> None:
    save_model(tiny(), tmp_path)
    config = read_json(tmp_path / "config.json")
    config["model"]["depth"] = 3
    write_json(tmp_path / "config.json", config)
    with pytest.raises(ArtifactError, match="depth"):
        load(tmp_path)


def test_training_lowers_the_bound_and_is_measured(tmp_path: Path) -> None:
    model = tiny(levels=256)
    images = np.full((64, 6, 5, 2), 200, np.uint8)
    images[::2] = 40
    before = float(model.bits_per_dim(images).mean())
    run = train(
        model,
        images,
        out=tmp_path / "run",
        steps=60,
        batch=16,
        learning_rate=5e-3,
        say=lambda line: None,
    )
    assert run.figures["bits_per_dim"] < before - 0.5
    figures = ts.evaluate(tmp_path / "run", images[:8])
    assert figures["bound_bits_per_dim"] < before - 0.5
    assert figures["bound_samples"] >= 1
    assert {"psnr_db", "bound_bits_per_dim_se", "baseline_bits_per_dim"} <= set(figures)


def test_a_recipe_has_one_table_of_the_three() -> None:
    recipe = from_dict(Recipe, {"train": {"steps": 1}, "vae": {"hidden": 8, "seed": 3}})
    assert recipe.vae is not None
    assert (recipe.vae.sizes, recipe.vae.seed) == ({"hidden": 8}, 3)
    with pytest.raises(ConfigError, match=r"exactly one of the tables .*\[vae\]"):
        from_dict(Recipe, {"train": {"steps": 1}, "vae": {}, "model": {}})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"downsample": 3}, "power of two"),
        ({"latent": 0}, "latent at least 1"),
        ({"shape": "cube"}, "shape"),
        ({"levels": 1}, "levels"),
        ({"channels": 5}, "channels"),
        ({"hiden": 8}, "hidden"),
    ],
)
def test_sizes_out_of_range_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**config)


@pytest.mark.filterwarnings("ignore:.*violates type hint")
def test_what_it_cannot_do_is_refused() -> None:
    model = tiny()
    with pytest.raises(InputError, match="RUN is a VAE, which cannot keep known pixels"):
        require(model, CompletesImages, "RUN")
    with pytest.raises(InputError, match="images of 6x5"):
        model.bound(some()[:, :4])
    with pytest.raises(InputError, match="samples"):
        model.bound(some(), 0)
    with pytest.raises(InputError, match="'mean' or 'draw'"):
        model.sample(2, pixels="mode")

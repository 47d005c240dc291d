"""VQ-VAE-2: sizes, likelihoods, words for errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tessella.errors import ConfigError
from tessella.tokenizers import create_tokenizer
from tessella.tokenizers.tokenizer import Tokenizer
from tessella.tokenizers.vqvae2 import VQVAE2

TINY: dict[str, Any] = {
    "codebook_size": 16,
    "hidden": 8,
    "code_dim": 4,
    "residual_blocks": 1,
    "residual_hidden": 4,
}


def tiny(**config: Any) -> VQVAE2:
    tokenizer = create_tokenizer(
        "vqvae2", **{"image_size": (16, 16), "channels": 1, **TINY, **config}
    )
    assert isinstance(tokenizer, VQVAE2)
    return tokenizer


def images(n: int = 4, size: tuple[int, int] = (16, 16), channels: int = 1) -> torch.Tensor:
    return torch.randint(256, (n, *size, channels), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )


@pytest.mark.parametrize(
    ("size", "top"), [((16, 16), (2, 2)), ((28, 28), (4, 4)), ((9, 30), (2, 4)), ((1, 1), (1, 1))]
)
def test_the_bottom_grid_is_twice_the_top(size: tuple[int, int], top: tuple[int, int]) -> None:
    tokenizer = tiny(image_size=size)
    coarse, fine = tokenizer.encode(images(2, size))
    assert coarse.shape == (2, *top, 1)
    assert fine.shape == (2, 2 * top[0], 2 * top[1], 1)
    assert tokenizer.decode((coarse, fine)).shape == (2, *size, 1)


@torch.no_grad()
def test_the_bottom_codes_depend_on_the_codes_of_the_top() -> None:
    tokenizer = tiny().train()
    tokenizer(images(32))
    tokenizer.eval()
    before = tokenizer.encode(images())
    codebook = tokenizer.top.codebook
    assert isinstance(codebook, torch.Tensor)
    codebook.neg_().mul_(50)
    assert not torch.equal(tokenizer.encode(images())[1], before[1])


def test_any_quantizer_of_one_code_serves() -> None:
    tokenizer = tiny(quantizer="fsq", options={"levels": [3, 3, 5]})
    assert [grid.levels for grid in tokenizer.grids()] == [45, 45]
    tokenizer.train()(images()).losses["loss"].backward()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"downsample": 1}, "downsample must be an integer in 2..4096, got 1"),
        ({"downsample": 6}, "power of two"),
        ({"hidden": 1}, "hidden must be"),
        ({"residual_hidden": 0}, "residual_hidden"),
        ({"quantizer": "residual-vq", "options": {"depth": 2}}, "one code per vector"),
        ({"likelihood": "gauss"}, "likelihood"),
        ({"options": {"depht": 2}}, "depht"),
    ],
)
def test_sizes_out_of_range_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**config)


def names(tokenizer: Tokenizer) -> set[str]:
    return set(tokenizer.state_dict())


def test_no_likelihood_has_no_tensors() -> None:
    plain, scaled = (
        create_tokenizer("vqvae", hidden=8),
        create_tokenizer("vqvae", hidden=8, likelihood="mse"),
    )
    assert names(scaled) - names(plain) == {"likelihood.log_scale"}


def test_training_lowers_the_nats_of_the_pixels() -> None:
    tokenizer = tiny(likelihood="logistic").train()
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    x = torch.from_numpy(np.full((8, 16, 16, 1), 40, np.uint8))
    bits = []
    for _ in range(60):
        optimizer.zero_grad()
        losses = tokenizer(x).losses
        losses["loss"].backward()
        optimizer.step()
        bits.append(float(losses["pixel_bits"]))
    assert bits[-1] < bits[0] - 1

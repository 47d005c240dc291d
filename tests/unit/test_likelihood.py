"""The probability of pixels around a reconstruction: sums, tails, gradients, and what tokenizers
make of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tessella.errors import ConfigError, InputError
from tessella.grid import LN2
from tessella.tokenizers import create_tokenizer
from tessella.tokenizers.likelihood import PixelLikelihood, discretized_logistic
from tessella.tokenizers.reconstructing import ReconstructingTokenizer

VALUES = torch.arange(256)
KINDS = ["mse", "logistic"]
SMALL: dict[str, Any] = {
    "image_size": (9, 6),
    "channels": 2,
    "codebook_size": 16,
    "hidden": 8,
    "code_dim": 4,
}
each_tokenizer = pytest.mark.parametrize("name", ["vqvae", "vqvae2"])


def tokenizer(name: str, kind: str) -> ReconstructingTokenizer:
    built = create_tokenizer(name, **SMALL, likelihood=kind)
    assert isinstance(built, ReconstructingTokenizer)
    return built


def some(n: int = 3) -> torch.Tensor:
    return torch.randint(256, (n, 9, 6, 2), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )


@pytest.mark.parametrize("mean", [-3.0, -1.0, 0.1234, 1.0, 2.5])
@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -1.0, 3.0, 15.0])
def test_probabilities_of_all_values_sum_to_one(mean: float, log_scale: float) -> None:
    means, scales = (torch.full((256,), value, dtype=torch.float64) for value in (mean, log_scale))
    assert float(discretized_logistic(VALUES, means, scales).exp().sum()) == pytest.approx(
        1, abs=1e-9
    )


@pytest.mark.parametrize("log_scale", [-20.0, -7.0, -2.0, 20.0])
def test_single_precision_is_finite_and_near_double(log_scale: float) -> None:
    mean = torch.tensor([-1.5, -1.0, 0.0, 0.3, 4.0])[:, None].expand(5, 256)
    scale = torch.full_like(mean, log_scale)
    single, double = (
        discretized_logistic(VALUES, mean.to(t), scale.to(t))
        for t in (torch.float32, torch.float64)
    )
    assert single.isfinite().all()
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.rand(40, generator=generator, dtype=torch.float64).mul(3).sub(1.5).requires_grad_()
    scale = torch.rand(40, generator=generator, dtype=torch.float64).mul(6).sub(5).requires_grad_()
    x = torch.randint(256, (40,), generator=generator)
    assert torch.autograd.gradcheck(lambda m, s: discretized_logistic(x, m, s), (mean, scale))


def test_the_outer_bins_are_open() -> None:
    far = torch.tensor([-100.0, 100.0])
    assert discretized_logistic(torch.tensor([0, 255]), far, torch.zeros(2)).abs().max() < 1e-6


def test_the_scale_of_a_channel_learns_and_the_decoder_does_not() -> None:
    likelihood, decoded = PixelLikelihood("mse", 2), torch.zeros(3, 9, 6, 2, requires_grad=True)
    likelihood(some(), decoded).sum().backward()
    assert decoded.grad is None
    assert likelihood.log_scale is not None
    assert likelihood.log_scale.grad is not None
    assert (likelihood.log_scale.grad > 0).all(), "uniform pixels are wider than the start"


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="'mse' or 'logistic'"):
        PixelLikelihood("gauss", 1)


@each_tokenizer
@pytest.mark.parametrize("kind", KINDS)
def test_the_nats_of_images_are_those_of_the_training_pass(name: str, kind: str) -> None:
    model, images = tokenizer(name, kind).train(), some(20)
    model(images)
    model.eval()
    nats = model.log_likelihood(images, model.encode(images))
    assert nats.shape == (20,)
    torch.testing.assert_close(-nats.mean() / LN2 / 108, model(images).losses["pixel_bits"])


@each_tokenizer
@torch.no_grad()
def test_one_sub_pixel_summed_over_its_values_is_certain(name: str) -> None:
    """The likelihood is a distribution over images: what one sub-pixel may be sums to what the
    others are."""
    model = tokenizer(name, "logistic").double()
    codes = model.encode(some(1))
    every = some(1).repeat(256, 1, 1, 1)
    every[:, 4, 3, 1] = VALUES.to(torch.uint8)
    repeated = (
        tuple(part.repeat(256, 1, 1, 1) for part in codes)
        if isinstance(codes, tuple)
        else codes.repeat(256, 1, 1, 1)
    )
    nats = model.log_likelihood(every, repeated)
    two = some(1).repeat(256, 1, 1, 1)
    two[:, 4, 3, 1] = VALUES.to(torch.uint8)
    two[:, 0, 0, 0] = 7
    ratio = nats.logsumexp(0) - model.log_likelihood(two, repeated).logsumexp(0)
    one = model.log_likelihood(every[:1], model.encode(some(1))) - model.log_likelihood(
        two[:1], model.encode(some(1))
    )
    torch.testing.assert_close(ratio, one.squeeze())


def test_a_tokenizer_without_likelihood_says_so() -> None:
    model = create_tokenizer("vqvae", **SMALL)
    assert isinstance(model, ReconstructingTokenizer)
    with pytest.raises(InputError, match="no likelihood"):
        model.log_likelihood(some(), model.encode(some()))


def test_symbols_of_other_images_are_refused() -> None:
    model = tokenizer("vqvae2", "mse")
    with pytest.raises(InputError, match="all images"):
        model.log_likelihood(some(3), model.encode(some(2)))

"""Figures against direct computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import tessella as ts
from tessella.errors import InputError
from tessella.evaluation import mean_squared_error, psnr, ssim, standard_error
from tessella.models.independent import Independent


def pictures(n: int, height: int, width: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, height, width, channels), generator=generator, dtype=torch.uint8)


def ssim_by_loops(x: np.ndarray, y: np.ndarray, side: int) -> float:
    """Wang et al. 2004, window by window."""
    at = np.arange(side) - side // 2
    window = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for c in range(x.shape[2]):
        for i in range(x.shape[0] - side + 1):
            for j in range(x.shape[1] - side + 1):
                a, b = (v[i : i + side, j : j + side, c].astype(float) for v in (x, y))
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                vab = (window * (a - ma) * (b - mb)).sum()
                c1, c2 = 2.55**2, 7.65**2
                values.append((2 * ma * mb + c1) * (2 * vab + c2) / (ma**2 + mb**2 + c1) / (va + vb + c2))
    return float(np.mean(values))


@pytest.mark.parametrize(("shape", "side"), [((14, 12, 3), 11), ((8, 8, 1), 7), ((5, 9, 1), 5), ((1, 1, 2), 1)])
def test_ssim_is_what_loops_give(shape: tuple[int, int, int], side: int) -> None:
    x = pictures(2, *shape)
    y = (x.int() + torch.randint(-40, 40, x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 255).byte()
    expected = [ssim_by_loops(a, b, side) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(ssim(x, y).numpy(), expected, rtol=1e-9)
    assert ssim(x, x).numpy() == pytest.approx(1.0)


def test_psnr_is_the_mean_over_images_not_of_the_mean() -> None:
    x = torch.zeros(2, 4, 4, 1, dtype=torch.uint8)
    y = x.clone()
    y[0] += 1
    y[1] += 100
    decibels = psnr(mean_squared_error(x, y))
    assert decibels.tolist() == pytest.approx([20 * math.log10(255), 20 * math.log10(2.55)])


def test_the_standard_error_is_that_of_the_mean() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    assert standard_error(values) == pytest.approx(np.std(values.numpy(), ddof=1) / 2)
    assert math.isnan(standard_error(values[:1]))


def test_the_baseline_is_a_histogram_with_one_added() -> None:
    grid = ts.Grid(2, 3, 2, 5)
    x = torch.randint(5, (20, 2, 3, 2), generator=torch.Generator().manual_seed(0))
    model = ts.create("independent", grid).double()
    assert isinstance(model, Independent)
    model.fit(x)
    log_prob = model.log_prob(x[:4], reduce=False).detach()
    for place in np.ndindex(2, 3, 2):
        for image in range(4):
            count = int((x[(slice(None), *place)] == x[(image, *place)]).sum())
            assert float(log_prob[(image, *place)]) == pytest.approx(math.log((count + 1) / 25))


def test_bits_of_a_pixel_model_are_its_log_prob() -> None:
    model = ts.create("gated-pixelcnn", ts.Grid(3, 4, 1, 17), layers=2, hidden=8)
    images = pictures(7, 3, 4, 1)
    figures = ts.evaluate(model, images, batch=3)
    symbols = (images.double() * 16 / 255).round().long()
    nats = -model.log_prob(symbols).double()
    assert figures["nats_per_image"] == pytest.approx(float(nats.mean()), rel=1e-6)
    assert figures["bits_per_dim"] == pytest.approx(float(nats.mean()) / 12 / math.log(2), rel=1e-6)
    assert figures["bits_per_dim_se"] == pytest.approx(float(nats.std()) / 12 / math.log(2) / math.sqrt(7), rel=1e-4)
    assert figures["images"] == 7


def test_labels_are_used_where_the_model_has_classes() -> None:
    model = ts.create("gated-pixelcnn", ts.Grid(2, 2, 1, 3), classes=2, layers=1, hidden=4)
    images, labels = pictures(4, 2, 2, 1), np.array([0, 1, 1, 0])
    with_labels, without = ts.evaluate(model, images, labels), ts.evaluate(model, images)
    assert with_labels["condition"] == "labels"
    assert without["condition"] == "null class"
    assert with_labels["bits_per_dim"] != without["bits_per_dim"]


def test_bad_images_are_refused() -> None:
    model = ts.create("gated-pixelcnn", ts.Grid(2, 2, 1, 3), layers=1, hidden=4)
    with pytest.raises(InputError, match="uint8"):
        ts.evaluate(model, np.zeros((2, 2, 2, 1), np.float32))
    with pytest.raises(InputError, match="2x2"):
        ts.evaluate(model, np.zeros((2, 3, 2, 1), np.uint8))
    with pytest.raises(InputError, match="no images"):
        ts.evaluate(model, np.zeros((0, 2, 2, 1), np.uint8))
    with pytest.raises(InputError, match="images"):
        ts.evaluate(model)

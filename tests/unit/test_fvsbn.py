"""Fully visible sigmoid belief network: regressions one by one, the count of the paper's size,
refusals."""

from __future__ import annotations

import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError
from tessella.models.fvsbn import FVSBN


def test_two_levels_are_a_logistic_regression_for_each_symbol() -> None:
    model = ts.create("fvsbn", ts.Grid(3, 4, 1, 2)).double()
    assert isinstance(model, FVSBN)
    x = torch.randint(2, (5, 3, 4, 1), generator=torch.Generator().manual_seed(0))
    flat, weights = x.flatten(1).double(), model.regression.weight
    expected = torch.zeros(5, dtype=torch.float64)
    for t in range(12):
        one = torch.sigmoid(model.bias[0, t] + flat[:, :t] @ weights[t, :t])
        expected += torch.where(flat[:, t] == 1, one, 1 - one).log()
    torch.testing.assert_close(model.log_prob(x), expected, rtol=0, atol=1e-12)


def test_binary_mnist_has_a_weight_for_each_pair_and_a_bias_for_each_pixel() -> None:
    assert (
        ts.create("fvsbn", ts.Grid(28, 28, 1, 2)).parameter_count()
        == 784 * 783 // 2 + 784
        == 307_720
    )


def test_a_grid_too_large_is_refused_with_the_count() -> None:
    with pytest.raises(ConfigError, match=r"a matrix of [\d,]+ weights.*logistic-mixture"):
        ts.create("fvsbn", ts.Grid(64, 64, 3, 256))


def test_sizes_that_make_no_network_are_refused() -> None:
    with pytest.raises(ConfigError, match="embedding >= 1"):
        ts.create("fvsbn", ts.Grid(2, 2, 1, 4), embedding=0)

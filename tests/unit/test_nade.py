"""NADE: chunks against the direct loop, what is kept for the gradient, the count of the paper's
size."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import tessella as ts
from tessella.errors import ConfigError
from tessella.models import nade
from tessella.models.nade import NADE


def direct(model: NADE, x: torch.Tensor) -> torch.Tensor:
    """Logits of level 1 by one update of the running vector after the other:
    ``[batch, symbols]``."""
    running, logits = model.hidden_bias[0].expand(len(x), -1), []
    for t, bit in enumerate(x.flatten(1).double().unbind(1)):
        logits.append(model.bias[0, t, 0] + running.sigmoid() @ model.decode[t, :, 0])
        running = running + bit[:, None] * model.encode[t, 0]
    return torch.stack(logits, dim=1)


def test_chunks_give_the_values_and_gradients_of_the_direct_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Three places of three images and seven units.
    monkeypatch.setattr(nade, "CHUNK_UNITS", 3 * 7 * 3)
    model = ts.create("nade", ts.Grid(4, 5, 1, 2), hidden=7).double()
    assert isinstance(model, NADE)
    x = torch.randint(2, (3, 4, 5, 1), generator=torch.Generator().manual_seed(0))
    chunked, looped = model(x)[..., 1].flatten(1), direct(model, x)
    torch.testing.assert_close(chunked, looped, rtol=0, atol=1e-12)
    parameters = list(model.parameters())
    for ours, plain in zip(
        torch.autograd.grad(chunked.sin().sum(), parameters),
        torch.autograd.grad(looped.sin().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_walk_has_the_gradients_of_finite_differences(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nade, "CHUNK_UNITS", size)
    generator = torch.Generator().manual_seed(size)
    shapes = [(5, 2, 3), (5, 3, 4), (5, 4, 2), (2, 4)]  # several inputs a place, several parameters
    parts = [
        torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in shapes
    ]
    assert torch.autograd.gradcheck(nade.NADESequence.apply, parts)
    single = [
        part[..., :1] if i == 0 else part[:, :1] if i == 1 else part for i, part in enumerate(parts)
    ]
    assert torch.autograd.gradcheck(
        nade.NADESequence.apply, [p.detach().clone().requires_grad_() for p in single]
    )


@pytest.mark.parametrize("backward", [False, True])
def test_sums_are_those_of_one_call(backward: bool) -> None:
    parts = torch.randn(9, 3, 4, dtype=torch.float64)
    looped = parts.clone()
    nade.add_up(looped, backward)
    whole = parts.flip(0).cumsum(0).flip(0) if backward else parts.cumsum(0)
    torch.testing.assert_close(looped, whole)


def test_hidden_units_of_all_symbols_are_not_kept_for_the_gradient() -> None:
    batch, hidden = 4, 64
    model = ts.create("nade", ts.Grid(32, 32, 1, 2), hidden=hidden)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.zeros(batch, 32, 32, 1, dtype=torch.int64)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x).sum()
    weights = sum(4 * parameter.numel() for parameter in model.parameters())
    assert sum(kept.values()) - weights < 4 * batch * 1024 * hidden // 4, (
        "a quarter of what all hidden units take"
    )


def test_binary_mnist_with_500_units_has_two_matrices_and_two_biases() -> None:
    model = ts.create("nade", ts.Grid(28, 28, 1, 2), hidden=500)
    assert model.parameter_count() == 2 * 784 * 500 + 500 + 784 == 785_284


def test_sizes_that_make_no_network_are_refused() -> None:
    with pytest.raises(ConfigError, match="hidden >= 1"):
        ts.create("nade", ts.Grid(2, 2, 1, 4), hidden=0)

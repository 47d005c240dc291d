"""The gate of gated convolutions against autograd."""

from __future__ import annotations

import pytest
import torch

from tessella.nn.gate import gate


def plain(x: torch.Tensor) -> torch.Tensor:
    """The gate along dimension 1, as the paper writes it."""
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.02)],
    ids=str,
)
def test_a_gate_and_its_gradient_are_those_of_autograd(kind: torch.dtype, tolerance: float) -> None:
    # Channels last, as in a network, and an odd number of them, whose halves have gaps.
    normal = torch.randn(2, 4, 3, 10, generator=torch.Generator().manual_seed(0))
    results = []
    for function, precision in ((gate, kind), (plain, torch.float64)):
        # Both start from the same rounded numbers.
        x = normal.to(kind).to(precision).movedim(-1, 1).requires_grad_()
        y = function(x)
        y.square().sum().backward()
        assert y.dtype == precision
        assert x.grad is not None
        results.append((y.detach().double(), x.grad.double()))
    torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=tolerance)


def test_a_gate_leaves_its_input_alone() -> None:
    for kind in (torch.float32, torch.bfloat16):
        x = torch.ones(2, 4, 1, 1, dtype=kind)
        gate(x)
        assert x.eq(1).all()

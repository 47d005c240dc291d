"""Quantizers without a codebook against direct computations in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from tessella.tokenizers.quantizers import create_quantizer
from tessella.tokenizers.quantizers.fsq import FSQ
from tessella.tokenizers.quantizers.lfq import LFQ, entropy_of_mean, mean_entropy

LEVELS = (3, 4, 3, 5, 4, 3)


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fsq() -> FSQ:
    return FSQ(len(LEVELS), levels=LEVELS).double()


def test_finite_scalars_are_the_nearest_levels_in_mixed_radix() -> None:
    quantizer, z = fsq().eval(), 2 * vectors(200, 6)
    grid = torch.tensor(list(itertools.product(*[range(size) for size in reversed(LEVELS)]))).flip(
        1
    )
    size = torch.tensor(LEVELS, dtype=torch.float64)
    half, offset = (size - 1) * 1.001 / 2, (size % 2 == 0).double() / 2
    bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
    symbols = (bounded[:, None] - (grid - torch.tensor(LEVELS) // 2)).square().sum(-1).argmin(1)
    assert quantizer.levels == len(grid)
    assert quantizer.encode(z)[:, 0].tolist() == symbols.tolist()
    expected = (grid - torch.tensor(LEVELS) // 2)[symbols] / (torch.tensor(LEVELS) // 2)
    torch.testing.assert_close(quantizer(z).z, expected.double(), rtol=0, atol=0)


def test_gradients_pass_the_bound_of_finite_scalars() -> None:
    quantizer, z, weight = fsq(), vectors(40, 6).requires_grad_(), vectors(40, 6, seed=3)
    (quantizer(z).z * weight).sum().backward()
    size = torch.tensor(LEVELS, dtype=torch.float64)
    half, offset = (size - 1) * 1.001 / 2, (size % 2 == 0).double() / 2
    slope = half * (1 - torch.tanh(z.detach() + torch.atanh(offset / half)) ** 2) / (size // 2)
    torch.testing.assert_close(z.grad, weight * slope)


@pytest.mark.parametrize("levels", [(3, 3, 3), (4, 4), (8, 5, 5, 5), (7, 6, 17), (256,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_finite_scalar_symbol_is_exact_both_ways(
    levels: tuple[int, ...], dtype: torch.dtype
) -> None:
    quantizer = create_quantizer("fsq", dim=len(levels), levels=levels).to(dtype)
    symbols = torch.arange(quantizer.levels)[:, None]
    codes = quantizer.decode(symbols)
    assert codes.unique(dim=0).shape == codes.shape
    assert codes.abs().max() == 1
    assert torch.equal(quantizer.encode(quantizer.unbounded(symbols)), symbols)
    assert torch.equal(quantizer(quantizer.unbounded(symbols)).z, codes)


@pytest.mark.parametrize(
    ("size", "codes"), [(256, 240), (1024, 1000), (4096, 4375), (16384, 15360), (65536, 64000)]
)
def test_published_levels_come_near_the_wanted_size(size: int, codes: int) -> None:
    assert create_quantizer("fsq", codebook_size=size).levels == codes
    assert create_quantizer("fsq", codebook_size=codes).levels == codes, (
        "what a quantizer has builds it again"
    )


def test_entropies_of_signs_are_those_of_the_enumerated_distribution() -> None:
    quantizer, z = LFQ(4, 16, beta=0.25, entropy=1.0, temperature=1.5).double(), vectors(50, 4)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
    shares = torch.softmax(-(z[:, None] - signs).square().sum(-1) / 1.5, dim=1)
    of_each = torch.special.entr(shares).sum(1).mean()
    of_all = torch.special.entr(shares.mean(0)).sum()
    out = quantizer(z)
    torch.testing.assert_close(out.losses["entropy"], of_each - of_all)
    torch.testing.assert_close(out.losses["commitment"], 0.25 * (z.abs() - 1).square().mean())


def test_entropies_of_many_signs_are_exact_and_beyond_twelve_bounded_from_above() -> None:
    for bits, slack in [(1, 0.0), (7, 0.0), (12, 0.0), (13, 1.5)]:
        z = vectors(60, bits)
        z[:, -1] = z[:, 0]
        signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=bits)), dtype=torch.float64)
        shares = torch.softmax(2 * z @ signs.t(), dim=1)
        torch.testing.assert_close(mean_entropy(4 * z), torch.special.entr(shares).sum(1).mean())
        exact, found = (
            float(torch.special.entr(shares.mean(0)).sum()),
            float(entropy_of_mean(4 * z)),
        )
        assert exact - 1e-9 <= found <= exact + slack + 1e-9
        assert (found > exact + 0.1) == bool(slack)


def test_entropies_of_clear_signs_have_finite_gradients() -> None:
    z = (1000 * vectors(60, 10).float()).requires_grad_()
    (mean_entropy(z) - entropy_of_mean(z)).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()

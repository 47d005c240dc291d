"""Quantizers against direct computations in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tessella.errors import ConfigError, InputError
from tessella.tokenizers.quantizers import CodeUsage, create_quantizer, search
from tessella.tokenizers.quantizers.ema import EMAVectorQuantizer
from tessella.tokenizers.quantizers.rotation import RotationQuantizer
from tessella.tokenizers.quantizers.simvq import SimVQ
from tessella.tokenizers.quantizers.vq import GradientVectorQuantizer


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clustered(codes: int, each: int = 20, dim: int = 6, seed: int = 0) -> torch.Tensor:
    """``codes`` well separated clusters, shuffled: ``[codes * each, dim]``."""
    centres = 20 * vectors(codes, dim, seed=seed)
    points = centres.repeat_interleave(each, 0) + 0.1 * vectors(codes * each, dim, seed=seed + 1)
    return points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))]


def build(dim: int = 6, codebook_size: int = 32, **arguments: Any) -> EMAVectorQuantizer:
    return EMAVectorQuantizer(dim, codebook_size, **arguments).double().train()


def placed(**arguments: Any) -> EMAVectorQuantizer:
    """A quantizer past its first step."""
    quantizer = build(**arguments)
    quantizer(vectors(300, 6, seed=7))
    return quantizer


def distances(z: torch.Tensor, codebook: torch.Tensor) -> np.ndarray:
    return ((z.numpy()[:, None] - codebook.numpy()) ** 2).sum(-1)


@pytest.mark.parametrize("dim", [1, 6])
def test_the_nearest_code_wins_in_pieces_too(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z, codebook = vectors(101, dim), vectors(32, dim, seed=1)
    truth = distances(z, codebook)
    for rows, codes, group in [
        (2048, 2048, 128),
        (101, 32, 8),
        (10, 16, 4),
        (7, 5, 5),
        (1, 1, 1),
        (50, 12, 4),
    ]:
        monkeypatch.setattr(search, "ROWS", rows)
        monkeypatch.setattr(search, "CODES", codes)
        monkeypatch.setattr(search, "GROUP", group)
        symbols, scores = search.nearest(z, codebook)
        assert symbols.tolist() == truth.argmin(1).tolist()
        torch.testing.assert_close(scores + z.square().sum(1), torch.from_numpy(truth.min(1)))


def test_the_nearest_code_in_float32_is_as_near() -> None:
    z, codebook = vectors(3000, 16), vectors(64, 16, seed=1)
    truth = distances(z, codebook)
    symbols, _ = search.nearest(z.float(), codebook.float())
    chosen = truth[np.arange(len(z)), symbols.numpy()]
    assert (chosen - truth.min(1)).max() < 1e-4


def test_of_equally_near_codes_the_lowest_wins() -> None:
    codebook = torch.tensor([[5.0], [1.0], [-1.0], [1.0], [-1.0], [5.0]])
    symbols, _ = search.nearest(torch.tensor([[0.0], [2.0], [9.0], [-3.0], [3.0]]), codebook)
    assert symbols.tolist() == [1, 1, 0, 2, 0]


def test_quantizing_keeps_leading_dimensions_and_decodes_exactly() -> None:
    quantizer = placed().eval()
    for shape in [(4,), (2, 3), (2, 3, 5), ()]:
        z = vectors(*shape, 6)
        out = quantizer(z)
        assert out.symbols.shape == (*shape, 1)
        assert out.z.shape == z.shape
        assert torch.equal(out.z, quantizer.decode(out.symbols))
        assert torch.equal(out.symbols, quantizer.encode(z))
    with pytest.raises(InputError, match=r"\[..., 6\], got \[4, 5\]"):
        quantizer(vectors(4, 5))


@pytest.mark.parametrize("training", [False, True])
def test_gradients_pass_straight_through(training: bool) -> None:
    quantizer = placed(beta=0.7).train(training)
    codebook = quantizer.codebook.clone()
    z, weight = vectors(40, 6, seed=2).requires_grad_(), vectors(40, 6, seed=3)
    out = quantizer(z)
    ((out.z * weight).sum() + out.losses["commitment"]).backward()
    codes = codebook[torch.from_numpy(distances(z.detach(), codebook).argmin(1))]
    torch.testing.assert_close(out.losses["commitment"], 0.7 * (z - codes).square().mean())
    torch.testing.assert_close(z.grad, weight + 0.7 * 2 * (z.detach() - codes) / z.numel())
    assert torch.equal(out.z, codes)


def test_moving_averages_follow_a_direct_computation() -> None:
    quantizer = placed(decay=0.9, revive=0.0)
    for seed in range(4):
        counts, sums, codebook = (
            t.clone() for t in (quantizer.counts, quantizer.sums, quantizer.codebook)
        )
        z = vectors(50, 6, seed=seed)
        quantizer(z)
        one_hot = np.eye(32)[distances(z, codebook).argmin(1)]
        counts = 0.9 * counts + 0.1 * torch.from_numpy(one_hot.sum(0))
        sums = 0.9 * sums + 0.1 * torch.from_numpy(one_hot.T @ z.numpy())
        smoothed = (counts + 1e-5) / (counts.sum() + 32 * 1e-5) * counts.sum()
        torch.testing.assert_close(quantizer.counts, counts)
        torch.testing.assert_close(quantizer.sums, sums)
        torch.testing.assert_close(quantizer.codebook, sums / smoothed[:, None])


def test_the_first_batch_places_every_code_on_clustered_data() -> None:
    z = clustered(32)
    quantizer = build()
    out = quantizer(z)
    assert out.stats["revived"] == 0
    assert quantizer.counts.sum() == len(z), "the first batch counts in full"
    usage = CodeUsage(32)
    usage.update(quantizer.encode(z))
    assert usage.used == 32
    error = (quantizer.decode(quantizer.encode(z)) - z).square().mean()
    assert error < 0.1 * z.var(0).mean(), "codes must lie where the clusters are"
    untrained = build()
    assert (untrained.decode(untrained.encode(z)) - z).square().mean() > 5 * error


def test_a_first_batch_smaller_than_the_codebook_is_enough_to_start() -> None:
    quantizer = build()
    quantizer(vectors(5, 6))
    for seed in range(100):
        out = quantizer(vectors(60, 6, seed=seed))
    assert torch.isfinite(quantizer.codebook).all()
    assert out.stats["perplexity"] > 16


def test_seeding_finds_clusters_of_identical_points() -> None:
    points = torch.tensor(
        [[0.0, 0.0]] * 97 + [[10.0, 0.0], [0.0, 10.0], [10.0, 10.0]], dtype=torch.float64
    )
    codes = search.kmeans(points, 8, torch.Generator().manual_seed(0))
    assert {tuple(code) for code in codes.tolist()} >= {(0, 0), (10, 0), (0, 10), (10, 10)}


def test_a_dead_code_starts_anew_at_a_vector_of_the_batch() -> None:
    quantizer, z = placed(), vectors(50, 6, seed=5)
    with torch.no_grad():
        quantizer.counts[3], quantizer.sums[3], quantizer.codebook[3] = 0.0, 0.0, 1e3
    out = quantizer(z)
    assert out.stats["revived"] >= 1
    assert (z - quantizer.codebook[3]).abs().amax(1).min() < 1e-4
    assert (z - quantizer.codebook[4]).abs().amax(1).min() > 1e-4, "a living code moves on slowly"


def test_every_step_draws_other_vectors() -> None:
    quantizer, z = placed(), vectors(500, 6, seed=5)
    starts = set()
    for _ in range(4):
        quantizer.counts[3] = 0.0
        quantizer(z)
        starts.add(int((z - quantizer.codebook[3]).square().sum(1).argmin()))
    assert len(starts) == 4


def test_revival_brings_a_collapsed_codebook_back() -> None:
    used = {}
    for revive in (0.0, 0.1):
        quantizer = placed(revive=revive, decay=0.9)
        with torch.no_grad():  # all codes but one far from the data
            quantizer.codebook[1:] += 100
            quantizer.sums[1:] = quantizer.codebook[1:] * quantizer.counts[1:, None]
        for seed in range(60):
            quantizer(vectors(100, 6, seed=seed))
        usage = CodeUsage(32)
        usage.update(quantizer.encode(vectors(1000, 6, seed=99)))
        used[revive] = usage.perplexity
    assert used[0.0] == 1
    assert used[0.1] > 24


def test_training_repeats_resumes_and_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    batches = [vectors(40, 6, seed=seed) * (1 + seed) for seed in range(8)]

    def run(quantizer: EMAVectorQuantizer, part: slice) -> list[float]:
        return [float(quantizer(z).losses["commitment"]) for z in batches[part]]

    initial = build().state_dict()
    assert not torch.equal(state, torch.random.get_rng_state()), "fresh codebooks are random"
    state = torch.random.get_rng_state()
    quantizer = build()
    quantizer.load_state_dict(initial)
    whole = run(quantizer, slice(0, 8))
    again, resumed = build(), build(seed=17)
    again.load_state_dict(initial)
    assert run(again, slice(0, 4)) == whole[:4]
    resumed.load_state_dict(again.state_dict())
    state = torch.random.get_rng_state()
    assert run(resumed, slice(4, 8)) == whole[4:]
    assert torch.equal(state, torch.random.get_rng_state())
    other = build(seed=17)
    assert run(other, slice(0, 8)) != whole, "another seed places codes elsewhere"


def test_evaluation_changes_nothing() -> None:
    quantizer = placed().eval()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer(vectors(50, 6))
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


def test_codes_are_chosen_in_float32_under_autocast() -> None:
    quantizer = EMAVectorQuantizer(16, 64).eval()
    quantizer.codebook.copy_(vectors(64, 16, seed=1))
    z = vectors(20_000, 16).float()
    plain = quantizer(z)
    rounded, _ = search.nearest(z.bfloat16().float(), quantizer.codebook.bfloat16().float())
    assert not torch.equal(rounded, plain.symbols.flatten()), "too easy"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(z), plain.symbols)
        mixed = quantizer(z)
        narrow = quantizer(z.bfloat16())
    assert torch.equal(plain.symbols, mixed.symbols)
    assert torch.equal(plain.losses["commitment"], mixed.losses["commitment"])
    assert torch.equal(narrow.symbols, quantizer.encode(z.bfloat16().float()))
    assert (narrow.z.dtype, narrow.losses["commitment"].dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-9, -1.0, 1e9])
def test_a_rotation_that_is_of_no_use_passes_straight_through(scale: float) -> None:
    quantizer = RotationQuantizer(6, 32).double().eval()
    with torch.no_grad():
        quantizer.codebook[1:] = 1e12
    z, weight = (scale * quantizer.codebook[:1]).requires_grad_(), vectors(1, 6)
    out = quantizer(z)
    (out.z * weight).sum().backward()
    assert torch.equal(out.z, quantizer.codebook[:1])
    assert torch.equal(z.grad, weight)


def test_a_code_at_zero_passes_straight_through() -> None:
    quantizer = RotationQuantizer(6, 32).double().eval()
    quantizer.codebook.zero_()
    z, weight = vectors(5, 6).requires_grad_(), vectors(5, 6, seed=1)
    (quantizer(z).z * weight).sum().backward()
    assert torch.equal(z.grad, weight)


def test_a_dead_gradient_code_starts_anew_at_a_vector_of_the_batch() -> None:
    quantizer, z = GradientVectorQuantizer(6, 32).double(), vectors(50, 6, seed=5)
    quantizer(vectors(300, 6, seed=7))
    with torch.no_grad():
        quantizer.counts[3], quantizer.codebook[3] = 0.0, 1e3
    out = quantizer(z)
    assert out.stats["revived"] >= 1
    assert (z - quantizer.codebook[3]).abs().amax(1).min() == 0
    assert (z - quantizer.codebook[4]).abs().amax(1).min() > 1e-4


def test_dead_gradient_codes_stay_where_the_batch_has_what_is_no_number() -> None:
    quantizer, z = GradientVectorQuantizer(6, 32).double(), vectors(50, 6, seed=5)
    quantizer(vectors(300, 6, seed=7))
    quantizer.counts[:20] = 0.0
    before = quantizer.codebook.detach().clone()
    z[::2] = float("nan")
    out = quantizer(z)
    assert out.stats["revived"] == 0
    assert torch.equal(quantizer.codebook, before)


def test_the_map_of_simvq_starts_at_the_mean_and_covariance_of_the_vectors() -> None:
    quantizer, z = SimVQ(6, 20_000).double(), vectors(400, 6) @ vectors(6, 6, seed=1) + 5
    quantizer(z)
    codes = quantizer.codes().detach()
    torch.testing.assert_close(codes.mean(0), z.mean(0), atol=0.1, rtol=0.1)
    torch.testing.assert_close(codes.t().cov(), z.t().cov(), atol=0.3, rtol=0.1)
    torch.testing.assert_close(quantizer.weight @ quantizer.weight, z.t().cov(correction=0))


def test_usage_is_that_of_all_batches_together() -> None:
    generator = np.random.default_rng(0)
    batches = [generator.integers(0, 20, (3, 4, 4, 1)) ** 2 // 20 for _ in range(5)]
    usage = CodeUsage(24)
    assert (usage.used, usage.perplexity, usage.entropy_bits) == (0, 1.0, 0.0)
    for batch in batches:
        usage.update(torch.from_numpy(batch))
    counts = np.bincount(np.concatenate(batches).ravel(), minlength=24)
    shares = counts[counts > 0] / counts.sum()
    assert usage.counts.tolist() == counts.tolist()
    assert usage.used == (counts > 0).sum() < 24
    assert usage.used_fraction == usage.used / 24
    assert usage.entropy_bits == pytest.approx(-(shares * np.log2(shares)).sum(), rel=1e-12)
    assert usage.perplexity == pytest.approx(2**usage.entropy_bits, rel=1e-12)
    for wrong in (-1, 24):
        with pytest.raises(InputError, match=r"0..23"):
            usage.update(torch.tensor([3, wrong]))


def test_even_use_has_the_perplexity_of_the_codebook() -> None:
    usage = CodeUsage(512)
    usage.update(torch.arange(512).to(torch.uint16))
    assert usage.perplexity == pytest.approx(512)
    assert usage.entropy_bits == pytest.approx(9)


def test_the_running_perplexity_is_that_of_the_counts() -> None:
    quantizer = placed()
    out = quantizer(vectors(50, 6))
    shares = quantizer.counts.numpy() / quantizer.counts.sum().item()
    assert float(out.stats["perplexity"]) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ema", {}, "unknown quantizer 'ema'.*vq-ema"),
        ("vq-ema", {"size": 3}, "'size'.*codebook_size"),
        ("vq-ema", {"dim": 1.5}, "dim must be of type int"),
        ("vq-ema", {"dim": 0}, "dim must be an integer in 1..65536, got 0"),
        ("vq-ema", {"decay": 1.0}, "decay and revive"),
        ("vq-ema", {"beta": float("nan")}, "beta must be at least 0"),
    ],
)
def test_wrong_arguments_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_quantizer(name, **arguments)


def test_a_quantizer_is_built_by_name() -> None:
    quantizer = create_quantizer("vq-ema", dim=8, codebook_size=16, beta=1)
    assert (quantizer.dim, quantizer.levels, quantizer.depth) == (8, 16, 1)

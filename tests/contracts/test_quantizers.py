"""What every registered quantizer must do. A new one gets these tests by being registered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from tessella.distributed import join_batch
from tessella.errors import ConfigError, InputError
from tessella.tokenizers.quantizers import (
    QUANTIZERS,
    CodeUsage,
    Quantizer,
    QuantizerOutput,
    create_quantizer,
    quantizer_arguments,
)
from tessella.tokenizers.quantizers.lfq import entropy_of_mean

DIM = 6
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name} {word}".strip(): (name, dict(arguments))
    for name, quantizer in QUANTIZERS.items()
    for word, arguments in quantizer.examples().items()
}
"""Each quantizer, tiny, and its options that change what is computed, as its class says."""
SEARCHED = [name for name, (base, _) in VARIANTS.items() if QUANTIZERS[base].learns_codes]
every = pytest.mark.parametrize("name", VARIANTS)
searched = pytest.mark.parametrize("name", SEARCHED)


def takes(name: str, argument: str) -> bool:
    return argument in quantizer_arguments(VARIANTS[name][0])


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clustered(codes: int, each: int = 20, dim: int = DIM, seed: int = 0) -> torch.Tensor:
    """``codes`` well separated clusters, shuffled: ``[codes * each, dim]``."""
    points = 20 * vectors(codes, dim, seed=seed).repeat_interleave(each, 0) + vectors(
        codes * each, dim, seed=seed + 1
    )
    return points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))]


def build(name: str, **arguments: Any) -> Quantizer:
    """A fresh quantizer in float64; what it draws from the global generator is always the same."""
    quantizer, options = VARIANTS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_quantizer(quantizer, **{"dim": DIM} | options | arguments).double().train()


Optimizer = torch.optim.Optimizer | None


def optimizer_of(quantizer: Quantizer) -> Optimizer:
    parameters = list(quantizer.parameters())
    return torch.optim.Adam(parameters, lr=0.01) if parameters else None


def fit(
    quantizer: Quantizer, batches: list[torch.Tensor], optimizer: Optimizer = None
) -> list[float]:
    """Train on batches; the loss of each."""
    optimizer = optimizer or optimizer_of(quantizer)
    losses = []
    for z in batches:
        out = quantizer(z)
        loss = (out.z - z).square().mean() + sum(out.losses.values())
        if optimizer is not None:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def trained(name: str, **arguments: Any) -> Quantizer:
    quantizer = build(name, **arguments)
    fit(quantizer, [vectors(300, DIM, seed=seed) for seed in range(3)])
    return quantizer


def state(quantizer: Quantizer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in quantizer.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def brute_force(vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return (vectors.double()[:, None] - codes.double()).square().sum(-1).argmin(1)


def test_every_quantizer_is_tested() -> None:
    assert {name for name, _ in VARIANTS.values()} == set(QUANTIZERS)
    assert all(QUANTIZERS[name].name == name for name in QUANTIZERS)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_advice_of_every_quantizer_fits_into_a_sentence(name: str) -> None:
    remedies = QUANTIZERS[name].remedies
    for clause in (remedies.collapse, remedies.dead_codes):
        assert clause
        assert not clause.endswith(".")
    assert "{fewer}" in remedies.dead_codes
    assert 0 < QUANTIZERS[name].healthy_perplexity < 1


@every
def test_a_quantizer_shows_its_sizes(name: str) -> None:
    shown = repr(build(name))
    assert "\n" not in shown
    assert f"dim={DIM}" in shown


@every
@pytest.mark.parametrize("training", [False, True])
def test_shapes_and_values_are_those_of_the_codes(name: str, training: bool) -> None:
    quantizer = trained(name).train(training)
    for shape in [(40,), (2, 30), (2, 5, 6), (1,)]:
        z = vectors(*shape, DIM)
        codes, symbols = quantizer.eval().decode(quantizer.encode(z)), quantizer.encode(z)
        out = quantizer.train(training and len(z) > 1)(z)
        assert out.symbols.shape == (*shape, quantizer.depth)
        assert out.symbols.dtype == torch.int64
        assert 0 <= int(out.symbols.min()) <= int(out.symbols.max()) < quantizer.levels
        assert out.z.shape == z.shape
        if not training:
            assert torch.equal(out.symbols, symbols)
            assert torch.equal(out.z, codes), "the value is exactly the code"
    assert quantizer.eval()(vectors(DIM)).symbols.shape == (quantizer.depth,)
    with pytest.raises(InputError, match=rf"\[..., {DIM}\], got \[4, 5\]"):
        quantizer(vectors(4, 5))


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_result_has_the_type_of_the_input(name: str, dtype: torch.dtype) -> None:
    quantizer = build(name).float()
    for training in (True, False):
        out = quantizer.train(training)(vectors(100, DIM).to(dtype).requires_grad_())
        assert out.z.dtype == dtype
        for loss in out.losses.values():
            assert loss.shape == ()
            assert loss.dtype == torch.float32
            assert torch.isfinite(loss)
        for figure in out.stats.values():
            assert figure.shape == ()
            assert torch.isfinite(figure)
            assert not figure.requires_grad
        assert {"perplexity", "usage"} <= set(out.stats)


@every
def test_under_autocast_all_is_as_without(name: str) -> None:
    quantizer = trained(name).float().eval()
    z = vectors(3000, DIM).float().requires_grad_()
    plain = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = quantizer(z)
        symbols, codes = quantizer.encode(z), quantizer.decode(plain.symbols)
    assert torch.equal(plain.symbols, mixed.symbols)
    assert torch.equal(plain.symbols, symbols)
    assert torch.equal(plain.z, mixed.z)
    assert torch.equal(plain.z, codes)
    assert all(torch.equal(plain.losses[key], mixed.losses[key]) for key in plain.losses)


@pytest.mark.parametrize("name", ["vq-ema", "rotation", "vq", "simvq", "lfq"])
def test_the_nearest_code_wins(name: str) -> None:
    quantizer, z = trained(name).eval(), vectors(500, DIM, seed=9)
    codes = quantizer.decode(torch.arange(quantizer.levels)[:, None]).detach()
    assert quantizer.encode(z)[:, 0].tolist() == brute_force(z, codes).tolist()


def test_the_code_at_the_smallest_angle_wins() -> None:
    quantizer, z = trained("vq cosine").eval(), vectors(500, DIM, seed=9)
    codes = quantizer.decode(torch.arange(32)[:, None]).detach()
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(32, dtype=torch.float64))
    assert quantizer.encode(z)[:, 0].tolist() == (unit(z) @ codes.t()).argmax(1).tolist()


def test_short_codes_are_compared_behind_the_linear_layer() -> None:
    quantizer, z = trained("vq short").eval(), vectors(500, DIM, seed=9)
    weights = {key: value.detach() for key, value in quantizer.named_parameters()}
    inner = z @ weights["narrow.weight"].t() + weights["narrow.bias"]
    symbols = brute_force(inner, weights["codebook"])
    assert quantizer.encode(z)[:, 0].tolist() == symbols.tolist()
    expected = weights["codebook"][symbols] @ weights["widen.weight"].t() + weights["widen.bias"]
    torch.testing.assert_close(quantizer(z).z, expected)


def test_each_level_takes_the_nearest_code_to_what_is_left() -> None:
    quantizer, z = trained("residual-vq").eval(), vectors(500, DIM, seed=9)
    symbols, left = quantizer.encode(z), z
    for level in range(3):
        codes = quantizer.state_dict()[f"stages.{level}.codebook"]
        chosen = brute_force(left, codes)
        assert symbols[:, level].tolist() == chosen.tolist()
        left = left - codes[chosen]
    torch.testing.assert_close(quantizer.decode(symbols), z - left)


@pytest.mark.parametrize("name", ["vq-ema", "vq", "simvq", "lfq", "residual-vq"])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_pass_straight_through(name: str, training: bool) -> None:
    quantizer, z, weight = (
        trained(name).train(training),
        vectors(40, DIM).requires_grad_(),
        vectors(40, DIM, seed=3),
    )
    (quantizer(z).z * weight).sum().backward()
    assert torch.equal(z.grad, weight)
    assert all(p.grad is None or not p.grad.any() for p in quantizer.parameters()), (
        "codes learn from their loss alone"
    )


def test_gradients_are_rotated() -> None:
    quantizer, z, weight = (
        trained("rotation").eval(),
        vectors(40, DIM).requires_grad_(),
        vectors(40, DIM, seed=3),
    )
    out = quantizer(z)
    (out.z * weight).sum().backward()
    for vector, code, wanted, given in zip(z.detach(), out.z.detach(), weight, z.grad, strict=True):
        between = unit(unit(vector) + unit(code))
        turn = (
            torch.eye(DIM)
            - 2 * torch.outer(between, between)
            + 2 * torch.outer(unit(code), unit(vector))
        )
        scaled = code.norm() / vector.norm() * turn
        torch.testing.assert_close(scaled @ vector, code)
        torch.testing.assert_close(turn @ turn.t(), torch.eye(DIM, dtype=torch.float64))
        torch.testing.assert_close(given, scaled.t() @ wanted)


@pytest.mark.parametrize("name", ["vq", "vq cosine", "simvq"])
def test_codes_and_vectors_are_drawn_together(name: str) -> None:
    quantizer, z = trained(name, beta=0.7).eval(), vectors(40, DIM).requires_grad_()
    out = quantizer(z)
    point = unit(z) if name == "vq cosine" else z
    codes = quantizer.decode(out.symbols)
    torch.testing.assert_close(out.losses["codebook"], (point - codes).square().mean())
    torch.testing.assert_close(out.losses["commitment"], 0.7 * (point - codes).square().mean())
    parameters = [z, *quantizer.parameters()]
    found = torch.autograd.grad(sum(out.losses.values()), parameters)
    toward_codes = 0.7 * (point - codes.detach()).square().mean()
    toward_vectors = (point.detach() - codes).square().mean()
    wanted = torch.autograd.grad(toward_codes + toward_vectors, parameters)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_each_level_learns_from_what_is_left() -> None:
    quantizer, z = trained("residual-vq", decay=0.9, revive=0.0), vectors(60, DIM, seed=9)
    before, left, commitment = state(quantizer), z, 0.0
    out = quantizer(z)
    for level in range(3):
        counts, sums, codes = (
            before[f"stages.{level}.{key}"] for key in ("counts", "sums", "codebook")
        )
        chosen = torch.eye(16, dtype=torch.float64)[brute_force(left, codes)]
        torch.testing.assert_close(
            quantizer.stages[level].counts, 0.9 * counts + 0.1 * chosen.sum(0)
        )
        torch.testing.assert_close(
            quantizer.stages[level].sums, 0.9 * sums + 0.1 * chosen.t() @ left
        )
        left = left - chosen @ codes
        commitment += 0.25 * left.square().mean() / 3
    torch.testing.assert_close(out.losses["commitment"], commitment)
    assert {
        f"{key}/{level}" for key in ("perplexity", "usage", "revived") for level in range(3)
    } <= set(out.stats)


@every
def test_decoded_symbols_encode_to_themselves(name: str) -> None:
    quantizer = trained(name).eval()
    is_projected = any(isinstance(part, torch.nn.Linear) for part in quantizer.modules())
    if is_projected or not quantizer.reversible:
        pytest.skip("vectors are projected or bounded before they are quantized")
    with torch.no_grad():
        for level, stage in enumerate(getattr(quantizer, "stages", [])):
            stage.codebook *= (
                1e-3**level
            )  # greedy search finds codes again where each level is finer than the one above
    generator = torch.Generator().manual_seed(0)
    symbols = torch.randint(quantizer.levels, (500, quantizer.depth), generator=generator)
    assert torch.equal(quantizer.encode(quantizer.decode(symbols)), symbols)


@every
def test_codes_go_through_disk(name: str, tmp_path: Path) -> None:
    quantizer, z = trained(name).eval(), vectors(200, DIM, seed=9)
    save_file(quantizer.state_dict(), tmp_path / "q.safetensors")
    other = build(name, **({"seed": 7} if takes(name, "seed") else {})).eval()
    other.load_state_dict(load_file(tmp_path / "q.safetensors"))
    assert torch.equal(other.encode(z), quantizer.encode(z))
    assert torch.equal(other(z).z, quantizer(z).z)


@every
def test_evaluation_learns_nothing(name: str) -> None:
    quantizer, z = trained(name), vectors(100, DIM, seed=9)
    before = state(quantizer)
    quantizer.encode(z)
    quantizer.decode(quantizer.encode(z))
    assert same(state(quantizer), before), "encode and decode learn nothing in training mode either"
    quantizer.eval()(z)
    assert same(state(quantizer), before)
    quantizer.train()(z)
    assert not same(state(quantizer), before)


@every
def test_training_repeats_and_resumes_bit_for_bit(name: str) -> None:
    batches = [vectors(60, DIM, seed=seed) * (1 + seed) for seed in range(10)]
    drawn = torch.random.get_rng_state()

    def start(seed: int = 0) -> tuple[Quantizer, Optimizer]:
        quantizer = build(name, **({"seed": seed} if takes(name, "seed") else {}))
        return quantizer, optimizer_of(quantizer)

    whole, optimizer = start()
    losses = fit(whole, batches, optimizer)
    part, optimizer = start()
    assert fit(part, batches[:5], optimizer) == losses[:5]
    resumed, later = start(seed=17)
    resumed.load_state_dict(state(part))
    if optimizer is not None and later is not None:
        later.load_state_dict(optimizer.state_dict())
    assert fit(resumed, batches[5:], later) == losses[5:]
    assert same(state(resumed), state(whole))
    assert torch.equal(drawn, torch.random.get_rng_state()), (
        "draws leave the global generator alone"
    )


@pytest.mark.parametrize("name", [name for name in VARIANTS if takes(name, "seed")])
def test_another_seed_gives_other_codes(name: str) -> None:
    codes = [
        trained(name, seed=seed).eval().encode(vectors(200, DIM, seed=9)) for seed in (0, 0, 1)
    ]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_batch_that_is_not_finite_leaves_the_codes_whole(
    name: str, bad: float, steps: int
) -> None:
    quantizer, z = build(name), vectors(100, DIM)
    fit(quantizer, [z] * steps)
    broken = z.clone()
    broken[::3] = bad
    out = quantizer(broken)
    assert all(value.isfinite().all() for value in state(quantizer).values())
    assert 0 <= int(out.symbols.min()) <= int(out.symbols.max()) < quantizer.levels
    assert not out.losses or not all(loss.isfinite() for loss in out.losses.values()), (
        "the trainer must see it"
    )
    quantizer(z)
    assert all(loss.isfinite() for loss in quantizer(z).losses.values())


@searched
def test_codes_are_used(name: str) -> None:
    """A mixture of 64 overlapping Gaussians, 64 codes a level, fifty steps."""
    quantizer = build(name, codebook_size=64)
    healthy = type(quantizer).healthy_perplexity
    centres = 2 * vectors(64, DIM, seed=1)
    batches = [centres.repeat(8, 1) + vectors(512, DIM, seed=10 + step) for step in range(50)]
    fit(quantizer, batches)
    for level in range(quantizer.depth):
        usage = CodeUsage(64)
        usage.update(quantizer.encode(torch.cat(batches[:4]))[:, level])
        assert usage.used_fraction >= 0.9
        assert usage.perplexity >= 2 * healthy * 64


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_no_matrix_of_all_vectors_by_all_codes_is_formed(name: str) -> None:
    n = 9000
    quantizer = create_quantizer(name, dim=2, codebook_size=256).train()
    z = vectors(n, 2).float().requires_grad_()
    with Largest() as largest:
        for _ in range(2):  # the first batch, which places the codes, and a later one
            out = quantizer(z)
            (out.z.sum() + sum(out.losses.values())).backward()
        quantizer.encode(z)
    assert largest.elements < n * 256 / 4


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vq-em", {}, "unknown quantizer 'vq-em'; did you mean 'vq-ema'"),
        ("fsq", {"beta": 0.25}, "'beta'.*codebook_size, dim, levels"),
        ("vq", {"depth": 2}, "'depth'.*code_dim"),
        ("vq", {"code_dim": -1}, r"code_dim \(0 for dim\) must be an integer in 0.*, got -1"),
        (
            "fsq",
            {"codebook_size": 512},
            r"256, 1024, 4096, 16384, 65536, got 512.*levels=\[8, 5, 5, 5\]",
        ),
        ("fsq", {"levels": [2, 5]}, r"at least 3 each, got \[2, 5\].*lfq"),
        ("fsq", {"levels": [1000, 1000, 1000]}, "1,000,000,000 codes"),
        ("fsq", {"levels": [8, 5.5]}, "levels must be of type int"),
        ("lfq", {"codebook_size": 1000}, "power of two.*got 1000; take 512 or 1024"),
        ("lfq", {"temperature": 0.0}, "temperature above 0"),
        ("lfq", {"entropy": -1.0}, "entropy must be at least 0"),
        ("residual-vq", {"depth": 0}, "depth must be an integer in 1..256, got 0"),
        ("residual-vq", {"depth": 65537}, "depth must be an integer in 1..256, got 65537"),
        ("residual-vq", {"dim": 1024, "codebook_size": 2**18}, "take fewer codes"),
        ("vq", {"code_dim": 2**31}, "code_dim .* must be an integer in 0..65536"),
        ("vq", {"dim": 1, "code_dim": 1024, "codebook_size": 2**20}, "take fewer or shorter"),
        ("fsq", {"levels": [3] * 40}, "codes; at most 16,777,216 are allowed"),
    ],
)
def test_wrong_arguments_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_quantizer(name, **arguments)


WRONG = {"dim": 0, "codebook_size": 1, "beta": -0.1, "decay": 1.0, "revive": 1.0}


@pytest.mark.parametrize(
    ("name", "argument"), [(n, a) for n in VARIANTS for a in WRONG if takes(n, a)]
)
def test_arguments_out_of_range_are_refused(name: str, argument: str) -> None:
    with pytest.raises(ConfigError, match=rf"{argument}\b.*, got .*{WRONG[argument]}"):
        build(name, **{argument: WRONG[argument]})


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("codebook_size", 10**9),
        ("codebook_size", 2**31),
        ("codebook_size", 2**63),
        ("dim", 2**31),
        ("dim", 10**12),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(
    name: str, argument: str, value: int
) -> None:
    with pytest.raises(ConfigError, match=f"{argument} must be an integer in .*, got {value}"):
        create_quantizer(name, **{argument: value})


@pytest.mark.parametrize("name", [n for n in QUANTIZERS if QUANTIZERS[n].learns_codes])
def test_a_codebook_beyond_a_gigabyte_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="codebook_size times dim must be at most 268,435,456"):
        create_quantizer(name, dim=65536, codebook_size=2**24)


def test_the_arguments_of_a_quantizer_can_be_asked() -> None:
    for name in QUANTIZERS:
        assert set(quantizer_arguments(name)) >= {"dim", "codebook_size"}
    with pytest.raises(ConfigError, match="did you mean 'fsq'"):
        quantizer_arguments("fsqq")


def hostile(kind: str) -> torch.Tensor:
    """A batch that a quantizer must survive, float32 but where its kind says otherwise."""
    z = vectors(120, DIM, seed=5).float()
    if kind == "empty":
        return z[:0]
    if kind in ("float16", "bfloat16"):
        return z.to(getattr(torch, kind))
    if kind == "float16 large":
        return (1e4 * z).clamp(-60000, 60000).half()
    if kind == "constant":
        return torch.full_like(z, 0.3)
    if kind == "zero":
        return torch.zeros_like(z)
    if kind == "repeated":
        return z[:2].repeat(60, 1)
    if kind == "one vector":
        return z[:1]
    if kind == "huge":
        return 1e19 * z  # finite, unlike the squares of some
    if kind == "one huge":
        z[7] = 2e19
        return z
    if kind == "largest":
        return torch.full_like(z, torch.finfo(torch.float32).max)
    if kind == "large in sum":
        return torch.full_like(z, 3e18)  # each square is finite, unlike their sum
    if kind == "large constant":
        return torch.full_like(z, 1e17)
    if kind == "tiny":
        return 1e-30 * z
    z[::3] = float(kind)
    return z


HARMLESS = (
    "empty",
    "float16",
    "bfloat16",
    "float16 large",
    "constant",
    "zero",
    "repeated",
    "one vector",
    "large constant",
    "tiny",
)
"""Batches that are finite, as are squared distances within them."""
EXCESSIVE = ("huge", "one huge", "largest", "large in sum")
"""Batches that are finite, unlike squared distances within them."""
BROKEN = ("nan", "inf", "-inf")
KINDS = (*HARMLESS, *EXCESSIVE, *BROKEN)
SHARED_KINDS = ("empty", "bfloat16", "constant", "huge", "nan", "inf")
"""Those that one of two processes gets."""


def is_finite(out: QuantizerOutput) -> bool:
    """Whether a trainer sees nothing wrong in a result."""
    losses = all(bool(loss.isfinite()) for loss in out.losses.values())
    return losses and bool(out.z.isfinite().all())


def trained_in_single(name: str, steps: int) -> Quantizer:
    """A quantizer in float32 after some good batches."""
    quantizer = build(name).float().train()
    fit(quantizer, [vectors(200, DIM, seed=step).float() for step in range(steps)])
    return quantizer


def check_in_range(out: QuantizerOutput, quantizer: Quantizer) -> None:
    assert out.symbols.dtype == torch.int64
    if out.symbols.numel():
        assert 0 <= int(out.symbols.min()) <= int(out.symbols.max()) < quantizer.levels
    assert all(bool(figure.isfinite()) for figure in out.stats.values())


@every
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 2], ids=["first", "later"])
def test_a_hostile_batch_in_training_leaves_codes_finite(name: str, kind: str, steps: int) -> None:
    quantizer = trained_in_single(name, steps)
    before = state(quantizer)
    z = hostile(kind).requires_grad_()
    out = quantizer(z)
    (out.z.float().sum() + sum(out.losses.values())).backward()
    assert out.z.dtype == z.dtype
    check_in_range(out, quantizer)
    assert all(bool(value.isfinite().all()) for value in state(quantizer).values())
    if kind == "empty":
        assert all(float(loss.detach()) == 0 for loss in out.losses.values())
        assert same(state(quantizer), before), "an empty batch teaches nothing"
    elif kind in BROKEN or (kind in EXCESSIVE and not is_finite(out)):
        assert not is_finite(out), "the trainer must see it"
        assert same(state(quantizer), before), "a batch that is not finite teaches nothing"
    else:
        assert is_finite(out)
        assert not same(state(quantizer), before)
    for seed in (8, 9):
        assert is_finite(quantizer(vectors(100, DIM, seed=seed).float()))


@searched
@pytest.mark.parametrize("kind", EXCESSIVE)
def test_squares_that_overflow_are_seen_by_the_trainer(name: str, kind: str) -> None:
    assert not is_finite(trained_in_single(name, 0)(hostile(kind)))


@every
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 2], ids=["fresh", "trained"])
def test_a_hostile_batch_in_evaluation_gets_codes(name: str, kind: str, steps: int) -> None:
    quantizer = trained_in_single(name, steps).eval()
    before = state(quantizer)
    z = hostile(kind)
    with torch.no_grad():
        out = quantizer(z)
        symbols = quantizer.encode(z)
        assert quantizer.decode(symbols).shape == z.shape
    assert symbols.shape == (len(z), quantizer.depth)
    check_in_range(out, quantizer)
    assert same(state(quantizer), before)
    if kind == "empty":
        assert all(float(loss) == 0 for loss in out.losses.values())


SHARES = [(0, 70), (70, 200)]  # rows of a batch that each of two processes gets
STEPS = 12


def shifting(step: int) -> torch.Tensor:
    """Batches that wander, so that codes die."""
    return clustered(8, 25, seed=step) + 30 * step


def follow(
    name: str, share: Callable[[torch.Tensor], torch.Tensor], initial: float = 1.0
) -> dict[str, torch.Tensor]:
    """What a quantizer holds after its share of the batches, and how it fared on the way.

    ``initial`` scales the codes that the first batch places anew, which must not matter.
    """
    quantizer = build(name, **({"decay": 0.8} if takes(name, "decay") else {}))
    for key, value in quantizer.state_dict().items():
        value *= initial if key.endswith("codebook") else 1
    stats = [quantizer(share(shifting(step))).stats for step in range(STEPS)]
    figures = {key: torch.stack([each[key] for each in stats]).double() for key in stats[0]}
    return {f"{name}/{key}": value for key, value in (quantizer.state_dict() | figures).items()}


def spread_of_halves(part: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The gradient of the entropy of signs, by a linear layer's weight."""
    weight = vectors(DIM, DIM, seed=4).requires_grad_()
    logits = part(vectors(200, DIM)) @ weight
    entropy_of_mean(logits, join_batch(logits)).backward()
    assert weight.grad is not None
    return weight.grad


def learn(rank: int, folder: str) -> None:
    """One of two processes: its share of every batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)  # the processes' global generators differ, their codes must not
    found = {}
    for name in VARIANTS:
        found |= follow(name, lambda batch: batch[slice(*SHARES[rank])], initial=float(rank))
    gradient = spread_of_halves(lambda batch: batch[rank::2])
    dist.all_reduce(gradient)
    for name in VARIANTS:
        for kind in SHARED_KINDS:
            for steps in (0, 2):
                for victim in (0, 1):
                    found |= share_hostile(name, kind, steps, rank == victim)
    if rank == 0:  # evaluation in one process must not wait for the other
        found |= {f"{name}/alone": build(name).eval()(shifting(0)).symbols for name in VARIANTS}
    save_file(found | {"entropy": gradient / 2}, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


def share_hostile(name: str, kind: str, steps: int, is_victim: bool) -> dict[str, torch.Tensor]:
    """The state after a step in which one of two processes, the victim, has a hostile batch.

    The other one has a good one.
    """
    quantizer = build(name).float()
    for step in range(steps):
        quantizer(vectors(100, DIM, seed=10 * step + is_victim).float())
    before = state(quantizer)
    out = quantizer(hostile(kind) if is_victim else vectors(100, DIM, seed=99).float())
    after = state(quantizer)
    key = f"hostile/{name}/{kind}/{steps}/{is_victim}"
    return {
        f"{key}/finite": torch.tensor(is_finite(out)),
        f"{key}/learned": torch.tensor(not same(before, after)),
        f"{key}/state": torch.cat([value.double().flatten() for value in after.values()]),
    }


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """What each of two processes held in the end."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(learn, (str(folder),), nprocs=2)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


@every
def test_two_processes_learn_the_codes_of_one_on_the_joined_batch(
    name: str, two_processes: list[dict[str, torch.Tensor]]
) -> None:
    first, second = two_processes
    alone = follow(name, lambda batch: batch)
    if f"{name}/revived" in alone:
        assert alone[f"{name}/revived"].sum() > 10, "the test needs revivals"
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-9, atol=1e-9, msg=key)


@every
@pytest.mark.parametrize("kind", SHARED_KINDS)
@pytest.mark.parametrize("steps", [0, 2], ids=["first", "later"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_hostile_batch_of_one_process_leaves_both_alike(
    name: str,
    kind: str,
    steps: int,
    victim: int,
    two_processes: list[dict[str, torch.Tensor]],
) -> None:
    key = f"hostile/{name}/{kind}/{steps}"
    its = {what: two_processes[victim][f"{key}/True/{what}"] for what in ("finite", "learned")}
    others = {what: two_processes[1 - victim][f"{key}/False/{what}"] for what in its}
    states = (
        two_processes[victim][f"{key}/True/state"],
        two_processes[1 - victim][f"{key}/False/state"],
    )
    assert torch.equal(*states)
    assert states[0].isfinite().all()
    assert its == others, "both see the same, or one would go on alone"
    if kind in HARMLESS:
        assert its["finite"]
        assert its["learned"], "the other process has vectors to learn from"
    if kind in BROKEN:
        assert not its["finite"]
    if not its["finite"]:
        assert not its["learned"]


@every
def test_one_process_evaluates_alone(
    name: str, two_processes: list[dict[str, torch.Tensor]]
) -> None:
    assert torch.equal(two_processes[0][f"{name}/alone"], build(name).eval().encode(shifting(0)))


def test_two_processes_average_to_the_gradient_of_one(
    two_processes: list[dict[str, torch.Tensor]],
) -> None:
    torch.testing.assert_close(two_processes[0]["entropy"], spread_of_halves(lambda batch: batch))

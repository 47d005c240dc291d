"""The transformer and its attention against computations by loops, in float64."""

from __future__ import annotations

import math

import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError
from tessella.nn.attention import CausalAttention, RMSNorm, SwiGLU
from tessella.nn.rotary import rotate, rotations
from tessella.nn.stepping.runs import Runs
from tessella.nn.stepping.step import GridStep


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def turned(vector: list[float], row: int, column: int) -> list[float]:
    """A query or key turned pair by pair, as complex numbers."""
    pairs = len(vector) // 2
    result = []
    for pair in range(pairs):
        along, place = (row, pair) if pair < pairs // 2 else (column, pair - pairs // 2)
        angle = along * 10_000.0 ** (-place / (pairs // 2))
        number = complex(vector[2 * pair], vector[2 * pair + 1]) * complex(
            math.cos(angle), math.sin(angle)
        )
        result += [number.real, number.imag]
    return result


def attention_by_loops(
    module: CausalAttention, x: torch.Tensor, places: list[tuple[int, int]]
) -> torch.Tensor:
    """Attention over ``x [positions, width]`` whose position ``i`` stands at ``places[i]``."""
    size = module.size
    group = module.heads // module.kv_heads
    vectors = (x @ module.project.weight.T).unflatten(-1, (-1, size)).tolist()
    first_value = module.heads + module.kv_heads
    seen = torch.zeros_like(x)
    for t, place in enumerate(places):
        for head in range(module.heads):
            query = turned(vectors[t][head], *place)
            shared = head // group
            scores = []
            for s in range(t + 1):
                key = turned(vectors[s][module.heads + shared], *places[s])
                scores.append(
                    math.exp(sum(q * k for q, k in zip(query, key, strict=True)) / math.sqrt(size))
                )
            for s, score in enumerate(scores):
                value = torch.tensor(vectors[s][first_value + shared], dtype=torch.float64)
                seen[t, head * size : (head + 1) * size] += score / sum(scores) * value
    return seen @ module.merge.weight.T


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_is_what_loops_compute(kv_heads: int) -> None:
    module = CausalAttention(32, 4, kv_heads).double()
    x = normal(2, 6, 32)
    places = [(row, column) for row in range(2) for column in range(3)]
    expected = torch.stack([attention_by_loops(module, image, places) for image in x])
    torch.testing.assert_close(module(x, rotations(2, 3, 8)), expected, rtol=0, atol=1e-12)


def test_products_of_turned_vectors_depend_on_the_offset_of_their_pixels() -> None:
    queries = normal(16, seed=1)
    keys = normal(16, seed=2)
    cos_sin = rotations(6, 7, 16).unflatten(0, (6, 7))
    product = (rotate(queries, cos_sin[1, 4]) * rotate(keys, cos_sin[0, 2])).sum()
    moved = (rotate(queries, cos_sin[5, 6]) * rotate(keys, cos_sin[4, 4])).sum()
    turned_about = (rotate(queries, cos_sin[0, 2]) * rotate(keys, cos_sin[1, 4])).sum()
    torch.testing.assert_close(product, moved, rtol=0, atol=1e-12)
    assert abs(product - turned_about) > 1e-3


def test_rows_and_columns_turn_different_halves_and_lengths_stay() -> None:
    x = normal(16)
    cos_sin = rotations(4, 4, 16).unflatten(0, (4, 4))
    down = rotate(x, cos_sin[3, 0])
    right = rotate(x, cos_sin[0, 3])
    assert torch.equal(down[8:], x[8:])
    assert torch.equal(right[:8], x[:8])
    torch.testing.assert_close(down.norm(), x.norm())
    assert torch.equal(
        rotate(x, torch.zeros(2, 16, dtype=torch.float64)), torch.zeros(16, dtype=torch.float64)
    )


def test_the_norm_and_the_gate_are_their_formulas() -> None:
    norm = RMSNorm(6).double()
    part = SwiGLU(6, 10).double()
    x = normal(4, 6)
    norm.weight.data = normal(6, seed=3)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    gate, value = (x @ part.widen.weight.T).split(10, dim=-1)
    expected = (gate / (1 + (-gate).exp()) * value) @ part.narrow.weight.T
    torch.testing.assert_close(part(x), expected)


def test_the_norm_of_half_precision_is_computed_in_float32() -> None:
    x = (normal(4, 512) * 300).bfloat16()
    expected = RMSNorm(512)(x.float()).bfloat16()
    assert torch.equal(RMSNorm(512).bfloat16()(x), expected)


def test_a_step_costs_the_backbone_once_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the kernel a step runs its programs one by one.
    monkeypatch.setenv("TESSELLA_KERNEL", "0")
    model = ts.create("transformer", ts.Grid(2, 2, 3, 4), layers=1, width=8, heads=1)
    calls: list[tuple[int, int]] = []
    start = GridStep.start_pixel

    def counted(step: GridStep, runs: Runs, row: int, column: int, when: bool) -> None:
        if when:
            calls.append((row, column))
        start(step, runs, row, column, when)

    monkeypatch.setattr(GridStep, "start_pixel", counted)
    ts.sample(model, n=1, method="cached")
    assert calls == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_where_the_prefix_stands_changes_the_distribution() -> None:
    x = torch.randint(5, (2, 3, 3, 1), generator=torch.Generator().manual_seed(0))
    models = [
        ts.create("transformer", ts.Grid(3, 3, 1, 5), width=16, heads=2, prefix=p)
        for p in ("origin", "nowhere")
    ]
    assert not torch.equal(models[0].log_prob(x), models[1].log_prob(x))
    assert torch.equal(models[1].cos_sin[0], torch.zeros(2, 8))  # type: ignore[index]
    assert torch.equal(models[0].cos_sin[0], models[0].cos_sin[1])  # type: ignore[index]


@pytest.mark.parametrize("grid", [ts.Grid(8, 8, 1, 17), ts.Grid(16, 16, 3, 256)])
def test_a_fresh_model_is_close_to_uniform(grid: ts.Grid) -> None:
    x = torch.randint(grid.levels, (2, *grid.shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bits = ts.create("transformer", grid).bits_per_dim(x).mean()
    assert float(bits) < math.log2(grid.levels) + 0.25


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 36, "heads": 6}, "divides by 4"),
        ({"width": 64, "heads": 3}, "heads that divide the width"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads that divide"),
        ({"layers": 0}, "layers >= 1"),
        ({"dropout": 1.0}, "dropout < 1"),
        ({"prefix": "orgin"}, "did you mean 'origin'"),
    ],
)
def test_sizes_that_make_no_network_are_refused(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ts.create("transformer", ts.Grid(2, 2, 1, 4), **sizes)


def test_dropout_acts_in_training_only() -> None:
    model = ts.create("transformer", ts.Grid(3, 3, 1, 5), dropout=0.5)
    x = torch.zeros(1, 3, 3, 1, dtype=torch.int64)
    assert torch.equal(model(x), model(x))
    assert not torch.equal(model.train()(x), model(x))

"""LlamaGen's transformer: sizes of published models, classes, clear words for weights that are not
its."""

from __future__ import annotations

import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError, InputError
from tessella.exchange.importing import convert

Tensors = dict[str, torch.Tensor]


def weights(width: int = 8, feedforward: int = 12, classes: int = 3, kv_heads: int = 2) -> Tensors:
    """Tensors by LlamaGen's names of a tiny transformer of two layers and two heads."""
    make = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_embedding.embedding_table.weight": (classes, width),
        "tok_embeddings.weight": (5, width),
        "norm.weight": (width,),
        "output.weight": (5, width),
    }
    for i in range(2):
        shapes |= {
            f"layers.{i}.attention_norm.weight": (width,),
            f"layers.{i}.attention.wqkv.weight": (width + 2 * kv_heads * width // 2, width),
            f"layers.{i}.attention.wo.weight": (width, width),
            f"layers.{i}.ffn_norm.weight": (width,),
            f"layers.{i}.feed_forward.w1.weight": (feedforward, width),
            f"layers.{i}.feed_forward.w2.weight": (width, feedforward),
            f"layers.{i}.feed_forward.w3.weight": (feedforward, width),
        }
    return {name: torch.randn(shape, generator=make) for name, shape in shapes.items()}


def converted(state: Tensors, **facts: object) -> ts.DensityModel:
    """The model of those tensors, with two heads, on 2x2 codes."""
    model = convert("llamagen-gpt", state, {"n_head": 2, "grid": [2, 2], **facts})
    assert isinstance(model, ts.DensityModel)
    return model


@pytest.mark.parametrize(
    ("sizes", "millions"),
    [
        ({"layers": 12, "width": 768, "heads": 12}, 110.9),
        ({"layers": 24, "width": 1024, "heads": 16, "feedforward": 2816}, 342.9),
        ({"layers": 36, "width": 1280, "heads": 20, "feedforward": 3584}, 774.7),
    ],
)
def test_their_sizes_have_the_parameters_they_publish(
    sizes: dict[str, int], millions: float
) -> None:
    with torch.device("meta"):
        model = ts.create(
            "transformer", ts.Grid(16, 16, 1, 16384), classes=1000, prefix="nowhere", **sizes
        )
    ours = ("rows", "columns", "embedding.direction", "output.last.bias")
    extra = sum(tensor.numel() for name, tensor in model.named_parameters() if name in ours)
    assert extra < 0.07e6
    assert round((model.parameter_count() - extra) / 1e6, 1) == millions


def test_the_last_row_of_the_classes_is_the_null_class_where_there_is_one() -> None:
    state = weights(classes=3)
    x = torch.zeros(1, 2, 2, 1, dtype=torch.int64)
    null = converted(state)
    every = converted(state, num_classes=3)
    assert (null.classes, every.classes) == (2, 3)
    assert torch.equal(null.log_prob(x), every.log_prob(x, torch.tensor([2])))
    with pytest.raises(InputError, match="give cond"):
        every.log_prob(x)


def test_shared_heads_of_keys_are_read_from_the_shape() -> None:
    model = converted(weights(kv_heads=1))
    assert model.sizes()["kv_heads"] == 1
    assert model.sizes()["feedforward"] == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.1.attention.wo.weight": None}, r"1 missing \(layers.1.attention.wo.weight\)"),
        ({"layers.2.ffn_norm.weight": torch.ones(8)}, r"6 missing \(layers.2"),
        ({"freqs_cis": torch.ones(2)}, r"1 unknown \(freqs_cis\)"),
        (
            {"layers.0.feed_forward.w2.weight": torch.ones(8, 11)},
            r"blocks.0.feedforward.narrow.weight must be \[8, 12",
        ),
        (
            {"layers.0.attention.wqkv.weight": torch.ones(25, 8)},
            r"n_head=2 does not fit .* \[25, 8\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: dict[str, torch.Tensor | None], message: str
) -> None:
    state = {name: tensor for name, tensor in (weights() | change).items() if tensor is not None}
    with pytest.raises(ConfigError, match=message):
        converted(state)

"""VQGAN: its layers, the sizes of published models, words for what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tessella.errors import ConfigError
from tessella.tokenizers import TOKENIZERS, create_tokenizer
from tessella.tokenizers.construction import construct
from tessella.tokenizers.convnet import DeepBlock, Down, Norm, SpatialAttention, Up


@pytest.mark.parametrize(
    ("sizes", "millions", "stride"),
    [
        ({}, 72.14, 16),
        ({"codebook_size": 16384}, 76.07, 16),
        (
            {"multipliers": (1, 2, 2, 4), "codebook_size": 16384, "latent": 4, "code_dim": 4},
            67.72,
            8,
        ),
        ({"codebook_size": 16384, "code_dim": 8}, 71.88, 16),
        ({"multipliers": (1, 2, 2, 4), "codebook_size": 16384, "code_dim": 8}, 70.11, 8),
    ],
)
def test_their_sizes_have_the_parameters_they_publish(
    sizes: dict[str, object], millions: float, stride: int
) -> None:
    with torch.device("meta"):
        model = construct("tokenizer", TOKENIZERS, "vqgan", {"quantizer": "vq", **sizes})
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
    assert model.stride == stride


@pytest.mark.parametrize(
    ("channels", "groups"), [(7, 1), (8, 2), (12, 3), (16, 4), (32, 32), (48, 12), (128, 32)]
)
def test_groups_hold_several_channels_where_there_are_few(channels: int, groups: int) -> None:
    assert Norm(channels).num_groups == groups


def test_going_up_is_a_convolution_over_repeated_pixels() -> None:
    torch.manual_seed(0)
    up, x = Up(3).double(), torch.randn(2, 3, 4, 5).double()
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x), up.conv(repeated))


def test_going_down_looks_at_pixels_from_its_own_on() -> None:
    torch.manual_seed(0)
    down, x = Down(3).double(), torch.randn(2, 3, 4, 6).double()
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))
    expected = torch.nn.functional.conv2d(padded, down.conv.weight, down.conv.bias, stride=2)
    torch.testing.assert_close(down(x), expected)


def test_attention_is_where_it_was_asked_for() -> None:
    sizes = {"hidden": 8, "multipliers": (1, 2, 2), "residual_blocks": 1, "latent": 8}
    counts = {}
    for attention in ((-1,), (), (0, 1), (2,)):
        model = create_tokenizer("vqgan", attention=attention, code_dim=8, **sizes)
        parts = [*model.encoder, *model.decoder]  # type: ignore[misc]
        counts[attention] = sum(isinstance(part, SpatialAttention) for part in parts)
        assert create_tokenizer("vqgan", **model.config()).config() == model.config()
    # One in the middle of each half; one block at a resolution of the encoder, two of the decoder.
    assert counts == {(-1,): 5, (): 2, (0, 1): 8, (2,): 5}


def test_groups_are_those_asked_for() -> None:
    model = create_tokenizer("vqgan", hidden=32, multipliers=(1, 2), latent=8, groups=16)
    norms = [part for part in model.modules() if isinstance(part, Norm)]
    assert {norm.num_groups for norm in norms} == {16}


def test_a_block_without_gradients_is_the_same_function() -> None:
    torch.manual_seed(0)
    net, x = (
        torch.nn.Sequential(DeepBlock(8, 16), SpatialAttention(16)).double(),
        torch.randn(2, 8, 5, 3).double(),
    )
    before = x.clone()
    expected = net(x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected)
    assert torch.equal(x, before), "the input stays as it is"


def test_attention_mixes_all_places_by_the_softmax_of_their_products() -> None:
    torch.manual_seed(1)
    attention, x = SpatialAttention(6).double(), torch.randn(1, 6, 2, 3).double()
    query, key, value = attention.project(attention.norm(x)).flatten(2).chunk(3, 1)
    weights = torch.softmax(query.transpose(1, 2) @ key / 6**0.5, dim=2)
    mixed = (value @ weights.transpose(1, 2)).view_as(x)
    torch.testing.assert_close(attention(x), x + attention.merge(mixed))


@pytest.mark.parametrize("quantizer", ["vq", "fsq", "lfq", "residual-vq"])
def test_other_quantizers_fit_in(quantizer: str) -> None:
    options = {"vq": {"cosine": True}, "residual-vq": {"depth": 3}}.get(quantizer, {})
    sizes = {
        "hidden": 8,
        "multipliers": (1, 2),
        "residual_blocks": 1,
        "latent": 8,
        "code_dim": 8,
        "channels": 1,
    }
    model = create_tokenizer(
        "vqgan", image_size=(9, 4), quantizer=quantizer, options=options, codebook_size=256, **sizes
    )
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 9, 4, 1), dtype=np.uint8))
    model.train()(x).losses["loss"].backward()
    assert model.decode(model.eval().encode(x)).shape == x.shape
    assert create_tokenizer("vqgan", **model.config()).grid() == model.grid()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden": 0}, "hidden must be an integer in 1..65536, got 0"),
        ({"multipliers": ()}, r"multipliers must be a list of 1 to 13 numbers, got \(\)"),
        ({"multipliers": (1, 0)}, "each of the multipliers must be an integer in 1.*, got 0"),
        ({"residual_blocks": 0}, "residual_blocks must be an integer in 1..1024, got 0"),
    ],
)
def test_layers_of_no_size_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_tokenizer("vqgan", **wrong)


def test_activations_lie_channels_last_on_a_cpu_also_of_one_image() -> None:
    model = create_tokenizer(
        "vqgan", image_size=(8, 8), hidden=8, multipliers=(1, 2), latent=8, code_dim=8
    )
    layouts: list[bool] = []

    def note(_: torch.nn.Module, __: object, x: torch.Tensor) -> None:
        layouts.append(x.is_contiguous(memory_format=torch.channels_last))

    for part in (*model.encoder, *model.decoder):  # type: ignore[misc]
        if not isinstance(part, Down):
            part.register_forward_hook(note)
    model.decode(model.encode(np.zeros((1, 8, 8, 3), np.uint8)))
    assert len(layouts) > 20
    assert all(layouts)
